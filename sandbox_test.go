package main

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testSandbox is a service, and the sandbox over its Redis.
type testSandbox struct {
	*testServer
	pages string // the sandbox's http://127.0.0.1:port
}

func newTestSandbox(t testing.TB) *testSandbox {
	t.Helper()
	ts := newTestServer(t, nil)
	pages := httptest.NewServer(newSandbox(ts.store, ts.server.log).routes())
	t.Cleanup(pages.Close)
	return &testSandbox{ts, pages.URL}
}

// session makes a session by POST /auth/session; it returns the secret and the record.
func (ts *testSandbox) session(t testing.TB, body string) (string, session) {
	t.Helper()
	a := ts.post(t, ts.token(t), body)
	record := ts.wantSession(t, a)
	var s sessionAnswer
	a.decode(t, &s)
	return s.SessionID, record
}

// get opens the page for a session.
func (ts *testSandbox) get(t testing.TB, secret string) answer {
	t.Helper()
	response, err := testClient.Get(ts.pages + "/?sess_id=" + url.QueryEscape(secret))
	return readPage(t, response, err)
}

// submit sends the page's form; more is in it, or replaces what is.
func (ts *testSandbox) submit(t testing.TB, secret string, more url.Values) answer {
	t.Helper()
	form := url.Values{"sess_id": {secret}, "token": {ts.formToken(t, secret)}, "action": {"approve"}, "framed": {""}}
	for name, values := range more {
		form[name] = values
	}
	response, err := testClient.PostForm(ts.pages, form)
	return readPage(t, response, err)
}

// formToken is the token in the page for a session, or "" where the page has none.
func (ts *testSandbox) formToken(t testing.TB, secret string) string {
	t.Helper()
	match := regexp.MustCompile(`name="token" value="([0-9a-f]{64})"`).FindSubmatch(ts.get(t, secret).body)
	if match == nil {
		return ""
	}
	return string(match[1])
}

// readPage reads an answer and checks what every one of them has.
func readPage(t testing.TB, response *http.Response, err error) answer {
	t.Helper()
	must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	for name, want := range map[string]string{
		"Cache-Control":           "^no-store$",
		"Content-Security-Policy": `^default-src 'none'; base-uri 'none'; script-src 'nonce-\w{26}'; style-src 'nonce-\w{26}'$`,
		"Content-Type":            "^text/html; charset=utf-8$",
		"Referrer-Policy":         "^no-referrer$",
		"X-Content-Type-Options":  "^nosniff$",
	} {
		if got := response.Header.Get(name); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s = %q, want %s", name, got, want)
		}
	}
	return answer{response.StatusCode, response.Header, body}
}

// message is what the page posts to the page that frames it, and to which origin.
func (a answer) message(t testing.TB) (message map[string]any, target string) {
	t.Helper()
	match := regexp.MustCompile(`data-message="([^"]*)" data-target="([^"]*)"`).FindStringSubmatch(string(a.body))
	if match == nil {
		t.Fatalf("a page without data-message: %s", a.body)
	}
	if match[1] != "" {
		must(t, json.Unmarshal([]byte(html.UnescapeString(match[1])), &message))
	}
	return message, html.UnescapeString(match[2])
}

