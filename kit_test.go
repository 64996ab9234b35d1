package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/listener"
	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// The root's test kit: the real routes behind the real HTTP server, over a real store, with tokens that are signed.

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// testServer is a server that serves.
type testServer struct {
	*server
	url     string // http://127.0.0.1:port
	addr    string // 127.0.0.1:port
	callers *listener.Listener
	log     *testkit.Log
	redis   redis.UniversalClient // looks at what the server wrote
}

// newTestServer serves with env on top of what the service needs: a Redis, a key prefix of the test's own, and a key
// set file with the testkit's keys. It returns once the keys are loaded, unless env has a JWKS_URL. edit may change the
// server before it serves.
func newTestServer(t testing.TB, env map[string]string, edit ...func(*server)) *testServer {
	t.Helper()
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	all := map[string]string{
		"AUTH_URL":   "https://consent.example/start?v=1",
		"REDIS_URL":  "redis://" + redistest.Addr(t),
		"JWKS_URL":   "file://" + jwks,
		"KEY_PREFIX": redistest.Prefix(t),
		"LOG_LEVEL":  "debug",
	}
	maps.Copy(all, env)
	cfg, err := loadConfig(func(name string) string { return all[name] })
	testkit.Must(t, err)
	if env["JWKS_URL"] == "" {
		testkit.WriteKeySet(t, jwks, testkit.RSA(), testkit.EC(), testkit.Ed())
	}
	ts := &testServer{log: &testkit.Log{}, redis: cfg.redis.Open(10 * time.Second)}
	log := slog.New(slog.NewJSONHandler(ts.log, &slog.HandlerOptions{Level: cfg.logLevel}))
	ts.server = newServer(cfg, log, ts.log)
	for _, f := range edit {
		f(ts.server)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { ts.verifier.Run(ctx) })
	running.Go(func() { ts.clients.Run(ctx, log) })
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	ts.callers = listener.New(tcp, maxConnections)
	srv := newHTTPServer(ts.routes(), cfg.storeTimeout, log)
	running.Go(func() { _ = srv.Serve(ts.callers) })
	ts.addr = tcp.Addr().String()
	ts.url = "http://" + ts.addr
	t.Cleanup(func() {
		_ = srv.Close()
		cancel()
		running.Wait()
		_ = ts.store.close()
		_ = ts.redis.Close()
	})
	if env["JWKS_URL"] == "" {
		testkit.WaitFor(t, 5*time.Second, "the key set", ts.verifier.Ready)
	}
	return ts
}

// newSlowTestServer is a test server over a Redis whose replies wait while gate is locked. Its one connection is there.
func newSlowTestServer(t testing.TB, env map[string]string) (ts *testServer, gate *sync.RWMutex) {
	t.Helper()
	gate = &sync.RWMutex{}
	slow := redistest.StartProxy(t, redistest.Addr(t), func(client *net.TCPConn, reply []byte, came time.Time) {
		gate.RLock()
		defer gate.RUnlock()
		redistest.Pass(client, reply, came)
	})
	all := map[string]string{"REDIS_URL": "redis://" + slow.Addr, "STORE_TIMEOUT": "10s"}
	maps.Copy(all, env)
	ts = newTestServer(t, all)
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody))
	return ts, gate
}

const goodBody = `{"end_user_id":"eu_1"}`

// token is a good token.
func (ts *testServer) token(t testing.TB) string {
	t.Helper()
	return testkit.Sign(t, testkit.EC(), testkit.Claims())
}

// tokenOf is a good token of another client.
func (ts *testServer) tokenOf(t testing.TB, client string) string {
	t.Helper()
	claims := testkit.Claims()
	claims["client_id"] = client
	return testkit.Sign(t, testkit.EC(), claims)
}

// jsonHeader is what a good request has.
func (ts *testServer) jsonHeader(t testing.TB) http.Header {
	return http.Header{"Authorization": {"Bearer " + ts.token(t)}, "Content-Type": {"application/json"}}
}

// post sends POST /auth/session with a token and a JSON body; "" sends no Authorization.
func (ts *testServer) post(t testing.TB, token, body string) testkit.Answer {
	t.Helper()
	h := http.Header{"Content-Type": {"application/json"}}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return ts.do(t, "POST", "/auth/session", h, strings.NewReader(body))
}

// do sends a request and checks its answer against openapi.yaml.
func (ts *testServer) do(t testing.TB, method, path string, h http.Header, body io.Reader) testkit.Answer {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, ts.url+path, body)
	testkit.Must(t, err)
	maps.Copy(r.Header, h)
	response, err := testkit.Client.Do(r)
	a := testkit.ReadAnswer(t, response, err)
	var sent io.Reader
	if r.GetBody != nil {
		sent, _ = r.GetBody()
	}
	wantDescribed(t, path, sent, a)
	return a
}

// key is where a session's record is in Redis.
func (ts *testServer) key(secret string) string { return ts.store.prefix + hashSecret(secret) }

