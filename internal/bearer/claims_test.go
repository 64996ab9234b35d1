package bearer_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/testkit"
)

func TestTokenDates(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	at := func(seconds float64) string {
		return strconv.FormatFloat(float64(now.Unix())+seconds, 'f', -1, 64)
	}
	with := func(changes map[string]any) string { return testkit.Sign(t, testkit.EC(), testkit.With(changes)) }
	const day = 24 * 60 * 60
	tests := []tokenTest{
		{"exp in an hour", claim(t, "exp", at(3600)), accepted},
		{"exp now", claim(t, "exp", at(0)), accepted},
		{"exp 10 s ago", claim(t, "exp", at(-10)), accepted},
		{"exp 29 s ago", claim(t, "exp", at(-29)), accepted},
		{"exp 29.5 s ago", claim(t, "exp", at(-29.5)), accepted},
		{"exp 30 s ago", claim(t, "exp", at(-30)), expired},
		{"exp 31 s ago", claim(t, "exp", at(-31)), expired},
		{"exp 0", claim(t, "exp", "0"), expired},
		{"exp -0", claim(t, "exp", "-0"), expired},
		{"exp negative", claim(t, "exp", "-1"), expired},
		{"exp 1e2", claim(t, "exp", "1e2"), expired},
		{"exp 1e-400", claim(t, "exp", "1e-400"), expired},
		{"exp with a fraction", claim(t, "exp", at(3600.25)), accepted},
		{"exp with an exponent", claim(t, "exp", at(3600)+"E+0"), accepted},
		{"exp in a day", claim(t, "exp", at(day)), accepted},
		{"exp in a day and half a second", claim(t, "exp", at(day+0.5)), tooLong},
		{"exp in a day and a second", claim(t, "exp", at(day+1)), tooLong},
		{"exp in milliseconds", claim(t, "exp", at(3600)+"000"), tooLong},
		{"exp in nanoseconds", claim(t, "exp", at(3600)+"000000000"), tooLong},
		{"exp of 40 digits", claim(t, "exp", strings.Repeat("9", 40)), tooLong},
		{"exp 1e308", claim(t, "exp", "1e308"), tooLong},
		{"exp 2^63", claim(t, "exp", "9223372036854775808"), tooLong},
		{"exp of 400 digits", claim(t, "exp", strings.Repeat("9", 400)), "exp" + notNumber},
		{"exp missing", claim(t, "exp", ""), noExp},
		{"EXP alone", with(map[string]any{"exp": nil, "EXP": now.Unix() + 60}), noExp},
		{"iat missing", claim(t, "iat", ""), accepted},
		{"iat after exp", with(map[string]any{"exp": now.Unix() - 20, "iat": now.Unix() + 20}), accepted},
	}
	for _, name := range []string{"exp", "nbf", "iat"} {
		for _, value := range []string{
			`null`, `true`, `"abc"`, `"NaN"`, `"` + at(60) + `"`, `""`, `[` + at(60) + `]`, `{}`, `1e400`, `-1e400`,
		} {
			tests = append(tests, tokenTest{name + " " + value, claim(t, name, value), name + notNumber})
		}
	}
	for _, name := range []string{"nbf", "iat"} {
		tests = append(tests,
			tokenTest{name + " in an hour", claim(t, name, at(3600)), name + inFuture},
			tokenTest{name + " in 31 s", claim(t, name, at(31)), name + inFuture},
			tokenTest{name + " in 30.5 s", claim(t, name, at(30.5)), name + inFuture},
			tokenTest{name + " in 30 s", claim(t, name, at(30)), accepted},
			tokenTest{name + " in 10 s", claim(t, name, at(10)), accepted},
			tokenTest{name + " now", claim(t, name, at(0)), accepted},
			tokenTest{name + " a year ago", claim(t, name, at(-365*day)), accepted},
			tokenTest{name + " 0", claim(t, name, "0"), accepted},
			tokenTest{name + " in milliseconds", claim(t, name, at(0)+"000"), name + inFuture},
			tokenTest{name + " 1e308", claim(t, name, "1e308"), name + inFuture})
	}
	v := newVerifier(config(ourKeys(t))).load(t)
	v.SetNow(func() time.Time { return now })
	v.check(t, tests)

	t.Run("MaxLifetime", func(t *testing.T) {
		c := config(ourKeys(t))
		c.MaxLifetime = 10 * time.Minute
		v := newVerifier(c).load(t)
		v.SetNow(func() time.Time { return now })
		v.check(t, []tokenTest{
			{"10 minutes", claim(t, "exp", at(600)), accepted},
			{"10 minutes and a second", claim(t, "exp", at(601)), tooLong},
			{"10 minutes left of a year", with(map[string]any{"iat": now.Unix() - 365*day, "exp": now.Unix() + 600}), accepted},
		})
	})
}

