package groupcommit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/redisurl"
	"authsession/internal/testkit"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// open returns a Writer to the Redis at url. The client's timeouts are the Writer's.
func open(t *testing.T, mode, url string, timeout time.Duration) *Writer {
	t.Helper()
	options, err := redisurl.Parse(mode, url, redisurl.Access{})
	testkit.Must(t, err)
	client := options.Open(timeout)
	t.Cleanup(func() { _ = client.Close() })
	return New(client, timeout, 0, prometheus.ObserverFunc(func(float64) {}), slog.New(slog.DiscardHandler))
}

// openAlone is open of a standalone Redis at addr.
func openAlone(t *testing.T, addr string, timeout time.Duration) *Writer {
	t.Helper()
	return open(t, redisurl.Standalone, "redis://"+addr, timeout)
}

// soon is an expiry to come.
func soon() int64 { return time.Now().Add(time.Hour).Unix() }

// wantIdle waits until g holds nothing any more: neither a lane nor a write, nor is a tick due.
func wantIdle(t *testing.T, g *Writer) {
	t.Helper()
	testkit.WaitFor(t, 5*time.Second, "lanes, pending writes and ticks to end", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.lanes) == 0 && len(g.pending) == 0 && !g.ticking
	})
	if n := g.Waiting(); n != 0 {
		t.Errorf("Waiting() = %d in the end, want 0", n)
	}
}

// call is a Set of a small value, and what came of it.
type call struct {
	start time.Time
	took  time.Duration
	err   error
}

func (c call) end() time.Time { return c.start.Add(c.took) }

// callMany makes n Sets at the same time, of keys that begin with prefix.
func callMany(g *Writer, n int, prefix string) []call {
	expiresAt := soon()
	calls := make([]call, n)
	var all sync.WaitGroup
	for i := range calls {
		all.Go(func() {
			calls[i].start = time.Now()
			calls[i].err = g.Set("acme", prefix+strconv.Itoa(i), []byte("x"), expiresAt)
			calls[i].took = time.Since(calls[i].start)
		})
	}
	all.Wait()
	return calls
}

// In one pipeline each write has its own outcome. One that Redis refuses fails alone, and one whose time is up is not
// sent.
func TestBatch(t *testing.T) {
	redistest.Need(t)
	s := redistest.Start(t)
	c := s.Client(t)
	testkit.Must(t, c.Do(t.Context(), "ACL", "SETUSER", "svc", "on", ">pw", "~p:good*", "+@all").Err())
	g := openAlone(t, "svc:pw@"+s.Addr, time.Second)
	inTime := time.Now().Add(time.Second)
	tests := []struct {
		key      string
		deadline time.Time
		good     bool
	}{
		{"p:good1", inTime, true},
		{"p:bad", inTime, false},
		{"p:good2", inTime, true},
		{"p:good-late", time.Now(), false},
		{"p:good3", inTime, true},
	}
	var batch []*write
	for _, test := range tests {
		batch = append(batch, newWrite("acme", test.key, []byte("x"), soon(), test.deadline))
	}
	node, err := g.nodeFor(batch[0])
	testkit.Must(t, err)
	g.write(node, batch)
	for i, test := range tests {
		outcome := errors.New("none")
		select {
		case outcome = <-batch[i].done:
		default:
		}
		if (outcome == nil) != test.good {
			t.Errorf("outcome of %s = %v, want good %t", test.key, outcome, test.good)
		}
		if n, err := c.Exists(t.Context(), test.key).Result(); err != nil || n == 1 != test.good {
			t.Errorf("EXISTS %s = %d, %v, want good %t", test.key, n, err, test.good)
		}
	}
}

