package main

import (
	"io"
	"sync"
)

// mostLog is how many bytes of log may wait to be written. Beyond it whoever logs waits.
const mostLog = 1 << 20

// lineWriter writes to out what was written to it, whole and in order, but in groups: under
// load many lines share a system call, which costs more than to make them. A line leaves
// as soon as a core is free for it. Writes never fail: there is nowhere to log it.
type lineWriter struct {
	out io.Writer

	mu      sync.Mutex
	written sync.Cond // a group is out; of mu
	waiting []byte
	spare   []byte // the last group's, to use again
	writing bool   // a goroutine runs write
}

func newLineWriter(out io.Writer) *lineWriter {
	l := &lineWriter{out: out}
	l.written.L = &l.mu
	return l
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) > mostLog {
		l.written.Wait()
	}
	l.waiting = append(l.waiting, p...)
	if !l.writing {
		l.writing = true
		go l.write()
	}
	return len(p), nil
}

func (l *lineWriter) write() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) > 0 {
		l.mu.Unlock()
		l.mu.Lock()
		group := l.waiting
		l.waiting = l.spare[:0]
		l.mu.Unlock()
		_, _ = l.out.Write(group)
		l.mu.Lock()
		l.spare = group
		l.written.Broadcast()
	}
	l.writing = false
	l.written.Broadcast()
}

// flush returns when all that was written before is out.
func (l *lineWriter) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.writing {
		l.written.Wait()
	}
}