func TestSandboxShows(t *testing.T) {
	ts := newTestSandbox(t)
	secret, record := ts.session(t, `{"end_user_id":"<i>\"&'$title","institution_id":"<b>${client}","redirect_uri":"https://acme.com/a"}`)
	var nonces []string
	for range 2 { // people reload
		a := ts.get(t, secret)
		page := string(a.body)
		if a.status != 200 {
			t.Fatalf("GET of the page = %d %s, want 200", a.status, page)
		}
		for _, want := range []string{
			"<dd>acme</dd>", "<dd>&lt;i&gt;&#34;&amp;&#39;$title</dd>", "<dd>&lt;b&gt;${client}</dd>", // each value once, and escaped
			"Sandbox.", "29 min 5", `value="approve"`, `value="cancel"`, time.Unix(record.ExpiresAt, 0).UTC().Format("15:04:05 UTC"),
		} {
			if !strings.Contains(page, want) {
				t.Errorf("the page does not have %q: %s", want, page)
			}
		}
		if strings.Contains(page, "<i>") || strings.Contains(page, "<b>") {
			t.Error("the page has a value unescaped")
		}
		nonce := regexp.MustCompile(`nonce="(\w+)"`).FindStringSubmatch(page)[1]
		if strings.Count(a.header.Get("Content-Security-Policy"), "'nonce-"+nonce+"'") != 2 {
			t.Errorf("nonce %s is not that of %s", nonce, a.header.Get("Content-Security-Policy"))
		}
		nonces = append(nonces, nonce)
		if message, _ := a.message(t); message != nil {
			t.Errorf("an open page posts %v", message)
		}
	}
	if nonces[0] == nonces[1] {
		t.Error("two answers have one nonce")
	}
	if len(ts.sessionKeys(t)) != 1 {
		t.Error("showing the page has ended the session")
	}
	if page := string(ts.get(t, "nobody").body); strings.Contains(page, "$") || strings.Contains(page, "<form") {
		t.Errorf("the page without a session is %s", page)
	}
}

// The template has the variables that write fills in, and no others: a $ in its script or
// style would be taken for one.
func TestSandboxTemplate(t *testing.T) {
	var names []string
	os.Expand(sandboxHTML, func(name string) string { names = append(names, name); return "" })
	slices.Sort(names)
	want := []string{"client", "expires", "institution", "left", "message", "nonce", "seconds", "secret", "target", "text", "title", "token", "user"}
	if got := slices.Compact(names); !slices.Equal(got, want) {
		t.Errorf("sandbox.html has the variables %q, want %q", got, want)
	}
}

func TestSandboxDecides(t *testing.T) {
	const success, cancel = `"redirect_uri":"https://acme.com:8443/s?x=%41&x=+"`, `"cancel_uri":"http://localhost:3000/c?"`
	for _, test := range []struct {
		name, members, action string
		framed                bool
		location              string // up to our own parameters; "": a page
		target                string // of the message, where there is a page
	}{
		{"approve", success + "," + cancel, "approve", false, "https://acme.com:8443/s?x=%41&x=+&", ""},
		{"cancel", success + "," + cancel, "cancel", false, "http://localhost:3000/c?", ""},
		{"an app", `"redirect_uri":"com.example.app:/done"`, "approve", false, "com.example.app:/done?", ""},
		{"an app with a query", `"redirect_uri":"com.example.app://done/?q&"`, "approve", false, "com.example.app://done/?q&", ""},
		{"approve without a URI", "", "approve", false, "", "*"},
		{"cancel without a URI", "", "cancel", false, "", "*"},
		{"approve with the other URI", cancel, "approve", false, "", "http://localhost:3000"},
		{"cancel with the other URI", success, "cancel", false, "", "https://acme.com:8443"},
		{"approve framed", success + "," + cancel, "approve", true, "", "https://acme.com:8443"},
		{"cancel framed", success + "," + cancel, "cancel", true, "", "http://localhost:3000"},
		{"IPv6 framed", `"redirect_uri":"http://[::1]:80/"`, "approve", true, "", "http://[::1]:80"},
		{"an app framed", `"redirect_uri":"com.example.app://h/"`, "approve", true, "", "*"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ts := newTestSandbox(t)
			body := `{"end_user_id":"eu_1"`
			if test.members != "" {
				body += "," + test.members
			}
			secret, record := ts.session(t, body+"}")
			more := url.Values{"action": {test.action}}
			if test.framed {
				more.Set("framed", "1")
			}
			a := ts.submit(t, secret, more)
			ts.wantNoKeys(t)
			location := a.header.Get("Location")
			var got map[string]string
			if test.location != "" {
				own, found := strings.CutPrefix(location, test.location)
				if a.status != 303 || !found {
					t.Fatalf("answer = %d with Location %q, want 303 to %s…", a.status, location, test.location)
				}
				values, err := url.ParseQuery(own)
				must(t, err)
				got = map[string]string{}
				for name := range values {
					got[name] = values.Get(name)
				}
				if test.action == "cancel" {
					wantFailure(t, got, "error", "error_type", "error_id", "error_description", "error_uri")
				} else if len(got) != 1 || len(got["consent_id"]) != 26 {
					t.Errorf("parameters %v, want a consent_id", got)
				}
				return
			}
			if a.status != 200 || location != "" {
				t.Fatalf("answer = %d with Location %q, want a page", a.status, location)
			}
			message, target := a.message(t)
			if target != test.target {
				t.Errorf("the message goes to %q, want %q", target, test.target)
			}
			if message["isCompleted"] != (test.action == "approve") {
				t.Errorf("message %v after %s", message, test.action)
			}
			delete(message, "isCompleted")
			got = map[string]string{}
			for name, value := range message {
				got[name] = value.(string)
			}
			if test.action == "cancel" {
				wantFailure(t, got, "error", "errorType", "errorID", "errorDescription", "errorURI")
				return
			}
			want := ""
			if record.RedirectURI != "" {
				want = addQuery(record.RedirectURI, "consent_id="+got["consentID"])
			}
			if len(got) != 2 || len(got["consentID"]) != 26 || got["redirectURL"] != want {
				t.Errorf("message %v, want a consentID and redirectURL %q", message, want)
			}
		})
	}
}

