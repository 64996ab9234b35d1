package sandbox

import (
	"encoding/json"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

func TestRemaining(t *testing.T) {
	for left, want := range map[time.Duration]string{
		120*time.Hour - time.Second: "4 days 23 h", 48 * time.Hour: "2 days 0 h", 47 * time.Hour: "1 day 23 h",
		24 * time.Hour: "1 day 0 h", 24*time.Hour - time.Second: "23 h 59 min", time.Hour: "1 h 0 min",
		time.Hour - time.Second: "59 min 59 s", 61 * time.Second: "1 min 1 s", time.Second: "0 min 1 s",
		-time.Hour: "0 min 0 s",
	} {
		if got := remaining(left); got != want {
			t.Errorf("remaining(%s) = %q, want %q", left, got, want)
		}
	}
}

// A link that lives for days names the day.
func TestShowDays(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	expiresAt := time.Now().Add(119*time.Hour + 30*time.Minute)
	secret, _ := p.session(t, map[string]any{"expires_at": expiresAt.Unix()})
	page := string(p.get(t, secret).Body)
	for _, want := range []string{"4 days 23 h", expiresAt.UTC().Format("2 January, 15:04 UTC")} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not have %q: %s", want, page)
		}
	}
}

// rows is what the front page lists.
func (p *testPage) rows(t *testing.T) (rows [][]string) {
	t.Helper()
	response, err := p.client.Get(p.url + "/sessions")
	a := testkit.ReadAnswer(t, response, err)
	if a.Status != 200 || a.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("GET /sessions = %d %v", a.Status, a.Header)
	}
	testkit.Must(t, json.Unmarshal(a.Body, &rows))
	return rows
}

// The button makes a session as a backend does, shows request and answer but not the token, and the list tells what
// becomes of it.
func TestFront(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	response, err := p.client.Get(p.url + "/")
	page := string(readPage(t, response, err).Body)
	if !strings.Contains(page, "Create a session") || strings.Contains(page, "$") || len(p.rows(t)) != 0 {
		t.Errorf("the front page is %s, listing %v", page, p.rows(t))
	}
	response, err = p.client.PostForm(p.url+"/sessions", nil)
	page = html.UnescapeString(string(readPage(t, response, err).Body))
	link := regexp.MustCompile(`href="([^"]*sess_id=(\w+))"`).FindStringSubmatch(page)
	if link == nil || link[1] != p.url+"/?sess_id="+link[2] {
		t.Fatalf("the front page has no link to the consent page: %s", page)
	}
	for _, want := range []string{
		"POST http://127.0.0.1:", "Bearer a-token-that-is-…", Example(p.url + "/"), "200 OK", `"auth_url"`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the front page does not show %q: %s", want, page)
		}
	}
	wantRow := func(outcome, left string) {
		t.Helper()
		row := p.rows(t)[0]
		if row[0] != outcome || len(row[1]) != 26 || row[2] != "acme for eu_2yRHN2ag2y4p8kCtm5DOeccZEXB" ||
			(len(row) == 4) != (left != "") || left != "" && !strings.HasPrefix(row[3], left) {
			t.Errorf("the list says %q, want %q and %q", row, outcome, left)
		}
	}
	wantRow("waits for its end user", "29 min 5")
	p.get(t, link[2])
	wantRow("its page is open", "29 min 5")
	a := p.submit(t, link[2], nil)
	wantRow("approved", "")
	response, err = p.client.Get(a.Header.Get("Location"))
	if a := readPage(t, response, err); !strings.Contains(string(a.Body), "<h1>Back at the app: consent given</h1>") {
		t.Errorf("the way back leads to %s", a.Body)
	}
}

func TestList(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	p.sandbox.Made("nobody") // is gone before it can be listed
	var secrets []string
	for range maxFlows + 5 {
		secret, _ := p.session(t, nil)
		p.sandbox.Made(secret)
		secrets = append(secrets, secret)
	}
	cancelled, elsewhere, first := secrets[len(secrets)-1], secrets[len(secrets)-2], secrets[0]
	p.submit(t, cancelled, url.Values{"action": {"cancel"}})
	testkit.Must(t, p.redis.GetDel(t.Context(), p.key(elsewhere)).Err())
	p.get(t, first) // has left the list
	expired, _ := p.session(t, map[string]any{"expires_at": time.Now().Unix()})
	p.sandbox.Made(expired)
	testkit.Must(t, p.redis.Del(t.Context(), p.key(expired)).Err())
	for range 2 {
		rows := p.rows(t)
		if len(rows) != maxFlows {
			t.Fatalf("%d sessions are listed, want %d", len(rows), maxFlows)
		}
		var got []string
		for _, row := range rows[:4] {
			got = append(got, row[0])
		}
		const want = "expired|cancelled|used by another page|waits for its end user"
		if strings.Join(got, "|") != want {
			t.Errorf("outcomes %q, want %s", got, want)
		}
	}
}

// Another site's page can't make sessions, nor read the list.
func TestCreateCrossSite(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	for site, want := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200} {
		r, err := http.NewRequest("POST", p.url+"/sessions", nil)
		testkit.Must(t, err)
		r.Header.Set("Sec-Fetch-Site", site)
		response, err := p.client.Do(r)
		a := testkit.ReadAnswer(t, response, err)
		if a.Status != want || a.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("POST /sessions from %s = %d, want %d", site, a.Status, want)
		}
	}
}

func TestCallback(t *testing.T) {
	p := newTestPage(t, redistest.Addr(t))
	for query, want := range map[string][]string{
		"": {"<h1>Back at the app: nothing came along</h1>", "<code>nothing</code>"},
		"?state=<i>&consent_id=<b>&state=2": {"<h1>Back at the app: consent given</h1>",
			"<dt>consent_id</dt><dd>&lt;b&gt; <small>", "<code>state=%3Ci%3E&amp;state=2</code>"},
		"?error=access_denied&error_type=CONSENT_ENDUSER_DENIED&nonce=x&error_uri=<b>": {
			"<h1>Back at the app: no consent</h1>", "<dt>error_type</dt><dd>CONSENT_ENDUSER_DENIED <small>",
			"<dt>error_uri</dt><dd>&lt;b&gt; <small>", "<code>nonce=x</code>"},
	} {
		for _, path := range []string{"/callback", "/callback/cancelled"} {
			response, err := p.client.Get(p.url + path + strings.NewReplacer("<", "%3C", ">", "%3E").Replace(query))
			a := readPage(t, response, err)
			for _, text := range want {
				if !strings.Contains(string(a.Body), text) {
					t.Errorf("GET %s%s has no %s: %s", path, query, text, a.Body)
				}
			}
		}
	}
}