func TestTokenIssuerAudience(t *testing.T) {
	const issuer, audience = "https://auth.example/", "ours"
	token := func(iss, aud any) string {
		return testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"iss": iss, "aud": aud}))
	}
	null := json.RawMessage("null")
	tests := []tokenTest{
		{"both", token(issuer, audience), accepted},
		{"aud array of one", token(issuer, []any{audience}), accepted},
		{"aud first", token(issuer, []any{audience, "x"}), accepted},
		{"aud last", token(issuer, []any{"x", audience}), accepted},
		{"iss missing", token(nil, audience), badIssuer},
		{"aud missing", token(issuer, nil), badAudience},
		{"neither", token(nil, nil), badIssuer},
	}
	for _, iss := range []any{
		"https://other.example/", "https://auth.example", "https://auth.example//", "HTTPS://AUTH.EXAMPLE/",
		" https://auth.example/", "", null, 5, []any{issuer}, map[string]any{"iss": issuer},
	} {
		tests = append(tests, tokenTest{"iss " + asJSON(t, iss), token(iss, audience), badIssuer})
	}
	for _, aud := range []any{
		"other", "OURS", "ours ", "ours x", "our", "", null, 5, true, map[string]any{"ours": true},
		[]any{}, []any{"x"}, []any{"x", "OURS"}, []any{"ours x"}, []any{[]any{audience}}, []any{null},
		[]any{audience, null}, []any{null, audience}, []any{audience, 5}, []any{5, audience}, []any{audience, true},
		[]any{audience, []any{}}, []any{map[string]any{}, audience},
	} {
		tests = append(tests, tokenTest{"aud " + asJSON(t, aud), token(issuer, aud), badAudience})
	}
	for _, part := range []struct {
		name             string
		issuer, audience string
		tests            []tokenTest
	}{
		{"both configured", issuer, audience, tests},
		{"neither configured", "", "", []tokenTest{
			{"neither", token(nil, nil), accepted},
			{"any", token("https://other.example", "other"), accepted},
			{"arrays", token([]any{"x"}, []any{"x", "y"}), accepted},
			{"other types", token(5, []any{null, 5}), accepted},
		}},
		{"issuer alone", issuer, "", []tokenTest{
			{"aud missing", token(issuer, nil), accepted},
			{"iss missing", token(nil, audience), badIssuer},
		}},
		{"audience alone", "", audience, []tokenTest{
			{"iss missing", token(nil, audience), accepted},
			{"aud missing", token(issuer, nil), badAudience},
		}},
	} {
		t.Run(part.name, func(t *testing.T) {
			c := config(ourKeys(t))
			c.Issuer, c.Audience = part.issuer, part.audience
			newVerifier(c).load(t).check(t, part.tests)
		})
	}
}

