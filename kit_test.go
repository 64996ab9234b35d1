package main

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/redis/go-redis/v9"
)

// The test kit: real routes over a real store, real signed tokens, real Redis servers.

func TestMain(m *testing.M) {
	redis.SetLogger(&quietLogger{log: slog.New(slog.DiscardHandler)})
	code := m.Run()
	sharedRedis.stop()
	_ = os.RemoveAll(builtBinary.dir)
	os.Exit(code)
}

// testKey is a key pair that signs tokens, and its place in a key set.
type testKey struct {
	kid  string
	alg  jose.SignatureAlgorithm
	priv crypto.Signer
}

func newTestKey(t testing.TB, kid string, alg jose.SignatureAlgorithm) testKey {
	t.Helper()
	priv, err := generateKey(alg)
	if err != nil {
		t.Fatalf("generating a key: %v", err)
	}
	return testKey{kid, alg, priv}
}

// public is the key's entry in a key set.
func (k testKey) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.priv.Public(), KeyID: k.kid, Algorithm: string(k.alg), Use: "sig"}
}

// sign is claims as a token by k.
func (k testKey) sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	token, err := signToken(k.alg, k.priv, k.kid, claims)
	if err != nil {
		t.Fatalf("signing a token: %v", err)
	}
	return token
}

// goodClaims pass every check of a server without JWT_ISSUER and JWT_AUDIENCE.
func goodClaims() map[string]any {
	now := time.Now().Unix()
	return map[string]any{"client_id": "acme", "scope": scope, "iat": now, "exp": now + 3600}
}

