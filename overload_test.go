//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The overload suite sends the built binary more than it can do, and looks whether it
// refuses the rest at once, stays small, and is afterwards as it was before.

const (
	overloadRSS = 256 << 20 // at most, ever
	// Thousands of callers in this one process wait for its few processors before an
	// answer is read: limits on what they measure are wider than those on what the
	// service logs.
	overloadSlack = 300 * time.Millisecond
)

// overloadCaller is a caller with a connection of its own, cheap enough to have thousands.
type overloadCaller struct{ conn net.Conn }

// dial connects n callers.
func (s *faultService) dial(t *testing.T, n int) []*overloadCaller {
	t.Helper()
	callers := make([]*overloadCaller, n)
	for i := range callers {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		callers[i] = &overloadCaller{conn}
	}
	return callers
}

// hangUp ends the callers' connections.
func hangUp(callers []*overloadCaller) {
	for _, c := range callers {
		_ = c.conn.Close()
	}
}

// rawPost is a whole request.
func rawPost(token string) []byte {
	return fmt.Appendf(nil, "POST /auth/session HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", token, len(goodBody), goodBody)
}

var contentLength = regexp.MustCompile(`\r\nContent-Length: (\d+)\r\n`)

// do sends a request and reads the answer, which it leaves as it is: see whole.
func (c *overloadCaller) do(request []byte) (call faultCall) {
	call.start = time.Now()
	_ = c.conn.SetDeadline(call.start.Add(20 * time.Second))
	_, call.err = c.conn.Write(request)
	answer := make([]byte, 0, 2<<10)
	for call.err == nil {
		var n int
		n, call.err = c.conn.Read(answer[len(answer):cap(answer)])
		answer = answer[:len(answer)+n]
		head := bytes.Index(answer, []byte("\r\n\r\n"))
		if head < 0 {
			continue
		}
		if length := contentLength.FindSubmatch(answer[:head+2]); length == nil || len(answer) == head+4+int(faultInt(string(length[1]))) {
			break
		}
	}
	call.took = time.Since(call.start)
	if call.err == nil {
		call.answer.status, call.answer.body = int(faultInt(string(answer[9:12]))), answer
	}
	return call
}

// whole is the answer that do has left as it came.
func whole(t *testing.T, c faultCall) answer {
	t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(c.answer.body)), nil)
	must(t, err)
	body, err := io.ReadAll(response.Body)
	must(t, err)
	return answer{response.StatusCode, response.Header, body}
}

// storm has each caller send requests until it has sent so many or the time is over, with a
// pause after each. It returns what came of them by status; 0 is no answer.
func storm(callers []*overloadCaller, times int, d, pause time.Duration, request func() []byte) map[int][]faultCall {
	begun := time.Now()
	calls := make([][]faultCall, len(callers))
	var running sync.WaitGroup
	for i, c := range callers {
		running.Go(func() {
			time.Sleep(pause * time.Duration(i) / time.Duration(len(callers)))
			for n := 0; n < times && time.Since(begun) < d; n++ {
				call := c.do(request())
				calls[i] = append(calls[i], call)
				if call.err != nil {
					return
				}
				time.Sleep(pause)
			}
		})
	}
	running.Wait()
	byStatus := map[int][]faultCall{}
	for _, c := range slices.Concat(calls...) {
		byStatus[c.answer.status] = append(byStatus[c.answer.status], c)
	}
	return byStatus
}

// p99 is the 99th percentile of how long calls took.
func p99(calls []faultCall) time.Duration {
	took := make([]time.Duration, len(calls))
	for i, c := range calls {
		took[i] = c.took
	}
	return quantile(took, 0.99)
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[int(float64(len(d)-1)*q)]
}

// own is how long the service itself says that requests took, by status.
func (s *faultService) own(t *testing.T) map[int][]time.Duration {
	t.Helper()
	own := map[int][]time.Duration{}
	for text := range strings.Lines(s.log.String()) {
		var line struct {
			Route    string
			Status   int
			Duration int64 `json:"duration_us"`
		}
		if err := json.Unmarshal([]byte(text), &line); err == nil && line.Route == "/auth/session" {
			own[line.Status] = append(own[line.Status], time.Duration(line.Duration)*time.Microsecond)
		}
	}
	return own
}

