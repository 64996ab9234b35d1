// Package listener is a TCP listener for net/http's server. It bounds the connections and each header's lines, counts
// what net/http refuses by itself, can end what waits for callers, and saves one read a request.
package listener

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Statuses are those with which net/http refuses a request that no handler sees: it is malformed, expects what is not
// there, has too long a header, an unknown transfer encoding, or another version of HTTP.
var Statuses = [...]int{400, 417, 431, 501, 505}

const maxLines = 200 // of a header; usual ones have some 20

// Listener accepts connections. Its methods may be called at the same time.
type Listener struct {
	net.Listener
	places  chan struct{} // one in it for each connection
	refused [len(Statuses)]atomic.Uint64

	mu   sync.Mutex
	open map[*conn]bool
}

// New returns a Listener over one for TCP. While most connections are open, further ones wait in the kernel's queue.
func New(tcp net.Listener, most int) *Listener {
	return &Listener{Listener: tcp, places: make(chan struct{}, most), open: map[*conn]bool{}}
}

// Accept returns the next connection, once there is a place for it.
func (l *Listener) Accept() (net.Conn, error) {
	l.places <- struct{}{}
	tcp, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	c := &conn{TCPConn: tcp.(*net.TCPConn), of: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c] = true
	return c, nil
}

// StopReading has every read of the open connections fail with os.ErrDeadlineExceeded, those under way too.
func (l *Listener) StopReading() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
}

// Refused is how many requests net/http has refused with one of the Statuses.
func (l *Listener) Refused(status int) uint64 {
	return l.refused[slices.Index(Statuses[:], status)].Load()
}

// conn is a caller's connection. It keeps the methods of *net.TCPConn: net/http half-closes before it closes, so that a
// caller which is still sending reads its answer.
type conn struct {
	*net.TCPConn
	of      *Listener
	skipped bool // the last Read was
	lines   int  // of the header that is coming; -1: it is there
	empty   bool // so far, the line that is coming
}

// Read reads nothing (0 and nil, as io.Reader allows) where it is asked for one byte, unless it is asked again. While a
// handler runs, net/http reads one byte ahead, to end the request's context when the caller goes away. No handler looks
// at that, and the read, which parks a goroutine and wakes it again, costs 4% of the requests a second. net/http never
// reads a connection twice at a time.
func (c *conn) Read(p []byte) (int, error) {
	if c.skipped = len(p) == 1 && !c.skipped; c.skipped {
		return 0, nil
	}
	if c.lines > maxLines { // net/http gets a line without end, which it refuses with 431
		return copy(p, bytes.Repeat([]byte("x"), len(p))), nil
	}
	n, err := c.TCPConn.Read(p)
	if c.lines >= 0 && len(p) > 1 {
		c.countLines(p[:n])
	}
	return n, err
}

// countLines goes on counting the header's lines, or sets them to -1 where p has its end. Of a header that is held open
// net/http keeps each line: 2,000 connections with 12 KiB of lines of 5 bytes took 336 MiB, and with this limit 113.
// (net/http of Go 1.27 has a limit of its own, 500.)
func (c *conn) countLines(p []byte) {
	if bytes.Contains(p, []byte("\r\n\r\n")) { // most often
		c.lines = -1
	}
	for c.lines >= 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		c.empty = c.empty && len(bytes.TrimSuffix(line, []byte("\r"))) == 0
		switch {
		case !whole:
			return
		case c.empty:
			c.lines = -1
		default:
			c.lines++
			c.empty, p = true, rest
		}
	}
}

// Write counts net/http's own refusals. After an answer the next header comes.
func (c *conn) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(p, []byte("HTTP/1.1 1")) { // 100 Continue
		c.lines, c.empty = 0, false
	}
	if len(p) > 9 && p[9] >= '4' { // of "HTTP/1.1 400"
		if i := refusal(p); i >= 0 {
			c.of.refused[i].Add(1)
		}
	}
	return c.TCPConn.Write(p)
}

// refusal is the index in Statuses of a refusal of net/http's own; -1 is another answer. Such a refusal is one Write
// whose first header is Content-Type or Connection. A handler's answer has Allow or Cache-Control first.
func refusal(p []byte) int {
	line, header, _ := bytes.Cut(p, []byte("\r\n"))
	if !bytes.HasPrefix(header, []byte("Co")) {
		return -1
	}
	return slices.IndexFunc(Statuses[:], func(status int) bool {
		return bytes.HasPrefix(line, fmt.Appendf(nil, "HTTP/1.1 %d ", status))
	})
}

// Close gives the connection's place to the next one.
func (c *conn) Close() error {
	c.of.mu.Lock()
	open := c.of.open[c]
	delete(c.of.open, c)
	c.of.mu.Unlock()
	if open {
		<-c.of.places
	}
	return c.TCPConn.Close()
}