// wantFailure checks that got has these names and no more, and what a cancelled flow says.
func wantFailure(t *testing.T, got map[string]string, code, kind, id, description, uri string) {
	t.Helper()
	if len(got) != 5 || got[code] != "access_denied" || got[kind] != "CONSENT_ENDUSER_DENIED" || len(got[id]) != 26 ||
		got[description] == "" || !strings.HasPrefix(got[uri], "https://") {
		t.Errorf("failure %v", got)
	}
}

func TestAddQuery(t *testing.T) {
	for _, test := range []struct{ uri, want string }{
		{"", ""},
		{"https://acme.com", "https://acme.com?a=b"},
		{"https://acme.com/", "https://acme.com/?a=b"},
		{"https://acme.com/?", "https://acme.com/?&a=b"},
		{"https://acme.com/?x", "https://acme.com/?x&a=b"},
		{"https://acme.com/?x=%2f+&", "https://acme.com/?x=%2f+&&a=b"},
		{"https://acme.com/?x=1?", "https://acme.com/?x=1?&a=b"},
		{"com.example.app:/", "com.example.app:/?a=b"},
		{"com.example.app://?", "com.example.app://?&a=b"},
	} {
		if got := addQuery(test.uri, "a=b"); got != test.want {
			t.Errorf("addQuery(%q) = %q, want %q", test.uri, got, test.want)
		}
	}
}

// Of many who approve or cancel at once one succeeds.
func TestSandboxDecidesOnce(t *testing.T) {
	ts := newTestSandbox(t)
	secret, _ := ts.session(t, `{"end_user_id":"eu_1","redirect_uri":"https://acme.com/","cancel_uri":"https://acme.com/"}`)
	token := ts.formToken(t, secret)
	statuses := make(chan int, 50)
	var tabs sync.WaitGroup
	for i := range cap(statuses) {
		action := []string{"approve", "cancel"}[i%2]
		tabs.Go(func() {
			response, err := testClient.PostForm(ts.pages, url.Values{"sess_id": {secret}, "token": {token}, "action": {action}})
			if err != nil {
				statuses <- 0
				return
			}
			response.Body.Close()
			statuses <- response.StatusCode
		})
	}
	tabs.Wait()
	close(statuses)
	count := map[int]int{}
	for status := range statuses {
		count[status]++
	}
	if count[303] != 1 || count[410] != cap(statuses)-1 {
		t.Errorf("statuses %v, want one 303 and else 410", count)
	}
}

