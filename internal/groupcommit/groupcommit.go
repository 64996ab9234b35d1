// Package groupcommit writes records to Redis. Writes that wait at the same time share a pipeline, and so a round trip.
//
// Each primary has a lane: a queue of writes, and a count of its pipelines in flight.
//
// Who writes: A caller that finds nothing in flight on its lane sends the first pipeline itself, so that a lone write
// waits for nobody. If others have queued up when that pipeline has its replies, a goroutine goes on with them. Each
// pipeline takes up to 128 writes off the queue, and whoever sent it takes the next ones until the queue is empty.
// (With a channel to a goroutine that writes, which reads simpler, a lone write was slower: it had to wake that
// goroutine.)
//
// When another pipeline starts: Normally one pipeline per lane is in flight. When 32 writes wait, a second one starts,
// so that neither Redis nor the service idles. If the newest pipeline is over 20 ms old its connection may hang, so a
// tick starts another one, at most 4 in all.
//
// Who ends a write: Whoever sent its pipeline, with Redis's reply; or a tick, once the write's time is up. The first
// outcome counts. Ticks come every 20 ms while writes are pending: one clock for all costs less than a timer for each.
//
// What an OK means: Redis answers OK to a SET whose expiry has passed by its own clock, and stores nothing; and an OK
// may come late. So every pipeline also asks for Redis's TIME. No write of it succeeds where that clock is over 2 s off
// ours, or has come to the write's expiry. Where replicas are to have it too, WAIT comes last in the pipeline.
package groupcommit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

const (
	maxBatch     = 128  // writes in one pipeline
	secondAt     = 32   // waiting writes that start a second pipeline
	maxPipelines = 4    // in flight to one node
	maxWaiting   = 8192 // writes, for one node
	tickEvery    = 20 * time.Millisecond
	maxSkew      = 2 * time.Second // between Redis's clock and ours
)

var (
	// ErrBusy means that too many writes wait already. Nothing was sent.
	ErrBusy = errors.New("too many sessions wait to be written")
	// ErrClock means that Redis's clock is over 2 s off ours, so that nothing is certain of an expiry.
	ErrClock = errors.New("redis's clock is off ours")
	// ErrReplicas means that fewer replicas than wanted had the write in time.
	ErrReplicas = errors.New("too few replicas have what was written")

	errNotOK   = errors.New("redis answered something other than OK")
	errExpired = fmt.Errorf("the record had expired when redis answered: %w", context.DeadlineExceeded)
)

// Writer writes records through one Redis client. Its methods may be called at the same time.
type Writer struct {
	client   redis.UniversalClient
	timeout  time.Duration
	replicas int
	sizes    prometheus.Observer
	log      *slog.Logger
	stack    sync.Once // logs the first panic's

	mu      sync.Mutex
	lanes   map[*redis.Client]*lane // of the nodes with writes that wait or are in flight
	pending []*write                // writes not answered yet; answered ones are removed at the next tick
	ticking bool                    // a tick is due
}

// New returns a Writer whose writes take up to timeout each, and succeed only where that many replicas have them. sizes
// observes how many writes each pipeline has, and log gets the stack of the first panic.
func New(client redis.UniversalClient, timeout time.Duration, replicas int, sizes prometheus.Observer,
	log *slog.Logger) *Writer {
	return &Writer{client: client, timeout: timeout, replicas: replicas, sizes: sizes, log: log,
		lanes: map[*redis.Client]*lane{}}
}

// Survive, deferred, makes a panic the function's error. Whatever calls the Redis client on a goroutine that has no
// other guard does so under it: a panic there would end the process.
func (g *Writer) Survive(err *error) {
	if value := recover(); value != nil {
		*err = fmt.Errorf("panic: %v", value)
		g.stack.Do(func() {
			g.log.Error("redis client panicked", "cause", (*err).Error(), "stack", string(debug.Stack()))
		})
	}
}

// write is a record on its way to Redis.
type write struct {
	key      string
	client   string // whose write it is
	set      *redis.StatusCmd
	expires  int64 // Unix seconds
	deadline time.Time
	ended    atomic.Bool
	done     chan error // holds one, so that end never blocks
}

