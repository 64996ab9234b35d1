package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"authsession/internal/config"
	"authsession/internal/redisconn"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

const (
	maxSkew    = 2 * time.Second  // between Redis's clock and ours
	maxQueued  = 8192             // writes that wait for Redis
	maxDirect  = 16               // concurrent writes without the queue; see redisconn's retries
	checkEvery = 30               // seconds between checks while all is well; else a check each second
	probeTTL   = 10 * time.Second // lifetime of the key that a check writes
	probeKeys  = 4096             // tried to find a key of each primary of a cluster
)

var (
	errNotOK       = errors.New("redis answered something other than OK")
	errClock       = errors.New("redis's clock is off ours")
	errReplicas    = errors.New("too few replicas have what was written")
	errNoSlots     = errors.New("no primary of the cluster has slots")
	errClusterNode = errors.New("this is a cluster's node, which takes only some sessions: set REDIS_MODE=cluster")
)

// store keeps session records in Redis. It is safe for concurrent use.
type store struct {
	redis    redisconn.Options
	prefix   string        // of all keys
	timeout  time.Duration // for all Redis work of one call
	replicas int           // that must have a write, too
	seconds  prometheus.Observer
	log      *slog.Logger
	ctx      context.Context // of every call; close ends it
	cancel   context.CancelFunc

	conn   atomic.Pointer[connection]
	shared atomic.Pointer[context.Context] // what deadline returns
	writes atomic.Int64                    // calls of put under way
	queued atomic.Int64                    // those of them in the queue
	skew   atomic.Int64                    // what clockSkew returns, in nanoseconds

	mu       sync.Mutex
	checking func() error     // the check under way; nil: none
	failing  map[string]error // what primariesFailing returns

	warnEviction sync.Once
}

// connection is two clients of one Redis, because a client with a queue closes only after all its replies.
type connection struct {
	client  redis.UniversalClient // for few writes at once, and checks
	batches redis.UniversalClient
	queue   *redis.AutoPipeliner // of batches: for writes that share round trips
}

func (c *connection) close() {
	_ = c.client.Close()
	go func() { _ = c.batches.Close() }()
}

// openStore does not connect yet; the first call does. seconds observes the duration of each put.
func openStore(cfg config.Config, seconds prometheus.Observer, log *slog.Logger) *store {
	s := &store{redis: cfg.Redis, prefix: cfg.KeyPrefix, timeout: cfg.StoreTimeout, replicas: cfg.WaitReplicas,
		seconds: seconds, log: log}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.connect()
	return s
}

// connect opens a connection, and closes the one before it.
func (s *store) connect() {
	// go-redis marks this API as experimental, so a person updates its minor versions (.github/dependabot.yml). Two
	// batches at once gave the most requests a second at 64 connections; one gave 0.98 of it, four 0.85.
	c := &connection{client: s.redis.Open(s.timeout), batches: s.redis.Open(s.timeout)}
	var err error
	c.queue, err = c.batches.AsyncAutoPipelineWithOptions(&redis.AutoPipelineOptions{
		MaxConcurrentBatches: 2, Unordered: true, MaxQueuedCommands: maxQueued})
	if err != nil {
		panic(err) // these options are valid, and the client is open
	}
	if old := s.conn.Swap(c); old != nil {
		old.close()
	}
}

// close ends the calls under way and closes the connections.
func (s *store) close() {
	s.cancel()
	s.conn.Load().close()
}

// put stores record under name; it expires at expiresAt, a future Unix time in seconds. nil means that the primary
// answered OK. After an error the record may be there all the same, and then expires at expiresAt. It takes no context,
// because net/http cancels a request's when the caller half-closes, and such a caller waits for its session.
func (s *store) put(name string, record []byte, expiresAt int64) error {
	start := time.Now()
	defer func() { s.seconds.Observe(time.Since(start).Seconds()) }()
	if err := s.unsafe(); err != nil {
		return err
	}
	ctx, conn := s.deadline(), s.conn.Load()
	if err := s.write(ctx, conn, newSet(ctx, s.prefix+name, record, expiresAt)); err != nil {
		return redisconn.NamedError(conn.client, err)
	}
	if conn != s.conn.Load() { // a failover passed meanwhile, so the OK may be the old primary's
		return redisconn.ErrFailover
	}
	return s.unsafe()
}

