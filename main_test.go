package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"authsession/internal/accesslog"
	"authsession/internal/keytool"
	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
	"github.com/redis/go-redis/v9"
)

// TestImports keeps the table of who may import which package of internal, and which of the root's files HTTP and the
// Redis client. Tests and internal/dev may import more.
func TestImports(t *testing.T) {
	const http, client = "net/http", "github.com/redis/go-redis/v9"
	mayImport := map[string]string{
		"main.go":     "accesslog bearer clients config dev keytool metrics redisconn " + http,
		"handlers.go": "accesslog bearer clients config metrics seal " + http,
		"session.go":  "clients redirecturi strictjson",
		"store.go":    "config redisconn " + client,
		"errors.go":   http,
		"accesslog":   "strictjson",
		"bearer":      "strictjson",
		"clients":     "redirecturi strictjson",
		"config":      "bearer clients redirecturi redisconn",
		"keytool":     "bearer",
		"redistest":   "testkit",
		"testkit":     "bearer keytool",
	}
	root, _ := filepath.Glob("*.go")
	inner, _ := filepath.Glob("internal/*/*.go")
	for _, path := range append(root, inner...) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		testkit.Must(t, err)
		inRoot, importer := filepath.Dir(path) == ".", filepath.Base(filepath.Dir(path))
		if inRoot {
			importer = path
		}
		for _, spec := range file.Imports {
			name, inner := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), "authsession/internal/")
			counts := (inner || inRoot && (name == http || name == client)) && !strings.HasSuffix(path, "_test.go")
			if counts && importer != "dev" && !slices.Contains(strings.Fields(mayImport[importer]), name) {
				t.Errorf("%s imports %s, which mayImport does not have", path, name)
			}
		}
	}
}

// TestLogMessages keeps the table of messages in docs/operate.md: each that the program logs has a row, and no other
// has. Those of internal/dev are left out, because a developer reads them.
func TestLogMessages(t *testing.T) {
	documented := map[string]bool{"http: …": false} // net/http's own, by ErrorLog
	root, _ := filepath.Glob("*.go")
	inner, _ := filepath.Glob("internal/*/*.go")
	skipped, byHand := regexp.MustCompile(`_test\.go$|/dev/|/redistest/|/testkit/`), regexp.MustCompile(`"msg":"([^"]+)"`)
	for _, path := range slices.DeleteFunc(append(root, inner...), skipped.MatchString) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		testkit.Must(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				if match := byHand.FindStringSubmatch(n.Value); match != nil {
					documented[match[1]] = false
				}
			case *ast.CallExpr:
				method, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || len(n.Args) == 0 || !slices.Contains([]string{"Info", "Warn", "Error"}, method.Sel.Name) {
					break
				}
				text := types.ExprString(n.Args[0]) // a literal, or several with + between them
				message, err := types.Eval(token.NewFileSet(), nil, token.NoPos, text)
				if err != nil || message.Value == nil {
					t.Fatalf("%s logs %s, want a constant message", path, text)
				}
				documented[constant.StringVal(message.Value)] = false
			}
			return true
		})
	}
	operate, err := os.ReadFile("docs/operate.md")
	testkit.Must(t, err)
	_, section, _ := strings.Cut(string(operate), "\n## Log messages\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
		if _, ok := documented[row[1]]; !ok {
			t.Errorf("docs/operate.md has a row for %q, which the program does not log", row[1])
		}
		documented[row[1]] = true
	}
	for message, ok := range documented {
		if !ok {
			t.Errorf("docs/operate.md, Log messages, has no row for %q", message)
		}
	}
}

