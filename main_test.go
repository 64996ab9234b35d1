package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
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

	"github.com/redis/go-redis/v9"
)

// These tests drive the built binary as a process.

var builtBinary struct {
	once sync.Once
	dir  string
	err  error
}

// binary builds the service once for all tests; TestMain removes it.
func binary(t testing.TB) string {
	t.Helper()
	b := &builtBinary
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "authsession-test"); b.err != nil {
			return
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(b.dir, "authsession"), ".").CombinedOutput(); err != nil {
			b.err = fmt.Errorf("building: %w: %s", err, out)
		}
	})
	must(t, b.err)
	return filepath.Join(b.dir, "authsession")
}

// service is a running process of the binary.
type service struct {
	cmd    *exec.Cmd
	stdout *logBuffer
	log    *logBuffer // stderr
	url    string
	exited chan struct{}
	code   int // once exited
}

// startProcess runs the binary with exactly these variables, until it exits or the test ends.
func startProcess(t testing.TB, env map[string]string, args ...string) *service {
	t.Helper()
	s := &service{cmd: exec.Command(binary(t), args...), stdout: &logBuffer{}, log: &logBuffer{}, exited: make(chan struct{})}
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir()}
	for name, value := range env {
		s.cmd.Env = append(s.cmd.Env, name+"="+value)
	}
	s.cmd.Stdout, s.cmd.Stderr = s.stdout, s.log
	must(t, s.cmd.Start())
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

// startService is startProcess on a free port, once it listens, and -dev has printed
// what it prints (before that, but by another pipe).
func startService(t testing.TB, env map[string]string, args ...string) *service {
	t.Helper()
	if env["ADDR"] == "" {
		env["ADDR"] = "127.0.0.1:0"
	}
	s := startProcess(t, env, args...)
	address := regexp.MustCompile(`"msg":"listening","addr":"([^"]+)"`)
	waitFor(t, 10*time.Second, "the service to listen", func() bool {
		return address.MatchString(s.log.String()) && (len(args) == 0 || s.stdout.String() != "")
	})
	s.url = "http://" + address.FindStringSubmatch(s.log.String())[1]
	return s
}

// serviceEnv is what a service over a Redis needs, with a key set file of its own.
func serviceEnv(t testing.TB, redisAddr string) map[string]string {
	t.Helper()
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	writeKeySet(t, jwks, rsaKey(), ecKey(), edKey())
	return map[string]string{
		"AUTH_URL": "https://consent.example/start", "REDIS_URL": "redis://" + redisAddr, "JWKS_URL": "file://" + jwks, "KEY_PREFIX": testPrefix(t),
	}
}

func (s *service) wait(t testing.TB, atMost time.Duration) int {
	t.Helper()
	select {
	case <-s.exited:
	case <-time.After(atMost):
		t.Fatalf("the process still runs after %s; its log:\n%s", atMost, s.log.String())
	}
	return s.code
}

func (s *service) get(path string) (status int, body string) {
	response, err := testClient.Get(s.url + path)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	data, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(data)
}

// post sends a good body; 0 is a failed connection.
func (s *service) post(token string) (status int, body []byte) {
	r, err := http.NewRequest("POST", s.url+"/auth/session", strings.NewReader(goodBody))
	if err != nil {
		return 0, nil
	}
	r.Header.Set("Authorization", "Bearer "+token)
	response, err := testClient.Do(r)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer response.Body.Close()
	body, _ = io.ReadAll(response.Body)
	return response.StatusCode, body
}

func (s *service) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	must(t, s.cmd.Process.Signal(signal))
}

