package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/config"
	"authsession/internal/keytool"
	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/redis/go-redis/v9"
)

// The kit serves the real routes by the real HTTP server over a real Redis. It alone knows the server's fields: the
// tests use HTTP, or TCP where no HTTP client would send such bytes.

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

const (
	goodBody = `{"end_user_id":"eu_1"}`
	mark     = "mark-9" // a part of bad requests, which no answer may echo
)

type testServer struct {
	*server
	url, addr string // http://127.0.0.1:port, 127.0.0.1:port
	prefix    string // KEY_PREFIX
	log       *testkit.Log
	redis     *redis.Client // reads what the server wrote
	created   atomic.Int64  // sessions that record has seen
}

// testEnv returns env on top of what the service needs: the shared Redis, a key prefix of its own, and a key set file.
func testEnv(t testing.TB, env map[string]string) map[string]string {
	t.Helper()
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	testkit.WriteKeySet(t, jwks, testkit.RSA(), testkit.EC(), testkit.Ed())
	all := map[string]string{"ADDR": "127.0.0.1:0", "AUTH_URL": "https://consent.example/start?v=1",
		"REDIS_URL": "redis://" + redistest.Addr(t), "JWKS_URL": "file://" + jwks,
		"KEY_PREFIX": redistest.Prefix(t), "STORE_TIMEOUT": "15s", "LOG_LEVEL": "debug"}
	maps.Copy(all, env)
	return all
}

// newTestServer serves with env on top of testEnv's. It returns once the keys are loaded, unless env has a JWKS_URL.
// edit may change the server before it serves.
func newTestServer(t testing.TB, env map[string]string, edit ...func(*server)) *testServer {
	t.Helper()
	all := testEnv(t, env)
	cfg, err := config.Load(func(name string) string { return all[name] })
	testkit.Must(t, err)
	ts := &testServer{prefix: all["KEY_PREFIX"], log: &testkit.Log{}}
	ts.redis = redis.NewClient(&redis.Options{Addr: redistest.Addr(t)})
	log := slog.New(slog.NewJSONHandler(ts.log, &slog.HandlerOptions{Level: cfg.LogLevel}))
	ts.server = newServer(cfg, log, ts.log)
	for _, f := range edit {
		f(ts.server)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { ts.verifier.Run(ctx) })
	running.Go(func() { cfg.Clients.Run(ctx, log) })
	tcp, err := net.Listen("tcp", all["ADDR"])
	testkit.Must(t, err)
	srv := newHTTPServer(ts.routes(), cfg.StoreTimeout, log)
	running.Go(func() { _ = srv.Serve(tcp) })
	ts.addr = tcp.Addr().String()
	ts.url = "http://" + ts.addr
	t.Cleanup(func() {
		_ = srv.Close()
		cancel()
		running.Wait()
		ts.store.close()
		_ = ts.redis.Close()
	})
	if env["JWKS_URL"] == "" {
		testkit.WaitFor(t, 20*time.Second, "the key set", ts.verifier.Ready)
	}
	return ts
}

// withClock has the server call now for each session.
func withClock(now func() time.Time) func(*server) { return func(s *server) { s.now = now } }

// waitInFlight waits until n requests are in flight, their bodies read.
func (ts *testServer) waitInFlight(t testing.TB, n int) {
	t.Helper()
	testkit.WaitFor(t, 20*time.Second, "the requests in flight", func() bool { return ts.inFlight.InUse() == n })
}

// signed returns the client acme's good token with some claims changed; a nil value removes one.
func signed(t testing.TB, changes map[string]any) string {
	return testkit.Sign(t, testkit.EC(), testkit.With(changes))
}

func (ts *testServer) token(t testing.TB) string { return signed(t, nil) }

func tokenOf(t testing.TB, client string) string {
	return signed(t, map[string]any{"client_id": client})
}

// post sends POST /auth/session with a JSON body and a token; "" is none.
func (ts *testServer) post(t testing.TB, token, body string) testkit.Answer {
	t.Helper()
	h := http.Header{"Content-Type": {"application/json"}}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return ts.do(t, "POST", sessionPath, h, body)
}

// do sends a request and checks its answer against openapi.yaml.
func (ts *testServer) do(t testing.TB, method, path string, h http.Header, body string) testkit.Answer {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, ts.url+path, strings.NewReader(body))
	testkit.Must(t, err)
	maps.Copy(r.Header, h)
	response, err := testkit.Client.Do(r)
	a := testkit.ReadAnswer(t, response, err)
	wantDescribed(t, path, body, a)
	return a
}

// record returns the value in Redis of the session that a made, and checks that its EXPIRETIME is expires_at.
func (ts *testServer) record(t testing.TB, a testkit.Answer) (testkit.SessionAnswer, []byte) {
	t.Helper()
	if a.Status != 200 {
		t.Fatalf("POST /auth/session = %d %s, want 200", a.Status, a.Body)
	}
	a.WantHeaders(t, "application/json")
	var s testkit.SessionAnswer
	a.Decode(t, &s)
	key := fmt.Sprintf("%s%x", ts.prefix, sha256.Sum256([]byte(s.SessionID)))
	value, err := ts.redis.Get(t.Context(), key).Bytes()
	testkit.Must(t, err)
	at, err := ts.redis.ExpireTime(t.Context(), key).Result()
	if err != nil || int64(at/time.Second) != s.ExpiresAt {
		t.Fatalf("EXPIRETIME = %d, %v, want expires_at %d", at/time.Second, err, s.ExpiresAt)
	}
	ts.created.Add(1)
	return s, value
}

// sessionRecord is the value in Redis.
type sessionRecord struct {
	Version     int    `json:"v"`
	ID          string `json:"id"`
	ClientID    string `json:"client_id"`
	RedirectURI string `json:"redirect_uri"`
	CancelURI   string `json:"cancel_uri"`
	Permissions []string
	CreatedAt   int64 `json:"created_at"`
	ExpiresAt   int64 `json:"expires_at"`
}

// wantSession checks a 200 whole and returns the record in Redis.
func (ts *testServer) wantSession(t testing.TB, a testkit.Answer) (r sessionRecord) {
	t.Helper()
	s, value := ts.record(t, a)
	if err := json.Unmarshal(value, &r); err != nil || r.Version != 1 || r.ID != s.ID || r.ExpiresAt != s.ExpiresAt ||
		s.AuthURL != "https://consent.example/start?v=1&sess_id="+s.SessionID || !a.EndsInNewline() {
		t.Fatalf("answer %s does not fit record %s: %v", a.Body, value, err)
	}
	return r
}

