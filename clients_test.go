package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// newClientsServer serves with a CLIENTS_FILE, whose path it returns.
func newClientsServer(t testing.TB, text string, edit ...func(*server)) (ts *testServer, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "clients.json")
	writeClients(t, file, text)
	return newTestServer(t, map[string]string{"CLIENTS_FILE": file}, edit...), file
}

// writeClients replaces the file all at once.
func writeClients(t testing.TB, file, text string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(file+".new", []byte(text), 0o600))
	testkit.Must(t, os.Rename(file+".new", file))
}

// ttl is the lifetime of a session.
func ttl(s session) time.Duration { return time.Duration(s.ExpiresAt-s.CreatedAt) * time.Second }

const twoClients = `{"clients": {
	"acme": {"redirect_uris": ["https://acme.com/cb", "http://127.0.0.1/cb", "com.acme.app:/done"],
		"institution_ids": ["10"], "permissions": ["accounts", "balances", "x"], "session_ttl": "2h"},
	"none": {"redirect_uris": [], "institution_ids": [], "permissions": []},
	"all": {}}}`

func TestClientRules(t *testing.T) {
	ts, _ := newClientsServer(t, twoClients)
	const name, invalid = "bad_request", "invalid_institution_id"
	const foreign = " is not one of this client's"
	for _, tt := range []struct {
		what, client, members string // after end_user_id
		status                int
		name, message         string
	}{
		{"nothing given", "acme", ``, 200, "", ""},
		{"all its own", "acme", `"institution_id":"10","redirect_uri":"https://acme.com/cb?state=1",` +
			`"cancel_uri":"com.acme.app:/done"`, 200, "", ""},
		{"any port", "acme", `"redirect_uri":"http://127.0.0.1:49152/cb"`, 200, "", ""},
		{"another path", "acme", `"redirect_uri":"https://acme.com/cb/"`, 400, name, "redirect_uri" + foreign},
		{"another host", "acme", `"redirect_uri":"https://evil.com/cb"`, 400, name, "redirect_uri" + foreign},
		{"another cancel_uri", "acme", `"cancel_uri":"https://acme.com/no"`, 400, name, "cancel_uri" + foreign},
		{"another institution", "acme", `"institution_id":"11"`, 400, invalid, "institution_id" + foreign},
		{"all wrong", "acme", `"cancel_uri":"https://e.com/","redirect_uri":"https://e.com/","institution_id":"1"`, 400,
			invalid,
			"institution_id" + foreign + "; redirect_uri" + foreign + "; cancel_uri" + foreign},
		{"fields first", "acme", `"institution_id":"11","redirect_uri":"x"`, 400, name,
			"redirect_uri must be an absolute URI"},
		{"its permissions, another order", "acme", `"permissions":["x","accounts"]`, 200, "", ""},
		{"another permission", "acme", `"permissions":["accounts","payments"]`, 400, name,
			"permissions must all be this client's"},
		{"another permission and institution", "acme", `"permissions":["p"],"institution_id":"11"`, 400, invalid,
			"institution_id" + foreign + "; permissions must all be this client's"},
		{"empty lists", "none", ``, 200, "", ""},
		{"empty lists, a permission", "none", `"permissions":["accounts"]`, 400, name,
			"permissions must all be this client's"},
		{"empty lists, a URI", "none", `"redirect_uri":"https://acme.com/cb"`, 400, name,
			"redirect_uri" + foreign},
		{"empty lists, an institution", "none", `"institution_id":"10"`, 400, invalid,
			"institution_id" + foreign},
		{"no limits", "all", `"institution_id":"11","redirect_uri":"https://any.com/"`, 200, "", ""},
		{"not listed", "other", ``, 403, "forbidden", "this client may not create sessions"},
		{"another case", "Acme", ``, 403, "forbidden", "this client may not create sessions"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			body := strings.Replace(`{"end_user_id":"eu_1",`+tt.members+`}`, ",}", "}", 1)
			a := ts.post(t, ts.tokenOf(t, tt.client), body)
			if tt.status == 200 {
				want := 30 * time.Minute
				if tt.client == "acme" {
					want = 2 * time.Hour
				}
				if record := ts.wantSession(t, a); ttl(record) != want || record.ClientID != tt.client {
					t.Errorf("session %+v of %s, want one for %s", record, tt.client, want)
				}
				return
			}
			e, line := ts.wantRefused(t, a, tt.status, tt.name)
			if e.Message != tt.message {
				t.Errorf("message = %q, want %q", e.Message, tt.message)
			}
			if challenge := a.Header["Www-Authenticate"]; challenge != nil {
				t.Errorf("WWW-Authenticate = %q, want none", challenge)
			}
			if line["client_id"] != tt.client {
				t.Errorf("client_id in the log = %v, want %s", line["client_id"], tt.client)
			}
		})
	}
}

