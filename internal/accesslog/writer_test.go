package accesslog

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// All lines come out whole, and each writer's in their order.
func TestWriter(t *testing.T) {
	var out bytes.Buffer
	l := NewWriter(&out)
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
	l.Flush(5 * time.Second)
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

// A log that nobody reads holds up no writer, and Flush only for its timeout. Lines over 1 MiB are counted.
func TestWriterBlocked(t *testing.T) {
	out := &gate{open: make(chan struct{})}
	l := NewWriter(out)
	line := strings.Repeat("x", 1<<10-1) + "\n"
	const lines = 3 << 10 // 3 MiB
	for range lines {
		_, _ = l.Write([]byte(line))
	}
	if l.Flush(10 * time.Millisecond); out.buf.Len() > 0 {
		t.Fatal("lines came out while the reader blocked")
	}
	close(out.open)
	l.Flush(5 * time.Second)
	text := out.buf.String()
	whole := strings.Count(text, line)
	want := fmt.Sprintf(`{"level":"WARN","msg":"log lines dropped","lines":%d}`+"\n", lines-whole)
	if whole < maxWaiting>>10 || whole == lines || !strings.HasSuffix(text, want) {
		t.Errorf("%d lines came out, and at the end %q, want %s", whole, text[len(text)-80:], want)
	}
	if got := l.Dropped(); got != uint64(lines-whole) {
		t.Errorf("Dropped() = %d, want %d", got, lines-whole)
	}
}

// Lines that a reader did not take because it is gone are counted.
func TestWriterBroken(t *testing.T) {
	l := NewWriter(half{})
	for range 3 {
		_, _ = l.Write([]byte("1\n2\n"))
		l.Flush(5 * time.Second)
	}
	if got := l.Dropped(); got != 3 {
		t.Errorf("Dropped = %d, want 3", got)
	}
}

// half takes the first two bytes of each write.
type half struct{}

func (half) Write([]byte) (int, error) { return 2, io.ErrClosedPipe }

// gate takes nothing until it is open.
type gate struct {
	open chan struct{}
	buf  bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.buf.Write(p)
}
