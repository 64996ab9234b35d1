package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

func TestProcessArguments(t *testing.T) {
	wrong := map[string]string{"ADDR": "nope", "AUTH_URL": "https://c.example", "REDIS_URL": "x", "SESSION_TTL": "1s"}
	for _, test := range []struct {
		args    []string
		env     map[string]string
		code    int
		out     string // in what it prints
		oneLine bool
	}{
		{args: []string{"-version"}, out: "authsession ", oneLine: true},
		{args: []string{"-help"}, out: "-dev"},
		{args: []string{"-help"}, out: "keygen"},
		{args: []string{"keygen", "-help"}, out: "-out"},
		{args: []string{"token", "-help"}, out: "-client"},
		{args: []string{"-nope"}, code: 1, out: "-nope"},
		{args: []string{"serve"}, code: 1, out: "healthcheck, keygen, jwks, token, -dev, -version"},
		{args: []string{"healthcheck", "now"}, code: 1, out: "healthcheck, keygen, jwks, token, -dev, -version"},
		{args: []string{"keygen"}, code: 1, out: "authsession: -out is required", oneLine: true},
		{args: []string{"token"}, code: 1, out: "authsession: -key is required", oneLine: true},
		{args: []string{"token", "-key", "none", "-client", "c"}, code: 1, oneLine: true,
			out: "authsession: -key cannot be read"},
		{args: []string{"-dev"}, env: map[string]string{"JWKS_URL": "https://h/"}, code: 1, out: "JWKS_URL"},
		{code: 1, out: "AUTH_URL is required", oneLine: true},
		{env: wrong, code: 1, out: "ADDR must be", oneLine: true},
	} {
		s := startProcess(t, test.env, test.args...)
		code := s.wait(t, 10*time.Second)
		out := s.stdout.String() + s.log.String()
		if code != test.code || !strings.Contains(out, test.out) || strings.Contains(out, "listening") {
			t.Errorf("authsession %v: exit status %d, output %q, want %d with %q", test.args, code, out, test.code, test.out)
		}
		if isLog := strings.Contains(out, `"level"`); isLog != (test.code == 1 && test.args == nil) {
			t.Errorf("authsession %v prints %q; only the service itself, which has no arguments, logs JSON", test.args, out)
		}
		if test.oneLine && strings.Count(out, "\n") != 1 {
			t.Errorf("authsession with %v prints %q, want one line", test.env, out)
		}
	}
}

func TestProcessServes(t *testing.T) {
	s := startService(t, serviceEnv(t, redistest.Addr(t)))
	s.waitReady(t)
	answer := s.session(t, goodBody)
	s.signal(t, syscall.SIGTERM)
	if code := s.wait(t, 5*time.Second); code != 0 {
		t.Errorf("after SIGTERM: exit status %d, want 0", code)
	}
	for text := range strings.SplitSeq(strings.TrimSpace(s.log.String()), "\n") {
		if !json.Valid([]byte(text)) {
			t.Errorf("log line %q is no JSON", text)
		}
	}
	for name, secret := range map[string]string{
		"token": s.token, "session_id": answer.SessionID, "end_user_id": endUser,
	} {
		if s.log.Has(secret) {
			t.Errorf("the log holds the %s", name)
		}
	}
	for _, warning := range []string{"JWT_ISSUER is not set", "JWT_AUDIENCE is not set"} {
		if !s.log.Has(warning) {
			t.Errorf("no warning %q", warning)
		}
	}
}

func TestProcessInterrupt(t *testing.T) {
	s := startService(t, serviceEnv(t, redistest.Addr(t)))
	s.signal(t, syscall.SIGINT)
	if code := s.wait(t, 5*time.Second); code != 0 {
		t.Errorf("after SIGINT: exit status %d, want 0", code)
	}
}

