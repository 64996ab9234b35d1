// Package redisurl opens Redis as a URL in go-redis's format says, in one of three modes, with the service's own
// timeouts, retries and protocol instead of the URL's.
package redisurl

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// The modes.
const (
	Standalone = "standalone"
	Sentinel   = "sentinel"
	Cluster    = "cluster"
)

const (
	// A retry follows a connection that broke, or a server that loads or fails over. There are as many as may find a
	// dead connection in the pool after a restart, and they are short enough together that a request is refused
	// within 100 ms where nothing listens.
	retries      = 5
	leastBackoff = time.Millisecond
	mostBackoff  = 8 * time.Millisecond

	maxPool        = 100_000     // connections
	reloadEvery    = time.Second // of a cluster's slots: a dead primary names no successor
	noPipelinePool = -1          // pipelines are few and small: the ordinary pool's connections serve them
	resp2          = 2           // with RESP3 go-redis looks before each reply for pushes, which nobody here asks for
)

// Options is how to reach Redis.
type Options struct {
	standalone *redis.Options // of these three one is set
	sentinel   *redis.FailoverOptions
	cluster    *redis.ClusterOptions
	secure     *tls.Config // the same one's; nil: no TLS
}

// Parse reads a URL in go-redis's format for the mode. password, unless "", replaces the URL's; in sentinel mode it is
// the data nodes'. roots, unless nil, replace the system's and need rediss. An error quotes nothing of the URL:
// go-redis's own may quote the end of a password.
func Parse(mode, url, password string, roots *x509.CertPool) (o Options, err error) {
	var poolSize int
	switch mode {
	case Sentinel:
		if o.sentinel, err = redis.ParseFailoverURL(url); err == nil {
			o.sentinel.Password = cmp.Or(password, o.sentinel.Password)
			o.secure, poolSize = o.sentinel.TLSConfig, o.sentinel.PoolSize
			if o.sentinel.MasterName == "" {
				return o, errors.New("it needs master_name in its query")
			}
			if o.sentinel.ReplicaOnly || o.sentinel.RouteByLatency || o.sentinel.RouteRandomly {
				return o, errors.New("sessions go to the primary, not where replica_only or route_ say")
			}
		}
	case Cluster:
		if o.cluster, err = redis.ParseClusterURL(url); err == nil {
			o.cluster.Password = cmp.Or(password, o.cluster.Password)
			o.secure, poolSize = o.cluster.TLSConfig, o.cluster.PoolSize
		}
	default:
		if o.standalone, err = redis.ParseURL(url); err == nil {
			o.standalone.Password = cmp.Or(password, o.standalone.Password)
			o.secure, poolSize = o.standalone.TLSConfig, o.standalone.PoolSize
		}
	}
	if err != nil {
		return o, errors.New("its scheme, host, path or query does not fit")
	}
	if poolSize < 0 || poolSize > maxPool {
		return o, fmt.Errorf("pool_size must be at most %d", maxPool) // go-redis would panic
	}
	if roots != nil && o.secure == nil {
		return o, errors.New("REDIS_CA_FILE needs rediss://")
	}
	if o.secure != nil {
		o.secure.RootCAs = roots
		if mode != Standalone {
			o.secure.ServerName = "" // each node answers for its own name
		}
	}
	return o, nil
}

// SkipsVerify tells whether the URL asks to take any certificate for Redis's.
func (o Options) SkipsVerify() bool { return o.secure != nil && o.secure.InsecureSkipVerify }

// Open returns a client, which connects when it is first used. Each step of a call may take as long as the whole call,
// timeout: a reply that comes within it is used.
func (o Options) Open(timeout time.Duration) redis.UniversalClient {
	return o.open(timeout, newDialer(o.secure, timeout))
}

func (o Options) open(timeout time.Duration, d *dialer) redis.UniversalClient {
	off := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch {
	case o.sentinel != nil:
		c := *o.sentinel
		c.Dialer, c.ContextTimeoutEnabled = d.dial, true
		c.DialTimeout, c.ReadTimeout, c.WriteTimeout, c.PoolTimeout = timeout, timeout, timeout, timeout
		c.MaxRetries, c.MinRetryBackoff, c.MaxRetryBackoff, c.DialerRetries = retries, leastBackoff, mostBackoff, 1
		c.DisableIdentity, c.PipelinePoolSize, c.Protocol = true, noPipelinePool, resp2
		client := redis.NewFailoverClient(&c)
		client.AddHook(d)
		return client
	case o.cluster != nil:
		c := *o.cluster
		d.retried, c.MaxRetries = true, -1 // the cluster's client tries again
		c.Dialer, c.ContextTimeoutEnabled = d.dial, true
		c.DialTimeout, c.ReadTimeout, c.WriteTimeout, c.PoolTimeout = timeout, timeout, timeout, timeout
		c.MaxRedirects, c.MinRetryBackoff, c.MaxRetryBackoff, c.DialerRetries = retries, leastBackoff, mostBackoff, 1
		c.DisableIdentity, c.PipelinePoolSize, c.Protocol = true, noPipelinePool, resp2
		c.MaintNotificationsConfig, c.ClusterStateReloadInterval = off, reloadEvery
		return redis.NewClusterClient(&c)
	}
	c := *o.standalone
	c.Dialer, c.ContextTimeoutEnabled = d.dial, true
	c.DialTimeout, c.ReadTimeout, c.WriteTimeout, c.PoolTimeout = timeout, timeout, timeout, timeout
	c.MaxRetries, c.MinRetryBackoff, c.MaxRetryBackoff, c.DialerRetries = retries, leastBackoff, mostBackoff, 1
	c.DisableIdentity, c.PipelinePoolSize, c.Protocol = true, noPipelinePool, resp2
	c.MaintNotificationsConfig = off
	return redis.NewClient(&c)
}

// LogTo makes log the log of all Redis clients of the process, one line in ten seconds at most: in an outage go-redis
// says the same for each connection.
func LogTo(log *slog.Logger) { redis.SetLogger(&sparseLog{log: log}) }

type sparseLog struct {
	log     *slog.Logger
	next    atomic.Int64 // Unix ns, before which nothing is logged
	dropped atomic.Int64 // lines since the last one
}

func (l *sparseLog) Printf(_ context.Context, format string, args ...any) {
	now, next := time.Now().UnixNano(), l.next.Load()
	if now < next || !l.next.CompareAndSwap(next, now+int64(10*time.Second)) {
		l.dropped.Add(1)
		return
	}
	l.log.Warn("redis client", "says", fmt.Sprintf(format, args...), "lines_dropped", l.dropped.Swap(0))
}
