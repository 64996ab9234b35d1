//go:build e2e && linux

package e2e

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

func TestArguments(t *testing.T) {
	for _, test := range []struct {
		name   string
		args   []string
		env    map[string]string
		code   int
		prints string
	}{
		{name: "version", args: []string{"-version"}, prints: "authsession "},
		{name: "help", args: []string{"-help"}, prints: "-dev"},
		{name: "help of a command", args: []string{"keygen", "-help"}, prints: "-out"},
		{name: "unknown flag", args: []string{"-nope"}, code: 1, prints: "-nope"},
		{name: "help as a word", args: []string{"help"}, prints: "LOG_LEVEL (default info)"},
		{name: "version as a word", args: []string{"version"}, prints: "authsession "},
		{name: "unknown command", args: []string{"serve"}, code: 1, prints: "authsession help"},
		{name: "argument too many", args: []string{"healthcheck", "now"}, code: 1, prints: "authsession help"},
		{name: "keygen without a file", args: []string{"keygen"}, code: 1, prints: "-out is required"},
		{name: "token without a key", args: []string{"token"}, code: 1, prints: "-key is required"},
		{name: "-dev with keys", args: []string{"-dev"}, env: map[string]string{"JWKS_URL": "x"}, code: 1,
			prints: "JWKS_URL"},
		{name: "no variables", code: 1, prints: "AUTH_URL is required"},
		{name: "line feed after a value", env: map[string]string{"JWT_ISSUER": "https://i.example\n"}, code: 1,
			prints: "\nJWT_ISSUER=\"https://i.example\\n\" must not have white space around it"},
		{name: "# in a password", env: map[string]string{"REDIS_URL": "redis://:123#abc@host:6379"}, code: 1,
			prints: "\nREDIS_URL must be in go-redis's format for standalone mode: its scheme, host, path or query does not " +
				"fit (in a password, percent-encode all but letters and digits, # as %23, or use REDIS_PASSWORD_FILE)\nJWKS_URL"},
		{name: "wrong variables", env: map[string]string{"REDIS_MODE": "single", "SESSION_TTL": "1s"}, code: 1,
			prints: "\nREDIS_MODE=\"single\" must be standalone, sentinel or cluster\nSESSION_TTL=\"1s\" must be a " +
				"duration from 1m to 168h, such as 30m: the lifetime of a session\nJWKS_URL is required: the key set's URL"},
		{name: "check", args: []string{"check"}, code: 1, prints: "AUTH_URL is required"},
		{name: "good check", args: []string{"check"}, env: serviceEnv(t, "127.0.0.1:1"), prints: "SESSION_TTL=30m\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startProcess(t, test.env, nil, test.args...)
			s.wantExit(t, 20*time.Second, test.code)
			out := s.stdout.String() + s.log.String()
			if !strings.Contains(out, test.prints) || strings.Contains(out, "listening") || strings.Contains(out, "goroutine") {
				t.Errorf("output = %q, want %q", out, test.prints)
			}
		})
	}
}

// The service serves with little memory, keeps secrets out of its log, ignores SIGHUP, and ends well by the signals of
// an orchestrator and of a terminal.
func TestSignals(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT} {
		t.Run(name, func(t *testing.T) {
			s := startReady(t, redistest.Addr(t), nil)
			secret := s.session(t, goodBody).SessionID
			s.signal(t, syscall.SIGHUP)
			time.Sleep(100 * time.Millisecond)
			s.session(t, goodBody)
			wantGet(t, s.url+"/v1/token", 404)
			if rss := s.memory(t, "VmRSS"); rss > 40 { // docs/speed.md
				t.Errorf("resident memory is %d MiB, want at most 40", rss)
			}
			s.signal(t, signal)
			s.wantExit(t, 10*time.Second, 0)
			s.wantLog(t, secret)
			for _, warning := range []string{"JWT_ISSUER is not set", "JWT_AUDIENCE is not set", "CLIENTS_FILE is not set"} {
				if !s.log.Has(warning) {
					t.Errorf("no warning %q", warning)
				}
			}
		})
	}
}

func TestSecondSignal(t *testing.T) {
	s := startReady(t, redistest.Addr(t), map[string]string{"DRAIN_DELAY": "1m"})
	s.signal(t, syscall.SIGTERM)
	find(t, &s.log, "(shutting down)")
	for s.cmd.Process.Signal(syscall.SIGTERM) == nil { // the first may come before the service restores the default
		time.Sleep(20 * time.Millisecond)
	}
	<-s.exited
	if s.cmd.ProcessState.Success() {
		t.Error("exit status = 0 after a second signal")
	}
}