const forever = 1 << 30

// ordinary is what a few callers meet: the 99th percentile.
func (s *faultService) ordinary(t *testing.T) time.Duration {
	t.Helper()
	callers := s.dial(t, 8)
	defer hangUp(callers)
	calls := storm(callers, forever, time.Second, 5*time.Millisecond, func() []byte { return rawPost(s.token) })
	wantStatuses(t, calls, 200)
	return p99(calls[200])
}

func counts(calls map[int][]faultCall) string {
	var text []string
	for status, c := range calls {
		text = append(text, fmt.Sprintf("%d ×%d, p99 %s", status, len(c), faultMS(p99(c))))
	}
	slices.Sort(text)
	return strings.Join(text, "; ")
}

func wantStatuses(t *testing.T, calls map[int][]faultCall, statuses ...int) {
	t.Helper()
	for status, c := range calls {
		if !slices.Contains(statuses, status) {
			t.Fatalf("%s, want only %v; one of the others: %v %s", counts(calls), statuses, c[0].err, c[0].answer.body)
		}
	}
	for status, name := range map[int]string{401: "unauthorized", 503: "unavailable", 504: "timeout"} {
		for _, c := range calls[status][:min(len(calls[status]), 500)] {
			wantError(t, whole(t, c), status, name)
		}
	}
}

// wantLike fails where ordinary callers fare much worse than before.
func wantLike(t *testing.T, before, now time.Duration) {
	t.Helper()
	if now > 5*before+100*time.Millisecond {
		t.Errorf("ordinary callers: p99 %s, before %s", now, before)
	}
}

func (s *faultService) wantPeak(t *testing.T) {
	t.Helper()
	peak := s.use(t).peak
	t.Logf("%d MiB at most", peak>>20)
	if peak > overloadRSS {
		t.Errorf("memory peaked at %d MiB, want at most %d", peak>>20, overloadRSS>>20)
	}
}

