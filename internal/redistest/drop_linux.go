package redistest

import (
	"net"
	"syscall"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// Drop cuts the connections there are and makes the kernel drop SYNs, as a firewall does: nobody accepts, and a backlog
// of none is full.
func (p *Proxy) Drop(t testing.TB) {
	t.Helper()
	p.backlog(t, 0)
	testkit.Must(t, p.listener.SetDeadline(time.Now()))
	p.accepting.Wait()
	for _, c := range p.conns {
		_ = c.Close()
	}
	for range 16 {
		c, err := net.DialTimeout("tcp", p.Addr, 200*time.Millisecond)
		if err != nil {
			return
		}
		p.conns = append(p.conns, c)
	}
	t.Fatal("the proxy's port still takes connections")
}

// Admit ends Drop.
func (p *Proxy) Admit(t testing.TB) {
	t.Helper()
	p.backlog(t, 128)
	testkit.Must(t, p.listener.SetDeadline(time.Time{}))
	p.accepting.Go(p.accept)
}

func (p *Proxy) backlog(t testing.TB, n int) {
	t.Helper()
	raw, err := p.listener.SyscallConn()
	testkit.Must(t, err)
	testkit.Must(t, raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), n) }))
	testkit.Must(t, err)
}
