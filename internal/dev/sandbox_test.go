package dev_test

import (
	"cmp"
	"encoding/json"
	"html"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// get opens a page of the sandbox and checks its headers.
func (d *testDev) get(t *testing.T, path string) testkit.Answer {
	t.Helper()
	response, err := d.browser.Get(d.page + path)
	return readPage(t, response, err)
}

// post sends the page's form.
func (d *testDev) post(t *testing.T, secret, token, action, host string) testkit.Answer {
	t.Helper()
	form := url.Values{"sess_id": {secret}, "token": {token}, "action": {action}, "host": {host}}
	response, err := d.browser.PostForm(d.page, form)
	return readPage(t, response, err)
}

// formToken returns the token in the page of a session; "" if it has none.
func (d *testDev) formToken(t *testing.T, secret string) string {
	t.Helper()
	match := regexp.MustCompile(`name="token" value="([0-9a-f]{64})"`).FindSubmatch(d.get(t, "/?sess_id="+secret).Body)
	return string(append(match, nil, nil)[1])
}

// count returns the number of records.
func (d *testDev) count(t *testing.T) int {
	return len(d.redis.Keys(t.Context(), d.Config.KeyPrefix+"*").Val())
}

func readPage(t *testing.T, response *http.Response, err error) testkit.Answer {
	t.Helper()
	a := testkit.ReadAnswer(t, response, err)
	for name, want := range map[string]string{
		"Cache-Control": "^no-store$",
		"Content-Security-Policy": `^default-src 'none'; base-uri 'none'; img-src data:; ` +
			`script-src 'nonce-\w{26}'; style-src 'nonce-\w{26}'(; connect-src 'self'; frame-ancestors 'none')?$`,
		"Content-Type":           "^text/html; charset=utf-8$",
		"Referrer-Policy":        "^no-referrer$",
		"X-Content-Type-Options": "^nosniff$",
	} {
		if got := a.Header.Get(name); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s = %q, want %s", name, got, want)
		}
	}
	return a
}

// script is the pattern of the page's script: what it posts, to which origin, and where a popup goes after it.
func script(message, host, next string) *regexp.Regexp {
	return regexp.MustCompile(`data-message="` + message + `" data-host="` + host + `" data-next="` + next + `">`)
}

// failure is the pattern of a message that says why there is no consent.
func failure(code, kind, id string) string {
	return `\{"error":"` + code + `","errorDescription":"[^"]+","errorID":"` + id + `","errorType":"` + kind +
		`","errorURI":"http://localhost:\d+/errors/` + kind + `","isCompleted":false\}\n`
}

func TestConsentPage(t *testing.T) {
	d := newTestDev(t, nil)
	expires := time.Now().Add(119*time.Hour + 30*time.Minute)
	for _, test := range []struct {
		name    string
		members map[string]any
		want    []string
	}{
		{name: "escaped", members: map[string]any{"end_user_id": `<i>"&'$title`, "institution_id": "<b>${client}",
			"permissions": []string{"accounts", "<u>balances"}, "arrangement_id": "arr_<s>"},
			want: []string{"<dd>acme</dd>", "<dd>&lt;i&gt;&#34;&amp;&#39;$title</dd>", "<dd>&lt;b&gt;${client}</dd>",
				"<dd>accounts, &lt;u&gt;balances</dd>", "<dd>arr_&lt;s&gt;</dd>", "Sandbox.", `value="approve"`,
				`value="CONSENT_ENDUSER_DENIED"`}},
		{name: "nothing given", want: []string{"<dd>all that the app may ask for</dd>", ">29 min "}},
		{name: "no permissions", members: map[string]any{"permissions": []string{}}, want: []string{"<dd>nothing</dd>"}},
		{name: "days", members: map[string]any{"expires_at": expires.Unix()},
			want: []string{">119 h 29 min ", expires.UTC().Format("2 January, 15:04:05 UTC")}},
	} {
		secret, _ := d.session(t, test.members)
		d.get(t, "/?sess_id="+secret)
		a := d.get(t, "/?sess_id="+secret) // people reload
		page := string(a.Body)
		for _, want := range test.want {
			if a.Status != 200 || !strings.Contains(page, want) {
				t.Errorf("%s: the page is %d %s, want %q in it", test.name, a.Status, page, want)
			}
		}
		if regexp.MustCompile("<[ibus]>").MatchString(page) {
			t.Errorf("%s: the page has a value unescaped: %s", test.name, page)
		}
		if !script("", "", "").MatchString(page) || d.count(t) == 0 {
			t.Errorf("%s: the page has posted a message or ended the session: %s", test.name, page)
		}
	}
}

