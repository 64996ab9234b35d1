package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// mostLog is how many bytes of log may wait for a reader. Beyond it lines are dropped:
	// requests are worth more.
	mostLog = 1 << 20
	// logApart is how long after the last write a line counts as alone, and how long others
	// wait for company.
	logApart = time.Millisecond
)

// lineWriter writes to out what was written to it, whole and in order. A line that comes
// alone is out when Write returns; others go out in groups a millisecond later, since a
// system call costs more than to make a line. Where out blocks, lines are dropped in the
// end, and counted in a line of their own. A process that is killed loses the last
// millisecond's. Writes never fail: there is nowhere to log it.
type lineWriter struct {
	out io.Writer

	mu      sync.Mutex
	written sync.Cond // a group is out; of mu
	last    time.Time // when it was
	waiting []byte
	spare   []byte // the last group's, to use again
	writing bool
	dropped int // lines since the last group
}

func newLineWriter(out io.Writer) *lineWriter {
	l := &lineWriter{out: out}
	l.written.L = &l.mu
	return l
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting)+len(p) > mostLog {
		l.dropped++
		return len(p), nil
	}
	l.waiting = append(l.waiting, p...)
	if l.writing {
		return len(p), nil
	}
	l.writing = true
	if time.Since(l.last) > logApart {
		l.writeGroup()
	}
	l.writeLater()
	return len(p), nil
}

// writeLater sees to it that what waits is written. mu is held.
func (l *lineWriter) writeLater() {
	if l.writing {
		time.AfterFunc(logApart, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.writeGroup()
			l.writeLater()
		})
	}
}

// writeGroup writes what waits, with mu held but not meanwhile. While it runs writing is
// true, and afterwards where more has come.
func (l *lineWriter) writeGroup() {
	group := l.waiting
	if l.dropped > 0 {
		group = fmt.Appendf(group, `{"level":"WARN","msg":"log lines dropped","lines":%d}`+"\n", l.dropped)
	}
	l.waiting, l.dropped = l.spare[:0], 0
	l.mu.Unlock()
	_, _ = l.out.Write(group)
	l.mu.Lock()
	l.spare, l.last = group, time.Now()
	l.writing = len(l.waiting) > 0
	l.written.Broadcast()
}

// flush returns when nothing waits to be written, or after atMost.
func (l *lineWriter) flush(atMost time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	late := false
	timer := time.AfterFunc(atMost, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.written.Broadcast()
	})
	defer timer.Stop()
	for l.writing && !late {
		l.written.Wait()
	}
}