// wantKeys checks that Redis has the sessions that record has seen, and no others.
func (ts *testServer) wantKeys(t testing.TB) {
	t.Helper()
	keys, err := ts.redis.Keys(context.Background(), ts.prefix+"*").Result()
	testkit.Must(t, err)
	keys = slices.DeleteFunc(keys, func(key string) bool { return strings.HasPrefix(key, ts.prefix+"probe") })
	if want := ts.created.Load(); int64(len(keys)) != want {
		t.Errorf("%d sessions in Redis, want %d: %q", len(keys), want, keys)
	}
}

func TestRoutes(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, group := range []struct {
		want, allow string
		requests    []string
	}{
		{want: "200", requests: []string{
			"POST /auth/session", "POST /v1/auth/session", "POST /auth/session?x=1&end_user_id=other", "POST /auth/session?",
			"POST http://foreign.example/auth/session"}},
		{want: "405 method_not_allowed", allow: "POST", requests: []string{
			"GET /auth/session", "PUT /auth/session", "DELETE /auth/session", "PATCH /auth/session", "HEAD /auth/session",
			"TRACE /auth/session", "OPTIONS /auth/session", "CONNECT /auth/session", "FOO /auth/session",
			"post /auth/session", "Post /v1/auth/session", "GET /v1/auth/session"}},
		{want: "405 method_not_allowed", allow: "GET, HEAD", requests: []string{
			"POST /livez", "OPTIONS /readyz", "FOO /readyz", "get /livez", "POST /openapi.yaml"}},
		{want: "404 not_found", requests: []string{
			"CONNECT foreign.example:443", "OPTIONS *", "POST /", "HEAD /", "FOO /", "POST /auth/session/",
			"POST //auth/session", "POST /auth//session", "POST /x/../auth/session", "POST /./auth/session",
			"POST /AUTH/session", "POST /auth/session;x=1", "POST /%61uth/session", "POST /auth%2Fsession",
			"POST /auth/session%00", "POST /auth/session%20", "POST /auth/session%3Fx", "POST /v1/v1/auth/session",
			"POST /v2/auth/session", "GET /v1/livez", "GET /v1/openapi.yaml", "GET /metrics", "GET /livez/", "GET /%6Civez",
			"GET /debug/pprof/", "POST /token", "POST /v1/end-users", "POST /" + mark}},
	} {
		for _, request := range group.requests {
			a := ts.exchange(t, message(request+" HTTP/1.1", "Host: foreign.example", "X-Forwarded-Host: foreign.example",
				"X-HTTP-Method-Override: POST", authorization(t), goodLength)+goodBody)
			if !strings.HasPrefix(request, "HEAD ") {
				ts.want(t, a, group.want)
			} else if a.WantHeaders(t, goaError); fmt.Sprint(a.Status) != group.want[:3] || len(a.Body) > 0 {
				t.Errorf("%s = %d with %d bytes, want %s and none", request, a.Status, len(a.Body), group.want)
			}
			if allow, location := a.Header.Get("Allow"), a.Header.Get("Location"); allow != group.allow || location != "" {
				t.Errorf("%s: Allow = %q, Location = %q, want %q and none", request, allow, location, group.allow)
			}
		}
	}
}

func TestHealth(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, path := range []string{"/livez", "/readyz"} {
		for method, body := range map[string]string{"GET": "ok\n", "HEAD": ""} {
			a := ts.do(t, method, path, nil, "")
			a.WantHeaders(t, "text/plain; charset=utf-8")
			if level := ts.logged(t, a)["level"]; a.Status != 200 || string(a.Body) != body || level != "DEBUG" {
				t.Errorf("%s %s = %d %q, logged as %v, want 200 %q and DEBUG", method, path, a.Status, a.Body, level, body)
			}
		}
	}
	ts.wantKeys(t)
}

// wire is a caller's TCP connection.
type wire struct {
	*net.TCPConn
	in *bufio.Reader
}

// open connects and sends text.
func (ts *testServer) open(t testing.TB, text string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", ts.addr)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	testkit.Must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(c, text)
	testkit.Must(t, err)
	return &wire{c.(*net.TCPConn), bufio.NewReader(c)}
}

// answer reads the answer to a request of that method.
func (w *wire) answer(t testing.TB, method string) testkit.Answer {
	t.Helper()
	response, err := http.ReadResponse(w.in, &http.Request{Method: method})
	a := testkit.ReadAnswer(t, response, err)
	if response.Close { // ReadResponse takes it out of the header
		a.Header.Set("Connection", "close")
	}
	wantDescribed(t, "", "", a)
	return a
}

// wantClosed checks that nothing more comes.
func (w *wire) wantClosed(t testing.TB) {
	t.Helper()
	rest, err := io.ReadAll(w.in)
	if netErr, ok := err.(net.Error); len(rest) > 0 || ok && netErr.Timeout() {
		t.Fatalf("the connection is open, or had %q: %v", rest, err)
	}
}

// exchange sends text on a connection of its own and reads one answer.
func (ts *testServer) exchange(t testing.TB, text string) testkit.Answer {
	t.Helper()
	method, _, _ := strings.Cut(text, " ")
	return ts.open(t, text).answer(t, method)
}