func TestHealthcheck(t *testing.T) {
	s, unwell := startReady(t, redistest.Addr(t), nil), start(t, serviceEnv(t, "127.0.0.1:"+redistest.FreePort()))
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.url, "http://"))
	for addr, code := range map[string]int{
		"127.0.0.1:" + port: 0, ":" + port: 0, "0.0.0.0:" + port: 0, "localhost:" + port: 0,
		"127.0.0.1:" + redistest.FreePort(): 1, strings.TrimPrefix(unwell.url, "http://"): 1,
	} {
		check := startProcess(t, map[string]string{"ADDR": addr}, nil, "healthcheck")
		if check.wantExit(t, 20*time.Second, code); addr == strings.TrimPrefix(unwell.url, "http://") {
			find(t, &check.log, `(redis)`) // the cause
			live := startProcess(t, map[string]string{"ADDR": addr}, nil, "healthcheck", "-live")
			live.wantExit(t, 20*time.Second, 0)
		}
	}
}

// A standalone URL of a cluster's node takes some sessions only: /readyz and the log say why.
func TestStandaloneOnCluster(t *testing.T) {
	s := start(t, serviceEnv(t, redistest.Cluster(t)[0].Addr))
	s.waitHealth(t, 20*time.Second, 503, "REDIS_MODE=cluster")
	find(t, &s.log, "(REDIS_MODE=cluster)")
}

// After SIGTERM the service is not ready, still serves during DRAIN_DELAY, answers what is in flight, and exits with 0.
func TestDrain(t *testing.T) {
	slow := redistest.StartProxy(t, redistest.Addr(t), redistest.Late(300*time.Millisecond))
	s := startReady(t, slow.Addr, map[string]string{"STORE_TIMEOUT": "5s", "DRAIN_DELAY": "3s"})
	const callers = 100
	calls := make([]call, callers)
	var running sync.WaitGroup
	for i := range calls {
		running.Go(func() { calls[i] = s.post(goodBody) })
	}
	s.signal(t, syscall.SIGTERM)
	s.waitHealth(t, 3*time.Second, 503, "shutting down")
	// A gateway's connections end while there is still a listener for the next request.
	late := s.post(goodBody)
	if late.answer.Status != 200 || !late.closes {
		t.Errorf("POST while draining = %d, %v, closing %t, want 200 and true", late.answer.Status, late.err, late.closes)
	}
	running.Wait()
	wantStatuses(t, calls, 200)
	s.wantExit(t, 20*time.Second, 0)
}

// Requests that wait for Redis at the end of SHUTDOWN_GRACE get 503. Those that wait for their body may get no answer.
// All have a log line with 503.
func TestShutdownGrace(t *testing.T) {
	slow := redistest.StartProxy(t, redistest.Addr(t), redistest.Pass)
	s := startReady(t, slow.Addr, map[string]string{"STORE_TIMEOUT": "30s", "SHUTDOWN_GRACE": "500ms"})
	slow.Set(redistest.Late(20 * time.Second))
	const callers = 40
	post := rawPost(s.token)
	calls := make([]call, 2*callers)
	var running sync.WaitGroup
	for i, c := range dial(t, s.url, len(calls)) {
		request := post
		if i < callers {
			request = post[:len(post)-1]
		}
		running.Go(func() { calls[i] = c.do(request) })
	}
	time.Sleep(time.Second) // the requests wait
	begun := time.Now()
	s.signal(t, syscall.SIGTERM)
	running.Wait()
	wantStatuses(t, calls[callers:], 503)
	s.wantExit(t, 10*time.Second, 1)
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("the end took %s, want little more than SHUTDOWN_GRACE", took)
	}
	if n := strings.Count(s.log.String(), `"status":503`); n != 2*callers {
		t.Errorf("%d log lines with status 503, want %d", n, 2*callers)
	}
}

