package linelog

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// All lines come out whole, and each writer's in their order.
func TestWriter(t *testing.T) {
	var out bytes.Buffer
	l := New(&out)
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

// A line that comes alone is out when Write returns.
func TestWriterAlone(t *testing.T) {
	var out bytes.Buffer
	l := New(&out)
	if n, err := l.Write([]byte("alone\n")); n != 6 || err != nil || out.String() != "alone\n" {
		t.Errorf("Write = %d, %v, and out came %q", n, err, out.String())
	}
}

// A log that nobody reads holds up the first writer alone, and Flush only as long as it may. Lines beyond maxWaiting
// are counted.
func TestWriterBlocked(t *testing.T) {
	out := &gate{open: make(chan struct{})}
	l := New(out)
	line := append(bytes.Repeat([]byte("x"), 1<<10-1), '\n')
	const lines = 3 << 10 // 3 MiB
	var first sync.WaitGroup
	first.Go(func() { _, _ = l.Write(line) })
	testkit.WaitFor(t, 5*time.Second, "the first line's writer to wait for the reader", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.writing
	})
	for range lines - 1 {
		_, _ = l.Write(line)
	}
	if l.Flush(10 * time.Millisecond); out.buf.Len() > 0 {
		t.Fatal("something came out while the reader blocked")
	}
	close(out.open)
	first.Wait()
	l.Flush(5 * time.Second)
	text := out.buf.String()
	whole := strings.Count(text, string(line))
	want := fmt.Sprintf(`{"level":"WARN","msg":"log lines dropped","lines":%d}`+"\n", lines-whole)
	if whole < maxWaiting>>10 || whole == lines || !strings.HasSuffix(text, want) {
		t.Errorf("%d lines came out, and at the end %q, want %s", whole, text[len(text)-80:], want)
	}
	if got := l.Dropped(); got != uint64(lines-whole) {
		t.Errorf("Dropped = %d, want %d", got, lines-whole)
	}
}

// What a reader that is gone does not take is counted.
func TestWriterBroken(t *testing.T) {
	l := New(half{})
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
