package redisurl

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrDeposed means that the sentinels replace the primary, so that what it takes now may be lost.
var ErrDeposed = errors.New("the sentinels replace the primary")

// deposed is a primary that the sentinels replace.
type deposed struct {
	addr  string
	until time.Time
}

// A sentinel tells a primary that it is none any more up to 11 s later, measured. Until then it acknowledges writes and
// forgets them. The time ends so that what a sentinel does not say, as when it dies meanwhile, heals by itself.
const deposedFor = 20 * time.Second

// Follow listens to the sentinels until ctx ends, and has clients that Open returned refuse a primary from the moment
// that a sentinel chooses its successor. That comes some 100 ms before the promotion, and some 1,100 ms before the
// event of the new address, which is all that go-redis follows. In other modes Follow returns at once.
func (o Options) Follow(ctx context.Context, timeout time.Duration) {
	if o.sentinel == nil {
		return
	}
	d := newDialer(o.secure, timeout)
	var all sync.WaitGroup
	for _, addr := range o.sentinel.SentinelAddrs {
		c := redis.NewSentinelClient(&redis.Options{
			Addr: addr, Dialer: d.dial, Username: o.sentinel.SentinelUsername, Password: o.sentinel.SentinelPassword,
			DialTimeout: timeout, DisableIdentity: true,
		})
		all.Go(func() {
			defer c.Close()
			events := c.Subscribe(ctx, "+failover-state-select-slave", "+switch-master", "-failover-abort-not-elected",
				"-failover-abort-no-good-slave", "-failover-abort-slave-timeout")
			stop := context.AfterFunc(ctx, func() { _ = events.Close() })
			defer stop()
			for event := range events.Channel() {
				o.heed(event.Channel, strings.Fields(event.Payload))
			}
		})
	}
	all.Wait()
}

// heed takes a sentinel's event. The words of +switch-master are the name, the old and the new address; of others
// "master", the name and the address.
func (o Options) heed(event string, words []string) {
	name := o.sentinel.MasterName
	switch {
	case event == "+switch-master" && len(words) == 5 && words[0] == name:
		o.depose(net.JoinHostPort(words[1], words[2]))
	case len(words) != 4 || words[0] != "master" || words[1] != name:
	case event == "+failover-state-select-slave":
		o.depose(net.JoinHostPort(words[2], words[3]))
	case strings.HasPrefix(event, "-failover-abort-"):
		o.deposed.Store(nil)
	}
}

func (o Options) depose(addr string) { o.deposed.Store(&deposed{addr, time.Now().Add(deposedFor)}) }

// refuses tells whether nothing is to go to addr.
func (d *dialer) refuses(addr string) bool {
	if d.deposed == nil {
		return false
	}
	p := d.deposed.Load()
	return p != nil && p.addr == addr && time.Now().Before(p.until)
}