// What a request does not name it gets from its client's list, and the record says so.
func TestClientPermissions(t *testing.T) {
	ts, _ := newClientsServer(t, twoClients)
	for _, tt := range []struct{ client, members, want string }{
		{"acme", ``, `"permissions":["accounts","balances","x"]`},
		{"acme", `"permissions":null`, `"permissions":["accounts","balances","x"]`},
		{"acme", `"permissions":["x","accounts"]`, `"permissions":["x","accounts"]`},
		{"none", ``, `"permissions":[]`},
		{"all", ``, ``},
		{"all", `"permissions":["any"]`, `"permissions":["any"]`},
	} {
		body := strings.Replace(`{"end_user_id":"eu_1",`+tt.members+`}`, ",}", "}", 1)
		a := ts.post(t, ts.tokenOf(t, tt.client), body)
		ts.wantSession(t, a)
		var s testkit.SessionAnswer
		a.Decode(t, &s)
		record, err := ts.redis.Get(t.Context(), ts.key(s.SessionID)).Result()
		testkit.Must(t, err)
		if got := regexp.MustCompile(`"permissions":[^]]*]`).FindString(record); got != tt.want {
			t.Errorf("%s, %s: record has %s, want %s", tt.client, tt.members, got, tt.want)
		}
	}
}

// Client after scope and before media type, its rules after the fields' and before the rate.
func TestClientOrderOfChecks(t *testing.T) {
	ts, _ := newClientsServer(t, `{"clients": {"acme": {"institution_ids": [], "sessions_per_minute": 1}}}`)
	post := func(client, scope, media, body string) testkit.Answer {
		token := testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"client_id": client, "scope": scope}))
		header := http.Header{"Authorization": {"Bearer " + token}, "Content-Type": {media}}
		return ts.do(t, "POST", "/auth/session", header, strings.NewReader(body))
	}
	const good, json, form = "api:user.write", "application/json", "application/x-www-form-urlencoded"
	ts.wantOutcome(t, post("other", "x", json, goodBody), lacksScope, "")
	ts.wantOutcome(t, post("other", good, form, "{"), outcome{403, "forbidden", ""}, "may not create")
	ts.wantOutcome(t, post("acme", good, form, "{"), outcome{415, "unsupported_media_type", ""}, "")
	const both = `{"end_user_id":"","institution_id":"1"}`
	if e := post("acme", good, json, both).WantError(t, 400, "bad_request"); !strings.HasPrefix(e.Message, "end_user_id") {
		t.Errorf("message = %q, want the field's", e.Message)
	}
	const rule = `{"end_user_id":"eu_1","institution_id":"1"}`
	post("acme", good, json, rule).WantError(t, 400, "invalid_institution_id") // and takes nothing of the rate
	ts.wantSession(t, post("acme", good, json, goodBody))
	post("acme", good, json, goodBody).WantError(t, 429, "too_many_requests")
	post("acme", good, json, rule).WantError(t, 400, "invalid_institution_id")
}

