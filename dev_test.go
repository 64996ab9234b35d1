package main

import (
	"strings"
	"testing"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// The sandbox listens on the port after the service's, or on another where that is taken, and on this machine alone.
func TestListenAfter(t *testing.T) {
	for _, addr := range []string{":0", "127.0.0.1:65535", "nonsense", "127.0.0.1:" + redistest.FreePort()} {
		for range 2 { // the second time the port after it is taken
			l, err := listenAfter(addr, "")
			testkit.Must(t, err)
			defer l.Close()
			if got := l.Addr().String(); !strings.HasPrefix(got, "127.0.0.1:") {
				t.Errorf("listenAfter(%q) listens on %s", addr, got)
			}
		}
	}
}