// message is a request's head.
func message(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

var goodLength = fmt.Sprintf("Content-Length: %d", len(goodBody))

func authorization(t testing.TB) string { return "Authorization: Bearer " + signed(t, nil) }

func goodRequest(t testing.TB) string {
	return message("POST /auth/session HTTP/1.1", "Host: x", authorization(t), goodLength) + goodBody
}

// TestHTTP has what net/http refuses by itself, with an answer of its own, and what is near to it.
func TestHTTP(t *testing.T) {
	ts := newTestServer(t, nil)
	const post, host, chunked = "POST /auth/session HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"
	auth := authorization(t)
	with := func(lines ...string) string { return message(append([]string{post, host, auth}, lines...)...) }
	good := func(lines ...string) string { return with(append([]string{goodLength}, lines...)...) + goodBody }
	other := func(version, line string) string { return message("POST /auth/session "+version, host, auth, line) }
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(goodBody), goodBody)
	usual := slices.Repeat([]string{"X-Usual-Header: of some forty bytes in all"}, 20)
	tokenOf8K := []string{post, host, "Authorization: Bearer " + longToken(t, 8<<10), goodLength}
	long := strings.Repeat("x", 16<<10)
	for _, group := range []struct {
		want     string // with the name where it is a handler's
		requests []string
	}{
		{want: "200", requests: []string{
			good("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
			good("X-A: b", "\tc"), message(append(tokenOf8K, usual...)...) + goodBody, good(goodLength),
			with(chunked) + chunks, other("HTTP/1.0", goodLength) + goodBody}},
		{want: "400 bad_request", requests: []string{other("HTTP/1.0", chunked) + chunks}}, // of no length
		{want: "400", requests: []string{
			message(post, auth, goodLength) + goodBody, good("Host: y"), message("POST /auth/session", host),
			"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", message("POST /auth/session%zz HTTP/1.1", host),
			good("Content-Length: 5"), with("Content-Length: 22, 22") + goodBody, with("Content-Length: +22") + goodBody,
			with("Content-Length: -1") + goodBody, with("Content-Length: 1e20") + goodBody,
			with("Content-Length: 100000000000000000000") + goodBody, with("Transfer-Encoding : chunked") + chunks}},
		{want: "417", requests: []string{with(goodLength, "Expect: 200-ok")}},
		{want: "431", requests: []string{
			good("X-Long: " + long), message("POST /auth/session?"+long+" HTTP/1.1", host, auth),
			good(slices.Repeat([]string{"a: bcd"}, 2000)...)}},
		{want: "501", requests: []string{
			with("Transfer-Encoding: xchunked") + chunks, with("Transfer-Encoding: gzip, chunked") + chunks,
			with(chunked, chunked) + chunks}},
		{want: "505", requests: []string{other("HTTP/3.0", goodLength) + goodBody}},
	} {
		for i, request := range group.requests {
			t.Run(fmt.Sprintf("%s, %d", group.want, i), func(t *testing.T) {
				a := ts.exchange(t, request)
				if group.want == "200" || strings.Contains(group.want, " ") {
					ts.want(t, a, group.want)
				} else if fmt.Sprint(a.Status) != group.want || a.Header["Goa-Error"] != nil || a.Header["X-Request-Id"] != nil {
					t.Errorf("%.300q = %d %v %s, want net/http's own %s", request, a.Status, a.Header, a.Body, group.want)
				}
			})
		}
	}
	ts.wantKeys(t)
}

// No byte of a pipelined body is ever a request, however many lines it has.
func TestPipelining(t *testing.T) {
	pretty := func(lines int) string {
		return "{\n  \"end_user_id\": \"eu_1\",\n  \"more\": [\n" + strings.Repeat("    0,\n", lines-6) + "    0\n  ]\n}\n"
	}
	line := strings.Repeat("0", 60) + "\n"
	inside := strings.Repeat(line, 250) + message("GET /livez HTTP/1.1", "Host: x") + goodRequest(t)
	for _, test := range []struct {
		name, body, want string // the answer to the second request
	}{
		{name: "250 lines", body: pretty(250), want: "200"},
		{name: "505 lines", body: pretty(505), want: "200"},
		{name: "3,005 lines", body: pretty(3005), want: "200"},
		{name: "requests inside", body: inside, want: "400 bad_request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ts := newTestServer(t, nil)
			w := ts.open(t, goodRequest(t)+message("POST /auth/session HTTP/1.1", "Host: x", authorization(t),
				fmt.Sprintf("Content-Length: %d", len(test.body))))
			for part := range slices.Chunk([]byte(test.body), 1400) { // packets
				time.Sleep(5 * time.Millisecond)
				_, _ = w.Write(part)
			}
			ts.wantSession(t, w.answer(t, "POST"))
			ts.want(t, w.answer(t, "POST"), test.want)
			_, _ = io.WriteString(w, message("GET /livez HTTP/1.1", "Host: x", "Connection: close"))
			if a := w.answer(t, "GET"); a.Status != 200 || string(a.Body) != "ok\n" {
				t.Errorf("GET /livez afterwards = %d %s, want 200", a.Status, a.Body)
			}
			w.wantClosed(t)
			ts.wantKeys(t)
		})
	}
}

// A refusal waits for no body. The connection ends where the next request's beginning is in doubt: after a body that is
// not there, is broken, or is chunked, because a proxy may have believed a Content-Length beside that.
func TestLastRequest(t *testing.T) {
	ts := newTestServer(t, nil)
	const post, get, host, bad = "POST /auth/session HTTP/1.1", "GET /livez HTTP/1.1", "Host: x", "Authorization: Bearer x"
	good, chunked, large := authorization(t), "Transfer-Encoding: chunked", strings.Repeat(" ", 300<<10)
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(goodBody), goodBody)
	for _, test := range []struct {
		name, head    string
		before, after string // of the body, sent before and after the answer
		want          int
		reuse         bool // the connection serves another request
	}{
		{name: "no body", head: message(post, host, bad), want: 401, reuse: true},
		{name: "whole, refused", head: message(post, host, good, "Content-Length: 2"), before: "[]", want: 400, reuse: true},
		{name: "unsent", head: message(post, host, bad, goodLength), after: goodBody, want: 401},
		{name: "half sent", head: message(post, host, bad, goodLength), before: goodBody[:5], after: goodBody[5:], want: 401},
		{name: "chunk unsent", head: message(post, host, bad, chunked), after: chunks, want: 401},
		{name: "unsent, method", head: message("PUT /auth/session HTTP/1.1", host, goodLength), after: goodBody, want: 405},
		{name: "unsent, GET", head: message(get, host, goodLength), after: goodBody, want: 200},
		{name: "chunk unsent, GET", head: message(get, host, chunked), after: chunks, want: 200},
		{name: "no 100", head: message(post, host, bad, goodLength, "Expect: 100-continue"), after: goodBody, want: 401},
		{name: "300 KiB", head: message(post, host, bad, "Content-Length: 307200"), after: large, want: 401},
		{name: "300 KiB in a chunk", head: message(post, host, bad, chunked), after: "4b000\r\n" + large, want: 401},
		{name: "broken chunk", head: message(post, host, bad, chunked), before: "zz\r\n", want: 401},
		{name: "broken chunk, good token", head: message(post, host, good, chunked), before: "zz\r\n", want: 400},
		{name: "broken end of a chunk", head: message(post, host, good, chunked), before: "1\r\nxyz\r\n", want: 400},
		{name: "chunked", head: message(post, host, good, chunked, goodLength), before: chunks, want: 200},
		{name: "smuggled", head: message(post, host, good, "Content-Length: 3", chunked), before: chunks + "GET", want: 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			start := time.Now()
			w := ts.open(t, test.head+test.before)
			a := w.answer(t, "POST")
			if a.Status != test.want {
				t.Fatalf("status = %d %s, want %d", a.Status, a.Body, test.want)
			} else if test.want != 200 {
				ts.wantError(t, a, fmt.Sprint(test.want, " ", a.Header.Get("Goa-Error")))
			} else if string(a.Body) != "ok\n" {
				ts.wantSession(t, a)
			}
			if took := time.Since(start); took > 5*time.Second { // before the body's time limit
				t.Errorf("answered after %s, want at once", took)
			}
			_, _ = io.WriteString(w, test.after+message(get, host, "Connection: close")) // may fail
			if test.reuse {
				if a := w.answer(t, "GET"); a.Status != 200 {
					t.Errorf("GET /livez on the same connection = %d, want 200", a.Status)
				}
			}
			w.wantClosed(t)
		})
	}
}

