// Package embedredis runs a Redis inside the process, for -dev and for tests. It takes what the service and the consent
// page send, and nothing survives it.
package embedredis

import (
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// clockTick is how often its clock moves on. It stands still in between, so that EXPIRETIME, which miniredis adds up
// from its clock and a time to live, is exact.
const clockTick = 50 * time.Millisecond

// Start runs a Redis on a free port of 127.0.0.1 until it is closed.
func Start() (*miniredis.Miniredis, error) {
	m := miniredis.NewMiniRedis()
	m.SetTime(time.Now().Round(0)) // Round drops the monotonic reading
	m.ClockTTL(true)
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("starting the embedded redis: %w", err)
	}
	go func() {
		tick := time.NewTicker(clockTick)
		defer tick.Stop()
		for range tick.C {
			if m.Ctx.Err() != nil { // closed
				return
			}
			m.SetTime(time.Now().Round(0))
		}
	}()
	return m, nil
}
