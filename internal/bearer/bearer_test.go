package bearer_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/keytool"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

// The errors of Verify. The tests compare whole texts, so no error quotes its token.
const (
	accepted = "" // a token of the client acme with the scope

	notCompact   = "not a compact JWT"
	malformed    = "malformed, or signed with an algorithm that is not allowed"
	noKey        = "no key of the set for its kid and alg"
	badSignature = "bad signature"
	noClient     = "no client: none of JWT_CLIENT_CLAIM is a non-empty string"

	// These follow "header" or "payload".
	notObject = " must be one JSON object"
	nameTwice = " must not give a member name twice in one object"
)

var acme = bearer.Token{ClientID: "acme", HasScope: true}

// verifier is a Verifier with its log.
type verifier struct {
	*bearer.Verifier
	log *testkit.Log
}

func newVerifier(c bearer.Config) verifier {
	log := &testkit.Log{}
	return verifier{bearer.New(c, slog.New(slog.NewJSONHandler(log, nil))), log}
}

// start runs v until the test ends and waits until its key set is loaded.
func (v verifier) start(t testing.TB) verifier {
	t.Helper()
	go v.Run(t.Context())
	testkit.Must(t, v.WaitReady(t.Context()))
	return v
}

// config returns the service's default configuration.
func config(keySet *url.URL) bearer.Config {
	return bearer.Config{
		JWKSURL:      keySet,
		Algorithms:   []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA},
		ClientClaims: []string{"client_id", "azp", "sub"},
		ScopeClaims:  []string{"scope", "scp"},
		MaxLifetime:  24 * time.Hour,
	}
}

// keyFile returns the URL of a file with a key set of these keys, which may be any values.
func keyFile(t testing.TB, keys ...any) *url.URL {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys.json")
	testkit.Must(t, os.WriteFile(file, []byte(keySetJSON(t, keys...)), 0o600))
	return &url.URL{Scheme: "file", Path: file}
}

// ourKeys returns the URL of a file with testkit's keys "rsa", "ec" and "ed".
func ourKeys(t testing.TB) *url.URL {
	t.Helper()
	return keyFile(t, testkit.RSA().Public(), testkit.EC().Public(), testkit.Ed().Public())
}

func keySetJSON(t testing.TB, keys ...any) string { return asJSON(t, map[string]any{"keys": keys}) }

func asJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	testkit.Must(t, err)
	return string(data)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// verifyTest is a token, the values of the certificate header, and the expected error of Verify, or accepted.
type verifyTest struct {
	name, token string
	headers     []string
	wantErr     string
}

// check verifies each token twice, because valid ones are cached. It checks that no part of a token is logged.
func (v verifier) check(t testing.TB, tests ...verifyTest) {
	t.Helper()
	for _, tt := range tests {
		var want bearer.Token
		if tt.wantErr == accepted {
			want = acme
		}
		v.checkToken(t, tt, want)
	}
}

// checkToken is check for a token with other contents. It does not compare ID and KeyID.
func (v verifier) checkToken(t testing.TB, tt verifyTest, want bearer.Token) {
	t.Helper()
	for range 2 {
		got, err := v.Verify(tt.token, tt.headers...)
		got.ID, got.KeyID = "", ""
		if got != want || errorText(err) != tt.wantErr {
			t.Errorf("%s: Verify(%.100q) = %+v, %v, want %+v, %q", tt.name, tt.token, got, err, want, tt.wantErr)
		}
	}
	for part := range strings.SplitSeq(tt.token, ".") {
		if len(part) > 16 && v.log.Has(part) {
			t.Errorf("%s: the log has %.100q of the token", tt.name, part)
		}
	}
}

func b64[T string | []byte](data T) string { return base64.RawURLEncoding.EncodeToString([]byte(data)) }

// header returns the header of a token by k with more members.
func header(k keytool.Key, more string) string {
	return fmt.Sprintf(`{"alg":%q,"kid":%q%s}`, k.Algorithm, k.ID, more)
}

// payload returns testkit.Claims as JSON with more members.
func payload(t testing.TB, more string) string {
	t.Helper()
	return strings.TrimSuffix(asJSON(t, testkit.Claims()), "}") + more + "}"
}

// raw returns a token that k signs with ES256 or EdDSA, with a header and a payload as they stand.
func raw(t testing.TB, k keytool.Key, header, payload string) string {
	t.Helper()
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(signature(t, k, input))
}

func signature(t testing.TB, k keytool.Key, input string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(input))
	switch private := k.Private.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(private, []byte(input))
	case *ecdsa.PrivateKey: // RFC 7518, section 3.4: both numbers at full length
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		testkit.Must(t, err)
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	t.Fatalf("signing with a %T", k.Private)
	return nil
}

