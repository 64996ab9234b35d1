//go:build e2e && linux

// Package e2e tests the built binary from outside: as a process under signals, over Redis servers that fail, with more
// callers than it can serve, and with what deploy/ and docs/ contain. sandbox.test.mjs, beside it, drives a browser.
//
//	REQUIRE_REDIS=1 go test -tags e2e ./e2e
package e2e

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

const (
	storeTimeout = time.Second                         // STORE_TIMEOUT of serviceEnv
	answerLimit  = storeTimeout + 200*time.Millisecond // contract: time to any answer

	goodBody = `{"end_user_id":"` + endUser + `"}`

	// Neither may appear in a log.
	endUser       = "eu_must_not_be_logged"
	redisPassword = "correct-horse-battery"
)

// binary is the path of the service's binary.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "authsession-e2e")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "authsession")
	if out, err := exec.Command("go", "build", "-o", binary, "..").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("building: %v: %s", err, out))
	}
	code := redistest.Main(m)
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// need skips the test if a command fails, because a tool is missing. With REQUIRE_TOOLS=1, as in CI, the test fails.
func need(t testing.TB, command string) {
	t.Helper()
	if _, err := shell("..", nil, command); err != nil && os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("REQUIRE_TOOLS=1: %s: %v", command, err)
	} else if err != nil {
		t.Skip(err)
	}
}

// shell runs a script in a folder. The error contains stderr.
func shell(dir string, env []string, script string) (stdout string, err error) {
	c := exec.Command("bash", "-c", script)
	c.Dir, c.Env = dir, append(os.Environ(), env...)
	output, err := c.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return strings.TrimSuffix(string(output), "\n"), err
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	testkit.Must(t, err)
	return data
}

// goodToken returns a token of the client that passes every check.
func goodToken(t testing.TB, client string) string {
	t.Helper()
	return testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"client_id": client}))
}

// recordKey returns the key of the session that secret opens.
func recordKey(prefix, secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return prefix + hex.EncodeToString(sum[:])
}

// service is a process of the binary.
type service struct {
	cmd    *exec.Cmd
	stdout testkit.Log
	log    testkit.Log // stderr
	url    string      // http://127.0.0.1:port
	prefix string      // KEY_PREFIX
	token  string      // passes every check
	exited chan struct{}
}

// serviceEnv returns the variables of a service over a Redis, with a key set file of its own.
func serviceEnv(t testing.TB, redisAddr string) map[string]string {
	t.Helper()
	keySet := filepath.Join(t.TempDir(), "jwks.json")
	testkit.WriteKeySet(t, keySet, testkit.RSA(), testkit.EC(), testkit.Ed())
	return map[string]string{
		"ADDR":          "127.0.0.1:0",
		"METRICS_ADDR":  "127.0.0.1:0",
		"AUTH_URL":      "https://consent.example/start",
		"REDIS_URL":     "redis://" + redisAddr,
		"JWKS_URL":      "file://" + keySet,
		"KEY_PREFIX":    redistest.Prefix(t),
		"STORE_TIMEOUT": storeTimeout.String(),
	}
}

// startProcess runs the binary with exactly these variables until it exits or the test ends. stderr nil is the log.
func startProcess(t testing.TB, env map[string]string, stderr io.Writer, args ...string) *service {
	t.Helper()
	s := &service{cmd: exec.Command(binary, args...), exited: make(chan struct{})}
	s.prefix, s.token = cmp.Or(env["KEY_PREFIX"], "auth_session:"), goodToken(t, "acme")
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir(), "HOME=" + t.TempDir()}
	for name, value := range env {
		s.cmd.Env = append(s.cmd.Env, name+"="+value)
	}
	s.cmd.Stdout, s.cmd.Stderr = &s.stdout, stderr
	if stderr == nil {
		s.cmd.Stderr = &s.log
	}
	testkit.Must(t, s.cmd.Start())
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.exited
		if text := s.log.String(); t.Failed() {
			t.Logf("the service's log ends %s", text[max(0, len(text)-2000):])
		}
	})
	return s
}

