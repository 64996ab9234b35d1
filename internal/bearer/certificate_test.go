package bearer_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"authsession/internal/testkit"
)

const (
	otherBinding = "bound (cnf) by something other than x5t#S256 alone"
	noHeader     = "bound to a certificate (cnf), but the request does not have CLIENT_CERT_HEADER exactly once"
	badHeader    = "bound to a certificate (cnf), but CLIENT_CERT_HEADER has none"
	otherCert    = "bound to another certificate (cnf)"
)

// Two certificates. Verify only hashes them, so they need not be X.509.
var (
	ownDER   = bytes.Repeat([]byte("own\xff\xfe"), 120)
	otherDER = bytes.Repeat([]byte("other\xff"), 120)
)

// byteSequence returns a certificate as RFC 9440 has it.
func byteSequence(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }

func pemText(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// escape escapes PEM as nginx's $ssl_client_escaped_cert has it.
func escape(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }

func thumbprint(der []byte) string {
	sum := sha256.Sum256(der)
	return b64(sum[:])
}

func TestVerifierVerifyCertificate(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	own, ownPEM := byteSequence(ownDER), escape(pemText(ownDER))
	bound := claim(t, "cnf", fmt.Sprintf(`{"x5t#S256":%q}`, thumbprint(ownDER)))
	chain := escape(pemText(ownDER) + strings.Repeat(pemText(otherDER), 9))
	for _, tt := range []verifyTest{
		{name: "RFC 9440", headers: []string{own}},
		{name: "none", wantErr: noHeader},
		{name: "two", headers: []string{own, own}, wantErr: noHeader},
		{name: "another", headers: []string{byteSequence(otherDER)}, wantErr: otherCert},
		{name: "bare base64", headers: []string{strings.Trim(own, ":")}},
		{name: "bare base64 without padding", headers: []string{strings.Trim(own, ":=")}},
		{name: "another, bare", headers: []string{strings.Trim(byteSequence(otherDER), ":")}, wantErr: otherCert},
		{name: "two, bare", headers: []string{strings.Trim(own, ":") + strings.Trim(own, ":")}, wantErr: otherCert},
		{name: "RFC 9440 without padding", headers: []string{strings.ReplaceAll(own, "=", "")}},
		{name: "nginx", headers: []string{ownPEM}},
		{name: "PEM with CRLF", headers: []string{escape(strings.ReplaceAll(pemText(ownDER), "\n", "\r\n"))}},
		{name: "PEM with bare + and /", headers: []string{
			strings.NewReplacer("\n", "%0A", " ", "%20").Replace(pemText(ownDER))}},
		{name: "PEM of a chain", headers: []string{escape(pemText(ownDER) + pemText(otherDER))}},

		{name: "empty", headers: []string{""}, wantErr: badHeader},
		{name: "no last colon", headers: []string{strings.TrimSuffix(own, ":")}, wantErr: badHeader},
		{name: "no first colon", headers: []string{strings.TrimPrefix(own, ":")}, wantErr: badHeader},
		{name: "colons alone", headers: []string{"::"}, wantErr: badHeader},
		{name: "bare base64 list", headers: []string{strings.Trim(own, ":") + "," + strings.Trim(own, ":")},
			wantErr: badHeader},
		{name: "bare base64url", headers: []string{base64.URLEncoding.EncodeToString(ownDER)}, wantErr: badHeader},
		{name: "XFCC", headers: []string{`Hash=0;Cert="` + ownPEM + `"`}, wantErr: badHeader},
		{name: "PEM with spaces for line ends", headers: []string{strings.ReplaceAll(pemText(ownDER), "\n", " ")},
			wantErr: badHeader},
		{name: "list", headers: []string{own + ", " + byteSequence(otherDER)}, wantErr: badHeader},
		{name: "parameter", headers: []string{own + ";a=1"}, wantErr: badHeader},
		{name: "base64url", headers: []string{":" + base64.URLEncoding.EncodeToString(ownDER) + ":"}, wantErr: badHeader},
		{name: "PEM of nothing", headers: []string{escape(pemText(nil))}, wantErr: otherCert},
		{name: "PEM cut", headers: []string{escape(pemText(ownDER)[:200])}, wantErr: badHeader},
		{name: "PEM of a key", headers: []string{
			escape(strings.ReplaceAll(pemText(ownDER), "CERTIFICATE", "PUBLIC KEY"))}, wantErr: badHeader},
		{name: "broken escape", headers: []string{ownPEM + "%"}, wantErr: badHeader},
		{name: "8 KiB", headers: []string{chain[:8190] + "AA"}},
		{name: "8 KiB and one", headers: []string{chain[:8190] + "AAA"}, wantErr: badHeader},
		{name: "another, nginx", headers: []string{escape(pemText(otherDER))}, wantErr: otherCert},
		{name: "second of a chain", headers: []string{escape(pemText(otherDER) + pemText(ownDER))}, wantErr: otherCert},
		{name: "a byte more", headers: []string{byteSequence(append(bytes.Clone(ownDER), 0))}, wantErr: otherCert},
	} {
		tt.token = bound
		v.check(t, tt)
	}
	unbound := sign(t, testkit.EC())
	v.check(t, verifyTest{name: "no cnf", token: unbound, headers: []string{byteSequence(otherDER)}, wantErr: accepted})
	v.check(t, verifyTest{name: "no cnf, two headers", token: unbound, headers: []string{"x", "y"}, wantErr: accepted})
}

// TestVerifierVerifyBinding has the claim cnf in other forms than a thumbprint of the certificate.
func TestVerifierVerifyBinding(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	x5t, header := fmt.Sprintf(`"x5t#S256":%q`, thumbprint(ownDER)), []string{byteSequence(ownDER)}
	for _, cnf := range []string{
		`null`, `{}`, `[]`, `""`, `true`, `5`, fmt.Sprintf("%q", thumbprint(ownDER)),
		`{"jkt":"x"}`, `{"jwk":{"kty":"EC"}}`, `{"kid":"ec"}`, `{"x5t":"x"}`, `{"X5T#S256":"x"}`,
		`{"x5t#S256":null}`, `{"x5t#S256":""}`, `{"x5t#S256":5}`, `{"x5t#S256":["x"]}`,
		`{` + x5t + `,"jkt":"x"}`, `{"jkt":null,` + x5t + `}`, `[{` + x5t + `}]`,
	} {
		token := claim(t, "cnf", cnf)
		v.check(t, verifyTest{name: "cnf " + cnf, token: token, wantErr: otherBinding})
		v.check(t, verifyTest{name: "cnf " + cnf, token: token, headers: header, wantErr: otherBinding})
	}
	own := thumbprint(ownDER)
	for _, text := range []string{own + "=", own + " ", own[:42], strings.ToUpper(own), thumbprint(otherDER)} {
		token := claim(t, "cnf", fmt.Sprintf(`{"x5t#S256":%q}`, text))
		v.check(t, verifyTest{name: "thumbprint " + text, token: token, headers: header, wantErr: otherCert})
	}
}