func TestExpectContinue(t *testing.T) {
	ts := newTestServer(t, nil)
	w := ts.open(t, message("POST /auth/session HTTP/1.1", "Host: x", authorization(t), goodLength,
		"Expect: 100-continue"))
	if a := w.answer(t, "POST"); a.Status != 100 {
		t.Fatalf("POST with Expect and a good token = %d, want 100", a.Status)
	}
	_, _ = io.WriteString(w, goodBody)
	ts.wantSession(t, w.answer(t, "POST"))
}

// The limit counts the body as it was sent. Beyond it the connection ends.
func TestBodySize(t *testing.T) {
	ts := newTestServer(t, nil)
	head := []string{"POST /auth/session HTTP/1.1", "Host: x", authorization(t)}
	for _, size := range []int{64 << 10, 64<<10 + 1, 1 << 20, 100 << 20} {
		for _, framing := range []string{fmt.Sprintf("Content-Length: %d", size), "Transfer-Encoding: chunked"} {
			t.Run(fmt.Sprintf("%d bytes, %.7s", size, framing), func(t *testing.T) {
				w := ts.open(t, message(append(head, framing)...))
				var sending sync.WaitGroup
				defer sending.Wait()
				sending.Go(func() { // it is refused before all is sent
					var body io.Writer = w
					if framing == "Transfer-Encoding: chunked" {
						chunked := httputil.NewChunkedWriter(w)
						defer func() {
							_ = chunked.Close()
							_, _ = io.WriteString(w, "\r\n")
						}()
						body = chunked
					}
					_, _ = io.WriteString(body, goodBody+strings.Repeat(" ", size-len(goodBody)))
				})
				if a := w.answer(t, "POST"); size <= 64<<10 {
					ts.wantSession(t, a)
					return
				} else if ts.wantError(t, a, "413 request_too_large"); a.Header.Get("Connection") != "close" {
					t.Errorf("Connection = %q, want close", a.Header.Get("Connection"))
				}
				w.wantClosed(t)
				_ = w.Close()
			})
		}
	}
	w := ts.open(t, message(append(head, "Content-Length: 1073741824")...)) // and nothing of it
	ts.wantError(t, w.answer(t, "POST"), "413 request_too_large")
	w.wantClosed(t)
	w = ts.open(t, message(append(head, "Content-Length: 100")...)+goodBody)
	_ = w.CloseWrite()
	ts.wantError(t, w.answer(t, "POST"), "400 bad_request")
	w.wantClosed(t)
}

// A body that is not whole after 10 s gets 408.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, nil)
	stalled := ts.open(t, strings.TrimSuffix(goodRequest(t), "}"))
	dribbled := ts.open(t, message("POST /auth/session HTTP/1.1", "Host: x", authorization(t), "Content-Length: 60000"))
	var sending sync.WaitGroup
	defer sending.Wait()
	defer dribbled.Close()
	sending.Go(func() {
		for err := error(nil); err == nil; time.Sleep(100 * time.Millisecond) {
			_, err = io.WriteString(dribbled, " ")
		}
	})
	for _, w := range []*wire{stalled, dribbled} {
		a := w.answer(t, "POST")
		if ts.wantError(t, a, "408 timeout"); a.Header.Get("Connection") != "close" {
			t.Errorf("Connection = %q, want close", a.Header.Get("Connection"))
		}
		w.wantClosed(t)
	}
}

// slowRedis returns variables for a Redis whose replies wait while gate is locked.
func slowRedis(t testing.TB) (env map[string]string, gate *sync.RWMutex) {
	t.Helper()
	gate = &sync.RWMutex{}
	proxy := redistest.StartProxy(t, redistest.Addr(t), func(client *net.TCPConn, reply []byte, came time.Time) {
		gate.RLock()
		defer gate.RUnlock()
		redistest.Pass(client, reply, came)
	})
	return map[string]string{"REDIS_URL": "redis://" + proxy.Addr}, gate
}

// newSlowTestServer serves over a slow Redis, to which it has a connection.
func newSlowTestServer(t testing.TB, env map[string]string) (*testServer, *sync.RWMutex) {
	t.Helper()
	all, gate := slowRedis(t)
	maps.Copy(all, env)
	ts := newTestServer(t, all)
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody))
	return ts, gate
}

// net/http cancels the context of a caller that has closed its side, but the caller still reads.
func TestHalfClose(t *testing.T) {
	ts, gate := newSlowTestServer(t, nil)
	for _, delay := range []time.Duration{0, 300 * time.Millisecond} {
		gate.Lock()
		w := ts.open(t, goodRequest(t))
		if delay > 0 {
			ts.waitInFlight(t, 1)
		}
		_ = w.CloseWrite()
		time.AfterFunc(delay, gate.Unlock)
		ts.wantSession(t, w.answer(t, "POST"))
		w.wantClosed(t)
	}
}

// The test counts the process's goroutines, so it is not parallel.
func TestDisconnect(t *testing.T) {
	ts, gate := newSlowTestServer(t, nil)
	testkit.Client.CloseIdleConnections()
	noneServes := func() bool {
		stacks := make([]byte, 4<<20)
		return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("net/http.(*conn).serve("))
	}
	testkit.WaitFor(t, 20*time.Second, "idle connections to close", noneServes)
	gate.Lock()
	for n := range 10 {
		w := ts.open(t, goodRequest(t))
		ts.waitInFlight(t, n+1)
		_ = w.SetLinger(0) // a reset, not half a close
		_ = w.Close()
	}
	gate.Unlock()
	ts.waitInFlight(t, 0)
	testkit.WaitFor(t, 20*time.Second, "the connections' goroutines to end", noneServes)
	if text := ts.log.String(); strings.Contains(text, "panic") || strings.Count(text, `"msg":"request"`) != 11 {
		t.Errorf("log = %s, want 11 requests and no panic", text)
	}
}