// with is goodClaims with some claims set; a nil value removes one.
func with(changes map[string]any) map[string]any {
	claims := goodClaims()
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// rsaKey, ecKey and edKey are in every test server's key set.
var (
	rsaKey = sync.OnceValue(func() testKey { return mustKey("rsa", jose.RS256) })
	ecKey  = sync.OnceValue(func() testKey { return mustKey("ec", jose.ES256) })
	edKey  = sync.OnceValue(func() testKey { return mustKey("ed", jose.EdDSA) })
)

func mustKey(kid string, alg jose.SignatureAlgorithm) testKey {
	priv, err := generateKey(alg)
	if err != nil {
		panic(err)
	}
	return testKey{kid, alg, priv}
}

// writeKeySet writes a key set to file, all at once.
func writeKeySet(t testing.TB, file string, keys ...testKey) {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, k := range keys {
		set.Keys = append(set.Keys, k.public())
	}
	data, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// testServer is the real routes behind the real HTTP server.
type testServer struct {
	*server
	url   string        // http://127.0.0.1:port
	addr  string        // 127.0.0.1:port
	redis *redis.Client // looks at what the server wrote
	log   *logBuffer
	jwks  string // the key set's file, unless JWKS_URL was given
}

// newTestServer serves with env on top of what it needs: a Redis, a key prefix of the
// test's own, and a key set file with rsaKey, ecKey and edKey. It returns once keys are
// loaded, unless JWKS_URL was given. edit may change the server before it serves.
func newTestServer(t testing.TB, env map[string]string, edit ...func(*server)) *testServer {
	t.Helper()
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	all := map[string]string{
		"AUTH_URL":   "https://consent.example/start?v=1",
		"REDIS_URL":  "redis://" + testRedisAddr(t),
		"JWKS_URL":   "file://" + jwks,
		"KEY_PREFIX": testPrefix(t),
		"LOG_LEVEL":  "debug",
	}
	maps.Copy(all, env)
	cfg, err := loadConfig(func(name string) string { return all[name] })
	if err != nil {
		t.Fatalf("loading config: %v", err)
	}
	if env["JWKS_URL"] == "" {
		writeKeySet(t, jwks, rsaKey(), ecKey(), edKey())
	}
	ts := &testServer{log: &logBuffer{}, jwks: jwks}
	log := slog.New(slog.NewJSONHandler(ts.log, &slog.HandlerOptions{Level: cfg.logLevel}))
	ts.server = newServer(cfg, log)
	for _, f := range edit {
		f(ts.server)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { ts.verifier.keys.run(ctx) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := newHTTPServer(ts.routes(), cfg.storeTimeout, log)
	running.Go(func() { _ = srv.Serve(callers{listener}) })
	ts.addr = listener.Addr().String()
	ts.url = "http://" + ts.addr
	if o := cfg.redis.standalone; o != nil {
		ts.redis = redis.NewClient(&redis.Options{Network: o.Network, Addr: o.Addr, Password: o.Password})
	}
	t.Cleanup(func() {
		_ = srv.Close()
		cancel()
		running.Wait()
		_ = ts.store.close()
		if ts.redis != nil {
			_ = ts.redis.Close()
		}
	})
	if env["JWKS_URL"] == "" {
		waitFor(t, 5*time.Second, "the key set", ts.verifier.keys.loaded)
	}
	return ts
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// sessionAnswer and errorAnswer are the bodies of 200 and of application/vnd.goa.error.
type sessionAnswer struct {
	AuthURL   string `json:"auth_url"`
	ExpiresAt int64  `json:"expires_at"`
	ID        string `json:"id"`
	SessionID string `json:"session_id"`
}

type errorAnswer struct {
	Fault     bool   `json:"fault"`
	ID        string `json:"id"`
	Message   string `json:"message"`
	Name      string `json:"name"`
	Temporary bool   `json:"temporary"`
	Timeout   bool   `json:"timeout"`
}

// decode reads the answer's body into v, which must have exactly its members.
func (a answer) decode(t testing.TB, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("decoding answer %d %q: %v", a.status, a.body, err)
	}
}

const goodBody = `{"end_user_id":"eu_1"}`

// post sends POST /auth/session with a token and a JSON body; "" sends no Authorization.
func (ts *testServer) post(t testing.TB, token, body string) answer {
	t.Helper()
	h := http.Header{"Content-Type": {"application/json"}}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return ts.do(t, "POST", "/auth/session", h, strings.NewReader(body))
}

// do sends a request and checks its answer against openapi.yaml.
func (ts *testServer) do(t testing.TB, method, path string, h http.Header, body io.Reader) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, ts.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, h)
	response, err := testClient.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", method, path, err)
	}
	a := answer{response.StatusCode, response.Header, data}
	var sent io.Reader
	if r.GetBody != nil {
		sent, _ = r.GetBody()
	}
	wantDescribed(t, path, sent, a)
	return a
}

var testClient = &http.Client{
	Timeout:       30 * time.Second,
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// token is a good token.
func (ts *testServer) token(t testing.TB) string {
	t.Helper()
	return ecKey().sign(t, goodClaims())
}

// wantSession checks a 200 whole: headers, the four members, and the record in Redis with
// EXPIRETIME equal to expires_at. It returns the record.
func (ts *testServer) wantSession(t testing.TB, a answer) session {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("status = %d %s, want 200", a.status, a.body)
	}
	wantHeaders(t, a, "application/json")
	var s sessionAnswer
	a.decode(t, &s)
	if len(s.SessionID) < 22 || s.AuthURL != ts.authURL+s.SessionID {
		t.Fatalf("answer %s: auth_url is not AUTH_URL with sess_id", a.body)
	}
	key := sessionKey(ts.keyPrefix, s.SessionID)
	value, err := ts.redis.Get(t.Context(), key).Bytes()
	if err != nil {
		t.Fatalf("GET of the record: %v", err)
	}
	if at, err := ts.redis.ExpireTime(t.Context(), key).Result(); err != nil || int64(at/time.Second) != s.ExpiresAt {
		t.Fatalf("EXPIRETIME = %d, %v, want expires_at %d", at/time.Second, err, s.ExpiresAt)
	}
	var record session
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(&record); err != nil {
		t.Fatalf("decoding record %s: %v", value, err)
	}
	if record.Version != 1 || record.ID != s.ID || record.ExpiresAt != s.ExpiresAt {
		t.Fatalf("record %s does not fit answer %s", value, a.body)
	}
	return record
}

// wantError checks a refusal whole: status, media type, goa-error, the six members, and
// booleans that are true to the class. It returns the body for a look at the message.
func wantError(t testing.TB, a answer, status int, name string) errorAnswer {
	t.Helper()
	var e errorAnswer
	if a.status != status {
		t.Fatalf("status = %d %s, want %d", a.status, a.body, status)
	}
	wantHeaders(t, a, "application/vnd.goa.error")
	a.decode(t, &e)
	var members map[string]any
	if err := json.Unmarshal(a.body, &members); err != nil || len(members) != 6 {
		t.Fatalf("error body %s, want six members", a.body)
	}
	want := errorAnswer{
		Fault:     status == 500,
		ID:        e.ID,
		Message:   e.Message,
		Name:      name,
		Temporary: status == 503 || status == 504,
		Timeout:   status == 408 || status == 504,
	}
	if e != want || e.ID == "" || e.Message == "" || a.header.Get("goa-error") != name {
		t.Fatalf("error = %+v, goa-error %q, want %+v", e, a.header.Get("goa-error"), want)
	}
	if retry := a.header.Get("Retry-After"); (retry == "1") != want.Temporary {
		t.Fatalf("Retry-After = %q in a %d", retry, status)
	}
	return e
}

func wantHeaders(t testing.TB, a answer, contentType string) {
	t.Helper()
	for name, want := range map[string]string{"Content-Type": contentType, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} {
		if got := a.header.Get(name); got != want {
			t.Fatalf("%s = %q, want %q", name, got, want)
		}
	}
	if !validRequestID(a.header.Get("X-Request-Id")) {
		t.Fatalf("X-Request-Id = %q", a.header.Get("X-Request-Id"))
	}
}

// wantNoKeys checks that the server has left nothing in Redis but its probe.
func (ts *testServer) wantNoKeys(t testing.TB) {
	t.Helper()
	if keys := ts.sessionKeys(t); len(keys) > 0 {
		t.Fatalf("keys in Redis after refusals: %q", keys)
	}
}

func (ts *testServer) sessionKeys(t testing.TB) []string {
	t.Helper()
	keys, err := ts.redis.Keys(context.Background(), ts.keyPrefix+"*").Result()
	if err != nil {
		t.Fatal(err)
	}
	var sessions []string
	for _, key := range keys {
		if !strings.HasPrefix(key, ts.keyPrefix+"probe") {
			sessions = append(sessions, key)
		}
	}
	return sessions
}

// waitFor polls until f is true.
func waitFor(t testing.TB, atMost time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(atMost); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain for %s", atMost, what)
		}
	}
}