// hs256 returns a token with this header and payload that secret authenticates.
func hs256(header, payload string, secret []byte) string {
	input := b64(header) + "." + b64(payload)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + b64(mac.Sum(nil))
}

// sign returns a valid token by k.
func sign(t testing.TB, k keytool.Key) string {
	t.Helper()
	return testkit.Sign(t, k, testkit.Claims())
}

// with returns a token by the key "ec" with some claims changed; a nil value removes a claim.
func with(t testing.TB, changes map[string]any) string {
	t.Helper()
	return testkit.Sign(t, testkit.EC(), testkit.With(changes))
}

// claim returns a token by the key "ec" with one claim set to a JSON text.
func claim(t testing.TB, name, value string) string {
	t.Helper()
	return with(t, map[string]any{name: json.RawMessage(value)})
}

func newES256(t testing.TB, id string) keytool.Key {
	t.Helper()
	return testkit.NewKey(t, id, jose.ES256)
}

func TestVerifierVerifyForm(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	good := sign(t, testkit.EC())
	part := strings.Split(good, ".")
	longest, tooLong := "", "" // the longest valid token up to 8 KiB, and the next one
	for pad := 5900; tooLong == ""; pad++ {
		if token := with(t, map[string]any{"pad": strings.Repeat("x", pad)}); len(token) <= 8<<10 {
			longest = token
		} else {
			tooLong = token
		}
	}
	for wantErr, tokens := range map[string][]string{
		accepted: {good, longest},
		notCompact: {
			"", strings.Repeat(".", 8000), ".", "abc", "a.b", "a.b.c.d", tooLong, strings.Repeat("x", 24<<10),
			good + ".", "." + good, " " + good, good + " ", good + "\xff", good + " " + good, good + "==",
			good + "\n", // which go-jose ignores
			strings.Replace(good, ".", "%2E", 1), part[0] + "." + part[1] + ".+/" + part[2][2:],
			b64(`{"alg":"RSA-OAEP","enc":"A256GCM"}`) + ".YQ.YQ.YQ.YQ",
			fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, part[1], part[0], part[2]),
		},
		malformed:                 {b64(`{"alg":"dir","enc":"A256GCM"}`) + ".YQ.YQ", raw(t, testkit.EC(), `{}`, `{}`)},
		"header is not base64url": {"a.b.c"},
		"header" + notObject:      {"..", "." + part[1] + "." + part[2]},
	} {
		for _, token := range tokens {
			v.check(t, verifyTest{token: token, wantErr: wantErr})
		}
	}
}

// TestVerifierVerifyJSON has the rules for the JSON of both header and payload.
func TestVerifierVerifyJSON(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	ec := testkit.EC()
	for part, good := range map[string]string{"header": header(ec, ""), "payload": payload(t, "")} {
		more := func(members string) string { return strings.TrimSuffix(good, "}") + members + "}" }
		nested := func(n int) string { return more(`,"x":` + strings.Repeat("[", n) + strings.Repeat("]", n)) }
		for wantErr, texts := range map[string][]string{
			accepted: {
				"\n " + good + "\r\n\t", more(`,"x":{"y":[1,null]},"cty":"JWT"`), nested(999),
				more(`,"x":{"a":1,"x":2},"y":[{"a":1},{"a":2}]`),
			},
			part + notObject: {"", "null", "[" + good + "]", `"ES256"`},
			fmt.Sprintf("%s must have nothing after its object, which ends at byte offset %d", part, len(good)): {
				good + good, good + "}"},
			fmt.Sprintf("%s must be valid JSON: the error is at byte offset %d", part, len(good)+4): {more(`,"x":NaN`)},
			part + " must not begin with a byte order mark":                                         {"\ufeff" + good},
			fmt.Sprintf("%s must be UTF-8: the error is at byte offset %d", part, len(good)+5):      {more(",\"x\":\"\xff\"")},
			part + nameTwice: {
				`{"alg":"none","scope":"x",` + good[1:], more(`,"alg":"none","scope":"x"`), more(`,"x":1,"x":1`),
				more(`,"x":[{"a":1,"\u0061":1}]`),
			},
			part + " must not nest deeper than 1000 levels": {nested(1000)},
		} {
			for _, text := range texts {
				token := raw(t, ec, text, payload(t, ""))
				if part == "payload" {
					token = raw(t, ec, header(ec, ""), text)
				}
				v.check(t, verifyTest{name: part + " " + text, token: token, wantErr: wantErr})
			}
		}
	}
	short := b64(header(ec, "")) + ".A"
	v.check(t, []verifyTest{
		{name: "empty payload", token: raw(t, ec, header(ec, ""), `{}`), wantErr: "no exp"},
		{name: "payload of one character", token: short + "." + b64(signature(t, ec, short)), wantErr: malformed},
		{name: "number over float64 in the payload", token: claim(t, "x", "1e400"), wantErr: accepted},
	}...)
}

