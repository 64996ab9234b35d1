package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	maxSkew      = 2 * time.Second  // between Redis's clock and ours
	checkEvery   = 30 * time.Second // of a store that is well
	recheckEvery = time.Second      // of one that is not
	probeTTL     = 10 * time.Second // of the key that a check writes
	probeKeys    = 4096             // tried to find one of a primary's

	// A retry follows a connection that broke or a server that loads or fails over.
	// As many as may find a dead connection in the pool after a restart, and short
	// enough together that a request is refused in 100 ms where nothing listens.
	retries      = 5
	leastBackoff = time.Millisecond
	mostBackoff  = 8 * time.Millisecond

	mostPool = 100_000 // connections

	// Batches are few and small: the ordinary pool's connections serve them.
	noPipelinePool = -1

	// With RESP3 go-redis would look before each reply for pushes, which nobody here asks for.
	resp2 = 2
)

// redisOptions is how to reach Redis, in one of its modes: one member is set.
type redisOptions struct {
	standalone *redis.Options
	sentinel   *redis.FailoverOptions
	cluster    *redis.ClusterOptions
}

// parseRedisURL reads text in go-redis's format for the mode. password, where there is
// one, replaces the URL's; roots, which need rediss, replace the system's. The error
// quotes nothing of the URL: go-redis's own may quote the end of a password.
func parseRedisURL(mode, text, password string, roots *x509.CertPool) (o redisOptions, err error) {
	var secure *tls.Config
	var poolSize int
	switch mode {
	case "sentinel":
		if o.sentinel, err = redis.ParseFailoverURL(text); err == nil {
			o.sentinel.Password = cmp.Or(password, o.sentinel.Password)
			secure, poolSize = o.sentinel.TLSConfig, o.sentinel.PoolSize
			if o.sentinel.MasterName == "" {
				return o, errors.New("it needs master_name in its query")
			}
			if o.sentinel.ReplicaOnly || o.sentinel.RouteByLatency || o.sentinel.RouteRandomly {
				return o, errors.New("sessions go to the primary, not where replica_only or route_ say")
			}
		}
	case "cluster":
		if o.cluster, err = redis.ParseClusterURL(text); err == nil {
			o.cluster.Password = cmp.Or(password, o.cluster.Password)
			secure, poolSize = o.cluster.TLSConfig, o.cluster.PoolSize
		}
	default:
		if o.standalone, err = redis.ParseURL(text); err == nil {
			o.standalone.Password = cmp.Or(password, o.standalone.Password)
			secure, poolSize = o.standalone.TLSConfig, o.standalone.PoolSize
		}
	}
	if err != nil {
		return o, errors.New("its scheme, host, path or query does not fit")
	}
	if poolSize < 0 || poolSize > mostPool {
		return o, fmt.Errorf("pool_size must be at most %d", mostPool) // go-redis would panic
	}
	if roots != nil && secure == nil {
		return o, errors.New("REDIS_CA_FILE needs rediss://")
	}
	if secure != nil {
		secure.RootCAs = roots
		if mode != "standalone" {
			secure.ServerName = "" // each node answers for its own name
		}
	}
	return o, nil
}

// store keeps session records in Redis.
type store struct {
	redis   redis.UniversalClient
	prefix  string
	timeout time.Duration // for all Redis work of one call
	log     *slog.Logger
	evicts  atomic.Pointer[string] // an eviction policy that is not noeviction; nil: none seen

	skew       atomic.Int64         // ns that Redis's clock was ahead at the last check, the worst node's
	took       prometheus.Histogram // of put, in seconds
	batchSizes prometheus.Histogram // in records

	mu      sync.Mutex
	lanes   map[*redis.Client]*lane // of the nodes that writes wait for or are on their way to
	unended []*write                // those without an outcome, and some that had theirs since the last tick
	ticking bool                    // tick is going to be called
	probe   *probe                  // under way; nil: none
}

