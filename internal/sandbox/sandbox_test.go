package sandbox

import (
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/seal"
	"authsession/internal/testkit"
)

func TestShow(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	expiresAt := time.Now().Add(30 * time.Minute).Unix()
	secret, _ := p.session(t, map[string]any{
		"end_user_id": `<i>"&'$title`, "institution_id": "<b>${client}", "redirect_uri": "https://acme.com/a",
		"expires_at": expiresAt, "permissions": []string{"accounts", "<u>balances"}, "arrangement_id": "arr_<s>",
	})
	var nonces []string
	for range 2 { // people reload
		a := p.get(t, secret)
		page := string(a.Body)
		if a.Status != 200 {
			t.Fatalf("GET of the page = %d %s, want 200", a.Status, page)
		}
		for _, want := range []string{ // each value once, and escaped
			"<dd>acme</dd>", "<dd>&lt;i&gt;&#34;&amp;&#39;$title</dd>", "<dd>&lt;b&gt;${client}</dd>",
			"<dd>accounts, &lt;u&gt;balances</dd>", "<dd>arr_&lt;s&gt;</dd>",
			"Sandbox.", "29 min 5", `value="approve"`, `value="cancel"`,
			time.Unix(expiresAt, 0).UTC().Format("15:04:05 UTC"),
		} {
			if !strings.Contains(page, want) {
				t.Errorf("the page does not have %q: %s", want, page)
			}
		}
		if regexp.MustCompile("<[ibus]>").MatchString(page) {
			t.Error("the page has a value unescaped")
		}
		nonce := regexp.MustCompile(`nonce="(\w+)"`).FindStringSubmatch(page)[1]
		policy := a.Header.Get("Content-Security-Policy")
		if strings.Count(policy, "'nonce-"+nonce+"'") != 2 {
			t.Errorf("nonce %s is not that of %s", nonce, policy)
		}
		nonces = append(nonces, nonce)
		if message, _, _ := readMessage(t, a); message != nil {
			t.Errorf("an open page posts %v", message)
		}
	}
	if nonces[0] == nonces[1] {
		t.Error("two answers have one nonce")
	}
	if p.sessions(t) != 1 {
		t.Error("showing the page has ended the session")
	}
	if page := string(p.get(t, "nobody").Body); strings.Contains(page, "$") || strings.Contains(page, "<form") {
		t.Errorf("the page without a session is %s", page)
	}
}

// An empty list is nothing, and no list leaves it to the page.
func TestShowPermissions(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	for want, members := range map[string]map[string]any{
		"<dd>nothing</dd>":                      {"permissions": []string{}},
		"<dd>all that the app may ask for</dd>": {},
	} {
		secret, _ := p.session(t, members)
		if page := string(p.get(t, secret).Body); !strings.Contains(page, want) {
			t.Errorf("the page of %v does not have %s: %s", members, want, page)
		}
	}
}

// The template has the variables that write fills in, and no others: a $ in its script or style would be taken for one.
func TestTemplate(t *testing.T) {
	var names []string
	os.Expand(pageHTML, func(name string) string { names = append(names, name); return "" })
	slices.Sort(names)
	want := []string{"answer", "arrangement", "auth", "client", "consent_id", "error", "error_description", "error_id",
		"error_type", "error_uri", "expires", "host", "institution", "left", "message", "next", "nonce", "own",
		"permissions", "request", "seconds", "secret", "text", "title", "token", "user"}
	if got := slices.Compact(names); !slices.Equal(got, want) {
		t.Errorf("sandbox.html has the variables %q, want %q", got, want)
	}
}