// newWrite makes a plain SET with EXAT. With NX, the retry after a lost reply would find its own key.
func newWrite(client, key string, value []byte, expiresAt int64, deadline time.Time) *write {
	set := redis.NewStatusCmd(context.Background(), "set", key, value, "exat", expiresAt)
	return &write{client: client, key: key, set: set, expires: expiresAt, deadline: deadline, done: make(chan error, 1)}
}

// end tells w's caller the outcome, unless it has one already.
func (w *write) end(err error) {
	if w.ended.CompareAndSwap(false, true) {
		w.done <- err
	}
}

// reply is nil where Redis answered OK, the only reply that counts.
func (w *write) reply() error {
	if w.set.Err() == nil && w.set.Val() != "OK" {
		return errNotOK
	}
	return w.set.Err()
}

// outlives is nil where the record is still there at clock, Redis's own.
func (w *write) outlives(clock time.Time) error {
	if clock.Unix() >= w.expires {
		return errExpired
	}
	return nil
}

// lane is the writes that wait for one node, and the pipelines in flight to it.
type lane struct {
	node      *redis.Client
	waiting   []*write
	pipelines int
	newest    time.Time // when the last pipeline took its writes off the queue
}

// Set writes a client's value under key, to expire at expiresAt, a Unix second to come. nil means that the primary
// answered OK while expiresAt was still to come, by a clock that was right. After any error the record may be there all
// the same, and then dies at expiresAt.
//
// Set returns within the Writer's timeout and a tick or two, with an error that TimedOut knows where Redis took longer.
// It takes no context: net/http cancels a request's when the caller half-closes, and a session is wanted then too.
func (g *Writer) Set(client, key string, value []byte, expiresAt int64) error {
	w := newWrite(client, key, value, expiresAt, time.Now().Add(g.timeout))
	node, err := g.nodeFor(w)
	if err != nil {
		return err
	}
	if err := g.send(node, w); err != nil {
		return err
	}
	return <-w.done
}

// Probe writes key to node, to live for ttl, as Set would but in a pipeline of its own. questions go along, and have
// their own replies and errors. skew is how far Redis's clock is ahead of ours, as far as is known.
func (g *Writer) Probe(node *redis.Client, key string, ttl time.Duration, questions ...redis.Cmder) (
	skew time.Duration, err error) {
	now := time.Now()
	w := newWrite("", key, []byte("1"), now.Add(ttl).Unix(), now.Add(g.timeout))
	skew = g.write(node, []*write{w}, questions...)
	return skew, <-w.done
}

// Waiting is how many writes wait for a pipeline.
func (g *Writer) Waiting() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.lanes {
		n += len(l.waiting)
	}
	return n
}

// nodeFor returns the client of the primary that w's key belongs to.
func (g *Writer) nodeFor(w *write) (*redis.Client, error) {
	cluster, ok := g.client.(*redis.ClusterClient)
	if !ok {
		return g.client.(*redis.Client), nil
	}
	ctx, cancel := context.WithDeadline(context.Background(), w.deadline)
	defer cancel()
	return cluster.MasterForKey(ctx, w.key)
}

// send queues w for node, and starts a pipeline where the protocol wants one. The outcome comes on w.done.
func (g *Writer) send(node *redis.Client, w *write) error {
	g.mu.Lock()
	l := g.lanes[node]
	if l == nil {
		l = &lane{node: node}
		g.lanes[node] = l
	}
	if len(l.waiting) >= maxWaiting {
		g.mu.Unlock()
		return ErrBusy
	}
	l.waiting = append(l.waiting, w)
	g.pending = append(g.pending, w)
	g.tickLater()
	first := l.pipelines == 0
	second := l.pipelines == 1 && len(l.waiting) >= secondAt
	if first || second {
		l.pipelines++
	}
	g.mu.Unlock()
	switch {
	case first:
		batch := g.next(l)
		if batch == nil {
			return nil // another pipeline has just taken w
		}
		g.write(node, batch)
		if batch = g.next(l); batch != nil {
			go g.drain(l, batch)
		}
	case second:
		go g.drain(l, g.next(l))
	}
	return nil
}

