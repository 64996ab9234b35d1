package redistest

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// Proxy stands between a client and its Redis.
type Proxy struct {
	Addr string

	redisAddr string
	mode      atomic.Pointer[Mode]
	listener  *net.TCPListener
	accepting sync.WaitGroup
	conns     []net.Conn // all that were accepted; only accept uses it while it runs
}

// Mode handles a reply, or a part of one, that Redis sent at the time came.
type Mode func(client *net.TCPConn, reply []byte, came time.Time)

// Pass forwards a reply.
func Pass(client *net.TCPConn, reply []byte, _ time.Time) { _, _ = client.Write(reply) }

// Late forwards each reply with this delay.
func Late(delay time.Duration) Mode {
	return func(client *net.TCPConn, reply []byte, came time.Time) {
		time.Sleep(time.Until(came.Add(delay)))
		Pass(client, reply, came)
	}
}

var timeReply = regexp.MustCompile(`\*2\r\n\$10\r\n(\d{10})\r\n\$`)

// ClockAhead answers TIME as a Redis whose clock is ahead.
func ClockAhead(by time.Duration) Mode {
	return func(client *net.TCPConn, reply []byte, came time.Time) {
		Pass(client, timeReply.ReplaceAllFunc(reply, func(b []byte) []byte {
			n, _ := strconv.ParseInt(string(b[9:19]), 10, 64)
			return fmt.Appendf(nil, "*2\r\n$10\r\n%d\r\n$", n+int64(by/time.Second))
		}), came)
	}
}

// StartProxy runs a proxy on a free port.
func StartProxy(t testing.TB, redisAddr string, mode Mode) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	p := &Proxy{Addr: l.Addr().String(), redisAddr: redisAddr, listener: l.(*net.TCPListener)}
	p.Set(mode)
	p.accepting.Go(p.accept)
	t.Cleanup(func() {
		_ = p.listener.Close()
		p.closeAll()
	})
	return p
}

// closeAll closes all connections once accept has ended.
func (p *Proxy) closeAll() {
	p.accepting.Wait()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

// Set changes the mode from the next reply on.
func (p *Proxy) Set(mode Mode) { p.mode.Store(&mode) }

func (p *Proxy) accept() {
	for {
		client, err := p.listener.AcceptTCP()
		if err != nil {
			return
		}
		p.conns = append(p.conns, client)
		go p.serve(client)
	}
}

func (p *Proxy) serve(client *net.TCPConn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.redisAddr)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close() // ends the reading below
	}()
	type reply struct {
		data []byte
		came time.Time
	}
	replies := make(chan reply, 1000) // so that reading goes on while a mode sleeps
	go func() {
		defer close(replies)
		for {
			data := make([]byte, 64<<10)
			n, err := server.Read(data)
			if err != nil {
				return
			}
			replies <- reply{data[:n], time.Now()}
		}
	}()
	for r := range replies {
		(*p.mode.Load())(client, r.data, r.came)
	}
}
