package main

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
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
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// outcome is what a credential gets. The challenges are spelled out here: callers
// match on their text.
type outcome struct {
	status    int
	name      string
	challenge string // WWW-Authenticate
}

var (
	accepted   = outcome{status: 200}
	noToken    = outcome{401, "unauthorized", `Bearer`}
	badToken   = outcome{401, "unauthorized", `Bearer error="invalid_token"`}
	lacksScope = outcome{403, "forbidden", `Bearer error="insufficient_scope", scope="api:user.write"`}
	twoHeaders = outcome{400, "bad_request", ``}
)

// checkOutcome checks an answer whole. A refusal's log line must have cause in its
// cause: a token that is wrong in another way than meant would prove nothing.
func (ts *testServer) checkOutcome(t testing.TB, a answer, want outcome, cause string) {
	t.Helper()
	if got := strings.Join(a.header.Values("WWW-Authenticate"), " | "); got != want.challenge {
		t.Errorf("WWW-Authenticate = %q, want %q", got, want.challenge)
	}
	if want == accepted {
		ts.wantSession(t, a)
		return
	}
	e := wantError(t, a, want.status, want.name)
	if got, _ := ts.refusal(t, e.ID)["cause"].(string); got == "" || !strings.Contains(got, cause) {
		t.Errorf("logged cause = %q, want %q", got, cause)
	}
	if one := "send a valid bearer token in the Authorization header"; want.status == 401 && e.Message != one {
		t.Errorf("message = %q, want the one of every 401, %q", e.Message, one)
	}
}

// refusal is the log line of the error with this id, which is written after the answer.
func (ts *testServer) refusal(t testing.TB, id string) map[string]any {
	t.Helper()
	waitFor(t, 5*time.Second, "the log line of error "+id, func() bool { return strings.Contains(ts.log.String(), id) })
	return ts.log.line(t, "error_id", id)
}

// checkLog checks that no part of the token is in the log but what any text may have.
func (ts *testServer) checkLog(t testing.TB, token string) {
	t.Helper()
	log := ts.log.String()
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 16 && strings.Contains(log, part) {
			t.Errorf("log has %q of the token", part)
		}
	}
}

// tokenCase is a token and what POST /auth/session with it and a good body gets.
type tokenCase struct {
	name  string
	token string
	want  outcome
	cause string
}

// checkTokens runs the cases, and checks that only the good ones left something in Redis.
func (ts *testServer) checkTokens(t *testing.T, cases []tokenCase) {
	t.Helper()
	sessions := len(ts.sessionKeys(t))
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.want == accepted {
				sessions++
			}
			ts.checkOutcome(t, ts.post(t, c.token, goodBody), c.want, c.cause)
			ts.checkLog(t, c.token)
		})
	}
	if got := len(ts.sessionKeys(t)); got != sessions {
		t.Errorf("%d sessions in Redis, want %d: only good tokens leave one", got, sessions)
	}
}

func b64[T string | []byte](data T) string { return base64.RawURLEncoding.EncodeToString([]byte(data)) }

// header is a token's header by k with more members.
func (k testKey) header(more string) string {
	return fmt.Sprintf(`{"alg":%q,"kid":%q%s}`, k.alg, k.kid, more)
}

// payload is goodClaims as JSON with more members.
func payload(more string) string {
	return strings.TrimSuffix(string(encodeJSON(goodClaims())), "}") + more + "}"
}

// raw is a token that k signed, with a header and a payload as they stand. k must be
// for RS256, ES256 or EdDSA, whatever the header says.
func (k testKey) raw(t testing.TB, header, payload string) string {
	t.Helper()
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(k.signature(t, input))
}