func TestProcessHealthcheck(t *testing.T) {
	healthcheck := func(addr string) *service {
		return startProcess(t, map[string]string{"ADDR": addr}, "healthcheck")
	}
	s := startService(t, serviceEnv(t, redistest.Addr(t)))
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.url, "http://"))
	for _, addr := range []string{"127.0.0.1:" + port, ":" + port, "0.0.0.0:" + port, "localhost:" + port} {
		testkit.WaitFor(t, 5*time.Second, "a good healthcheck with ADDR="+addr, func() bool {
			return healthcheck(addr).wait(t, 5*time.Second) == 0
		})
	}
	if code := healthcheck("127.0.0.1:"+redistest.FreePort()).wait(t, 5*time.Second); code != 1 {
		t.Errorf("healthcheck where nothing listens: exit status %d, want 1", code)
	}
	unwell := startService(t, serviceEnv(t, "127.0.0.1:"+redistest.FreePort()))
	check := healthcheck(strings.TrimPrefix(unwell.url, "http://"))
	if code := check.wait(t, 5*time.Second); code != 1 || !check.log.Has("redis") {
		t.Errorf("healthcheck without redis: exit status %d, %s, want 1 and the cause", code, check.log.String())
	}
}

// Starting before Redis or the key server works: alive, not ready, 503, until they come.
func TestProcessStartsFirst(t *testing.T) {
	redistest.Need(t)
	noise := testkit.ListenForNoise(t)
	server := redistest.Start(t)
	server.Stop()
	env := serviceEnv(t, server.Addr)
	keySet := strings.TrimPrefix(env["JWKS_URL"], "file://")
	testkit.Must(t, os.Rename(keySet, keySet+".later"))
	s := startService(t, env)
	wantUnready := func(what string) {
		t.Helper()
		if status, body := s.get("/livez"); status != 200 {
			t.Errorf("GET /livez = %d %s, want 200", status, body)
		}
		if status, body := s.get("/readyz"); status != 503 || !strings.Contains(body, what) {
			t.Errorf("GET /readyz = %d %s, want 503 naming %s", status, body, what)
		}
		if c := s.post(goodBody); c.answer.Status != 503 || c.took > 500*time.Millisecond {
			t.Errorf("POST /auth/session = %d %s after %s, want 503 at once", c.answer.Status, c.answer.Body, c.took)
		}
	}
	wantUnready("key set")
	wantUnready("redis")
	testkit.Must(t, os.Rename(keySet+".later", keySet))
	testkit.WaitFor(t, 5*time.Second, "the keys", func() bool {
		_, body := s.get("/readyz")
		return !strings.Contains(body, "key set")
	})
	wantUnready("redis")
	server.Restart(t)
	back := time.Now()
	s.waitSession(t, 5*time.Second)
	if took := time.Since(back); took > backLimit+noise.Within(back, time.Now()) {
		t.Errorf("the first session came %s after Redis, want %s at most", took, backLimit)
	}
	s.waitReady(t)
}

// Where a session comes in time, however late, the service is ready.
func TestProcessSlowRedis(t *testing.T) {
	env := serviceEnv(t, redistest.StartProxy(t, redistest.Addr(t), redistest.Late(300*time.Millisecond)).Addr)
	env["STORE_TIMEOUT"] = "1s"
	s := startService(t, env)
	s.waitReady(t)
	s.session(t, goodBody)
}

// After SIGTERM the service is first not ready and still serves; what is in flight is answered; then it exits with 0.
func TestProcessDrains(t *testing.T) {
	env := serviceEnv(t, redistest.StartProxy(t, redistest.Addr(t), redistest.Late(300*time.Millisecond)).Addr)
	env["STORE_TIMEOUT"], env["DRAIN_DELAY"] = "5s", "2s"
	s := startService(t, env)
	s.waitSession(t, 10*time.Second)

	const callers = 100
	calls := make(chan call, callers)
	for range callers {
		go func() { calls <- s.post(goodBody) }()
	}
	s.signal(t, syscall.SIGTERM)
	testkit.WaitFor(t, 2*time.Second, "/readyz to be 503", func() bool {
		status, body := s.get("/readyz")
		return status == 503 && strings.Contains(body, "shutting down")
	})
	// A gateway's kept connections end while there is still a listener for the next request.
	r, err := http.NewRequest("POST", s.url+"/auth/session", strings.NewReader(goodBody))
	testkit.Must(t, err)
	r.Header.Set("Authorization", "Bearer "+s.token)
	response, err := testkit.Client.Do(r)
	if a := testkit.ReadAnswer(t, response, err); a.Status != 200 || !response.Close {
		t.Errorf("POST /auth/session while draining = %d %s, Connection: close %t, want 200 and true",
			a.Status, a.Body, response.Close)
	}
	for range callers {
		if c := <-calls; c.answer.Status != 200 {
			t.Errorf("POST /auth/session in flight = %d %s, %v, want 200", c.answer.Status, c.answer.Body, c.err)
		}
	}
	if code := s.wait(t, 10*time.Second); code != 0 {
		t.Errorf("exit status %d, want 0: %s", code, s.log.String())
	}
}

