package main

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"
)

// In one batch each write has its own outcome: one that Redis refuses fails alone, and one whose
// caller has left is not sent.
func TestBatch(t *testing.T) {
	needRedis(t)
	p := startRedis(t)
	c := p.client(t)
	must(t, c.Do(t.Context(), "ACL", "SETUSER", "default", "resetkeys", "~p:good*").Err())
	s := openTestStore(t, "standalone", "redis://"+p.addr, "p:", time.Second)
	soon, deadline := time.Now().Add(time.Hour).Unix(), time.Now().Add(time.Second)
	var batch []*write
	for i, key := range []string{"p:good1", "p:bad", "p:good2", "p:good-late", "p:good3"} {
		w := &write{key: key, set: setRecord(t.Context(), key, []byte("x"), soon), deadline: deadline, done: make(chan error, 1)}
		if i == 3 {
			w.deadline = time.Now()
		}
		batch = append(batch, w)
	}
	node, err := s.nodeFor(batch[0])
	must(t, err)
	s.writeBatch(node, batch)
	for _, w := range batch {
		var outcome error
		select {
		case outcome = <-w.done:
		default:
			outcome = errors.New("none")
		}
		good := w.key == "p:good1" || w.key == "p:good2" || w.key == "p:good3"
		if good != (outcome == nil) {
			t.Errorf("outcome of %s = %v", w.key, outcome)
		}
	}
	if n, err := c.Exists(t.Context(), "p:good1", "p:good2", "p:good3").Result(); err != nil || n != 3 {
		t.Errorf("%d of 3 good records are there, %v", n, err)
	}
	if n, err := c.Exists(t.Context(), "p:good-late").Result(); err != nil || n != 0 {
		t.Errorf("the record of a caller that left is there, %v", err)
	}
}

// A queue that is full refuses at once, and no caller waits beyond its deadline.
func TestQueueFull(t *testing.T) {
	needRedis(t)
	p := startRedis(t)
	s := openTestStore(t, "standalone", "redis://"+p.addr, "p:", 5*time.Second)
	soon := time.Now().Add(time.Hour).Unix()
	noise := listenForNoise(t)
	must(t, s.put("p:first", []byte("x"), soon))
	must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	t.Cleanup(func() { _ = p.cmd.Process.Signal(syscall.SIGCONT) })
	const more = 500
	calls := make([]faultCall, maxWaiting+maxBatches*batchSize+more)
	var all sync.WaitGroup
	for i := range calls {
		all.Go(func() { calls[i] = s.timedPut(fmt.Sprintf("p:%d", i), soon) })
	}
	all.Wait()
	refused := 0
	for _, c := range calls {
		extra := noise.within(c.start, c.end())
		switch {
		case c.err == errBusy && c.took < time.Second+extra:
			refused++
		case c.err == nil, c.err == errBusy, c.took > 6*time.Second+extra:
			t.Errorf("put = %v after %s; noise %s", c.err, c.took, extra)
		}
	}
	if refused < more {
		t.Errorf("%d refused at once, want %d or more", refused, more)
	}
}

// Writes that come while a batch is under way do not wait for its end where Redis is slow:
// a reply that comes within the store's timeout is used.
func TestBatchSlow(t *testing.T) {
	needRedis(t)
	proxy := startProxy(t, startRedis(t).addr, late(600*time.Millisecond))
	s := openTestStore(t, "standalone", "redis://"+proxy.addr, "p:", 5*time.Second)
	soon := time.Now().Add(time.Hour).Unix()
	var warm sync.WaitGroup // connections are slow to make, too
	for range 4 {
		warm.Go(func() { must(t, s.redis.Ping(t.Context()).Err()) })
	}
	warm.Wait()
	s.timeout = time.Second
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if err := s.put(fmt.Sprintf("p:%d", i), []byte("x"), soon); err != nil {
				t.Errorf("put %d = %v", i, err)
			}
		})
	}
	all.Wait()
}