// TestVerifierVerifyHeader has the header members that go-jose ignores or allows.
func TestVerifierVerifyHeader(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	c := config(ourKeys(t))
	c.RequireATJWT = true
	atJWT := newVerifier(c).start(t)
	test := func(v verifier, members, wantErr string) {
		t.Helper()
		token := raw(t, testkit.EC(), `{"alg":"ES256"`+members+`}`, payload(t, ""))
		v.check(t, verifyTest{name: members, token: token, wantErr: wantErr})
	}
	for wantErr, members := range map[string][]string{
		accepted: {``, `,"kid":""`, `,"KID":"rsa","TYP":"x","CRIT":["x"],"B64":false`},
		"header has crit": {`,"crit":["urn:x"]`, `,"crit":["exp"]`, `,"crit":["b64"]`, `,"crit":[]`, `,"crit":"b64"`,
			`,"crit":null`, `,"crit":{}`, `,"crit":["b64"],"b64":false`},
		"header has b64":      {`,"b64":false`, `,"b64":true`, `,"b64":null`, `,"b64":"x"`},
		"header has zip":      {`,"zip":"DEF"`, `,"zip":""`, `,"zip":null`},
		"kid is not a string": {`,"kid":5`, `,"kid":null`, `,"kid":true`, `,"kid":["ec"]`, `,"kid":{}`},
		noKey:                 {`,"kid":"EC"`, `,"kid":"ec "`, `,"kid":"ec\u0000"`, `,"kid":"../ec"`},
	} {
		for _, m := range members {
			test(v, m, wantErr)
		}
	}
	const badTyp = "typ is not of an access token"
	test(atJWT, ``, badTyp)
	for _, typ := range []string{"JWT", "jwt", "application/jwt", "APPLICATION/JWT"} {
		test(v, `,"typ":"`+typ+`"`, accepted)
		test(atJWT, `,"typ":"`+typ+`"`, badTyp)
	}
	for _, typ := range []string{"at+jwt", "AT+JWT", "Application/AT+jwt"} {
		test(v, `,"typ":"`+typ+`"`, accepted)
		test(atJWT, `,"typ":"`+typ+`"`, accepted)
	}
	for _, typ := range []string{
		`null`, `""`, `5`, `true`, `["JWT"]`, `{}`, `"JOSE"`, `"id+jwt"`, `"dpop+jwt"`, `"logout+jwt"`, `" JWT"`, `"JWT "`,
		`"at+jwt;x=1"`, `"at+jwt "`, `"application/"`, `"application/application/jwt"`, `"text/jwt"`, `"/jwt"`,
		`"appl\u0130cation/jwt"`,
	} {
		test(v, `,"typ":`+typ, badTyp)
		test(atJWT, `,"typ":`+typ, badTyp)
	}
}

func TestVerifierVerifySignature(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	ec := testkit.EC()
	good := sign(t, ec)
	part := strings.Split(good, ".")
	other := strings.Split(with(t, map[string]any{"client_id": "other"}), ".")
	signed, err := base64.RawURLEncoding.DecodeString(part[2])
	testkit.Must(t, err)
	der, err := asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(signed[:32]), new(big.Int).SetBytes(signed[32:]),
	})
	testkit.Must(t, err)
	v.check(t, verifyTest{name: "valid, and cached from here on", token: good, wantErr: accepted})
	v.check(t, verifyTest{name: "a character less", token: good[:len(good)-1], wantErr: malformed})
	unsigned := part[0] + "." + part[1] + "."
	for name, token := range map[string]string{
		"none":                 unsigned,
		"a byte less":          unsigned + b64(signed[:63]),
		"a byte more":          unsigned + b64(append(signed[:64:64], 0)),
		"zeros":                unsigned + b64(make([]byte, 64)),
		"DER":                  unsigned + b64(der),
		"of another token":     unsigned + other[2],
		"another payload":      part[0] + "." + other[1] + "." + part[2],
		"no payload":           part[0] + ".." + part[2],
		"header with a space":  b64(header(ec, " ")) + "." + part[1] + "." + part[2],
		"another key, its kid": sign(t, newES256(t, "ec")),
		"another key, no kid":  raw(t, newES256(t, ""), `{"alg":"ES256"}`, payload(t, "")),
	} {
		v.check(t, verifyTest{name: name, token: token, wantErr: badSignature})
	}
}

