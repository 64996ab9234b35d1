package redisconn

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrFailover means that the sentinels are replacing the primary, or have replaced it: a write to it may be lost.
var ErrFailover = errors.New("the sentinels are replacing the primary")

// demotedFor is how long a replaced primary is not dialed. The sentinels tell it that it is a replica up to 11 s after
// the failover (measured). Until then it acknowledges writes, and loses them.
const demotedFor = 20 * time.Second

// failover is what the sentinels last announced about the primary.
type failover struct {
	leader  string    // address of the sentinel whose failover is under way; "": none is
	demoted string    // address of the replaced primary
	until   time.Time // when demoted may be dialed again, and the failover counts as ended
}

// FailoverErr returns ErrFailover from the moment that a sentinel chose the primary's successor until it announced the
// switch, and else nil. In other modes it is always nil.
func (o Options) FailoverErr() error {
	if o.failover == nil {
		return nil
	}
	if f := o.failover.Load(); f.leader != "" && time.Now().Before(f.until) {
		return ErrFailover
	}
	return nil
}

func (o Options) isDemoted(addr string) bool {
	f := o.failover.Load()
	return f.demoted == addr && time.Now().Before(f.until)
}

func (o Options) setFailover(leader, demoted string) {
	o.failover.Store(&failover{leader, demoted, time.Now().Add(demotedFor)})
}

// WatchSentinels follows the sentinels' events until ctx ends. It calls switched before writes are allowed again after
// a switch, because older connections may lead to the old primary. The choice of a successor is announced some 100 ms
// before its promotion, and 1,100 ms before the switch, the only event that go-redis follows. Other modes have none.
func (o Options) WatchSentinels(ctx context.Context, timeout time.Duration, switched func()) {
	if o.sentinel == nil {
		return
	}
	var all sync.WaitGroup
	for _, addr := range o.sentinel.SentinelAddrs {
		all.Go(func() {
			c := redis.NewSentinelClient(&redis.Options{
				Addr: addr, TLSConfig: o.tls, DialTimeout: timeout, DisableIdentity: true,
				Username: o.sentinel.SentinelUsername, Password: o.sentinel.SentinelPassword,
			})
			defer c.Close()
			events := c.Subscribe(ctx, "+failover-state-select-slave", "+switch-master", "-failover-abort-not-elected",
				"-failover-abort-no-good-slave", "-failover-abort-slave-timeout")
			stop := context.AfterFunc(ctx, func() { _ = events.Close() })
			defer stop()
			for event := range events.Channel() {
				o.handleEvent(addr, event, switched)
			}
		})
	}
	all.Wait()
}

// handleEvent takes an event of one sentinel. The words of +switch-master are the name, the old address and the new
// one; those of the other events are "master", the name and the address.
func (o Options) handleEvent(sentinel string, event *redis.Message, switched func()) {
	name, words := o.sentinel.MasterName, strings.Fields(event.Payload)
	switch {
	case event.Channel == "+switch-master" && len(words) == 5 && words[0] == name:
		old := net.JoinHostPort(words[1], words[2])
		o.setFailover(sentinel, old)
		switched()
		o.setFailover("", old)
	case len(words) != 4 || words[0] != "master" || words[1] != name:
	case event.Channel == "+failover-state-select-slave":
		o.setFailover(sentinel, net.JoinHostPort(words[2], words[3]))
	case strings.HasPrefix(event.Channel, "-failover-abort-") && o.failover.Load().leader == sentinel:
		o.setFailover("", "")
	}
}