// What SHUTDOWN_GRACE cuts off gets 503 and its log line, whether it waits for Redis or for its body.
func TestProcessCutsOff(t *testing.T) {
	slow := redistest.StartProxy(t, redistest.Addr(t), redistest.Late(20*time.Second))
	env := serviceEnv(t, slow.Addr)
	maps.Copy(env, map[string]string{"STORE_TIMEOUT": "30s", "SHUTDOWN_GRACE": "500ms", "METRICS_ADDR": "127.0.0.1:0"})
	s := startService(t, env)
	testkit.WaitFor(t, 5*time.Second, "the keys", func() bool { return s.log.Has("key set loaded") })
	const callers = 40
	answers := make(chan call, 2*callers)
	post := rawPost(s.token)
	for i, c := range s.dial(t, 2*callers) {
		request := post
		if i < callers {
			request = post[:len(post)-1]
		}
		go func() { answers <- c.do(request) }()
	}
	testkit.WaitFor(t, 10*time.Second, "the requests to wait for Redis", func() bool { return s.inFlight(t) == callers })
	begun := time.Now()
	s.signal(t, syscall.SIGTERM)
	for range 2 * callers {
		c := <-answers
		if c.err != nil {
			t.Fatalf("a request got no answer: %v", c.err)
		}
		whole(t, c).WantError(t, 503, "unavailable")
	}
	if code := s.wait(t, 5*time.Second); code != 1 {
		t.Errorf("exit status %d, want 1: %s", code, s.logEnd())
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %s, want SHUTDOWN_GRACE and a second at most", took)
	}
	if n := strings.Count(s.log.String(), `"status":503`); n != 2*callers {
		t.Errorf("%d log lines with status 503, want %d", n, 2*callers)
	}
}