func TestDecide(t *testing.T) {
	const success, cancel = "https://acme.com:8443/s?x=%41&x=+", "http://localhost:3000/c?"
	for _, test := range []struct {
		name, redirect, cancel, action, host string
		location                             string // up to our own parameters; "": a page
	}{
		{"approve", success, cancel, "approve", "", "https://acme.com:8443/s?x=%41&x=+&"},
		{"cancel", success, cancel, "cancel", "", "http://localhost:3000/c?"},
		{"an app", "com.example.app:/done", "", "approve", "", "com.example.app:/done?"},
		{"an app with a query", "com.example.app://done/?q&", "", "approve", "", "com.example.app://done/?q&"},
		{"approve without a URI", "", "", "approve", "", ""},
		{"cancel without a URI", "", "", "cancel", "", ""},
		{"approve without its URI", "", cancel, "approve", "", ""},
		{"cancel without its URI", success, "", "cancel", "", ""},
		{"approve framed", success, cancel, "approve", "http://localhost:5000", ""},
		{"cancel framed", success, cancel, "cancel", "https://partner.example", ""},
		{"approve framed by nobody knows", success, cancel, "approve", "*", ""},
		{"approve framed without a URI", "", "", "approve", "*", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newTestPage(t, redistest.Addr(t))
			members := map[string]any{}
			if test.redirect != "" {
				members["redirect_uri"] = test.redirect
			}
			if test.cancel != "" {
				members["cancel_uri"] = test.cancel
			}
			secret, id := p.session(t, members)
			a := p.submit(t, secret, url.Values{"action": {test.action}, "host": {test.host}})
			if n := p.sessions(t); n != 0 {
				t.Errorf("%d sessions are there after the decision", n)
			}
			location := a.Header.Get("Location")
			if test.location != "" {
				own, found := strings.CutPrefix(location, test.location)
				if a.Status != 303 || !found {
					t.Fatalf("answer = %d with Location %q, want 303 to %s…", a.Status, location, test.location)
				}
				wantQuery(t, own, test.action, id)
				return
			}
			if a.Status != 200 || location != "" {
				t.Fatalf("answer = %d with Location %q, want a page", a.Status, location)
			}
			message, host, next := readMessage(t, a)
			if host != test.host {
				t.Errorf("the message goes to %q, want %q", host, test.host)
			}
			// A popup goes on to where a redirect would.
			uri := map[string]string{"approve": test.redirect, "cancel": test.cancel}[test.action]
			if uri == "" && next != "" {
				t.Errorf("the page goes on to %q, want nowhere", next)
			} else if uri != "" {
				own, found := strings.CutPrefix(next, uri)
				if !found {
					t.Fatalf("the page goes on to %q, want %s…", next, uri)
				}
				wantQuery(t, own[1:], test.action, id)
			}
			if test.action == "cancel" {
				wantFailure(t, message, "access_denied", "CONSENT_ENDUSER_DENIED", id)
				return
			}
			want := map[string]any{"isCompleted": true, "consentID": message["consentID"]}
			if next != "" {
				want["redirectURL"] = next
			}
			if consent, _ := message["consentID"].(string); len(consent) != 26 || !maps.Equal(message, want) {
				t.Errorf("message %v, want %v", message, want)
			}
		})
	}
}

// wantQuery checks what an outcome adds to a URI.
func wantQuery(t *testing.T, query, action, id string) {
	t.Helper()
	values, err := url.ParseQuery(query)
	testkit.Must(t, err)
	if action == "approve" {
		if len(values) != 1 || len(values.Get("consent_id")) != 26 {
			t.Errorf("parameters %v, want a consent_id", values)
		}
		return
	}
	if len(values) != 5 || values.Get("error") != "access_denied" || values.Get("error_id") != id ||
		values.Get("error_type") != "CONSENT_ENDUSER_DENIED" || values.Get("error_description") == "" ||
		!strings.HasPrefix(values.Get("error_uri"), "https://") {
		t.Errorf("parameters %v, want a failure with the session's id %s", values, id)
	}
}

