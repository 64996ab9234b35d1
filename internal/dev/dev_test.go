package dev_test

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"authsession/internal/dev"
	"authsession/internal/redistest"
	"authsession/internal/seal"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "authsession-dev")
	if err != nil {
		panic(err)
	}
	_, _ = os.Setenv("HOME", folder), os.Setenv("XDG_CACHE_HOME", "") // for -dev's key
	code := redistest.Main(m)
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

// testDev is a Dev around a service that creates a session for every request.
type testDev struct {
	*dev.Dev
	api      string // the service's URL
	page     string // the sandbox's URL, without the last /
	redis    *redis.Client
	out, log testkit.Log
	browser  *http.Client // keeps cookies and follows no redirect
}

// newTestDev starts a Dev with the tests' Redis and env.
func newTestDev(t *testing.T, env map[string]string) *testDev {
	t.Helper()
	all := map[string]string{
		"ADDR": "127.0.0.1:0", "REDIS_URL": "redis://" + redistest.Addr(t), "KEY_PREFIX": redistest.Prefix(t),
	}
	maps.Copy(all, env)
	d := &testDev{redis: redis.NewClient(&redis.Options{Addr: redistest.Addr(t)}), browser: newBrowser(t)}
	t.Cleanup(func() { _ = d.redis.Close() })
	var err error
	d.Dev, err = dev.Start(func(name string) string { return all[name] }, &d.out, &d.log)
	testkit.Must(t, err)
	t.Cleanup(d.Stop)
	server := httptest.NewUnstartedServer(nil)
	server.Config.Handler, err = d.Wrap(server.Listener.Addr(), d.service(t))
	testkit.Must(t, err)
	server.Start()
	t.Cleanup(server.Close)
	d.api, d.page = server.URL, strings.TrimSuffix(d.Config.AuthURL, "/?sess_id=")
	return d
}

func newBrowser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	testkit.Must(t, err)
	return &http.Client{Jar: jar, Timeout: 10 * time.Second, CheckRedirect: testkit.Client.CheckRedirect}
}

// service stands for the service: it creates a session with the members of the request, or refuses {}.
func (d *testDev) service(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var members map[string]any
		if json.NewDecoder(r.Body).Decode(&members) != nil || len(members) == 0 {
			http.Error(w, "the service was asked for "+r.URL.Path, http.StatusBadRequest)
			return
		}
		secret, id := d.session(t, members)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"auth_url": d.Config.AuthURL + secret, "session_id": secret, "id": id})
	})
}

// session writes a record, as docs/consent-page.md describes it, and sealed. It returns the session's secret and public
// ID. members are added, or replace the usual ones.
func (d *testDev) session(t *testing.T, members map[string]any) (secret, id string) {
	t.Helper()
	secret, id = rand.Text(), strings.ToLower(rand.Text())
	now := time.Now().Unix()
	record := map[string]any{
		"v": 1, "id": id, "client_id": "acme", "end_user_id": "eu_1", "created_at": now, "expires_at": now + 30*60,
	}
	maps.Copy(record, members)
	value, err := json.Marshal(record)
	testkit.Must(t, err)
	d.write(t, secret, seal.Seal(secret, value))
	return secret, id
}

func (d *testDev) write(t *testing.T, secret string, value []byte) {
	t.Helper()
	testkit.Must(t, d.redis.Set(t.Context(), d.key(secret), value, 30*time.Minute).Err())
}

func (d *testDev) key(secret string) string {
	hash := sha256.Sum256([]byte(secret))
	return d.Config.KeyPrefix + hex.EncodeToString(hash[:])
}

// do sends a request to the service's address.
func (d *testDev) do(t *testing.T, method, path, body string, header map[string]string) testkit.Answer {
	t.Helper()
	r, err := http.NewRequest(method, d.api+path, strings.NewReader(body))
	testkit.Must(t, err)
	for name, value := range header {
		r.Header.Set(name, value)
	}
	response, err := testkit.Client.Do(r)
	return testkit.ReadAnswer(t, response, err)
}

var printedToken = regexp.MustCompile(`-H 'Authorization: (Bearer [^']+)'`)

func TestStart(t *testing.T) {
	for _, test := range []struct {
		name string
		env  map[string]string
		want []string
	}{
		{name: "nothing set",
			want: []string{" development only.\n\nOpen http://localhost:", `"redirect_uri": "http://localhost:`}},
		{name: "all else", env: map[string]string{"JWT_ALGORITHMS": "ES256,RS256", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a",
			"JWT_CLIENT_CLAIM": "org_id", "JWT_MAX_LIFETIME": "1h", "JWT_TYP": "at+jwt", "AUTH_URL": "https://c.example/"},
			want: []string{" development only.\n\nAPI: http://", `"redirect_uri": "https://acme.com/callback"`}},
	} {
		d := newTestDev(t, test.env)
		out := d.out.String()
		for _, want := range append(test.want, "authsession -dev starts", "\nAPI: "+d.api+" (",
			"\nRedis: as REDIS_URL says\n", ".pem, kept for later runs\n",
			"\n\ncurl -sS -X POST "+d.api+"/auth/session ", "}'\n\nThe log follows on stderr") {
			if !strings.Contains(out, want) {
				t.Errorf("%s: -dev prints %s, want %q in it", test.name, out, want)
			}
		}
		header := map[string]string{"Authorization": printedToken.FindStringSubmatch(out)[1]}
		if a := d.do(t, "POST", "/end-users", "{}", header); a.Status != 200 {
			t.Errorf("%s: POST /end-users with the printed token = %d %s, want 200", test.name, a.Status, a.Body)
		}
	}
}

func TestStartClientsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clients.json")
	testkit.Must(t, os.WriteFile(file, []byte(`{"clients": {"acme": {}}}`), 0o600))
	const want = "\nCLIENTS_FILE does not list the client dev, so the page and the command below get 403.\n"
	if out := newTestDev(t, map[string]string{"CLIENTS_FILE": file}).out.String(); !strings.Contains(out, want) {
		t.Errorf("-dev prints %s, want %q in it", out, want)
	}
}

func TestStartRefuses(t *testing.T) {
	for name, value := range map[string]string{"JWKS_URL": "https://h/x", "ADDR": "nonsense", "SESSION_TTL": "x"} {
		getenv := func(asked string) string { return map[string]string{name: value}[asked] }
		d, err := dev.Start(getenv, io.Discard, io.Discard)
		d.Stop()
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Start with %s=%s = %v, want an error that names it", name, value, err)
		}
	}
}

// Keys of the embedded Redis expire by the clock, and Stop ends what Start has started.
func TestStartRedis(t *testing.T) {
	d := newTestDev(t, map[string]string{"REDIS_URL": ""})
	addr := regexp.MustCompile(`Redis: (\S+)`).FindStringSubmatch(d.out.String())[1]
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer c.Close()
	testkit.Must(t, c.Do(t.Context(), "SET", "k", "value", "PX", 50).Err())
	testkit.WaitFor(t, 10*time.Second, "the key to expire", func() bool { return c.Exists(t.Context(), "k").Val() == 0 })
	d.Stop()
	for _, closed := range []string{addr, strings.TrimPrefix(d.page, "http://")} {
		if conn, err := net.Dial("tcp", closed); err == nil {
			_ = conn.Close()
			t.Errorf("%s is open after Stop", closed)
		}
	}
}

func TestToken(t *testing.T) {
	d := newTestDev(t, nil)
	basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	const form = "application/x-www-form-urlencoded"
	for _, test := range []struct {
		name, media, auth, body string
		client                  string // of the token
		wantStatus              int    // 400 if there is no client
	}{
		{name: "JSON without a type", body: ` {"client_secret":"s","client_id":"c-1"}`, client: "c-1"},
		{name: "JSON as a form", media: form, body: `{"client_secret":"s","client_id":"c-1"}`, client: "c-1"},
		{name: "form", media: form, body: "grant_type=x&client_id=c%2F1&client_secret=s", client: "c/1"},
		{name: "Basic and a form", media: form, auth: basic("c%2B1:s%3A"), body: "grant_type=x", client: "c+1"},
		{name: "nothing", media: "application/json", body: "{}"},
		{name: "number", body: `{"client_id":1,"client_secret":"s"}`},
		{name: "broken JSON", body: `{"client_id":"c","client_secret":"s"`},
		{name: "bad escape", media: form, body: "client_id=%zz&client_secret=s"},
		{name: "space", media: form, body: "client_id=a+b&client_secret=s"},
		{name: "long id", media: form, body: "client_secret=s&client_id=" + strings.Repeat("c", 129)},
		{name: "long body", media: form, body: strings.Repeat("c", 64<<10+1), wantStatus: 413},
	} {
		for _, path := range []string{"/token", "/v1/token"} {
			a := d.do(t, "POST", path, test.body, map[string]string{"Content-Type": test.media, "Authorization": test.auth})
			switch {
			case test.wantStatus == 413:
				a.WantError(t, 413, "request_too_large")
			case test.client == "":
				if e := a.WantError(t, 400, "bad_request"); strings.Contains(e.Message, "zz") {
					t.Errorf("%s: message %q quotes the request", test.name, e.Message)
				}
			default:
				a.WantHeaders(t, "application/json")
				var answer map[string]any
				a.Decode(t, &answer)
				token, _ := answer["access_token"].(string)
				claims, _ := base64.RawURLEncoding.DecodeString(strings.Split(token+"..", ".")[1])
				hasClient := strings.Contains(string(claims), `"client_id":"`+test.client+`"`)
				want := map[string]any{"token": token, "access_token": token, "token_type": "Bearer", "expires_in": 900.0}
				if a.Status != 200 || !maps.Equal(answer, want) || !hasClient {
					t.Errorf("%s: POST %s = %d %s, want 200 and a token of %s", test.name, path, a.Status, a.Body, test.client)
				}
			}
		}
	}
}