// deadline returns a context that ends when the timeout has passed, or up to 50 ms later. Concurrent puts share it,
// because a context with a timer for each cost 1 to 9% of the CPU a request.
func (s *store) deadline() context.Context {
	if shared := s.shared.Load(); shared != nil {
		if end, _ := (*shared).Deadline(); time.Until(end) > s.timeout {
			return *shared
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout+50*time.Millisecond)
	context.AfterFunc(ctx, cancel)
	s.shared.Store(&ctx)
	return ctx
}

// unsafe returns why an OK of Redis proves nothing now, or nil.
func (s *store) unsafe() error {
	if skew := s.clockSkew(); skew.Abs() > maxSkew {
		return fmt.Errorf("%w by %s, more than %s", errClock, skew.Round(time.Millisecond), maxSkew)
	}
	return s.redis.FailoverErr()
}

// newSet makes a plain SET with EXAT. With NX, a retry after a lost reply would find its own key.
func newSet(ctx context.Context, key string, value []byte, expiresAt int64) *redis.StatusCmd {
	return redis.NewStatusCmd(ctx, "set", key, value, "exat", expiresAt)
}

// write sends set. Few concurrent writes go straight to the client, because the queue makes writes wait for each other:
// through it, 16 connections made 0.83 of the requests a second. More writes go through the queue until it is empty.
func (s *store) write(ctx context.Context, conn *connection, set *redis.StatusCmd) error {
	direct := s.writes.Add(1) <= maxDirect && s.queued.Load() == 0
	defer s.writes.Add(-1)
	var err error
	switch {
	case s.replicas > 0:
		node, _ := conn.client.(*redis.Client)
		if cluster, ok := conn.client.(*redis.ClusterClient); ok {
			if node, err = cluster.MasterForKey(ctx, set.Args()[1].(string)); err != nil {
				return err
			}
		}
		return s.writeTo(ctx, node, set)
	case direct:
		err = conn.client.Process(ctx, set)
	default:
		s.queued.Add(1)
		defer s.queued.Add(-1)
		err = conn.queue.Submit(ctx, set).WaitContext(ctx)
	}
	if err == nil && set.Val() != "OK" {
		err = errNotOK
	}
	return err
}

// writeTo sends set to a primary in a pipeline of its own, along with questions that have their own replies. With
// REDIS_WAIT_REPLICAS, WAIT comes last: it counts the replicas that have the writes of its own connection.
func (s *store) writeTo(ctx context.Context, node *redis.Client, set *redis.StatusCmd, questions ...redis.Cmder) error {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline) * 3 / 4 // the reply to WAIT may come 100 ms late
	wait := redis.NewIntCmd(ctx, "wait", s.replicas, max(1, left.Milliseconds()))
	pipe := node.Pipeline()
	_ = pipe.Process(ctx, set)
	for _, question := range questions {
		_ = pipe.Process(ctx, question)
	}
	if s.replicas > 0 {
		_ = pipe.Process(ctx, wait)
	}
	_, sendErr := pipe.Exec(ctx)
	switch have, err := wait.Result(); {
	case set.Err() != nil:
		return set.Err()
	case set.Val() == "": // go-redis leaves the reply empty where nothing was sent
		return cmp.Or(sendErr, errNotOK)
	case set.Val() != "OK":
		return errNotOK
	case err != nil:
		return fmt.Errorf("waiting for replicas: %w", err)
	case have < int64(s.replicas):
		return fmt.Errorf("%w: %d, not %d", errReplicas, have, s.replicas)
	}
	return nil
}

// timedOut reports whether an error of put or check is that Redis did not answer in time.
func timedOut(err error) bool {
	netErr, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, redis.ErrPoolTimeout) || ok && netErr.Timeout()
}

// clockSkew returns how far Redis's clock was ahead of ours when last asked; the worst primary's.
func (s *store) clockSkew() time.Duration { return time.Duration(s.skew.Load()) }

// primariesFailing returns the primaries that took no session at the last check, by address.
func (s *store) primariesFailing() map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing
}

// check returns why no session can be written now, or nil. Of a cluster one working primary is enough. The error may
// hold addresses, which publicReason leaves out. Concurrent calls share one check.
func (s *store) check() error {
	s.mu.Lock()
	if s.checking == nil {
		s.checking = sync.OnceValue(func() error {
			failing, err := s.ask(true)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.checking, s.failing = nil, failing
			return err
		})
	}
	check := s.checking
	s.mu.Unlock()
	return check()
}

