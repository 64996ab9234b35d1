//go:build unix

package redistest

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// Pause stops the server's process and returns once it stands still, where /proc tells. Its connections stay open.
func (s *Server) Pause(t testing.TB) {
	t.Helper()
	testkit.Must(t, s.cmd.Process.Signal(syscall.SIGSTOP))
	testkit.WaitFor(t, time.Second, "the stop", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
		return os.IsNotExist(err) || bytes.Contains(stat, []byte(") T "))
	})
}

// Resume lets a paused server go on.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	testkit.Must(t, s.cmd.Process.Signal(syscall.SIGCONT))
}
