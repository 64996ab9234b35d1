//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"authsession/internal/bearer"
	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/go-jose/go-jose/v4"
)

// The overload suite sends the service more than it can do, and looks whether it refuses the rest at once, stays small,
// and is afterwards as it was before.

const (
	mostMemory = 256 << 20 // bytes, ever
	// Thousands of callers in this one process wait for its few processors before an answer is read. So limits on what
	// they measure are wider than those on what the service logs.
	callerSlack = 300 * time.Millisecond
	atOnce      = 100 * time.Millisecond // a refusal's limit

	readHeaderTimeout = 5 * time.Second // the service's
)

// byStatus is calls by the status of their answer; 0 is no answer.
type byStatus map[int][]call

func (b byStatus) String() string {
	var text []string
	for status, calls := range b {
		text = append(text, fmt.Sprintf("%d ×%d, p99 %s", status, len(calls), inMS(p99(calls))))
	}
	slices.Sort(text)
	return strings.Join(text, "; ")
}

// storm has each caller send requests until it has sent so many or the time is over, with a pause after each.
func storm(callers []*caller, times int, atMost, pause time.Duration, request func() []byte) byStatus {
	begun := time.Now()
	calls := make([][]call, len(callers))
	var running sync.WaitGroup
	for i, c := range callers {
		running.Go(func() {
			time.Sleep(pause * time.Duration(i) / time.Duration(len(callers)))
			for n := 0; n < times && time.Since(begun) < atMost; n++ {
				done := c.do(request())
				calls[i] = append(calls[i], done)
				if done.err != nil {
					return
				}
				time.Sleep(pause)
			}
		})
	}
	running.Wait()
	b := byStatus{}
	for _, c := range slices.Concat(calls...) {
		b[c.answer.Status] = append(b[c.answer.Status], c)
	}
	return b
}

// p99 is the 99th percentile of how long calls took.
func p99(calls []call) time.Duration {
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
func (s *service) own(t *testing.T) map[int][]time.Duration {
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
func (s *service) ordinary(t *testing.T) time.Duration {
	t.Helper()
	callers := s.dial(t, 8)
	defer hangUp(callers)
	calls := storm(callers, forever, time.Second, 5*time.Millisecond, func() []byte { return rawPost(s.token) })
	wantStatuses(t, calls, 200)
	return p99(calls[200])
}

func wantStatuses(t *testing.T, calls byStatus, statuses ...int) {
	t.Helper()
	for status, c := range calls {
		if !slices.Contains(statuses, status) {
			t.Fatalf("%s, want only %v; one of the others: %v %s", calls, statuses, c[0].err, c[0].answer.Body)
		}
	}
	for status, name := range map[int]string{401: "unauthorized", 503: "unavailable", 504: "timeout"} {
		for _, c := range calls[status][:min(len(calls[status]), 500)] {
			whole(t, c).WantError(t, status, name)
		}
	}
}

// wantLike fails where ordinary callers fare much worse than before.
func wantLike(t *testing.T, before, now time.Duration) {
	t.Helper()
	t.Logf("ordinary callers: p99 %s, before %s", inMS(now), inMS(before))
	if now > 5*before+100*time.Millisecond {
		t.Errorf("ordinary callers: p99 %s, before %s", now, before)
	}
}

func (s *service) wantPeak(t *testing.T) {
	t.Helper()
	peak := s.usage(t).peak
	t.Logf("%d MiB at most", peak>>20)
	if peak > mostMemory {
		t.Errorf("memory peaked at %d MiB, want at most %d", peak>>20, mostMemory>>20)
	}
}

func TestOverload(t *testing.T) {
	redistest.Need(t)
	noise := testkit.ListenForNoise(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *testkit.Noise)
	}{
		{"640 callers with MAX_IN_FLIGHT=64", testBusy},
		{"2000 wait for a stopped Redis", testStandstill(2000, 2800, 800*time.Millisecond)},
		{"5000 with MAX_IN_FLIGHT=512 and a stopped Redis", testStandstill(5000, 512, 3*time.Second)},
		{"2000 hang up on a stopped Redis", testHangUp},
		{"2000 idle and dribbling connections", testIdle},
		{"10000 requests without Redis", testNoRedis},
		{"flood of forged tokens", testForged},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, noise) })
	}
}

