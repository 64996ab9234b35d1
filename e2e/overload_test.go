//go:build e2e && linux

package e2e

import (
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxMemory     = 400              // MiB; kubernetes.yaml allows 512
	shutdownGrace = 10 * time.Second // SHUTDOWN_GRACE's default
)

func (s *service) wantPeak(t *testing.T) {
	t.Helper()
	peak := s.memory(t, "VmHWM")
	t.Logf("memory peaked at %d MiB", peak)
	if peak > maxMemory {
		t.Errorf("memory peaked at %d MiB, want at most %d", peak, maxMemory)
	}
}

// storm has each caller send a request so many times, with a pause before each. The first pauses are spread.
func storm(callers []*caller, times int, pause time.Duration, request []byte) []call {
	calls := make([]call, len(callers)*times)
	var running sync.WaitGroup
	for i, c := range callers {
		running.Go(func() {
			time.Sleep(pause * time.Duration(i) / time.Duration(len(callers)))
			for n := range times {
				calls[i*times+n] = c.do(request)
				time.Sleep(pause)
			}
		})
	}
	running.Wait()
	return calls
}

// wantServed checks that a partner's callers are served, and that /livez answers.
func (s *service) wantServed(t *testing.T, token string) {
	t.Helper()
	callers := dial(t, s.url, 8)
	defer hangUp(callers)
	wantStatuses(t, storm(callers, 40, 5*time.Millisecond, rawPost(token)), 200)
	wantGet(t, s.url+"/livez", 200)
}

// One partner is served whatever others send.
func TestAttacks(t *testing.T) {
	post := string(rawPost(goodToken(t, "acme")))
	unknown := testkit.NewKey(t, "unknown", jose.ES256)
	for _, test := range []struct {
		name        string
		connections int
		request     string
	}{
		{name: "headers without end", connections: 2000,
			request: "POST /auth/session HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:b\r\n", 2400)},
		{name: "bodies of one byte", connections: 2048, request: post[:len(post)-len(goodBody)+1]},
		{name: "forged tokens as fast as they can", connections: 64,
			request: string(rawPost(testkit.Sign(t, unknown, testkit.Claims())))},
		{name: "requests as fast as they can", connections: 4000, request: post},
	} {
		t.Run(test.name, func(t *testing.T) {
			// A busy machine may hold up a write for longer than a second.
			s := startReady(t, redistest.Start(t).Addr, map[string]string{"STORE_TIMEOUT": "5s"})
			callers := dial(t, s.url, test.connections)
			var attacking sync.WaitGroup
			for _, c := range callers {
				attacking.Go(func() {
					for c.do([]byte(test.request)).err == nil {
					}
				})
			}
			s.wantServed(t, goodToken(t, "other"))
			hangUp(callers)
			attacking.Wait()
			s.wantPeak(t)
		})
	}
}

// A service with more callers than it can serve refuses the surplus, stays small, and serves again afterwards.
func TestOverload(t *testing.T) {
	server := redistest.Start(t)
	s := startReady(t, server.Addr, map[string]string{"MAX_IN_FLIGHT": "512"})
	fds := s.fds(t)
	callers := dial(t, s.url, 5000)
	server.Pause(t)
	calls := storm(callers, 1, 3*time.Second, rawPost(s.token))
	if count := wantStatuses(t, calls, 503, 504); count[503] == 0 || count[504] == 0 {
		t.Errorf("answers by status: %v, want 504, and 503 for the surplus", count)
	}
	server.Resume(t)
	s.waitReady(t)
	s.session(t, goodBody)
	s.wantPeak(t)
	hangUp(callers)
	s.waitUsage(t, fds, maxMemory)
}

// Callers that hang up while Redis stands still leave nothing behind.
func TestHangUp(t *testing.T) {
	server := redistest.Start(t)
	s := startReady(t, server.Addr, map[string]string{"STORE_TIMEOUT": "5s"})
	goroutines := func() int64 {
		_, value, _ := strings.Cut(wantGet(t, s.metricsURL(t)+"/metrics", 200), "\ngo_goroutines ")
		return first(t, value)
	}
	before := goroutines()
	callers := dial(t, s.url, 2000)
	server.Pause(t)
	for _, c := range callers {
		_, err := c.Write(rawPost(s.token))
		testkit.Must(t, err)
	}
	time.Sleep(500 * time.Millisecond) // most requests wait for Redis
	hangUp(callers)
	testkit.WaitFor(t, 20*time.Second, "their goroutines to end", func() bool { return goroutines() < before+50 })
	server.Resume(t)
	s.waitReady(t)
	s.session(t, goodBody)
}

// Connections that send nothing, or a byte now and then, hold up nobody and are closed.
func TestSlowHeaders(t *testing.T) {
	s := startReady(t, redistest.Start(t).Addr, nil)
	begun := time.Now()
	slow := dial(t, s.url, 2000)
	var dribbling sync.WaitGroup
	dribbling.Go(func() {
		for _, b := range []byte("POST /auth/session") {
			for _, c := range slow[:1000] {
				_, _ = c.Write([]byte{b})
			}
			time.Sleep(500 * time.Millisecond)
		}
	})
	s.wantServed(t, s.token)
	s.wantPeak(t)
	dribbling.Wait()
	for _, c := range slow {
		// The service's ReadHeaderTimeout is 5 s.
		_ = c.SetReadDeadline(begun.Add(25 * time.Second))
		if _, err := io.Copy(io.Discard, c.reader); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatalf("a slow connection is still open after %s: %v", time.Since(begun), err)
		}
	}
}

// 10,000 refusals while Redis is down take no memory and few log lines.
func TestNoRedis(t *testing.T) {
	server := redistest.Start(t)
	s := startReady(t, server.Addr, nil)
	s.wantServed(t, s.token)
	fds, rss := s.fds(t), s.memory(t, "VmRSS")
	callers := dial(t, s.url, 100)
	server.Stop()
	wantStatuses(t, storm(callers, 100, 0, rawPost(s.token)), 503)
	hangUp(callers)
	s.waitUsage(t, fds, rss)
	s.wantLog(t)
}

// Probes on METRICS_ADDR are answered however many connections callers keep, and a shutdown closes those in time.
func TestIdleConnections(t *testing.T) {
	s := startReady(t, redistest.Start(t).Addr, nil)
	callers := dial(t, s.url, 9000)
	deadline := time.Now().Add(10 * time.Second)
	for _, c := range callers {
		_ = c.SetDeadline(deadline)
		_, _ = c.Write([]byte("GET /livez HTTP/1.1\r\nHost: test\r\n\r\n")) // fails beyond the service's limit
	}
	answered := 0
	for _, c := range callers {
		if line, err := c.reader.ReadString('\n'); err == nil && strings.Contains(line, " 200 ") {
			answered++
		}
	}
	if answered < 1000 {
		t.Errorf("%d of %d connections were answered, want at least 1000", answered, len(callers))
	}
	probes := s.metricsURL(t)
	wantGet(t, probes+"/livez", 200)
	wantGet(t, probes+"/readyz", 200)
	wantGet(t, probes+"/auth/session", 404)
	wantGet(t, probes+"/metrics", 200)
	s.wantPeak(t)
	s.signal(t, syscall.SIGTERM)
	s.wantExit(t, shutdownGrace+time.Second, 0)
}
