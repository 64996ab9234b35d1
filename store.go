package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"authsession/internal/groupcommit"
	"authsession/internal/redisurl"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

const (
	checkEvery   = 30 * time.Second // while the store is well
	recheckEvery = time.Second      // while it is not
	probeTTL     = 10 * time.Second // of the key that a check writes
	probeKeys    = 4096             // tried to find one that belongs to a primary
)

// store keeps session records in Redis.
type store struct {
	client  redis.UniversalClient
	writer  *groupcommit.Writer
	prefix  string        // of all keys
	timeout time.Duration // for all Redis work of one call
	took    prometheus.Observer
	log     *slog.Logger

	mu       sync.Mutex
	checking func() error  // the check under way; nil: none
	skew     time.Duration // what clockSkew returns
	evicts   string        // an eviction policy that is not noeviction; "": none seen
}

// openStore does not connect yet; the first call does. took observes the time of each put in seconds, batches how many
// records each pipeline has.
func openStore(o redisurl.Options, prefix string, timeout time.Duration,
	took, batches prometheus.Observer, log *slog.Logger) *store {
	client := o.Open(timeout)
	return &store{client: client, writer: groupcommit.New(client, timeout, batches, log),
		prefix: prefix, timeout: timeout, took: took, log: log}
}

func (s *store) close() error { return s.client.Close() }

// put writes a client's record under a name, to be dropped at expiresAt, a Unix second to come. nil means that the
// primary has answered OK; after any error the record may be there, and if so dies at expiresAt. groupcommit.TimedOut
// tells whether Redis took longer than the store's timeout.
func (s *store) put(client, name string, record []byte, expiresAt int64) error {
	start := time.Now()
	defer func() { s.took.Observe(time.Since(start).Seconds()) }()
	return s.writer.Set(client, s.prefix+name, record, expiresAt)
}

// check tells whether a session could be written now: Redis takes a write on every primary that would get one, and its
// clock is within 2 s of ours. The error names what is wrong. Calls at the same time share one check.
func (s *store) check() error {
	s.mu.Lock()
	if s.checking == nil {
		s.checking = sync.OnceValue(func() error {
			defer func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.checking = nil
			}()
			return s.checkNow()
		})
	}
	check := s.checking
	s.mu.Unlock()
	return check()
}

func (s *store) checkNow() (err error) {
	defer s.writer.Survive(&err)
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	s.mu.Lock()
	s.skew = 0
	s.mu.Unlock()
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return s.checkNode(ctx, s.client.(*redis.Client), s.prefix+"probe")
	}
	var probed atomic.Bool // ForEachMaster is concurrent
	err = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) (err error) {
		defer s.writer.Survive(&err)
		// One key in n belongs to a primary of n. Where none of so many belongs to this one the prefix has a hash tag,
		// and all sessions lie on another.
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

// checkNode writes key to a primary as a session would be written. Along with it go INFO memory and HELLO, to detect an
// evicting policy and a cluster node behind a standalone URL. The latter is an error. Both commands are optional: an
// ACL may deny them.
func (s *store) checkNode(ctx context.Context, node *redis.Client, key string) error {
	memory, hello := redis.NewStringCmd(ctx, "info", "memory"), redis.NewSliceCmd(ctx, "hello")
	skew, err := s.writer.Probe(node, key, probeTTL, memory, hello)
	_, after, _ := strings.Cut(memory.Val(), "maxmemory_policy:")
	policy, _, _ := strings.Cut(after, "\r")
	s.mu.Lock()
	if skew.Abs() > s.skew.Abs() {
		s.skew = skew
	}
	if policy != "" && policy != "noeviction" {
		s.evicts = policy
	}
	s.mu.Unlock()
	_, isClusterClient := s.client.(*redis.ClusterClient)
	if !isClusterClient && slices.Contains(hello.Val(), any("cluster")) {
		return errors.New("this is a node of a cluster, which takes only some sessions: set REDIS_MODE=cluster")
	}
	return err
}

// clockSkew is how far Redis's clock was ahead of ours at the last check; the worst node's.
func (s *store) clockSkew() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skew
}

// watch checks the store until ctx ends. It logs when the store begins or ceases to be well, and once when Redis may
// evict sessions.
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
		s.mu.Lock()
		policy := s.evicts
		s.mu.Unlock()
		if policy != "" && !warned {
			s.log.Warn("redis may drop sessions that callers were promised: set maxmemory-policy noeviction",
				"maxmemory_policy", policy)
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
