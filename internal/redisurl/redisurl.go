// Package redisurl opens Redis as a URL in go-redis's format says, in one of three modes, with the service's own
// timeouts, retries and protocol instead of the URL's.
package redisurl

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
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
	deposed    *atomic.Pointer[deposed]
}

// Access is what the URL does not say of the way to Redis. Files are read again for each new connection, so that what
// they hold can change while the service runs.
type Access struct {
	PasswordFile string         // "": the URL's password counts. In sentinel mode it is the data nodes'
	Roots        *x509.CertPool // nil: the system's
	CertFile     string         // the client's certificate, in PEM; "": none
	KeyFile      string         // its key
	ServerName   string         // that certificates of Redis must have; "": the URL's host, or each node's own
}

// Parse reads a URL in go-redis's format for the mode. What a has for TLS needs rediss. An error quotes nothing of the
// URL: go-redis's own may quote the end of a password.
func Parse(mode, url string, a Access) (o Options, err error) {
	var poolSize int
	switch mode {
	case Sentinel:
		o.deposed = &atomic.Pointer[deposed]{}
		if o.sentinel, err = redis.ParseFailoverURL(url); err == nil {
			o.sentinel.CredentialsProviderContext = a.credentials(o.sentinel.Username)
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
			o.cluster.CredentialsProviderContext = a.credentials(o.cluster.Username)
			o.secure, poolSize = o.cluster.TLSConfig, o.cluster.PoolSize
		}
	default:
		if o.standalone, err = redis.ParseURL(url); err == nil {
			o.standalone.CredentialsProviderContext = a.credentials(o.standalone.Username)
			o.secure, poolSize = o.standalone.TLSConfig, o.standalone.PoolSize
		}
	}
	if err != nil {
		return o, errors.New("its scheme, host, path or query does not fit")
	}
	if poolSize < 0 || poolSize > maxPool {
		return o, fmt.Errorf("pool_size must be at most %d", maxPool) // go-redis would panic
	}
	if o.secure == nil {
		if a.Roots != nil || a.CertFile != "" || a.ServerName != "" {
			return o, errors.New("REDIS_CA_FILE, REDIS_CERT_FILE and REDIS_TLS_SERVER_NAME need rediss://")
		}
		return o, nil
	}
	o.secure.RootCAs = a.Roots
	if mode != Standalone || a.ServerName != "" {
		o.secure.ServerName = a.ServerName // where that is "", each node answers for its own name
	}
	if a.CertFile != "" {
		o.secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(a.CertFile, a.KeyFile)
			return &cert, err
		}
	}
	return o, nil
}

// credentials is what go-redis asks for a new connection's user and password; nil: it is to use the URL's.
func (a Access) credentials(user string) func(context.Context) (string, string, error) {
	if a.PasswordFile == "" {
		return nil
	}
	return func(context.Context) (string, string, error) {
		password, err := ReadPassword(a.PasswordFile)
		return user, password, err
	}
}

// ReadPassword returns what file holds, without the end of its line. It must hold something.
func ReadPassword(file string) (string, error) {
	data, err := os.ReadFile(file)
	password := strings.TrimRight(string(data), "\r\n")
	if err == nil && password == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", fmt.Errorf("reading redis's password: %w", err)
	}
	return password, nil
}

// SkipsVerify tells whether the URL asks to take any certificate for Redis's.
func (o Options) SkipsVerify() bool { return o.secure != nil && o.secure.InsecureSkipVerify }

// Open returns a client, which connects when it is first used. Each step of a call may take as long as the whole call,
// timeout: a reply that comes within it is used.
func (o Options) Open(timeout time.Duration) redis.UniversalClient {
	d := newDialer(o.secure, timeout)
	d.deposed = o.deposed
	return o.open(timeout, d)
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
