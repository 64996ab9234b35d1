package groupcommit

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// These tests hold pipelines on their way to a Redis, and so see the package comment's protocol at work.

// A write that comes alone goes out at once, from its caller's goroutine, and leaves nothing behind but a tick to come.
func TestLoneWrite(t *testing.T) {
	r := newRig(t)
	for range 3 {
		r.set(t, 1, 0)
		p := r.next(t, 1, "Set")
		r.wantInFlight(t, 1)
		close(p.letGo)
		r.wantDone(t, 1)
		r.mu.Lock()
		if lanes, pending := len(r.lanes), len(r.pending); lanes != 0 || pending > 1 {
			t.Errorf("%d lanes and %d pending writes after a lone Set, want 0 and 1 at most", lanes, pending)
		}
		r.mu.Unlock()
		wantIdle(t, r.Writer)
	}
	r.wantAll(t)
}

// The 32nd write that waits starts a second pipeline, and no number of them a third. When a pipeline has its replies,
// up to 128 writes go on, in a goroutine where a caller has sent it.
func TestSecondPipeline(t *testing.T) {
	r := newRig(t)
	resume := r.stopTicks() // they would start further pipelines
	r.set(t, 1, 0)
	p1 := r.next(t, 1, "Set")
	r.set(t, 31, 31)
	r.wantInFlight(t, 1)
	r.set(t, 1, 0)
	p2 := r.next(t, 32, "drain")
	r.wantInFlight(t, 2)
	r.set(t, 268, 268)
	r.wantInFlight(t, 2)

	close(p1.letGo)
	r.wantDone(t, 1) // the first caller does not write for the others
	p3 := r.next(t, 128, "drain")
	if n := r.Waiting(); n != 140 {
		t.Errorf("Waiting() = %d, want %d", n, 140)
	}
	close(p2.letGo)
	r.wantDone(t, 32)
	p4 := r.next(t, 128, "drain")
	close(p3.letGo)
	r.wantDone(t, 128)
	p5 := r.next(t, 12, "drain")
	close(p4.letGo)
	r.wantDone(t, 128)
	r.wantInFlight(t, 1)
	close(p5.letGo)
	r.wantDone(t, 12)
	r.observing.Lock()
	if want := []int{1, 32, 128, 128, 12}; !slices.Equal(r.observed, want) {
		t.Errorf("sizes observed = %v, want %v", r.observed, want)
	}
	r.observing.Unlock()
	resume()
	r.wantAll(t)
}

// A pipeline that hangs is passed by when the newest is a tick old, until there are 4.
func TestHangingPipelines(t *testing.T) {
	r := newRig(t)
	const most, tick = 4, 20 * time.Millisecond
	noise := testkit.ListenForNoise(t)
	r.set(t, 1, 0)
	p1 := r.next(t, 1, "Set")
	before := r.wantInFlight(t, 1)
	var others []*pipeline
	for i := range most - 1 {
		asked := time.Now()
		r.set(t, 1, 0)
		others = append(others, r.next(t, 1, "drain"))
		newest := r.wantInFlight(t, i+2)
		if age := newest.Sub(before); age < tick {
			t.Errorf("pipeline %d started %s after the one before, want %s at least", i+2, age, tick)
		}
		// A tick comes every 20 ms, and the newest one's age counts.
		if took, limit := newest.Sub(asked), 3*tick+noise.Within(asked, newest); took > limit {
			t.Errorf("pipeline %d started after %s, want %s at most", i+2, took, limit)
		}
		before = newest
	}

	r.set(t, 1, 1)
	r.mu.Lock()
	r.lanes[r.node].newest = before.Add(-time.Hour)
	r.mu.Unlock()
	r.tick()
	r.wantInFlight(t, most)
	if n := r.Waiting(); n != 1 {
		t.Errorf("Waiting() = %d beside %d hanging pipelines, want 1", n, most)
	}

	close(others[1].letGo) // whoever sent it goes on with the write that waits
	r.wantDone(t, 1)
	p5 := r.next(t, 1, "drain")
	close(p5.letGo)
	r.wantDone(t, 1)
	close(others[0].letGo)
	close(others[2].letGo)
	r.wantDone(t, 2)
	close(p1.letGo)
	r.wantDone(t, 1)
	r.wantAll(t)
}

// While the newest pipeline is young, a tick starts none.
func TestYoungPipeline(t *testing.T) {
	r := newRig(t)
	resume := r.stopTicks()
	r.set(t, 1, 0)
	p1 := r.next(t, 1, "Set")
	r.set(t, 1, 1)
	r.mu.Lock()
	r.lanes[r.node].newest = time.Now().Add(time.Hour) // so it stays young, however slow this machine is
	r.mu.Unlock()
	r.tick()
	r.wantInFlight(t, 1)
	r.letAll.Store(true)
	close(p1.letGo)
	r.wantDone(t, 2)
	resume()
	r.wantAll(t)
}

