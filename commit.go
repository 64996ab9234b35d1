package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Group commit: writes that wait at the same time go to Redis in one pipeline and share
// its round trip. A write that comes alone goes out at once.

const (
	// As many writes as wait may go out together. A second batch is begun beside the one
	// under way where some wait, so that neither Redis nor we are idle; a further one only
	// where the last was begun a while ago: its connection may hang, and that must not hold
	// up those who wait.
	batchSize  = 64
	batchSome  = 16
	batchLater = 20 * time.Millisecond
	maxBatches = 4    // under way at once, to one node
	maxWaiting = 8192 // writes, for one node
)

// errBusy is a store that has more to write than it takes on.
var errBusy = errors.New("too many sessions wait to be written")

// write is a record on its way to Redis.
type write struct {
	key       string
	value     []byte
	expiresAt int64 // Unix seconds
	deadline  time.Time
	done      chan error // has room for the outcome: the caller may have left
}

// lane is the writes that wait for one node, and the batches under way there.
type lane struct {
	node    *redis.Client
	waiting []*write
	batches int
	begun   time.Time // when the last batch was
	alarm   bool      // overdue is going to look after those who wait
}

// send hands w to the lane of node. Its outcome comes on w.done, by w's deadline or not
// much later. Where nothing is under way to node the caller itself writes the first batch, so
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
	alone := l.batches == 0
	begin := alone || l.batches == 1 && len(l.waiting) >= batchSome
	if begin {
		l.batches++
		l.begun = time.Now()
	} else {
		s.setAlarm(l)
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

// setAlarm sees to it that overdue is called while something waits. s.mu is held.
func (s *store) setAlarm(l *lane) {
	if !l.alarm && len(l.waiting) > 0 {
		l.alarm = true
		time.AfterFunc(batchLater, func() { s.overdue(l) })
	}
}

// overdue begins another batch where the last was begun a while ago.
func (s *store) overdue(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.alarm = false
	if len(l.waiting) > 0 && l.batches < maxBatches && time.Since(l.begun) >= batchLater {
		l.batches++
		l.begun = time.Now()
		go func() { s.commit(l, s.next(l)) }()
	}
	s.setAlarm(l)
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
	replies := make([]*redis.StatusCmd, len(batch))
	for i, w := range batch {
		if sent.Before(w.deadline) { // its caller still waits
			replies[i] = setRecord(context.Background(), w.key, w.value, w.expiresAt)
			_ = pipe.Process(context.Background(), replies[i])
			last = w.deadline
		}
	}
	ctx, cancel := context.WithDeadline(context.Background(), last)
	defer cancel()
	clock := pipe.Time(ctx)
	_, execErr := pipe.Exec(ctx)
	_, clockErr := checkClock(clock, sent)
	for i, w := range batch {
		if replies[i] == nil {
			continue
		}
		err := stored(replies[i])
		switch {
		case err == nil:
			err = clockErr
		case err == errNotOK && execErr != nil:
			err = execErr // nothing was sent: go-redis leaves such replies as they were
		}
		if cluster, ok := s.redis.(*redis.ClusterClient); ok && mayBeElsewhere(err) {
			cluster.ReloadState(ctx) // soon, and not too often: a dead primary names no successor
			if ctx.Err() == nil {
				go func() { w.done <- redirect(cluster, w) }()
				continue
			}
		}
		w.done <- err
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
	set := setRecord(ctx, w.key, w.value, w.expiresAt)
	_ = cluster.Process(ctx, set)
	if err := stored(set); err != nil {
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