func TestVerifierVerifyAlgorithm(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	rs, ec, ed := testkit.RSA(), testkit.EC(), testkit.Ed()
	claims := payload(t, "")
	as := func(k keytool.Key, id string, alg jose.SignatureAlgorithm) string {
		return sign(t, keytool.Key{ID: id, Algorithm: alg, Private: k.Private})
	}
	v.check(t, []verifyTest{
		{name: "RS256", token: sign(t, rs), wantErr: accepted},
		{name: "ES256", token: sign(t, ec), wantErr: accepted},
		{name: "EdDSA", token: sign(t, ed), wantErr: accepted},
		{name: "EdDSA without go-jose", token: raw(t, ed, header(ed, ""), claims), wantErr: accepted},
		{name: "RS256, kid of the EC key", token: as(rs, "ec", jose.RS256), wantErr: noKey},
		{name: "ES256, kid of the RSA key", token: as(ec, "rsa", jose.ES256), wantErr: noKey},
		{name: "EdDSA, kid of the EC key", token: as(ed, "ec", jose.EdDSA), wantErr: noKey},
		{name: "EdDSA by the EC key", token: raw(t, ec, header(ed, ""), claims), wantErr: badSignature},
		{name: "PS256 by a key for RS256", token: as(rs, "rsa", jose.PS256), wantErr: noKey},
		{name: "RS384", token: as(rs, "rsa", jose.RS384), wantErr: malformed},
		{name: "ES384", token: sign(t, testkit.NewKey(t, "ec", jose.ES384)), wantErr: malformed},
	}...)
	for _, alg := range []string{
		`"none"`, `"None"`, `"nOnE"`, `"NONE"`, `"es256"`, `"ES256 "`, `""`, `null`, `256`, `["ES256"]`, `{}`,
	} {
		head := `{"alg":` + alg + `,"kid":"ec"}`
		for _, token := range []string{
			raw(t, ec, head, claims), b64(head) + "." + b64(claims) + ".", b64(head) + "." + b64(claims) + ".anVuaw",
		} {
			v.check(t, verifyTest{name: "alg " + alg, token: token, wantErr: malformed})
		}
	}

	p384 := testkit.NewKey(t, "p384", jose.ES384)
	c := config(keyFile(t, ec.Public(), p384.Public(), rs.Public(), ed.Public()))
	c.Algorithms = []jose.SignatureAlgorithm{jose.ES384, jose.RS256}
	newVerifier(c).start(t).check(t, []verifyTest{
		{name: "EdDSA not configured", token: sign(t, ed), wantErr: malformed},
		{name: "Ed25519 not configured", token: raw(t, ed, `{"alg":"Ed25519","kid":"ed"}`, claims), wantErr: malformed},
		{name: "configured ES384", token: sign(t, p384), wantErr: accepted},
		{name: "configured RS256", token: sign(t, rs), wantErr: accepted},
		{name: "ES256 not configured", token: sign(t, ec), wantErr: malformed},
		{name: "configured ES384, kid of the P-256 key", token: as(p384, "ec", jose.ES384), wantErr: noKey},
	}...)
}