// A sixth of a minute's sessions at once, then refusals with the time to wait.
func TestClientRate(t *testing.T) {
	ts, _ := newClientsServer(t, `{"clients": {"acme": {"sessions_per_minute": 60, "redirect_uris": []},
		"slow": {"sessions_per_minute": 1}, "free": {}, "*": {"sessions_per_minute": 6}}}`)
	burst := func(client string, want int) (refusal testkit.Answer) {
		t.Helper()
		token := ts.tokenOf(t, client)
		for n := 0; ; n++ {
			a := ts.post(t, token, goodBody)
			if a.Status != 200 {
				if n != want {
					t.Errorf("%s has %d sessions at once, want %d", client, n, want)
				}
				ts.wantRefused(t, a, 429, "too_many_requests")
				return a
			}
			if ts.wantSession(t, a); n > want {
				t.Fatalf("%s has %d sessions at once, want %d", client, n, want)
			}
		}
	}
	a := burst("acme", 10)
	if after := a.Header["Retry-After"]; len(after) != 1 || after[0] != "1" {
		t.Errorf("Retry-After = %q, want 1", after)
	}
	if after := burst("slow", 1).Header.Get("Retry-After"); after != "60" {
		t.Errorf("Retry-After of 1 a minute = %q, want 60", after)
	}
	burst("one", 1) // each that is not listed by itself
	burst("another", 1)
	for range 20 {
		ts.wantSession(t, ts.post(t, ts.tokenOf(t, "free"), goodBody))
	}
	// The refusals took nothing: after the time to wait there is one more.
	time.Sleep(time.Second)
	ts.wantSession(t, ts.post(t, ts.tokenOf(t, "acme"), goodBody))
}

// A client that is taken out of the file, or put in, is so 2 s later; a bad file changes nothing.
func TestClientRevoked(t *testing.T) {
	ts, file := newClientsServer(t, `{"clients": {"acme": {}}}`)
	token := ts.token(t)
	ts.wantSession(t, ts.post(t, token, goodBody))
	within := func(what string, status int) {
		t.Helper()
		testkit.WaitFor(t, 2*time.Second, what, func() bool { return ts.post(t, token, goodBody).Status == status })
	}
	writeClients(t, file, `{"clients": {"other": {}}}`)
	within("the client to go", 403)
	writeClients(t, file, `{"clients": {"acme": {"permissions": 5}}}`)
	testkit.WaitFor(t, 2*time.Second, "the log line", func() bool { return ts.log.Has("the last good one stays") })
	if a := ts.post(t, token, goodBody); a.Status != 403 {
		t.Errorf("POST after a bad file = %d, want 403", a.Status)
	}
	if text := ts.scrape(t); !strings.Contains(text, "\nauthsession_clients_file_last_load_success 0\n") {
		t.Error("/metrics does not say that the file is bad")
	}
	writeClients(t, file, `{"clients": {"*": {}}}`)
	within("the client to come back", 200)
}