func (k testKey) signature(t testing.TB, input string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch priv := k.priv.(type) {
	case ed25519.PrivateKey:
		signature = ed25519.Sign(priv, []byte(input))
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(rand.Reader, priv, crypto.SHA256, digest[:])
	case *ecdsa.PrivateKey: // RFC 7518, section 3.4: both numbers at full length
		var r, s *big.Int
		if r, s, err = ecdsa.Sign(rand.Reader, priv, digest[:]); err == nil {
			signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	}
	if err != nil {
		t.Fatalf("signing: %v", err)
	}
	return signature
}

// hs256 is a token with a good payload that secret authenticates.
func hs256(header string, secret []byte) string {
	input := b64(header) + "." + b64(payload(""))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + b64(mac.Sum(nil))
}

// tokenOfLength is a good token of n bytes.
func tokenOfLength(t testing.TB, n int) string {
	t.Helper()
	k := ecKey()
	for head := range 3 { // base64 has no length of 1 mod 4, so one part alone can't reach every length
		header := k.header(`,"pad":"` + strings.Repeat("x", head) + `"`)
		for pad := n / 2; ; pad++ {
			claims := payload(`,"pad":"` + strings.Repeat("x", pad) + `"`)
			length := base64.RawURLEncoding.EncodedLen(len(header)) + 1 + base64.RawURLEncoding.EncodedLen(len(claims)) + 1 + base64.RawURLEncoding.EncodedLen(64)
			if length == n {
				return k.raw(t, header, claims)
			}
			if length > n {
				break
			}
		}
	}
	t.Fatalf("no token of %d bytes", n)
	return ""
}

// postLines posts a good body with header lines as they stand: Go's client would trim
// their values and send one Authorization.
func (ts *testServer) postLines(t testing.TB, lines ...string) answer {
	t.Helper()
	return ts.exchange(t, fmt.Sprintf("POST /auth/session HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n\r\n%s",
		ts.addr, len(goodBody), strings.Join(append([]string{"Content-Type: application/json"}, lines...), "\r\n"), goodBody))
}

func TestTokenHeader(t *testing.T) {
	ts := newTestServer(t, nil)
	good := ts.token(t)
	bad := good[:len(good)-8] + "AAAAAAAA"
	tests := []struct {
		name  string
		lines []string
		want  outcome
		cause string
	}{
		{"none", nil, noToken, "no bearer token"},
		{"empty", []string{"Authorization:"}, noToken, "no bearer token"},
		{"blank", []string{"Authorization:  \t "}, noToken, "no bearer token"},
		{"scheme alone", []string{"Authorization: Bearer"}, noToken, "no bearer token"},
		{"scheme and a space", []string{"Authorization: Bearer "}, noToken, "no bearer token"},
		{"scheme and a tab", []string{"Authorization: Bearer\t"}, noToken, "no bearer token"},
		{"Basic", []string{"Authorization: Basic dTpw"}, noToken, "no bearer token"},
		{"Basic with a good token", []string{"Authorization: Basic " + good}, noToken, "no bearer token"},
		{"Token", []string{"Authorization: Token " + good}, noToken, "no bearer token"},
		{"Digest", []string{`Authorization: Digest username="u", response="x"`}, noToken, "no bearer token"},
		{"DPoP", []string{"Authorization: DPoP " + good}, noToken, "no bearer token"},
		{"no scheme", []string{"Authorization: " + good}, noToken, "no bearer token"},
		{"no space", []string{"Authorization: Bearer" + good}, noToken, "no bearer token"},
		{"colon after the scheme", []string{"Authorization: Bearer: " + good}, noToken, "no bearer token"},
		{"another header", []string{"Proxy-Authorization: Bearer " + good, "X-Authorization: Bearer " + good}, noToken, "no bearer token"},
		{"cookie", []string{"Cookie: access_token=" + good + "; Authorization=Bearer " + good}, noToken, "no bearer token"},

		{"good", []string{"Authorization: Bearer " + good}, accepted, ""},
		{"bearer", []string{"Authorization: bearer " + good}, accepted, ""},
		{"BEARER", []string{"AUTHORIZATION: BEARER " + good}, accepted, ""},
		{"bEaReR", []string{"authorization: bEaReR " + good}, accepted, ""},
		{"blanks around", []string{"Authorization: \t Bearer " + good + " \t"}, accepted, ""},

		{"two spaces", []string{"Authorization: Bearer  " + good}, badToken, "not a compact JWT"},
		{"tab", []string{"Authorization: Bearer\t" + good}, badToken, "no single space"},
		{"space and tab", []string{"Authorization: Bearer \t" + good}, badToken, "not a compact JWT"},
		{"tab and space", []string{"Authorization: Bearer\t " + good}, badToken, "no single space"},
		{"two tokens", []string{"Authorization: Bearer " + good + " " + good}, badToken, "not a compact JWT"},
		{"list of two", []string{"Authorization: Bearer " + good + ", Bearer " + good}, badToken, "not a compact JWT"},
		{"quoted", []string{`Authorization: Bearer "` + good + `"`}, badToken, "not a compact JWT"},
		{"parameter after", []string{`Authorization: Bearer ` + good + `;q=1`}, badToken, "not a compact JWT"},
		{"space inside", []string{"Authorization: Bearer " + good[:9] + " " + good[9:]}, badToken, "not a compact JWT"},
		{"padding", []string{"Authorization: Bearer " + good + "=="}, badToken, "not a compact JWT"},
		{"percent escape", []string{"Authorization: Bearer " + strings.Replace(good, ".", "%2E", 1)}, badToken, "not a compact JWT"},
		{"no text at all", []string{"Authorization: Bearer \xff"}, badToken, "not a compact JWT"},
		{"token and \\xff", []string{"Authorization: Bearer " + good + "\xff"}, badToken, "not a compact JWT"},
		{"Latin-1", []string{"Authorization: Bearer " + good + "\xe9"}, badToken, "not a compact JWT"},
		{"UTF-8", []string{"Authorization: Bearer é" + good}, badToken, "not a compact JWT"},

		{"good and bad", []string{"Authorization: Bearer " + good, "Authorization: Bearer " + bad}, twoHeaders, "one Authorization header"},
		{"bad and good", []string{"Authorization: Bearer " + bad, "Authorization: Bearer " + good}, twoHeaders, "one Authorization header"},
		{"good twice", []string{"Authorization: Bearer " + good, "authorization: Bearer " + good}, twoHeaders, "one Authorization header"},
		{"empty and good", []string{"Authorization:", "Authorization: Bearer " + good}, twoHeaders, "one Authorization header"},
		{"Basic and good", []string{"Authorization: Basic dTpw", "X-Other: 1", "Authorization: Bearer " + good}, twoHeaders, "one Authorization header"},
	}
	sessions := 0
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == accepted {
				sessions++
			}
			ts.checkOutcome(t, ts.postLines(t, tt.lines...), tt.want, tt.cause)
		})
	}
	if got := len(ts.sessionKeys(t)); got != sessions {
		t.Errorf("%d sessions in Redis, want %d: only good tokens leave one", got, sessions)
	}
	ts.checkLog(t, good)
	ts.checkLog(t, bad)
}

func TestTokenOutsideHeader(t *testing.T) {
	ts := newTestServer(t, nil)
	good := ts.token(t)
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	query := "/auth/session?access_token=" + good
	ts.checkOutcome(t, ts.do(t, "POST", query, nil, strings.NewReader(goodBody)), noToken, "no bearer token")
	ts.checkOutcome(t, ts.do(t, "POST", "/auth/session", form, strings.NewReader("access_token="+good)), noToken, "no bearer token")
	ts.checkOutcome(t, ts.do(t, "POST", "/auth/session", nil, strings.NewReader(`{"end_user_id":"eu_1","access_token":"`+good+`"}`)), noToken, "no bearer token")
	ts.wantNoKeys(t)

	// Beside a token in the header the query is nothing to look at, nor to log.
	bearer := http.Header{"Authorization": {"Bearer " + good}}
	ts.checkOutcome(t, ts.do(t, "POST", "/auth/session?access_token=another.token.inTheQuery", bearer, strings.NewReader(goodBody)), accepted, "")
	if strings.Contains(ts.log.String(), "inTheQuery") {
		t.Errorf("log has the query")
	}
	ts.checkLog(t, good)
}