// openStore does not connect yet; the first call does. The timeouts of one step are
// that of the whole call: a reply that comes within it is used.
func openStore(o redisOptions, prefix string, timeout time.Duration, log *slog.Logger) *store {
	s := &store{
		prefix: prefix, timeout: timeout, log: log, lanes: map[*redis.Client]*lane{},
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "authsession_redis_write_duration_seconds", Help: "Time of one session's write, waiting included.", Buckets: seconds,
		}),
		batchSizes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "authsession_redis_batch_size", Help: "Records that went to Redis together.", Buckets: []float64{1, 2, 4, 8, 16, 32, 64, batchSize},
		}),
	}
	off := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch {
	case o.sentinel != nil:
		o := o.sentinel
		o.ContextTimeoutEnabled, o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = true, timeout, timeout, timeout, timeout
		o.MaxRetries, o.MinRetryBackoff, o.MaxRetryBackoff, o.DialerRetries = retries, leastBackoff, mostBackoff, 1
		o.DisableIdentity, o.PipelinePoolSize, o.Protocol = true, noPipelinePool, resp2
		s.redis = redis.NewFailoverClient(o)
	case o.cluster != nil:
		o := o.cluster
		o.ContextTimeoutEnabled, o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = true, timeout, timeout, timeout, timeout
		o.MaxRedirects, o.MinRetryBackoff, o.MaxRetryBackoff, o.DialerRetries = retries, leastBackoff, mostBackoff, 1
		o.DisableIdentity, o.PipelinePoolSize, o.MaintNotificationsConfig, o.Protocol = true, noPipelinePool, off, resp2
		o.ClusterStateReloadInterval = recheckEvery // a dead primary names no successor
		s.redis = redis.NewClusterClient(o)
	default:
		o := o.standalone
		o.ContextTimeoutEnabled, o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = true, timeout, timeout, timeout, timeout
		o.MaxRetries, o.MinRetryBackoff, o.MaxRetryBackoff, o.DialerRetries = retries, leastBackoff, mostBackoff, 1
		o.DisableIdentity, o.PipelinePoolSize, o.MaintNotificationsConfig, o.Protocol = true, noPipelinePool, off, resp2
		s.redis = redis.NewClient(o)
	}
	return s
}

func (s *store) close() error { return s.redis.Close() }

// put writes value under key, to be dropped at expiresAt, a Unix second to come. nil means that
// the primary has answered OK; after any other outcome the record may be there, and
// if so dies at expiresAt. It ends by the store's timeout or a tick or two later, with
// context.DeadlineExceeded where Redis took longer. There is no caller's context:
// net/http cancels a request's when the caller half-closes, and a session is wanted then too.
func (s *store) put(key string, value []byte, expiresAt int64) error {
	now := time.Now()
	w := &write{key: key, set: setRecord(context.Background(), key, value, expiresAt), deadline: now.Add(s.timeout), done: make(chan error, 1)}
	defer func() { s.took.Observe(time.Since(now).Seconds()) }()
	node, err := s.nodeFor(w)
	if err != nil {
		return err
	}
	if err := s.send(node, w); err != nil {
		return err
	}
	return <-w.done
}

// nodeFor is the client of the primary that w's key belongs to.
func (s *store) nodeFor(w *write) (*redis.Client, error) {
	cluster, ok := s.redis.(*redis.ClusterClient)
	if !ok {
		return s.redis.(*redis.Client), nil
	}
	ctx, cancel := context.WithDeadline(context.Background(), w.deadline)
	defer cancel()
	return cluster.MasterForKey(ctx, w.key)
}

// setRecord is a plain SET with EXAT. With NX, the retry after a lost reply would find its own key.
func setRecord(ctx context.Context, key string, value []byte, expiresAt int64) *redis.StatusCmd {
	return redis.NewStatusCmd(ctx, "set", key, value, "exat", expiresAt)
}

var errNotOK = errors.New("redis answered something other than OK")

// stored is nil where Redis's reply to setRecord is OK, the only one that counts.
func stored(reply *redis.StatusCmd) error {
	if reply.Err() == nil && reply.Val() != "OK" {
		return errNotOK
	}
	return reply.Err()
}

// timedOut tells whether a store's error is that Redis did not answer in time.
func timedOut(err error) bool {
	netErr, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, redis.ErrPoolTimeout) || ok && netErr.Timeout()
}

var errClock = errors.New("redis's clock is off ours")

// checkClock tells how far the clock of a reply to TIME, asked for at sent, is ahead of
// ours, by more than the reply's way may account for. It fails where that is over 2 s
// either way.
func checkClock(reply *redis.TimeCmd, sent time.Time) (ahead time.Duration, err error) {
	theirs, err := reply.Result()
	if err != nil {
		return 0, fmt.Errorf("reading redis's clock: %w", err)
	}
	ahead = max(0, time.Until(theirs))
	if behind := sent.Sub(theirs); behind > 0 {
		ahead = -behind
	}
	if ahead.Abs() > maxSkew {
		return ahead, fmt.Errorf("%w by %s, more than %s", errClock, ahead.Round(time.Millisecond), maxSkew)
	}
	return ahead, nil
}

// probe is a check under way that later callers share.
type probe struct {
	done chan struct{}
	err  error // once done
}