func TestOverload(t *testing.T) {
	needRedis(t)
	noise := listenForNoise(t)

	// Ten times as many callers as MAX_IN_FLIGHT, at a Redis that takes 50 ms.
	t.Run("640 callers with MAX_IN_FLIGHT=64", func(t *testing.T) {
		proxy := startProxy(t, startRedis(t).addr, late(50*time.Millisecond))
		s := startFaultService(t, map[string]string{"REDIS_URL": "redis://" + proxy.addr, "MAX_IN_FLIGHT": "64"})
		before := s.ordinary(t)
		callers := s.dial(t, 640)
		begun := time.Now()
		calls := storm(callers, forever, 3*time.Second, 200*time.Millisecond, func() []byte { return rawPost(s.token) })
		extra := noise.within(begun, time.Now())
		own := s.own(t)
		t.Logf("%s; the service itself: 200 p99 %s, 503 p99 %s", counts(calls), faultMS(quantile(own[200], 0.99)), faultMS(quantile(own[503], 0.99)))
		wantStatuses(t, calls, 200, 503)
		if len(calls[503]) == 0 || len(calls[200]) < 640 {
			t.Errorf("%s: want many of both", counts(calls))
		}
		if got := quantile(own[503], 0.99); got > 20*time.Millisecond+extra {
			t.Errorf("503 took p99 %s in the service, want it at once", got)
		}
		if got := p99(calls[503]); got > 100*time.Millisecond+overloadSlack+extra {
			t.Errorf("503 took p99 %s, want it at once", got)
		}
		if got := p99(calls[200]); got > 300*time.Millisecond+overloadSlack+extra {
			t.Errorf("200 took p99 %s", got)
		}
		s.wantPeak(t)
		wantLike(t, before, s.ordinary(t))
	})

	// As many callers at once, while Redis stands still.
	for _, test := range []struct {
		name        string
		callers     int
		maxInFlight int
		spread      time.Duration // of their arrival
		hangUp      bool          // without waiting for an answer
	}{
		{name: "2000 wait for a stopped Redis", callers: 2000, maxInFlight: 2048, spread: 800 * time.Millisecond},
		{name: "5000 with MAX_IN_FLIGHT=512 and a stopped Redis", callers: 5000, maxInFlight: 512, spread: 3 * time.Second},
		{name: "2000 hang up on a stopped Redis", callers: 2000, maxInFlight: 2048, hangUp: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var limit syscall.Rlimit // Go has raised the soft limit to the hard one
			must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
			n := min(test.callers, int(limit.Cur)-500)
			server := startRedis(t)
			s := startFaultService(t, map[string]string{"REDIS_URL": "redis://" + server.addr, "MAX_IN_FLIGHT": fmt.Sprint(test.maxInFlight)})
			s.waitReady(t)
			ordinary := s.ordinary(t)
			before := s.use(t)
			callers := s.dial(t, n)
			waitFor(t, 10*time.Second, "the connections to be taken", func() bool { return s.use(t).fds >= int64(n) })
			server.pause(t)
			begun := time.Now()
			request := rawPost(s.token)
			if test.hangUp {
				for _, c := range callers {
					_, err := c.conn.Write(request)
					must(t, err)
				}
				time.Sleep(100 * time.Millisecond) // what is not read yet would not count
				hangUp(callers)
				waitFor(t, 10*time.Second, "the service to be done with them", func() bool { return len(s.own(t)[504])+len(s.own(t)[503]) >= n })
			} else {
				calls := storm(callers, 1, time.Minute, test.spread, func() []byte { return request })
				wantStatuses(t, calls, 503, 504)
				if len(calls[504]) < test.maxInFlight/2 || (len(calls[503]) > 0) != (n > test.maxInFlight) {
					t.Errorf("%s: want 504, and 503 for what is above MAX_IN_FLIGHT", counts(calls))
				}
				slowest, extra := time.Duration(0), noise.within(begun, time.Now())
				for _, c := range slices.Concat(calls[503], calls[504]) {
					slowest = max(slowest, c.took)
				}
				t.Logf("%s; answers at most after %s", counts(calls), faultMS(slowest))
				if slowest > faultAnswer+overloadSlack+extra {
					t.Errorf("an answer came after %s, want at most %s; noise %s", slowest, faultAnswer, extra)
				}
				if got := p99(calls[503]); got > 100*time.Millisecond+overloadSlack+extra {
					t.Errorf("503 took p99 %s, want it at once; noise %s", got, extra)
				}
			}
			own := s.own(t)
			extra := noise.within(begun, time.Now())
			t.Logf("the service itself: 504 at most %s, 503 p99 %s; noise %s", faultMS(quantile(own[504], 1)), faultMS(quantile(own[503], 0.99)), faultMS(extra))
			if got := quantile(own[504], 1); got > faultAnswer+extra {
				t.Errorf("504 took up to %s in the service, want at most %s", got, faultAnswer)
			}
			server.resume(t)
			healed := time.Now()
			waitFor(t, faultBack+overloadSlack, "a 200 after healing", func() bool { return s.call().answer.status == 200 })
			t.Logf("first 200 %s after healing", faultMS(time.Since(healed)))
			wantLike(t, ordinary, s.ordinary(t))
			s.wantPeak(t)
			hangUp(callers)
			before.rss = overloadRSS // what was taken is given back over minutes
			s.wantUse(t, before)
			s.wantFewGoroutines(t)
		})
	}

	// Connections that say nothing, or a byte of a header now and then.
	t.Run("2000 idle and dribbling connections", func(t *testing.T) {
		s := startFaultService(t, map[string]string{"REDIS_URL": "redis://" + startRedis(t).addr})
		s.waitReady(t)
		before := s.ordinary(t)
		idle := s.dial(t, 2000)
		begun := time.Now()
		stop := make(chan struct{})
		var dribbling sync.WaitGroup
		dribbling.Go(func() {
			for i := 0; ; i++ {
				for _, c := range idle[:len(idle)/2] {
					_, _ = c.conn.Write([]byte("POST /auth/session HTTP/1.1\r\nHost: test\r\nX: aaaaaaaaaaaaaaa")[i : i+1])
				}
				select {
				case <-stop:
					return
				case <-time.After(500 * time.Millisecond):
				}
			}
		})
		now := s.ordinary(t)
		t.Logf("ordinary callers: p99 %s, before %s", faultMS(now), faultMS(before))
		wantLike(t, before, now)
		s.wantPeak(t)
		for _, c := range idle {
			_ = c.conn.SetReadDeadline(begun.Add(readHeaderTimeout + 3*time.Second))
			if _, err := io.Copy(io.Discard, c.conn); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatalf("an idle connection is still open %s later: %v", time.Since(begun), err)
			}
		}
		close(stop)
		dribbling.Wait()
	})

	// Requests while nothing listens where Redis was.
	t.Run("10000 requests without Redis", func(t *testing.T) {
		server := startRedis(t)
		s := startFaultService(t, map[string]string{"REDIS_URL": "redis://" + server.addr})
		s.waitReady(t)
		s.ordinary(t)
		before := s.use(t)
		callers := s.dial(t, 100)
		server.stop()
		begun := time.Now()
		calls := storm(callers, 100, time.Minute, 0, func() []byte { return rawPost(s.token) })
		extra, own := noise.within(begun, time.Now()), quantile(s.own(t)[503], 0.99)
		t.Logf("%s in %s; the service itself: p99 %s", counts(calls), faultMS(time.Since(begun)), faultMS(own))
		wantStatuses(t, calls, 503)
		if own > 100*time.Millisecond+extra || p99(calls[503]) > 100*time.Millisecond+overloadSlack+extra {
			t.Errorf("503 took p99 %s, in the service %s, want at most 100 ms; noise %s", p99(calls[503]), own, extra)
		}
		hangUp(callers)
		s.wantUse(t, before)
		s.wantLog(t, nil, false)
	})

	// Forged tokens, with a key server that hangs when it is asked again.
	t.Run("flood of forged tokens", func(t *testing.T) {
		var fetches atomic.Int64
		keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{ecKey().public(), rsaKey().public()}})
		must(t, err)
		keyServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if fetches.Add(1) > 1 {
				<-r.Context().Done()
			}
			_, _ = w.Write(keys)
		}))
		t.Cleanup(keyServer.Close)
		s := startFaultService(t, map[string]string{"REDIS_URL": "redis://" + startRedis(t).addr, "JWKS_URL": keyServer.URL})
		s.waitReady(t)
		before := s.ordinary(t)
		var forged [][]byte
		for i := range 200 {
			unknown, theirs := ecKey(), newTestKey(t, ecKey().kid, jose.ES256)
			unknown.kid = fmt.Sprint("unknown-", i)
			forged = append(forged, rawPost(unknown.sign(t, goodClaims())), rawPost(theirs.sign(t, goodClaims())))
		}
		var next atomic.Int64
		var flooding sync.WaitGroup
		var flood map[int][]faultCall
		callers := s.dial(t, 32)
		begun := time.Now()
		flooding.Go(func() {
			flood = storm(callers, forever, 3500*time.Millisecond, 20*time.Millisecond, func() []byte { return forged[int(next.Add(1))%len(forged)] })
		})
		var during time.Duration
		for range 3 {
			during = max(during, s.ordinary(t))
		}
		flooding.Wait()
		later := map[int][]faultCall{}
		for status, calls := range flood {
			for _, c := range calls {
				if c.start.After(begun.Add(unknownWait + 200*time.Millisecond)) {
					later[status] = append(later[status], c)
				}
			}
		}
		t.Logf("flood: %s; after the first second %s; ordinary callers: p99 %s, before %s; %d fetches", counts(flood), counts(later), faultMS(during), faultMS(before), fetches.Load())
		wantStatuses(t, flood, 401)
		wantLike(t, before, during)
		if got, extra := p99(later[401]), noise.within(begun, time.Now()); got > 50*time.Millisecond+extra {
			t.Errorf("forged tokens took p99 %s, want at most 50 ms; noise %s", got, extra)
		}
		if n := fetches.Load(); n > 2 {
			t.Errorf("%d fetches of the key set, want the first and one more", n)
		}
	})
}
