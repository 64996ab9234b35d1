//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// The attacks come from a process of their own: thousands of callers in the one that measures would be measured too.

// attacked runs f while connections send requests.
func (s *service) attacked(t *testing.T, connections int, request []byte, f func()) {
	t.Helper()
	var limit syscall.Rlimit // Go has raised the soft limit to the hard one
	testkit.Must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	text, err := json.Marshal(attack{strings.TrimPrefix(s.url, "http://"), min(connections, int(limit.Cur)-500), request})
	testkit.Must(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "E2E_ATTACK=1")
	stdin, err := cmd.StdinPipe()
	testkit.Must(t, err)
	var said testkit.Log
	cmd.Stdout, cmd.Stderr = &said, &said
	testkit.Must(t, cmd.Start())
	defer func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the attacking process: %v: %s", err, said.String())
		}
	}()
	_, err = stdin.Write(text)
	testkit.Must(t, err)
	testkit.WaitFor(t, 10*time.Second, "the attack to begin", func() bool { return said.Has("connected") })
	f()
}

// One partner's requests, and the orchestrator's, go on whatever anyone else sends.
func TestAttacks(t *testing.T) {
	redistest.Need(t)
	noise := testkit.ListenForNoise(t)
	post := string(rawPost(goodToken(t)))
	const head, mib = "POST /auth/session HTTP/1.1\r\nHost: x\r\n", 1 << 20
	const limit = 100 * time.Millisecond
	for _, test := range []struct {
		name        string
		connections int
		request     string
		p99         time.Duration // of another partner, at most
		memory      int64         // bytes, at most
	}{
		{"headers of short lines, without end", 2000, head + strings.Repeat("a:b\r\n", 2400), limit, 200 * mib},
		{"headers of longer lines, without end", 2000,
			head + strings.Repeat("a: "+strings.Repeat("b", 60)+"\r\n", 180), limit, 200 * mib},
		{"bodies of one byte", 2048, post[:len(post)-len(goodBody)+1], limit, 200 * mib},
		// The attackers, Redis and whoever measures share the processors with the service.
		{"requests as fast as they can", 4000, post, limit + callerSlack, 320 * mib},
	} {
		t.Run(test.name, func(t *testing.T) {
			// A busy machine may hold up a write for longer than a second.
			s := startWithKeys(t, map[string]string{
				"REDIS_URL": "redis://" + redistest.Start(t).Addr, "STORE_TIMEOUT": "5s"})
			s.waitReady(t)
			other := testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"client_id": "other"}))
			s.attacked(t, test.connections, []byte(test.request), func() {
				begun := time.Now()
				calls := storm(s.dial(t, 8), forever, 4*time.Second, 5*time.Millisecond,
					func() []byte { return rawPost(other) })
				start := time.Now()
				status, body := s.get("/livez")
				live, extra := time.Since(start), noise.Within(begun, time.Now())
				peak := s.usage(t).peak
				t.Logf("another partner: %s; /livez %s; %d MiB at most; noise %s",
					calls, inMS(live), peak/mib, inMS(extra))
				wantStatuses(t, calls, 200)
				if got := p99(calls[200]); got > test.p99+extra {
					t.Errorf("another partner's p99 is %s, want at most %s", got, test.p99)
				}
				if status != 200 || live > time.Second+extra {
					t.Errorf("GET /livez = %d %s after %s, want 200 within 1 s", status, body, live)
				}
				if peak > test.memory {
					t.Errorf("memory peaked at %d MiB, want at most %d", peak/mib, test.memory/mib)
				}
			})
		})
	}
}