// One client holds at most three quarters of MAX_IN_FLIGHT. A place is taken when the body is there.
func TestMaxInFlight(t *testing.T) {
	ts, gate := newSlowTestServer(t, map[string]string{"MAX_IN_FLIGHT": "4"})
	token, other := ts.token(t), tokenOf(t, "other")
	slow := ts.open(t, strings.TrimSuffix(goodRequest(t), "}")) // holds no place
	gate.Lock()
	answers := make(chan testkit.Answer)
	for n, token := range []string{token, token, token, other} {
		go func() { answers <- ts.post(t, token, goodBody) }()
		ts.waitInFlight(t, n+1)
		if n == 2 {
			e := ts.post(t, token, "{").WantError(t, 503, "unavailable") // before the fields
			if !strings.Contains(e.Message, "of this client") {
				t.Errorf("message = %q, want it to name the client's share", e.Message)
			}
		}
	}
	// Records are in Redis before their answers, so refusals are checked without the keys.
	if e := ts.post(t, other, "{").WantError(t, 503, "unavailable"); !strings.HasPrefix(e.Message, "too many requests") {
		t.Errorf("message = %q, want it to name all requests", e.Message)
	}
	ts.post(t, "x", goodBody).WantError(t, 401, "unauthorized") // needs no place
	_, _ = io.WriteString(slow, "}")
	slow.answer(t, "POST").WantError(t, 503, "unavailable")
	gate.Unlock()
	for range 4 {
		ts.wantSession(t, <-answers)
	}
	ts.wantSession(t, ts.post(t, token, goodBody))
	ts.wantKeys(t)
}

// The challenges are spelled out: callers match on their text.
const (
	noToken      = `Bearer`
	invalidToken = `Bearer error="invalid_token"`
	lacksScope   = `Bearer error="insufficient_scope", scope="api:user.write"`
)

// wantChallenge checks what a credential gets: a session, or 401 or 403 with the challenge. The log says why, the
// answer does not.
func (ts *testServer) wantChallenge(t testing.TB, a testkit.Answer, challenge, cause string) (r sessionRecord) {
	t.Helper()
	if got := strings.Join(a.Header.Values("Www-Authenticate"), " | "); got != challenge {
		t.Errorf("WWW-Authenticate = %q, want %q", got, challenge)
	}
	if challenge == "" {
		return ts.wantSession(t, a)
	}
	want, message := "401 unauthorized", "send a valid bearer token in the Authorization header"
	if challenge == lacksScope {
		want, message = "403 forbidden", "the access token needs the scope api:user.write"
	}
	e, line := ts.wantError(t, a, want)
	if got, _ := line["cause"].(string); e.Message != message || !strings.Contains(got, cause) {
		t.Errorf("message = %q, logged cause = %q, want %q and %q", e.Message, got, message, cause)
	}
	return r
}

func TestAuthorization(t *testing.T) {
	ts := newTestServer(t, nil)
	good := ts.token(t)
	bad := good[:len(good)-8] + "AAAAAAAA"
	const none, malformed = "no bearer token", "not a compact JWT"
	for _, group := range []struct {
		challenge, cause string
		headers          []string // the lines of one request each
	}{
		{challenge: noToken, cause: none, headers: []string{
			"X-Other: 1", "Authorization:", "Authorization:  \t ", "Authorization: Bearer", "Authorization: Bearer ",
			"Authorization: Bearer\t", "Authorization: Basic dTpw", "Authorization: Basic " + good,
			"Authorization: Token " + good, `Authorization: Digest username="u", response="x"`,
			"Authorization: DPoP " + good, "Authorization: " + good, "Authorization: Bearer" + good,
			"Authorization: Bearer: " + good, "Proxy-Authorization: Bearer " + good + "\r\nX-Authorization: Bearer " + good,
			"Cookie: access_token=" + good + "; Authorization=Bearer " + good, "Authorization: " + mark}},
		{headers: []string{
			"Authorization: Bearer " + good, "Authorization: bearer " + good, "AUTHORIZATION: BEARER " + good,
			"authorization: bEaReR " + good, "Authorization: \t Bearer " + good + " \t", "Authorization: Bearer  " + good,
			"Authorization: Bearer" + strings.Repeat(" ", 100) + good}},
		{challenge: invalidToken, headers: []string{
			"Authorization: Bearer\t" + good, "Authorization: Bearer\t " + good, "Authorization: Bearer \t" + good,
			"Authorization: Bearer  \t" + good, "Authorization: Bearer  \u00a0" + good}},
		{challenge: invalidToken, cause: malformed, headers: []string{
			"Authorization: Bearer " + good + ", Bearer " + good, `Authorization: Bearer "` + good + `"`,
			"Authorization: Bearer " + good + ";q=1", "Authorization: Bearer " + good[:9] + " " + good[9:],
			"Authorization: Bearer \xff", "Authorization: Bearer " + good + "\xe9", "Authorization: Bearer é" + good,
			"Authorization: Bearer " + strings.Repeat(".", 8000), "Authorization: Bearer ..x.." + mark}},
	} {
		for _, header := range group.headers {
			t.Run(fmt.Sprintf("%.60q", header), func(t *testing.T) {
				a := ts.exchange(t, message("POST /auth/session HTTP/1.1", "Host: x", goodLength, header)+goodBody)
				ts.wantChallenge(t, a, group.challenge, group.cause)
			})
		}
	}
	for _, two := range [][2]string{{"Bearer " + good, "Bearer " + bad}, {"Bearer " + bad, "Bearer " + good},
		{"Bearer " + good, "Bearer " + good}, {"", "Bearer " + good}, {"Basic dTpw", "Bearer " + good}} {
		h := http.Header{"Authorization": two[:]}
		ts.wantError(t, ts.do(t, "POST", sessionPath, h, goodBody), "400 bad_request")
	}
	query, form := "?access_token="+good, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	ts.wantChallenge(t, ts.do(t, "POST", sessionPath+query, nil, goodBody), noToken, none)
	ts.wantChallenge(t, ts.do(t, "POST", sessionPath, form, query[1:]), noToken, none)
	h := http.Header{"Authorization": {"Bearer " + good}}
	ts.wantSession(t, ts.do(t, "POST", sessionPath+"?access_token=another.inTheQuery", h, goodBody))
	for _, part := range append(strings.Split(good, "."), "inTheQuery") {
		if ts.log.Has(part) {
			t.Errorf("the log has %q of a token or query", part)
		}
	}
}

// longToken is a good token of n bytes, or up to 3 fewer, because base64 has no part of every length.
func longToken(t testing.TB, n int) string {
	t.Helper()
	pad := func(size int) string { return signed(t, map[string]any{"pad": strings.Repeat("x", size)}) }
	return pad((n - len(pad(0))) / 4 * 3)
}

