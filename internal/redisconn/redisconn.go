// Package redisconn opens Redis from a URL in go-redis's format, in one of three modes, with timeouts, retries and a
// protocol of the service's choice instead of the URL's.
package redisconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"golang.org/x/time/rate"
)

// The modes.
const (
	Standalone = "standalone"
	Sentinel   = "sentinel"
	Cluster    = "cluster"
)

const (
	// go-redis retries after a broken connection, and while a server loads or fails over. With 8 retries at most one
	// request fails on the 16 dead connections that a restart may leave with TLS. All take at most 30 ms, so that a
	// request is refused within 100 ms where nothing listens.
	retries    = 8
	minBackoff = time.Millisecond
	maxBackoff = 4 * time.Millisecond

	// go-redis dials once a second after as many failed dials as the pool has places. With 1,000, the first 200 after a
	// restart came mostly within 20 ms (0.52 s at worst in five), with the default after 0.8 s.
	minPool = 1000
	maxPool = 100_000 // connections; go-redis panics at a pool that cannot be allocated

	noPipelinePool = -1          // batches are few and small: the ordinary pool's connections serve them
	reloadEvery    = time.Second // of a cluster's slots: a dead primary does not name its successor
	resp2          = 2           // with RESP3 go-redis looks before each reply for push messages, which are not used here
)

// Options is how to reach Redis. Exactly one of the first three is set.
type Options struct {
	standalone *redis.Options
	sentinel   *redis.FailoverOptions
	cluster    *redis.ClusterOptions
	tls        *tls.Config               // the same options' TLSConfig; nil: no TLS
	failover   *atomic.Pointer[failover] // nil in other modes
}

// Access is what a URL cannot say about the way to Redis. Files are read again for each new connection, so their
// content can change while the service runs.
type Access struct {
	PasswordFile string         // "": the URL's password counts. In sentinel mode it is the password of the data nodes
	Roots        *x509.CertPool // nil: the system's
	CertFile     string         // client certificate in PEM; "": none
	KeyFile      string         // its key
	ServerName   string         // the name in Redis's certificates; "": the URL's host, or each node's own name
}

var errUnfit = errors.New("its scheme, host, path or query does not fit " +
	"(in a password, percent-encode all but letters and digits, # as %23, or use REDIS_PASSWORD_FILE)")

// Parse reads a URL in go-redis's format for the mode. The TLS members of a need a rediss URL. An error quotes nothing
// of the URL, because go-redis's own errors may quote the end of a password.
func Parse(mode, rawURL string, a Access) (o Options, err error) {
	if misread(rawURL) {
		return o, errUnfit
	}
	var poolSize int
	switch mode {
	case Sentinel:
		o.failover = &atomic.Pointer[failover]{}
		o.setFailover("", "")
		if o.sentinel, err = redis.ParseFailoverURL(rawURL); err == nil {
			o.sentinel.CredentialsProviderContext = a.credentials(o.sentinel.Username)
			o.tls, poolSize = o.sentinel.TLSConfig, o.sentinel.PoolSize
			if o.sentinel.MasterName == "" {
				return o, errors.New("it needs master_name in its query")
			}
			if o.sentinel.ReplicaOnly || o.sentinel.RouteByLatency || o.sentinel.RouteRandomly {
				return o, errors.New("sessions go to the primary, not where replica_only or route_ say")
			}
		}
	case Cluster:
		if o.cluster, err = redis.ParseClusterURL(rawURL); err == nil {
			o.cluster.CredentialsProviderContext = a.credentials(o.cluster.Username)
			o.tls, poolSize = o.cluster.TLSConfig, o.cluster.PoolSize
		}
	default:
		if o.standalone, err = redis.ParseURL(rawURL); err == nil {
			o.standalone.CredentialsProviderContext = a.credentials(o.standalone.Username)
			o.tls, poolSize = o.standalone.TLSConfig, o.standalone.PoolSize
		}
	}
	if err != nil {
		return o, errUnfit
	}
	if poolSize < 0 || poolSize > maxPool {
		return o, fmt.Errorf("pool_size must be at most %d", maxPool)
	}
	return o, o.configureTLS(mode, a)
}

// misread reports whether go-redis would drop a part of rawURL without an error: a fragment, an opaque part, the host
// of a unix URL, or what it cannot decode in the query. If a password has raw characters, the URL's host may be the
// password's first part, and the @ after it is in the path. In a query, + means a space, which was hardly meant.
func misread(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return true
	}
	_, err = url.ParseQuery(u.RawQuery)
	return err != nil || strings.Contains(rawURL, "#") || strings.Contains(u.RawQuery, "+") || u.Opaque != "" ||
		u.Host != "" && (u.Scheme == "unix" || strings.Contains(u.Path, "@"))
}

func (o Options) configureTLS(mode string, a Access) error {
	if o.tls == nil {
		if a.Roots != nil || a.CertFile != "" || a.ServerName != "" {
			return errors.New("REDIS_CA_FILE, REDIS_CERT_FILE and REDIS_TLS_SERVER_NAME need rediss://")
		}
		return nil
	}
	o.tls.RootCAs = a.Roots
	if mode != Standalone || a.ServerName != "" {
		o.tls.ServerName = a.ServerName // "": crypto/tls takes the host of each node's address
	}
	if a.CertFile != "" {
		o.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(a.CertFile, a.KeyFile)
			return &cert, err
		}
	}
	return nil
}