func TestProcessArguments(t *testing.T) {
	for _, test := range []struct {
		args []string
		env  map[string]string
		code int
		out  string // in what it prints
	}{
		{[]string{"-version"}, nil, 0, "authsession "},
		{[]string{"-help"}, nil, 0, "-dev"},
		{[]string{"-help"}, nil, 0, "keygen"},
		{[]string{"keygen", "-help"}, nil, 0, "-out"},
		{[]string{"token", "-help"}, nil, 0, "-client"},
		{[]string{"-nope"}, nil, 1, "-nope"},
		{[]string{"serve"}, nil, 1, "healthcheck, keygen, token, -dev, -version"},
		{[]string{"healthcheck", "now"}, nil, 1, "healthcheck, keygen, token, -dev, -version"},
		{[]string{"keygen"}, nil, 1, "-out is required"},
		{[]string{"token"}, nil, 1, "-key is required"},
		{[]string{"-dev"}, map[string]string{"JWKS_URL": "https://h/"}, 1, "JWKS_URL"},
		{nil, nil, 1, "AUTH_URL is required"},
		{nil, map[string]string{"ADDR": "nope", "AUTH_URL": "https://c.example", "REDIS_URL": "x", "SESSION_TTL": "1s"}, 1, "ADDR must be"},
	} {
		s := startProcess(t, test.env, test.args...)
		code := s.wait(t, 10*time.Second)
		out := s.stdout.String() + s.log.String()
		if code != test.code || !strings.Contains(out, test.out) || strings.Contains(out, "listening") {
			t.Errorf("authsession %v: exit status %d, output %q, want %d with %q", test.args, code, out, test.code, test.out)
		}
		if test.args == nil && strings.Count(out, "\n") != 1 {
			t.Errorf("a wrong configuration makes %q, want one line", out)
		}
	}
}

func TestProcessServes(t *testing.T) {
	redisAddr := testRedisAddr(t)
	s := startService(t, serviceEnv(t, redisAddr))
	token := ecKey().sign(t, goodClaims())
	waitFor(t, 5*time.Second, "readiness", func() bool { status, _ := s.get("/readyz"); return status == 200 })
	status, body := s.post(token)
	if status != 200 {
		t.Fatalf("POST /auth/session = %d %s, want 200", status, body)
	}
	s.signal(t, syscall.SIGTERM)
	if code := s.wait(t, 5*time.Second); code != 0 {
		t.Errorf("after SIGTERM: exit status %d, want 0", code)
	}
	log := s.log.String()
	for text := range strings.SplitSeq(strings.TrimSpace(log), "\n") {
		if !json.Valid([]byte(text)) {
			t.Errorf("log line %q is no JSON", text)
		}
	}
	var answer sessionAnswer
	must(t, json.Unmarshal(body, &answer))
	for name, secret := range map[string]string{"token": token, "session_id": answer.SessionID, "end_user_id": "eu_1"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds the %s", name)
		}
	}
	for _, warning := range []string{"JWT_ISSUER is not set", "JWT_AUDIENCE is not set"} {
		if !strings.Contains(log, warning) {
			t.Errorf("no warning %q", warning)
		}
	}
}

func TestWarn(t *testing.T) {
	for query, want := range map[string]bool{"": false, "?skip_verify=false": false, "?skip_verify=true": true} {
		cfg, err := loadTestConfig(map[string]string{"REDIS_URL": "rediss://redis.example" + query})
		must(t, err)
		var log bytes.Buffer
		warn(cfg, slog.New(slog.NewJSONHandler(&log, nil)))
		if strings.Contains(log.String(), "skip_verify") != want {
			t.Errorf("REDIS_URL with %q warns %s", query, log.String())
		}
	}
}

func TestProcessInterrupt(t *testing.T) {
	s := startService(t, serviceEnv(t, testRedisAddr(t)))
	s.signal(t, syscall.SIGINT)
	if code := s.wait(t, 5*time.Second); code != 0 {
		t.Errorf("after SIGINT: exit status %d, want 0", code)
	}
}

