package testkit

import (
	"context"
	"sync"
	"testing"
	"time"
)

// Noise notes how late this process's timers fire. On a busy machine an answer is measured late by as much, and the
// service is as late. So limits give way by twice that, and by nothing where the machine is quiet.
type Noise struct {
	mu   sync.Mutex
	late []delay
}

// delay is a timer that was set at some time and fired late.
type delay struct {
	at time.Time
	by time.Duration
}

// ListenForNoise notes delays until the test ends.
func ListenForNoise(t testing.TB) *Noise {
	t.Helper()
	n := &Noise{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		const step = 5 * time.Millisecond
		for ctx.Err() == nil {
			start := time.Now()
			time.Sleep(step)
			if by := time.Since(start) - step; by > step {
				n.mu.Lock()
				n.late = append(n.late, delay{start, by})
				n.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return n
}

// Within is by how much a limit on what ran between from and to gives way.
func (n *Noise) Within(from, to time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	var worst time.Duration
	for _, l := range n.late {
		if l.at.Before(to) && l.at.Add(l.by).After(from) {
			worst = max(worst, l.by)
		}
	}
	return 2 * worst
}
