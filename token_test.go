package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"authsession/internal/keytool"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

// What the verifier's outcomes come to over HTTP. internal/bearer's tests have the tokens themselves.

// outcome is what a credential gets. The challenges are spelled out here: callers match on their text.
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

// wantOutcome checks an answer whole. A refusal's log line must have cause in its cause: a token that is wrong in
// another way than meant would prove nothing.
func (ts *testServer) wantOutcome(t testing.TB, a testkit.Answer, want outcome, cause string) {
	t.Helper()
	if got := strings.Join(a.Header.Values("WWW-Authenticate"), " | "); got != want.challenge {
		t.Errorf("WWW-Authenticate = %q, want %q", got, want.challenge)
	}
	if want == accepted {
		ts.wantSession(t, a)
		return
	}
	e, line := ts.wantRefused(t, a, want.status, want.name)
	if got, _ := line["cause"].(string); !strings.Contains(got, cause) {
		t.Errorf("logged cause = %q, want %q", got, cause)
	}
	if one := "send a valid bearer token in the Authorization header"; want.status == 401 && e.Message != one {
		t.Errorf("message = %q, want the one of every 401, %q", e.Message, one)
	}
}

// wantNotLogged checks that no part of the token is in the log but what any text may have.
func (ts *testServer) wantNotLogged(t testing.TB, token string) {
	t.Helper()
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 16 && ts.log.Has(part) {
			t.Errorf("log has %q of the token", part)
		}
	}
}

// tokenCase is a token, and what POST /auth/session with it and a good body gets.
type tokenCase struct {
	name  string
	token string
	want  outcome
	cause string
}

// wantTokens runs the cases, and checks that only the good ones left something in Redis.
func (ts *testServer) wantTokens(t *testing.T, cases []tokenCase) {
	t.Helper()
	sessions := len(ts.sessionKeys(t))
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.want == accepted {
				sessions++
			}
			ts.wantOutcome(t, ts.post(t, c.token, goodBody), c.want, c.cause)
			ts.wantNotLogged(t, c.token)
		})
	}
	ts.wantSessions(t, sessions)
}

// postLines posts a good body with header lines as they stand: Go's client would trim their values and send one
// Authorization.
func (ts *testServer) postLines(t testing.TB, lines ...string) testkit.Answer {
	t.Helper()
	head := []string{"POST /auth/session HTTP/1.1", "Host: x", "Connection: close", goodLength,
		"Content-Type: application/json"}
	return ts.exchange(t, message(append(head, lines...)...)+goodBody)
}