// credentials returns the function that go-redis asks for the user and password of a new connection, or nil where the
// URL's count.
func (a Access) credentials(user string) func(context.Context) (string, string, error) {
	if a.PasswordFile == "" {
		return nil
	}
	return func(context.Context) (string, string, error) {
		password, err := ReadPassword(a.PasswordFile)
		return user, password, err
	}
}

// ReadPassword returns the content of file without a line feed at its end. It rejects an empty file, a byte order mark,
// control characters (UTF-16 has NUL), and other white space around the password. An error does not name the file,
// because REDIS_PASSWORD_FILE may have the password itself by mistake.
func ReadPassword(file string) (string, error) {
	data, err := os.ReadFile(file)
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return "", fmt.Errorf("reading the password file: %w", e.Err)
	}
	password := strings.TrimSuffix(string(data), "\n")
	if password == "" || strings.TrimSpace(strings.Trim(password, "\ufeff")) != password ||
		strings.ContainsFunc(password, unicode.IsControl) {
		return "", errors.New("the password file is empty, or has a byte order mark, control characters or outer " +
			"white space, not just a final line feed")
	}
	return password, err
}

// SkipsVerify reports whether the URL turns off the check of Redis's certificate.
func (o Options) SkipsVerify() bool { return o.tls != nil && o.tls.InsecureSkipVerify }

// Open returns a client that connects when it is first used. Each step of a call may take up to timeout.
func (o Options) Open(timeout time.Duration) redis.UniversalClient {
	off := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch {
	case o.sentinel != nil:
		c := *o.sentinel
		c.Dialer = o.dialPrimary(timeout)
		c.ContextTimeoutEnabled, c.DisableIdentity, c.Protocol = true, true, resp2
		c.DialTimeout, c.ReadTimeout, c.WriteTimeout, c.PoolTimeout = timeout, timeout, timeout, timeout
		c.MaxRetries, c.MinRetryBackoff, c.MaxRetryBackoff, c.DialerRetries = retries, minBackoff, maxBackoff, 1
		c.PoolSize, c.PipelinePoolSize = max(c.PoolSize, minPool), noPipelinePool
		return redis.NewFailoverClient(&c)
	case o.cluster != nil:
		c := *o.cluster
		c.ContextTimeoutEnabled, c.DisableIdentity, c.Protocol = true, true, resp2
		c.DialTimeout, c.ReadTimeout, c.WriteTimeout, c.PoolTimeout = timeout, timeout, timeout, timeout
		c.MaxRedirects, c.MinRetryBackoff, c.MaxRetryBackoff, c.DialerRetries = retries, minBackoff, maxBackoff, 1
		c.PoolSize, c.PipelinePoolSize = max(c.PoolSize, minPool), noPipelinePool
		c.MaintNotificationsConfig, c.ClusterStateReloadInterval = off, reloadEvery
		return redis.NewClusterClient(&c)
	}
	c := *o.standalone
	c.ContextTimeoutEnabled, c.DisableIdentity, c.Protocol = true, true, resp2
	c.DialTimeout, c.ReadTimeout, c.WriteTimeout, c.PoolTimeout = timeout, timeout, timeout, timeout
	c.MaxRetries, c.MinRetryBackoff, c.MaxRetryBackoff, c.DialerRetries = retries, minBackoff, maxBackoff, 1
	c.PoolSize, c.PipelinePoolSize = max(c.PoolSize, minPool), noPipelinePool
	c.MaintNotificationsConfig = off
	return redis.NewClient(&c)
}

// dialPrimary is go-redis's own dialer, except that it does not dial a primary that the sentinels replaced.
func (o Options) dialPrimary(timeout time.Duration) func(context.Context, string, string) (net.Conn, error) {
	dial := redis.NewDialer(&redis.Options{DialTimeout: timeout, TLSConfig: o.tls})
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if o.isDemoted(addr) {
			return nil, ErrFailover
		}
		return dial(ctx, network, addr)
	}
}

// EachPrimary calls f for each primary, concurrently where there are several, and returns the first error.
func EachPrimary(ctx context.Context, client redis.UniversalClient,
	f func(context.Context, *redis.Client) error) error {
	if cluster, ok := client.(*redis.ClusterClient); ok {
		return NamedError(client, cluster.ForEachMaster(ctx, f))
	}
	return f(ctx, client.(*redis.Client))
}

// ErrNoAddresses means that a cluster announces no addresses to dial.
var ErrNoAddresses = errors.New("the cluster's cluster-preferred-endpoint-type unknown-endpoint is not supported")

// NamedError returns ErrNoAddresses for redis.Nil from a cluster's client, because go-redis returns that if the cluster
// announces no addresses. It returns any other error unchanged.
func NamedError(client redis.UniversalClient, err error) error {
	if _, ok := client.(*redis.ClusterClient); ok && errors.Is(err, redis.Nil) {
		return ErrNoAddresses
	}
	return err
}

// LogTo sends go-redis's log to log, at most one line in ten seconds, because it repeats a failure for each connection.
func LogTo(log *slog.Logger) {
	redis.SetLogger(&sparseLog{log: log, sometimes: rate.Sometimes{Interval: 10 * time.Second}})
}

type sparseLog struct {
	log       *slog.Logger
	sometimes rate.Sometimes
}

func (l *sparseLog) Printf(_ context.Context, format string, args ...any) {
	l.sometimes.Do(func() { l.log.Warn("redis client", "says", fmt.Sprintf(format, args...)) })
}
