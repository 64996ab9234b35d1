package embedredis_test

import (
	"net"
	"testing"
	"time"

	"authsession/internal/embedredis"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// It takes the service's SET with EXAT and the consent page's GET, EXPIRETIME and GETDEL.
func TestRecord(t *testing.T) {
	c := start(t)
	expiresAt := time.Now().Add(time.Hour).Unix()
	if got, err := c.Do(t.Context(), "SET", "k", "value", "EXAT", expiresAt).Result(); got != "OK" || err != nil {
		t.Fatalf("SET with EXAT = %v, %v, want OK", got, err)
	}
	if got, err := c.Get(t.Context(), "k").Result(); got != "value" || err != nil {
		t.Errorf("GET = %q, %v, want value", got, err)
	}
	if got, err := c.GetDel(t.Context(), "k").Result(); got != "value" || err != nil {
		t.Errorf("GETDEL = %q, %v, want value", got, err)
	}
	if got, err := c.GetDel(t.Context(), "k").Result(); err != redis.Nil {
		t.Errorf("the second GETDEL = %q, %v, want %v", got, err, redis.Nil)
	}
}

// EXPIRETIME is exact while the clock moves on.
func TestExpireTime(t *testing.T) {
	c := start(t)
	expiresAt := time.Now().Add(time.Hour).Unix()
	testkit.Must(t, c.Do(t.Context(), "SET", "k", "x", "EXAT", expiresAt).Err())
	clocks := map[time.Time]bool{}
	testkit.WaitFor(t, 5*time.Second, "the clock to move ten times", func() bool {
		if got, err := c.ExpireTime(t.Context(), "k").Result(); err != nil || int64(got/time.Second) != expiresAt {
			t.Errorf("EXPIRETIME = %d, %v, want %d", got/time.Second, err, expiresAt)
		}
		now, err := c.Time(t.Context()).Result()
		testkit.Must(t, err)
		clocks[now] = true
		return len(clocks) > 10
	})
}

// A record dies at its second by the clock, which is this machine's.
func TestExpiry(t *testing.T) {
	c := start(t)
	expiresAt := time.Now().Unix() + 2
	testkit.Must(t, c.Do(t.Context(), "SET", "k", "x", "EXAT", expiresAt).Err())
	testkit.WaitFor(t, 5*time.Second, "the record to expire", func() bool {
		return c.Exists(t.Context(), "k").Val() == 0
	})
	if now := time.Now(); now.Unix() < expiresAt {
		t.Errorf("the record was gone at %s, before %d", now, expiresAt)
	}
	now, err := c.Time(t.Context()).Result()
	if off := time.Since(now); err != nil || off.Abs() > time.Second {
		t.Errorf("TIME = %s, %v, and is %s off", now, err, off)
	}
}

func TestClose(t *testing.T) {
	m, err := embedredis.Start()
	testkit.Must(t, err)
	addr := m.Addr()
	conn, err := net.Dial("tcp", addr)
	testkit.Must(t, err)
	testkit.Must(t, conn.Close())
	m.Close()
	if conn, err := net.Dial("tcp", addr); err == nil {
		_ = conn.Close()
		t.Error("it listens after Close")
	}
}

// start runs a Redis and returns a client of it.
func start(t *testing.T) *redis.Client {
	t.Helper()
	m, err := embedredis.Start()
	testkit.Must(t, err)
	t.Cleanup(m.Close)
	c := redis.NewClient(&redis.Options{Addr: m.Addr()})
	t.Cleanup(func() { _ = c.Close() })
	return c
}