// start runs the service and returns once it listens.
func start(t testing.TB, env map[string]string, args ...string) *service {
	t.Helper()
	s := startProcess(t, env, nil, args...)
	s.url = "http://" + find(t, &s.log, `"msg":"listening","addr":"([^"]+)"`)
	return s
}

// startReady runs the service with serviceEnv and changes, and returns once it is ready.
func startReady(t testing.TB, redisAddr string, changes map[string]string) *service {
	t.Helper()
	env := serviceEnv(t, redisAddr)
	maps.Copy(env, changes)
	s := start(t, env)
	s.waitReady(t)
	return s
}

// find waits until the log has a match of pattern, and returns its first group.
func find(t testing.TB, log *testkit.Log, pattern string) string {
	t.Helper()
	var match []string
	testkit.WaitFor(t, 20*time.Second, pattern, func() bool {
		match = regexp.MustCompile(pattern).FindStringSubmatch(log.String())
		return match != nil
	})
	return match[1]
}

// metricsURL returns the URL of METRICS_ADDR.
func (s *service) metricsURL(t testing.TB) string {
	t.Helper()
	return "http://" + find(t, &s.log, `"msg":"serving metrics","addr":"([^"]+)"`)
}

func (s *service) signal(t testing.TB, signal os.Signal) {
	t.Helper()
	testkit.Must(t, s.cmd.Process.Signal(signal))
}

// wantExit waits for the end of the process and checks its exit status.
func (s *service) wantExit(t testing.TB, limit time.Duration, code int) {
	t.Helper()
	select {
	case <-s.exited:
	case <-time.After(limit):
		t.Fatalf("the process still runs after %s", limit)
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit status = %d, want %d", got, code)
	}
}

// get returns status 0 and the error as the body if there is no answer.
func get(url string) (status int, body string) {
	var c call
	if c.read(testkit.Client.Get(url)); c.err != nil {
		return 0, c.err.Error()
	}
	return c.answer.Status, string(c.answer.Body)
}

func wantGet(t testing.TB, url string, want int) (body string) {
	t.Helper()
	status, body := get(url)
	if status != want {
		t.Errorf("GET %s = %d %.200s, want %d", url, status, body, want)
	}
	return body
}

// waitHealth waits until /readyz has this status and a body that contains text.
func (s *service) waitHealth(t testing.TB, limit time.Duration, status int, text string) {
	t.Helper()
	testkit.WaitFor(t, limit, fmt.Sprintf("/readyz to be %d %s", status, text), func() bool {
		got, body := get(s.url + "/readyz")
		return got == status && strings.Contains(body, text)
	})
}

func (s *service) waitReady(t testing.TB) {
	t.Helper()
	s.waitHealth(t, 20*time.Second, 200, "")
}

// call is one POST /auth/session and its outcome.
type call struct {
	start   time.Time
	took    time.Duration
	err     error
	answer  testkit.Answer        // status 0: there was none
	closes  bool                  // the answer says Connection: close
	session testkit.SessionAnswer // of a 200
	key     string                // of a 200's record
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
	c.read(response, err)
	if c.answer.Status == 200 && c.err == nil {
		c.err = json.Unmarshal(c.answer.Body, &c.session)
		c.key = recordKey(s.prefix, c.session.SessionID)
	}
	return c
}

// read reads the answer of a call that began at c.start.
func (c *call) read(response *http.Response, err error) {
	if c.err = err; err == nil {
		defer response.Body.Close()
		c.closes = response.Close
		c.answer = testkit.Answer{Status: response.StatusCode, Header: response.Header}
		c.answer.Body, c.err = io.ReadAll(response.Body)
	}
	c.took = time.Since(c.start)
}

// session is post that must be answered 200.
func (s *service) session(t testing.TB, body string) testkit.SessionAnswer {
	t.Helper()
	c := s.post(body)
	wantStatuses(t, []call{c}, 200)
	return c.session
}