func TestProcessHealthcheck(t *testing.T) {
	env := serviceEnv(t, testRedisAddr(t))
	s := startService(t, env)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.url, "http://"))
	for _, addr := range []string{"127.0.0.1:" + port, ":" + port, "0.0.0.0:" + port, "localhost:" + port} {
		waitFor(t, 5*time.Second, "a good healthcheck with ADDR="+addr, func() bool {
			return startProcess(t, map[string]string{"ADDR": addr}, "healthcheck").wait(t, 5*time.Second) == 0
		})
	}
	nobody := startProcess(t, map[string]string{"ADDR": "127.0.0.1:" + freePort()}, "healthcheck")
	if code := nobody.wait(t, 5*time.Second); code != 1 {
		t.Errorf("healthcheck where nothing listens: exit status %d, want 1", code)
	}
	unwell := serviceEnv(t, "127.0.0.1:"+freePort())
	u := startService(t, unwell)
	check := startProcess(t, map[string]string{"ADDR": strings.TrimPrefix(u.url, "http://")}, "healthcheck")
	if code := check.wait(t, 5*time.Second); code != 1 || !strings.Contains(check.log.String(), "redis") {
		t.Errorf("healthcheck without redis: exit status %d, %s, want 1 and the cause", code, check.log.String())
	}
}

// Starting before Redis or the key server works: alive, not ready, 503, until they come.
func TestProcessStartsFirst(t *testing.T) {
	needRedis(t)
	token := ecKey().sign(t, goodClaims())
	p := startRedis(t)
	p.stop()
	env := serviceEnv(t, p.addr)
	jwks := strings.TrimPrefix(env["JWKS_URL"], "file://")
	must(t, os.Rename(jwks, jwks+".later"))
	s := startService(t, env)
	wantUnready := func(what string) {
		t.Helper()
		if status, body := s.get("/livez"); status != 200 {
			t.Errorf("GET /livez = %d %s, want 200", status, body)
		}
		if status, body := s.get("/readyz"); status != 503 || !strings.Contains(body, what) {
			t.Errorf("GET /readyz = %d %s, want 503 naming %s", status, body, what)
		}
		start := time.Now()
		if status, body := s.post(token); status != 503 || time.Since(start) > 500*time.Millisecond {
			t.Errorf("POST /auth/session = %d %s after %s, want 503 at once", status, body, time.Since(start))
		}
	}
	wantUnready("key set")
	wantUnready("redis")
	must(t, os.Rename(jwks+".later", jwks))
	waitFor(t, 5*time.Second, "the keys", func() bool { _, body := s.get("/readyz"); return !strings.Contains(body, "key set") })
	wantUnready("redis")
	must(t, p.start())
	back := time.Now()
	waitFor(t, 5*time.Second, "the first session", func() bool { status, _ := s.post(token); return status == 200 })
	if took := time.Since(back); took > 1500*time.Millisecond {
		t.Errorf("the first session came %s after Redis, want 1.5 s at most", took)
	}
	waitFor(t, 5*time.Second, "readiness", func() bool { status, _ := s.get("/readyz"); return status == 200 })
}

// Where a session comes in time, however late, the service is ready.
func TestProcessSlowRedis(t *testing.T) {
	env := serviceEnv(t, startProxy(t, testRedisAddr(t), late(300*time.Millisecond)).addr)
	env["STORE_TIMEOUT"] = "1s"
	s := startService(t, env)
	waitFor(t, 5*time.Second, "readiness", func() bool { status, _ := s.get("/readyz"); return status == 200 })
	if status, body := s.post(ecKey().sign(t, goodClaims())); status != 200 {
		t.Errorf("POST /auth/session = %d %s, want 200", status, body)
	}
}

// After SIGTERM the service is first not ready and still serves; what is in flight is
// answered; then it exits with 0.
func TestProcessDrains(t *testing.T) {
	env := serviceEnv(t, startProxy(t, testRedisAddr(t), late(300*time.Millisecond)).addr)
	env["STORE_TIMEOUT"], env["DRAIN_DELAY"] = "5s", "2s"
	s := startService(t, env)
	token := ecKey().sign(t, goodClaims())
	waitFor(t, 10*time.Second, "the first session", func() bool { status, _ := s.post(token); return status == 200 })

	const callers = 100
	statuses := make(chan int, callers)
	for range callers {
		go func() { status, _ := s.post(token); statuses <- status }()
	}
	s.signal(t, syscall.SIGTERM)
	waitFor(t, 2*time.Second, "/readyz to be 503", func() bool {
		status, body := s.get("/readyz")
		return status == 503 && strings.Contains(body, "shutting down")
	})
	if status, body := s.post(token); status != 200 {
		t.Errorf("POST /auth/session while draining = %d %s, want 200", status, body)
	}
	for range callers {
		if status := <-statuses; status != 200 {
			t.Errorf("POST /auth/session in flight = %d, want 200", status)
		}
	}
	if code := s.wait(t, 10*time.Second); code != 0 {
		t.Errorf("exit status %d, want 0: %s", code, s.log.String())
	}
}