// ask asks each primary for its clock and, with write, writes a key to it as a session would be written. It returns the
// primaries that fail, by address, and an error if none works.
func (s *store) ask(write bool) (failing map[string]error, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	failing = map[string]error{}
	var mu sync.Mutex
	var working bool
	var failure error
	var worst time.Duration
	client := s.conn.Load().client
	err = redisconn.EachPrimary(ctx, client, func(ctx context.Context, node *redis.Client) error {
		skew, probed, err := s.askPrimary(ctx, client, node, write)
		mu.Lock()
		defer mu.Unlock()
		if skew.Abs() > worst.Abs() {
			worst = skew
		}
		working = working || probed && err == nil
		if err != nil {
			failing[node.Options().Addr], failure = err, err
		}
		return nil
	})
	s.skew.Store(int64(worst))
	switch {
	case err != nil: // a cluster that does not tell its primaries
		failing["the cluster"] = err
		return failing, err
	case working:
		return failing, s.unsafe()
	}
	return failing, cmp.Or(failure, errNoSlots)
}

// askPrimary asks one primary. skew is how far its clock is ahead of ours, or what is known if it does not tell. probed
// is false for a primary without sessions, because the prefix has a hash tag of another one. INFO and HELLO go along,
// to detect an evicting policy and a cluster's node behind a standalone URL; an ACL may deny both.
func (s *store) askPrimary(ctx context.Context, client redis.UniversalClient, node *redis.Client, write bool) (
	skew time.Duration, probed bool, err error) {
	key := s.prefix + "probe"
	cluster, isCluster := client.(*redis.ClusterClient)
	for i := 0; isCluster && write; i++ {
		key = fmt.Sprintf("%sprobe:%d", s.prefix, i)
		if owner, err := cluster.MasterForKey(ctx, key); err != nil || i == probeKeys {
			return 0, false, err
		} else if owner == node {
			break
		}
	}
	asked := time.Now()
	clock := redis.NewTimeCmd(ctx, "time")
	memory, hello := redis.NewStringCmd(ctx, "info", "memory"), redis.NewSliceCmd(ctx, "hello")
	if write {
		set := newSet(ctx, key, []byte("1"), asked.Add(probeTTL).Unix())
		err = s.writeTo(ctx, node, set, clock, memory, hello)
	} else {
		_ = node.Process(ctx, clock)
	}
	if theirs, clockErr := clock.Result(); clockErr != nil || theirs.IsZero() { // go-redis does not give it AUTH's error
		skew, err = s.clockSkew(), cmp.Or(err, clockErr)
	} else if behind := asked.Sub(theirs); behind > 0 {
		skew = -behind
	} else {
		skew = max(0, time.Until(theirs)) // the time on the way is left out
	}
	_, after, _ := strings.Cut(memory.Val(), "maxmemory_policy:")
	if policy, _, _ := strings.Cut(after, "\r"); policy != "" && policy != "noeviction" {
		s.warnEviction.Do(func() {
			s.log.Warn("redis may drop sessions that callers were promised: set maxmemory-policy noeviction",
				"maxmemory_policy", policy)
		})
	}
	if !isCluster && slices.Contains(hello.Val(), any("cluster")) {
		err = errClusterNode
	}
	return skew, true, err
}

// publicReason is an error of check without addresses and without what else callers need not see.
func publicReason(err error) string {
	for _, known := range []error{errClock, errReplicas, errNoSlots, errClusterNode, redisconn.ErrFailover,
		redisconn.ErrNoAddresses} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	refusal, refused := errors.AsType[redis.Error](err)
	errno, failed := errors.AsType[syscall.Errno](err)
	switch {
	case timedOut(err):
		return "no answer in time"
	case refused && !errors.Is(err, redis.Nil):
		code, _, _ := strings.Cut(refusal.Error(), " ")
		return code
	case failed:
		return errno.Error()
	}
	return "its connection or its answer is broken"
}

// watch asks for the clock each second, and checks the store, until ctx ends. It logs when the store starts or stops
// working, in whole or in part.
func (s *store) watch(ctx context.Context) {
	before := "not known"
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for seconds := 0; ctx.Err() == nil; seconds++ {
		if before == "" && s.unsafe() == nil && seconds%checkEvery != 0 {
			_, _ = s.ask(false)
		} else {
			err := s.check()
			now := strings.Join(slices.Sorted(maps.Keys(s.primariesFailing())), " ")
			if err != nil {
				now = "all"
			}
			switch {
			case now == before || ctx.Err() != nil:
			case err != nil:
				s.log.Error("redis takes no sessions", "cause", err.Error())
			case now != "":
				s.log.Error("redis takes only some sessions", "primaries_failing", fmt.Sprint(s.primariesFailing()))
			default:
				s.log.Info("redis takes sessions")
			}
			before = now
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