// While the file changes under 500 requests a second none fails, and each is judged by one whole file.
func TestClientsChangeUnderLoad(t *testing.T) {
	version := func(host, ttl string) string {
		return `{"clients": {"acme": {"redirect_uris": ["https://` + host + `/"], "session_ttl": "` + ttl + `"}}}`
	}
	files := []string{version("a.com", "1h"), version("b.com", "2h")}
	ts, file := newClientsServer(t, files[0])
	token := ts.token(t)
	var seen [2]atomic.Int64
	stop := time.Now().Add(4 * time.Second)
	var callers sync.WaitGroup
	for i := range 8 {
		host, want := [...]string{"a.com", "b.com"}[i%2], time.Duration(1+i%2)*time.Hour
		body := `{"end_user_id":"eu_1","redirect_uri":"https://` + host + `/"}`
		callers.Go(func() {
			for tick := time.Tick(16 * time.Millisecond); time.Now().Before(stop); <-tick {
				a := ts.post(t, token, body)
				switch a.Status {
				case 200:
					seen[i%2].Add(1)
					if record := ts.wantSession(t, a); ttl(record) != want {
						t.Errorf("session for %s lives %s, want %s", host, ttl(record), want)
					}
				case 400:
					if e := a.WantError(t, 400, "bad_request"); e.Message != "redirect_uri is not one of this client's" {
						t.Errorf("refused: %s", e.Message)
					}
				default:
					t.Errorf("POST = %d %s", a.Status, a.Body)
				}
			}
		})
	}
	for n := 1; time.Now().Before(stop); n++ {
		time.Sleep(1100 * time.Millisecond)
		writeClients(t, file, files[n%2])
	}
	callers.Wait()
	if seen[0].Load() == 0 || seen[1].Load() == 0 {
		t.Errorf("%d sessions by the first file and %d by the second, want some by each", seen[0].Load(), seen[1].Load())
	}
}

// A bound token is good with its certificate in the one header alone, and only where that is configured.
func TestBoundToken(t *testing.T) {
	der := []byte("a certificate")
	sum := sha256.Sum256(der)
	thumbprint := base64.RawURLEncoding.EncodeToString(sum[:])
	own := ":" + base64.StdEncoding.EncodeToString(der) + ":"
	token := func(cnf map[string]any) string {
		return testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"cnf": cnf}))
	}
	bound := token(map[string]any{"x5t#S256": thumbprint})
	post := func(ts *testServer, token string, header http.Header) testkit.Answer {
		all := http.Header{"Authorization": {"Bearer " + token}}
		maps.Copy(all, header)
		return ts.do(t, "POST", "/auth/session", all, strings.NewReader(goodBody))
	}
	without, with := newTestServer(t, nil), newTestServer(t, map[string]string{"CLIENT_CERT_HEADER": "client-cert"})
	for range 2 {
		ts := with
		ts.wantSession(t, post(ts, bound, http.Header{"Client-Cert": {own}}))
		ts.wantSession(t, post(ts, ts.token(t), http.Header{"Client-Cert": {own}}))
		ts.wantSession(t, post(ts, ts.token(t), nil))
		for name, header := range map[string]http.Header{
			"none": nil, "another header": {"X-Client-Cert": {own}}, "two": {"Client-Cert": {own, own}},
			"empty": {"Client-Cert": {""}}, "another certificate": {"Client-Cert": {":AAAA:"}},
		} {
			t.Log(name)
			ts.wantOutcome(t, post(ts, bound, header), badToken, "bound")
		}
		toKey := token(map[string]any{"jkt": thumbprint})
		ts.wantOutcome(t, post(ts, toKey, http.Header{"Client-Cert": {own}}), badToken, "cnf")
		without.wantOutcome(t, post(without, bound, http.Header{"Client-Cert": {own}}), badToken, "bound")
		without.wantSession(t, post(without, ts.token(t), http.Header{"Client-Cert": {own}}))
	}
}

func TestTokenType(t *testing.T) {
	ts := newTestServer(t, map[string]string{"JWT_TYP": "at+jwt"})
	ts.wantOutcome(t, ts.post(t, ts.token(t), goodBody), badToken, "typ")
}

