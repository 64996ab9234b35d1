package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// The rotation by hand of docs/operate.md, step by step, with a caller that never stops: no token is refused.
func TestRotation(t *testing.T) {
	doc, err := os.ReadFile("../docs/operate.md")
	testkit.Must(t, err)
	dir := t.TempDir()
	testkit.Must(t, os.Symlink(binary(t), filepath.Join(dir, "authsession")))
	shell := func(command string) string {
		t.Helper()
		c := exec.Command("bash", "-ec", command)
		c.Dir = dir
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	step := func(n int) { // runs a step of the page
		t.Helper()
		for line := range strings.Lines(string(doc)) {
			if command, comment, ok := strings.Cut(line, fmt.Sprintf("# %d. ", n)); ok && command != "" && comment != "" {
				shell(command)
				return
			}
		}
		t.Fatalf("docs/operate.md has no command for step %d", n)
	}
	shell("./authsession keygen -out key.pem -jwks jwks.json")
	env := serviceEnv(t, redistest.Addr(t))
	env["JWKS_URL"] = "file://" + filepath.Join(dir, "jwks.json")
	s := startService(t, env)
	var token atomic.Value
	token.Store(shell("./authsession token -key key.pem -client acme"))
	s.waitReady(t)

	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		caller, accepted := &service{url: s.url, prefix: s.prefix}, 0
		defer func() { stopped <- accepted }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			caller.token = token.Load().(string)
			if c := caller.post(goodBody); c.answer.Status != 200 {
				t.Errorf("POST /auth/session = %d %s, %v, want 200", c.answer.Status, c.answer.Body, c.err)
			} else {
				accepted++
			}
		}
	}()
	publish := func(n int, keys string) {
		t.Helper()
		length := strings.LastIndex(s.log.String(), "key set loaded")
		step(n)
		testkit.WaitFor(t, 20*time.Second, "a set of "+keys, func() bool {
			text := s.log.String()
			at := strings.LastIndex(text, "key set loaded")
			return at > length && strings.HasPrefix(text[at:], `key set loaded","keys":`+keys)
		})
	}
	old := token.Load()
	step(1)
	publish(2, "2")
	step(4)
	token.Store(shell("cat token"))
	time.Sleep(100 * time.Millisecond) // the last call with the old token is answered
	publish(6, "1")
	step(7)
	close(stop)
	if accepted := <-stopped; accepted < 20 {
		t.Errorf("%d requests on the way, want 20 at least", accepted)
	}
	s.token = old.(string)
	if c := s.post(goodBody); c.answer.Status != 401 {
		t.Errorf("POST with the old key's token = %d, want 401", c.answer.Status)
	}
}
