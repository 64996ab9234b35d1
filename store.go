package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
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
	failing  []failure     // what primariesFailing returns
	evicts   string        // an eviction policy that is not noeviction; "": none seen
}

// openStore does not connect yet; the first call does. took observes the time of each put in seconds, batches how many
// records each pipeline has.
func openStore(o redisurl.Options, prefix string, timeout time.Duration, replicas int,
	took, batches prometheus.Observer, log *slog.Logger) *store {
	client := o.Open(timeout)
	return &store{client: client, writer: groupcommit.New(client, timeout, replicas, batches, log),
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

var (
	errNoSlots     = errors.New("no primary of the cluster has slots")
	errClusterNode = errors.New(
		"this is a node of a cluster, which takes only some sessions: set REDIS_MODE=cluster")
)

// failure is a primary that takes no sessions.
type failure struct {
	addr string
	err  error
}

// check tells whether a session could be written now: Redis takes a write, and its clock is within 2 s of ours, on at
// least one primary where there are several. primariesFailing then has the others. The error may have addresses: lack
// says it without. Calls at the same time share one check.
func (s *store) check() error {
	s.mu.Lock()
	if s.checking == nil {
		s.checking = sync.OnceValue(func() error {
			err := s.checkNow()
			s.mu.Lock()
			defer s.mu.Unlock()
			s.checking = nil
			return err
		})
	}
	check := s.checking
	s.mu.Unlock()
	return check()
}

func (s *store) checkNow() (err error) {
	var mu sync.Mutex // ForEachMaster is concurrent
	var well bool     // some primary is
	var failing []failure
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failing = failing
	}()
	defer s.writer.Survive(&err)
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	s.mu.Lock()
	s.skew = 0
	s.mu.Unlock()
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		node := s.client.(*redis.Client)
		if err = s.checkNode(ctx, node, s.prefix+"probe"); err != nil {
			failing = []failure{{node.Options().Addr, err}}
		}
		return err
	}
	err = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		probed, err := s.checkPrimary(ctx, cluster, node)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failing = append(failing, failure{node.Options().Addr, err})
		} else if probed {
			well = true
		}
		return nil
	})
	switch {
	case err != nil:
		failing = append(failing, failure{"the cluster", err})
	case well:
	case failing == nil:
		return errNoSlots
	default:
		return failing[0].err
	}
	return err
}

// checkPrimary checks a cluster's primary by a key of its own. One key in n belongs to a primary of n. Where none of
// so many belongs to this one the prefix has a hash tag, all sessions lie on another, and probed is false.
func (s *store) checkPrimary(ctx context.Context, cluster *redis.ClusterClient, node *redis.Client) (
	probed bool, err error) {
	defer s.writer.Survive(&err)
	for i := range probeKeys {
		key := fmt.Sprintf("%sprobe:%d", s.prefix, i)
		owner, err := cluster.MasterForKey(ctx, key)
		if err != nil {
			return false, err
		}
		if owner == node {
			return true, s.checkNode(ctx, node, key)
		}
	}
	return false, nil
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
		return errClusterNode
	}
	return err
}

// lack says what an error of check is about, without an address or anything else that is not for callers.
func lack(err error) string {
	for _, known := range []error{groupcommit.ErrClock, groupcommit.ErrReplicas, redisurl.ErrDeposed,
		errNoSlots, errClusterNode} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	refusal, refused := errors.AsType[redis.Error](err)
	errno, failed := errors.AsType[syscall.Errno](err)
	switch {
	case groupcommit.TimedOut(err):
		return "no answer in time"
	case refused && !errors.Is(err, redis.Nil):
		code, _, _ := strings.Cut(refusal.Error(), " ")
		return code
	case failed:
		return errno.Error()
	}
	return "its connection or its answer is broken"
}

// clockSkew is how far Redis's clock was ahead of ours at the last check; the worst node's.
func (s *store) clockSkew() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skew
}

// primariesFailing are the primaries that took no session at the last check.
func (s *store) primariesFailing() []failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing
}

// watch checks the store until ctx ends. It logs when the store begins or ceases to be well, in whole or in part, and
// once when Redis may evict sessions.
func (s *store) watch(ctx context.Context) {
	before, warned := "not known", false
	for {
		err := s.check()
		if ctx.Err() != nil {
			return
		}
		var failing, causes []string
		for _, f := range s.primariesFailing() {
			failing, causes = append(failing, f.addr), append(causes, f.addr+": "+f.err.Error())
		}
		slices.Sort(failing)
		now := strings.Join(failing, " ")
		if err != nil {
			now = "all"
		}
		switch {
		case now == before:
		case err != nil:
			s.log.Error("redis takes no sessions", "cause", err.Error())
		case now != "":
			s.log.Error("redis takes only some sessions", "primaries_failing", causes)
		default:
			s.log.Info("redis takes sessions")
		}
		before = now
		s.mu.Lock()
		policy := s.evicts
		s.mu.Unlock()
		if policy != "" && !warned {
			s.log.Warn("redis may drop sessions that callers were promised: set maxmemory-policy noeviction",
				"maxmemory_policy", policy)
			warned = true
		}
		wait := recheckEvery
		if now == "" {
			wait = checkEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