func TestTokenHeader(t *testing.T) {
	ts := newTestServer(t, nil)
	good := ts.token(t)
	bad := good[:len(good)-8] + "AAAAAAAA"
	const none, notCompact, two = "no bearer token", "not a compact JWT", "one Authorization header"
	tests := []struct {
		name  string
		lines []string
		want  outcome
		cause string
	}{
		{"none", nil, noToken, none},
		{"empty", []string{"Authorization:"}, noToken, none},
		{"blank", []string{"Authorization:  \t "}, noToken, none},
		{"scheme alone", []string{"Authorization: Bearer"}, noToken, none},
		{"scheme and a space", []string{"Authorization: Bearer "}, noToken, none},
		{"scheme and a tab", []string{"Authorization: Bearer\t"}, noToken, none},
		{"Basic", []string{"Authorization: Basic dTpw"}, noToken, none},
		{"Basic with a good token", []string{"Authorization: Basic " + good}, noToken, none},
		{"Token", []string{"Authorization: Token " + good}, noToken, none},
		{"Digest", []string{`Authorization: Digest username="u", response="x"`}, noToken, none},
		{"DPoP", []string{"Authorization: DPoP " + good}, noToken, none},
		{"no scheme", []string{"Authorization: " + good}, noToken, none},
		{"no space", []string{"Authorization: Bearer" + good}, noToken, none},
		{"colon after the scheme", []string{"Authorization: Bearer: " + good}, noToken, none},
		{"another header", []string{"Proxy-Authorization: Bearer " + good, "X-Authorization: Bearer " + good}, noToken, none},
		{"cookie", []string{"Cookie: access_token=" + good + "; Authorization=Bearer " + good}, noToken, none},

		{"good", []string{"Authorization: Bearer " + good}, accepted, ""},
		{"bearer", []string{"Authorization: bearer " + good}, accepted, ""},
		{"BEARER", []string{"AUTHORIZATION: BEARER " + good}, accepted, ""},
		{"bEaReR", []string{"authorization: bEaReR " + good}, accepted, ""},
		{"blanks around", []string{"Authorization: \t Bearer " + good + " \t"}, accepted, ""},

		{"two spaces", []string{"Authorization: Bearer  " + good}, badToken, notCompact},
		{"tab", []string{"Authorization: Bearer\t" + good}, badToken, "no single space"},
		{"space and tab", []string{"Authorization: Bearer \t" + good}, badToken, notCompact},
		{"tab and space", []string{"Authorization: Bearer\t " + good}, badToken, "no single space"},
		{"list of two", []string{"Authorization: Bearer " + good + ", Bearer " + good}, badToken, notCompact},
		{"quoted", []string{`Authorization: Bearer "` + good + `"`}, badToken, notCompact},
		{"parameter after", []string{`Authorization: Bearer ` + good + `;q=1`}, badToken, notCompact},
		{"space inside", []string{"Authorization: Bearer " + good[:9] + " " + good[9:]}, badToken, notCompact},
		{"no text at all", []string{"Authorization: Bearer \xff"}, badToken, notCompact},
		{"Latin-1", []string{"Authorization: Bearer " + good + "\xe9"}, badToken, notCompact},
		{"UTF-8", []string{"Authorization: Bearer é" + good}, badToken, notCompact},

		{"good and bad", []string{"Authorization: Bearer " + good, "Authorization: Bearer " + bad}, twoHeaders, two},
		{"bad and good", []string{"Authorization: Bearer " + bad, "Authorization: Bearer " + good}, twoHeaders, two},
		{"good twice", []string{"Authorization: Bearer " + good, "authorization: Bearer " + good}, twoHeaders, two},
		{"empty and good", []string{"Authorization:", "Authorization: Bearer " + good}, twoHeaders, two},
		{"Basic and good", []string{"Authorization: Basic dTpw", "X-Other: 1", "Authorization: Bearer " + good},
			twoHeaders, two},
	}
	sessions := 0
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.want == accepted {
				sessions++
			}
			ts.wantOutcome(t, ts.postLines(t, test.lines...), test.want, test.cause)
		})
	}
	ts.wantSessions(t, sessions)
	ts.wantNotLogged(t, good)
	ts.wantNotLogged(t, bad)
}

func TestTokenOutsideHeader(t *testing.T) {
	ts := newTestServer(t, nil)
	good := ts.token(t)
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	for _, test := range []struct {
		path string
		h    http.Header
		body string
	}{
		{"/auth/session?access_token=" + good, nil, goodBody},
		{"/auth/session", form, "access_token=" + good},
		{"/auth/session", nil, `{"end_user_id":"eu_1","access_token":"` + good + `"}`},
	} {
		ts.wantOutcome(t, ts.do(t, "POST", test.path, test.h, strings.NewReader(test.body)), noToken, "no bearer token")
	}
	ts.wantSessions(t, 0)

	// Beside a token in the header the query is nothing to look at, nor to log.
	h := http.Header{"Authorization": {"Bearer " + good}}
	a := ts.do(t, "POST", "/auth/session?access_token=another.token.inTheQuery", h, strings.NewReader(goodBody))
	ts.wantOutcome(t, a, accepted, "")
	if ts.log.Has("inTheQuery") {
		t.Errorf("log has the query")
	}
	ts.wantNotLogged(t, good)
}