// wantFailure checks a message that says why there is no consent; id is "" where there is no session to name.
func wantFailure(t *testing.T, got map[string]any, code, kind, id string) {
	t.Helper()
	uri, _ := got["errorURI"].(string)
	if len(got) != 6 || got["isCompleted"] != false || got["error"] != code || got["errorType"] != kind ||
		got["errorID"] == "" || id != "" && got["errorID"] != id || got["errorDescription"] == "" ||
		!strings.HasPrefix(uri, "https://") {
		t.Errorf("message %v, want %s, %s and id %s", got, code, kind, id)
	}
}

// A sealed session is shown and decided as any other.
func TestSealed(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	secret, _ := p.session(t, map[string]any{"redirect_uri": "https://acme.com/"})
	plain, err := p.redis.Get(t.Context(), p.key(secret)).Bytes()
	testkit.Must(t, err)
	p.write(t, secret, seal.Seal(secret, plain))
	if a := p.get(t, secret); a.Status != 200 || !strings.Contains(string(a.Body), "<dd>eu_1</dd>") {
		t.Errorf("GET of the page = %d %s, want that of eu_1", a.Status, a.Body)
	}
	if a := p.submit(t, secret, nil); !strings.HasPrefix(a.Header.Get("Location"), "https://acme.com/?consent_id=") {
		t.Errorf("Approve = %d to %q", a.Status, a.Header.Get("Location"))
	}
}

// A renewal is no new consent.
func TestRenew(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	secret, _ := p.session(t, map[string]any{"redirect_uri": "https://acme.com/", "arrangement_id": "arr_1&<"})
	a := p.submit(t, secret, nil)
	if got := a.Header.Get("Location"); got != "https://acme.com/?consent_id=arr_1%26%3C" {
		t.Errorf("a renewal goes to %q, want the arrangement's id as consent_id", got)
	}
}

