package bearer_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/testkit"
)

// newCertificate makes a certificate, in DER.
func newCertificate(t testing.TB) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	private := testkit.EC().Private
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	testkit.Must(t, err)
	return der
}

// The two forms of CLIENT_CERT_HEADER: RFC 9440's and nginx's $ssl_client_escaped_cert.

func byteSequence(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }

func pemText(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func escape(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }

func thumbprint(der []byte) string {
	sum := sha256.Sum256(der)
	return b64(sum[:])
}

const (
	otherBinding = "bound (cnf) to other than a certificate by x5t#S256"
	noHeader     = "bound to a certificate (cnf), and not one header of CLIENT_CERT_HEADER came along"
	badHeader    = "bound to a certificate (cnf), and CLIENT_CERT_HEADER holds none"
	otherCert    = "bound to another certificate (cnf)"
)

// wantBound checks what Verify says of a token that came along with these headers, twice.
func (v *verifier) wantBound(t *testing.T, what, token string, headers []string, why string) {
	t.Helper()
	for range 2 {
		got, err := v.Verify(token, headers...)
		if textOf(err) != why || (got.Client == "acme") != (why == accepted) {
			t.Errorf("%s: Verify = %+v, %v, want %q", what, got, err, why)
		}
	}
}

func TestTokenBound(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	own, other := newCertificate(t), newCertificate(t)
	print256 := thumbprint(own)
	token := claim(t, "cnf", fmt.Sprintf(`{"x5t#S256":%q}`, print256))
	for what, headers := range map[string][]string{
		"RFC 9440":                   {byteSequence(own)},
		"RFC 9440 without padding":   {strings.ReplaceAll(byteSequence(own), "=", "")},
		"nginx":                      {escape(pemText(own))},
		"PEM with CRLF":              {escape(strings.ReplaceAll(pemText(own), "\n", "\r\n"))},
		"PEM with bare + and /":      {strings.NewReplacer("\n", "%0A", " ", "%20").Replace(pemText(own))},
		"nginx, a chain":             {escape(pemText(own) + pemText(other))},
		"nginx, a chain of its own":  {escape(pemText(own) + pemText(own))},
		"nginx, no line end after":   {escape(strings.TrimSpace(pemText(own)))},
		"nginx, rubbish after":       {escape(pemText(own) + "rubbish")},
		"RFC 9440, the other coding": {byteSequence(own)},
	} {
		v.wantBound(t, what, token, headers, accepted)
	}
	url64 := base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xFB}, 99))
	otherKind := strings.ReplaceAll(pemText(own), "CERTIFICATE", "PUBLIC KEY")
	broken := strings.Replace(pemText(other), "\nM", "\n!", 1)
	long := escape(pemText(own) + strings.Repeat(pemText(other), 20))
	for what, tt := range map[string]struct {
		headers []string
		why     string
	}{
		"none":                            {nil, noHeader},
		"two":                             {[]string{byteSequence(own), byteSequence(own)}, noHeader},
		"two, one empty":                  {[]string{byteSequence(own), ""}, noHeader},
		"an empty one":                    {[]string{""}, badHeader},
		"a space":                         {[]string{" "}, badHeader},
		"nothing between colons":          {[]string{"::"}, badHeader},
		"one colon":                       {[]string{":"}, badHeader},
		"no last colon":                   {[]string{strings.TrimSuffix(byteSequence(own), ":")}, badHeader},
		"no colons":                       {[]string{base64.StdEncoding.EncodeToString(own)}, badHeader},
		"a list":                          {[]string{byteSequence(own) + ", " + byteSequence(other)}, badHeader},
		"a list of PEM":                   {[]string{escape(pemText(own)) + ", " + escape(pemText(other))}, badHeader},
		"a parameter":                     {[]string{byteSequence(own) + ";a=1"}, badHeader},
		"base64url":                       {[]string{":" + url64 + ":"}, badHeader},
		"PEM of nothing":                  {[]string{escape(pemText(nil))}, badHeader},
		"PEM without an end":              {[]string{escape(pemText(own)[:200])}, badHeader},
		"PEM of another kind":             {[]string{escape(otherKind)}, badHeader},
		"PEM after something":             {[]string{escape("x\n" + pemText(own))}, badHeader},
		"PEM, broken, and a good one":     {[]string{escape(broken + pemText(own))}, badHeader},
		"a broken escape":                 {[]string{escape(pemText(own)) + "%"}, badHeader},
		"over 8 KiB":                      {[]string{long[:8193]}, badHeader},
		"another, RFC 9440":               {[]string{byteSequence(other)}, otherCert},
		"another, nginx":                  {[]string{escape(pemText(other))}, otherCert},
		"a chain whose second is its own": {[]string{escape(pemText(other) + pemText(own))}, otherCert},
		"its thumbprint":                  {[]string{":" + print256 + "=:"}, otherCert},
		"one byte more":                   {[]string{byteSequence(append(bytes.Clone(own), 0))}, otherCert},
	} {
		if what == "its thumbprint" && strings.ContainsAny(print256, "-_") {
			continue // no standard base64
		}
		v.wantBound(t, what, token, tt.headers, tt.why)
	}
	v.wantBound(t, "8 KiB", token, []string{long[:8190] + "AA"}, accepted)
	v.wantBound(t, "no cnf, another certificate", sign(t, testkit.EC()), []string{byteSequence(other)}, accepted)
	v.wantBound(t, "no cnf, two headers", sign(t, testkit.EC()), []string{"x", "y"}, accepted)
}

