package sandbox

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"html"
	"log/slog"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// testPage is a consent page, and the Redis where its records are.
type testPage struct {
	sandbox *Sandbox
	url     string
	redis   *redis.Client
	prefix  string // of the records' keys
	log     testkit.Log
	client  *http.Client // a browser, which keeps cookies and follows no redirect
}

func newTestPage(t *testing.T, redisAddr string) *testPage {
	t.Helper()
	p := &testPage{redis: redis.NewClient(&redis.Options{Addr: redisAddr}), prefix: redistest.Prefix(t)}
	t.Cleanup(func() { _ = p.redis.Close() })
	log := slog.New(slog.NewJSONHandler(&p.log, nil))
	p.sandbox = New(p.redis, p.prefix, 2*time.Second, log)
	server := httptest.NewUnstartedServer(nil)
	p.url = "http://" + server.Listener.Addr().String()
	server.Config.Handler = p.sandbox.Handler(p.url+"/", p.api(t), "a-token-that-is-long")
	server.Start()
	t.Cleanup(server.Close)
	p.client = newBrowser(t)
	return p
}

func newBrowser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	testkit.Must(t, err)
	return &http.Client{Jar: jar, Timeout: 10 * time.Second, CheckRedirect: testkit.Client.CheckRedirect}
}

// api is the service, as the front page calls it: it makes a session for whom it is asked.
func (p *testPage) api(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var members map[string]any
		if err := json.NewDecoder(r.Body).Decode(&members); err != nil || r.URL.Path != "/auth/session" ||
			r.Header.Get("Authorization") != "Bearer a-token-that-is-long" {
			http.Error(w, "no such request", http.StatusBadRequest)
			return
		}
		secret, id := p.session(t, members)
		p.sandbox.Made(secret)
		answer := map[string]any{"auth_url": p.url + "/?sess_id=" + secret, "id": id}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// session writes a session's record, by section 6 of the contract, and returns the secret that opens it and its public
// id. members are added, or replace what there is.
func (p *testPage) session(t *testing.T, members map[string]any) (secret, id string) {
	t.Helper()
	secret, id = rand.Text(), strings.ToLower(rand.Text())
	now := time.Now().Unix()
	record := map[string]any{
		"v": 1, "id": id, "client_id": "acme", "end_user_id": "eu_1", "created_at": now, "expires_at": now + 30*60,
	}
	maps.Copy(record, members)
	value, err := json.Marshal(record)
	testkit.Must(t, err)
	p.write(t, secret, value)
	return secret, id
}

func (p *testPage) write(t *testing.T, secret string, value []byte) {
	t.Helper()
	expiresAt := time.Now().Add(30 * time.Minute).Unix()
	testkit.Must(t, p.redis.Do(t.Context(), "SET", p.key(secret), value, "EXAT", expiresAt).Err())
}

func (p *testPage) key(secret string) string {
	hash := sha256.Sum256([]byte(secret))
	return p.prefix + hex.EncodeToString(hash[:])
}

// sessions is how many records there are.
func (p *testPage) sessions(t *testing.T) int {
	t.Helper()
	keys, err := p.redis.Keys(t.Context(), p.prefix+"*").Result()
	testkit.Must(t, err)
	return len(keys)
}

// get opens the page for a session.
func (p *testPage) get(t *testing.T, secret string) testkit.Answer {
	t.Helper()
	response, err := p.client.Get(p.url + "/?sess_id=" + url.QueryEscape(secret))
	return readPage(t, response, err)
}

// post sends a form.
func (p *testPage) post(t *testing.T, form url.Values) testkit.Answer {
	t.Helper()
	response, err := p.client.PostForm(p.url, form)
	return readPage(t, response, err)
}

// submit sends the page's form. more is added, or replaces what there is.
func (p *testPage) submit(t *testing.T, secret string, more url.Values) testkit.Answer {
	t.Helper()
	form := url.Values{"sess_id": {secret}, "token": {p.formToken(t, secret)}, "action": {"approve"}, "host": {""}}
	maps.Copy(form, more)
	return p.post(t, form)
}

var tokenField = regexp.MustCompile(`name="token" value="([0-9a-f]{64})"`)

// formToken is the token in the page for a session, or "" where the page has none.
func (p *testPage) formToken(t *testing.T, secret string) string {
	t.Helper()
	match := tokenField.FindSubmatch(p.get(t, secret).Body)
	if match == nil {
		return ""
	}
	return string(match[1])
}

// readPage reads an answer and checks what every one of them has.
func readPage(t *testing.T, response *http.Response, err error) testkit.Answer {
	t.Helper()
	a := testkit.ReadAnswer(t, response, err)
	for name, want := range map[string]string{
		"Cache-Control": "^no-store$",
		"Content-Security-Policy": `^default-src 'none'; base-uri 'none'; ` +
			`script-src 'nonce-\w{26}'; style-src 'nonce-\w{26}'(; connect-src 'self')?$`,
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

var messageData = regexp.MustCompile(`data-message="([^"]*)" data-host="([^"]*)" data-next="([^"]*)"`)

// readMessage is what the page posts to whom it was told of, and where it goes on to.
func readMessage(t *testing.T, a testkit.Answer) (message map[string]any, host, next string) {
	t.Helper()
	match := messageData.FindStringSubmatch(string(a.Body))
	if match == nil {
		t.Fatalf("a page without data-message: %s", a.Body)
	}
	if match[1] != "" {
		testkit.Must(t, json.Unmarshal([]byte(html.UnescapeString(match[1])), &message))
	}
	return message, html.UnescapeString(match[2]), html.UnescapeString(match[3])
}