func TestRunCommands(t *testing.T) {
	ownCache(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	defer taken.Close()
	addr := taken.Addr().String()
	checked := map[string]string{"ADDR": addr, "REDIS_URL": "redis://u:s3cret@127.0.0.1:1/3?client_name=s3cret",
		"CLIENTS_FILE": clientsFile(t, `{"clients": {"acme": {}, "*": {}}}`)}
	faulty := map[string]string{"JWT_ISSUER": "https://i.example\n", "REDIS_MODE": "Sentinel",
		"REDIS_URL": "redis://:57#s3cret@h", "JWKS_URL": "file://" + clientsFile(t, `{"keys": []}`),
		"CLIENTS_FILE": clientsFile(t, `{"clients": {"a": {"ttl": "1h"}, "b": null}}`)}
	for _, test := range []struct {
		name string
		args []string
		env  map[string]string
		says []string // in its output or error
		good bool     // run returns nil
	}{
		{name: "-h", args: []string{"-h"}, says: []string{"healthcheck", "keygen", "jwks", "token", "-dev", "REDIS_URL",
			"check ", "-live", "SESSION_TTL (default 30m)"}, good: true},
		{name: "help", args: []string{"help"}, says: []string{"-live", "SESSION_TTL (default 30m)"}, good: true},
		{name: "-version", args: []string{"-version"}, says: []string{"authsession ", "go1."}, good: true},
		{name: "version", args: []string{"version"}, says: []string{"authsession ", "go1."}, good: true},
		{name: "check", args: []string{"check"}, env: testEnv(t, checked), good: true, says: []string{
			"ADDR=" + addr + "\n", "\nREDIS_URL=redis://127.0.0.1:1/3\n", "\nSESSION_TTL=30m\n", "\nJWT_ISSUER=\n",
			`"msg":"key set loaded","keys":3`, "JWT_ISSUER is not set"}},
		{name: "check of faults", args: []string{"check"}, env: testEnv(t, faulty), says: []string{
			`JWT_ISSUER="https://i.example\n" must not have white space around it`,
			`REDIS_MODE="Sentinel" must be standalone, sentinel or cluster` + "\n",
			"REDIS_URL must be in go-redis's format for standalone or sentinel or cluster mode: its scheme, host, path or " +
				"query does not fit (in a password, percent-encode all but letters and digits, # as %23",
			`must name a valid clients file: "/clients/a/ttl": unknown object member name` + "\nCLIENTS_FILE=",
			`must name a valid clients file: "/clients/b": must be a JSON object` + "\n",
			"\nJWKS_URL must name a usable key set: no usable key in the set"}},
		{name: "check of a key set that is not there", args: []string{"check"},
			env:  testEnv(t, map[string]string{"JWKS_URL": "file:///nonexistent"}),
			says: []string{"JWKS_URL must name a usable key set: open /nonexistent: no such file"}},
		{name: "check of a key set and algorithms", args: []string{"check"},
			env:  testEnv(t, map[string]string{"JWKS_URL": "file:///nonexistent", "JWT_ALGORITHMS": "HS256"}),
			says: []string{`JWT_ALGORITHMS="HS256" must be`, "JWKS_URL must name a usable key set: open /nonexistent"}},
		{name: "check with an argument", args: []string{"check", "now"}, says: []string{"authsession help"}},
		{name: "healthcheck with an argument", args: []string{"healthcheck", "now"}, says: []string{"authsession help"}},
		{name: "keygen", args: []string{"keygen", "-out", t.TempDir() + "/key"}, says: []string{`"keys"`}, good: true},
		{name: "unknown command", args: []string{"nonsense"}, says: []string{`["nonsense"]`, "authsession help"}},
		{name: "unknown flag", args: []string{"-nonsense"}, says: []string{`["-nonsense"]`, "authsession help"}},
		{name: "nothing set", says: []string{"AUTH_URL", "REDIS_URL", "JWKS_URL"}},
		{name: "wrong values", env: testEnv(t, map[string]string{"ADDR": "x", "SESSION_TTL": "1s", "LOG_LEVEL": "loud"}),
			says: []string{`ADDR="x" must be`, "\n" + `SESSION_TTL="1s" must be`, "\n" + `LOG_LEVEL="loud" must be`}},
		{name: "-dev with a key set", args: []string{"-dev"}, env: testEnv(t, nil), says: []string{"JWKS_URL"}},
		{name: "address in use", env: testEnv(t, map[string]string{"ADDR": addr}),
			says: []string{"listening on ADDR: ", addr}},
		{name: "METRICS_ADDR in use", env: testEnv(t, map[string]string{"METRICS_ADDR": addr}),
			says: []string{"listening on METRICS_ADDR: ", addr}},
		{name: "-dev with its address in use", args: []string{"-dev"}, env: map[string]string{"ADDR": addr},
			says: []string{"listening on ADDR: ", addr}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var output testkit.Log
			stderr := accesslog.NewWriter(&output)
			err := run(t.Context(), test.args, func(name string) string { return test.env[name] }, &output, stderr)
			stderr.Flush(5 * time.Second)
			if (err == nil) != test.good {
				t.Errorf("run = %v, want nil: %t", err, test.good)
			}
			fmt.Fprint(&output, err)
			for _, want := range test.says {
				if !output.Has(want) {
					t.Errorf("run says %s, want %q in it", &output, want)
				}
			}
			if output.Has("s3cret") {
				t.Errorf("run says %s, want no part of a password", &output)
			}
		})
	}
}