// caller has a connection of its own.
type caller struct {
	net.Conn
	reader *bufio.Reader
}

// dial connects n callers. It spreads them over several source addresses, because each has some 28,000 ports.
func dial(t testing.TB, url string, n int) []*caller {
	t.Helper()
	callers := make([]*caller, n)
	for i := range callers {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%8))}}
		conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
		testkit.Must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		callers[i] = &caller{conn, bufio.NewReaderSize(conn, 1<<10)}
	}
	return callers
}

// hangUp closes the callers' connections.
func hangUp(callers []*caller) {
	for _, c := range callers {
		_ = c.Close()
	}
}

// rawPost returns a whole request with goodBody.
func rawPost(token string) []byte {
	return fmt.Appendf(nil, "POST /auth/session HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer %s\r\n"+
		"Content-Length: %d\r\n\r\n%s", token, len(goodBody), goodBody)
}

// do sends a request as it is written and reads the answer.
func (c *caller) do(request []byte) (done call) {
	done.start = time.Now()
	_ = c.SetDeadline(done.start.Add(30 * time.Second))
	if _, done.err = c.Write(request); done.err == nil {
		done.read(http.ReadResponse(c.reader, nil))
	}
	return done
}

// wantStatuses checks that every call has one of the statuses, and that its error is whole. It returns how many have
// each.
func wantStatuses(t testing.TB, calls []call, statuses ...int) map[int]int {
	t.Helper()
	names := map[int]string{401: "unauthorized", 503: "unavailable", 504: "timeout"}
	count := map[int]int{}
	for i, c := range calls {
		count[c.answer.Status]++
		if !slices.Contains(statuses, c.answer.Status) || c.err != nil {
			t.Fatalf("call %d = %d %s, %v, want one of %v", i, c.answer.Status, c.answer.Body, c.err, statuses)
		}
		if name := names[c.answer.Status]; name != "" && count[c.answer.Status] <= 200 {
			c.answer.WantError(t, c.answer.Status, name)
		}
	}
	return count
}

// memory returns a figure of /proc/pid/status in MiB: VmRSS now, VmHWM at most so far.
func (s *service) memory(t testing.TB, name string) int64 {
	t.Helper()
	status := string(read(t, fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid)))
	_, value, _ := strings.Cut(status, name+":")
	return first(t, value) >> 10
}

// first returns the number with which text begins.
func first(t testing.TB, text string) (n int64) {
	t.Helper()
	_, err := fmt.Sscan(text, &n)
	testkit.Must(t, err)
	return n
}

// fds returns the number of open descriptors.
func (s *service) fds(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	testkit.Must(t, err)
	return len(fds)
}

// waitUsage waits until the process has little more descriptors and memory than before: a pool of connections to
// Redis, and a heap that is collected late.
func (s *service) waitUsage(t testing.TB, fds int, rss int64) {
	t.Helper()
	testkit.Client.CloseIdleConnections()
	testkit.WaitFor(t, 10*time.Second, fmt.Sprintf("about %d descriptors and %d MiB", fds, rss), func() bool {
		return s.fds(t) <= fds+24 && s.memory(t, "VmRSS") <= rss+40
	})
}

// wantLog checks that the log is JSON, has few lines about Redis and none of the secrets.
func (s *service) wantLog(t testing.TB, secrets ...string) {
	t.Helper()
	text := s.log.String()
	if n := strings.Count(text, `"msg":"redis client"`) + strings.Count(text, `"msg":"redis takes `); n > 12 {
		t.Errorf("%d lines about Redis in the log, want at most 12", n)
	}
	signature := s.token[strings.LastIndexByte(s.token, '.')+1:]
	for _, secret := range append(secrets, signature, redisPassword, endUser) {
		if secret != "" && strings.Contains(text, secret) {
			t.Errorf("the log contains the secret %q", secret)
		}
	}
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("log line %q is not JSON", line)
		}
	}
}