func TestTokenForm(t *testing.T) {
	ts := newTestServer(t, nil)
	ec, good := ecKey(), ts.token(t)
	part := strings.Split(good, ".")
	other := strings.Split(ec.sign(t, with(map[string]any{"client_id": "other"})), ".")
	ofRSA := strings.Split(rsaKey().sign(t, goodClaims()), ".")
	signature, err := base64.RawURLEncoding.DecodeString(part[2])
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])})
	if err != nil {
		t.Fatal(err)
	}
	head, claims := ec.header(""), payload("")
	flipped := bytes.Clone(signature)
	flipped[40] ^= 1
	withSignature := func(s []byte) string { return part[0] + "." + part[1] + "." + b64(s) }
	notBase64 := part[0] + ".A" // one character is no byte
	ts.checkTokens(t, []tokenCase{
		{"8000 dots", strings.Repeat(".", 8000), badToken, "not a compact JWT"},
		{"one dot", ".", badToken, "not a compact JWT"},
		{"two dots", "..", badToken, "header"},
		{"one word", "abc", badToken, "not a compact JWT"},
		{"two parts", "a.b", badToken, "not a compact JWT"},
		{"four parts", "a.b.c.d", badToken, "not a compact JWT"},
		{"good with a dot after", good + ".", badToken, "not a compact JWT"},
		{"good with a dot before", "." + good, badToken, "not a compact JWT"},
		{"JWE", b64(`{"alg":"RSA-OAEP","enc":"A256GCM"}`) + ".YQ.YQ.YQ.YQ", badToken, "not a compact JWT"},
		{"JWE without its dots", b64(`{"alg":"dir","enc":"A256GCM"}`) + ".YQ.YQ", badToken, "algorithm"},
		{"JSON serialization", fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, part[1], part[0], part[2]), badToken, "not a compact JWT"},
		{"standard base64", part[0] + "." + part[1] + ".+/" + part[2][2:], badToken, "not a compact JWT"},
		{"8 KiB", tokenOfLength(t, 8192), accepted, ""},
		{"8 KiB and one", tokenOfLength(t, 8193), badToken, "not a compact JWT"},
		{"12 KiB", tokenOfLength(t, 12<<10), badToken, "not a compact JWT"},

		{"no header", "." + part[1] + "." + part[2], badToken, "header"},
		{"header of no bytes", "A." + part[1] + "." + part[2], badToken, "header is not base64url"},
		{"header null", ec.raw(t, `null`, claims), badToken, "header must be one JSON object"},
		{"header an array", ec.raw(t, `[`+head+`]`, claims), badToken, "header must be one JSON object"},
		{"header a string", ec.raw(t, `"ES256"`, claims), badToken, "header must be one JSON object"},
		{"header empty object", ec.raw(t, `{}`, claims), badToken, "algorithm"},
		{"header twice", ec.raw(t, head+head, claims), badToken, "header must be valid JSON"},
		{"header and a brace", ec.raw(t, head+"}", claims), badToken, "header must be valid JSON"},
		{"header with a BOM", ec.raw(t, "\ufeff"+head, claims), badToken, "header"},
		{"header not UTF-8", ec.raw(t, ec.header(",\"x\":\"\xff\""), claims), badToken, "header must be UTF-8"},
		{"header with half a surrogate", ec.raw(t, ec.header(`,"x":"\ud800"`), claims), badToken, "header must not have an unpaired surrogate"},
		{"alg twice", ec.raw(t, ec.header(`,"alg":"ES256"`), claims), badToken, "header must not give a member name twice"},
		{"alg twice, once escaped", ec.raw(t, ec.header(`,"\u0061lg":"none"`), claims), badToken, "header must not give a member name twice"},
		{"kid twice", ec.raw(t, `{"alg":"ES256","kid":"rsa","kid":"ec"}`, claims), badToken, "header must not give a member name twice"},
		{"unknown member twice", ec.raw(t, ec.header(`,"x":1,"x":1`), claims), badToken, "header must not give a member name twice"},
		{"unknown member", ec.raw(t, ec.header(`,"x":{"y":[1,null]},"cty":"JWT"`), claims), accepted, ""},
		{"white space in the JSON", ec.raw(t, " \r\n"+head+"\t", "\n"+claims+" "), accepted, ""},

		{"payload empty", ec.raw(t, head, ""), badToken, "payload"},
		{"payload null", ec.raw(t, head, "null"), badToken, "payload must be one JSON object"},
		{"payload an array", ec.raw(t, head, "["+claims+"]"), badToken, "payload must be one JSON object"},
		{"payload text", ec.raw(t, head, "hello"), badToken, "payload must be one JSON object"},
		{"payload empty object", ec.raw(t, head, "{}"), badToken, "no exp"},
		{"payload twice", ec.raw(t, head, claims+claims), badToken, "payload must be valid JSON"},
		{"payload cut", ec.raw(t, head, claims[:len(claims)-1]), badToken, "payload must be valid JSON"},
		{"payload not UTF-8", ec.raw(t, head, payload(",\"x\":\"\xff\"")), badToken, "payload must be UTF-8"},
		{"payload with half a surrogate", ec.raw(t, head, payload(`,"x":"\udc00"`)), badToken, "payload must not have an unpaired surrogate"},
		{"scope twice, good first", ec.raw(t, head, payload(`,"scope":"x"`)), badToken, "payload must not give a member name twice"},
		{"scope twice, bad first", ec.raw(t, head, `{"scope":"x",`+claims[1:]), badToken, "payload must not give a member name twice"},
		{"exp twice, once escaped", ec.raw(t, head, payload(`,"e\u0078p":99999999999`)), badToken, "payload must not give a member name twice"},
		{"unknown claim twice", ec.raw(t, head, payload(`,"x":1,"x":1`)), badToken, "payload must not give a member name twice"},
		{"payload not base64", notBase64 + "." + b64(ec.signature(t, notBase64)), badToken, "malformed"},

		{"no signature", part[0] + "." + part[1] + ".", badToken, "signature"},
		{"no signature, no dot", part[0] + "." + part[1], badToken, "not a compact JWT"},
		{"signature cut by 1", good[:len(good)-1], badToken, ""},
		{"signature cut by a byte", withSignature(signature[:63]), badToken, "bad signature"},
		{"signature with a byte more", withSignature(append(signature[:64:64], 0)), badToken, "bad signature"},
		{"signature with a bit flipped", withSignature(flipped), badToken, "bad signature"},
		{"signature of zeros", withSignature(make([]byte, 64)), badToken, "bad signature"},
		{"signature in DER", withSignature(der), badToken, "bad signature"},
		{"payload swapped", part[0] + "." + other[1] + "." + part[2], badToken, "bad signature"},
		{"payload gone", part[0] + ".." + part[2], badToken, "bad signature"},
		{"header swapped", ofRSA[0] + "." + part[1] + "." + part[2], badToken, "bad signature"},
		{"header in another spelling", b64(ec.header(" ")) + "." + part[1] + "." + part[2], badToken, "bad signature"},
		{"parts swapped", part[1] + "." + part[0] + "." + part[2], badToken, ""},
	})
}

