package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// All lines come out whole, and each writer's in their order.
func TestLineWriter(t *testing.T) {
	var out bytes.Buffer
	l := newLineWriter(&out)
	var all sync.WaitGroup
	const writers, lines = 8, 2000
	for w := range writers {
		all.Go(func() {
			for i := range lines {
				fmt.Fprintf(l, "%d %d\n", w, i)
			}
		})
	}
	all.Wait()
	l.flush()
	var next [writers]int
	for line := range strings.Lines(out.String()) {
		var w, i int
		if _, err := fmt.Sscanf(line, "%d %d\n", &w, &i); err != nil || next[w] != i {
			t.Fatalf("line %q, want number %d of its writer: %v", line, next[w], err)
		}
		next[w]++
	}
	for w, n := range next {
		if n != lines {
			t.Errorf("writer %d has %d lines, want %d", w, n, lines)
		}
	}
}

// A log that nobody reads takes mostLog bytes and then holds up who logs, and loses nothing.
func TestLineWriterBlocked(t *testing.T) {
	out := &gate{open: make(chan struct{})}
	l := newLineWriter(out)
	line := bytes.Repeat([]byte("x"), 1<<10)
	const lines = 3 << 10 // 3 MiB
	var first sync.WaitGroup
	first.Go(func() { _, _ = l.Write(line) })
	waitFor(t, 5*time.Second, "the first line's writer to wait for the reader", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.writing
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range lines - 1 {
			_, _ = l.Write(line)
		}
	}()
	waitFor(t, 5*time.Second, "the buffer to be full", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waiting) > mostLog
	})
	select {
	case <-done:
		t.Fatal("3 MiB were taken without a reader")
	default:
	}
	close(out.open)
	<-done
	first.Wait()
	l.flush()
	if out.n != lines*len(line) {
		t.Errorf("%d bytes came out, want %d", out.n, lines*len(line))
	}
}

// gate takes nothing until it is open.
type gate struct {
	open chan struct{}
	n    int
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.n += len(p)
	return len(p), nil
}
