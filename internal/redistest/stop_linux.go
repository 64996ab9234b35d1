package redistest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// Pause stops the server's process and returns once it stands still. Its connections stay open.
func (s *Server) Pause(t testing.TB) {
	t.Helper()
	testkit.Must(t, s.cmd.Process.Signal(syscall.SIGSTOP))
	testkit.WaitFor(t, 5*time.Second, "the stop", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
		return err == nil && bytes.Contains(stat, []byte(") T "))
	})
}

// Resume ends Pause.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	testkit.Must(t, s.cmd.Process.Signal(syscall.SIGCONT))
}

// Drop closes all connections and makes the kernel drop SYNs, as a firewall does: the listener's queue holds one
// connection at most, is full, and is not read.
func (p *Proxy) Drop(t testing.TB) {
	t.Helper()
	p.backlog(t, 0)
	testkit.Must(t, p.listener.SetDeadline(time.Now()))
	p.closeAll()
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
