// Package e2e tests the service from outside: the built binary as a process, with Redis servers that fail, with what
// deploy/ and docs/ hold, and with more callers than it can serve. sandbox.test.mjs, beside it, drives a browser.
package e2e

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

const (
	storeTimeout = time.Second                         // STORE_TIMEOUT
	answerLimit  = storeTimeout + 200*time.Millisecond // the contract's limit for an answer
	refusalLimit = 100 * time.Millisecond              // for one while Redis refuses connections or ends them
	backLimit    = 150 * time.Millisecond              // from the end of a fault to the first 200

	goodBody = `{"end_user_id":"` + endUser + `"}`

	// Neither may be in a log.
	endUser       = "eu_must_not_be_logged"
	redisPassword = "correct-horse-battery"
)

func TestMain(m *testing.M) {
	if os.Getenv("E2E_ATTACK") == "1" {
		attackMain()
		return
	}
	dir, err := os.MkdirTemp("", "authsession-e2e")
	if err != nil {
		panic(err)
	}
	buildDir = dir
	code := redistest.Main(m)
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

var buildDir string // gets the binary

// build builds the binary for the first test that asks, and for all.
var build = sync.OnceValues(func() (binary string, err error) {
	if out, err := exec.Command("go", "build", "-o", buildDir, "..").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w: %s", err, out)
	}
	return filepath.Join(buildDir, "authsession"), nil
})

func binary(t testing.TB) string {
	t.Helper()
	file, err := build()
	testkit.Must(t, err)
	return file
}

// needTool skips a test whose tool is not on the PATH. Where the variable is 1, as in CI, that is a failure.
func needTool(t testing.TB, tool, variable string) {
	t.Helper()
	_, err := exec.LookPath(tool)
	if err != nil && os.Getenv(variable) == "1" {
		t.Fatalf("%s=1: %v", variable, err)
	}
	if err != nil {
		t.Skipf("no %s on the PATH", tool)
	}
}

// goodToken passes every check where neither JWT_ISSUER nor JWT_AUDIENCE is set.
func goodToken(t testing.TB) string {
	t.Helper()
	return testkit.Sign(t, testkit.EC(), testkit.Claims())
}

// recordKey is where the session lies that secret opens.
func recordKey(prefix, secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return prefix + hex.EncodeToString(sum[:])
}

// service is a running process of the binary.
type service struct {
	cmd    *exec.Cmd
	stdout testkit.Log
	log    testkit.Log // stderr
	url    string      // http://127.0.0.1:port
	prefix string      // KEY_PREFIX
	token  string      // a good one
	exited chan struct{}
	code   int // exit status, once exited
}

// startProcess runs the binary with exactly these variables, until it exits or the test ends.
func startProcess(t testing.TB, env map[string]string, args ...string) *service {
	t.Helper()
	s := &service{cmd: exec.Command(binary(t), args...), exited: make(chan struct{})}
	s.prefix = cmp.Or(env["KEY_PREFIX"], "auth_session:")
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir()}
	for name, value := range env {
		s.cmd.Env = append(s.cmd.Env, name+"="+value)
	}
	s.cmd.Stdout, s.cmd.Stderr = &s.stdout, &s.log
	testkit.Must(t, s.cmd.Start())
	go func() {
		_ = s.cmd.Wait()
		s.code = s.cmd.ProcessState.ExitCode()
		close(s.exited)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.exited
	})
	return s
}

// startService is startProcess on a free port, unless env has an ADDR. It returns once the service listens.
func startService(t testing.TB, env map[string]string, args ...string) *service {
	t.Helper()
	all := map[string]string{"ADDR": "127.0.0.1:0"}
	maps.Copy(all, env)
	s := startProcess(t, all, args...)
	s.token = goodToken(t)
	s.url = "http://" + s.logged(t, "listening")
	return s
}

// logged waits for the log line msg, which has an address, and returns that.
func (s *service) logged(t testing.TB, msg string) (addr string) {
	t.Helper()
	line := regexp.MustCompile(`"msg":"` + msg + `","addr":"([^"]+)"`)
	testkit.WaitFor(t, 10*time.Second, "the log line "+msg, func() bool { return line.MatchString(s.log.String()) })
	return line.FindStringSubmatch(s.log.String())[1]
}

// startDev is startService with -dev, once it has printed what it prints. The printed token is the service's.
func startDev(t testing.TB, env map[string]string) *service {
	t.Helper()
	s := startService(t, env, "-dev")
	testkit.WaitFor(t, 10*time.Second, "a whole command", func() bool { return s.stdout.Has("}'\n\n") })
	token := regexp.MustCompile(`Bearer ([^']+)'`).FindStringSubmatch(s.stdout.String())
	if token == nil {
		t.Fatalf("-dev prints no token: %s", s.stdout.String())
	}
	s.token = token[1]
	return s
}