func TestTokenAlgorithm(t *testing.T) {
	ts := newTestServer(t, nil)
	rs, ec, ed := rsaKey(), ecKey(), edKey()
	thief := newTestKey(t, "ec", jose.ES256)
	claims := payload("")
	p384 := newTestKey(t, "ec", jose.ES384)
	cases := []tokenCase{
		{"RS256", rs.sign(t, goodClaims()), accepted, ""},
		{"ES256", ec.sign(t, goodClaims()), accepted, ""},
		{"EdDSA", ed.sign(t, goodClaims()), accepted, ""},
		{"RS256 by hand", rs.raw(t, rs.header(""), claims), accepted, ""},
		{"ES256 by hand", ec.raw(t, ec.header(""), claims), accepted, ""},
		{"EdDSA by hand", ed.raw(t, ed.header(""), claims), accepted, ""},

		{"RS256 with the EC key's kid", rs.raw(t, `{"alg":"RS256","kid":"ec"}`, claims), badToken, "no key of the set"},
		{"ES256 with the RSA key's kid", ec.raw(t, `{"alg":"ES256","kid":"rsa"}`, claims), badToken, "no key of the set"},
		{"EdDSA with the EC key's kid", ed.raw(t, `{"alg":"EdDSA","kid":"ec"}`, claims), badToken, "no key of the set"},
		{"ES256 that the RSA key signed", rs.raw(t, ec.header(""), claims), badToken, "bad signature"},
		{"EdDSA that the EC key signed", ec.raw(t, ed.header(""), claims), badToken, "bad signature"},
		{"PS256 by a key for RS256", testKey{"rsa", jose.PS256, rs.priv}.sign(t, goodClaims()), badToken, "no key of the set"},
		{"another key under the kid", thief.sign(t, goodClaims()), badToken, "bad signature"},
		{"another curve under the kid", p384.sign(t, goodClaims()), badToken, "algorithm"},

		{"RS384", testKey{"rsa", jose.RS384, rs.priv}.sign(t, goodClaims()), badToken, "algorithm"},
		{"RS512", testKey{"rsa", jose.RS512, rs.priv}.sign(t, goodClaims()), badToken, "algorithm"},
		{"HS256 with no key", hs256(`{"alg":"HS256"}`, nil), badToken, "algorithm"},
		{"HS256 with secret", hs256(`{"alg":"HS256","kid":"rsa"}`, []byte("secret")), badToken, "algorithm"},
	}
	for _, alg := range []string{`"none"`, `"None"`, `"nOnE"`, `"NONE"`, `"es256"`, `"ES256 "`, `""`, `null`, `256`, `true`, `["ES256"]`, `{}`} {
		header := `{"alg":` + alg + `,"kid":"ec"}`
		cases = append(cases,
			tokenCase{"alg " + alg, ec.raw(t, header, claims), badToken, "algorithm"},
			tokenCase{"alg " + alg + " without signature", b64(header) + "." + b64(claims) + ".", badToken, "algorithm"},
			tokenCase{"alg " + alg + " with junk", b64(header) + "." + b64(claims) + ".anVuaw", badToken, "algorithm"})
	}
	// HMAC with a secret that everybody has: the public key, in every form it comes in.
	for _, k := range []testKey{rs, ec, ed} {
		der, err := x509.MarshalPKIXPublicKey(k.priv.Public())
		if err != nil {
			t.Fatal(err)
		}
		jwk, err := json.Marshal(k.public())
		if err != nil {
			t.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		secrets := map[string][]byte{"PEM": bytes.TrimSuffix(text, []byte("\n")), "PEM and newline": text, "DER": der, "JWK": jwk}
		switch public := k.priv.Public().(type) {
		case *rsa.PublicKey:
			pkcs1 := x509.MarshalPKCS1PublicKey(public)
			secrets["modulus"], secrets["modulus in base64"] = public.N.Bytes(), []byte(b64(public.N.Bytes()))
			secrets["PKCS 1"], secrets["PKCS 1 PEM"] = pkcs1, pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: pkcs1})
		case ed25519.PublicKey:
			secrets["point"] = public
		}
		for form, secret := range secrets {
			cases = append(cases,
				tokenCase{"HS256 with the " + form + " of " + k.kid, hs256(fmt.Sprintf(`{"alg":"HS256","kid":%q}`, k.kid), secret), badToken, "algorithm"},
				tokenCase{"RS256 with the HMAC by the " + form + " of " + k.kid, hs256(fmt.Sprintf(`{"alg":"RS256","kid":%q}`, k.kid), secret), badToken, ""})
		}
	}
	ts.checkTokens(t, cases)
}

func TestTokenAlgorithmsConfigured(t *testing.T) {
	p256, p384, ps := ecKey(), newTestKey(t, "p384", jose.ES384), testKey{"rsa", jose.PS256, rsaKey().priv}
	ts := newKeySetServer(t, map[string]string{"JWT_ALGORITHMS": "ES384,PS256"}, p256.public(), p384.public(), ps.public())
	ts.checkTokens(t, []tokenCase{
		{"ES384", p384.sign(t, goodClaims()), accepted, ""},
		{"PS256", ps.sign(t, goodClaims()), accepted, ""},
		{"ES256", p256.sign(t, goodClaims()), badToken, "algorithm"},
		{"RS256", rsaKey().sign(t, goodClaims()), badToken, "algorithm"},
		{"ES384 under the P-256 key's kid", testKey{"ec", jose.ES384, p384.priv}.sign(t, goodClaims()), badToken, "no key of the set"},
	})
}

func TestTokenKey(t *testing.T) {
	// Each key has another flaw or freedom; kid says which.
	key := func(kid string, alg jose.SignatureAlgorithm) testKey { return newTestKey(t, kid, alg) }
	short := func(kid string, bits int) testKey {
		priv, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return testKey{kid, jose.RS256, priv}
	}
	free, forPS, forEncryption := testKey{"free", jose.RS256, rsaKey().priv}, key("for-ps", jose.PS256), key("for-encryption", jose.ES256)
	noUse, otherAlg, p384 := key("no-use", jose.ES256), key("other-alg", jose.ES256), key("p384", jose.ES384)
	rsa1024, rsa2047, double := short("rsa-1024", 1024), short("rsa-2047", 2047), key("double", jose.ES256)
	jwk := func(k testKey, edit func(*jose.JSONWebKey)) jose.JSONWebKey {
		entry := k.public()
		edit(&entry)
		return entry
	}
	noAlg := func(j *jose.JSONWebKey) { j.Algorithm = "" }
	ts := newKeySetServer(t, nil,
		jwk(free, noAlg),
		forPS.public(),
		jwk(forEncryption, func(j *jose.JSONWebKey) { j.Use = "enc" }),
		jwk(noUse, func(j *jose.JSONWebKey) { j.Use = "" }),
		jwk(otherAlg, func(j *jose.JSONWebKey) { j.Algorithm = "RS256" }),
		jwk(p384, noAlg),
		rsa1024.public(), rsa2047.public(),
		double.public(), jwk(testKey{"double", jose.RS256, rsaKey().priv}, noAlg), jwk(testKey{"double", jose.ES256, noUse.priv}, noAlg),
	)
	ts.checkTokens(t, []tokenCase{
		{"RSA key without alg, RS256", free.sign(t, goodClaims()), accepted, ""},
		{"RSA key without alg, PS256", testKey{"free", jose.PS256, free.priv}.sign(t, goodClaims()), accepted, ""},
		{"RSA key without alg, ES256 in the header", free.raw(t, `{"alg":"ES256","kid":"free"}`, payload("")), badToken, "no key of the set"},
		{"key for PS256, PS256", forPS.sign(t, goodClaims()), accepted, ""},
		{"key for PS256, RS256", testKey{"for-ps", jose.RS256, forPS.priv}.sign(t, goodClaims()), badToken, "no key of the set"},
		{"key for encryption", forEncryption.sign(t, goodClaims()), badToken, "no key of the set"},
		{"key without use", noUse.sign(t, goodClaims()), accepted, ""},
		{"EC key with an RSA alg", otherAlg.sign(t, goodClaims()), badToken, "no key of the set"},
		{"P-384 key, ES256 in the header", noUse.raw(t, `{"alg":"ES256","kid":"p384"}`, payload("")), badToken, "no key of the set"},
		{"RSA of 1024 bits", rsa1024.sign(t, goodClaims()), badToken, "no key of the set"},
		{"RSA of 2047 bits", rsa2047.sign(t, goodClaims()), badToken, "no key of the set"},
		{"kid of three keys, the first", double.sign(t, goodClaims()), accepted, ""},
		{"kid of three keys, the one of another type", testKey{"double", jose.RS256, rsaKey().priv}.sign(t, goodClaims()), accepted, ""},
		{"kid of three keys, the last", testKey{"double", jose.ES256, noUse.priv}.sign(t, goodClaims()), accepted, ""},
		{"kid of three keys, none of them", testKey{"double", jose.ES256, otherAlg.priv}.sign(t, goodClaims()), badToken, "bad signature"},
	})
}