func TestRemoteIP(t *testing.T) {
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	proxies := prefixes("10.0.0.0/8", "fd00::/8")
	for _, tt := range []struct {
		what, peer string
		forwarded  []string
		want       string
	}{
		{"no header", "10.0.0.1:1", nil, "10.0.0.1"},
		{"one address", "10.0.0.1:1", []string{"192.0.2.7"}, "192.0.2.7"},
		{"peer is no proxy", "198.51.100.1:1", []string{"192.0.2.7"}, "198.51.100.1"},
		{"spoofed left part", "10.0.0.1:1", []string{"127.0.0.1, 192.0.2.7"}, "192.0.2.7"},
		{"spoofed left part in a header of its own", "10.0.0.1:1", []string{"127.0.0.1", "192.0.2.7"}, "192.0.2.7"},
		{"spoofed as a proxy", "10.0.0.1:1", []string{"10.9.9.9, 192.0.2.7"}, "192.0.2.7"},
		{"two proxies", "10.0.0.1:1", []string{"1.1.1.1, 192.0.2.7, 10.0.0.2"}, "192.0.2.7"},
		{"two proxies, two headers", "10.0.0.1:1", []string{"1.1.1.1, 192.0.2.7", "10.0.0.2"}, "192.0.2.7"},
		{"proxies all the way", "10.0.0.1:1", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"no spaces", "10.0.0.1:1", []string{"1.1.1.1,192.0.2.7,10.0.0.2"}, "192.0.2.7"},
		{"tabs and more spaces", "10.0.0.1:1", []string{"1.1.1.1 ,\t192.0.2.7  "}, "192.0.2.7"},
		{"port", "10.0.0.1:1", []string{"192.0.2.7:4711"}, "192.0.2.7"},
		{"IPv6", "[fd00::1]:1", []string{"2001:db8::7"}, "2001:db8::7"},
		{"IPv6 in brackets", "10.0.0.1:1", []string{"[2001:db8::7]"}, "2001:db8::7"},
		{"IPv6 with a port", "10.0.0.1:1", []string{"[2001:db8::7]:4711"}, "2001:db8::7"},
		{"IPv6 in full", "10.0.0.1:1", []string{"2001:0DB8:0:0:0:0:0:7"}, "2001:db8::7"},
		{"IPv6 with a zone", "[fd00::1%eth0]:1", []string{"fe80::7%eth1"}, "fe80::7"},
		{"mapped", "10.0.0.1:1", []string{"::ffff:192.0.2.7"}, "192.0.2.7"},
		{"mapped, with a port", "10.0.0.1:1", []string{"[::ffff:192.0.2.7]:80"}, "192.0.2.7"},
		{"mapped proxy", "10.0.0.1:1", []string{"192.0.2.7, ::ffff:10.0.0.2"}, "192.0.2.7"},
		{"mapped peer", "[::ffff:10.0.0.1]:1", []string{"192.0.2.7"}, "192.0.2.7"},
		{"garbage", "10.0.0.1:1", []string{"garbage"}, "10.0.0.1"},
		{"garbage on the left", "10.0.0.1:1", []string{"garbage, 192.0.2.7"}, "192.0.2.7"},
		{"garbage on the right", "10.0.0.1:1", []string{"192.0.2.7, garbage"}, "10.0.0.1"},
		{"garbage between proxies", "10.0.0.1:1", []string{"192.0.2.7, unknown, 10.0.0.2"}, "10.0.0.2"},
		{"empty", "10.0.0.1:1", []string{""}, "10.0.0.1"},
		{"empty element", "10.0.0.1:1", []string{"192.0.2.7, ,"}, "10.0.0.1"},
		{"a name", "10.0.0.1:1", []string{"evil.com"}, "10.0.0.1"},
		{"a number", "10.0.0.1:1", []string{"3221225991"}, "10.0.0.1"},
		{"leading zero", "10.0.0.1:1", []string{"192.0.02.7"}, "10.0.0.1"},
		{"line feed", "10.0.0.1:1", []string{"192.0.2.7\nx"}, "10.0.0.1"},
		{"no address at all", "@", nil, ""},
	} {
		if got := remoteIP(tt.peer, tt.forwarded, proxies); got != tt.want {
			t.Errorf("%s: remoteIP(%q, %q) = %q, want %q", tt.what, tt.peer, tt.forwarded, got, tt.want)
		}
	}
	if got := remoteIP("10.0.0.1:1", []string{"192.0.2.7"}, nil); got != "10.0.0.1" {
		t.Errorf("remoteIP without trusted proxies = %q, want the peer", got)
	}
}