func TestDecide(t *testing.T) {
	d := newTestDev(t, nil)
	const success, cancel, host = "https://acme.com:8443/s?x=%41&x=+", "http://localhost:3000/c?", "https://p.example"
	const denied, ineligible, otp = "CONSENT_ENDUSER_DENIED", "CONSENT_ENDUSER_INELIGIBLE", "CONSENT_OTP_FAILURE"
	const timeout, upstream = "CONSENT_TIMEOUT", "CONSENT_UPSTREAM_PROCESSING_ERROR"
	codes := map[string]string{denied: "access_denied", ineligible: "server_error", otp: "server_error",
		timeout: "server_error", upstream: "server_error"} // the error of each type
	for _, test := range []struct {
		name, redirect, cancel string
		arrangement            string
		action, host           string
		want                   string // the URI that the end user goes back to, up to the parameters; "" if none
	}{
		{name: "approve", redirect: success, cancel: cancel, action: "approve", want: success + "&"},
		{name: "cancel", redirect: success, cancel: cancel, action: denied, want: cancel + "&"},
		{name: "ineligible", redirect: success, cancel: cancel, action: ineligible, want: cancel + "&"},
		{name: "password", redirect: success, cancel: cancel, action: otp, want: cancel + "&"},
		{name: "timeout", redirect: success, cancel: cancel, action: timeout, want: cancel + "&"},
		{name: "upstream", redirect: success, cancel: cancel, action: upstream, want: cancel + "&"},
		{name: "app", redirect: "com.example.app:/done", action: "approve", want: "com.example.app:/done?"},
		{name: "renewal", redirect: "https://a.com", arrangement: "arr&<", action: "approve", want: "https://a.com?"},
		{name: "approve without its URI", cancel: cancel, action: "approve"},
		{name: "cancel without its URI", redirect: success, action: denied},
		{name: "timeout without its URI", redirect: success, action: timeout},
		{name: "approve framed", redirect: success, cancel: cancel, action: "approve", host: host, want: success + "&"},
		{name: "cancel framed", redirect: success, cancel: cancel, action: denied, host: host, want: cancel + "&"},
		{name: "timeout framed", redirect: success, cancel: cancel, action: timeout, host: host, want: cancel + "&"},
	} {
		// The empty members are as if they were not given.
		secret, id := d.session(t, map[string]any{"redirect_uri": test.redirect, "cancel_uri": test.cancel,
			"arrangement_id": test.arrangement})
		a := d.post(t, secret, d.formToken(t, secret), test.action, test.host)
		code := codes[test.action]
		wantMessage, wantQuery := failure(code, test.action, id), `error=`+code+`&error_description=[^&]+&error_id=`+id+
			`&error_type=`+test.action+`&error_uri=http%3A%2F%2Flocalhost%3A\d+%2Ferrors%2F`+test.action
		wantURI, wantRedirect := "", ""
		if test.action == "approve" {
			wantQuery = `consent_id=([A-Z2-7]{26}|arr%26%3C)`
		}
		if test.want != "" {
			wantURI = regexp.QuoteMeta(test.want) + wantQuery
			wantRedirect = `,"redirectURL":"` + wantURI + `"`
		}
		if test.action == "approve" {
			wantMessage = `\{"consentID":"([A-Z2-7]{26}|arr&<)","isCompleted":true` + wantRedirect + `\}\n`
		}
		body := html.UnescapeString(string(a.Body))
		if !script(wantMessage, test.host, wantURI).MatchString(body) || d.count(t) != 0 {
			t.Errorf("%s: the page is %s, want the message %s and no session left", test.name, body, wantMessage)
		}
		wantStatus := 303
		if test.host != "" || test.want == "" {
			wantStatus, wantURI = 200, ""
		}
		location := a.Header.Get("Location")
		if a.Status != wantStatus || !regexp.MustCompile("^"+wantURI+"$").MatchString(location) {
			t.Errorf("%s: %d to %q, want %d to %s", test.name, a.Status, location, wantStatus, wantURI)
		}
	}
}

