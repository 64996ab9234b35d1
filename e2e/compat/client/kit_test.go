//go:build generated

package client

import (
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
	"syscall"
	"testing"
	"time"
)

const (
	authURL    = "https://consent.example/start"
	sessionTTL = 10 * time.Minute
)

var (
	binary string // the service's executable, built for this run
	key    ed25519.PrivateKey
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "authsession-compat")
	if err != nil {
		log.Fatal(err)
	}
	binary = filepath.Join(dir, "authsession")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir = "../../.."
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

// process is an authsession process that runs until the test ends.
type process struct {
	*exec.Cmd
	output string // the file that collects its stdout and stderr
}

func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	p := &process{Cmd: exec.Command(binary, args...), output: output.Name()}
	p.Env, p.Stdout, p.Stderr = env, output, output
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.Process.Kill()
	_ = p.Wait() // an error on the second call
}

// pause stops the process, which keeps its connections.
func (p *process) pause(t *testing.T) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Wait4(p.Process.Pid, nil, syscall.WUNTRACED, nil); err != nil { // until all threads have stopped
		t.Fatal(err)
	}
}

// find waits for a match of expression in the output and returns its first group.
func (p *process) find(t *testing.T, expression string) string {
	t.Helper()
	re := regexp.MustCompile(expression)
	var output []byte
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		output, _ = os.ReadFile(p.output)
		if m := re.FindSubmatch(output); m != nil {
			return string(m[1])
		}
	}
	t.Fatalf("no match of %s in:\n%s", expression, output)
	return ""
}

// service is a ready authsession process. Its Redis is the embedded one of another process, authsession -dev.
type service struct {
	*process
	addr  string
	redis *process
}

// startService starts the service with the variables in env and those that README.md requires.
func startService(t *testing.T, env ...string) *service {
	t.Helper()
	redis := start(t, []string{"ADDR=127.0.0.1:0"}, "-dev")
	keySet := filepath.Join(t.TempDir(), "jwks.json")
	x := base64.RawURLEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	set := fmt.Appendf(nil, `{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","x":%q}]}`, x)
	if err := os.WriteFile(keySet, set, 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, append(env,
		"ADDR=127.0.0.1:0",
		"AUTH_URL="+authURL,
		"REDIS_URL=redis://"+redis.find(t, `Redis: (\S+)`),
		"JWKS_URL=file://"+keySet,
		"SESSION_TTL="+sessionTTL.String(),
	))
	s := &service{process: p, addr: p.find(t, `"msg":"listening","addr":"([^"]+)"`), redis: redis}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		response, err := http.Get("http://" + s.addr + "/readyz")
		if err == nil {
			response.Body.Close()
		}
		if err == nil && response.StatusCode == http.StatusOK {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("GET /readyz = %v, %v, want 200", response, err)
		}
	}
}

// sign returns a token with a scope that is valid for an hour.
func sign(key ed25519.PrivateKey, scope string) string {
	claims, _ := json.Marshal(map[string]any{"client_id": "acme", "scope": scope, "exp": time.Now().Add(time.Hour).Unix()})
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"EdDSA","typ":"JWT"}`)) + "." + encode(claims)
	return signed + "." + encode(ed25519.Sign(key, []byte(signed)))
}