func TestTraceID(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	const good = "00-" + id + "-00f067aa0ba902b7-01"
	for _, tt := range []struct {
		values []string
		want   string
	}{
		{nil, ""}, {[]string{""}, ""}, {[]string{good}, id}, {[]string{good, good}, ""},
		{[]string{"00-" + id + "-00f067aa0ba902b7-00"}, id},
		{[]string{"cc-" + id + "-00f067aa0ba902b7-01"}, id},
		{[]string{"cc-" + id + "-00f067aa0ba902b7-01-what-the-future"}, id},
		{[]string{"cc-" + id + "-00f067aa0ba902b7-01.what"}, ""},
		{[]string{good + "-more"}, ""}, {[]string{good + "-"}, ""}, {[]string{"ff" + good[2:]}, ""},
		{[]string{strings.ToUpper(good)}, ""}, {[]string{strings.ReplaceAll(good, "-", "_")}, ""},
		{[]string{"00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01"}, ""},
		{[]string{"00-" + id + "-0000000000000000-01"}, ""},
		{[]string{good[:54]}, ""}, {[]string{" " + good}, ""}, {[]string{"0g" + good[2:]}, ""},
		{[]string{"00-" + id[:31] + "g-00f067aa0ba902b7-01"}, ""}, {[]string{"00-" + id + "-00f067aa0ba902b7-0x"}, ""},
	} {
		if got := traceID(tt.values); got != tt.want {
			t.Errorf("traceID(%q) = %q, want %q", tt.values, got, tt.want)
		}
	}
}