// testBusy sends ten times MAX_IN_FLIGHT to a Redis that takes 50 ms.
func testBusy(t *testing.T, noise *testkit.Noise) {
	proxy := redistest.StartProxy(t, redistest.Start(t).Addr, redistest.Late(50*time.Millisecond))
	s := startWithKeys(t, map[string]string{"REDIS_URL": "redis://" + proxy.Addr, "MAX_IN_FLIGHT": "64"})
	before := s.ordinary(t)
	callers := s.dial(t, 640)
	begun := time.Now()
	calls := storm(callers, forever, 3*time.Second, 200*time.Millisecond, func() []byte { return rawPost(s.token) })
	extra, own := noise.Within(begun, time.Now()), s.own(t)
	t.Logf("%s; the service itself: 200 p99 %s, 503 p99 %s; noise %s",
		calls, inMS(quantile(own[200], 0.99)), inMS(quantile(own[503], 0.99)), inMS(extra))
	wantStatuses(t, calls, 200, 503)
	if len(calls[503]) == 0 || len(calls[200]) < 640 {
		t.Errorf("%s: want many of both", calls)
	}
	if got := quantile(own[503], 0.99); got > 20*time.Millisecond+extra {
		t.Errorf("503 took p99 %s in the service, want it at once", got)
	}
	if got := p99(calls[503]); got > atOnce+callerSlack+extra {
		t.Errorf("503 took p99 %s, want it at once", got)
	}
	if got := p99(calls[200]); got > 300*time.Millisecond+callerSlack+extra {
		t.Errorf("200 took p99 %s", got)
	}
	s.wantPeak(t)
	wantLike(t, before, s.ordinary(t))
}

// standstill is a service whose Redis stands still, with callers that are connected.
type standstill struct {
	*service
	redis    *redistest.Server
	callers  []*caller
	begun    time.Time     // when Redis stopped
	before   usage         // without the callers
	ordinary time.Duration // before that
}

func newStandstill(t *testing.T, callers, maxInFlight int) *standstill {
	t.Helper()
	var limit syscall.Rlimit // Go has raised the soft limit to the hard one
	testkit.Must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	n := min(callers, int(limit.Cur)-500)
	st := &standstill{redis: redistest.Start(t)}
	st.service = startWithKeys(t, map[string]string{
		"REDIS_URL": "redis://" + st.redis.Addr, "MAX_IN_FLIGHT": fmt.Sprint(maxInFlight), "METRICS_ADDR": "127.0.0.1:0"})
	st.waitReady(t)
	st.ordinary = st.service.ordinary(t)
	st.before = st.usage(t)
	st.callers = st.dial(t, n)
	testkit.WaitFor(t, 10*time.Second, "the connections to be taken", func() bool { return st.usage(t).fds >= int64(n) })
	st.redis.Pause(t)
	st.begun = time.Now()
	return st
}

// wantRecovery checks what the service's log says of the time until now, lets Redis go on, and checks that the service
// is then as it was before.
func (st *standstill) wantRecovery(t *testing.T, noise *testkit.Noise) {
	t.Helper()
	slowest, extra := quantile(st.own(t)[504], 1), noise.Within(st.begun, time.Now())
	t.Logf("the service itself: 504 at most %s; noise %s", inMS(slowest), inMS(extra))
	if slowest > answerLimit+extra {
		t.Errorf("504 took up to %s in the service, want at most %s", slowest, answerLimit+extra)
	}
	st.redis.Resume(t)
	healed := time.Now()
	st.waitSession(t, backLimit+callerSlack)
	t.Logf("first 200 %s after healing", inMS(time.Since(healed)))
	wantLike(t, st.ordinary, st.service.ordinary(t))
	st.wantPeak(t)
	hangUp(st.callers)
	st.before.rss = mostMemory // what was taken is given back over minutes
	st.wantUsage(t, st.before)
	st.wantFewGoroutines(t)
}

// testStandstill has callers arrive, spread over a time, while Redis stands still.
func testStandstill(callers, maxInFlight int, spread time.Duration) func(*testing.T, *testkit.Noise) {
	return func(t *testing.T, noise *testkit.Noise) {
		st := newStandstill(t, callers, maxInFlight)
		calls := storm(st.callers, 1, time.Minute, spread, func() []byte { return rawPost(st.token) })
		wantStatuses(t, calls, 503, 504)
		refuses := len(st.callers) > maxInFlight*3/4 // one client's share
		if len(calls[504]) < maxInFlight/2 || (len(calls[503]) > 0) != refuses {
			t.Errorf("%s: want 504, and 503 for what is above one client's share", calls)
		}
		slowest, extra := time.Duration(0), noise.Within(st.begun, time.Now())
		for _, c := range slices.Concat(calls[503], calls[504]) {
			slowest = max(slowest, c.took)
		}
		t.Logf("%s; answers at most after %s; noise %s", calls, inMS(slowest), inMS(extra))
		if slowest > answerLimit+callerSlack+extra {
			t.Errorf("an answer came after %s, want at most %s", slowest, answerLimit+callerSlack+extra)
		}
		if got := p99(calls[503]); got > atOnce+callerSlack+extra {
			t.Errorf("503 took p99 %s, want it at once", got)
		}
		st.wantRecovery(t, noise)
	}
}

// testHangUp has callers leave while they wait for a Redis that stands still.
func testHangUp(t *testing.T, noise *testkit.Noise) {
	st := newStandstill(t, 2000, 2048)
	for _, c := range st.callers {
		_, err := c.conn.Write(rawPost(st.token))
		testkit.Must(t, err)
	}
	answered := func() int { own := st.own(t); return len(own[503]) + len(own[504]) }
	testkit.WaitFor(t, 10*time.Second, "the requests to be read", func() bool {
		return st.inFlight(t)+answered() >= len(st.callers)
	})
	hangUp(st.callers)
	testkit.WaitFor(t, 10*time.Second, "the service to be done with them", func() bool {
		return answered() >= len(st.callers)
	})
	st.wantRecovery(t, noise)
}