// startWithKeys is startService with storeTimeout. It returns once the service has its keys too. Its Redis need not be
// there.
func startWithKeys(t testing.TB, env map[string]string) *service {
	t.Helper()
	all := serviceEnv(t, "")
	all["STORE_TIMEOUT"] = storeTimeout.String()
	maps.Copy(all, env)
	s := startService(t, all)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the service's log ends %s", s.logEnd())
		}
	})
	testkit.WaitFor(t, 10*time.Second, "the key set", func() bool { return s.log.Has(`"msg":"key set loaded"`) })
	return s
}

// serviceEnv is what a service over a Redis needs, with a key set file of its own.
func serviceEnv(t testing.TB, redisAddr string) map[string]string {
	t.Helper()
	keySet := filepath.Join(t.TempDir(), "jwks.json")
	testkit.WriteKeySet(t, keySet, testkit.RSA(), testkit.EC(), testkit.Ed())
	return map[string]string{
		"AUTH_URL":   "https://consent.example/start",
		"REDIS_URL":  "redis://" + redisAddr,
		"JWKS_URL":   "file://" + keySet,
		"KEY_PREFIX": redistest.Prefix(t),
	}
}

func (s *service) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	testkit.Must(t, s.cmd.Process.Signal(signal))
}

// wait returns the exit status.
func (s *service) wait(t testing.TB, atMost time.Duration) int {
	t.Helper()
	select {
	case <-s.exited:
	case <-time.After(atMost):
		t.Fatalf("the process still runs after %s; its log:\n%s", atMost, s.log.String())
	}
	return s.code
}

func (s *service) logEnd() string {
	text, _, _ := strings.Cut(s.log.String(), "SIGQUIT") // stacks follow
	return text[max(0, len(text)-2000):]
}

// get returns status 0, and the error for a body, where there is no answer.
func (s *service) get(path string) (status int, body string) {
	response, err := testkit.Client.Get(s.url + path)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	data, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(data)
}

func (s *service) waitReady(t testing.TB) {
	t.Helper()
	testkit.WaitFor(t, 10*time.Second, "/readyz to be 200", func() bool {
		status, _ := s.get("/readyz")
		return status == 200
	})
}

// scrape is what /metrics says now. METRICS_ADDR must be set.
func (s *service) scrape(t testing.TB) string {
	t.Helper()
	response, err := testkit.Client.Get("http://" + s.logged(t, "serving metrics") + "/metrics")
	a := testkit.ReadAnswer(t, response, err)
	if a.Status != 200 {
		t.Fatalf("GET /metrics = %d %s, want 200", a.Status, a.Body)
	}
	return string(a.Body)
}

// call is one POST /auth/session and what came of it.
type call struct {
	start   time.Time
	took    time.Duration
	err     error
	answer  testkit.Answer        // status 0: there was none
	session testkit.SessionAnswer // of a 200
	key     string                // where its record is
}

func (c *call) end() time.Time { return c.start.Add(c.took) }

// post sends a body with the service's token.
func (s *service) post(body string) (c call) {
	c.start = time.Now()
	r, err := http.NewRequest("POST", s.url+"/auth/session", strings.NewReader(body))
	if err != nil {
		c.err = err
		return c
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	response, err := testkit.Client.Do(r)
	if err != nil {
		c.err = err
		return c
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	c.took, c.err = time.Since(c.start), err
	c.answer = testkit.Answer{Status: response.StatusCode, Header: response.Header, Body: data}
	if response.StatusCode == 200 && err == nil {
		c.err = json.Unmarshal(data, &c.session)
		c.key = recordKey(s.prefix, c.session.SessionID)
	}
	return c
}

// session is post of what must be answered 200.
func (s *service) session(t testing.TB, body string) testkit.SessionAnswer {
	t.Helper()
	c := s.post(body)
	if c.err != nil || c.answer.Status != 200 {
		t.Fatalf("POST /auth/session = %d %s, %v, want 200", c.answer.Status, c.answer.Body, c.err)
	}
	return c.session
}

// waitSession posts until a session comes.
func (s *service) waitSession(t testing.TB, atMost time.Duration) {
	t.Helper()
	testkit.WaitFor(t, atMost, "a session", func() bool { return s.post(goodBody).answer.Status == 200 })
}

// load is callers at work.
type load struct {
	begun   time.Time
	mu      sync.Mutex
	calls   []call
	cancel  context.CancelFunc
	running sync.WaitGroup
}

const (
	loadCallers = 8
	loadRate    = 50 // requests a second, of all callers
)

// steadyLoad sends loadRate requests a second from loadCallers, and asks /livez now and then, which must be 200 always.
func (s *service) steadyLoad(t testing.TB) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{begun: time.Now(), cancel: cancel}
	every := func(period, offset time.Duration, f func()) {
		l.running.Go(func() {
			for next := l.begun.Add(offset); ; next = next.Add(period) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Until(next)):
				}
				f()
				if late := time.Since(next); late > period {
					next = next.Add(late.Truncate(period)) // a caller that waited sends no burst
				}
			}
		})
	}
	for i := range loadCallers {
		every(time.Second*loadCallers/loadRate, time.Duration(i)*time.Second/loadRate, func() {
			c := s.post(goodBody)
			l.mu.Lock()
			l.calls = append(l.calls, c)
			l.mu.Unlock()
		})
	}
	every(100*time.Millisecond, 0, func() {
		if status, body := s.get("/livez"); status != 200 {
			t.Errorf("GET /livez = %d %s, want 200", status, body)
		}
	})
	t.Cleanup(func() { l.stop() })
	return l
}