func TestProcessSecondSignal(t *testing.T) {
	env := serviceEnv(t, testRedisAddr(t))
	env["DRAIN_DELAY"] = "1m"
	s := startService(t, env)
	s.signal(t, syscall.SIGTERM)
	waitFor(t, 5*time.Second, "the service to drain", func() bool { return strings.Contains(s.log.String(), "shutting down") })
	waitFor(t, 5*time.Second, "a second signal to end the process", func() bool {
		_ = s.cmd.Process.Signal(syscall.SIGTERM) // the first may find the handler still there
		select {
		case <-s.exited:
			return true
		default:
			return false
		}
	})
	if s.code == 0 {
		t.Error("exit status 0 after a second signal")
	}
}

// What -dev prints works when pasted, and its Redis shows the record.
func TestProcessDev(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"plain":    {},
		"all else": {"JWT_ALGORITHMS": "RS256", "JWT_ISSUER": "https://i.example", "JWT_AUDIENCE": "a", "JWT_CLIENT_CLAIM": "org_id", "JWT_MAX_LIFETIME": "1h", "KEY_PREFIX": "k:"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startService(t, env, "-dev")
			out := s.stdout.String()
			redisAddr := regexp.MustCompile(`Redis: (127\.0\.0\.1:\d+)`).FindStringSubmatch(out)
			_, command, found := strings.Cut(out, "curl ")
			if redisAddr == nil || !found || !strings.Contains(out, s.url) {
				t.Fatalf("-dev prints %q", out)
			}
			var answer sessionAnswer
			if _, err := exec.LookPath("curl"); err != nil {
				t.Fatalf("this test pastes a curl command: %v", err)
			}
			waitFor(t, 5*time.Second, "the printed command to work", func() bool {
				body, err := exec.Command("bash", "-c", "curl "+command).Output()
				return err == nil && json.Unmarshal(body, &answer) == nil && answer.SessionID != ""
			})
			prefix := "auth_session:"
			if env["KEY_PREFIX"] != "" {
				prefix = env["KEY_PREFIX"]
			}
			c := redis.NewClient(&redis.Options{Addr: redisAddr[1]})
			defer c.Close()
			key := sessionKey(prefix, answer.SessionID)
			if value, err := c.Get(t.Context(), key).Result(); err != nil || !strings.Contains(value, answer.ID) {
				t.Errorf("GET of the record = %q, %v", value, err)
			}
			for range 50 { // however far its clock has come
				if at, err := c.ExpireTime(t.Context(), key).Result(); err != nil || int64(at/time.Second) != answer.ExpiresAt {
					t.Fatalf("EXPIRETIME = %d, %v, want %d", at/time.Second, err, answer.ExpiresAt)
				}
				time.Sleep(10 * time.Millisecond)
			}
			s.signal(t, syscall.SIGTERM)
			if code := s.wait(t, 5*time.Second); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			if scanner := bufio.NewScanner(strings.NewReader(s.log.String())); scanner.Scan() && !json.Valid(scanner.Bytes()) {
				t.Errorf("log line %q is no JSON", scanner.Text())
			}
		})
	}
}

// The README's figures of start and size, with room for a slow machine.
func TestProcessIsSmall(t *testing.T) {
	env, token := serviceEnv(t, testRedisAddr(t)), ecKey().sign(t, goodClaims())
	binary(t) // is built
	began := time.Now()
	s := startService(t, env)
	waitFor(t, 5*time.Second, "the first session", func() bool { status, _ := s.post(token); return status == 200 })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("start to first answer took %s", took)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return // not Linux
	}
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if kb, _ := strconv.Atoi(string(match[1])); kb > 40<<10 {
		t.Errorf("resident memory is %d kB", kb)
	}
}
