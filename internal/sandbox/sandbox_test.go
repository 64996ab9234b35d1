package sandbox

import (
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/redistest"
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
		if message, _ := readMessage(t, a); message != nil {
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

// The template has the variables that write fills in, and no others: a $ in its script or style would be taken for one.
func TestTemplate(t *testing.T) {
	var names []string
	os.Expand(pageHTML, func(name string) string { names = append(names, name); return "" })
	slices.Sort(names)
	want := []string{"arrangement", "client", "expires", "institution", "left", "message", "nonce", "permissions",
		"seconds", "secret", "target", "text", "title", "token", "user"}
	if got := slices.Compact(names); !slices.Equal(got, want) {
		t.Errorf("sandbox.html has the variables %q, want %q", got, want)
	}
}

func TestDecide(t *testing.T) {
	const success, cancel = "https://acme.com:8443/s?x=%41&x=+", "http://localhost:3000/c?"
	for _, test := range []struct {
		name, redirect, cancel, action, framed string
		location                               string // up to our own parameters; "": a page
		target                                 string // of the message, where there is a page
	}{
		{"approve", success, cancel, "approve", "", "https://acme.com:8443/s?x=%41&x=+&", ""},
		{"cancel", success, cancel, "cancel", "", "http://localhost:3000/c?", ""},
		{"an app", "com.example.app:/done", "", "approve", "", "com.example.app:/done?", ""},
		{"an app with a query", "com.example.app://done/?q&", "", "approve", "", "com.example.app://done/?q&", ""},
		{"approve without a URI", "", "", "approve", "", "", "*"},
		{"cancel without a URI", "", "", "cancel", "", "", "*"},
		{"approve with the other URI", "", cancel, "approve", "", "", "http://localhost:3000"},
		{"cancel with the other URI", success, "", "cancel", "", "", "https://acme.com:8443"},
		{"approve framed", success, cancel, "approve", "1", "", "https://acme.com:8443"},
		{"cancel framed", success, cancel, "cancel", "1", "", "http://localhost:3000"},
		{"IPv6 framed", "http://[::1]:80/", "", "approve", "1", "", "http://[::1]:80"},
		{"an app framed", "com.example.app://h/", "", "approve", "1", "", "*"},
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
			secret, _ := p.session(t, members)
			a := p.submit(t, secret, url.Values{"action": {test.action}, "framed": {test.framed}})
			if n := p.sessions(t); n != 0 {
				t.Errorf("%d sessions are there after the decision", n)
			}
			location := a.Header.Get("Location")
			got := map[string]string{}
			if test.location != "" {
				own, found := strings.CutPrefix(location, test.location)
				if a.Status != 303 || !found {
					t.Fatalf("answer = %d with Location %q, want 303 to %s…", a.Status, location, test.location)
				}
				values, err := url.ParseQuery(own)
				testkit.Must(t, err)
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
			if a.Status != 200 || location != "" {
				t.Fatalf("answer = %d with Location %q, want a page", a.Status, location)
			}
			message, target := readMessage(t, a)
			if target != test.target {
				t.Errorf("the message goes to %q, want %q", target, test.target)
			}
			if message["isCompleted"] != (test.action == "approve") {
				t.Errorf("message %v after %s", message, test.action)
			}
			delete(message, "isCompleted")
			for name, value := range message {
				got[name] = value.(string)
			}
			if test.action == "cancel" {
				wantFailure(t, got, "error", "errorType", "errorID", "errorDescription", "errorURI")
				return
			}
			want := addQuery(test.redirect, "consent_id="+got["consentID"])
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
func TestDecideOnce(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	secret, _ := p.session(t, map[string]any{"redirect_uri": "https://acme.com/", "cancel_uri": "https://acme.com/"})
	token := p.formToken(t, secret)
	statuses := make(chan int, 50)
	var tabs sync.WaitGroup
	for i := range cap(statuses) {
		form := url.Values{"sess_id": {secret}, "token": {token}, "action": {[]string{"approve", "cancel"}[i%2]}}
		tabs.Go(func() {
			response, err := testkit.Client.PostForm(p.url, form)
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
	response, err := testkit.Client.PostForm(p.url+inQuery, nil)
	if a := readPage(t, response, err); a.Status != 403 {
		t.Errorf("a form in the query: %d, want 403", a.Status)
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
	for _, path := range []string{"/x?sess_id=" + secret, "/auth/session"} {
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
		wantNoSession(t, a, 404)
		_, text, _ := strings.Cut(string(a.Body), "<main>")
		text, _, _ = strings.Cut(text, "</main>")
		bodies[text] = true
	}
	if len(bodies) != 1 {
		t.Errorf("absent sessions have different pages: %v", bodies)
	}
	wantNoSession(t, p.submit(t, expired, url.Values{"token": {token}}), 410)

	for name, text := range map[string]string{"a secret": expired, "another": used, "a form's token": token} {
		if p.log.Has(text) {
			t.Errorf("the log holds %s", name)
		}
	}
	if line := p.log.Line(t, "msg", "sandbox decision"); line["action"] != "approve" || line["session"] != usedID {
		t.Errorf("log line %v, want approve and session %s", line, usedID)
	}
}

// wantNoSession checks an answer that says that there is no session, and that anyone may hear it.
func wantNoSession(t *testing.T, a testkit.Answer, status int) {
	t.Helper()
	message, target := readMessage(t, a)
	if a.Status != status || message["isCompleted"] != false || message["errorType"] != "LINK_INVALID_SESSION" ||
		len(message) != 6 || target != "*" {
		t.Errorf("answer %d posting %v to %q, want %d and LINK_INVALID_SESSION", a.Status, message, target, status)
	}
}

// Others may write records too. What the service would not have written is shown to nobody.
func TestBadRecord(t *testing.T) {
	for _, test := range []struct{ name, value, cause string }{
		{"no JSON", "x", "decoding the record"},
		{"empty", "", "decoding the record"},
		{"no object", `["v"]`, "decoding the record"},
		{"another type", `{"v":1,"end_user_id":1}`, "decoding the record"},
		{"sealed", "\x01sealed", "decoding the record"},
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
			for method, a := range map[string]testkit.Answer{
				"GET":  p.get(t, secret),
				"POST": p.post(t, url.Values{"sess_id": {secret}, "token": {token}, "action": {"approve"}}),
			} {
				if message, _ := readMessage(t, a); a.Status != 503 || message != nil || a.Header.Get("Location") != "" {
					t.Errorf("%s = %d %v posting %v, want 503 and nothing", method, a.Status, a.Header, message)
				}
			}
			line := p.log.Line(t, "msg", "sandbox has no session")
			if cause, _ := line["cause"].(string); !strings.Contains(cause, test.cause) {
				t.Errorf("the log says %q, want %s", cause, test.cause)
			}
		})
	}
}

// Redis down is no session's fault: 503, nothing posted, and no promise broken.
func TestWithoutRedis(t *testing.T) {
	p := newTestPage(t, "127.0.0.1:"+redistest.FreePort())
	a := p.get(t, "a")
	if message, _ := readMessage(t, a); a.Status != 503 || message != nil {
		t.Errorf("GET of the page = %d posting %v, want 503 and nothing", a.Status, message)
	}
}