// logBuffer is a log that a test can read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// line is the one log line that has the attribute name with this value.
func (l *logBuffer) line(t testing.TB, name, value string) map[string]any {
	t.Helper()
	for text := range strings.SplitSeq(strings.TrimSpace(l.String()), "\n") {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("log line %q: %v", text, err)
		}
		if line[name] == value {
			return line
		}
	}
	t.Fatalf("no log line with %s %q", name, value)
	return nil
}

// testPrefix is a key prefix that no other test has.
func testPrefix(t testing.TB) string {
	return fmt.Sprintf("%s-%d:", strings.NewReplacer("/", "_", "*", "_", "?", "_", "[", "_", "]", "_", "{", "_").Replace(t.Name()), time.Now().UnixNano())
}

// redisProcess is a redis-server that a test has started.
type redisProcess struct {
	addr  string
	port  string
	tls   string // address with TLS, where there is one
	dir   string
	first []string // arguments before the port
	args  []string // and after it
	cmd   *exec.Cmd
}

// haveRedis tells whether there is a redis-server to test with. REQUIRE_REDIS=1 makes
// its absence a failure.
func haveRedis(t testing.TB) bool {
	t.Helper()
	_, err := exec.LookPath("redis-server")
	if err != nil && os.Getenv("REQUIRE_REDIS") == "1" {
		t.Fatalf("REQUIRE_REDIS=1: %v", err)
	}
	return err == nil
}

// needRedis ends a test that only a real server can serve; CI never does, by REQUIRE_REDIS.
func needRedis(t testing.TB) {
	t.Helper()
	if !haveRedis(t) {
		t.Skip("no redis-server on the PATH")
	}
}

