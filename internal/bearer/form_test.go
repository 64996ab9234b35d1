package bearer_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

func TestTokenForm(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	good := testkit.Sign(t, testkit.EC(), testkit.Claims())
	part := strings.Split(good, ".")
	v.check(t, []tokenTest{
		{"nothing", "", notCompact},
		{"8000 dots", strings.Repeat(".", 8000), notCompact},
		{"one dot", ".", notCompact},
		{"two dots", "..", "header" + notObject},
		{"one word", "abc", notCompact},
		{"two parts", "a.b", notCompact},
		{"three parts of nothing", "a.b.c", notBase64},
		{"four parts", "a.b.c.d", notCompact},
		{"dot after", good + ".", notCompact},
		{"dot before", "." + good, notCompact},
		{"space before", " " + good, notCompact},
		{"space after", good + " ", notCompact},
		{"line feed after", good + "\n", notCompact},
		{"no UTF-8 after", good + "\xff", notCompact},
		{"two tokens", good + " " + good, notCompact},
		{"padding", good + "==", notCompact},
		{"percent escape", strings.Replace(good, ".", "%2E", 1), notCompact},
		{"JWE", b64(`{"alg":"RSA-OAEP","enc":"A256GCM"}`) + ".YQ.YQ.YQ.YQ", notCompact},
		{"JWE without its dots", b64(`{"alg":"dir","enc":"A256GCM"}`) + ".YQ.YQ", malformed},
		{"JSON serialization", fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, part[1], part[0], part[2]),
			notCompact},
		{"standard base64", part[0] + "." + part[1] + ".+/" + part[2][2:], notCompact},
		{"8 KiB", tokenOfLength(t, 8192), accepted},
		{"8 KiB and one", tokenOfLength(t, 8193), notCompact},
		{"12 KiB", tokenOfLength(t, 12<<10), notCompact},
	})
}

// jsonTests are what a header or a payload that is good may be changed to. why follows "header" or "payload".
func jsonTests(good string) []struct{ name, json, why string } {
	more := func(members string) string { return strings.TrimSuffix(good, "}") + members + "}" }
	arrays := func(n int) string { return more(`,"x":` + strings.Repeat("[", n) + strings.Repeat("]", n)) }
	return []struct{ name, json, why string }{
		{"white space around", "\n " + good + "\r\n\t", accepted},
		{"unknown member", more(`,"x":{"y":[1,null]},"cty":"JWT"`), accepted},
		{"name of two objects", more(`,"x":{"a":1,"x":2},"y":[{"a":1},{"a":2}]`), accepted},
		{"1,000 levels", arrays(999), accepted},

		{"nothing", "", notObject},
		{"null", "null", notObject},
		{"array", "[" + good + "]", notObject},
		{"string", `"ES256"`, notObject},
		{"text", "hello", notObject},
		{"BOM", "\ufeff" + good, notObject},
		{"twice", good + good, notJSON},
		{"brace after", good + "}", notJSON},
		{"cut", good[:len(good)-1], notJSON},
		{"NaN", more(`,"x":NaN`), notJSON},
		{"not UTF-8", more(",\"x\":\"\xff\""), notUTF8},
		{"high half of a surrogate", more(`,"x":"\ud800"`), notJSON},
		{"low half of a surrogate", more(`,"x":"\udc00"`), notJSON},
		{"half a surrogate in a name", more(`,"x":{"\ud800":1}`), notJSON},
		{"unknown member twice", more(`,"x":1,"x":1`), nameTwice},
		{"name twice in a member", more(`,"x":{"a":1,"a":1}`), nameTwice},
		{"name twice at depth", more(`,"x":[{"y":{"a":1,"b":{},"a":2}}]`), nameTwice},
		{"name twice at depth, once escaped", more(`,"x":[{"y":{"a":1,"\u0061":1}}]`), nameTwice},
		{"1,001 levels", arrays(1000), tooDeep},
		{"1,001 levels of objects", more(`,"x":` + strings.Repeat(`{"":`, 1000) + "1" + strings.Repeat("}", 1000)), tooDeep},
	}
}