// A frame gets a cookie of its own, because browsers keep the usual one from frames of other sites.
func TestCookie(t *testing.T) {
	d := newTestDev(t, nil)
	secret, _ := d.session(t, nil)
	for dest, want := range map[string]string{
		"":       "Path=/; HttpOnly; SameSite=Lax",
		"iframe": "Path=/; HttpOnly; Secure; SameSite=None; Partitioned",
	} {
		r, err := http.NewRequest("GET", d.page+"/?sess_id="+secret, nil)
		testkit.Must(t, err)
		r.Header.Set("Sec-Fetch-Dest", dest)
		response, err := testkit.Client.Do(r)
		got := readPage(t, response, err).Header.Get("Set-Cookie")
		if !regexp.MustCompile(`^authsession-sandbox=\w{26}; ` + want + `$`).MatchString(got) {
			t.Errorf("Sec-Fetch-Dest %q: Set-Cookie = %q, want %q", dest, got, want)
		}
	}
}

// A form that the page did not make for this session and browser decides nothing.
func TestDecideRefuses(t *testing.T) {
	d := newTestDev(t, nil)
	secret, _ := d.session(t, nil)
	other, _ := d.session(t, nil)
	browser, stranger := d.browser, newBrowser(t)
	d.browser = stranger
	d.get(t, "/?sess_id="+secret) // sets a cookie
	d.browser = browser
	token := d.formToken(t, secret)
	for _, test := range []struct {
		name, secret, token, action string
		browser                     *http.Client // nil: the one with the form
	}{
		{name: "no form"},
		{name: "no token", secret: secret, action: "approve"},
		{name: "longer token", secret: secret, action: "approve", token: token + "0"},
		{name: "token of another session", secret: secret, action: "approve", token: d.formToken(t, other)},
		{name: "unknown action", secret: secret, token: token, action: "Approve"},
		{name: "error type of a message", secret: secret, token: token, action: "LINK_INVALID_SESSION"},
		{name: "another cookie", secret: secret, token: token, action: "approve", browser: stranger},
	} {
		d.browser = cmp.Or(test.browser, browser)
		if a := d.post(t, test.secret, test.token, test.action, ""); a.Status != 403 || d.count(t) != 2 {
			t.Errorf("%s: %d with %d sessions left, want 403 and 2", test.name, a.Status, d.count(t))
		}
	}
}