// wantSession checks a 200 whole: headers, the four members, and the record in Redis with EXPIRETIME equal to
// expires_at. It returns the record.
func (ts *testServer) wantSession(t testing.TB, a testkit.Answer) session {
	t.Helper()
	if a.Status != http.StatusOK {
		t.Fatalf("status = %d %s, want 200", a.Status, a.Body)
	}
	a.WantHeaders(t, "application/json")
	var s testkit.SessionAnswer
	a.Decode(t, &s)
	if len(s.SessionID) < 22 || s.AuthURL != ts.authURL+s.SessionID {
		t.Fatalf("answer %s: auth_url is not AUTH_URL with sess_id", a.Body)
	}
	value, err := ts.redis.Get(t.Context(), ts.key(s.SessionID)).Bytes()
	if err != nil {
		t.Fatalf("GET of the record: %v", err)
	}
	at, err := ts.redis.ExpireTime(t.Context(), ts.key(s.SessionID)).Result()
	if err != nil || int64(at/time.Second) != s.ExpiresAt {
		t.Fatalf("EXPIRETIME = %d, %v, want expires_at %d", at/time.Second, err, s.ExpiresAt)
	}
	var record session
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(&record); err != nil {
		t.Fatalf("decoding record %s: %v", value, err)
	}
	if record.Version != 1 || record.ID != s.ID || record.ExpiresAt != s.ExpiresAt {
		t.Fatalf("record %s does not fit answer %s", value, a.Body)
	}
	return record
}

// sessionKeys are the keys in Redis that the server has made, but for its probe's.
func (ts *testServer) sessionKeys(t testing.TB) []string {
	t.Helper()
	keys, err := ts.redis.Keys(context.Background(), ts.store.prefix+"*").Result()
	testkit.Must(t, err)
	var sessions []string
	for _, key := range keys {
		if !strings.HasPrefix(key, ts.store.prefix+"probe") {
			sessions = append(sessions, key)
		}
	}
	return sessions
}

// wantSessions checks that there are so many sessions in Redis: refusals leave none.
func (ts *testServer) wantSessions(t testing.TB, n int) {
	t.Helper()
	if keys := ts.sessionKeys(t); len(keys) != n {
		t.Errorf("%d sessions in Redis, want %d: %q", len(keys), n, keys)
	}
}

// logged is the one log line of the request that got a. The line comes after the answer.
func (ts *testServer) logged(t testing.TB, a testkit.Answer) map[string]any {
	t.Helper()
	id := a.Header.Get("X-Request-Id")
	text := fmt.Sprintf(`"request_id":%q`, id)
	testkit.WaitFor(t, 5*time.Second, "the log line of the request", func() bool { return ts.log.Has(text) })
	if n := strings.Count(ts.log.String(), text); n != 1 {
		t.Fatalf("%d log lines of one request, want 1", n)
	}
	return ts.log.Line(t, "request_id", id)
}

// wantRefused checks a refusal whole, and that its log line fits it. It returns the error and the line.
func (ts *testServer) wantRefused(t testing.TB, a testkit.Answer, status int, name string) (
	e testkit.ErrorAnswer, line map[string]any,
) {
	t.Helper()
	e, line = a.WantError(t, status, name), ts.logged(t, a)
	level := "INFO"
	if status >= 500 {
		level = "ERROR"
	}
	for member, want := range map[string]any{
		"error_id": e.ID, "error": name, "status": float64(status), "level": level,
	} {
		if line[member] != want {
			t.Errorf("log line of %s: %s = %v, want %v", a.Body, member, line[member], want)
		}
	}
	if cause, _ := line["cause"].(string); cause == "" {
		t.Errorf("log line of %s has no cause", a.Body)
	}
	return e, line
}

// waitBusy waits until n requests are in work.
func (ts *testServer) waitBusy(t testing.TB, n int) {
	t.Helper()
	testkit.WaitFor(t, 5*time.Second, fmt.Sprintf("%d requests in work", n),
		func() bool { return ts.inFlight.InUse() == n })
}

// authorization is the header line of a good token.
func (ts *testServer) authorization(t testing.TB) string {
	return "Authorization: Bearer " + ts.token(t)
}

// goodLength is the header line of goodBody.
var goodLength = fmt.Sprintf("Content-Length: %d", len(goodBody))

// message is a request's head.
func message(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

func (ts *testServer) goodRequest(t testing.TB) string {
	return message("POST /auth/session HTTP/1.1", "Host: x", ts.authorization(t), goodLength) + goodBody
}

// wire is a connection to say what no HTTP client would, or to say it slowly.
type wire struct {
	*net.TCPConn
	in *bufio.Reader
}

func (ts *testServer) dial(t testing.TB) *wire {
	t.Helper()
	c, err := net.Dial("tcp", ts.addr)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	testkit.Must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return &wire{c.(*net.TCPConn), bufio.NewReader(c)}
}

func (w *wire) send(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatalf("sending %.100q: %v", text, err)
	}
}

// answer reads the answer to a request of that method.
func (w *wire) answer(t testing.TB, method string) testkit.Answer {
	t.Helper()
	response, err := http.ReadResponse(w.in, &http.Request{Method: method})
	a := testkit.ReadAnswer(t, response, err)
	if response.Close { // which ReadResponse makes of the header
		a.Header.Set("Connection", "close")
	}
	wantDescribed(t, "", nil, a)
	return a
}

// wantClosed checks that nothing more comes, and soon.
func (w *wire) wantClosed(t testing.TB) {
	t.Helper()
	_ = w.SetReadDeadline(time.Now().Add(3 * time.Second))
	rest, err := io.ReadAll(w.in)
	if netErr, ok := err.(net.Error); len(rest) > 0 || ok && netErr.Timeout() {
		t.Fatalf("the connection is open, or had %q: %v", rest, err)
	}
}

// dribble sends piece again and again until stop is called.
func (w *wire) dribble(piece string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	sending.Go(func() {
		for tick := time.Tick(100 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick:
				_, _ = io.WriteString(w, piece) // until it is closed
			}
		}
	})
	return func() { cancel(); sending.Wait() }
}

// exchange sends text on a connection of its own and reads one answer.
func (ts *testServer) exchange(t testing.TB, text string) testkit.Answer {
	t.Helper()
	w := ts.dial(t)
	w.send(t, text)
	method, _, _ := strings.Cut(text, " ")
	return w.answer(t, method)
}
