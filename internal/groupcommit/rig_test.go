package groupcommit

import (
	"context"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// rig is a Writer whose pipelines go out only when the test says so.
type rig struct {
	*Writer
	node    *redis.Client
	prefix  string
	held    chan *pipeline // that wait to go out
	letAll  atomic.Bool    // what comes from now on is not held
	results chan error     // of the Sets that set began
	keys    atomic.Int64   // that set has used

	observing sync.Mutex
	observed  []int // sizes of all pipelines, in order
}

// pipeline is one that is held.
type pipeline struct {
	writes int
	sender string        // the method of Writer whose goroutine sends it
	letGo  chan struct{} // closed: it may go out
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{prefix: redistest.Prefix(t), held: make(chan *pipeline, 1000), results: make(chan error, 10_000)}
	r.Writer = openAlone(t, redistest.Addr(t), 20*time.Second)
	r.sizes = prometheus.ObserverFunc(func(n float64) {
		r.observing.Lock()
		defer r.observing.Unlock()
		r.observed = append(r.observed, int(n))
	})
	r.node = r.client.(*redis.Client)
	r.node.AddHook(hold{r, t.Context().Done()})
	return r
}

// hold is the client's hook that holds pipelines.
type hold struct {
	rig   *rig
	ended <-chan struct{} // closed when the test is over
}

func (h hold) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (h hold) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h hold) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		last := len(commands) - 1
		if commands[last].Name() == "time" && !h.rig.letAll.Load() { // else the client sets up a connection
			p := &pipeline{writes: last, sender: "none", letGo: make(chan struct{})}
			stack := string(debug.Stack())
			for _, sender := range []string{"Set", "Probe", "drain"} {
				if strings.Contains(stack, "groupcommit.(*Writer)."+sender+"(") {
					p.sender = sender
				}
			}
			h.rig.held <- p
			select {
			case <-p.letGo:
			case <-h.ended:
			}
		}
		return next(ctx, commands)
	}
}

// set begins n Sets, and returns when all but those that send a pipeline themselves have queued up: then waiting wait.
func (r *rig) set(t *testing.T, n, waiting int) {
	t.Helper()
	for range n {
		key := r.prefix + strconv.FormatInt(r.keys.Add(1), 10)
		go func() { r.results <- r.Set("acme", key, []byte("x"), soon()) }()
	}
	what := strconv.Itoa(waiting) + " writes to wait"
	testkit.WaitFor(t, 5*time.Second, what, func() bool { return r.Waiting() == waiting })
}

// next is the next pipeline that wants to go out.
func (r *rig) next(t *testing.T, writes int, sender string) *pipeline {
	t.Helper()
	select {
	case p := <-r.held:
		if p.writes != writes || p.sender != sender {
			t.Errorf("a pipeline of %d writes by %s, want %d by %s", p.writes, p.sender, writes, sender)
		}
		return p
	case <-time.After(5 * time.Second):
		t.Fatalf("no pipeline of %d writes by %s", writes, sender)
		return nil
	}
}

// wantInFlight checks how many pipelines there are, held ones included, and when the newest was made.
func (r *rig) wantInFlight(t *testing.T, want int) (newest time.Time) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lanes[r.node]
	if l == nil {
		t.Fatalf("no lane, want %d pipelines in flight", want)
	}
	if l.pipelines != want {
		t.Errorf("%d pipelines in flight, want %d", l.pipelines, want)
	}
	return l.newest
}

// wantDone waits for n of set's Sets to end well.
func (r *rig) wantDone(t *testing.T, n int) {
	t.Helper()
	for range n {
		select {
		case err := <-r.results:
			if err != nil {
				t.Errorf("Set = %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a Set does not end")
		}
	}
}

// wantAll checks the records of all Sets, and that the Writer comes to rest.
func (r *rig) wantAll(t *testing.T) {
	t.Helper()
	keys, err := r.node.Keys(t.Context(), r.prefix+"*").Result()
	if err != nil || int64(len(keys)) != r.keys.Load() {
		t.Errorf("%d records are there, %v, want %d", len(keys), err, r.keys.Load())
	}
	wantIdle(t, r.Writer)
}

// stopTicks keeps ticks from coming until the function that it returns is called.
func (r *rig) stopTicks() (resume func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ticking = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ticking = false
		r.tickLater()
	}
}