// TestVerifierVerifyEd25519 has EdDSA's new name in tokens and keys, and what must not get in by it.
func TestVerifierVerifyEd25519(t *testing.T) {
	ec, ed, claims := testkit.EC(), testkit.Ed(), payload(t, "")
	renamed := keytool.Key{ID: "new", Algorithm: "Ed25519", Private: testkit.NewKey(t, "", jose.EdDSA).Private}
	v := newVerifier(config(keyFile(t, testkit.RSA().Public(), ec.Public(), ed.Public(), renamed.Public()))).start(t)
	head := func(alg, kid string) string { return fmt.Sprintf(`{"alg":%q,"kid":%q}`, alg, kid) }
	const name = "Ed25519"
	good, public := raw(t, ed, head(name, "ed"), claims), []byte(ed.Private.Public().(ed25519.PublicKey))
	v.check(t, []verifyTest{
		{name: "key for EdDSA", token: good, wantErr: accepted},
		{name: "key for Ed25519", token: raw(t, renamed, head(name, "new"), claims), wantErr: accepted},
		{name: "key for Ed25519, EdDSA", token: raw(t, renamed, head("EdDSA", "new"), claims), wantErr: accepted},
		{name: "no kid, two keys", token: raw(t, ed, `{"alg":"Ed25519"}`, claims), wantErr: noKey},
		{name: "RSA key", token: raw(t, ed, head(name, "rsa"), claims), wantErr: noKey},
		{name: "EC key and signature", token: raw(t, ec, head(name, "ec"), claims), wantErr: noKey},
		{name: "EC signature", token: raw(t, ec, head(name, "ed"), claims), wantErr: badSignature},
		{name: "another key", token: raw(t, renamed, head(name, "ed"), claims), wantErr: badSignature},
		{name: "HMAC", token: hs256(head(name, "ed"), claims, public), wantErr: badSignature},
		{name: "no signature", token: good[:strings.LastIndex(good, ".")+1], wantErr: badSignature},
		{name: "renamed", token: b64(head("EdDSA", "ed")) + good[strings.Index(good, "."):], wantErr: badSignature},
	}...)
	for _, alg := range []string{"ed25519", "ED25519", "Ed25519 ", "Ed448", "Ed25519ph", "HS256", "none"} {
		v.check(t, []verifyTest{
			{name: alg, token: raw(t, ed, head(alg, "ed"), claims), wantErr: malformed},
			{name: alg + " with HMAC", token: hs256(head(alg, "ed"), claims, public), wantErr: malformed},
		}...)
	}
}

// TestVerifierVerifyHMAC has tokens that are authenticated with the RSA public key or a weak text as the secret.
func TestVerifierVerifyHMAC(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	public := testkit.RSA().Private.Public().(*rsa.PublicKey)
	der, err := x509.MarshalPKIXPublicKey(public)
	testkit.Must(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	for name, secret := range map[string][]byte{
		"PEM": bytes.TrimSuffix(text, []byte("\n")), "PEM and newline": text, "DER": der,
		"JWK": []byte(asJSON(t, testkit.RSA().Public())), "modulus": public.N.Bytes(),
		"PKCS 1": x509.MarshalPKCS1PublicKey(public), "secret": []byte("secret"), "empty": nil,
	} {
		hs, rs := `{"alg":"HS256","kid":"rsa"}`, `{"alg":"RS256","kid":"rsa"}`
		v.check(t, []verifyTest{
			{name: "HS256, " + name, token: hs256(hs, payload(t, ""), secret), wantErr: malformed},
			{name: "RS256 with HMAC, " + name, token: hs256(rs, payload(t, ""), secret), wantErr: badSignature},
		}...)
	}
}

// TestVerifierVerifyOwnKey has tokens that contain or name the key that signed them.
func TestVerifierVerifyOwnKey(t *testing.T) {
	thief := newES256(t, "thief")
	jwk := asJSON(t, thief.Public())
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, thief.Private.Public(), thief.Private)
	testkit.Must(t, err)
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the token's own URL got a request")
	}))
	defer trap.Close()
	v := newVerifier(config(ourKeys(t))).start(t)
	for name, member := range map[string]string{
		"jwk": `,"jwk":` + jwk,
		"x5c": fmt.Sprintf(`,"x5c":[%q]`, base64.StdEncoding.EncodeToString(cert)),
		"jku": fmt.Sprintf(`,"jku":%q`, trap.URL),
		"x5u": fmt.Sprintf(`,"x5u":%q`, trap.URL),
	} {
		token := func(k keytool.Key, kid string) string {
			return raw(t, k, fmt.Sprintf(`{"alg":"ES256","kid":%q%s}`, kid, member), payload(t, ""))
		}
		v.check(t, []verifyTest{
			{name: name + ", known kid", token: token(thief, "ec"), wantErr: badSignature},
			{name: name + ", its kid", token: token(thief, "thief"), wantErr: noKey},
			{name: name + ", no kid", token: token(thief, ""), wantErr: badSignature},
			{name: name + ", signed by a key of the set", token: token(testkit.EC(), "ec"), wantErr: accepted},
		}...)
	}
}

