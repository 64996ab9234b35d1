package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// Behind the gateway a graceful restart of one of two replicas costs no caller anything: each request is answered 200,
// over ten restarts under 2,000 requests a second.
func TestGatewayRestart(t *testing.T) {
	needTool(t, "nginx", "REQUIRE_NGINX")
	redistest.Need(t) // the embedded one is too slow for this
	const (
		callers  = 128
		period   = 64 * time.Millisecond // of a caller's requests: all send at once
		restarts = 10
	)
	env := serviceEnv(t, redistest.Addr(t))
	env["DRAIN_DELAY"] = "1s"
	stays, restarted := startService(t, env), startService(t, env)
	env["ADDR"] = strings.TrimPrefix(restarted.url, "http://")
	stays.waitReady(t)
	restarted.waitReady(t)
	g := startGateway(t, env["ADDR"]+" fail_timeout=1s; server "+strings.TrimPrefix(stays.url, "http://"))

	var answered, lost atomic.Int64
	stop := make(chan struct{})
	var running sync.WaitGroup
	for i := range callers {
		// Each has an address and a token of its own, so that no rate limit takes two for one.
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}}
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dialer.DialContext}}
		h := goodHeader(t, "X-Request-Id", fmt.Sprintf("caller-%d", i))
		running.Go(func() {
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Until(time.Now().Truncate(period).Add(period))):
				}
				body := io.Reader(strings.NewReader(goodBody))
				if i%2 == 0 {
					body = &late{Reader: body}
				}
				r, err := http.NewRequest("POST", "http://"+g.addr+"/auth/session", body)
				if err != nil {
					t.Error(err)
					return
				}
				r.Header, r.ContentLength = h, int64(len(goodBody))
				response, err := client.Do(r)
				status := 0
				if err == nil {
					status = response.StatusCode
					_ = response.Body.Close()
				}
				if answered.Add(1); status != 200 {
					lost.Add(1)
					t.Errorf("POST /auth/session = %d, %v, want 200", status, err)
				}
			}
		})
	}
	for range restarts {
		restarted.signal(t, syscall.SIGTERM)
		if code := restarted.wait(t, 10*time.Second); code != 0 {
			t.Errorf("exit status %d, want 0: %s", code, restarted.logEnd())
		}
		restarted = startService(t, env)
		testkit.WaitFor(t, 20*time.Second, "requests at the new process", func() bool {
			return restarted.log.Has(`"route":"/auth/session"`)
		})
	}
	close(stop)
	running.Wait()
	t.Logf("%d of %d requests lost", lost.Load(), answered.Load())
}

// late is a body that comes a little after its header.
type late struct {
	io.Reader
	once sync.Once
}

func (l *late) Read(p []byte) (int, error) {
	l.once.Do(func() { time.Sleep(2 * time.Millisecond) })
	return l.Reader.Read(p)
}