// Who asked, from where, with what: the log has it of every request that says it.
func TestAuditLog(t *testing.T) {
	ts := newTestServer(t, map[string]string{"TRUSTED_PROXIES": "127.0.0.0/8"})
	header := func(claims map[string]any) http.Header {
		return http.Header{"X-Forwarded-For": {"203.0.113.9, 192.0.2.7"},
			"Traceparent":   {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
			"Authorization": {"Bearer " + testkit.Sign(t, testkit.EC(), testkit.With(claims))}}
	}
	operate, err := os.ReadFile("docs/operate.md")
	testkit.Must(t, err)
	const jti = "t-1\u202e\x00"
	for _, tt := range []struct {
		what   string
		claims map[string]any
		body   string
		want   map[string]any // nil: absent
	}{
		{"good", map[string]any{"jti": "t-1"}, goodBody, map[string]any{"jti": "t-1", "kid": "ec", "client_id": "acme"}},
		{"odd jti", map[string]any{"jti": jti}, goodBody, map[string]any{"jti": `t-1\u202e\x00`, "kid": "ec"}},
		{"long jti", map[string]any{"jti": strings.Repeat("x", 99)}, goodBody,
			map[string]any{"jti": strings.Repeat("x", 64)}},
		{"no jti", nil, goodBody, map[string]any{"jti": nil, "kid": "ec"}},
		{"bad body", map[string]any{"jti": "t-2"}, "{", map[string]any{"jti": "t-2", "kid": "ec", "client_id": "acme"}},
		{"no scope", map[string]any{"jti": "t-3", "scope": "x"}, goodBody, map[string]any{"jti": "t-3", "kid": "ec"}},
		{"bad token", map[string]any{"jti": "t-4", "exp": 1}, goodBody,
			map[string]any{"jti": nil, "kid": nil, "client_id": nil, "cause": "expired"}},
	} {
		for _, seen := range []string{"first", "remembered"} {
			line := ts.logged(t, ts.do(t, "POST", "/auth/session", header(tt.claims), strings.NewReader(tt.body)))
			for name := range line {
				if !strings.Contains(string(operate), "`"+name+"`") {
					t.Errorf("docs/operate.md does not have the log field %s", name)
				}
			}
			maps.Copy(tt.want, map[string]any{"remote_ip": "192.0.2.7", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"})
			for name, want := range tt.want {
				if line[name] != want {
					t.Errorf("%s, %s: %s = %v, want %v", tt.what, seen, name, line[name], want)
				}
			}
		}
	}
}

func TestClientMetrics(t *testing.T) {
	redis := redistest.StartProxy(t, redistest.Addr(t), redistest.Pass)
	file := filepath.Join(t.TempDir(), "clients.json")
	writeClients(t, file, `{"clients": {"acme": {"sessions_per_minute": 12}, "odd\"é\n": {}, "*": {"redirect_uris": []}}}`)
	ts := newTestServer(t, map[string]string{"CLIENTS_FILE": file, "REDIS_URL": "redis://" + redis.Addr})
	for range 3 { // one more than at once
		ts.post(t, ts.tokenOf(t, "acme"), goodBody)
	}
	ts.post(t, ts.tokenOf(t, "acme"), `{}`).WantError(t, 400, "bad_request")
	weak := testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"scope": "x"}))
	ts.post(t, weak, goodBody).WantError(t, 403, "forbidden")
	ts.post(t, "a.b.c", goodBody).WantError(t, 401, "unauthorized")
	ts.wantSession(t, ts.post(t, ts.tokenOf(t, "odd\"é\n"), goodBody))
	for _, other := range []string{"SECRET-1", "SECRET-2", "*"} {
		ts.wantSession(t, ts.post(t, ts.tokenOf(t, other), goodBody))
	}
	redis.Set(redistest.ClockAhead(time.Hour))
	ts.post(t, ts.tokenOf(t, "SECRET-3"), goodBody).WantError(t, 503, "unavailable")
	text := ts.scrape(t)
	for _, want := range []string{
		`authsession_client_requests_total{client="acme",outcome="created"} 2`,
		`authsession_client_requests_total{client="acme",outcome="refused"} 2`,
		`authsession_client_requests_total{client="acme",outcome="limited"} 1`,
		`authsession_client_requests_total{client="odd\"é\n",outcome="created"} 1`,
		`authsession_client_requests_total{client="other",outcome="created"} 3`,
		`authsession_client_requests_total{client="other",outcome="failed"} 1`,
		`authsession_clients_file_last_load_success 1`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("/metrics has no line %s", want)
		}
	}
	const read = "\nauthsession_clients_file_last_success_timestamp_seconds 1."
	if !strings.Contains(text, read) || strings.Contains(text, "SECRET") {
		t.Error("/metrics does not say when the file was read, or has a client that is not listed")
	}
	operate, err := os.ReadFile("docs/operate.md")
	testkit.Must(t, err)
	for _, match := range regexp.MustCompile(`(?m)^# TYPE authsession_(\S+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(string(operate), "`"+match[1]+"`") {
			t.Errorf("docs/operate.md does not have the metric %s", match[1])
		}
	}
	for _, name := range []string{"authsession_client", "acme"} {
		if plain := newTestServer(t, nil); strings.Contains(plain.scrape(t), name) {
			t.Errorf("/metrics without CLIENTS_FILE has %s", name)
		}
	}
}

// BenchmarkClients is BenchmarkRequest with 1,000 clients in a file.
func BenchmarkClients(b *testing.B) {
	var all []string
	for i := range 1000 {
		all = append(all, fmt.Sprintf(`"client-%d": {"redirect_uris": ["https://partner-%d.example.com/cb"]}`, i, i))
	}
	all = append(all, `"acme": {"redirect_uris": ["https://acme.com/cancel", "https://acme.com/success"],
		"institution_ids": ["10"], "session_ttl": "2h", "sessions_per_minute": 1000000}`)
	file := filepath.Join(b.TempDir(), "clients.json")
	writeClients(b, file, `{"clients": {`+strings.Join(all, ",\n")+`}}`)
	benchmarkRequest(b, map[string]string{"CLIENTS_FILE": file})
}