// TestVerifierVerifyDates runs in a bubble, so that the clock stands still.
func TestVerifierVerifyDates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		at := func(seconds float64) string { return fmt.Sprintf("%.2f", float64(now)+seconds) }
		const day = 24 * 60 * 60
		const noExp, tooLong = "no exp", "exp is further away than JWT_MAX_LIFETIME"
		tests := []verifyTest{
			{name: "no exp", token: with(t, map[string]any{"exp": nil}), wantErr: noExp},
			{name: "EXP", token: with(t, map[string]any{"exp": nil, "EXP": now + 60}), wantErr: noExp},
			{name: "no iat", token: with(t, map[string]any{"iat": nil}), wantErr: accepted},
		}
		add := func(wantErr, name string, values ...string) {
			for _, value := range values {
				tests = append(tests, verifyTest{name: name + " " + value, token: claim(t, name, value), wantErr: wantErr})
			}
		}
		add(accepted, "exp", at(3600), at(0), at(-10), at(-29), at(-29.5), at(day), at(3600)+"E+0")
		add("expired 30s ago", "exp", at(-30), at(-30.4))
		add("expired 31s ago", "exp", at(-30.5), at(-31))
		add("expired 3m0s ago", "exp", at(-180))
		add("expired 262968h0m0s ago", "exp", "0", "-0", "1e-400")
		add("expired 262968h0m1s ago", "exp", "-1")
		add("expired 2500000h0m0s ago", "exp", "-1e11", "-1e308") // as long as a Duration can be
		add(tooLong, "exp", at(day+0.5), at(day+1), fmt.Sprint(now*1000), fmt.Sprint(now*1e9), "1e308",
			strings.Repeat("9", 40))
		add("exp is not a number", "exp", strings.Repeat("9", 400))
		for _, name := range []string{"nbf", "iat"} {
			add(accepted, name, at(30), at(10), at(0), at(-365*day), "0")
			add(name+" is in the future", name, at(30.5), at(31), at(3600), fmt.Sprint(now*1000), "1e308")
		}
		for _, name := range []string{"exp", "nbf", "iat"} {
			add(name+" is not a number", name,
				`null`, `true`, `"abc"`, `"NaN"`, `"`+at(60)+`"`, `""`, `[`+at(60)+`]`, `{}`, `1e400`, `-1e400`)
		}
		newVerifier(config(ourKeys(t))).start(t).check(t, tests...)

		c := config(ourKeys(t))
		c.MaxLifetime = 10 * time.Minute
		newVerifier(c).start(t).check(t, []verifyTest{
			{name: "maximum lifetime", token: claim(t, "exp", at(600)), wantErr: accepted},
			{name: "a second more", token: claim(t, "exp", at(601)), wantErr: tooLong},
		}...)
	})
}

func TestVerifierVerifyIssuerAudience(t *testing.T) {
	const issuer, audience = "https://auth.example/", "ours"
	null := json.RawMessage("null")
	start := func(issuer, audience string) verifier {
		c := config(ourKeys(t))
		c.Issuer, c.Audience = issuer, audience
		return newVerifier(c).start(t)
	}
	both, issuerOnly, audienceOnly := start(issuer, audience), start(issuer, ""), start("", audience)
	test := func(v verifier, iss, aud any, wantErr string) {
		t.Helper()
		name := fmt.Sprintf("iss %s, aud %s", asJSON(t, iss), asJSON(t, aud))
		v.check(t, verifyTest{name: name, token: with(t, map[string]any{"iss": iss, "aud": aud}), wantErr: wantErr})
	}
	for _, iss := range []any{
		"https://other.example/", "https://auth.example", "https://auth.example//", "HTTPS://AUTH.EXAMPLE/",
		" https://auth.example/", "", nil, null, 5, []any{issuer}, map[string]any{"iss": issuer},
	} {
		test(both, iss, audience, "iss is not JWT_ISSUER")
		test(issuerOnly, iss, nil, "iss is not JWT_ISSUER")
		test(audienceOnly, iss, audience, accepted)
	}
	for _, aud := range []any{
		"other", "OURS", "ours ", "ours x", "our", "", nil, null, 5, true, map[string]any{"ours": true},
		[]any{}, []any{"x"}, []any{"x", "OURS"}, []any{"ours x"}, []any{[]any{audience}}, []any{null},
		[]any{audience, null}, []any{5, audience}, []any{audience, []any{}}, []any{map[string]any{}, audience},
	} {
		test(both, issuer, aud, "aud does not have JWT_AUDIENCE")
		test(issuerOnly, issuer, aud, accepted)
	}
	for _, aud := range []any{audience, []any{audience}, []any{audience, "x"}, []any{"x", audience}} {
		test(both, issuer, aud, accepted)
	}
}