// process is the service as run starts it.
type process struct {
	*testServer
	metrics *testServer   // what METRICS_ADDR serves
	stop    func()        // as SIGTERM does
	ended   chan struct{} // closed when run has returned
	err     error         // what it returned
}

// start runs the service until stop or the test's end. It returns once the service listens.
func start(t *testing.T, env map[string]string, args ...string) *process {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	p := &process{testServer: &testServer{prefix: env["KEY_PREFIX"], log: &testkit.Log{}}, stop: stop}
	p.redis = redis.NewClient(&redis.Options{Addr: redistest.Addr(t)})
	p.ended = make(chan struct{})
	go func() {
		defer close(p.ended)
		p.err = run(ctx, args, func(name string) string { return env[name] }, io.Discard, accesslog.NewWriter(p.log))
	}()
	t.Cleanup(func() { stop(); <-p.ended; _ = p.redis.Close() })
	listening := func(message string) string {
		testkit.WaitFor(t, 20*time.Second, message, func() bool { return p.log.Has(`"msg":"` + message + `"`) })
		return p.log.Line(t, "msg", message)["addr"].(string)
	}
	if env["METRICS_ADDR"] != "" {
		p.metrics = &testServer{url: "http://" + listening("serving metrics")}
	}
	p.addr = listening("listening")
	p.url = "http://" + p.addr
	return p
}

func (p *process) wantReady(t *testing.T) {
	t.Helper()
	testkit.WaitFor(t, 20*time.Second, "the service to be ready",
		func() bool { return p.do(t, "GET", "/readyz", nil, "").Status == 200 })
}

// healthcheck is the error of the command with these flags.
func (p *process) healthcheck(t *testing.T, flags ...string) error {
	env := map[string]string{"ADDR": p.addr}
	args, stderr := append([]string{"healthcheck"}, flags...), accesslog.NewWriter(io.Discard)
	return run(t.Context(), args, func(name string) string { return env[name] }, io.Discard, stderr)
}