// An unknown, expired or used session is 404, or 410 after its form. A session that cannot be read is 503. The advice
// after a form is never to try again, because GETDEL may have used the session up. A framing page is told of both.
func TestFail(t *testing.T) {
	server := redistest.StartProxy(t, redistest.Addr(t), redistest.Pass)
	d := newTestDev(t, map[string]string{"REDIS_URL": "redis://" + server.Addr})
	for _, test := range []struct{ name, value, cause string }{
		{name: "no session", cause: "nil"},
		{name: "broken JSON", value: `{"v":1`, cause: "decoding the record"},
		{name: "badly sealed", value: "\x01sealed and not by us, at some length", cause: "decoding the record"},
		{name: "another version", value: `{"v":2}`, cause: "version 2"},
		{name: "script", value: `{"v":1,"redirect_uri":"javascript:alert(1)"}`, cause: "must be https"},
		{name: "Redis fails", value: "any", cause: "EOF"},
	} {
		secret, _ := d.session(t, nil)
		token := d.formToken(t, secret)
		d.write(t, secret, []byte(test.value))
		onLoad, onForm, message := 503, 503, failure("server_error", "LINK_INTERNAL_ERROR", `(\w+)`)
		tryAgain := "The session can't be read. Try again in a moment."
		switch test.cause {
		case "nil":
			testkit.Must(t, d.redis.Del(t.Context(), d.key(secret)).Err())
			onLoad, onForm, message = 404, 410, failure("invalid_request", "LINK_INVALID_SESSION", `(\w+)`)
			tryAgain = "Start again where you came from."
		case "EOF":
			server.Set(func(client *net.TCPConn, _ []byte, _ time.Time) { _ = client.Close() })
		}
		check := func(a testkit.Answer, wantStatus int, host, advice string) {
			t.Helper()
			body := html.UnescapeString(string(a.Body))
			match := script(message, host, "").FindStringSubmatch(body)
			if a.Status != wantStatus || match == nil || !strings.Contains(body, advice) {
				t.Fatalf("%s: %d %s, want %d, %s, %s", test.name, a.Status, body, wantStatus, message, advice)
			}
			if cause, _ := d.log.Line(t, "error_id", match[1])["cause"].(string); !strings.Contains(cause, test.cause) {
				t.Errorf("%s: the log has the cause %q, want %s", test.name, cause, test.cause)
			}
		}
		check(d.get(t, "/?sess_id="+secret), onLoad, "", tryAgain)
		check(d.post(t, secret, token, "approve", "https://p.example"), onForm, "https://p.example", "Start again where")
		if d.log.Has(secret) || d.log.Has(token) {
			t.Errorf("%s: the log holds a secret or a form's token", test.name)
		}
	}
}

// rows returns what the front page lists.
func (d *testDev) rows(t *testing.T) (rows [][]string) {
	t.Helper()
	response, err := d.browser.Get(d.page + "/sessions")
	a := testkit.ReadAnswer(t, response, err)
	testkit.Must(t, json.Unmarshal(a.Body, &rows))
	return rows
}

// create sends the front page's form and returns the page that it leads to, unescaped, and its path.
func (d *testDev) create(t *testing.T, form url.Values) (path, page string) {
	t.Helper()
	response, err := d.browser.PostForm(d.page+"/sessions", form)
	a := testkit.ReadAnswer(t, response, err)
	path = a.Header.Get("Location")
	if a.Status != 303 || !regexp.MustCompile(`^/sessions/\w{26}$`).MatchString(path) {
		t.Fatalf("POST /sessions = %d to %q, want 303 to a page", a.Status, path)
	}
	return path, html.UnescapeString(string(d.get(t, path).Body))
}

// The form creates a session as a backend does, once, and shows request and response. Its fields are the example's.
// Pages of other sites cannot use it.
func TestFrontPage(t *testing.T) {
	d := newTestDev(t, nil)
	page := string(d.get(t, "/").Body)
	if !strings.Contains(page, "Create a session") || strings.Contains(page, "$") || len(d.rows(t)) != 0 {
		t.Errorf("the front page is %s, listing %v", page, d.rows(t))
	}
	form := url.Values{}
	for _, field := range regexp.MustCompile(`name="(\w+)" value="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		form.Set(field[1], field[2])
	}
	if len(form) != 6 || form.Get("redirect_uri") != d.page+"/callback" {
		t.Errorf("the form has %v, want six members that work", form)
	}
	path, page := d.create(t, form)
	link := regexp.MustCompile(`href="([^"]*sess_id=(\w+))"`).FindStringSubmatch(page)
	if link == nil || link[1] != d.page+"/?sess_id="+link[2] {
		t.Fatalf("the page has no link to the consent page: %s", page)
	}
	for _, want := range []string{"POST " + d.api + "/auth/session\n", "Bearer eyJ", "…\n", "\n\n{\n  \"cancel_uri\": ",
		"\",\n  \"redirect_uri\": \"" + d.page + "/callback\"\n}", "200 OK\n\n{\n  \"auth_url\": "} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not show %q: %s", want, page)
		}
	}
	d.get(t, path) // people reload
	if rows := d.rows(t); len(rows) != 1 || d.count(t) != 1 {
		t.Errorf("after a reload, the list has %v and Redis %d sessions, want 1", rows, d.count(t))
	}
	row := strings.Join(d.rows(t)[0], "|")
	const want = `^waits for its end user\|\w{26}\|acme for eu_2yRHN2ag2y4p8kCtm5DOeccZEXB\|29 min \d+ s left$`
	if !regexp.MustCompile(want).MatchString(row) {
		t.Errorf("the list has %q, want %s", row, want)
	}
	r, err := http.NewRequest("POST", d.page+"/sessions", nil)
	testkit.Must(t, err)
	r.Header.Set("Sec-Fetch-Site", "same-site")
	response, err := d.browser.Do(r)
	if a := testkit.ReadAnswer(t, response, err); a.Status != 403 {
		t.Errorf("POST /sessions from another site = %d, want 403", a.Status)
	}
}