func TestTokenHeaderMembers(t *testing.T) {
	ts := newTestServer(t, nil)
	ec := ecKey()
	cases := []tokenCase{
		{"typ absent", ec.raw(t, ec.header(""), payload("")), accepted, ""},
		{"kid absent", ec.raw(t, `{"alg":"ES256"}`, payload("")), accepted, ""},
		{"kid empty", ec.raw(t, `{"alg":"ES256","kid":""}`, payload("")), accepted, ""},
		{"kid absent, KID of another", ec.raw(t, `{"alg":"ES256","KID":"rsa","TYP":"x","CRIT":["x"]}`, payload("")), accepted, ""},
		{"kid absent, signed by another", newTestKey(t, "", jose.ES256).raw(t, `{"alg":"ES256"}`, payload("")), badToken, "bad signature"},
	}
	for _, typ := range []string{"JWT", "jwt", "Jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+jwt", "application/jwt", "APPLICATION/JWT"} {
		cases = append(cases, tokenCase{"typ " + typ, ec.raw(t, ec.header(`,"typ":"`+typ+`"`), payload("")), accepted, ""})
	}
	for _, typ := range []string{`null`, `""`, `5`, `true`, `[]`, `["JWT"]`, `{}`, `"JOSE"`, `"id+jwt"`, `"dpop+jwt"`, `"logout+jwt"`, `" JWT"`, `"JWT "`, `"at+jwt;x=1"`,
		`"application/"`, `"application/application/jwt"`, `"text/jwt"`, `"/jwt"`, `"appl\u0130cation/jwt"`} {
		cases = append(cases, tokenCase{"typ " + typ, ec.raw(t, ec.header(`,"typ":`+typ), payload("")), badToken, "typ is not of an access token"})
	}
	for name, values := range map[string][]string{
		"crit": {`["urn:x"]`, `["exp"]`, `["b64"]`, `[]`, `"b64"`, `null`, `{}`},
		"b64":  {`false`, `true`, `null`, `"x"`},
		"zip":  {`"DEF"`, `""`, `null`},
	} {
		for _, value := range values {
			cases = append(cases, tokenCase{name + " " + value, ec.raw(t, ec.header(`,"`+name+`":`+value), payload("")), badToken, "header has " + name})
		}
	}
	cases = append(cases, tokenCase{"crit and b64", ec.raw(t, ec.header(`,"crit":["b64"],"b64":false`), payload("")), badToken, "header has"})
	for _, kid := range []string{`5`, `null`, `true`, `["ec"]`, `{}`} {
		cases = append(cases, tokenCase{"kid " + kid, ec.raw(t, `{"alg":"ES256","kid":`+kid+`}`, payload("")), badToken, "kid is not a string"})
	}
	for _, kid := range []string{`"EC"`, `"ec "`, `"ec\u0000"`, `"../ec"`} {
		cases = append(cases, tokenCase{"kid " + kid, ec.raw(t, `{"alg":"ES256","kid":`+kid+`}`, payload("")), badToken, "no key of the set"})
	}
	ts.checkTokens(t, cases)
}

// A key that the token itself brings or points to is nobody's.
func TestTokenOwnKey(t *testing.T) {
	thief := newTestKey(t, "thief", jose.ES256)
	jwk, err := json.Marshal(thief.public())
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, thief.priv.Public(), thief.priv)
	if err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		fmt.Fprintf(w, `{"keys":[%s]}`, jwk)
	}))
	defer trap.Close()
	ts := newTestServer(t, nil)
	var cases []tokenCase
	for name, member := range map[string]string{
		"jwk":         fmt.Sprintf(`"jwk":%s`, jwk),
		"x5c":         fmt.Sprintf(`"x5c":[%q]`, base64.StdEncoding.EncodeToString(cert)),
		"jku":         fmt.Sprintf(`"jku":%q`, trap.URL),
		"x5u":         fmt.Sprintf(`"x5u":%q`, trap.URL),
		"jku and jwk": fmt.Sprintf(`"jku":%q,"jwk":%s`, trap.URL, jwk),
	} {
		for _, kid := range []string{`"ec"`, `"thief"`, `""`} {
			header := fmt.Sprintf(`{"alg":"ES256","kid":%s,%s}`, kid, member)
			cases = append(cases, tokenCase{name + ", kid " + kid, thief.raw(t, header, payload("")), badToken, ""})
		}
	}
	ts.checkTokens(t, cases)
	// Nor is there a look at it where one of our keys signed.
	ts.post(t, ecKey().raw(t, ecKey().header(fmt.Sprintf(`,"jku":%q,"x5u":%q`, trap.URL, trap.URL)), payload("")), goodBody)
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests to the token's own URL, want none", n)
	}
}

// claim is a token by ecKey with one claim set to JSON; "" leaves it out.
func claim(t testing.TB, name, value string) string {
	t.Helper()
	if value == "" {
		return ecKey().sign(t, with(map[string]any{name: nil}))
	}
	return ecKey().sign(t, with(map[string]any{name: json.RawMessage(value)}))
}