// A reader of the log that goes away does not end the service.
func TestProcessLogReaderGone(t *testing.T) {
	env := serviceEnv(t, redistest.Addr(t))
	env["METRICS_ADDR"] = "127.0.0.1:0"
	s := startService(t, env)
	s.waitReady(t)
	s.log.Close()
	dropped := regexp.MustCompile(`(?m)^authsession_log_lines_dropped_total [1-9]`)
	testkit.WaitFor(t, 5*time.Second, "/metrics to have lines dropped", func() bool {
		s.session(t, goodBody)
		return dropped.MatchString(s.scrape(t))
	})
	s.session(t, goodBody)
	s.signal(t, syscall.SIGTERM)
	if code := s.wait(t, 10*time.Second); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

func TestProcessSecondSignal(t *testing.T) {
	env := serviceEnv(t, redistest.Addr(t))
	env["DRAIN_DELAY"] = "1m"
	s := startService(t, env)
	s.signal(t, syscall.SIGTERM)
	testkit.WaitFor(t, 5*time.Second, "the service to drain", func() bool { return s.log.Has("shutting down") })
	testkit.WaitFor(t, 5*time.Second, "a second signal to end the process", func() bool {
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
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatalf("this test pastes a curl command: %v", err)
	}
	for name, env := range map[string]map[string]string{
		"plain": nil,
		"all else": {
			"JWT_ALGORITHMS": "RS256", "JWT_ISSUER": "https://i.example", "JWT_AUDIENCE": "a",
			"JWT_CLIENT_CLAIM": "org_id", "JWT_MAX_LIFETIME": "1h", "JWT_TYP": "at+jwt", "KEY_PREFIX": "k:"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startDev(t, env)
			out := s.stdout.String()
			redisAddr := regexp.MustCompile(`Redis: (127\.0\.0\.1:\d+)`).FindStringSubmatch(out)
			_, command, found := strings.Cut(out, "curl ")
			if redisAddr == nil || !found || !strings.Contains(out, s.url) {
				t.Fatalf("-dev prints %q", out)
			}
			var answer testkit.SessionAnswer
			testkit.WaitFor(t, 5*time.Second, "the printed command to work", func() bool {
				body, err := exec.Command("bash", "-c", "curl "+command).Output()
				return err == nil && json.Unmarshal(body, &answer) == nil && answer.SessionID != ""
			})
			c := redis.NewClient(&redis.Options{Addr: redisAddr[1]})
			defer c.Close()
			key := recordKey(s.prefix, answer.SessionID)
			if value, err := c.Get(t.Context(), key).Result(); err != nil || !strings.Contains(value, answer.ID) {
				t.Errorf("GET of the record = %q, %v", value, err)
			}
			for range 50 { // however far its clock has come
				at, err := c.ExpireTime(t.Context(), key).Result()
				if err != nil || int64(at/time.Second) != answer.ExpiresAt {
					t.Fatalf("EXPIRETIME = %d, %v, want %d", at/time.Second, err, answer.ExpiresAt)
				}
				time.Sleep(10 * time.Millisecond)
			}
			s.signal(t, syscall.SIGTERM)
			if code := s.wait(t, 5*time.Second); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			if s.log.Has(`"WARN"`) {
				t.Errorf("-dev warns of what it means: %s", s.log.String())
			}
			for text := range strings.SplitSeq(strings.TrimSpace(s.log.String()), "\n") {
				if !json.Valid([]byte(text)) {
					t.Errorf("log line %q is no JSON", text)
				}
			}
		})
	}
}

// The port after ADDR's is the sandbox's, unless METRICS_ADDR has it. What -dev does stands first, before anything can
// take time or fail.
func TestProcessDevPorts(t *testing.T) {
	var s *service
	testkit.WaitFor(t, 30*time.Second, "three free ports in a row", func() bool {
		port, _ := strconv.Atoi(redistest.FreePort())
		at := func(n int) string { return "127.0.0.1:" + strconv.Itoa(port+n) }
		s = startProcess(t, map[string]string{"ADDR": at(0), "METRICS_ADDR": at(1)}, "-dev")
		testkit.WaitFor(t, 10*time.Second, "metrics, or the end", func() bool {
			return s.log.Has("serving metrics") || s.log.Has("address already in use")
		})
		return s.log.Has("serving metrics") && s.stdout.Has("Consent page: a sandbox, http://localhost:"+strconv.Itoa(port+2))
	})
	if !strings.HasPrefix(s.stdout.String(), "authsession -dev starts ") {
		t.Errorf("-dev prints %q", s.stdout.String())
	}
}

// The figures of start and size in docs/speed.md, with room for a slow machine.
func TestProcessIsSmall(t *testing.T) {
	env := serviceEnv(t, redistest.Addr(t))
	binary(t) // is built
	began := time.Now()
	s := startService(t, env)
	s.waitSession(t, 5*time.Second)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("start to first answer took %s", took)
	}
	if _, err := os.Stat("/proc/self/status"); err != nil {
		return // not Linux
	}
	if rss := s.usage(t).rss; rss > 40<<20 {
		t.Errorf("resident memory is %d MiB", rss>>20)
	}
}

// METRICS_ADDR is a listener of its own: what is on one address is not on the other.
func TestMetricsAddr(t *testing.T) {
	env := serviceEnv(t, redistest.Addr(t))
	env["METRICS_ADDR"] = "127.0.0.1:0"
	s := startService(t, env)
	metrics := "http://" + s.logged(t, "serving metrics")
	for url, want := range map[string]int{
		s.url + "/metrics":        404,
		metrics + "/metrics":      200,
		metrics + "/readyz":       404,
		metrics + "/auth/session": 404,
	} {
		response, err := testkit.Client.Get(url)
		if a := testkit.ReadAnswer(t, response, err); a.Status != want {
			t.Errorf("GET %s = %d %.80s, want %d", url, a.Status, a.Body, want)
		}
	}
}