// The request has what is in the form, and the page shows it escaped, with the whole command for a shell.
func TestCreate(t *testing.T) {
	d := newTestDev(t, nil)
	command := "curl -sS -X POST " + d.api + "/auth/session \\\n  -H 'Authorization: Bearer eyJ"
	for _, test := range []struct {
		name string
		form url.Values
		want []string // in the page, unescaped
	}{
		{name: "all members", form: url.Values{"end_user_id": {"it's<b>$HOME"}, "institution_id": {"10"},
			"redirect_uri": {"a:b"}, "cancel_uri": {"c:d"}, "permissions": {"accounts, <b>  x"},
			"arrangement_id": {"arr_1"}, "other": {"x"}},
			want: []string{"<h1>A session is ready</h1>", `name="end_user_id" value="it's<b>$HOME"`, `-d '{
  "arrangement_id": "arr_1",
  "cancel_uri": "c:d",
  "end_user_id": "it'\''s<b>$HOME",
  "institution_id": "10",
  "permissions": [
    "accounts",
    "<b>",
    "x"
  ],
  "redirect_uri": "a:b"
}'`}},
		{name: "no name", form: url.Values{"permissions": {" ,"}}, want: []string{"-d '{\n  \"permissions\": []\n}'"}},
		{name: "bad UTF-8", form: url.Values{"end_user_id": {"\xff"}}, want: []string{"\"end_user_id\": \"\uFFFD\""}},
		{name: "refused", want: []string{"<h1>The service answered 400 Bad Request</h1>", "<details open>", "-d '{}'",
			"400 Bad Request\nContent-", "\n\nthe service was asked for /auth/session\n"}},
	} {
		path, page := d.create(t, test.form)
		for _, want := range append(test.want, command) {
			if !strings.Contains(page, want) {
				t.Errorf("%s: the page does not show %q: %s", test.name, want, page)
			}
		}
		if raw := string(d.get(t, path).Body); strings.Contains(raw, "<b>") {
			t.Errorf("%s: the page has a value unescaped: %s", test.name, raw)
		}
	}
	first, _ := d.create(t, nil)
	for range 20 {
		d.create(t, nil)
	}
	response, err := d.browser.Get(d.page + first)
	if a := testkit.ReadAnswer(t, response, err); a.Status != 303 || a.Header.Get("Location") != "/" {
		t.Errorf("GET of a page that is no longer kept = %d to %q, want 303 to /", a.Status, a.Header.Get("Location"))
	}
}

// A page of another site that DNS rebinding leads here is refused on every path.
func TestHost(t *testing.T) {
	d := newTestDev(t, nil)
	for host, want := range map[string]int{
		"localhost": 200, "LOCALHOST:1": 200, "127.0.0.1": 200, "127.8.9.1:8081": 200, "[::1]": 200, "[::1]:8081": 200,
		"evil.example": 403, "evil.example:8081": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403,
		"192.168.0.1": 403, "0.0.0.0": 403, "[::]": 403, "evil.example:@localhost": 403,
	} {
		for _, path := range []string{"/", "/sessions", "/callback", "/errors/CONSENT_TIMEOUT"} {
			r, err := http.NewRequest("GET", d.page+path, nil)
			testkit.Must(t, err)
			r.Host = host
			response, err := testkit.Client.Do(r)
			a := testkit.ReadAnswer(t, response, err)
			kind := a.Header.Get("Content-Type")
			if a.Status != want || strings.HasPrefix(kind, "text/plain") != (want == 403) {
				t.Errorf("GET %s with Host %s = %d %s, want %d", path, host, a.Status, kind, want)
			}
		}
	}
}