func TestTokenDates(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	at := func(seconds float64) string {
		return strconv.FormatFloat(float64(now.Unix())+seconds, 'f', -1, 64)
	}
	const day = 24 * 60 * 60
	ts := newTestServer(t, nil, func(s *server) { s.verifier.now = func() time.Time { return now } })
	cases := []tokenCase{
		{"exp in an hour", claim(t, "exp", at(3600)), accepted, ""},
		{"exp now", claim(t, "exp", at(0)), accepted, ""},
		{"exp 10 s ago", claim(t, "exp", at(-10)), accepted, ""},
		{"exp 29 s ago", claim(t, "exp", at(-29)), accepted, ""},
		{"exp 29.5 s ago", claim(t, "exp", at(-29.5)), accepted, ""},
		{"exp 30 s ago", claim(t, "exp", at(-30)), badToken, "expired"},
		{"exp 31 s ago", claim(t, "exp", at(-31)), badToken, "expired"},
		{"exp 0", claim(t, "exp", "0"), badToken, "expired"},
		{"exp -0", claim(t, "exp", "-0"), badToken, "expired"},
		{"exp negative", claim(t, "exp", "-1"), badToken, "expired"},
		{"exp 1e2", claim(t, "exp", "1e2"), badToken, "expired"},
		{"exp 1e-400", claim(t, "exp", "1e-400"), badToken, "exp"},
		{"exp with a fraction", claim(t, "exp", at(3600.25)), accepted, ""},
		{"exp with an exponent", claim(t, "exp", at(3600)+"E+0"), accepted, ""},
		{"exp in a day", claim(t, "exp", at(day)), accepted, ""},
		{"exp in a day and half a second", claim(t, "exp", at(day+0.5)), badToken, "JWT_MAX_LIFETIME"},
		{"exp in a day and a second", claim(t, "exp", at(day+1)), badToken, "JWT_MAX_LIFETIME"},
		{"exp in milliseconds", claim(t, "exp", at(3600)+"000"), badToken, "JWT_MAX_LIFETIME"},
		{"exp in nanoseconds", claim(t, "exp", at(3600)+"000000000"), badToken, "JWT_MAX_LIFETIME"},
		{"exp of 40 digits", claim(t, "exp", strings.Repeat("9", 40)), badToken, "JWT_MAX_LIFETIME"},
		{"exp 1e308", claim(t, "exp", "1e308"), badToken, "JWT_MAX_LIFETIME"},
		{"exp 2^63", claim(t, "exp", "9223372036854775808"), badToken, "JWT_MAX_LIFETIME"},
		{"exp 1e400", claim(t, "exp", "1e400"), badToken, "exp is not a number"},
		{"exp missing", claim(t, "exp", ""), badToken, "no exp"},
		{"EXP alone", ecKey().sign(t, with(map[string]any{"exp": nil, "EXP": now.Unix() + 60})), badToken, "no exp"},
		{"iat missing", claim(t, "iat", ""), accepted, ""},
		{"iat after exp", ecKey().sign(t, with(map[string]any{"exp": now.Unix() - 20, "iat": now.Unix() + 20})), accepted, ""},
	}
	for _, name := range []string{"exp", "nbf", "iat"} {
		for _, value := range []string{`null`, `true`, `"abc"`, `"` + at(60) + `"`, `""`, `[` + at(60) + `]`, `{}`} {
			cases = append(cases, tokenCase{name + " " + value, claim(t, name, value), badToken, name + " is not a number"})
		}
	}
	for _, name := range []string{"nbf", "iat"} {
		future := name + " is in the future"
		cases = append(cases,
			tokenCase{name + " in an hour", claim(t, name, at(3600)), badToken, future},
			tokenCase{name + " in 31 s", claim(t, name, at(31)), badToken, future},
			tokenCase{name + " in 30.5 s", claim(t, name, at(30.5)), badToken, future},
			tokenCase{name + " in 30 s", claim(t, name, at(30)), accepted, ""},
			tokenCase{name + " in 10 s", claim(t, name, at(10)), accepted, ""},
			tokenCase{name + " now", claim(t, name, at(0)), accepted, ""},
			tokenCase{name + " a year ago", claim(t, name, at(-365*day)), accepted, ""},
			tokenCase{name + " 0", claim(t, name, "0"), accepted, ""},
			tokenCase{name + " in milliseconds", claim(t, name, at(0)+"000"), badToken, future},
			tokenCase{name + " 1e308", claim(t, name, "1e308"), badToken, future},
			tokenCase{name + " 1e400", claim(t, name, "1e400"), badToken, name + " is not a number"})
	}
	ts.checkTokens(t, cases)

	t.Run("JWT_MAX_LIFETIME", func(t *testing.T) {
		ts := newTestServer(t, map[string]string{"JWT_MAX_LIFETIME": "10m"}, func(s *server) { s.verifier.now = func() time.Time { return now } })
		ts.checkTokens(t, []tokenCase{
			{"10 minutes", claim(t, "exp", at(600)), accepted, ""},
			{"10 minutes and a second", claim(t, "exp", at(601)), badToken, "JWT_MAX_LIFETIME"},
			{"10 minutes left of a year", ecKey().sign(t, with(map[string]any{"iat": now.Unix() - 365*day, "exp": now.Unix() + 600})), accepted, ""},
		})
	})
}

func TestTokenIssuerAudience(t *testing.T) {
	const issuer, audience = "https://auth.example/", "ours"
	token := func(iss, aud any) string { return ecKey().sign(t, with(map[string]any{"iss": iss, "aud": aud})) }
	null := json.RawMessage("null")
	ts := newTestServer(t, map[string]string{"JWT_ISSUER": issuer, "JWT_AUDIENCE": audience})
	cases := []tokenCase{
		{"both", token(issuer, audience), accepted, ""},
		{"aud array of one", token(issuer, []any{audience}), accepted, ""},
		{"aud first", token(issuer, []any{audience, "x"}), accepted, ""},
		{"aud last", token(issuer, []any{"x", audience}), accepted, ""},
		{"iss missing", token(nil, audience), badToken, "iss"},
		{"aud missing", token(issuer, nil), badToken, "aud"},
	}
	for _, iss := range []any{"https://other.example/", "https://auth.example", "https://auth.example//", "HTTPS://AUTH.EXAMPLE/", " https://auth.example/", "", null, 5, []any{issuer}, map[string]any{"iss": issuer}} {
		cases = append(cases, tokenCase{fmt.Sprintf("iss %s", encodeJSON(iss)), token(iss, audience), badToken, "iss"})
	}
	for _, aud := range []any{"other", "OURS", "ours ", "ours x", "our", "", null, 5, true, []any{}, []any{"x"}, []any{"x", "OURS"}, []any{[]any{audience}}, []any{null}, map[string]any{"ours": true}} {
		cases = append(cases, tokenCase{fmt.Sprintf("aud %s", encodeJSON(aud)), token(issuer, aud), badToken, "aud"})
	}
	ts.checkTokens(t, cases)

	t.Run("not configured", func(t *testing.T) {
		ts := newTestServer(t, nil)
		ts.checkTokens(t, []tokenCase{
			{"neither", token(nil, nil), accepted, ""},
			{"any", token("https://other.example", "other"), accepted, ""},
			{"arrays", token([]any{"x"}, []any{"x", "y"}), accepted, ""},
		})
	})
	t.Run("issuer alone", func(t *testing.T) {
		ts := newTestServer(t, map[string]string{"JWT_ISSUER": issuer})
		ts.checkTokens(t, []tokenCase{
			{"aud missing", token(issuer, nil), accepted, ""},
			{"iss missing", token(nil, audience), badToken, "iss"},
		})
	})
	t.Run("audience alone", func(t *testing.T) {
		ts := newTestServer(t, map[string]string{"JWT_AUDIENCE": audience})
		ts.checkTokens(t, []tokenCase{
			{"iss missing", token(nil, audience), accepted, ""},
			{"aud missing", token(issuer, nil), badToken, "aud"},
		})
	})
}

func TestTokenScope(t *testing.T) {
	ts := newTestServer(t, nil)
	const ours = "api:user.write"
	token := func(scope, scp any) string { return ecKey().sign(t, with(map[string]any{"scope": scope, "scp": scp})) }
	null := json.RawMessage("null")
	cases := []tokenCase{
		{"scp of another type beside", token(ours, 5), accepted, ""},
		{"scope of another type beside", token(true, ours), accepted, ""},
		{"scope without it beside", token("x", []any{ours}), accepted, ""},
		{"scp without it beside", token([]any{ours}, "x"), accepted, ""},
		{"neither", token(nil, nil), lacksScope, ours},
		{"both without it", token("api:user.read", []any{"api:user"}), lacksScope, ours},
		{"another claim", ecKey().sign(t, with(map[string]any{"scope": nil, "SCOPE": ours, "scopes": ours, "permissions": []any{ours}})), lacksScope, ours},
	}
	for _, value := range []any{ours, ours + " b", "a " + ours + " b", "a " + ours, "a  " + ours, ours + " ", " " + ours, ours + " " + ours,
		[]any{ours}, []any{ours, "b"}, []any{"a", ours, "b"}, []any{"a", ours}, []any{"", ours}} {
		name := string(encodeJSON(value))
		cases = append(cases,
			tokenCase{"scope " + name, token(value, nil), accepted, ""},
			tokenCase{"scp " + name, token(nil, value), accepted, ""})
	}
	for _, value := range []any{null, "", " ", "api:user.writer", "xapi:user.write", "api:user.write:sub", "api:user.*", "api:*", "*", "API:USER.WRITE", "api:user", "api.user.write", "api:user:write",
		"a\t" + ours, ours + "\n", "a," + ours, "a+" + ours, `"` + ours + `"`, "\u00a0" + ours,
		5, true, map[string]any{ours: true}, []any{}, []any{"a " + ours}, []any{ours + " "}, []any{"API:USER.WRITE"}, []any{5, ours}, []any{ours, null}, []any{ours, []any{}}, []any{[]any{ours}}} {
		name := string(encodeJSON(value))
		cases = append(cases,
			tokenCase{"scope " + name, token(value, nil), lacksScope, ours},
			tokenCase{"scp " + name, token(nil, value), lacksScope, ours})
	}
	ts.checkTokens(t, cases)

	// The caller is known by then.
	a := ts.post(t, token("x", nil), goodBody)
	line := ts.refusal(t, wantError(t, a, 403, "forbidden").ID)
	if line["client_id"] != "acme" {
		t.Errorf("log line of a 403: client_id = %v, want acme", line["client_id"])
	}
}

