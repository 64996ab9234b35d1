package redistest

import "testing"

// Pause skips the test: Windows has no SIGSTOP.
func (s *Server) Pause(t testing.TB) { t.Skip("a process can't be paused here") }

// Resume is never reached.
func (s *Server) Resume(testing.TB) {}