// await returns the call that ended first of those that f takes.
func (l *load) await(t testing.TB, atMost time.Duration, what string, f func(*call) bool) (found call) {
	t.Helper()
	testkit.WaitFor(t, atMost, what, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := range l.calls {
			if c := &l.calls[i]; f(c) && (found.took == 0 || c.end().Before(found.end())) {
				found = *c
			}
		}
		return found.took != 0
	})
	return found
}

// awaitSecond waits for a call that began a second after a time.
func (l *load) awaitSecond(t testing.TB, after time.Time) {
	t.Helper()
	l.await(t, 5*time.Second, "a second of answers", func(c *call) bool { return c.start.After(after.Add(time.Second)) })
}

func (l *load) stop() []call {
	l.cancel()
	l.running.Wait()
	return l.calls
}

// usage is what the process takes of the machine.
type usage struct {
	rss, peak    int64 // bytes
	threads, fds int64
}

// A healthy process may differ from itself by as much: a pool of connections to Redis, the runtime's idle threads, a
// heap that is collected late.
const (
	moreFDs        = 24
	moreThreads    = 8
	moreRSS        = 40 << 20
	mostGoroutines = 24 // of a process that nobody calls
	mostRedisLines = 12 // in the log, of the Redis client and of its state, in one outage
)

// usage reads /proc.
func (s *service) usage(t testing.TB) (u usage) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "status")
	fds, fdErr := os.ReadDir(dir + "fd")
	if err != nil || fdErr != nil {
		t.Fatalf("looking at the service: %v, %v; its log ends %s", err, fdErr, s.logEnd())
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		n := number(strings.Fields(value + " -")[0])
		switch name {
		case "VmRSS":
			u.rss = n << 10
		case "VmHWM":
			u.peak = n << 10
		case "Threads":
			u.threads = n
		}
	}
	u.fds = int64(len(fds))
	return u
}

// number is 0 where text is no number.
func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// wantUsage checks that the process lives, and takes what it took before.
func (s *service) wantUsage(t testing.TB, before usage) {
	t.Helper()
	testkit.Client.CloseIdleConnections()
	var u usage
	within := func() bool {
		u = s.usage(t)
		return u.fds <= before.fds+moreFDs && u.threads <= before.threads+moreThreads && u.rss <= before.rss+moreRSS
	}
	for deadline := time.Now().Add(5 * time.Second); !within() && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	if !within() {
		t.Errorf("the process takes %+v, before the fault %+v", u, before)
	}
	t.Logf("before %+v, now %+v", before, u)
}

// wantLog checks that the log is short on Redis and holds no secret. evicts tells whether the warning is due that Redis
// may evict sessions.
func (s *service) wantLog(t testing.TB, calls []call, evicts bool) {
	t.Helper()
	text := s.log.String()
	lines := strings.Count(text, `"msg":"redis client"`) + strings.Count(text, `"msg":"redis takes `)
	if lines > mostRedisLines {
		t.Errorf("%d lines on Redis in the log, want at most %d", lines, mostRedisLines)
	}
	warnings := regexp.MustCompile(`"level":"WARN".*maxmemory-policy`).FindAllString(text, -1)
	if evicts && len(warnings) != 1 || !evicts && len(warnings) != 0 {
		t.Errorf("warnings that name maxmemory-policy: %q, want one: %t", warnings, evicts)
	}
	signature := s.token[strings.LastIndexByte(s.token, '.')+1:]
	for _, secret := range []string{signature, redisPassword, endUser} {
		if strings.Contains(text, secret) {
			t.Errorf("the log holds the secret %q", secret)
		}
	}
	for i := range calls {
		if id := calls[i].session.SessionID; id != "" && strings.Contains(text, id) {
			t.Errorf("the log holds a session_id")
		}
	}
}

// wantFewGoroutines ends the service with SIGQUIT, to which Go answers with all stacks.
func (s *service) wantFewGoroutines(t testing.TB) {
	t.Helper()
	length := len(s.log.String())
	s.signal(t, syscall.SIGQUIT)
	s.wait(t, 5*time.Second)
	n := strings.Count(s.log.String()[length:], "\ngoroutine ")
	if n == 0 || n > mostGoroutines {
		t.Errorf("%d goroutines in the end, want at most %d", n, mostGoroutines)
	}
	t.Logf("%d goroutines", n)
}