// internal/bearer's tests have the tokens; here is what comes of each kind of outcome.
func TestToken(t *testing.T) {
	plain := newTestServer(t, nil)
	typed := newTestServer(t, map[string]string{"JWT_TYP": "at+jwt"})
	configured := newTestServer(t, map[string]string{"JWT_ISSUER": "https://a.example/", "JWT_AUDIENCE": "ours",
		"JWT_ALGORITHMS": "ES256", "JWT_MAX_LIFETIME": "10m", "JWT_CLIENT_CLAIM": "org_id, sub"})
	with := func(name string, value any) string { return signed(t, map[string]any{name: value}) }
	forConfigured := func(name string, value any) string {
		claims := map[string]any{"iss": "https://a.example/", "aud": []string{"x", "ours"}, "org_id": "org_1",
			"exp": time.Now().Unix() + 300}
		claims[name] = value
		return signed(t, claims)
	}
	by := func(key keytool.Key) string { return testkit.Sign(t, key, testkit.Claims()) }
	der := []byte("a certificate")
	sum := sha256.Sum256(der)
	bound := with("cnf", map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])})
	gateway := newTestServer(t, map[string]string{"CLIENT_CERT_HEADER": "client-cert"})
	own := http.Header{"Client-Cert": {":" + base64.StdEncoding.EncodeToString(der) + ":"}}
	options := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "ec")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: testkit.EC().Private}, options)
	testkit.Must(t, err)
	typJWT, err := jwt.Signed(signer).Claims(testkit.Claims()).Serialize()
	testkit.Must(t, err)
	renamed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"Ed25519","kid":"ed"}`)) + "." +
		strings.Split(by(testkit.Ed()), ".")[1]
	signature := ed25519.Sign(testkit.Ed().Private.(ed25519.PrivateKey), []byte(renamed))
	renamed += "." + base64.RawURLEncoding.EncodeToString(signature)

	jwk, err := json.Marshal(testkit.RSA().Public())
	testkit.Must(t, err)
	oddKeys := filepath.Join(t.TempDir(), "jwks.json")
	testkit.Must(t, os.WriteFile(oddKeys, []byte(`{"keys":[`+strings.TrimSuffix(string(jwk), "}")+
		`,"x5c":["MII"],"x5t":"AAAA","x5t#S256":"=","x5u":"%zz","key_ops":null}]}`), 0o600))
	odd := newTestServer(t, map[string]string{"JWKS_URL": "file://" + oddKeys, "JWT_SCOPE_CLAIM": "roles"})
	testkit.WaitFor(t, 20*time.Second, "the odd key", odd.verifier.Ready)
	inRoles := testkit.With(map[string]any{"scope": nil, "roles": []string{"api:user.write"}})
	for _, test := range []struct {
		ts               *testServer
		name, token      string
		header           http.Header
		challenge, cause string // "": a session
		client           string // of the session
	}{
		{ts: plain, name: "RSA", token: by(testkit.RSA()), client: "acme"},
		{ts: plain, name: "EC", token: by(testkit.EC()), client: "acme"},
		{ts: plain, name: "Ed25519", token: by(testkit.Ed()), client: "acme"},
		{ts: plain, name: "Ed25519 by its new name", token: renamed, client: "acme"},
		{ts: plain, name: "scope in roles", token: testkit.Sign(t, testkit.RSA(), inRoles), challenge: lacksScope},
		{ts: odd, name: "JWT_SCOPE_CLAIM", token: testkit.Sign(t, testkit.RSA(), inRoles), client: "acme"},
		{ts: odd, name: "scope elsewhere", token: by(testkit.RSA()), challenge: lacksScope},
		{ts: plain, name: "8 KiB", token: longToken(t, 8192), client: "acme"},
		{ts: plain, name: "unknown key", token: by(testkit.NewKey(t, "x", jose.ES256)), challenge: invalidToken,
			cause: "no key of the set"},
		{ts: plain, name: "forged", token: by(testkit.NewKey(t, "ec", jose.ES256)), challenge: invalidToken,
			cause: "bad signature"},
		{ts: plain, name: "expired", token: with("exp", 1), challenge: invalidToken, cause: "s ago"},
		{ts: plain, name: "no client", token: with("client_id", nil), challenge: invalidToken, cause: "no client"},
		{ts: plain, name: "no scope", token: with("scope", nil), challenge: lacksScope},
		{ts: plain, name: "bound", token: with("cnf", map[string]any{"jkt": "x"}), challenge: invalidToken, cause: "cnf"},
		{ts: plain, name: "no header set", token: bound, header: own, challenge: invalidToken, cause: "bound"},
		{ts: gateway, name: "own certificate", token: bound, header: own, client: "acme"},
		{ts: gateway, name: "no certificate", token: bound, challenge: invalidToken, cause: "bound"},
		{ts: typed, name: "type", token: typJWT, challenge: invalidToken, cause: "typ"},
		{ts: plain, name: "type JWT", token: typJWT, client: "acme"},
		{ts: configured, name: "configured", token: forConfigured("jti", "x"), client: "org_1"},
		{ts: configured, name: "issuer", token: forConfigured("iss", "x"), challenge: invalidToken, cause: "iss"},
		{ts: configured, name: "audience", token: forConfigured("aud", "x"), challenge: invalidToken, cause: "aud"},
		{ts: configured, name: "algorithm", token: by(testkit.RSA()), challenge: invalidToken, cause: "algorithm"},
		{ts: configured, name: "lifetime", token: forConfigured("exp", time.Now().Unix()+3600), challenge: invalidToken,
			cause: "JWT_MAX_LIFETIME"},
		{ts: configured, name: "odd client", token: forConfigured("org_id", "Ü\u0001\u2028\""), client: "Ü\u0001\u2028\""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := http.Header{"Authorization": {"Bearer " + test.token}}
			maps.Copy(h, test.header)
			for range 2 { // the second may be cached
				a := test.ts.do(t, "POST", sessionPath, h, goodBody)
				if r := test.ts.wantChallenge(t, a, test.challenge, test.cause); r.ClientID != test.client {
					t.Errorf("client_id of the record = %q, want %q", r.ClientID, test.client)
				}
			}
		})
	}
}

func TestMediaType(t *testing.T) {
	ts := newTestServer(t, nil)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(append([]byte(goodBody), bytes.Repeat([]byte(" "), 16<<20)...))
	_ = z.Close()
	const asJSON = "application/json"
	const send, one = "Content-Type: application/json", "there must be one Content-Type"
	for _, group := range []struct {
		says             string     // in a 415's message; "": a session
		types, encodings [][]string // of a request each, beside no encoding and JSON
	}{
		{encodings: [][]string{{"identity"}, {"Identity"}}, types: [][]string{
			nil, {asJSON}, {asJSON + "; charset=utf-8"}, {asJSON + "; charset=UTF-8"}, {asJSON + `;charset="utf-8"`},
			{"Application/JSON ; Charset=Utf-8"}, {asJSON + "; profile=x; version=2"}, {asJSON + `; x="a, b"`},
			{asJSON, asJSON}, {asJSON, "Application/Json; charset=utf-8", asJSON}, {asJSON + ", " + asJSON}, {"", asJSON}}},
		{says: send, types: [][]string{
			{"application/x-www-form-urlencoded"}, {"application/vnd.api+json"}, {"application/*"}, {"*/*"}, {"text/json"},
			{"text/" + mark}, {"application/jsonp"}, {"application"}, {"text/plain; application/json"},
			{"application/jſon"}, {"; charset=utf-8"}, {"text/plain", "text/plain"}}},
		{says: one, types: [][]string{{"application/json, text/plain"}, {"text/plain", asJSON}, {asJSON, "text/plain"},
			{asJSON + "; charset=utf-8, text/plain"}}},
		{says: "Content-Encoding",
			encodings: [][]string{{"gzip"}, {"deflate"}, {"br"}, {"İdentity"}, {"identity, gzip"}, {"identity", "gzip"}}},
	} {
		want := func(types, encodings []string) {
			t.Helper()
			h := http.Header{"Authorization": {"Bearer " + ts.token(t)}, "Content-Type": types, "Content-Encoding": encodings}
			if a := ts.do(t, "POST", sessionPath, h, goodBody); group.says == "" {
				ts.wantSession(t, a)
			} else if e, _ := ts.wantError(t, a, "415 unsupported_media_type"); !strings.Contains(e.Message, group.says) {
				t.Errorf("message to %q, %q = %q, want %q in it", types, encodings, e.Message, group.says)
			}
		}
		for _, types := range group.types {
			want(types, nil)
		}
		for _, encodings := range group.encodings {
			want([]string{asJSON}, encodings)
		}
	}
	ts.wantError(t, ts.post(t, ts.token(t), bomb.String()), "400 bad_request") // is not inflated
	h := http.Header{"Authorization": {"Bearer " + ts.token(t)}, "Content-Encoding": {"gzip"}}
	ts.wantError(t, ts.do(t, "POST", sessionPath, h, bomb.String()), "415 unsupported_media_type")
}

// clientsFile returns the path of a CLIENTS_FILE.
func clientsFile(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "clients.json")
	replaceFile(t, file, text)
	return file
}

func replaceFile(t testing.TB, file, text string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(file+".new", []byte(text), 0o600))
	testkit.Must(t, os.Rename(file+".new", file))
}

func TestClient(t *testing.T) {
	ts := newTestServer(t, map[string]string{"CLIENTS_FILE": clientsFile(t, `{"clients": {
		"acme": {"redirect_uris": ["https://acme.com/cb", "http://127.0.0.1/cb", "com.acme.app:/done"],
			"institution_ids": ["10"], "permissions": ["accounts", "balances"], "session_ttl": "2h"},
		"none": {"redirect_uris": [], "institution_ids": [], "permissions": []},
		"all": {}}}`)})
	const institutionError, permissions = "400 invalid_institution_id", "permissions must all be this client's"
	const institution, redirect = "institution_id is not one of this client's", "redirect_uri is not one of this client's"
	const cancel = "cancel_uri is not one of this client's"
	for _, test := range []struct {
		client, members string   // after end_user_id
		permissions     []string // of the record; nil: none
		want, message   string   // "": a session
	}{
		{client: "acme", permissions: []string{"accounts", "balances"}},
		{client: "acme", members: `,"institution_id":"10","redirect_uri":"https://acme.com/cb?state=1"`,
			permissions: []string{"accounts", "balances"}},
		{client: "acme", members: `,"redirect_uri":"http://127.0.0.1:49152/cb","cancel_uri":"com.acme.app:/done"`,
			permissions: []string{"accounts", "balances"}},
		{client: "acme", members: `,"permissions":["balances"]`, permissions: []string{"balances"}},
		{client: "none", permissions: []string{}},
		{client: "all", members: `,"institution_id":"11","redirect_uri":"https://any.com/"`},
		{client: "all", members: `,"permissions":["x"]`, permissions: []string{"x"}},

		{client: "acme", members: `,"redirect_uri":"https://acme.com/cb/"`, want: "400 bad_request", message: redirect},
		{client: "acme", members: `,"cancel_uri":"https://` + mark + `.com/"`, want: "400 bad_request", message: cancel},
		{client: "acme", members: `,"institution_id":"11"`, want: institutionError, message: institution},
		{client: "acme", members: `,"permissions":["accounts","x"]`, want: "400 bad_request", message: permissions},
		{client: "acme", members: `,"cancel_uri":"https://e.com","redirect_uri":"https://e.com","institution_id":"1",` +
			`"permissions":["p"]`, want: institutionError,
			message: institution + "; " + redirect + "; " + cancel + "; " + permissions},
		{client: "acme", members: `,"institution_id":"11","redirect_uri":"x"`, want: "400 bad_request",
			message: "redirect_uri must be an absolute URI"}, // fields come before the client's rules
		{client: "none", members: `,"permissions":["a"]`, want: "400 bad_request", message: permissions},
		{client: "other", want: "403 forbidden", message: "this client may not create sessions"},
	} {
		t.Run(test.client+test.members, func(t *testing.T) {
			a := ts.post(t, tokenOf(t, test.client), `{"end_user_id":"eu_1"`+test.members+`}`)
			if test.want != "" {
				e, line := ts.wantError(t, a, test.want)
				if e.Message != test.message || a.Header["Www-Authenticate"] != nil || line["client_id"] != test.client {
					t.Errorf("%v, message = %q, log line %v, want %q for %s and no challenge",
						a.Header, e.Message, line, test.message, test.client)
				}
				return
			}
			ttl := map[string]int64{"acme": 7200, "none": 1800, "all": 1800}[test.client]
			r := ts.wantSession(t, a)
			if r.ExpiresAt-r.CreatedAt != ttl || r.ClientID != test.client ||
				!reflect.DeepEqual(r.Permissions, test.permissions) {
				t.Errorf("record = %+v, want a lifetime of %d s and permissions %q", r, ttl, test.permissions)
			}
		})
	}
}

// A sixth of a minute's sessions may be made at once, then each when its time has come.
func TestClientRate(t *testing.T) {
	var ahead atomic.Int64 // seconds
	start := time.Now()
	file := clientsFile(t, `{"clients": {"acme": {"sessions_per_minute": 60}, "slow": {"sessions_per_minute": 1},
		"free": {}, "*": {"sessions_per_minute": 6}}}`)
	ts := newTestServer(t, map[string]string{"CLIENTS_FILE": file},
		withClock(func() time.Time { return start.Add(time.Duration(ahead.Load()) * time.Second) }))
	for _, test := range []struct {
		client   string
		after    int64 // seconds since the row before
		sessions int
		retry    string // seconds; "": no limit is met
	}{
		{client: "acme", sessions: 10, retry: "1"},
		{client: "slow", sessions: 1, retry: "60"},
		{client: "other", sessions: 1, retry: "10"},
		{client: "another", sessions: 1, retry: "10"}, // has a rate of its own
		{client: "free", sessions: 20},
		{client: "acme", after: 1, sessions: 1, retry: "1"}, // the refusal took nothing
	} {
		ahead.Add(test.after)
		for range test.sessions {
			ts.wantSession(t, ts.post(t, tokenOf(t, test.client), goodBody))
		}
		if test.retry != "" {
			a := ts.post(t, tokenOf(t, test.client), goodBody)
			if ts.wantError(t, a, "429 too_many_requests"); a.Header.Get("Retry-After") != test.retry {
				t.Errorf("Retry-After of %s = %q, want %s", test.client, a.Header.Get("Retry-After"), test.retry)
			}
		}
	}
}

func TestRequestLog(t *testing.T) {
	ts := newTestServer(t, map[string]string{"TRUSTED_PROXIES": "127.0.0.0/8"})
	untrusting := newTestServer(t, nil)
	const target = "/auth/session?access_token=SECRET-query"
	good := `{"end_user_id":"SECRET-user","redirect_uri":"https://a.example/?SECRET-r","x":"SECRET-x"}`
	long := strings.Repeat("c", 60)
	const always = "duration_us level method msg remote_ip request_id route status time trace_id"
	operate, err := os.ReadFile("docs/operate.md")
	testkit.Must(t, err)
	for _, test := range []struct {
		name, target, token, body string
		members                   string // beside always
		want                      map[string]any
	}{
		{name: "created", target: target, token: signed(t, map[string]any{"jti": "t-1\u202e\x00"}), body: good,
			members: "client_id jti kid session unknown_members",
			want:    map[string]any{"status": 200.0, "route": "/auth/session", "jti": `t-1\u202e\x00`, "kid": "ec"}},
		{name: "created under v1", target: "/v1" + target, token: tokenOf(t, long+"\u009b2J\u202e"), body: goodBody,
			members: "client_id kid session", want: map[string]any{"route": "/v1/auth/session", "client_id": long + `\u009b2J`}},
		{name: "bad field", target: target, token: ts.token(t), body: strings.Replace(good, "https:", "httpx:", 1),
			members: "client_id kid unknown_members error error_id cause", want: map[string]any{"client_id": "acme"}},
		{name: "no scope", target: target, token: signed(t, map[string]any{"scope": "", "jti": long + long}), body: good,
			members: "client_id jti kid error error_id cause", want: map[string]any{"jti": long + "cccc"}},
		{name: "bad token", target: target, token: "SECRET.b.c", body: good, members: "error error_id cause",
			want: map[string]any{"status": 401.0, "route": "/auth/session"}},
		{name: "no route", target: "/SECRET" + target, token: ts.token(t), body: good, members: "error error_id cause",
			want: map[string]any{"status": 404.0, "route": "none"}},
	} {
		h := http.Header{"Authorization": {"Bearer " + test.token}, "X-Forwarded-For": {"10.1.1.1, 192.0.2.7"},
			"True-Client-Ip": {"203.0.113.7"}, "X-Real-Ip": {"203.0.113.7"}, "Forwarded": {"for=203.0.113.7"},
			"Cookie": {"SECRET-cookie"}, "User-Agent": {"SECRET-agent"},
			"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}
		a := ts.do(t, "POST", test.target, h, test.body)
		line := ts.logged(t, a)
		got, want := slices.Sorted(maps.Keys(line)), strings.Fields(always+" "+test.members)
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("%s: log line has %q, want %q", test.name, got, want)
		}
		maps.Copy(test.want, map[string]any{"msg": "request", "method": "POST", "level": "INFO", "remote_ip": "192.0.2.7",
			"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"})
		if a.Status == 200 {
			s, _ := ts.record(t, a)
			if test.want["session"] = s.ID; ts.log.Has(s.SessionID) {
				t.Error("the log has the session_id")
			}
		}
		for name := range line {
			if want, ok := test.want[name]; ok && line[name] != want {
				t.Errorf("%s: %s = %v, want %v", test.name, name, line[name], want)
			}
			if !bytes.Contains(operate, []byte("`"+name+"`")) {
				t.Errorf("docs/operate.md does not have the log field %s", name)
			}
		}
	}
	// A peer that is no trusted proxy vouches for no address, and a broken traceparent is no trace.
	h := http.Header{"X-Forwarded-For": {"192.0.2.7"}, "True-Client-Ip": {"192.0.2.7"}, "Traceparent": {"x"}}
	line := untrusting.logged(t, untrusting.do(t, "GET", "/livez", h, ""))
	if line["remote_ip"] != "127.0.0.1" || line["trace_id"] != nil {
		t.Errorf("log line = %v, want 127.0.0.1 as remote_ip and no trace_id", line)
	}
	for _, secret := range []string{"SECRET", strings.Split(ts.token(t), ".")[0], "203.0.113.7", "eu_1"} {
		if ts.log.Has(secret) {
			t.Errorf("the log has %q: %s", secret, ts.log)
		}
	}
}

func TestRequestID(t *testing.T) {
	ts := newTestServer(t, nil)
	long := strings.Repeat("x", 64)
	seen := map[string]bool{}
	for id, keep := range map[string]bool{
		"a": true, "0123-abc_DEF.9": true, long: true, "": false, long + "x": false, "a b": false, "a/b": false,
		"a,b": false, `a"b`: false, "a:b": false, "é": false, "a\tb": false, "{}": false,
	} {
		got := ts.do(t, "GET", "/livez", http.Header{"X-Request-Id": {id}}, "").Header["X-Request-Id"]
		if len(got) != 1 || (got[0] == id) != keep || seen[got[0]] || !keep && len(got[0]) < 16 {
			t.Errorf("X-Request-Id of %q = %q, want it kept: %t", id, got, keep)
		}
		seen[got[0]] = true
	}
}