func TestTokenClient(t *testing.T) {
	tests := []struct {
		name   string
		claims string // JWT_CLIENT_CLAIM
		set    map[string]any
		want   string // "" is refused
	}{
		{"client_id first", "", map[string]any{"client_id": "c", "azp": "a", "sub": "s"}, "c"},
		{"azp second", "", map[string]any{"client_id": nil, "azp": "a", "sub": "s"}, "a"},
		{"sub last", "", map[string]any{"client_id": nil, "sub": "s"}, "s"},
		{"empty ones passed over", "", map[string]any{"client_id": "", "azp": "", "sub": "s"}, "s"},
		{"other types passed over", "", map[string]any{"client_id": 5, "azp": []any{"a"}, "sub": "s"}, "s"},
		{"null passed over", "", map[string]any{"client_id": json.RawMessage("null"), "azp": "a"}, "a"},
		{"any string", "", map[string]any{"client_id": "Ünï \u0001\u2028 \"x\""}, "Ünï \u0001\u2028 \"x\""},
		{"none", "", map[string]any{"client_id": nil}, ""},
		{"none is a string", "", map[string]any{"client_id": 5, "azp": true, "sub": map[string]any{}}, ""},
		{"all empty", "", map[string]any{"client_id": "", "azp": "", "sub": ""}, ""},
		{"another case", "", map[string]any{"client_id": nil, "CLIENT_ID": "c", "cid": "c", "iss": "c"}, ""},
		{"org_id", "org_id", map[string]any{"client_id": "c", "org_id": "org_1"}, "org_1"},
		{"org_id missing", "org_id", nil, ""},
		{"configured order", "sub, client_id", map[string]any{"sub": "s"}, "s"},
		{"configured order, second", "sub, client_id", nil, "acme"},
		{"no client before no scope", "", map[string]any{"client_id": nil, "scope": "x"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ts := newTestServer(t, map[string]string{"JWT_CLIENT_CLAIM": tt.claims})
			a := ts.post(t, ecKey().sign(t, with(tt.set)), goodBody)
			if tt.want == "" {
				ts.checkOutcome(t, a, badToken, "no client")
				ts.wantNoKeys(t)
				return
			}
			record := ts.wantSession(t, a)
			if record.ClientID != tt.want {
				t.Errorf("client_id of the record = %q, want %q", record.ClientID, tt.want)
			}
			waitFor(t, 5*time.Second, "the log line", func() bool { return strings.Contains(ts.log.String(), record.ID) })
			if line := ts.log.line(t, "session", record.ID); line["client_id"] != tt.want {
				t.Errorf("client_id of the log line = %q, want %q", line["client_id"], tt.want)
			}
		})
	}
}

// The reference platform's tokens have neither iss, aud nor a client_id.
func TestTokenReferencePlatform(t *testing.T) {
	now := time.Now().Unix()
	claims := map[string]any{"org_id": "org_2yRHN2ag2y4p8", "key_id": "key_1", "scope": "api:user.read api:user.write", "exp": now + 600, "iat": now, "jti": "3f0c"}
	ts := newTestServer(t, map[string]string{"JWT_CLIENT_CLAIM": "org_id"})
	token := rsaKey().sign(t, claims)
	if record := ts.wantSession(t, ts.post(t, token, goodBody)); record.ClientID != "org_2yRHN2ag2y4p8" {
		t.Errorf("client_id of the record = %q, want the org_id", record.ClientID)
	}
	ts.checkLog(t, token)
}

// Route, method, requests in flight, token, scope, media type, body: the first that
// is wrong answers.
func TestTokenOrderOfChecks(t *testing.T) {
	ts := newTestServer(t, nil)
	good, weak := "Bearer "+ts.token(t), "Bearer "+ecKey().sign(t, with(map[string]any{"scope": "x"}))
	const bad, form, json = "Bearer a.b.c", "application/x-www-form-urlencoded", "application/json"
	big := strings.Repeat("x", 1<<20)
	tests := []struct {
		name          string
		method, path  string
		authorization string
		contentType   string
		body          string
		want          outcome
	}{
		{"path before all", "GET", "/auth/sessions", bad, form, "{", outcome{404, "not_found", ""}},
		{"method before token", "GET", "/auth/session", bad, json, "", outcome{405, "method_not_allowed", ""}},
		{"method before no token", "PUT", "/v1/auth/session", "", form, "{", outcome{405, "method_not_allowed", ""}},
		{"no token before type and body", "POST", "/auth/session", "", form, "{", noToken},
		{"token before type and body", "POST", "/v1/auth/session", bad, form, "{", badToken},
		{"token before size", "POST", "/auth/session", bad, json, big, badToken},
		{"scope before type and body", "POST", "/auth/session", weak, form, "{", lacksScope},
		{"scope before size", "POST", "/auth/session", weak, json, big, lacksScope},
		{"type before body", "POST", "/auth/session", good, form, "{", outcome{415, "unsupported_media_type", ""}},
		{"type before size", "POST", "/auth/session", good, form, big, outcome{415, "unsupported_media_type", ""}},
		{"size before body", "POST", "/auth/session", good, json, big, outcome{413, "request_too_large", ""}},
		{"body last", "POST", "/auth/session", good, json, "{", outcome{400, "bad_request", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lines := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Type: %s\r\n", tt.method, tt.path, ts.addr, tt.contentType)
			if tt.authorization != "" {
				lines += "Authorization: " + tt.authorization + "\r\n"
			}
			if tt.body == big { // announced and never sent: who waits for it does not answer
				tt.body = ""
				lines += fmt.Sprintf("Content-Length: %d\r\n", len(big))
			} else {
				lines += fmt.Sprintf("Content-Length: %d\r\n", len(tt.body))
			}
			ts.checkOutcome(t, ts.exchange(t, lines+"\r\n"+tt.body), tt.want, "")
		})
	}
	ts.inFlight.Store(ts.maxInFlight)
	wantError(t, ts.post(t, "a.b.c", goodBody), 503, "unavailable")
	ts.inFlight.Store(0)
	ts.wantNoKeys(t)
}

