package groupcommit

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/redisurl"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// A dead primary of a cluster costs only its own sessions.
func TestClusterPrimaryDies(t *testing.T) {
	t.Parallel()
	nodes := redistest.Cluster(t)
	g := open(t, redisurl.Cluster, "redis://"+nodes[0].Addr, time.Second)
	for _, c := range callMany(g, 60, "p:before:") {
		if c.err != nil {
			t.Errorf("Set = %v after %s with all primaries there", c.err, c.took)
		}
	}
	nodes[2].Stop()
	fine := 0
	for i := range 60 {
		if g.Set("acme", fmt.Sprintf("p:after:%d", i), []byte("x"), soon()) == nil {
			fine++
		}
	}
	if fine < 20 || fine == 60 {
		t.Errorf("%d of 60 Sets work with one of three primaries dead, want some 40", fine)
	}
	wantIdle(t, g)
}

// While a slot moves, a key that is not in it yet belongs to the next owner, and once it has moved every key does. A
// write finds its node either way.
func TestClusterSlotMoves(t *testing.T) {
	t.Parallel()
	nodes := redistest.Cluster(t)
	g := open(t, redisurl.Cluster, "redis://"+nodes[0].Addr, time.Second)
	from, to := nodes[0].Client(t), nodes[1].Client(t)
	const key = "p:{b}:" // this and all keys that begin so lie in one slot, the first node's
	slot := from.ClusterKeySlot(t.Context(), key).Val()
	if slot >= 16384/3 {
		t.Fatalf("the slot of %s is %d, want one of the first node's", key, slot)
	}
	write := func(name string, on *redis.Client) {
		t.Helper()
		if err := g.Set("acme", key+name, []byte("x"), soon()); err != nil {
			t.Errorf("Set(%s) = %v", name, err)
		}
		if keys, err := on.Keys(t.Context(), key+name).Result(); err != nil || len(keys) != 1 {
			t.Errorf("KEYS %s on its node = %q, %v, want it", name, keys, err)
		}
	}
	write("before", from)
	fromID, toID := from.ClusterMyID(t.Context()).Val(), to.ClusterMyID(t.Context()).Val()
	testkit.Must(t, to.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err())
	testkit.Must(t, from.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "MIGRATING", toID).Err())
	write("before", from) // it is still there
	write("while", to)
	if _, err := g.Probe(nodeOf(t, g, key), key+"probe", time.Minute); err != nil {
		t.Errorf("Probe = %v while the slot moves", err)
	}

	testkit.Must(t, from.Del(t.Context(), key+"before").Err()) // a slot that has keys does not move
	testkit.Must(t, to.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "NODE", toID).Err())
	testkit.Must(t, from.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "NODE", toID).Err())
	write("after", to)
	wantIdle(t, g)

	late := newWrite("acme", key+"late", []byte("x"), time.Now().Unix(), time.Now().Add(time.Second))
	if err := g.redirect(g.client.(*redis.ClusterClient), late); !errors.Is(err, errExpired) {
		t.Errorf("redirect of a record that has expired = %v, want that", err)
	}
}

// nodeOf is the client of the primary that has key, as g's client believes.
func nodeOf(t *testing.T, g *Writer, key string) *redis.Client {
	t.Helper()
	node, err := g.nodeFor(newWrite("acme", key, nil, 0, time.Now().Add(time.Second)))
	testkit.Must(t, err)
	return node
}

// A sentinel's failover ends in time, with nothing acknowledged by what was primary.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	primary, replica, sentinel := redistest.Sentinel(t)
	g := open(t, redisurl.Sentinel, "redis://"+sentinel.Addr+"?master_name=mymaster", time.Second)
	noise := testkit.ListenForNoise(t)
	testkit.Must(t, g.Set("acme", "p:before", []byte("x"), soon()))
	primary.Stop()
	killed := time.Now()
	testkit.WaitFor(t, 10*time.Second, "Set to work again", func() bool {
		return g.Set("acme", "p:after", []byte("x"), soon()) == nil
	})
	// down-after is 0.5 s, a failover takes up to 3 s, and the machine may be slow.
	if took, most := time.Since(killed), 4500*time.Millisecond+noise.Within(killed, time.Now()); took > most {
		t.Errorf("the first Set after the failover took %s, want at most %s", took, most)
	}
	if n := replica.Client(t).Exists(t.Context(), "p:after").Val(); n != 1 {
		t.Error("what was acknowledged after the failover is not on the new primary")
	}
	wantIdle(t, g)
}