// listeners is how many sockets a process of ours listens on; -1 where /proc does not tell.
func (s *service) listeners(t testing.TB) int {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	var table strings.Builder
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		data, err := os.ReadFile(proc + name)
		if os.IsNotExist(err) {
			continue
		}
		testkit.Must(t, err)
		table.Write(data)
	}
	if table.Len() == 0 {
		return -1
	}
	files, err := filepath.Glob(proc + "fd/*")
	testkit.Must(t, err)
	count := 0
	for _, file := range files {
		link, _ := os.Readlink(file)
		inode, isSocket := strings.CutPrefix(link, "socket:[")
		if !isSocket {
			continue
		}
		for line := range strings.Lines(table.String()) {
			fields := strings.Fields(line)
			if fields[3] == "0A" && fields[9] == strings.TrimSuffix(inode, "]") { // LISTEN
				count++
			}
		}
	}
	return count
}

// The sandbox is there in -dev where no AUTH_URL is set, and never else. Without it the process listens on nothing but
// its own address and the embedded Redis's.
func TestProcessSandbox(t *testing.T) {
	for name, test := range map[string]struct {
		start   func(testing.TB) *service
		listens int
		page    bool
	}{
		"-dev": {
			start:   func(t testing.TB) *service { return startDev(t, nil) },
			listens: 3, page: true,
		},
		"-dev with AUTH_URL": {
			start: func(t testing.TB) *service {
				return startDev(t, map[string]string{"AUTH_URL": "https://consent.example/"})
			},
			listens: 2,
		},
		"production": {
			start:   func(t testing.TB) *service { return startService(t, serviceEnv(t, redistest.Addr(t))) },
			listens: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := test.start(t)
			if got := s.listeners(t); got != test.listens && got >= 0 {
				t.Errorf("it listens on %d sockets, want %d", got, test.listens)
			}
			s.waitReady(t)
			answer := s.session(t, goodBody)
			// A good session's page is not on the service's own address, in any mode.
			if status, body := s.get("/?sess_id=" + answer.SessionID); status != 404 || !strings.Contains(body, "not_found") {
				t.Errorf("the service's own address answers %d %s, want 404", status, body)
			}
			page := regexp.MustCompile(`Consent page: a sandbox, (http://localhost:\d+/)`).
				FindStringSubmatch(s.stdout.String())
			if (page != nil) != test.page {
				t.Fatalf("it prints %q", s.stdout.String())
			}
			if page == nil {
				return
			}
			if answer.AuthURL != page[1]+"?sess_id="+answer.SessionID {
				t.Errorf("auth_url %s is not of %s", answer.AuthURL, page[1])
			}
			response, err := testkit.Client.Get(answer.AuthURL)
			shown := testkit.ReadAnswer(t, response, err)
			if shown.Status != 200 || !bytes.Contains(shown.Body, []byte("<dd>"+endUser+"</dd>")) {
				t.Errorf("GET auth_url = %d %s", shown.Status, shown.Body)
			}
			if s.log.Has(answer.SessionID) {
				t.Error("the log holds the session_id")
			}
		})
	}
}

// Keygen takes the key back when the reader of its stdout is gone. SIGPIPE, which a process gets for its own stdout
// alone, would end it before that.
func TestProcessKeygenClosedPipe(t *testing.T) {
	reader, stdout, err := os.Pipe()
	testkit.Must(t, err)
	defer stdout.Close()
	testkit.Must(t, reader.Close())
	key := filepath.Join(t.TempDir(), "key.pem")
	cmd := exec.Command(binary(t), "keygen", "-out", key)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "writing key and key set") {
		t.Errorf("exit status %d, %s, want 1 and the cause", code, stderr.String())
	}
	if _, err := os.Lstat(key); !os.IsNotExist(err) {
		t.Errorf("the key's file is still there (%v)", err)
	}
}