// testIdle has connections that say nothing, or a byte of a header now and then.
func testIdle(t *testing.T, _ *testkit.Noise) {
	s := startWithKeys(t, map[string]string{"REDIS_URL": "redis://" + redistest.Start(t).Addr})
	s.waitReady(t)
	before := s.ordinary(t)
	idle := s.dial(t, 2000)
	begun := time.Now()
	stop := make(chan struct{})
	var dribbling sync.WaitGroup
	dribbling.Go(func() {
		for _, b := range []byte("POST /auth/session HTTP/1.1\r\nHost: test\r\nX: aaaaaaaaaaaaaaa") {
			for _, c := range idle[:len(idle)/2] {
				_, _ = c.conn.Write([]byte{b})
			}
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	wantLike(t, before, s.ordinary(t))
	s.wantPeak(t)
	for _, c := range idle {
		_ = c.conn.SetReadDeadline(begun.Add(readHeaderTimeout + 3*time.Second))
		if _, err := io.Copy(io.Discard, c.conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatalf("an idle connection is still open %s later: %v", time.Since(begun), err)
		}
	}
	close(stop)
	dribbling.Wait()
}

// testNoRedis has nothing listen where Redis was.
func testNoRedis(t *testing.T, noise *testkit.Noise) {
	server := redistest.Start(t)
	s := startWithKeys(t, map[string]string{"REDIS_URL": "redis://" + server.Addr})
	s.waitReady(t)
	s.ordinary(t)
	before := s.usage(t)
	callers := s.dial(t, 100)
	server.Stop()
	begun := time.Now()
	calls := storm(callers, 100, time.Minute, 0, func() []byte { return rawPost(s.token) })
	extra, own := noise.Within(begun, time.Now()), quantile(s.own(t)[503], 0.99)
	t.Logf("%s in %s; the service itself: p99 %s; noise %s", calls, inMS(time.Since(begun)), inMS(own), inMS(extra))
	wantStatuses(t, calls, 503)
	if own > atOnce+extra || p99(calls[503]) > atOnce+callerSlack+extra {
		t.Errorf("503 took p99 %s, in the service %s, want at most %s", p99(calls[503]), own, atOnce+extra)
	}
	hangUp(callers)
	s.wantUsage(t, before)
	s.wantLog(t, nil, false)
}

// testForged sends forged tokens, with a key server that hangs when it is asked again.
func testForged(t *testing.T, noise *testkit.Noise) {
	var fetches atomic.Int64
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{testkit.EC().Public(), testkit.RSA().Public()}})
	testkit.Must(t, err)
	keyServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fetches.Add(1) > 1 {
			<-r.Context().Done()
		}
		_, _ = w.Write(keys)
	}))
	t.Cleanup(keyServer.Close)
	s := startWithKeys(t, map[string]string{
		"REDIS_URL": "redis://" + redistest.Start(t).Addr, "JWKS_URL": keyServer.URL})
	s.waitReady(t)
	before := s.ordinary(t)
	var forged [][]byte
	for i := range 200 {
		unknown, theirs := testkit.EC(), testkit.NewKey(t, testkit.EC().ID, jose.ES256)
		unknown.ID = fmt.Sprint("unknown-", i)
		forged = append(forged, rawPost(testkit.Sign(t, unknown, testkit.Claims())),
			rawPost(testkit.Sign(t, theirs, testkit.Claims())))
	}
	var next atomic.Int64
	var flooding sync.WaitGroup
	var flood byStatus
	callers := s.dial(t, 32)
	begun := time.Now()
	flooding.Go(func() {
		flood = storm(callers, forever, 3500*time.Millisecond, 20*time.Millisecond, func() []byte {
			return forged[int(next.Add(1))%len(forged)]
		})
	})
	var during time.Duration
	for range 3 {
		during = max(during, s.ordinary(t))
	}
	flooding.Wait()
	// Once the one fetch that unknown key ids bring about has been waited for, nobody waits.
	later := slices.DeleteFunc(slices.Clone(flood[401]), func(c call) bool {
		return !c.start.After(begun.Add(bearer.MaxWait + 200*time.Millisecond))
	})
	extra := noise.Within(begun, time.Now())
	t.Logf("flood: %s; later p99 %s; %d fetches; noise %s", flood, inMS(p99(later)), fetches.Load(), inMS(extra))
	wantStatuses(t, flood, 401)
	wantLike(t, before, during)
	if got := p99(later); len(later) == 0 || got > 50*time.Millisecond+extra {
		t.Errorf("%d forged tokens took p99 %s, want at most %s", len(later), got, 50*time.Millisecond+extra)
	}
	if n := fetches.Load(); n > 2 {
		t.Errorf("%d fetches of the key set, want the first and one more", n)
	}
}