// next takes the writes of a pipeline off l's queue. Where there are none it returns nil, and the caller's pipeline no
// longer counts as in flight.
func (g *Writer) next(l *lane) []*write {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(l.waiting), maxBatch)
	if n == 0 {
		if l.pipelines--; l.pipelines == 0 {
			delete(g.lanes, l.node)
		}
		return nil
	}
	if len(l.waiting) > n {
		l.share()
	}
	batch := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	l.newest = time.Now()
	g.sizes.Observe(float64(n))
	return batch
}

// share moves to the front of l's queue what the next pipeline takes: of each client the same number, in their order.
// So a client with a thousand writes in the queue does not hold up one with a single write.
func (l *lane) share() {
	taken := map[string]int{} // by client
	for _, w := range l.waiting {
		taken[w.client]++
	}
	if len(taken) == 1 {
		return
	}
	each := max(1, maxBatch/len(taken))
	clear(taken)
	var next, later []*write
	for _, w := range l.waiting {
		if taken[w.client]++; taken[w.client] <= each {
			next = append(next, w)
		} else {
			later = append(later, w)
		}
	}
	l.waiting = append(next, later...)
}

// drain writes batch, and then what waits until nothing does.
func (g *Writer) drain(l *lane, batch []*write) {
	for ; batch != nil; batch = g.next(l) {
		g.write(l.node, batch)
	}
}

// tickLater makes a tick due while writes are pending. g.mu is held.
func (g *Writer) tickLater() {
	if !g.ticking && len(g.pending) > 0 {
		g.ticking = true
		time.AfterFunc(tickEvery, g.tick)
	}
}

// tick ends the writes whose time is up, and starts another pipeline in lanes whose newest one may hang.
func (g *Writer) tick() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.pending = slices.DeleteFunc(g.pending, func(w *write) bool {
		if !now.Before(w.deadline) {
			w.end(context.DeadlineExceeded)
		}
		return w.ended.Load()
	})
	for _, l := range g.lanes {
		if len(l.waiting) > 0 && l.pipelines < maxPipelines && now.Sub(l.newest) >= tickEvery {
			l.pipelines++
			go func() { g.drain(l, g.next(l)) }()
		}
	}
	g.ticking = false
	g.tickLater()
}

// write sends one pipeline and ends each of its writes with its own outcome, or where the client panics with that. It
// returns how far Redis's clock is ahead of ours; 0 where Redis did not tell.
func (g *Writer) write(node *redis.Client, batch []*write, questions ...redis.Cmder) (skew time.Duration) {
	var panicked error
	defer func() {
		if panicked != nil {
			for _, w := range batch {
				w.end(panicked)
			}
		}
	}()
	defer g.Survive(&panicked)
	now := time.Now()
	last := now
	pipe := node.Pipeline()
	for _, w := range batch {
		if !now.Before(w.deadline) {
			w.end(context.DeadlineExceeded)
			continue
		}
		_ = pipe.Process(context.Background(), w.set)
		if w.deadline.After(last) {
			last = w.deadline
		}
	}
	ctx, cancel := context.WithDeadline(context.Background(), last)
	defer cancel()
	p := g.exec(ctx, pipe, questions...)
	for _, w := range batch {
		if w.ended.Load() {
			continue
		}
		err := w.reply()
		switch {
		case err == nil:
			err = cmp.Or(p.err, w.outlives(p.clock))
		case err == errNotOK && p.sendErr != nil:
			err = p.sendErr // the pipeline was not sent, and go-redis leaves the reply empty
		}
		if cluster, ok := g.client.(*redis.ClusterClient); ok && mayBeElsewhere(err) {
			cluster.ReloadState(ctx) // in the background, and not too often: a dead primary names no successor
			if ctx.Err() == nil {
				go func() { w.end(g.redirect(cluster, w)) }()
				continue
			}
		}
		w.end(err)
	}
	return p.skew
}