// Any other cnf is refused, whatever comes along.
func TestTokenOtherBinding(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	own := newCertificate(t)
	x5t := fmt.Sprintf(`"x5t#S256":%q`, thumbprint(own))
	for _, cnf := range []string{
		`null`, `{}`, `[]`, `""`, `true`, `5`, fmt.Sprintf("%q", thumbprint(own)),
		`{"jkt":"x"}`, `{"jwk":{"kty":"EC"}}`, `{"kid":"ec"}`, `{"x5t":"x"}`, `{"X5T#S256":"x"}`,
		`{"x5t#S256":null}`, `{"x5t#S256":""}`, `{"x5t#S256":5}`, `{"x5t#S256":["x"]}`,
		`{` + x5t + `,"jkt":"x"}`, `{"jkt":null,` + x5t + `}`, `[{` + x5t + `}]`,
	} {
		v.wantBound(t, cnf, claim(t, "cnf", cnf), []string{byteSequence(own)}, otherBinding)
		v.wantBound(t, cnf, claim(t, "cnf", cnf), nil, otherBinding)
	}
	for what, x5t := range map[string]string{
		"padded": thumbprint(own) + "=", "with white space": thumbprint(own) + " ", "shorter": thumbprint(own)[:42],
		"of nothing": thumbprint(nil), "upper case": strings.ToUpper(thumbprint(own)),
	} {
		token := claim(t, "cnf", fmt.Sprintf(`{"x5t#S256":%q}`, x5t))
		v.wantBound(t, what, token, []string{byteSequence(own)}, otherCert)
	}
}

// A bound token is remembered with its certificate, and with no other.
func TestBoundTokenRemembered(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	own, other := newCertificate(t), newCertificate(t)
	token := claim(t, "cnf", fmt.Sprintf(`{"x5t#S256":%q}`, thumbprint(own)))
	verify := func(header string) error {
		_, err := v.Verify(token, header)
		return err
	}
	for range 3 {
		if err := verify(byteSequence(own)); err != nil {
			t.Errorf("Verify with its certificate = %v", err)
		}
		if err := verify(byteSequence(other)); textOf(err) != otherCert {
			t.Errorf("Verify with another certificate = %v, want %q", err, otherCert)
		}
		if _, err := v.Verify(token); textOf(err) != noHeader {
			t.Errorf("Verify without a certificate = %v, want %q", err, noHeader)
		}
		if _, err := v.Verify(token, byteSequence(own), byteSequence(own)); textOf(err) != noHeader {
			t.Errorf("Verify with two = %v, want %q", err, noHeader)
		}
	}
	v.wantStats(t, 1, 2, 9)
	if err := verify(escape(pemText(own))); err != nil {
		t.Errorf("Verify with its certificate in another form = %v", err)
	}
	v.wantStats(t, 2, 2, 9)
	for what, header := range map[string]string{"RFC 9440": byteSequence(own), "nginx": escape(pemText(own))} {
		_ = verify(header)
		if n := testing.AllocsPerRun(100, func() { _ = verify(header) }); n > 0 {
			t.Errorf("%s: a bound token that is remembered makes %.0f allocations, want none", what, n)
		}
	}
	v.SetKeys(testkit.Ed().Public())
	if err := verify(byteSequence(own)); textOf(err) != noKey {
		t.Errorf("Verify after its key has gone = %v, want %q", err, noKey)
	}
}

// Nothing but the certificate itself passes.
func FuzzCertificate(f *testing.F) {
	v := newVerifier(config(&url.URL{Scheme: "file"}))
	v.SetKeys(testkit.EC().Public())
	own := bytes.Repeat([]byte("certificate"), 20)
	token := claim(f, "cnf", fmt.Sprintf(`{"x5t#S256":%q}`, thumbprint(own)))
	inPEM := escape(pemText(own))
	for _, header := range []string{byteSequence(own), inPEM, inPEM + inPEM, "::", "%"} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got, err := v.Verify(token, header)
		if err != nil && got != (bearer.Bearer{}) {
			t.Errorf("Verify(%q) = %+v, %v", header, got, err)
		}
		text, _ := url.PathUnescape(header)
		text = strings.NewReplacer("\r", "", "\n", "").Replace(text)
		if err == nil && !strings.Contains(text, strings.TrimRight(base64.StdEncoding.EncodeToString(own), "=")[:290]) {
			t.Errorf("Verify(%q) is good", header)
		}
	})
}

func BenchmarkBoundToken(b *testing.B) {
	v := newVerifier(config(ourKeys(b))).load(b)
	own := newCertificate(b)
	token, header := claim(b, "cnf", fmt.Sprintf(`{"x5t#S256":%q}`, thumbprint(own))), escape(pemText(own))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(token, header); err != nil {
			b.Fatal(err)
		}
	}
}
