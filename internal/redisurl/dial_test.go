package redisurl

import (
	"context"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// While a Redis is down, callers are refused quickly and few dials are made. Once it is back a call works soon, also
// after more failures than the pool has places.
func TestBack(t *testing.T) {
	addr := redistest.Addr(t)
	refuse := func(context.Context) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	tests := []struct {
		name    string
		down    func(context.Context) (net.Conn, error) // instead of a dial
		refused time.Duration                           // the longest that a call takes meanwhile
		back    time.Duration
		want    string // in its error
	}{
		{"refused", refuse, 100 * time.Millisecond, 150 * time.Millisecond, "refused"},
		{"ends at once", func(context.Context) (net.Conn, error) { return endless(t, false), nil },
			100 * time.Millisecond, 150 * time.Millisecond, "reset"},
		{"ends before the first reply", func(context.Context) (net.Conn, error) { return endless(t, true), nil },
			100 * time.Millisecond, 150 * time.Millisecond, "EOF"},
		{"drops SYNs", func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
		}, 700 * time.Millisecond, 400 * time.Millisecond, "deadline"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const timeout, down = 600 * time.Millisecond, 3 * time.Second
			noise := testkit.ListenForNoise(t)
			var isDown atomic.Bool
			var dials atomic.Int64
			d := newDialer(nil, timeout)
			dial := d.connect
			d.connect = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials.Add(1)
				if isDown.Load() {
					return test.down(ctx)
				}
				return dial(ctx, network, addr)
			}
			client := parse(t, Standalone, "redis://"+addr+"?pool_size=10", Access{}).open(timeout, d)
			t.Cleanup(func() { _ = client.Close() })
			isDown.Store(true)
			began := time.Now()
			healed := began.Add(down)
			var first atomic.Int64 // ns after healing
			var callers sync.WaitGroup
			for range 4 { // as many as a group commit has pipelines
				callers.Go(func() {
					for first.Load() == 0 && time.Since(healed) < 3*time.Second {
						ctx, cancel := context.WithTimeout(context.Background(), timeout)
						start := time.Now()
						err := client.Set(ctx, redistest.Prefix(t), "x", time.Minute).Err()
						cancel()
						end := time.Now()
						switch {
						case err == nil:
							first.CompareAndSwap(0, max(1, int64(end.Sub(healed))))
						case end.Before(healed) && end.Sub(start) > test.refused+noise.Within(start, end):
							t.Errorf("SET = %v after %s, want at most %s", err, end.Sub(start), test.refused)
						case end.Before(healed) && !strings.Contains(err.Error(), test.want):
							t.Errorf("SET = %v, want an error with %s", err, test.want)
						}
						time.Sleep(10 * time.Millisecond)
					}
				})
			}
			time.Sleep(time.Until(healed))
			n := dials.Load()
			isDown.Store(false)
			callers.Wait()
			if most := int64(16 * down / time.Second); n > most {
				t.Errorf("%d dials in %s, want at most %d", n, down, most)
			}
			took := time.Duration(first.Load())
			if took == 0 || took > test.back+noise.Within(healed, time.Now()) {
				t.Errorf("the first SET took %s after healing (0: none did), want at most %s", took, test.back)
			}
			t.Logf("%d dials in %s, back after %s", n, down, took)
		})
	}
}

// endless is a connection whose peer has gone before any reply: a write fails, or takes all and no reply comes.
func endless(t *testing.T, takesWrites bool) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	testkit.Must(t, err)
	peer, err := l.Accept()
	testkit.Must(t, err)
	if takesWrites {
		testkit.Must(t, peer.(*net.TCPConn).CloseWrite())
		t.Cleanup(func() { _ = peer.Close() })
	} else {
		testkit.Must(t, peer.(*net.TCPConn).SetLinger(0))
		testkit.Must(t, peer.Close())
	}
	return c
}

// While an address is well, nobody waits for another's dial. A connection that an attempt brings too late is closed.
func TestDialTogether(t *testing.T) {
	var open, closed atomic.Int64
	d := newDialer(nil, 5*time.Second)
	d.connect = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if open.Add(1)%2 == 1 {
			time.Sleep(attemptAfter + 200*time.Millisecond)
		}
		c, _ := net.Pipe()
		return countedConn{c, &closed}, nil
	}
	start := time.Now()
	c, err := d.dial(t.Context(), "tcp", "a:1") // the second attempt wins
	if took := time.Since(start); err != nil || took < attemptAfter || took > attemptAfter+150*time.Millisecond {
		t.Errorf("dial = %v after %s, want the second attempt's connection", err, took)
	}
	testkit.WaitFor(t, time.Second, "the first attempt's connection to close", func() bool { return closed.Load() == 1 })
	_ = c.Close()
	if n := open.Load(); n != 2 || closed.Load() != 2 {
		t.Errorf("%d connections opened, %d closed, want 2 and 2", n, closed.Load())
	}
}

type countedConn struct {
	net.Conn
	closed *atomic.Int64
}

func (c countedConn) Close() error {
	c.closed.Add(1)
	return c.Conn.Close()
}

// A primary that no sentinel tells is no reason to dial once a second either.
func TestBackSentinel(t *testing.T) {
	redistest.Need(t)
	_, _, sentinel := redistest.Sentinel(t)
	noise := testkit.ListenForNoise(t)
	url := "redis://" + sentinel.Addr + "?master_name=mymaster&pool_size=5"
	client := parse(t, Sentinel, url, Access{}).Open(time.Second).(*redis.Client)
	t.Cleanup(func() { _ = client.Close() })
	set := func() error { return client.Set(t.Context(), "x", "x", time.Minute).Err() }
	sentinel.Stop()
	for range 10 {
		start := time.Now()
		if err := set(); err == nil || time.Since(start) > 100*time.Millisecond+noise.Within(start, time.Now()) {
			t.Errorf("SET = %v after %s without a sentinel, want an error within 100 ms", err, time.Since(start))
		}
	}
	sentinel.Restart(t)
	healed := time.Now()
	testkit.WaitFor(t, 3*time.Second, "a SET", func() bool { return set() == nil })
	if took := time.Since(healed); took > 150*time.Millisecond+noise.Within(healed, time.Now()) {
		t.Errorf("the first SET took %s once the sentinel was back, want 150 ms", took)
	}
}