// startRedis runs a redis-server of the test's own on a free port, without persistence
// unless args say otherwise, until the test ends.
func startRedis(t testing.TB, args ...string) *redisProcess {
	t.Helper()
	p := &redisProcess{dir: t.TempDir(), args: args}
	if err := p.startOnFreePort(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

func (p *redisProcess) startOnFreePort() error {
	var err error
	for range 5 { // another process may take the port before the server does
		p.port = freePort()
		p.addr = "127.0.0.1:" + p.port
		if err = p.start(); err == nil {
			return nil
		}
	}
	return err
}

func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// start runs the server, again on the same port if it ran before, and waits until it answers.
func (p *redisProcess) start() error {
	args := append(p.first[:len(p.first):len(p.first)], "--port", p.port, "--bind", "127.0.0.1", "--dir", p.dir)
	if p.first == nil {
		args = append(args, "--save", "")
	}
	args = append(args, p.args...)
	var output bytes.Buffer
	p.cmd = exec.Command("redis-server", args...)
	p.cmd.Stdout, p.cmd.Stderr = &output, &output
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting redis-server: %w", err)
	}
	c := redis.NewClient(&redis.Options{Addr: p.addr, MaxRetries: -1})
	defer c.Close()
	pid := fmt.Sprintf("process_id:%d\r", p.cmd.Process.Pid)
	for range 1000 {
		// Another's server may have the port: ours tells its process id, or asks for a password.
		info, err := c.Info(context.Background(), "server").Result()
		if strings.Contains(info, pid) || redis.IsAuthError(err) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.stop()
	return fmt.Errorf("redis-server does not answer on %s: %s", p.addr, output.String())
}

// stop kills the server, if it runs.
func (p *redisProcess) stop() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

// client looks into the server.
func (p *redisProcess) client(t testing.TB) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: p.addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// sharedRedis serves the tests that do not touch the server itself: a redis-server where
// there is one, else the embedded Redis.
var sharedRedis = struct {
	once sync.Once
	addr string
	err  error
	stop func()
}{stop: func() {}}

func testRedisAddr(t testing.TB) string {
	t.Helper()
	real := haveRedis(t)
	sharedRedis.once.Do(func() {
		if !real {
			m, err := startEmbeddedRedis()
			if err != nil {
				sharedRedis.err = err
				return
			}
			sharedRedis.addr, sharedRedis.stop = m.Addr(), m.Close
			return
		}
		dir, err := os.MkdirTemp("", "authsession-test")
		if err != nil {
			sharedRedis.err = err
			return
		}
		p := &redisProcess{dir: dir}
		sharedRedis.err = p.startOnFreePort()
		sharedRedis.addr = p.addr
		sharedRedis.stop = func() { p.stop(); _ = os.RemoveAll(dir) }
	})
	if sharedRedis.err != nil {
		t.Fatal(sharedRedis.err)
	}
	return sharedRedis.addr
}

// redisProxy stands between a server and its Redis.
type redisProxy struct {
	addr, redisAddr string
	mode            atomic.Pointer[proxyMode]

	listener  *net.TCPListener
	accepting sync.WaitGroup
	conns     []net.Conn // ever accepted; accept's while it runs
}

// proxyMode is what becomes of a reply.
type proxyMode func(client *net.TCPConn, reply []byte)

func pass(client *net.TCPConn, reply []byte) { _, _ = client.Write(reply) }

func late(by time.Duration) proxyMode {
	return func(client *net.TCPConn, reply []byte) {
		time.Sleep(by)
		pass(client, reply)
	}
}

var timeReply = regexp.MustCompile(`\*2\r\n\$10\r\n(\d{10})\r\n\$`)

// clockAhead answers TIME by a clock that is so far ahead.
func clockAhead(by time.Duration) proxyMode {
	return func(client *net.TCPConn, reply []byte) {
		pass(client, timeReply.ReplaceAllFunc(reply, func(b []byte) []byte {
			n, _ := strconv.ParseInt(string(b[9:19]), 10, 64)
			return fmt.Appendf(nil, "*2\r\n$10\r\n%d\r\n$", n+int64(by/time.Second))
		}))
	}
}

func startProxy(t testing.TB, redisAddr string, mode proxyMode) *redisProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &redisProxy{addr: l.Addr().String(), redisAddr: redisAddr, listener: l.(*net.TCPListener)}
	p.set(mode)
	p.accepting.Go(p.accept)
	t.Cleanup(func() {
		_ = p.listener.Close()
		p.accepting.Wait()
		for _, c := range p.conns {
			_ = c.Close()
		}
	})
	return p
}

func (p *redisProxy) set(mode proxyMode) { p.mode.Store(&mode) }

func (p *redisProxy) accept() {
	for {
		client, err := p.listener.AcceptTCP()
		if err != nil {
			return
		}
		p.conns = append(p.conns, client)
		go p.serve(client)
	}
}

func (p *redisProxy) serve(client *net.TCPConn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.redisAddr)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close() // ends the loop below
	}()
	for buf := make([]byte, 64<<10); ; {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		(*p.mode.Load())(client, buf[:n])
	}
}