// A queue that is full refuses at once, and no caller waits beyond its deadline.
func TestQueueFull(t *testing.T) {
	redistest.Need(t)
	s := redistest.Start(t)
	g := openAlone(t, s.Addr, 5*time.Second)
	noise := testkit.ListenForNoise(t)
	testkit.Must(t, g.Set("acme", "p:first", []byte("x"), soon()))
	s.Pause(t)
	const more = 500
	refused := 0
	for _, c := range callMany(g, maxWaiting+maxPipelines*maxBatch+more, "p:") {
		extra := noise.Within(c.start, c.end())
		isBusy := errors.Is(c.err, ErrBusy)
		switch {
		case isBusy && c.took < time.Second+extra:
			refused++
		case isBusy, c.err == nil, c.took > 6*time.Second+extra:
			t.Errorf("Set = %v after %s; noise %s", c.err, c.took, extra)
		}
	}
	if refused < more {
		t.Errorf("%d refused at once, want %d or more", refused, more)
	}
	s.Resume(t)
	wantIdle(t, g)
}

// Writes that come while a pipeline is in flight do not wait for its end where Redis is slow: a reply that comes within
// the Writer's timeout is used.
func TestBatchSlow(t *testing.T) {
	proxy := redistest.StartProxy(t, redistest.Addr(t), redistest.Late(600*time.Millisecond))
	g := openAlone(t, proxy.Addr, 5*time.Second)
	var warm sync.WaitGroup // connections are slow to make, too
	for range maxPipelines {
		warm.Go(func() {
			if err := g.client.Ping(t.Context()).Err(); err != nil {
				t.Errorf("PING = %v", err)
			}
		})
	}
	warm.Wait()
	g.timeout = time.Second
	for _, c := range callMany(g, 10, redistest.Prefix(t)) {
		if c.err != nil {
			t.Errorf("Set = %v after %s", c.err, c.took)
		}
	}
	wantIdle(t, g)
}

// Set ends in time whatever Redis does, and tells "no answer" from "no connection".
func TestSetTimeouts(t *testing.T) {
	const timeout = time.Second
	noise := testkit.ListenForNoise(t)
	silent := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	closing := listen(t, func(net.Conn) {})
	garbage := listen(t, func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			if _, err := r.ReadString('\n'); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}
	})
	for _, test := range []struct {
		name, addr string
		timedOut   bool
		atMost     time.Duration
	}{
		{"never answers", silent, true, timeout + 200*time.Millisecond},
		{"closes", closing, false, timeout},
		{"no redis", garbage, false, timeout + 200*time.Millisecond},
		{"refuses", "127.0.0.1:" + redistest.FreePort(), false, timeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := openAlone(t, test.addr, timeout)
			for _, c := range callMany(g, 50, "p:") {
				most := test.atMost + noise.Within(c.start, c.end())
				if c.err == nil || TimedOut(c.err) != test.timedOut || c.took > most {
					t.Errorf("Set = %v (timed out: %t) after %s, want timed out: %t within %s",
						c.err, TimedOut(c.err), c.took, test.timedOut, most)
				}
			}
			wantIdle(t, g)
		})
	}
}

// Where Redis refuses the connection there is no reply, and the error is the refusal.
func TestRefusedConnection(t *testing.T) {
	redistest.Need(t)
	s := redistest.Start(t, "--requirepass", "right")
	g := openAlone(t, ":wrong@"+s.Addr, time.Second)
	_, probeErr := g.Probe(g.client.(*redis.Client), "p:probe", time.Minute)
	for name, err := range map[string]error{"Set": g.Set("acme", "p:x", []byte("x"), soon()), "Probe": probeErr} {
		if err == nil || !strings.Contains(err.Error(), "WRONGPASS") || TimedOut(err) {
			t.Errorf("%s with a wrong password = %v, want WRONGPASS", name, err)
		}
	}
}

// OK is the only reply that counts.
func TestOtherReplies(t *testing.T) {
	for _, test := range []struct{ name, reply, want string }{
		{"OK", "+OK\r\n", ""},
		{"queued", "+QUEUED\r\n", "other than OK"},
		{"nothing", "$0\r\n\r\n", "other than OK"},
		{"nil", "$-1\r\n", "redis: nil"},
		{"refusal", "-OOM command not allowed\r\n", "OOM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			mode := func(client *net.TCPConn, reply []byte, came time.Time) {
				redistest.Pass(client, bytes.Replace(reply, []byte("+OK\r\n"), []byte(test.reply), 1), came)
			}
			g := openAlone(t, redistest.StartProxy(t, redistest.Addr(t), mode).Addr, time.Second)
			err := g.Set("acme", redistest.Prefix(t), []byte("x"), soon())
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("Set answered with %q = %v, want %q", test.reply, err, test.want)
			}
		})
	}
}