// Each kind of the verifier's outcomes has its status and challenge.
func TestTokenOutcomes(t *testing.T) {
	ts := newTestServer(t, nil)
	by := func(key keytool.Key, changes map[string]any) string {
		return testkit.Sign(t, key, testkit.With(changes))
	}
	ec := testkit.EC()
	head := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
	claims := strings.Split(by(ec, nil), ".")[1]
	ts.wantTokens(t, []tokenCase{
		{"RSA", by(testkit.RSA(), nil), accepted, ""},
		{"EC", by(ec, nil), accepted, ""},
		{"Ed25519", by(testkit.Ed(), nil), accepted, ""},
		{"8 KiB", longToken(t, 8192), accepted, ""},
		{"more than 8 KiB", longToken(t, 8196), badToken, "not a compact JWT"},
		{"not three parts", "a.b.c.d", badToken, "not a compact JWT"},
		{"no JSON", "a.b.c", badToken, "header"},
		{"no signature", head + "." + claims + ".", badToken, "algorithm"},
		{"unknown key id", by(testkit.NewKey(t, "unknown", jose.ES256), nil), badToken, "no key of the set"},
		{"another key under a known id", by(testkit.NewKey(t, "ec", jose.ES256), nil), badToken, "bad signature"},
		{"expired", by(ec, map[string]any{"exp": 1}), badToken, "expired"},
		{"no client", by(ec, map[string]any{"client_id": nil}), badToken, "no client"},
		{"no client and no scope", by(ec, map[string]any{"client_id": nil, "scope": nil}), badToken, "no client"},
		{"no scope", by(ec, map[string]any{"scope": nil}), lacksScope, "api:user.write"},
		{"another scope", by(ec, map[string]any{"scope": "api:user.read"}), lacksScope, "api:user.write"},
	})

	// The client of a 403 is known, and logged.
	a := ts.post(t, by(ec, map[string]any{"scope": "x"}), goodBody)
	if _, line := ts.wantRefused(t, a, 403, "forbidden"); line["client_id"] != "acme" {
		t.Errorf("log line of a 403: client_id = %v, want acme", line["client_id"])
	}
}

// longToken is a good token of n bytes, or up to 3 fewer: base64 has no part of every length.
func longToken(t testing.TB, n int) string {
	t.Helper()
	pad := func(size int) string {
		return testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"pad": strings.Repeat("x", size)}))
	}
	token := pad((n - len(pad(0))) / 4 * 3)
	if len(token) > n || len(token) <= n-4 {
		t.Fatalf("a token of %d bytes instead of %d", len(token), n)
	}
	return token
}

// The variables of tokens reach the verifier.
func TestTokenConfigured(t *testing.T) {
	ts := newTestServer(t, map[string]string{
		"JWT_ISSUER": "https://auth.example/", "JWT_AUDIENCE": "ours", "JWT_ALGORITHMS": "ES256,EdDSA",
		"JWT_MAX_LIFETIME": "10m", "JWT_CLIENT_CLAIM": "org_id, sub"})
	by := func(key keytool.Key, changes map[string]any) string {
		claims := testkit.With(map[string]any{"iss": "https://auth.example/", "aud": "ours", "org_id": "org_1",
			"exp": time.Now().Unix() + 300})
		for name, value := range changes {
			claims[name] = value
		}
		return testkit.Sign(t, key, claims)
	}
	ec := testkit.EC()
	ts.wantTokens(t, []tokenCase{
		{"good", by(ec, nil), accepted, ""},
		{"good, Ed25519", by(testkit.Ed(), nil), accepted, ""},
		{"another issuer", by(ec, map[string]any{"iss": "https://other.example/"}), badToken, "iss"},
		{"another audience", by(ec, map[string]any{"aud": "other"}), badToken, "aud"},
		{"another algorithm", by(testkit.RSA(), nil), badToken, "algorithm"},
		{"an hour", by(ec, map[string]any{"exp": time.Now().Unix() + 3600}), badToken, "JWT_MAX_LIFETIME"},
		{"another client claim", by(ec, map[string]any{"org_id": ""}), badToken, "no client"},
	})
	const odd = "Ünï \u0001\u2028 \"x\""
	for want, changes := range map[string]map[string]any{"org_1": nil, odd: {"org_id": "", "sub": odd}} {
		record := ts.wantSession(t, ts.post(t, by(ec, changes), goodBody))
		if record.ClientID != want {
			t.Errorf("client_id of the record = %q, want %q", record.ClientID, want)
		}
		testkit.WaitFor(t, 5*time.Second, "the log line", func() bool { return ts.log.Has(record.ID) })
		if line := ts.log.Line(t, "session", record.ID); line["client_id"] != printable(want) {
			t.Errorf("client_id of the log line = %q, want %q", line["client_id"], printable(want))
		}
	}
}