func TestSandboxRefuses(t *testing.T) {
	ts := newTestSandbox(t)
	secret, record := ts.session(t, goodBody)
	other, _ := ts.session(t, goodBody)
	token := ts.formToken(t, secret)
	for name, form := range map[string]url.Values{
		"no form":              {},
		"no token":             {"sess_id": {secret}, "action": {"approve"}},
		"an empty token":       {"sess_id": {secret}, "action": {"approve"}, "token": {""}},
		"a longer token":       {"sess_id": {secret}, "action": {"approve"}, "token": {token + "0"}},
		"another's token":      {"sess_id": {secret}, "action": {"approve"}, "token": {ts.formToken(t, other)}},
		"another's session":    {"sess_id": {other}, "action": {"approve"}, "token": {token}},
		"a body over the most": {"sess_id": {secret}, "action": {"approve"}, "token": {token}, "x": {strings.Repeat("x", maxBody)}},
	} {
		response, err := testClient.PostForm(ts.pages, form)
		if a := readPage(t, response, err); a.status != 403 {
			t.Errorf("%s: %d, want 403", name, a.status)
		}
	}
	inQuery := "/?" + url.Values{"sess_id": {secret}, "token": {token}, "action": {"approve"}}.Encode()
	response, err := testClient.PostForm(ts.pages+inQuery, nil)
	if a := readPage(t, response, err); a.status != 403 {
		t.Errorf("a form in the query: %d, want 403", a.status)
	}
	for _, action := range []string{"", "Approve", "delete"} {
		if a := ts.submit(t, secret, url.Values{"action": {action}}); a.status != 400 {
			t.Errorf("action %q: %d, want 400", action, a.status)
		}
	}
	if len(ts.sessionKeys(t)) != 2 {
		t.Fatal("a refusal has ended a session")
	}
	for path, want := range map[string]int{"/x?sess_id=" + secret: 404, "/auth/session": 404} {
		if response, err := testClient.Get(ts.pages + path); err != nil || response.StatusCode != want {
			t.Errorf("GET %s = %v, %v, want %d", path, response, err, want)
		}
	}

	// Never there, expired (as Redis tells it) and used are one answer, but for 410 where
	// there was a form.
	key := sessionKey(ts.keyPrefix, secret)
	must(t, ts.redis.ExpireAt(t.Context(), key, time.Unix(1, 0)).Err())
	if a := ts.submit(t, other, nil); a.status != 200 {
		t.Fatalf("approving = %d %s, want 200", a.status, a.body)
	}
	bodies := map[string]bool{}
	for _, gone := range []string{secret, other, "", "nobody", strings.Repeat("x", 8<<10), "\x00é"} {
		a := ts.get(t, gone)
		message, target := a.message(t)
		if a.status != 404 || message["isCompleted"] != false || message["errorType"] != "LINK_INVALID_SESSION" || len(message) != 6 || target != "*" {
			t.Errorf("GET of the page = %d posting %v to %q, want 404 and LINK_INVALID_SESSION", a.status, message, target)
		}
		_, text, _ := strings.Cut(string(a.body), "<main>")
		text, _, _ = strings.Cut(text, "</main>")
		bodies[text] = true
	}
	if len(bodies) != 1 {
		t.Errorf("absent sessions have different pages: %v", bodies)
	}
	a := ts.submit(t, secret, url.Values{"token": {token}})
	if message, _ := a.message(t); a.status != 410 || message["errorType"] != "LINK_INVALID_SESSION" {
		t.Errorf("approving an expired session = %d %v, want 410 and LINK_INVALID_SESSION", a.status, message)
	}
	for name, text := range map[string]string{"a secret": secret, "another": other, "a form's token": token} {
		if strings.Contains(ts.log.String(), text) {
			t.Errorf("the log holds %s", name)
		}
	}
	if line := ts.log.line(t, "msg", "sandbox decision"); line["action"] != "approve" || line["session"] == record.ID {
		t.Errorf("log line %v", line)
	}
}

// Redis down is no session's fault: 503, nothing posted, and no promise broken.
func TestSandboxWithoutRedis(t *testing.T) {
	ts := newTestServer(t, map[string]string{"REDIS_URL": "redis://127.0.0.1:" + freePort()})
	pages := httptest.NewServer(newSandbox(ts.store, ts.server.log).routes())
	defer pages.Close()
	response, err := testClient.Get(pages.URL + "/?sess_id=a")
	a := readPage(t, response, err)
	if message, _ := a.message(t); a.status != 503 || message != nil {
		t.Errorf("GET of the page = %d posting %v, want 503 and nothing", a.status, message)
	}
}