// A reader of the log that stands still or goes away neither holds up a request nor the end.
func TestLogReader(t *testing.T) {
	for name, gone := range map[string]bool{"stands still": false, "goes away": true} {
		t.Run(name, func(t *testing.T) {
			reader, stderr, err := os.Pipe()
			testkit.Must(t, err)
			defer reader.Close()
			_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, stderr.Fd(), syscall.F_SETPIPE_SZ, 4<<10)
			if errno != 0 {
				t.Fatalf("F_SETPIPE_SZ: %v", errno)
			}
			env := serviceEnv(t, redistest.Addr(t))
			env["ADDR"], env["METRICS_ADDR"] = "127.0.0.1:"+redistest.FreePort(), ""
			s := startProcess(t, env, stderr)
			testkit.Must(t, stderr.Close())
			s.url = "http://" + env["ADDR"]
			s.waitReady(t)
			if gone {
				testkit.Must(t, reader.Close())
			}
			calls := make([]call, 150)
			var running sync.WaitGroup
			for i := range calls {
				running.Go(func() { calls[i] = s.post(goodBody) })
				time.Sleep(10 * time.Millisecond)
			}
			running.Wait()
			wantStatuses(t, calls, 200)
			s.signal(t, syscall.SIGTERM)
			s.wantExit(t, shutdownGrace+2*time.Second, 0)
		})
	}
}

// The command that -dev prints works as it is, and leads to a record and a consent page. The rest of the reference
// platform is there too, and is not without -dev.
func TestDev(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"plain": {"ADDR": "127.0.0.1:0"},
		"variables set": {
			"ADDR": "127.0.0.1:0", "JWT_ALGORITHMS": "RS256", "JWT_ISSUER": "https://i.example", "JWT_AUDIENCE": "a",
			"JWT_CLIENT_CLAIM": "org_id", "JWT_MAX_LIFETIME": "1h", "JWT_TYP": "at+jwt", "KEY_PREFIX": "k:"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, env, "-dev")
			command := find(t, &s.stdout, `(?s)(curl .*}')`)
			s.token = find(t, &s.stdout, `Bearer ([^']+)'`)
			s.waitReady(t)
			var answer testkit.SessionAnswer
			for _, shell := range []string{"sh", "bash"} {
				body, err := exec.Command(shell, "-c", command).Output()
				if jsonErr := json.Unmarshal(body, &answer); err != nil || jsonErr != nil || answer.SessionID == "" {
					t.Fatalf("the printed command in %s answers %q, %v, want a session", shell, body, err)
				}
			}
			c := redis.NewClient(&redis.Options{Addr: find(t, &s.stdout, `Redis: (127\.0\.0\.1:\d+)`)})
			defer c.Close()
			key := recordKey(s.prefix, answer.SessionID)
			if value, err := c.Get(t.Context(), key).Result(); err != nil || !strings.Contains(value, answer.ID) {
				t.Errorf("GET of the record = %q, %v", value, err)
			}
			if at := c.ExpireTime(t.Context(), key).Val(); int64(at/time.Second) != answer.ExpiresAt {
				t.Errorf("EXPIRETIME = %d, want %d", at/time.Second, answer.ExpiresAt)
			}
			if page := wantGet(t, answer.AuthURL, 200); !strings.Contains(page, "consent") {
				t.Errorf("GET auth_url = %s, want the consent page", page)
			}
			wantGet(t, s.url+"/", 303)
			wantGet(t, find(t, &s.stdout, `\nOpen (http://localhost:\d+/)\nAPI: `+s.url+`\b`), 200)
			wantGet(t, s.url+"/v1/token", 405)
			s.signal(t, syscall.SIGTERM)
			s.wantExit(t, 10*time.Second, 0)
			if s.wantLog(t, answer.SessionID); s.log.Has(`"WARN"`) {
				t.Errorf("-dev warns: %s", s.log.String())
			}
		})
	}
}

// keygen removes the key if the reader of its stdout is gone. A pipe is the test's own, because SIGPIPE ends a process
// only for its own stdout.
func TestKeygenClosedPipe(t *testing.T) {
	reader, stdout, err := os.Pipe()
	testkit.Must(t, err)
	defer stdout.Close()
	testkit.Must(t, reader.Close())
	key := filepath.Join(t.TempDir(), "key.pem")
	cmd := exec.Command(binary, "keygen", "-out", key)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "printing the key set") {
		t.Errorf("keygen = %d, %s, want 1 and the cause", code, stderr.String())
	}
	if _, err := os.Lstat(key); !os.IsNotExist(err) {
		t.Errorf("the key's file is still there (%v)", err)
	}
}