// listen serves f on each connection to a free port.
func listen(t *testing.T, f func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return l.Addr().String()
}

// A stopped Redis holds up its own callers only as long as they agreed to, and those that come after it wakes up are
// served.
func TestSetStopped(t *testing.T) {
	redistest.Need(t)
	s := redistest.Start(t)
	g := openAlone(t, s.Addr, 300*time.Millisecond)
	noise := testkit.ListenForNoise(t)
	testkit.Must(t, g.Set("acme", "p:first", []byte("x"), soon()))
	s.Pause(t)
	for _, c := range callMany(g, 500, "p:") {
		if extra := noise.Within(c.start, c.end()); !TimedOut(c.err) || c.took > 500*time.Millisecond+extra {
			t.Errorf("Set to a stopped redis = %v after %s; noise %s", c.err, c.took, extra)
		}
	}
	s.Resume(t)
	testkit.WaitFor(t, 5*time.Second, "Set to work again", func() bool {
		return g.Set("acme", "p:last", []byte("x"), soon()) == nil
	})
	wantIdle(t, g)
}

// A record that Redis would drop at once, or too early or late, is not acknowledged. Probe tells how far Redis's clock
// is off.
func TestClock(t *testing.T) {
	for _, test := range []struct {
		ahead time.Duration
		good  bool
	}{
		{0, true}, {time.Second, true}, {-time.Second, true},
		{30 * time.Second, false}, {-30 * time.Second, false}, {2 * time.Hour, false}, {-2 * time.Hour, false},
	} {
		t.Run(test.ahead.String(), func(t *testing.T) {
			proxy := redistest.StartProxy(t, redistest.Addr(t), redistest.ClockAhead(test.ahead))
			g := openAlone(t, proxy.Addr, time.Second)
			prefix := redistest.Prefix(t)
			setErr := g.Set("acme", prefix+"set", []byte("x"), soon())
			skew, probeErr := g.Probe(g.client.(*redis.Client), prefix+"probe", time.Minute)
			for name, err := range map[string]error{"Set": setErr, "Probe": probeErr} {
				if (err == nil) != test.good || err != nil && !errors.Is(err, ErrClock) {
					t.Errorf("%s with a clock %s ahead = %v, want good %t", name, test.ahead, err, test.good)
				}
			}
			if off := skew - test.ahead; off.Abs() > 900*time.Millisecond {
				t.Errorf("Probe's skew = %s, want some %s", skew, test.ahead)
			}
		})
	}
}

// Where replicas are to have a write, it succeeds once they have, and fails in time where they are too few, as it does
// where it looks for its node in a cluster.
func TestReplicas(t *testing.T) {
	redistest.Need(t)
	t.Parallel()
	primary := redistest.Start(t)
	replica := redistest.Start(t, "--replicaof", "127.0.0.1 "+primary.Port, "--repl-diskless-sync-delay", "0")
	g := openAlone(t, primary.Addr, time.Second)
	g.replicas = 1
	testkit.WaitFor(t, 10*time.Second, "the replica", func() bool {
		return g.Set("acme", "p:first", []byte("x"), soon()) == nil
	})
	for _, c := range callMany(g, 200, "p:") {
		if c.err != nil {
			t.Errorf("Set = %v after %s with a replica", c.err, c.took)
		}
	}
	if n := replica.Client(t).DBSize(t.Context()).Val(); n != 201 {
		t.Errorf("the replica has %d records, want all 201", n)
	}
	noise := testkit.ListenForNoise(t)
	wantTooFew := func(g *Writer) {
		t.Helper()
		for _, c := range callMany(g, 20, "p:more") {
			if extra := noise.Within(c.start, c.end()); !errors.Is(c.err, ErrReplicas) && extra < 50*time.Millisecond ||
				TimedOut(c.err) && extra < 50*time.Millisecond || c.took > time.Second+extra {
				t.Errorf("Set = %v after %s with too few replicas, want %v", c.err, c.took, ErrReplicas)
			}
		}
		wantIdle(t, g)
	}
	replica.Pause(t)
	wantTooFew(g)
	replica.Resume(t)

	nodes := redistest.Cluster(t)
	c := open(t, redisurl.Cluster, "redis://"+nodes[0].Addr, time.Second)
	c.replicas = 1
	wantTooFew(c)
	w := newWrite("acme", "p:x", []byte("x"), soon(), time.Now().Add(time.Second))
	if err := c.redirect(c.client.(*redis.ClusterClient), w); !errors.Is(err, ErrReplicas) {
		t.Errorf("redirect = %v with too few replicas, want %v", err, ErrReplicas)
	}
}

