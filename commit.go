package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Group commit: writes that wait at the same time go to Redis in one pipeline and share
// its round trip. A write that comes alone goes out at once.

const (
	// As many writes as wait may go out together. A second batch is begun beside the one
	// under way where some wait, so that neither Redis nor we are idle; a further one only
	// by a tick that finds the last begun a while ago: its connection may hang, and that
	// must not hold up those who wait.
	batchSize  = 128
	batchSome  = 32
	tickEvery  = 20 * time.Millisecond
	maxBatches = 4    // under way at once, to one node
	maxWaiting = 8192 // writes, for one node
)

// errBusy is a store that has more to write than it takes on.
var errBusy = errors.New("too many sessions wait to be written")

// write is a record on its way to Redis.
type write struct {
	key      string
	set      *redis.StatusCmd
	deadline time.Time
	ended    atomic.Bool
	done     chan error // holds one, so that end never waits
}

// end tells w's caller the outcome. The first one counts.
func (w *write) end(err error) {
	if w.ended.CompareAndSwap(false, true) {
		w.done <- err
	}
}

// lane is the writes that wait for one node, and the batches under way there.
type lane struct {
	node    *redis.Client
	waiting []*write
	batches int
	begun   time.Time // when the last batch was taken off those that wait
}

// send hands w to the lane of node. Its outcome comes on w.done, by w's deadline or a
// tick or two later. Where nothing is under way to node the caller itself writes the first batch, so
// that a lone write waits for nobody.
func (s *store) send(node *redis.Client, w *write) error {
	s.mu.Lock()
	l := s.lanes[node]
	if l == nil {
		l = &lane{node: node}
		s.lanes[node] = l
	}
	if len(l.waiting) >= maxWaiting {
		s.mu.Unlock()
		return errBusy
	}
	l.waiting = append(l.waiting, w)
	s.unended = append(s.unended, w)
	s.tickLater()
	alone := l.batches == 0
	begin := alone || l.batches == 1 && len(l.waiting) >= batchSome
	if begin {
		l.batches++
	}
	s.mu.Unlock()
	switch {
	case alone:
		first := s.next(l)
		if first == nil {
			return nil // a batch begun beside this one has taken w
		}
		s.writeBatch(node, first)
		if batch := s.next(l); batch != nil {
			go s.commit(l, batch)
		}
	case begin:
		go s.commit(l, s.next(l))
	}
	return nil
}

// tickLater sees to it that tick is called while writes have no outcome. s.mu is held.
func (s *store) tickLater() {
	if !s.ticking && len(s.unended) > 0 {
		s.ticking = true
		time.AfterFunc(tickEvery, s.tick)
	}
}

// tick ends the writes whose time is up (one clock for all costs less than a timer each),
// and begins another batch in the lanes whose last was begun a while ago.
func (s *store) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.unended = slices.DeleteFunc(s.unended, func(w *write) bool {
		if !now.Before(w.deadline) {
			w.end(context.DeadlineExceeded)
		}
		return w.ended.Load()
	})
	for _, l := range s.lanes {
		if len(l.waiting) > 0 && l.batches < maxBatches && now.Sub(l.begun) >= tickEvery {
			l.batches++
			go func() { s.commit(l, s.next(l)) }()
		}
	}
	s.ticking = false
	s.tickLater()
}

// commit writes batch, and then others until nothing waits.
func (s *store) commit(l *lane, batch []*write) {
	for ; batch != nil; batch = s.next(l) {
		s.writeBatch(l.node, batch)
	}
}

// next takes a batch off those that wait. nil is none: the caller's batches end here.
func (s *store) next(l *lane) []*write {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(l.waiting), batchSize)
	if n == 0 {
		if l.batches--; l.batches == 0 {
			delete(s.lanes, l.node)
		}
		return nil
	}
	batch := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	l.begun = time.Now()
	return batch
}

// queued is how many writes wait for their batch.
func (s *store) queued() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		n += len(l.waiting)
	}
	return n
}

// writeBatch sends a SET for each write, and tells each its own outcome. A reading of
// Redis's clock goes along and vouches for all: an expiry that this clock has passed
// would be answered OK and not stored.
func (s *store) writeBatch(node *redis.Client, batch []*write) {
	s.batchSizes.Observe(float64(len(batch)))
	sent := time.Now()
	last := sent
	pipe := node.Pipeline()
	for _, w := range batch {
		if !sent.Before(w.deadline) {
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
	clock := pipe.Time(ctx)
	_, execErr := pipe.Exec(ctx)
	_, clockErr := checkClock(clock, sent)
	for _, w := range batch {
		if w.ended.Load() {
			continue
		}
		err := stored(w.set)
		switch {
		case err == nil:
			err = clockErr
		case err == errNotOK && execErr != nil:
			err = execErr // nothing was sent: go-redis leaves such replies as they were
		}
		if cluster, ok := s.redis.(*redis.ClusterClient); ok && mayBeElsewhere(err) {
			cluster.ReloadState(ctx) // soon, and not too often: a dead primary names no successor
			if ctx.Err() == nil {
				go func() { w.end(redirect(cluster, w)) }()
				continue
			}
		}
		w.end(err)
	}
}

// mayBeElsewhere tells whether another node may take what failed with err: where a
// connection did, or Redis says so. Other refusals would only come twice.
func mayBeElsewhere(err error) bool {
	if err == nil || errors.Is(err, errClock) {
		return false
	}
	refusal, refused := errors.AsType[redis.Error](err)
	if !refused {
		return true
	}
	code, _, _ := strings.Cut(refusal.Error(), " ")
	return slices.Contains([]string{"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN"}, code)
}

// redirect writes w by way of the cluster's client, which finds the node that has w's
// slot by now. It is slower, and seldom needed: in a failover or when slots move.
func redirect(cluster *redis.ClusterClient, w *write) error {
	ctx, cancel := context.WithDeadline(context.Background(), w.deadline)
	defer cancel()
	_ = cluster.Process(ctx, w.set)
	if err := stored(w.set); err != nil {
		return err
	}
	node, err := cluster.MasterForKey(ctx, w.key)
	if err != nil {
		return err
	}
	sent := time.Now()
	_, err = checkClock(node.Time(ctx), sent)
	return err
}