// After SIGTERM the service is not ready and still serves. Then it answers what is in flight and ends well.
func TestRunShutdown(t *testing.T) {
	env, gate := slowRedis(t)
	env["DRAIN_DELAY"] = "2s"
	p := start(t, testEnv(t, env))
	p.wantReady(t)
	if err := p.healthcheck(t); err != nil {
		t.Errorf("healthcheck = %v, want nil", err)
	}
	p.stop()
	testkit.WaitFor(t, 20*time.Second, "the shutdown", func() bool { return p.log.Has("shutting down") })
	e := p.do(t, "GET", "/readyz", nil, "").WantError(t, 503, "unavailable")
	if err := p.healthcheck(t); err == nil || !strings.Contains(err.Error(), "shutting down") ||
		!strings.Contains(e.Message, "shutting down") {
		t.Errorf("/readyz says %q, healthcheck %v, want both to name the shutdown", e.Message, err)
	}
	if a, err := p.do(t, "GET", "/livez", nil, ""), p.healthcheck(t, "-live"); a.Status != 200 || err != nil {
		t.Errorf("GET /livez = %d, healthcheck -live = %v, want 200 and nil", a.Status, err)
	}
	gate.Lock()
	w := p.open(t, goodRequest(t))
	testkit.WaitFor(t, 20*time.Second, "the listener to close", func() bool {
		c, err := net.Dial("tcp", p.addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	gate.Unlock()
	a := w.answer(t, "POST")
	p.wantSession(t, a)
	if <-p.ended; p.err != nil || a.Header.Get("Connection") != "close" {
		t.Errorf("run = %v, Connection = %q, want nil and close", p.err, a.Header.Get("Connection"))
	}
}

// What is in flight at the end of SHUTDOWN_GRACE gets 503, and the log says that it was cut off.
func TestRunCutOff(t *testing.T) {
	env, gate := slowRedis(t)
	env["SHUTDOWN_GRACE"] = "500ms"
	p := start(t, testEnv(t, env))
	p.wantReady(t)
	gate.Lock()
	defer gate.Unlock()
	w := p.open(t, goodRequest(t))
	time.Sleep(100 * time.Millisecond) // what is not in flight then may get no answer
	p.stop()
	if <-p.ended; p.err == nil {
		t.Error("run = nil, want an error")
	}
	testkit.WaitFor(t, 20*time.Second, "the log to name SHUTDOWN_GRACE", func() bool {
		return p.log.Has("cut off after SHUTDOWN_GRACE")
	})
	if rest, _ := io.ReadAll(w.in); len(rest) > 0 && !bytes.HasPrefix(rest, []byte("HTTP/1.1 503 ")) {
		t.Errorf("answer = %q, want 503", rest)
	}
}

func TestRunMetrics(t *testing.T) {
	file := clientsFile(t, `{"clients": {"acme": {"sessions_per_minute": 1}, "*": {}}}`)
	p := start(t, testEnv(t, map[string]string{"METRICS_ADDR": "127.0.0.1:0", "CLIENTS_FILE": file}))
	p.wantReady(t)
	for _, client := range []string{"acme", "SECRET-client"} {
		p.wantSession(t, p.post(t, tokenOf(t, client), goodBody))
	}
	p.wantError(t, p.post(t, p.token(t), goodBody), "429 too_many_requests")
	p.wantError(t, p.post(t, p.token(t), `{}`), "400 bad_request")
	p.wantError(t, p.post(t, "a.b.SECRET", goodBody), "401 unauthorized")
	p.wantError(t, p.do(t, "SECRETMETHOD", "/SECRET-path", nil, ""), "404 not_found")
	text := string(p.metrics.do(t, "GET", "/metrics", nil, "").Body)
	for _, pattern := range []string{
		`http_requests_total\{code="200",error="",route="/auth/session"\} 2`,
		`http_requests_total\{code="429",error="too_many_requests",route="/auth/session"\} 1`,
		`http_requests_total\{code="400",error="bad_request",route="/auth/session"\} 1`,
		`http_requests_total\{code="401",error="unauthorized",route="/auth/session"\} 1`,
		`http_requests_total\{code="404",error="not_found",route="none"\} 1`,
		`http_request_duration_seconds_count\{route="/auth/session"\} 5`,
		`client_requests_total\{client="acme",outcome="created"\} 1`,
		`client_requests_total\{client="acme",outcome="refused"\} 1`,
		`client_requests_total\{client="acme",outcome="limited"\} 1`,
		`client_requests_total\{client="other",outcome="created"\} 1`,
		`http_requests_in_flight 0`, `http_requests_in_flight_limit 2048`,
		`redis_write_duration_seconds_count 2`, `redis_primaries_failing 0`, `redis_clock_skew_seconds -?[0-9.e-]+`,
		`key_set_last_success_timestamp_seconds 1\.[0-9]+e\+09`,
		`clients_file_last_load_success 1`,
		`log_lines_dropped_total 0`, `build_info\{goversion="go[^"]+",version="[^"]*"\} 1`,
	} {
		if !regexp.MustCompile(`(?m)^authsession_` + pattern + `$`).MatchString(text) {
			t.Errorf("/metrics does not have authsession_%s", pattern)
		}
	}
	if strings.Contains(text, "SECRET") || !strings.Contains(text, "\ngo_goroutines ") {
		t.Error("/metrics has a text that a caller chose, or nothing of Go")
	}
	operate, err := os.ReadFile("docs/operate.md")
	testkit.Must(t, err)
	for _, match := range regexp.MustCompile(`(?m)^# TYPE authsession_(\S+)`).FindAllStringSubmatch(text, -1) {
		if !bytes.Contains(operate, []byte("`"+match[1]+"`")) {
			t.Errorf("docs/operate.md does not have the metric %s", match[1])
		}
	}
	replaceFile(t, file, `{"clients": {"other": {}}}`)
	testkit.WaitFor(t, 20*time.Second, "acme to be refused",
		func() bool { return p.post(t, p.token(t), `{}`).Status == 403 })
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/openapi.yaml": 404} { // for probes
		if a := p.metrics.do(t, "GET", path, nil, ""); a.Status != want {
			t.Errorf("GET %s on METRICS_ADDR = %d, want %d", path, a.Status, want)
		}
	}
}

// The log says what is in force and warns of what may not be meant. Metrics show a key set that is not there.
func TestRunWarnings(t *testing.T) {
	p := start(t, testEnv(t, map[string]string{"METRICS_ADDR": "127.0.0.1:0", "JWKS_URL": "file:///nonexistent",
		"REDIS_URL": "rediss://u:s3cret@127.0.0.1:" + redistest.FreePort() + "?skip_verify=true"}))
	settings := p.log.Line(t, "msg", "settings")
	for name, want := range map[string]string{"JWKS_URL": "file:///nonexistent", "METRICS_ADDR": "127.0.0.1:0",
		"SESSION_TTL": "30m", "CLIENTS_FILE": ""} {
		if settings[name] != want {
			t.Errorf("the log's settings have %s=%v, want %q", name, settings[name], want)
		}
	}
	if p.log.Has("s3cret") {
		t.Errorf("the log has the password: %s", p.log)
	}
	for _, text := range []string{"JWT_ISSUER is", "JWT_AUDIENCE is", "CLIENTS_FILE is", "skip_verify",
		"fetching key set failed"} {
		testkit.WaitFor(t, 20*time.Second, text, func() bool { return p.log.Has(text) })
	}
	text := string(p.metrics.do(t, "GET", "/metrics", nil, "").Body)
	if want := "\nauthsession_key_set_last_success_timestamp_seconds 0\n"; !strings.Contains(text, want) {
		t.Errorf("/metrics is %s, want %q in it", text, want)
	}
}

// ownCache gives the test a cache folder of its own, where -dev keeps its key, and returns the path of that key.
func ownCache(t *testing.T) string {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", "")
	folder, err := os.UserCacheDir()
	testkit.Must(t, err)
	return filepath.Join(folder, "authsession", "dev-EdDSA.pem")
}

// wantLog waits until the log has the error's ID, because a request's line is written after its answer.
func (p *process) wantLog(t *testing.T, id string) {
	t.Helper()
	testkit.WaitFor(t, 20*time.Second, "the error in the log", func() bool { return p.log.Has(`"error_id":"` + id + `"`) })
}

// With -dev, a 401 says why, with the id that the log has, and only a challenge with an error describes it.
func TestRunDevReasons(t *testing.T) {
	keyFile := ownCache(t)
	p := start(t, map[string]string{"ADDR": "127.0.0.1:0", "CLIENT_CERT_HEADER": "Client-Cert"}, "-dev")
	p.wantReady(t)
	key, err := keytool.Read(keyFile, jose.EdDSA)
	testkit.Must(t, err)
	forger := testkit.Ed()
	forger.ID = key.ID
	token := func(key keytool.Key, changes map[string]any) string {
		all := map[string]any{"iss": "authsession-dev", "aud": "authsession-dev"}
		maps.Copy(all, changes)
		return "Bearer " + testkit.Sign(t, key, testkit.With(all))
	}
	bound := token(key, map[string]any{"cnf": map[string]string{"x5t#S256": strings.Repeat("A", 43)}})
	for _, test := range []struct{ name, authorization, certificate, want string }{
		{name: "no header", want: "it is absent, or does not begin with Bearer and a space"},
		{name: "Basic", authorization: "Basic dTpw", want: "it is absent, or does not begin with Bearer and a space"},
		{name: "no token", authorization: "Bearer", want: "it is absent, or does not begin with Bearer and a space"},
		{name: "no JWT", authorization: "Bearer x.y", want: "not a compact JWT"},
		{name: "expired", authorization: token(key, map[string]any{"exp": time.Now().Unix() - 180}), want: "expired 3m"},
		{name: "no exp", authorization: token(key, map[string]any{"exp": nil}), want: "no exp"},
		{name: "wrong audience", authorization: token(key, map[string]any{"aud": "x"}), want: "JWT_AUDIENCE"},
		{name: "bad signature", authorization: token(forger, nil), want: "bad signature"},
		{name: "bound", authorization: bound, want: "CLIENT_CERT_HEADER has none"},
		{name: "bound to another", authorization: bound, certificate: ":AAAA:", want: "bound to another certificate (cnf)"},
	} {
		for _, path := range []string{sessionPath, "/v1/auth/session", "/end-users"} {
			r, err := http.NewRequest("POST", p.url+path, strings.NewReader(goodBody))
			testkit.Must(t, err)
			r.Header.Set("Authorization", test.authorization)
			r.Header.Set("Client-Cert", test.certificate)
			response, err := testkit.Client.Do(r) // not p.do, because openapi.yaml describes production
			a := testkit.ReadAnswer(t, response, err)
			e := a.WantError(t, 401, "unauthorized")
			reason, found := strings.CutPrefix(e.Message, "send a valid bearer token in the Authorization header: ")
			allowed := regexp.MustCompile(`^[\x20-\x21\x23-\x5b\x5d-\x7e]+$`) // RFC 6750, section 3
			if !found || !strings.Contains(reason, test.want) || !allowed.MatchString(reason) {
				t.Errorf("%s: POST %s says %q, want %q in it", test.name, path, e.Message, test.want)
			}
			want := "Bearer"
			if strings.HasPrefix(test.authorization, "Bearer ") {
				want = `Bearer error="invalid_token", error_description="` + reason + `"`
			}
			if got := a.Header.Get("WWW-Authenticate"); got != want {
				t.Errorf("%s: POST %s has the challenge %q, want %q", test.name, path, got, want)
			}
			if got := a.Header.Get("Content-Length"); got != strconv.Itoa(len(a.Body)) {
				t.Errorf("%s: POST %s has Content-Length %s, want %d", test.name, path, got, len(a.Body))
			}
			p.wantLog(t, e.ID)
		}
	}
}

// -dev needs no variable and gives out the tokens that it takes. Some end users are errors for a partner's retry code:
// all checks come first, and the sandbox's page, to which GET / leads, does not list their sessions. A path of the
// platform that is not stood in for says so.
func TestRunDevPlatform(t *testing.T) {
	ownCache(t)
	p := start(t, map[string]string{"ADDR": "127.0.0.1:0"}, "-dev")
	p.wantReady(t)
	var client struct{ Token string }
	a := p.do(t, "POST", "/v1/token", nil, `{"client_id":"a","client_secret":"b"}`)
	testkit.Must(t, json.Unmarshal(a.Body, &client))
	for status, name := range map[int]string{429: "too_many_requests", 500: "fault", 503: "unavailable", 504: "timeout"} {
		member := fmt.Sprintf(`{"end_user_id":"sandbox-%d"`, status)
		for _, body := range []string{member + "}", member + `,"x":"` + strings.Repeat("x", 10_000) + `"}`} {
			e := p.post(t, client.Token, body).WantError(t, status, name)
			p.wantLog(t, e.ID)
		}
		p.post(t, "", member+"}").WantError(t, 401, "unauthorized")
		p.post(t, client.Token, member+`,"redirect_uri":"x"}`).WantError(t, 400, "bad_request")
		p.post(t, client.Token, member).WantError(t, 400, "bad_request")
	}
	h := http.Header{"X-Request-Id": {"r-1"}, "Authorization": {"Bearer " + client.Token}}
	a = p.do(t, "POST", "/v1/auth/session", h, `{"end_user_id":"sandbox-503"}`)
	if a.WantError(t, 503, "unavailable"); a.Header.Get("X-Request-Id") != "r-1" {
		t.Errorf("X-Request-Id = %q, want r-1", a.Header.Get("X-Request-Id"))
	}
	page := p.do(t, "GET", "/", nil, "").Header.Get("Location")
	response, err := testkit.Client.Get(page + "sessions")
	if list := testkit.ReadAnswer(t, response, err); string(list.Body) != "[]\n" {
		t.Errorf("the page at %q lists %s, want nothing", page, list.Body)
	}
	if a := p.post(t, client.Token, `{"end_user_id":"sandbox-502"}`); a.Status != 200 {
		t.Errorf("POST /auth/session for sandbox-502 = %d %s, want 200", a.Status, a.Body)
	}
	for path, platforms := range map[string]bool{
		"/consent": true, "/v1/consents": true, "/consents/con_1": true, "/v1/institutions": true, "/oauth/token": true,
		"/banking/accounts/1/balances": true, "/end-users/eu_1": true, "/consent-": false, "/v2/consents": false,
		"/x/consents": false, "/v1": false, "/auth/session/": false,
	} {
		e := p.do(t, "GET", path, nil, "").WantError(t, 404, "not_found")
		if strings.Contains(e.Message, "platform's") != platforms {
			t.Errorf("GET %s says %q, want the platform named: %t", path, e.Message, platforms)
		}
		p.wantLog(t, e.ID)
	}
}
