//go:build generated

package client

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	authURL    = "https://consent.example/start"
	sessionTTL = 10 * time.Minute
)

var (
	binary string // the service, built for this run
	key    ed25519.PrivateKey
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "authsession-compat")
	if err != nil {
		log.Fatal(err)
	}
	binary = filepath.Join(dir, "authsession")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir = "../.."
	if output, err := build.CombinedOutput(); err != nil {
		log.Fatalf("building the service: %v\n%s", err, output)
	}
	if _, key, err = ed25519.GenerateKey(nil); err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// process is a command that runs until the test ends.
type process struct {
	*exec.Cmd
	stdout, stderr output
}

func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(name, args...)}
	p.Env, p.Stdout, p.Stderr = env, &p.stdout, &p.stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.Process.Kill()
	_ = p.Wait() // the second time an error
}

// find waits for what the expression's group matches in out.
func find(t *testing.T, out *output, expression string) string {
	t.Helper()
	re := regexp.MustCompile(expression)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if m := re.FindStringSubmatch(out.String()); m != nil {
			return m[1]
		}
	}
	t.Fatalf("waited in vain for %s in:\n%s", expression, out)
	return ""
}

// redis is a redis-server where there is one, else the embedded one of authsession -dev.
type redis struct {
	*process
	url string
}

func startRedis(t *testing.T) *redis {
	t.Helper()
	_, err := exec.LookPath("redis-server")
	if err != nil && os.Getenv("REQUIRE_REDIS") == "1" {
		t.Fatalf("REQUIRE_REDIS=1: %v", err)
	}
	if err != nil {
		p := start(t, []string{"ADDR=127.0.0.1:0"}, binary, "-dev")
		return &redis{p, "redis://" + find(t, &p.stdout, `Redis: (\S+)`)}
	}
	dir, err := os.MkdirTemp("", "redis") // t.TempDir's path may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	server := start(t, nil, "redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir)
	return &redis{server, "unix://" + socket}
}

// pause makes Redis keep its connections and answer nothing.
func (r *redis) pause(t *testing.T) {
	t.Helper()
	if err := r.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

// service is the service's process, as README.md says to run it.
type service struct {
	addr string
	log  *output
}

// startService has the variables of env, too.
func startService(t *testing.T, r *redis, env ...string) *service {
	t.Helper()
	keySet := filepath.Join(t.TempDir(), "jwks.json")
	x := base64.RawURLEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	set := fmt.Appendf(nil, `{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","x":%q}]}`, x)
	if err := os.WriteFile(keySet, set, 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, append(env,
		"ADDR=127.0.0.1:0",
		"AUTH_URL="+authURL,
		"REDIS_URL="+r.url,
		"JWKS_URL=file://"+keySet,
		"SESSION_TTL="+sessionTTL.String(),
	), binary)
	s := &service{addr: find(t, &p.stderr, `"msg":"listening","addr":"([^"]+)"`), log: &p.stderr}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		response, err := http.Get("http://" + s.addr + "/readyz")
		if err == nil {
			response.Body.Close()
		}
		if err == nil && response.StatusCode == http.StatusOK {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("the service is not ready:\n%s", s.log)
		}
	}
}

// sign is a token with a scope, good for an hour.
func sign(key ed25519.PrivateKey, scope string) string {
	claims, _ := json.Marshal(map[string]any{"client_id": "acme", "scope": scope, "exp": time.Now().Add(time.Hour).Unix()})
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"EdDSA","typ":"JWT"}`)) + "." + encode(claims)
	return signed + "." + encode(ed25519.Sign(key, []byte(signed)))
}

// output is what a process writes, to be read while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