// listeners is how many sockets a process of ours listens on; -1 where /proc does not tell.
func (s *service) listeners(t testing.TB) int {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	var table strings.Builder
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		data, err := os.ReadFile(proc + name)
		if os.IsNotExist(err) {
			continue
		}
		must(t, err)
		table.Write(data)
	}
	if table.Len() == 0 {
		return -1
	}
	files, err := filepath.Glob(proc + "fd/*")
	must(t, err)
	count := 0
	for _, file := range files {
		link, _ := os.Readlink(file)
		inode, isSocket := strings.CutPrefix(link, "socket:[")
		if !isSocket {
			continue
		}
		for line := range strings.Lines(table.String()) {
			fields := strings.Fields(line)
			if fields[3] == "0A" && fields[9] == strings.TrimSuffix(inode, "]") { // LISTEN
				count++
			}
		}
	}
	return count
}

// The sandbox is there in -dev where no AUTH_URL is set, and never else: the process then
// listens on nothing but its own address (and the embedded Redis's).
func TestProcessSandbox(t *testing.T) {
	for _, test := range []struct {
		name    string
		env     map[string]string
		args    []string
		listens int
		page    bool
	}{
		{"-dev", map[string]string{}, []string{"-dev"}, 3, true},
		{"-dev with AUTH_URL", map[string]string{"AUTH_URL": "https://consent.example/"}, []string{"-dev"}, 2, false},
		{"production", serviceEnv(t, testRedisAddr(t)), nil, 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startService(t, test.env, test.args...)
			if got := s.listeners(t); got != test.listens && got >= 0 {
				t.Errorf("it listens on %d sockets, want %d", got, test.listens)
			}
			// A good session's page is not on the service's own address, in any mode.
			token := ecKey().sign(t, goodClaims())
			if test.args != nil {
				token = regexp.MustCompile(`Bearer ([^']+)`).FindStringSubmatch(s.stdout.String())[1]
			}
			waitFor(t, 5*time.Second, "readiness", func() bool { status, _ := s.get("/readyz"); return status == 200 })
			status, body := s.post(token)
			var a sessionAnswer
			if status != 200 || json.Unmarshal(body, &a) != nil {
				t.Fatalf("POST /auth/session = %d %s, want 200", status, body)
			}
			if status, body := s.get("/?sess_id=" + a.SessionID); status != 404 || !strings.Contains(body, "not_found") {
				t.Errorf("the service's own address answers %d %s, want 404", status, body)
			}
			page := regexp.MustCompile(`Consent page: a sandbox, (http://127\.0\.0\.1:\d+/)`).FindStringSubmatch(s.stdout.String())
			if (page != nil) != test.page {
				t.Fatalf("it prints %q", s.stdout.String())
			}
			if page == nil {
				return
			}
			if a.AuthURL != page[1]+"?sess_id="+a.SessionID {
				t.Errorf("auth_url %s is not of %s", a.AuthURL, page[1])
			}
			response, err := testClient.Get(a.AuthURL)
			if shown := readPage(t, response, err); shown.status != 200 || !strings.Contains(string(shown.body), "<dd>eu_1</dd>") {
				t.Errorf("GET auth_url = %d %s", shown.status, shown.body)
			}
			if strings.Contains(s.log.String(), a.SessionID) {
				t.Error("the log holds the session_id")
			}
		})
	}
}

// The page listens on the port after the service's, or on another where that is taken,
// and on this machine alone.
func TestListenAfter(t *testing.T) {
	for _, addr := range []string{":0", "127.0.0.1:65535", "nonsense", "127.0.0.1:" + freePort()} {
		first, err := listenAfter(addr)
		must(t, err)
		defer first.Close()
		second, err := listenAfter(addr)
		must(t, err)
		defer second.Close()
		for _, l := range []string{first.Addr().String(), second.Addr().String()} {
			if !strings.HasPrefix(l, "127.0.0.1:") {
				t.Errorf("listenAfter(%q) listens on %s", addr, l)
			}
		}
	}
}