func TestTokenHeaderJSON(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	ec, claims := testkit.EC(), payload(t, "")
	tests := []tokenTest{
		{"empty object", raw(t, ec, `{}`, claims), malformed},
		{"no byte", "A." + b64(claims) + "." + b64("x"), notBase64},
		{"alg twice", raw(t, ec, header(ec, `,"alg":"ES256"`), claims), "header" + nameTwice},
		{"alg twice, once escaped", raw(t, ec, header(ec, `,"\u0061lg":"none"`), claims), "header" + nameTwice},
		{"kid twice", raw(t, ec, `{"alg":"ES256","kid":"rsa","kid":"ec"}`, claims), "header" + nameTwice},
		{"number beyond float64", raw(t, ec, header(ec, `,"x":1e400`), claims), malformed}, // go-jose reads it as a float64
	}
	for _, tt := range jsonTests(header(ec, "")) {
		if tt.why != accepted {
			tt.why = "header" + tt.why
		}
		tests = append(tests, tokenTest{tt.name, raw(t, ec, tt.json, claims), tt.why})
	}
	v.check(t, tests)
}

func TestTokenPayloadJSON(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	ec, claims := testkit.EC(), payload(t, "")
	head := header(ec, "")
	noByte := b64(head) + ".A" // one character is no byte
	tests := []tokenTest{
		{"empty object", raw(t, ec, head, `{}`), noExp},
		{"no byte", noByte + "." + b64(signature(t, ec, noByte)), malformed},
		{"numbers beyond float64", raw(t, ec, head, payload(t, `,"x":1e400,"y":[-1e400]`)), accepted},
		{"number of 400 digits", raw(t, ec, head, payload(t, `,"x":`+strings.Repeat("9", 400))), accepted},
		{"scope twice, good first", raw(t, ec, head, payload(t, `,"scope":"x"`)), "payload" + nameTwice},
		{"scope twice, bad first", raw(t, ec, head, `{"scope":"x",`+claims[1:]), "payload" + nameTwice},
		{"exp twice, once escaped", raw(t, ec, head, payload(t, `,"e\u0078p":99999999999`)), "payload" + nameTwice},
		{"name twice in an unused scp", raw(t, ec, head, payload(t, `,"scp":[{"a":1,"a":1}]`)), "payload" + nameTwice},
	}
	for _, tt := range jsonTests(claims) {
		if tt.why != accepted {
			tt.why = "payload" + tt.why
		}
		tests = append(tests, tokenTest{tt.name, raw(t, ec, head, tt.json), tt.why})
	}
	v.check(t, tests)
}

func TestTokenSignature(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	ec := testkit.EC()
	good := testkit.Sign(t, ec, testkit.Claims())
	part := strings.Split(good, ".")
	other := strings.Split(testkit.Sign(t, ec, testkit.With(map[string]any{"client_id": "other"})), ".")
	ofRSA := strings.Split(testkit.Sign(t, testkit.RSA(), testkit.Claims()), ".")
	signed, err := base64.RawURLEncoding.DecodeString(part[2])
	testkit.Must(t, err)
	der, err := asn1.Marshal(derSignature{new(big.Int).SetBytes(signed[:32]), new(big.Int).SetBytes(signed[32:])})
	testkit.Must(t, err)
	flipped := bytes.Clone(signed)
	flipped[40] ^= 1
	with := func(s []byte) string { return part[0] + "." + part[1] + "." + b64(s) }
	v.check(t, []tokenTest{
		{"good", good, accepted}, // and remembered from here on
		{"none", part[0] + "." + part[1] + ".", badSignature},
		{"none, and no dot", part[0] + "." + part[1], notCompact},
		{"cut by a character", good[:len(good)-1], malformed},
		{"cut by a byte", with(signed[:63]), badSignature},
		{"a byte more", with(append(signed[:64:64], 0)), badSignature},
		{"a bit flipped", with(flipped), badSignature},
		{"zeros", with(make([]byte, 64)), badSignature},
		{"DER", with(der), badSignature},
		{"of another token", part[0] + "." + part[1] + "." + other[2], badSignature},
		{"payload swapped", part[0] + "." + other[1] + "." + part[2], badSignature},
		{"no header", "." + part[1] + "." + part[2], "header" + notObject},
		{"no payload", part[0] + ".." + part[2], badSignature},
		{"header swapped", ofRSA[0] + "." + part[1] + "." + part[2], badSignature},
		{"header in another spelling", b64(header(ec, " ")) + "." + part[1] + "." + part[2], badSignature},
		{"header and payload swapped", part[1] + "." + part[0] + "." + part[2], malformed},
	})
}