// The cookie that binds a form to a browser is kept from scripts, and from requests that other sites start. In a frame
// such a cookie is never sent, so there it is one that other sites' frames have for themselves.
func TestCookie(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	secret, _ := p.session(t, nil)
	for dest, want := range map[string]string{
		"":         "Path=/; HttpOnly; SameSite=Lax",
		"document": "Path=/; HttpOnly; SameSite=Lax",
		"iframe":   "Path=/; HttpOnly; Secure; SameSite=None; Partitioned",
	} {
		r, err := http.NewRequest("GET", p.url+"/?sess_id="+secret, nil)
		testkit.Must(t, err)
		r.Header.Set("Sec-Fetch-Dest", dest)
		response, err := testkit.Client.Do(r)
		a := readPage(t, response, err)
		value, attributes, _ := strings.Cut(a.Header.Get("Set-Cookie"), "; ")
		if attributes != want || !regexp.MustCompile(`^authsession-sandbox=\w{26}$`).MatchString(value) {
			t.Errorf("Sec-Fetch-Dest %q: Set-Cookie is %q with %q, want %q", dest, value, attributes, want)
		}
		r.Header.Set("Cookie", value)
		response, err = testkit.Client.Do(r)
		if again := readPage(t, response, err).Header.Get("Set-Cookie"); again != "" {
			t.Errorf("a browser that has its cookie gets %q", again)
		}
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
func TestDecideOnce(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	secret, _ := p.session(t, map[string]any{"redirect_uri": "https://acme.com/", "cancel_uri": "https://acme.com/"})
	token := p.formToken(t, secret)
	statuses := make(chan int, 50)
	var tabs sync.WaitGroup
	for i := range cap(statuses) {
		form := url.Values{"sess_id": {secret}, "token": {token}, "action": {[]string{"approve", "cancel"}[i%2]}}
		tabs.Go(func() {
			response, err := p.client.PostForm(p.url, form)
			if err != nil {
				statuses <- 0
				return
			}
			_ = response.Body.Close()
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

// A form that the page did not make, or that says nothing, decides nothing.
func TestDecideRefuses(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	secret, _ := p.session(t, nil)
	other, _ := p.session(t, nil)
	token := p.formToken(t, secret)
	long := strings.Repeat("x", maxForm)
	for name, form := range map[string]url.Values{
		"no form":              {},
		"no token":             {"sess_id": {secret}, "action": {"approve"}},
		"an empty token":       {"sess_id": {secret}, "action": {"approve"}, "token": {""}},
		"a longer token":       {"sess_id": {secret}, "action": {"approve"}, "token": {token + "0"}},
		"another's token":      {"sess_id": {secret}, "action": {"approve"}, "token": {p.formToken(t, other)}},
		"another's session":    {"sess_id": {other}, "action": {"approve"}, "token": {token}},
		"a body over the most": {"sess_id": {secret}, "action": {"approve"}, "token": {token}, "x": {long}},
	} {
		if a := p.post(t, form); a.Status != 403 {
			t.Errorf("%s: %d, want 403", name, a.Status)
		}
	}
	inQuery := "/?" + url.Values{"sess_id": {secret}, "token": {token}, "action": {"approve"}}.Encode()
	response, err := p.client.PostForm(p.url+inQuery, nil)
	if a := readPage(t, response, err); a.Status != 403 {
		t.Errorf("a form in the query: %d, want 403", a.Status)
	}
	p.client = newBrowser(t) // another's, who is made to send a form that was made for somebody else
	for _, has := range []string{"no cookie", "another cookie"} {
		if a := p.post(t, url.Values{"sess_id": {secret}, "action": {"approve"}, "token": {token}}); a.Status != 403 {
			t.Errorf("a browser that has %s: %d, want 403", has, a.Status)
		}
		p.get(t, secret)
	}
	for _, action := range []string{"", "Approve", "delete"} {
		if a := p.submit(t, secret, url.Values{"action": {action}}); a.Status != 400 {
			t.Errorf("action %q: %d, want 400", action, a.Status)
		}
	}
	if p.sessions(t) != 2 {
		t.Error("a refusal has ended a session")
	}
}

func TestHandlerPaths(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	secret, _ := p.session(t, nil)
	for _, path := range []string{"/x?sess_id=" + secret, "/auth/session", "/callback/", "/sessions/x"} {
		response, err := testkit.Client.Get(p.url + path)
		if a := testkit.ReadAnswer(t, response, err); a.Status != 404 {
			t.Errorf("GET %s = %d, want 404", path, a.Status)
		}
	}
}

// Never there, expired (as Redis tells it) and used are one answer, but for 410 where there was a form.
func TestNoSession(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	expired, _ := p.session(t, nil)
	used, usedID := p.session(t, nil)
	token := p.formToken(t, expired)
	testkit.Must(t, p.redis.ExpireAt(t.Context(), p.key(expired), time.Unix(1, 0)).Err())
	if a := p.submit(t, used, nil); a.Status != 200 {
		t.Fatalf("approving = %d %s, want 200", a.Status, a.Body)
	}
	bodies := map[string]bool{}
	for _, secret := range []string{expired, used, "", "nobody", strings.Repeat("x", 8<<10), "\x00é"} {
		a := p.get(t, secret)
		wantNoSession(t, p, a, 404)
		_, text, _ := strings.Cut(string(a.Body), "<main>")
		text, _, _ = strings.Cut(text, "</main>")
		bodies[text] = true
	}
	if len(bodies) != 1 {
		t.Errorf("absent sessions have different pages: %v", bodies)
	}
	wantNoSession(t, p, p.submit(t, expired, url.Values{"token": {token}}), 410)

	for name, text := range map[string]string{"a secret": expired, "another": used, "a form's token": token} {
		if p.log.Has(text) {
			t.Errorf("the log holds %s", name)
		}
	}
	if line := p.log.Line(t, "msg", "sandbox decision"); line["action"] != "approve" || line["session"] != usedID {
		t.Errorf("log line %v, want approve and session %s", line, usedID)
	}
}

// wantNoSession checks an answer that says that there is no session, by an id that is in the log.
func wantNoSession(t *testing.T, p *testPage, a testkit.Answer, status int) {
	t.Helper()
	message, _, _ := readMessage(t, a)
	wantFailure(t, message, "invalid_request", "LINK_INVALID_SESSION", "")
	if id, _ := message["errorID"].(string); a.Status != status || !p.log.Has(`"error_id":"`+id+`"`) {
		t.Errorf("answer %d posting %v, want %d with an id that is logged", a.Status, message, status)
	}
}

// Others may write records too. What the service would not have written is shown to nobody.
func TestBadRecord(t *testing.T) {
	for _, test := range []struct{ name, value, cause string }{
		{"no JSON", "x", "opening the record"},
		{"empty", "", "opening the record"},
		{"array", `["v"]`, "opening the record"},
		{"broken JSON", `{"v":1`, "decoding the record"},
		{"another type", `{"v":1,"end_user_id":1}`, "decoding the record"},
		{"no object", `"{"`, "opening the record"},
		{"badly sealed", "\x01sealed and not by us, at some length", "opening the record"},
		{"no version", `{"id":"a"}`, "version 0"},
		{"another version", `{"v":2}`, "version 2"},
		{"script", `{"v":1,"redirect_uri":"javascript:alert(1)"}`, "a URI of the record must be https"},
		{"plain http", `{"v":1,"cancel_uri":"http://acme.com/"}`, "a URI of the record must be https"},
		{"fragment", `{"v":1,"redirect_uri":"https://acme.com/#x"}`, "a URI of the record must not have a fragment"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newTestPage(t, redistest.Addr(t))
			secret, _ := p.session(t, nil)
			token := p.formToken(t, secret)
			p.write(t, secret, []byte(test.value))
			wantUnreadable(t, p, p.get(t, secret), "Try again in a moment.", "")
			form := url.Values{"sess_id": {secret}, "token": {token}, "action": {"approve"}, "host": {"https://h.example"}}
			wantUnreadable(t, p, p.post(t, form), "Start again where you came from.", "https://h.example")
			if cause, _ := p.log.Line(t, "msg", "sandbox can't read a session")["cause"].(string); !strings.Contains(
				cause, test.cause) {
				t.Errorf("the log says %q, want %s", cause, test.cause)
			}
		})
	}
}

// Redis down is no session's fault: 503, and a framing page hears of it. What has asked for GETDEL may have used the
// session up, so there it never says to try again.
func TestWithoutRedis(t *testing.T) {
	server := redistest.StartProxy(t, redistest.Addr(t), redistest.Pass)
	p := newTestPage(t, server.Addr)
	secret, _ := p.session(t, nil)
	token := p.formToken(t, secret)
	server.Set(func(client *net.TCPConn, _ []byte, _ time.Time) { _ = client.Close() })
	wantUnreadable(t, p, p.get(t, secret), "Try again in a moment.", "")
	form := url.Values{"sess_id": {secret}, "token": {token}, "action": {"cancel"}, "host": {"*"}}
	wantUnreadable(t, p, p.post(t, form), "Start again where you came from.", "*")
}

// wantUnreadable checks an answer for a session that can't be read.
func wantUnreadable(t *testing.T, p *testPage, a testkit.Answer, advice, wantHost string) {
	t.Helper()
	message, host, _ := readMessage(t, a)
	wantFailure(t, message, "server_error", "LINK_INTERNAL_ERROR", "")
	id, _ := message["errorID"].(string)
	if a.Status != 503 || a.Header.Get("Location") != "" || host != wantHost || !p.log.Has(`"error_id":"`+id+`"`) {
		t.Errorf("answer %d %v posting %v to %q, want 503 to %q with an id that is logged", a.Status, a.Header, message,
			host, wantHost)
	}
	found := regexp.MustCompile(`\w+ again [a-z ]+\.`).FindAllString(string(a.Body), -1)
	if !slices.Equal(found, []string{advice}) {
		t.Errorf("the page says %q, want %q", found, advice)
	}
}
