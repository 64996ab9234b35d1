package groupcommit

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/redisurl"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// panics is a hook of a client that panics while it is true.
type panics struct{ atomic.Bool }

func (p *panics) DialHook(next redis.DialHook) redis.DialHook { return next }

func (p *panics) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, command redis.Cmder) error {
		if p.Load() {
			panic("makeslice: len out of range")
		}
		return next(ctx, command)
	}
}

func (p *panics) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		if p.Load() && commands[len(commands)-1].Name() == "time" {
			panic("makeslice: len out of range")
		}
		return next(ctx, commands)
	}
}

// A client that panics ends its writes with that, whoever sent them, and the log has the stack once. The lane comes to
// rest: the next write goes out at once and not with a tick.
func TestPanic(t *testing.T) {
	r := newRig(t)
	var log testkit.Log
	r.log = slog.New(slog.NewJSONHandler(&log, nil))
	var broken panics
	r.node.AddHook(&broken) // called after the rig has let a pipeline go
	broken.Store(true)
	resume := r.stopTicks()

	r.set(t, 1, 0)
	p1 := r.next(t, 1, "Set")
	r.set(t, 31, 31)
	r.set(t, 1, 0) // starts a second pipeline
	p2 := r.next(t, 32, "drain")
	r.set(t, 8, 8)
	close(p1.letGo)
	close(r.next(t, 8, "drain").letGo)
	close(p2.letGo)
	for range 1 + 40 {
		select {
		case err := <-r.results:
			if err == nil || !strings.Contains(err.Error(), "panic: makeslice") || TimedOut(err) {
				t.Errorf("Set = %v, want the panic", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a Set does not end")
		}
	}
	r.letAll.Store(true)
	if _, err := r.Probe(r.node, r.prefix+"probe", time.Minute); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("Probe = %v, want the panic", err)
	}
	if n := strings.Count(log.String(), `"stack":"`); n != 1 || !log.Has("groupcommit.(*Writer).write") {
		t.Errorf("%d stacks in the log, want 1, of write:\n%s", n, &log)
	}

	broken.Store(false)
	testkit.WaitFor(t, 5*time.Second, "the lane to end", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.lanes) == 0
	})
	r.letAll.Store(false)
	r.keys.Store(0)
	r.set(t, 1, 0)
	close(r.next(t, 1, "Set").letGo) // with no tick due: its place is free
	r.wantDone(t, 1)
	resume()
	r.wantAll(t)
}

// The same where a write looks for its node in a cluster.
func TestPanicRedirect(t *testing.T) {
	t.Parallel()
	nodes := redistest.Cluster(t)
	g := open(t, redisurl.Cluster, "redis://"+nodes[0].Addr, time.Second)
	testkit.Must(t, g.Set("acme", "p:before", []byte("x"), soon()))
	var broken panics
	g.client.(*redis.ClusterClient).AddHook(&broken)
	broken.Store(true)
	for _, s := range nodes {
		s.Stop()
	}
	for _, c := range callMany(g, 20, "p:") {
		if c.err == nil || !strings.Contains(c.err.Error(), "panic") {
			t.Errorf("Set = %v, want the panic", c.err)
		}
	}
	wantIdle(t, g)
}

func TestSurvive(t *testing.T) {
	g := &Writer{log: slog.New(slog.DiscardHandler)}
	fine := errors.New("fine")
	if err := func() (err error) { defer g.Survive(&err); return fine }(); err != fine {
		t.Errorf("error without a panic = %v, want it as it is", err)
	}
}