func TestVerifierVerifyScope(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).start(t)
	const ours = "api:user.write"
	null := json.RawMessage("null")
	test := func(scope, scp any, want bool) {
		t.Helper()
		tt := verifyTest{
			name:  fmt.Sprintf("scope %s, scp %s", asJSON(t, scope), asJSON(t, scp)),
			token: with(t, map[string]any{"scope": scope, "scp": scp}),
		}
		v.checkToken(t, tt, bearer.Token{ClientID: "acme", HasScope: want})
	}
	for _, value := range []any{
		ours, ours + " b", "a " + ours + " b", "a " + ours, "a  " + ours, ours + " ", " " + ours, ours + " " + ours,
		[]any{ours}, []any{ours, "b"}, []any{"a", ours, "b"}, []any{"a", ours}, []any{"", ours},
		json.RawMessage(`"api:user\u002ewrite"`),
	} {
		test(value, nil, true)
		test(nil, value, true)
		test(value, 5, true)
		test("x", value, true)
	}
	for _, value := range []any{
		nil, null, "", " ", "api:user.writer", "xapi:user.write", "api:user.write:sub", "api:user.*", "api:*", "*",
		"API:USER.WRITE", "api:user", "api.user.write", "a\t" + ours, ours + "\n", "a," + ours, "a+" + ours,
		`"` + ours + `"`, "\u00a0" + ours, 5, true, map[string]any{ours: true}, []any{}, []any{"a " + ours},
		[]any{ours + " "}, []any{"API:USER.WRITE"}, []any{5, ours}, []any{ours, 5}, []any{null, ours},
		[]any{ours, null}, []any{[]any{ours}}, []any{ours, map[string]any{}},
	} {
		test(value, nil, false)
		test(nil, value, false)
	}
	test("api:user", ".write", false)
	other := with(t, map[string]any{"scope": nil, "SCOPE": ours, "scopes": ours, "roles": []any{ours}})
	v.checkToken(t, verifyTest{name: "other claims", token: other}, bearer.Token{ClientID: "acme"})

	c := config(ourKeys(t))
	c.ScopeClaims = []string{"roles", "https://a.example/scopes"}
	v = newVerifier(c).start(t)
	for claim, want := range map[string]bool{
		"roles": true, "https://a.example/scopes": true, "Roles": false, "scope": false, "scp": false,
	} {
		for _, value := range []any{ours, []any{"a", ours}} {
			token := with(t, map[string]any{"scope": nil, claim: value})
			v.checkToken(t, verifyTest{name: claim, token: token}, bearer.Token{ClientID: "acme", HasScope: want})
		}
	}
}

func TestVerifierVerifyClientID(t *testing.T) {
	usual := []string{"client_id", "azp", "sub"}
	null := json.RawMessage("null")
	const odd = "Ünï \u0001\u2028 \"x\""
	longest := strings.Repeat("é", 64) // 128 bytes
	for _, tt := range []struct {
		name         string
		clientClaims []string
		claims       map[string]any
		want         string
		wantErr      string
	}{
		{name: "client_id first", claims: map[string]any{"client_id": "c", "azp": "a", "sub": "s"}, want: "c"},
		{name: "azp second", claims: map[string]any{"client_id": nil, "azp": "a", "sub": "s"}, want: "a"},
		{name: "sub last", claims: map[string]any{"client_id": nil, "sub": "s"}, want: "s"},
		{name: "empty", claims: map[string]any{"client_id": "", "azp": "", "sub": "s"}, want: "s"},
		{name: "null", claims: map[string]any{"client_id": null, "azp": "a"}, want: "a"},
		{name: "odd characters", claims: map[string]any{"client_id": odd}, want: odd},
		{name: "none", claims: map[string]any{"client_id": nil}, wantErr: noClient},
		{name: "configured order", clientClaims: []string{"sub", "client_id"}, claims: map[string]any{"sub": "s"}, want: "s"},
		{name: "128 bytes", claims: map[string]any{"client_id": longest}, want: longest},
		{name: "129 bytes", claims: map[string]any{"client_id": longest + "x", "azp": "a"},
			wantErr: "the client's name is over 128 bytes"},
		{name: "reference platform", clientClaims: []string{"org_id"}, want: "org_2yRHN2ag2y4p8",
			claims: map[string]any{"client_id": nil, "org_id": "org_2yRHN2ag2y4p8", "key_id": "key_1", "jti": "3f0c"}},
	} {
		c := config(ourKeys(t))
		c.ClientClaims = usual
		if tt.clientClaims != nil {
			c.ClientClaims = tt.clientClaims
		}
		want := bearer.Token{ClientID: tt.want, HasScope: tt.want != ""}
		token := with(t, tt.claims)
		newVerifier(c).start(t).checkToken(t, verifyTest{name: tt.name, token: token, wantErr: tt.wantErr}, want)
	}
}