// A record that has expired when Redis answers is not acknowledged, whose clock counts: its callers count it as a
// timeout.
func TestExpired(t *testing.T) {
	for _, test := range []struct {
		ahead time.Duration // Redis's clock
		lives int64         // seconds
		good  bool
	}{
		{0, -1, false}, {0, 0, false}, {0, 5, true},
		{time.Second, 1, false}, {time.Second, 5, true}, {-time.Second, 0, true},
	} {
		proxy := redistest.StartProxy(t, redistest.Addr(t), redistest.ClockAhead(test.ahead))
		g := openAlone(t, proxy.Addr, 10*time.Second)
		err := g.Set("acme", redistest.Prefix(t), []byte("x"), time.Now().Unix()+test.lives)
		if (err == nil) != test.good || err != nil && !TimedOut(err) {
			t.Errorf("Set of a record that lives %d s, with a clock %s ahead = %v, want good %t",
				test.lives, test.ahead, err, test.good)
		}
	}
}

// Both write a value that lives to the second, and Probe's is its own.
func TestRecords(t *testing.T) {
	g := openAlone(t, redistest.Addr(t), 2*time.Second)
	prefix := redistest.Prefix(t)
	before := time.Now()
	testkit.Must(t, g.Set("acme", prefix+"set", []byte("a\x00\r\né"), before.Unix()+1000))
	skew, err := g.Probe(g.client.(*redis.Client), prefix+"probe", 10*time.Second)
	if err != nil || skew.Abs() > time.Second {
		t.Fatalf("Probe = %s, %v, want no skew", skew, err)
	}
	for _, test := range []struct {
		key, value  string
		least, most int64 // Unix seconds of its end
	}{
		{"set", "a\x00\r\né", before.Unix() + 1000, before.Unix() + 1000},
		{"probe", "1", before.Unix() + 10, time.Now().Unix() + 10},
	} {
		if got, err := g.client.Get(t.Context(), prefix+test.key).Result(); err != nil || got != test.value {
			t.Errorf("GET %s = %q, %v, want %q", test.key, got, err, test.value)
		}
		end, err := g.client.ExpireTime(t.Context(), prefix+test.key).Result()
		if at := int64(end / time.Second); err != nil || at < test.least || at > test.most {
			t.Errorf("EXPIRETIME %s = %d, %v, want %d to %d", test.key, at, err, test.least, test.most)
		}
	}
}

func TestTimedOut(t *testing.T) {
	for err, want := range map[error]bool{
		nil:                      false,
		context.DeadlineExceeded: true,
		fmt.Errorf("reading: %w", os.ErrDeadlineExceeded): true,
		redis.ErrPoolTimeout:                              true,
		io.EOF:                                            false,
		ErrBusy:                                           false,
		ErrClock:                                          false,
		errors.New("READONLY You can't write against a read only replica."): false,
	} {
		if got := TimedOut(err); got != want {
			t.Errorf("TimedOut(%v) = %t, want %t", err, got, want)
		}
	}
}
