package redisconn

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

func TestFailover(t *testing.T) {
	const old = "10.0.0.1:6379"
	type event struct{ sentinel, channel, payload string }
	selected := event{"s1", "+failover-state-select-slave", "master m 10.0.0.1 6379"}
	aborted := event{"s1", "-failover-abort-slave-timeout", "master m 10.0.0.1 6379"}
	switched := event{"s1", "+switch-master", "m 10.0.0.1 6379 10.0.0.2 6379"}
	by := func(e event, sentinel string) event { e.sentinel = sentinel; return e }
	for name, tt := range map[string]struct {
		events                          []event
		wantRefused, wantDemoted, wantS bool
	}{
		"selected":                {events: []event{selected}, wantRefused: true, wantDemoted: true},
		"selected, aborted":       {events: []event{selected, aborted}},
		"aborted by another":      {events: []event{selected, by(aborted, "s2")}, wantRefused: true, wantDemoted: true},
		"switched":                {events: []event{selected, switched}, wantDemoted: true, wantS: true},
		"switched by another":     {events: []event{selected, by(switched, "s2")}, wantDemoted: true, wantS: true},
		"switched, then aborted":  {events: []event{selected, switched, aborted}, wantDemoted: true, wantS: true},
		"switched, never begun":   {events: []event{switched}, wantDemoted: true, wantS: true},
		"selected, another name":  {events: []event{{"s1", selected.channel, "master other 10.0.0.1 6379"}}},
		"switched, another name":  {events: []event{{"s1", switched.channel, "other 10.0.0.1 6379 10.0.0.2 6379"}}},
		"switched back":           {events: []event{{"s1", switched.channel, "m 10.0.0.2 6379 10.0.0.1 6379"}}, wantS: true},
		"another node selected":   {events: []event{{"s1", selected.channel, "master m 10.0.0.2 6379"}}, wantRefused: true},
		"a replica, not a master": {events: []event{{"s1", selected.channel, "slave m 10.0.0.1 6379"}}},
		"too few words":           {events: []event{{"s1", switched.channel, "m 10.0.0.1"}, {"s1", switched.channel, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			o := parse(t, Sentinel, "redis://s?master_name=m", Access{})
			sawSwitch := false
			for _, e := range tt.events {
				message := &redis.Message{Channel: e.channel, Payload: e.payload}
				o.handleEvent(e.sentinel, message, func() {
					sawSwitch = true
					if o.FailoverErr() == nil {
						t.Error("writes are allowed before the connections to the old primary are closed")
					}
				})
			}
			if got := o.FailoverErr() != nil; got != tt.wantRefused {
				t.Errorf("FailoverErr() = %v, want an error: %t", o.FailoverErr(), tt.wantRefused)
			}
			if got := o.isDemoted(old); got != tt.wantDemoted {
				t.Errorf("isDemoted(%s) = %t, want %t", old, got, tt.wantDemoted)
			}
			if sawSwitch != tt.wantS {
				t.Errorf("switched was called: %t, want %t", sawSwitch, tt.wantS)
			}
		})
	}
}

// A failover that its sentinel never ends is over after demotedFor.
func TestFailoverExpires(t *testing.T) {
	o := parse(t, Sentinel, "redis://s?master_name=m", Access{})
	o.failover.Store(&failover{"s1", "10.0.0.1:6379", time.Now()})
	if err := o.FailoverErr(); err != nil || o.isDemoted("10.0.0.1:6379") {
		t.Errorf("FailoverErr() = %v at the end of the failover's time, want nil", err)
	}
	if err := (Options{}).FailoverErr(); err != nil {
		t.Errorf("FailoverErr() of another mode = %v, want nil", err)
	}
}

// Writes are refused from the sentinel's choice of a successor until the switch, and the old primary is not dialed.
func TestWatchSentinels(t *testing.T) {
	redistest.Need(t)
	primary, _, sentinel := redistest.Sentinel(t)
	o := parse(t, Sentinel, "redis://"+sentinel.Addr+"?master_name=mymaster", Access{})
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	var switches atomic.Int32
	watching.Go(func() { o.WatchSentinels(ctx, time.Second, func() { switches.Add(1) }) })
	testkit.WaitFor(t, 10*time.Second, "the subscription", func() bool {
		return strings.Contains(sentinel.Client(t).ClientList(t.Context()).Val(), " sub=5 ")
	})
	testkit.Must(t, sentinel.Client(t).Do(t.Context(), "SENTINEL", "FAILOVER", "mymaster").Err())
	testkit.WaitFor(t, 10*time.Second, "ErrFailover", func() bool { return errors.Is(o.FailoverErr(), ErrFailover) })
	testkit.WaitFor(t, 20*time.Second, "the switch", func() bool { return o.FailoverErr() == nil && switches.Load() > 0 })
	if _, err := o.dialPrimary(time.Second)(t.Context(), "tcp", primary.Addr); !errors.Is(err, ErrFailover) {
		t.Errorf("dialing the old primary = %v, want ErrFailover", err)
	}
	client := o.Open(time.Second)
	defer client.Close()
	testkit.WaitFor(t, 10*time.Second, "a write to the new primary", func() bool {
		return client.Set(t.Context(), "x", "x", time.Minute).Err() == nil
	})
	cancel()
	watching.Wait()
}