func TestTokenHeaderMembers(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	ec, claims := testkit.EC(), payload(t, "")
	another := testkit.NewKey(t, "", jose.ES256)
	tests := []tokenTest{
		{"kid absent", raw(t, ec, `{"alg":"ES256"}`, claims), accepted},
		{"kid empty", raw(t, ec, `{"alg":"ES256","kid":""}`, claims), accepted},
		{"names in another case", raw(t, ec, `{"alg":"ES256","KID":"rsa","TYP":"x","CRIT":["x"]}`, claims), accepted},
		{"kid absent, signed by another", raw(t, another, `{"alg":"ES256"}`, claims), badSignature},
	}
	add := func(member, value, why string) {
		head := `{"alg":"ES256","` + member + `":` + value + `}`
		tests = append(tests, tokenTest{member + " " + value, raw(t, ec, head, claims), why})
	}
	for _, typ := range []string{
		"JWT", "jwt", "Jwt", "at+jwt", "AT+JWT",
		"application/at+jwt", "Application/AT+jwt", "application/jwt", "APPLICATION/JWT",
	} {
		add("typ", `"`+typ+`"`, accepted)
	}
	for _, typ := range []string{
		`null`, `""`, `5`, `true`, `[]`, `["JWT"]`, `{}`, `"JOSE"`, `"id+jwt"`, `"dpop+jwt"`, `"logout+jwt"`, `" JWT"`,
		`"JWT "`, `"at+jwt;x=1"`, `"application/"`, `"application/application/jwt"`, `"text/jwt"`, `"/jwt"`,
		`"appl\u0130cation/jwt"`,
	} {
		add("typ", typ, badTyp)
	}
	for _, crit := range []string{`["urn:x"]`, `["exp"]`, `["b64"]`, `[]`, `"b64"`, `null`, `{}`, `["b64"],"b64":false`} {
		add("crit", crit, hasCrit)
	}
	for _, b64 := range []string{`false`, `true`, `null`, `"x"`} {
		add("b64", b64, hasB64)
	}
	for _, zip := range []string{`"DEF"`, `""`, `null`} {
		add("zip", zip, hasZip)
	}
	for _, kid := range []string{`5`, `null`, `true`, `["ec"]`, `{}`} {
		add("kid", kid, badKid)
	}
	for _, kid := range []string{`"EC"`, `"ec "`, `"ec\u0000"`, `"../ec"`} {
		add("kid", kid, noKey)
	}
	v.check(t, tests)
}

// Refusing must stay cheap, whatever is sent, since callers can have it before they are known.
// RFC 9068: with JWT_TYP=at+jwt an ID token of the same issuer is none of ours.
func TestTokenAccessOnly(t *testing.T) {
	c := config(ourKeys(t))
	c.AccessOnly = true
	v := newVerifier(c).load(t)
	var tests []tokenTest
	for typ, why := range map[string]string{
		"": badTyp, `,"typ":"JWT"`: badTyp, `,"typ":"application/jwt"`: badTyp, `,"typ":null`: badTyp,
		`,"typ":"id+jwt"`: badTyp,
		`,"typ":"at+jwt"`: accepted, `,"typ":"AT+JWT"`: accepted, `,"typ":"application/at+jwt"`: accepted,
		`,"typ":"Application/AT+jwt"`: accepted, `,"typ":"at+jwt "`: badTyp, `,"TYP":"at+jwt"`: badTyp,
	} {
		tests = append(tests, tokenTest{"typ" + typ, raw(t, testkit.EC(), header(testkit.EC(), typ), payload(t, "")), why})
	}
	v.check(t, tests)
}

func TestTokenRefusedQuickly(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
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
			if _, err := v.Verify(token); err == nil {
				t.Fatalf("%s: Verify takes it", name)
			}
			quickest = min(quickest, time.Since(start))
		}
		if quickest > 5*time.Millisecond {
			t.Errorf("%s: refused after %s, want 5 ms at most", name, quickest)
		}
	}
}
