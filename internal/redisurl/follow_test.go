package redisurl

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

func TestHeed(t *testing.T) {
	const old = "10.0.0.1:6379"
	for _, test := range []struct {
		event, payload string
		want           bool // the old primary is refused
	}{
		{"+failover-state-select-slave", "master m 10.0.0.1 6379", true},
		{"+failover-state-select-slave", "master other 10.0.0.1 6379", false},
		{"+failover-state-select-slave", "master m 10.0.0.2 6379", false},
		{"+switch-master", "m 10.0.0.1 6379 10.0.0.2 6379", true},
		{"+switch-master", "m 10.0.0.2 6379 10.0.0.1 6379", false},
		{"+switch-master", "other 10.0.0.1 6379 10.0.0.2 6379", false},
		{"+switch-master", "m 10.0.0.1", false},
		{"+switch-master", "", false},
	} {
		o := parse(t, Sentinel, "redis://s?master_name=m", Access{})
		d := newDialer(nil, time.Second)
		d.deposed = o.deposed
		o.heed(test.event, strings.Fields(test.payload))
		if got := d.refuses(old); got != test.want {
			t.Errorf("after %s %q the old primary is refused: %t, want %t", test.event, test.payload, got, test.want)
		}
		o.heed("-failover-abort-slave-timeout", strings.Fields("master m 10.0.0.1 6379"))
		if test.event[1] == 'f' && d.refuses(old) {
			t.Errorf("the old primary is refused after %q and an abort", test.payload)
		}
	}
	o := parse(t, Sentinel, "redis://s?master_name=m", Access{})
	o.deposed.Store(&deposed{old, time.Now()})
	d := newDialer(nil, time.Second)
	d.deposed = o.deposed
	if d.refuses(old) || newDialer(nil, time.Second).refuses(old) {
		t.Error("the old primary is refused for ever, or by who does not follow")
	}
}

// A primary is refused from when its sentinel chooses another until that is there.
func TestFollow(t *testing.T) {
	redistest.Need(t)
	t.Parallel()
	primary, replica, sentinel := redistest.Sentinel(t)
	o := parse(t, Sentinel, "redis://"+sentinel.Addr+"?master_name=mymaster", Access{})
	client := o.Open(time.Second).(*redis.Client)
	t.Cleanup(func() { _ = client.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { o.Follow(ctx, time.Second) })
	set := func() error { return client.Set(t.Context(), "x", "x", time.Minute).Err() }
	testkit.Must(t, set())
	time.Sleep(300 * time.Millisecond) // it subscribes
	testkit.Must(t, sentinel.Client(t).Do(t.Context(), "SENTINEL", "FAILOVER", "mymaster").Err())
	testkit.WaitFor(t, 5*time.Second, "a refusal", func() bool { return errors.Is(set(), ErrDeposed) })
	testkit.WaitFor(t, 5*time.Second, "the new primary", func() bool { return set() == nil })
	if n := replica.Client(t).Exists(t.Context(), "x").Val(); n != 1 {
		t.Error("what the new primary acknowledged is not there")
	}
	if role := primary.Client(t).Do(t.Context(), "ROLE").String(); role == "" {
		t.Error("the old primary is gone")
	}
	cancel()
	following.Wait()
}