// The reference platform's tokens have neither iss, aud nor a client_id.
func TestTokenReferencePlatform(t *testing.T) {
	now := time.Now().Unix()
	claims := map[string]any{"org_id": "org_2yRHN2ag2y4p8", "key_id": "key_1", "scope": "api:user.read api:user.write",
		"exp": now + 600, "iat": now, "jti": "3f0c"}
	ts := newTestServer(t, map[string]string{"JWT_CLIENT_CLAIM": "org_id"})
	token := testkit.Sign(t, testkit.RSA(), claims)
	if record := ts.wantSession(t, ts.post(t, token, goodBody)); record.ClientID != "org_2yRHN2ag2y4p8" {
		t.Errorf("client_id of the record = %q, want the org_id", record.ClientID)
	}
	ts.wantNotLogged(t, token)
}

// Route, method, requests in flight, token, scope, media type, body: the first that is wrong answers.
func TestTokenOrderOfChecks(t *testing.T) {
	ts := newTestServer(t, nil)
	good := ts.authorization(t)
	weak := "Authorization: Bearer " + testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"scope": "x"}))
	const none, bad = "X-Other: 1", "Authorization: Bearer a.b.c"
	const form, json = "application/x-www-form-urlencoded", "application/json"
	const unsent = 1 << 20 // bytes announced: who waits for them does not answer
	tests := []struct {
		name, line, authorization, media string
		length                           int
		body                             string
		want                             outcome
	}{
		{"path before all", "GET /auth/sessions", bad, form, 1, "{", outcome{404, "not_found", ""}},
		{"method before token", "GET /auth/session", bad, json, 0, "", outcome{405, "method_not_allowed", ""}},
		{"method before no token", "PUT /v1/auth/session", none, form, 1, "{", outcome{405, "method_not_allowed", ""}},
		{"no token before type and body", "POST /auth/session", none, form, 1, "{", noToken},
		{"token before type and body", "POST /v1/auth/session", bad, form, 1, "{", badToken},
		{"token before size", "POST /auth/session", bad, json, unsent, "", badToken},
		{"scope before type and body", "POST /auth/session", weak, form, 1, "{", lacksScope},
		{"scope before size", "POST /auth/session", weak, json, unsent, "", lacksScope},
		{"type before body", "POST /auth/session", good, form, 1, "{", outcome{415, "unsupported_media_type", ""}},
		{"type before size", "POST /auth/session", good, form, unsent, "", outcome{415, "unsupported_media_type", ""}},
		{"size before body", "POST /auth/session", good, json, unsent, "", outcome{413, "request_too_large", ""}},
		{"body last", "POST /auth/session", good, json, 1, "{", outcome{400, "bad_request", ""}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			head := message(test.line+" HTTP/1.1", "Host: x", "Connection: close", "Content-Type: "+test.media,
				test.authorization, fmt.Sprintf("Content-Length: %d", test.length))
			ts.wantOutcome(t, ts.exchange(t, head+test.body), test.want, "")
		})
	}
	ts.wantSessions(t, 0)
}

// Without a key set no token can be told good from bad: that is ours to mend, and the caller may try again.
func TestTokenNoKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	ts := newTestServer(t, map[string]string{"JWKS_URL": "file://" + file})
	unknown := testkit.Sign(t, testkit.NewKey(t, "unknown", jose.ES256), testkit.Claims())
	for _, token := range []string{ts.token(t), unknown} {
		start := time.Now()
		a := ts.post(t, token, goodBody)
		if took := time.Since(start); took > 900*time.Millisecond {
			t.Errorf("answered after %s, want at once", took)
		}
		ts.wantOutcome(t, a, outcome{503, "unavailable", ""}, "key set not loaded")
	}
	ts.wantOutcome(t, ts.post(t, "", goodBody), noToken, "no bearer token")
	ts.wantOutcome(t, ts.post(t, "abc", goodBody), badToken, "not a compact JWT")
	e := ts.do(t, "GET", "/readyz", nil, nil).WantError(t, 503, "unavailable")
	if !strings.Contains(e.Message, "key set") || strings.Contains(e.Message, "redis") {
		t.Errorf("message of /readyz = %q, want it to name the key set alone", e.Message)
	}
	ts.wantSessions(t, 0)

	testkit.WriteKeySet(t, file, testkit.EC())
	testkit.WaitFor(t, 5*time.Second, "the key set", ts.verifier.Ready)
	ts.wantOutcome(t, ts.post(t, ts.token(t), goodBody), accepted, "")
	if a := ts.do(t, "GET", "/readyz", nil, nil); a.Status != 200 {
		t.Errorf("GET /readyz = %d %s, want 200", a.Status, a.Body)
	}
}