func TestTokenScope(t *testing.T) {
	v := newVerifier(config(ourKeys(t))).load(t)
	const ours = "api:user.write"
	type test struct {
		name     string
		scope    any
		scp      any
		hasScope bool
	}
	null := json.RawMessage("null")
	tests := []test{
		{"scp of another type beside", ours, 5, true},
		{"scope of another type beside", true, ours, true},
		{"scope without it beside", "x", []any{ours}, true},
		{"scp without it beside", []any{ours}, "x", true},
		{"scope with a null beside", []any{ours, null}, []any{ours}, true},
		{"neither", nil, nil, false},
		{"both without it", "api:user.read", []any{"api:user"}, false},
		{"half in each", "api:user", ".write", false},
	}
	for _, value := range []any{
		ours, ours + " b", "a " + ours + " b", "a " + ours, "a  " + ours, ours + " ", " " + ours, ours + " " + ours,
		[]any{ours}, []any{ours, "b"}, []any{"a", ours, "b"}, []any{"a", ours}, []any{"", ours},
	} {
		tests = append(tests,
			test{"scope " + asJSON(t, value), value, nil, true},
			test{"scp " + asJSON(t, value), nil, value, true})
	}
	for _, value := range []any{
		null, "", " ", "api:user.writer", "xapi:user.write", "api:user.write:sub", "api:user.*", "api:*", "*",
		"API:USER.WRITE", "api:user", "api.user.write", "api:user:write", "a\t" + ours, ours + "\n", "a," + ours, "a+" + ours,
		`"` + ours + `"`, "\u00a0" + ours, 5, true, map[string]any{ours: true}, []any{}, []any{"a " + ours},
		[]any{ours + " "}, []any{"API:USER.WRITE"}, []any{5, ours}, []any{ours, 5}, []any{null, ours},
		[]any{ours, null}, []any{ours, true}, []any{ours, []any{}}, []any{[]any{ours}}, []any{ours, map[string]any{}},
	} {
		tests = append(tests,
			test{"scope " + asJSON(t, value), value, nil, false},
			test{"scp " + asJSON(t, value), nil, value, false})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token := testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"scope": tt.scope, "scp": tt.scp}))
			v.want(t, token, bearer.Bearer{Client: "acme", HasScope: tt.hasScope}, accepted)
		})
	}
	t.Run("escaped", func(t *testing.T) {
		ec := testkit.EC()
		claims := strings.Replace(payload(t, ""), ours, `api:user\u002ewrite`, 1)
		v.accept(t, raw(t, ec, header(ec, ""), claims))
		v.accept(t, raw(t, ec, header(ec, ""), strings.Replace(claims, `"scope"`, `"s\u0063p"`, 1)))
	})
	t.Run("other claims", func(t *testing.T) {
		claims := map[string]any{"scope": nil, "SCOPE": ours, "scopes": ours, "permissions": []any{ours}}
		token := testkit.Sign(t, testkit.EC(), testkit.With(claims))
		v.want(t, token, bearer.Bearer{Client: "acme"}, accepted)
	})
}