// The list has the last 20 sessions that came by, under both paths of the service, and what became of them.
func TestSessionList(t *testing.T) {
	d := newTestDev(t, nil)
	var secrets []string
	for i := range 25 {
		var created testkit.SessionAnswer
		d.do(t, "POST", []string{"/auth/session", "/v1/auth/session"}[i%2], `{"x":1}`, nil).Decode(t, &created)
		secrets = append(secrets, created.SessionID)
	}
	d.do(t, "POST", "/auth/session", "{}", nil) // is refused
	d.post(t, secrets[22], d.formToken(t, secrets[22]), "approve", "")
	d.post(t, secrets[23], d.formToken(t, secrets[23]), "CONSENT_ENDUSER_DENIED", "")
	testkit.Must(t, d.redis.Del(t.Context(), d.key(secrets[24])).Err())
	d.get(t, "/?sess_id="+secrets[0]) // had left the list
	var outcomes []string
	for _, row := range d.rows(t) {
		outcomes = append(outcomes, row[0])
	}
	const want = "its page is open|expired, or used by another page|no consent: CONSENT_ENDUSER_DENIED|approved|" +
		"waits for its end user"
	if len(outcomes) != 20 || strings.Join(outcomes[:5], "|") != want {
		t.Errorf("%d outcomes %q, want 20: %s…", len(outcomes), outcomes, want)
	}
}

// The callback page and the error pages explain each type. Only the sandbox's own error_uri becomes a link.
func TestCallback(t *testing.T) {
	d := newTestDev(t, nil)
	own := d.page + "/errors/CONSENT_TIMEOUT"
	for query, want := range map[string]string{
		"?state=%3Ci%3E&consent_id=%3Cb%3E": `consent given</h1>.*<dd>&lt;b&gt; .*<code>state=%3Ci%3E</code>`,
		"/cancelled?error=access_denied":    `no consent</h1>.*<dd>access_denied .*<code>nothing</code>`,
		"?error=x&error_type=CONSENT_TIMEOUT&error_uri=" + own: `took too long.*<a href="` + own + `">` + own +
			`</a>.*The app</strong>`,
		"?error=x&error_type=%3Cb%3E&error_uri=" + own:              `<dd>&lt;b&gt; .*<dd>\s+` + own + `\s`,
		"?error=x&error_type=CONSENT_TIMEOUT&error_uri=javascript:": `<dd>\s+javascript:\s`,
	} {
		page := string(d.get(t, "/callback"+query).Body)
		match := regexp.MustCompile(`(?s)` + want + `.*<a class="button" href="/"`).MatchString(page)
		if !match || strings.Contains(page, "<b>") {
			t.Errorf("GET /callback%s has no %s: %s", query, want, page)
		}
	}
	for kind := range strings.FieldsSeq("CONSENT_ENDUSER_DENIED CONSENT_ENDUSER_INELIGIBLE CONSENT_OTP_FAILURE " +
		"CONSENT_TIMEOUT CONSENT_UPSTREAM_PROCESSING_ERROR LINK_INVALID_SESSION LINK_INTERNAL_ERROR") {
		page := string(d.get(t, "/errors/"+kind).Body)
		if strings.Count(page, "<h1>"+kind+"</h1>") != 1 || strings.Count(page, "<strong>The app</strong>") != 1 {
			t.Errorf("GET /errors/%s = %s, want what the app does", kind, page)
		}
	}
	response, err := d.browser.Get(d.page + "/errors/%3Cb%3E")
	if a := testkit.ReadAnswer(t, response, err); a.Status != 404 {
		t.Errorf("GET of an unknown type = %d, want 404", a.Status)
	}
}