// check tells whether a session could be written now: Redis takes a write on every
// primary that would get one, and its clock is within 2 s of ours. Calls at
// the same time share one check. The error names what is wrong.
func (s *store) check() error {
	s.mu.Lock()
	p := s.probe
	if p == nil {
		p = &probe{done: make(chan struct{})}
		s.probe = p
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
			defer cancel()
			p.err = s.checkNow(ctx)
			s.mu.Lock()
			s.probe = nil
			s.mu.Unlock()
			close(p.done)
		}()
	}
	s.mu.Unlock()
	<-p.done
	return p.err
}

func (s *store) checkNow(ctx context.Context) error {
	s.skew.Store(0)
	cluster, ok := s.redis.(*redis.ClusterClient)
	if !ok {
		return s.checkNode(ctx, s.redis.(*redis.Client), s.prefix+"probe")
	}
	var probed atomic.Bool // ForEachMaster is concurrent
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		// A key falls on one of n primaries with probability 1/n. Where none falls on this
		// one the prefix has a hash tag, and all sessions lie on another.
		for i := range probeKeys {
			key := fmt.Sprintf("%sprobe:%d", s.prefix, i)
			owner, err := cluster.MasterForKey(ctx, key)
			if err != nil {
				return err
			}
			if owner == node {
				probed.Store(true)
				return s.checkNode(ctx, node, key)
			}
		}
		return nil
	})
	if err == nil && !probed.Load() {
		return errors.New("no primary of the cluster has slots")
	}
	return err
}

// checkNode writes key to a primary and compares clocks, in one round trip as a session's.
// Along goes what tells a node of a cluster, and a policy by which Redis may drop what it
// has acknowledged: where the ACL forbids to ask, or Redis does not know it, so be it.
func (s *store) checkNode(ctx context.Context, node *redis.Client, key string) error {
	sent := time.Now()
	pipe := node.Pipeline()
	set := setRecord(ctx, key, []byte("1"), sent.Add(probeTTL).Unix())
	_ = pipe.Process(ctx, set) // the first, as go-redis retries by the first one's error
	clock, memory, hello := pipe.Time(ctx), pipe.Info(ctx, "memory"), pipe.Do(ctx, "HELLO")
	_, execErr := pipe.Exec(ctx)

	_, after, _ := strings.Cut(memory.Val(), "maxmemory_policy:")
	policy, _, _ := strings.Cut(after, "\r")
	if policy != "" && policy != "noeviction" {
		s.evicts.Store(&policy)
	}
	cluster, ok := s.redis.(*redis.ClusterClient)
	if facts, _ := hello.Slice(); !ok && slices.Contains(facts, any("cluster")) { // its mode
		return errors.New("this is a node of a cluster, which takes only some sessions: set REDIS_MODE=cluster")
	}
	err := stored(set)
	switch {
	case err == errNotOK && clock.Val().IsZero():
		return execErr // nothing was sent: go-redis leaves such replies as they were
	case err != nil && ok:
		_ = cluster.Process(ctx, set) // the slot may have moved
		err = stored(set)
	}
	if err != nil {
		return err
	}
	ahead, err := checkClock(clock, sent)
	for old := s.skew.Load(); ahead.Abs() > time.Duration(old).Abs() && !s.skew.CompareAndSwap(old, int64(ahead)); old = s.skew.Load() {
	}
	return err
}

// watch checks the store until ctx ends, and logs when it begins or ceases to be well,
// and once when it may evict sessions.
func (s *store) watch(ctx context.Context) {
	well, warned := false, false
	for first := true; ; first = false {
		err := s.check()
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil && !well:
			s.log.Info("redis takes sessions")
		case err != nil && (well || first):
			s.log.Error("redis takes no sessions", "cause", err.Error())
		}
		well = err == nil
		if policy := s.evicts.Load(); policy != nil && !warned {
			s.log.Warn("redis may drop sessions that callers were promised: set maxmemory-policy noeviction", "maxmemory_policy", *policy)
			warned = true
		}
		wait := recheckEvery
		if well {
			wait = checkEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// quietLogger passes on go-redis's own log, a line in ten seconds at most: in an
// outage it says the same for each connection.
type quietLogger struct {
	log  *slog.Logger
	next atomic.Int64 // Unix ns
	lost atomic.Int64 // lines since the last one
}

func (l *quietLogger) Printf(_ context.Context, format string, args ...any) {
	now, next := time.Now().UnixNano(), l.next.Load()
	if now < next || !l.next.CompareAndSwap(next, now+int64(10*time.Second)) {
		l.lost.Add(1)
		return
	}
	l.log.Warn("redis client", "says", fmt.Sprintf(format, args...), "lines_dropped", l.lost.Swap(0))
}