func TestTokenClient(t *testing.T) {
	usual := []string{"client_id", "azp", "sub"}
	null := json.RawMessage("null")
	long, tooLong := strings.Repeat("é", 64)+"x", "the client's name is over 128 bytes"
	for _, tt := range []struct {
		name   string
		claims []string // Config.ClientClaims
		set    map[string]any
		want   string // "" and tooLong are refused
	}{
		{"client_id first", usual, map[string]any{"client_id": "c", "azp": "a", "sub": "s"}, "c"},
		{"azp second", usual, map[string]any{"client_id": nil, "azp": "a", "sub": "s"}, "a"},
		{"sub last", usual, map[string]any{"client_id": nil, "sub": "s"}, "s"},
		{"empty ones passed over", usual, map[string]any{"client_id": "", "azp": "", "sub": "s"}, "s"},
		{"other types passed over", usual, map[string]any{"client_id": 5, "azp": []any{"a"}, "sub": "s"}, "s"},
		{"null passed over", usual, map[string]any{"client_id": null, "azp": "a"}, "a"},
		{"any string", usual, map[string]any{"client_id": "Ünï \u0001\u2028 \"x\""}, "Ünï \u0001\u2028 \"x\""},
		{"none", usual, map[string]any{"client_id": nil}, ""},
		{"none is a string", usual, map[string]any{"client_id": 5, "azp": true, "sub": map[string]any{}}, ""},
		{"all empty", usual, map[string]any{"client_id": "", "azp": "", "sub": ""}, ""},
		{"another case", usual, map[string]any{"client_id": nil, "CLIENT_ID": "c", "cid": "c", "iss": "c"}, ""},
		{"org_id", []string{"org_id"}, map[string]any{"client_id": "c", "org_id": "org_1"}, "org_1"},
		{"org_id missing", []string{"org_id"}, nil, ""},
		{"configured order", []string{"sub", "client_id"}, map[string]any{"sub": "s"}, "s"},
		{"configured order, second", []string{"sub", "client_id"}, nil, "acme"},
		{"128 bytes", usual, map[string]any{"client_id": strings.Repeat("é", 64)}, strings.Repeat("é", 64)},
		{"129 bytes", usual, map[string]any{"client_id": long, "azp": "a"}, tooLong},
		{"129 bytes in one passed over", usual, map[string]any{"client_id": "c", "azp": long}, "c"},
		{"no client before no scope", usual, map[string]any{"client_id": nil, "scope": "x"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config(ourKeys(t))
			c.ClientClaims = tt.claims
			v := newVerifier(c).load(t)
			token := testkit.Sign(t, testkit.EC(), testkit.With(tt.set))
			switch tt.want {
			case "":
				v.refuse(t, token, noClient)
			case tooLong:
				v.refuse(t, token, tooLong)
			default:
				v.want(t, token, bearer.Bearer{Client: tt.want, HasScope: true}, accepted)
			}
		})
	}
}

// The reference platform's tokens have neither iss, aud nor a client_id.
func TestTokenReferencePlatform(t *testing.T) {
	now := time.Now().Unix()
	const org = "org_2yRHN2ag2y4p8"
	claims := map[string]any{
		"org_id": org, "key_id": "key_1", "scope": "api:user.read api:user.write",
		"exp": now + 600, "iat": now, "jti": "3f0c",
	}
	c := config(ourKeys(t))
	c.ClientClaims = []string{"org_id"}
	v := newVerifier(c).load(t)
	v.want(t, testkit.Sign(t, testkit.RSA(), claims), bearer.Bearer{Client: org, HasScope: true}, accepted)
}

// What a good token says for the log.
func TestTokenForLog(t *testing.T) {
	v := newVerifier(config(keyFile(t, testkit.EC().Public()))).load(t)
	for _, tt := range []struct {
		name, header, jti string
		want              string // TokenID
	}{
		{"both", header(testkit.EC(), ""), `"t-1"`, "t-1"},
		{"no kid", `{"alg":"ES256"}`, `"t-1"`, "t-1"},
		{"a long jti", header(testkit.EC(), ""), `"` + strings.Repeat("x", 1000) + `"`, strings.Repeat("x", 64)},
		{"an empty jti", header(testkit.EC(), ""), `""`, ""},
		{"jti of another type", header(testkit.EC(), ""), `5`, ""},
		{"jti null", header(testkit.EC(), ""), `null`, ""},
	} {
		token := raw(t, testkit.EC(), tt.header, payload(t, `,"jti":`+tt.jti))
		for _, seen := range []string{"first", "remembered"} {
			want := bearer.Bearer{Client: "acme", HasScope: true, TokenID: tt.want, KeyID: "ec"}
			if got, err := v.Verify(token); got != want || err != nil {
				t.Errorf("%s, %s: Verify = %+v, %v, want %+v", tt.name, seen, got, err, want)
			}
		}
	}
}