// TestVerifierVerifyIDs has what a token contains for the log.
func TestVerifierVerifyIDs(t *testing.T) {
	v := newVerifier(config(keyFile(t, testkit.EC().Public()))).start(t)
	for jti, wantID := range map[string]string{
		`"t-1"`: "t-1", `"` + strings.Repeat("x", 99) + `"`: strings.Repeat("x", 64), `""`: "", `5`: "", `null`: "",
	} {
		token := raw(t, testkit.EC(), `{"alg":"ES256"}`, payload(t, `,"jti":`+jti))
		want := bearer.Token{ClientID: "acme", HasScope: true, ID: wantID, KeyID: "ec"}
		if got, err := v.Verify(token); got != want || err != nil {
			t.Errorf("Verify of a token with jti %s = %+v, %v, want %+v", jti, got, err, want)
		}
	}
}

// TestVerifierVerifyCached has a token that expires after it was cached. TestVerifierRunFile removes the key of one.
func TestVerifierVerifyCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVerifier(config(ourKeys(t))).start(t)
		v.SetCacheLimit(3)
		begin := time.Now()
		token := with(t, map[string]any{"exp": begin.Unix() + 60})
		v.check(t, []verifyTest{
			{name: "valid", token: token, wantErr: accepted},
			{name: "valid, no signature", token: token[:strings.LastIndex(token, ".")+1], wantErr: badSignature},
			{name: "expired", token: with(t, map[string]any{"exp": begin.Unix() - 60}), wantErr: "expired 1m0s ago"},
		}...)
		if n := v.CachedTokens(); n != 1 {
			t.Errorf("%d tokens are cached, want the valid one", n)
		}
		for i := range 6 {
			v.check(t, verifyTest{name: "more", token: with(t, map[string]any{"jti": i}), wantErr: accepted})
		}
		if n := v.CachedTokens(); n < 1 || n > 3 {
			t.Errorf("%d tokens are cached, want 1 to 3", n)
		}
		v.check(t, verifyTest{name: "at the start", token: token, wantErr: accepted})
		time.Sleep(time.Until(begin.Add(89_999 * time.Millisecond)))
		v.check(t, verifyTest{name: "before exp and leeway", token: token, wantErr: accepted})
		time.Sleep(time.Millisecond)
		v.check(t, verifyTest{name: "at exp and leeway", token: token, wantErr: "expired 30s ago"})
	})
}

// FuzzVerifierVerify checks that only signed tokens are valid and that no error quotes its token.
func FuzzVerifierVerify(f *testing.F) {
	// The key and exp are fixed, because fuzzing runs in several processes that share their inputs.
	ed := keytool.Key{ID: "ed", Algorithm: jose.EdDSA, Private: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))}
	c := config(keyFile(f, ed.Public()))
	c.MaxLifetime = 200 * 365 * 24 * time.Hour
	v := newVerifier(c).start(f)
	const claims = `{"client_id":"acme","scope":"api:user.write","exp":4102444800}`

	signed := map[string]bool{} // header and payload of the valid tokens
	for _, more := range []string{``, `,"typ":"at+jwt"`} {
		signed[header(ed, more)+"."+claims] = true
		v.check(f, verifyTest{token: raw(f, ed, header(ed, more), claims), wantErr: accepted})
		f.Add(raw(f, ed, header(ed, more), claims))
	}
	for _, more := range []string{
		`,"crit":["exp"]`, `,"b64":false`, `,"zip":"DEF"`, `,"typ":null`, `,"alg":"none"`, `,"kid":5`, `,"x5c":["AA"]`,
		`,"jwk":{"kty":"oct","k":"AA"}`, `,"x":"\ud800"`,
	} {
		f.Add(raw(f, ed, header(ed, more), claims))
	}
	f.Add(raw(f, ed, header(ed, ""), `{"exp":4102444800,"nbf":"x"}`))
	f.Add(b64(`{"alg":"EdDSA","kid":"unknown"}`) + "." + b64(claims) + "." + b64(make([]byte, 64)))
	f.Fuzz(func(t *testing.T, token string) {
		got, err := v.Verify(token)
		got.KeyID = ""
		if err != nil {
			for part := range strings.SplitSeq(token, ".") {
				if got != (bearer.Token{}) || len(part) > 16 && strings.Contains(err.Error(), part) {
					t.Errorf("Verify(%q) = %+v, %q, want no token and no part of it", token, got, err)
				}
			}
			return
		}
		// The token's text may differ where base64 has unused bits. Its contents may not.
		parts := strings.Split(token, ".")
		header, _ := base64.RawURLEncoding.DecodeString(parts[0])
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
		if got != acme || !signed[string(header)+"."+string(payload)] {
			t.Errorf("Verify(%q) = %+v, but no key signed that", token, got)
		}
	})
}
