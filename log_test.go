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
	l.flush(5 * time.Second)
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

// A log that nobody reads holds up nobody but the one who found out, and neither does the
// end. Lines beyond mostLog are counted.
func TestLineWriterBlocked(t *testing.T) {
	out := &gate{open: make(chan struct{})}
	l := newLineWriter(out)
	line := append(bytes.Repeat([]byte("x"), 1<<10-1), '\n')
	const lines = 3 << 10 // 3 MiB
	var first sync.WaitGroup
	first.Go(func() { _, _ = l.Write(line) })
	waitFor(t, 5*time.Second, "the first line's writer to wait for the reader", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.writing
	})
	for range lines - 1 {
		_, _ = l.Write(line)
	}
	l.flush(10 * time.Millisecond)
	close(out.open)
	first.Wait()
	l.flush(5 * time.Second)
	text := out.buf.String()
	whole := strings.Count(text, string(line))
	if want := fmt.Sprintf(`"lines":%d}`, lines-whole); whole < mostLog>>10 || !strings.HasSuffix(text, want+"\n") {
		t.Errorf("%d lines came out, and at the end %q, want %s", whole, text[len(text)-80:], want)
	}
}

// gate takes nothing until it is open.
type gate struct {
	open chan struct{}
	buf  bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.buf.Write(p)
}