// A caller that is refused keeps its connection, unless its body is still to come: then
// the answer does not wait, and what comes late is no next request.
func TestTokenRefusedConnection(t *testing.T) {
	ts := newTestServer(t, nil)
	conn, err := net.Dial("tcp", ts.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	answers := bufio.NewReader(conn)
	// send sends a request with a bad token, and reads the answer.
	send := func(length int, body string) *http.Response {
		t.Helper()
		_, err := fmt.Fprintf(conn, "POST /auth/session HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer a.b.c\r\nContent-Length: %d\r\n\r\n%s", ts.addr, length, body)
		if err != nil {
			t.Fatalf("sending a request: %v", err)
		}
		response, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatalf("reading an answer: %v", err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if response.StatusCode != 401 {
			t.Fatalf("status = %d, want 401", response.StatusCode)
		}
		return response
	}
	for range 200 {
		if response := send(len(goodBody), goodBody); response.Close {
			t.Fatalf("answer to a whole request says Connection: close")
		}
	}
	start := time.Now()
	response := send(100, "{")
	if d := time.Since(start); d > time.Second {
		t.Errorf("answer to a request whose body is still to come: after %s, want at once", d)
	}
	if !response.Close {
		t.Errorf("answer to a request whose body is still to come does not say Connection: close")
	}
	_, _ = io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") // fails where the server has closed already
	if n, _ := io.Copy(io.Discard, answers); n > 0 {
		t.Errorf("%d bytes of an answer to a body that came late", n)
	}
	if strings.Contains(ts.log.String(), "panic") {
		t.Errorf("log has a panic:\n%s", ts.log.String())
	}
}

// Refusing must stay cheap, whatever is sent: callers do it before they are known.
func TestTokenRefusedQuickly(t *testing.T) {
	v := newTestServer(t, nil).verifier
	for name, token := range map[string]string{
		"8000 dots":          strings.Repeat(".", 8000),
		"long header":        strings.Repeat("A", 8000) + "..",
		"deep header":        b64(`{"x":`+strings.Repeat("[", 5900)) + "..",
		"many members":       b64(`{`+strings.Repeat(`"x":1,`, 980)+`"y":1}`) + "..",
		"24 KiB of no token": strings.Repeat("x", 24<<10),
	} {
		quickest := time.Hour // of several, for the machine has other things to do
		for range 20 {
			start := time.Now()
			if _, err := v.verify(token); err == nil {
				t.Fatalf("%s: verified", name)
			}
			quickest = min(quickest, time.Since(start))
		}
		if quickest > 5*time.Millisecond {
			t.Errorf("%s: refused after %s, want 5 ms at most", name, quickest)
		}
	}
}

// FuzzToken: nothing verifies but what one of our keys signed, and no refusal says what
// was in the token.
func FuzzToken(f *testing.F) {
	// Fuzzing runs in several processes, and what is good in one must be in all: so the
	// keys and the time are fixed.
	now := time.Unix(1_800_000_000, 0)
	seed := bytes.Repeat([]byte{7}, 32)
	priv, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed)
	if err != nil {
		f.Fatal(err)
	}
	ed, ec := testKey{"ed", jose.EdDSA, ed25519.NewKeyFromSeed(seed)}, testKey{"ec", jose.ES256, priv}
	algorithms := []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256}
	keys := newKeySet(&url.URL{Scheme: "file"}, algorithms, slog.New(slog.DiscardHandler))
	keys.keys.Store(&[]jose.JSONWebKey{ed.public(), ec.public()})
	// A fetch for an unknown key id has just ended, and no other is due for hours.
	keys.asked, keys.done = now.AddDate(100, 0, 0), make(chan struct{})
	close(keys.done)
	v := &verifier{keys: keys, algorithms: algorithms, clientClaims: []string{"client_id"}, maxLifetime: time.Hour, now: func() time.Time { return now }}

	const claims = `{"client_id":"acme","scope":"api:user.write","exp":1800000060}`
	signed := map[string]bool{} // header and payload of the tokens that are good
	for _, k := range []testKey{ed, ec} {
		for _, header := range []string{k.header(""), k.header(`,"typ":"at+jwt"`), fmt.Sprintf(`{"alg":%q}`, k.alg)} {
			signed[header+"."+claims] = true
			token := k.raw(f, header, claims)
			if who, err := v.verify(token); err != nil || who != (identity{"acme", true}) {
				f.Fatalf("verify of a good token = %v, %v", who, err)
			}
			f.Add(token)
			f.Add(token[:len(token)-2])
			f.Add(token + ".")
		}
		for _, more := range []string{`,"crit":["exp"]`, `,"b64":false`, `,"zip":"DEF"`, `,"typ":null`, `,"alg":"none"`, `,"kid":5`,
			`,"jku":"https://thief.example"`, `,"jwk":{"kty":"oct","k":"AA"}`, `,"x5c":["AA"]`, `,"x":"\ud800"`} {
			f.Add(b64(k.header(more)) + "." + b64(claims) + "." + b64(k.signature(f, "another input")))
		}
		// Signed, but the claims do not do.
		for _, payload := range []string{`{}`, `null`, `[]`, ``, `{"exp":1}`, `{"exp":1e400}`, `{"exp":1800000060}`, `{"exp":1800000060,"exp":1800000060}`, `{"exp":1800000060,"nbf":"x"}`} {
			f.Add(k.raw(f, k.header(""), payload))
		}
	}
	f.Add(hs256(`{"alg":"HS256","kid":"ed"}`, ed.priv.Public().(ed25519.PublicKey)))
	f.Add(b64(`{"alg":"none"}`) + "." + b64(claims) + ".")
	f.Add(b64(`{"alg":"ES256","kid":"unknown"}`) + "." + b64(claims) + "." + b64(make([]byte, 64)))
	for _, token := range []string{"", ".", "..", "a.b", "a.b.c.d", "\xff", " "} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		who, err := v.verify(token)
		parts := strings.Split(token, ".")
		if err == nil {
			// Text may differ where base64 leaves bits over; what it says may not.
			header, _ := base64.RawURLEncoding.DecodeString(parts[0])
			payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
			if !signed[string(header)+"."+string(payload)] || who != (identity{"acme", true}) {
				t.Fatalf("verify(%q) = %v: nobody signed that", token, who)
			}
			return
		}
		for word := range strings.FieldsSeq(err.Error()) {
			if len(word) > len("JWT_MAX_LIFETIME") { // the longest word of ours
				t.Errorf("verify(%q): error %q has a word that may be the token's", token, err)
			}
		}
		for _, part := range parts {
			decoded, _ := base64.RawURLEncoding.DecodeString(part)
			for _, text := range []string{part, string(decoded)} {
				if len(text) > 16 && strings.Contains(err.Error(), text) {
					t.Errorf("verify(%q): error %q has %q of the token", token, err, text)
				}
			}
		}
	})
}