// A Probe has a pipeline of its own, whatever waits in the lane.
func TestProbeBesideLane(t *testing.T) {
	r := newRig(t)
	resume := r.stopTicks()
	r.set(t, 1, 0)
	p1 := r.next(t, 1, "Set")
	r.set(t, 5, 5)
	probed := make(chan error, 1)
	go func() {
		_, err := r.Probe(r.node, r.prefix+"probe", time.Minute)
		probed <- err
	}()
	p := r.next(t, 1, "Probe")
	r.wantInFlight(t, 1)
	close(p.letGo)
	select {
	case err := <-probed:
		if err != nil {
			t.Errorf("Probe = %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Probe does not end")
	}
	if n := r.Waiting(); n != 5 {
		t.Errorf("Waiting() = %d after a Probe, want 5", n)
	}
	r.letAll.Store(true)
	close(p1.letGo)
	r.wantDone(t, 6)
	r.keys.Add(1) // the probe's
	resume()
	r.wantAll(t)
}

// 8,192 writes may wait, and one more is refused. When Redis answers again, all of them are written.
func TestQueueBound(t *testing.T) {
	const queue = 8192
	r := newRig(t)
	resume := r.stopTicks()
	r.set(t, 1, 0)
	p1 := r.next(t, 1, "Set")
	r.set(t, 31, 31)
	r.set(t, 1, 0)
	p2 := r.next(t, 32, "drain")

	// With two pipelines in flight and no ticks, send only queues.
	var queued []*write
	for i := range queue {
		w := newWrite("acme", r.prefix+"queued", []byte("x"), soon(), time.Now().Add(20*time.Second))
		if err := r.send(r.node, w); err != nil {
			t.Fatalf("send with %d waiting = %v", i, err)
		}
		queued = append(queued, w)
	}
	if n := r.Waiting(); n != queue {
		t.Errorf("Waiting() = %d, want %d", n, queue)
	}
	refused := newWrite("acme", r.prefix+"refused", []byte("x"), soon(), time.Now())
	if err := r.send(r.node, refused); !errors.Is(err, ErrBusy) {
		t.Errorf("send with %d waiting = %v, want %v", queue, err, ErrBusy)
	}
	if n := r.Waiting(); n != queue {
		t.Errorf("Waiting() = %d after a refusal, want %d", n, queue)
	}

	r.letAll.Store(true)
	close(p1.letGo)
	close(p2.letGo)
	r.wantDone(t, 1+32)
	for i, w := range queued {
		if err := <-w.done; err != nil {
			t.Errorf("outcome of write %d = %v", i, err)
		}
	}
	r.keys.Add(1) // that of all that were queued
	resume()
	r.wantAll(t)
}

// A tick ends the writes whose time is up, those in a hanging pipeline too, and leaves the others.
func TestTickEnds(t *testing.T) {
	r := newRig(t)
	resume := r.stopTicks()
	r.set(t, 1, 0)
	p1 := r.next(t, 1, "Set")
	overdue := newWrite("acme", r.prefix+"overdue", []byte("x"), soon(), time.Now())
	inTime := newWrite("acme", r.prefix+"in time", []byte("x"), soon(), time.Now().Add(20*time.Second))
	for _, w := range []*write{overdue, inTime} {
		testkit.Must(t, r.send(r.node, w))
	}
	r.mu.Lock()
	sent := r.pending[0]
	sent.deadline = time.Now()
	r.mu.Unlock()
	resume()
	select {
	case err := <-r.results:
		t.Errorf("Set = %v while its own pipeline hangs", err) // the client's own timeout ends that
	case err := <-overdue.done:
		if !TimedOut(err) {
			t.Errorf("outcome of an overdue write = %v, want that its time is up", err)
		}
	}
	p2 := r.next(t, 1, "drain")
	close(p2.letGo)
	if err := <-inTime.done; err != nil {
		t.Errorf("outcome of a write in time = %v", err)
	}
	close(p1.letGo)
	if err := <-r.results; !TimedOut(err) {
		t.Errorf("Set = %v when its time was up before its reply, want that", err)
	}
	wantIdle(t, r.Writer)
}

// The first outcome of a write counts.
func TestEnd(t *testing.T) {
	w := newWrite("acme", "p:x", []byte("x"), soon(), time.Now())
	w.end(context.DeadlineExceeded)
	w.end(nil)
	w.end(io.EOF)
	if err := <-w.done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("outcome = %v, want the first", err)
	}
	select {
	case err := <-w.done:
		t.Errorf("another outcome = %v, want none", err)
	default:
	}
}

// When more wait than a pipeline takes, each client has the same share of it, and its own writes in their order.
func TestShare(t *testing.T) {
	for _, test := range []struct {
		queue string // a letter is a client's write
		next  string // pipeline
	}{
		{strings.Repeat("a", 300), strings.Repeat("a", 128)},
		{strings.Repeat("a", 300) + "b", strings.Repeat("a", 64) + "b" + strings.Repeat("a", 63)},
		{strings.Repeat("a", 300) + strings.Repeat("b", 300), strings.Repeat("a", 64) + strings.Repeat("b", 64)},
		{strings.Repeat("a", 300) + "bcb", strings.Repeat("a", 42) + "bcb" + strings.Repeat("a", 83)},
	} {
		l := &lane{}
		for i, client := range test.queue {
			l.waiting = append(l.waiting, newWrite(string(client), strconv.Itoa(i), nil, 0, time.Time{}))
		}
		l.share()
		next, last := "", map[string]int{}
		for _, w := range l.waiting {
			next += w.client
			i, err := strconv.Atoi(w.key)
			testkit.Must(t, err)
			if i < last[w.client] {
				t.Errorf("write %d of client %s comes after number %d", i, w.client, last[w.client])
			}
			last[w.client] = i
		}
		if next[:maxBatch] != test.next || len(next) != len(test.queue) {
			t.Errorf("of %s a pipeline takes %s, want %s", test.queue, next[:maxBatch], test.next)
		}
	}
}
