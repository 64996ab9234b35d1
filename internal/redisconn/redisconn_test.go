package redisconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

func TestParse(t *testing.T) {
	const (
		unfit = "its scheme, host, path or query does not fit (in a password, percent-encode all but letters and digits, " +
			"# as %23, or use REDIS_PASSWORD_FILE)"
		master  = "it needs master_name in its query"
		primary = "sessions go to the primary, not where replica_only or route_ say"
		pool    = "pool_size must be at most 100000"
	)
	for _, test := range []struct{ mode, url, want string }{
		{Standalone, "redis://h", ""},
		{Standalone, "redis://h:1", ""},
		{Standalone, "redis://[::1]:1", ""},
		{Standalone, "redis://u:p@h:1/2", ""},
		{Standalone, "rediss://h", ""},
		{Standalone, "unix:///run/redis.sock", ""},
		{Standalone, "unix://u:p@/run/redis.sock?db=1", ""},
		{Standalone, "redis://h?pool_size=5", ""},
		{Standalone, "redis://h?pool_size=0", ""},
		{Standalone, "redis://h?pool_size=100000", ""},
		{Standalone, "redis://h?pool_size=100001", pool},
		{Standalone, "redis://h?pool_size=-1", pool},
		{Standalone, "redis://h?pool_size=x", unfit},
		{Standalone, "", unfit},
		{Standalone, "h:6379", unfit},
		{Standalone, "http://h", unfit},
		{Standalone, "redis://h/x", unfit},
		{Standalone, "redis://h/1/2", unfit},
		{Standalone, "redis://h?master_name=m", unfit},
		{Standalone, "redis://h?addr=h2:1", unfit},
		{Standalone, "redis://u:s3cret@h:x", unfit},
		{Standalone, "redis://u:s3cret@h?nope=1", unfit},
		{Standalone, "redis://u:s3cret@%zz", unfit},
		{Standalone, "redis://u:x/s3cret@h", unfit},
		{Standalone, "redis://u:x?s3cret@h", unfit},
		{Standalone, "redis://u:x#s3cret@h/s3cret", unfit},
		{Standalone, "redis://:57#s3cret@h", unfit}, // go-redis would dial localhost:57
		{Standalone, "redis://:57/s3cret@h", unfit},
		{Standalone, "redis://:57/1@h", unfit},
		{Standalone, "redis://:57?s3cret@h", unfit},
		{Standalone, "redis://:57?@h", unfit},
		{Standalone, "redis://:57%s3cret@h", unfit},
		{Standalone, "redis://:57%23%2F%3F%25@h:1", ""},
		{Standalone, "unix:///run/redis@1.sock", ""},
		{Standalone, "redis://h#", unfit},
		{Standalone, "redis:s3cret@h:1", unfit}, // go-redis would dial localhost
		{Standalone, "redis:6379", unfit},
		{Standalone, "unix://:5/s3cret@/run/redis.sock", unfit},
		{Standalone, "unix://tmp/redis.sock", unfit},
		{Standalone, "redis://h?db=1%s3cret", unfit},
		{Standalone, "s3cret://h", unfit},

		{Sentinel, "redis://s1:26379?master_name=m", ""},
		{Sentinel, "redis://s1:26379?master_name=m&addr=s2:26379", ""},
		{Sentinel, "rediss://u:p@s1:26379?master_name=m", ""},
		{Sentinel, "redis://s1?master_name=m&replica_only=false", ""},
		{Sentinel, "redis://s1?master_name=m&pool_size=100000", ""},
		{Sentinel, "redis://s1?master_name=m&pool_size=100001", pool},
		{Sentinel, "redis://s1?master_name=m&pool_size=-1", pool},
		{Sentinel, "redis://s1:26379", master},
		{Sentinel, "redis://s1?master_name=", master},
		{Sentinel, "redis://s3cret@s1?replica_only=true", master},
		{Sentinel, "redis://s1?master_name=m&replica_only=true", primary},
		{Sentinel, "redis://s1?master_name=m&route_by_latency=true", primary},
		{Sentinel, "redis://s1?master_name=m&route_randomly=1", primary},
		{Sentinel, "unix:///run/redis.sock?master_name=m", unfit},
		{Sentinel, "redis://s1?master_name=m&addr=s3cret", unfit},
		{Sentinel, "redis://s1?master_name=m&s3cret=1", unfit},
		{Sentinel, "redis://s1/s3cret?master_name=m", unfit},
		{Sentinel, "redis://:57#s3cret@s1?master_name=m", unfit},
		{Sentinel, "redis://:57/1@s1?master_name=m", unfit},
		{Sentinel, "redis://:57?s3cret@s1?master_name=m", unfit},
		{Sentinel, "redis://:57%s3cret@s1?master_name=m", unfit},
		{Sentinel, "redis://s1?master_name=m&password=s3@cret", ""},
		{Sentinel, "redis://s1?master_name=m&password=s3%25%2B%3Bcret", ""},
		{Sentinel, "redis://s1?master_name=m&password=s3%cret", unfit}, // go-redis would send no password
		{Sentinel, "redis://s1?master_name=m&password=s3;cret", unfit},
		{Sentinel, "redis://s1?master_name=m&password=s3+cret", unfit},

		{Cluster, "redis://n1:6379", ""},
		{Cluster, "rediss://u:p@n1", ""},
		{Cluster, "redis://n1:6379?addr=n2:6379&addr=n3:6379", ""},
		{Cluster, "redis://n1?pool_size=100000", ""},
		{Cluster, "redis://n1?pool_size=100001", pool},
		{Cluster, "redis://n1?pool_size=-1", pool},
		{Cluster, "unix:///run/redis.sock", unfit},
		{Cluster, "redis://:57#s3cret@n1", unfit},
		{Cluster, "redis://:57/s3cret@n1", unfit},
		{Cluster, "redis://:57/1@n1?addr=n2:6379", unfit},
		{Cluster, "redis://:57?s3cret@n1", unfit},
		{Cluster, "redis://:57%s3cret@n1", unfit},
		{Cluster, "redis:s3cret@n1", unfit},
		{Cluster, "redis://n1?addr=n2%zz", unfit},
		{Cluster, "redis://n1?addr=s3cret", unfit},
		{Cluster, "redis://n1?db=s3cret", unfit},
		{Cluster, "rediss://n1?skip_verify=true", unfit},
	} {
		o, err := Parse(test.mode, test.url, Access{})
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("Parse(%s, %q) = %q, want %q", test.mode, test.url, got, test.want)
		}
		set := map[string]bool{Standalone: o.standalone != nil, Sentinel: o.sentinel != nil, Cluster: o.cluster != nil}
		if test.want == "" && fmt.Sprint(set) != fmt.Sprint(map[string]bool{
			Standalone: test.mode == Standalone, Sentinel: test.mode == Sentinel, Cluster: test.mode == Cluster,
		}) {
			t.Errorf("Parse(%s, %q) sets %v, want its mode alone", test.mode, test.url, set)
		}
	}
}

// An error quotes nothing of the URL, nor the password: every part of both is the same word here.
func TestParseQuotesNothing(t *testing.T) {
	const word = "s3cret"
	for _, mode := range []string{Standalone, Sentinel, Cluster} {
		for _, url := range []string{
			"s3cret", "s3cret://h", "redis://s3cret:s3cret", "redis://s3cret:s3cret@s3cret:s3cret", "redis://h/s3cret",
			"redis://s3cret:%zzs3cret@h", "redis://s3cret@h?s3cret=s3cret", "redis://h?pool_size=s3cret",
			"redis://h?read_timeout=s3cret", "redis://h?pool_fifo=s3cret", "redis://h?addr=s3cret",
			"redis://s3cret:s3cret@s3cret?pool_size=-1", "redis://s3cret:s3cret@s3cret?replica_only=s3cret",
			"redis://s3cret:s3cret@s3cret?master_name=s3cret&replica_only=true&addr=s3cret:1&s3cret",
			"rediss://s3cret?skip_verify=s3cret", "redis://\x00s3cret", "redis://s3cret\n",
		} {
			_, err := Parse(mode, url, Access{word, x509.NewCertPool(), word, word, word})
			if err == nil || strings.Contains(err.Error(), word) {
				t.Errorf("Parse(%s, %q) = %v, want an error that quotes nothing", mode, url, err)
			}
		}
	}
}

// The password file is read for each new connection, and replaces the URL's password but not that for the sentinels.
func TestParsePassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	testkit.Must(t, os.WriteFile(file, []byte("other\n"), 0o600))
	for _, test := range []struct{ mode, url, file, want string }{
		{Standalone, "redis://u:p@h", "", "u p"},
		{Standalone, "redis://u:p@h", file, "u other"},
		{Standalone, "redis://u@h", file, "u other"},
		{Standalone, "redis://h", file, " other"},
		{Standalone, "unix://u:p@/run/redis.sock", file, "u other"},
		{Cluster, "redis://u:p@h", "", "u p"},
		{Cluster, "redis://u:p@h", file, "u other"},
		{Sentinel, "redis://su:sp@h?master_name=m&username=u&password=p", "", "u p, sentinels su sp"},
		{Sentinel, "redis://su:sp@h?master_name=m&username=u&password=p", file, "u other, sentinels su sp"},
		{Sentinel, "redis://su:sp@h?master_name=m&username=u", file, "u other, sentinels su sp"},
		{Sentinel, "redis://h?master_name=m", file, " other, sentinels  "},
	} {
		o := parse(t, test.mode, test.url, Access{PasswordFile: test.file})
		var ask func(context.Context) (string, string, error)
		var user, password, sentinels string
		switch {
		case o.standalone != nil:
			user, password, ask = o.standalone.Username, o.standalone.Password, o.standalone.CredentialsProviderContext
		case o.cluster != nil:
			user, password, ask = o.cluster.Username, o.cluster.Password, o.cluster.CredentialsProviderContext
		case o.sentinel != nil:
			s := o.sentinel
			user, password, ask = s.Username, s.Password, s.CredentialsProviderContext
			sentinels = ", sentinels " + s.SentinelUsername + " " + s.SentinelPassword
		}
		if ask != nil {
			var err error
			user, password, err = ask(t.Context())
			testkit.Must(t, err)
		}
		if got := user + " " + password + sentinels; got != test.want {
			t.Errorf("Parse(%s, %s, %q) has %q, want %q", test.mode, test.url, test.file, got, test.want)
		}
	}
	ask := parse(t, Standalone, "redis://u:p@h", Access{PasswordFile: file}).standalone.CredentialsProviderContext
	for text, want := range map[string]string{"next\n": "next", "next": "next", "a b": "a b", "": "", "\n": "",
		"next\n\n": "", "next\r\n": "", "next \n": "", " next": "", "\ufeffnext": "", "next\u00a0": "",
		"ne\nxt": "", "\xff\xfen\x00\n\x00": ""} {
		testkit.Must(t, os.WriteFile(file, []byte(text), 0o600))
		if _, got, err := ask(t.Context()); got != want || (err == nil) != (want != "") {
			t.Errorf("the password of a file with %q = %q, %v, want %q", text, got, err, want)
		}
	}
	testkit.Must(t, os.Remove(file))
	if _, _, err := ask(t.Context()); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), file) {
		t.Errorf("the password of a file that has gone: %v, want that there is none, without its name", err)
	}
}

// With rediss each certificate is checked against the given roots or the system's, and against the URL's host, or the
// node's own name where there are many nodes.
func TestParseTLS(t *testing.T) {
	roots := x509.NewCertPool()
	for _, test := range []struct {
		mode, url, serverName string
		skipsVerify           bool
	}{
		{Standalone, "rediss://h:6380", "h", false},
		{Standalone, "rediss://h?skip_verify=true", "h", true},
		{Standalone, "rediss://h?skip_verify=1", "h", true},
		{Standalone, "rediss://h?skip_verify=false", "h", false},
		{Sentinel, "rediss://h?master_name=m", "", false},
		{Sentinel, "rediss://h?master_name=m&skip_verify=true", "", true},
		{Sentinel, "rediss://h?master_name=m&skip_verify=false", "", false},
		{Cluster, "rediss://h", "", false}, // skip_verify does not fit here
	} {
		for _, given := range []*x509.CertPool{nil, roots} {
			o := parse(t, test.mode, test.url, Access{Roots: given})
			if named := parse(t, test.mode, test.url, Access{ServerName: "n"}); named.tls.ServerName != "n" {
				t.Errorf("Parse(%s, %s) with a server name has %q", test.mode, test.url, named.tls.ServerName)
			}
			secure := o.tls
			if secure == nil || secure.ServerName != test.serverName || secure.RootCAs != given {
				t.Errorf("Parse(%s, %s) has %+v, want server name %q, and the roots", test.mode, test.url, secure, test.serverName)
			}
			if got := o.SkipsVerify(); got != test.skipsVerify {
				t.Errorf("SkipsVerify of %s, %s = %t, want %t", test.mode, test.url, got, test.skipsVerify)
			}
		}
	}
}

// Without rediss there is no TLS, and roots are a mistake.
func TestParseNoTLS(t *testing.T) {
	for _, test := range []struct{ mode, url string }{
		{Standalone, "redis://h"},
		{Standalone, "unix:///run/redis.sock"},
		{Sentinel, "redis://h?master_name=m"},
		{Cluster, "redis://h"},
	} {
		if o := parse(t, test.mode, test.url, Access{}); o.tls != nil || o.SkipsVerify() {
			t.Errorf("Parse(%s, %s) has %+v, want no TLS", test.mode, test.url, o.tls)
		}
		for _, a := range []Access{{Roots: x509.NewCertPool()}, {CertFile: "x", KeyFile: "y"}, {ServerName: "n"}} {
			if _, err := Parse(test.mode, test.url, a); err == nil || !strings.Contains(err.Error(), "need rediss://") {
				t.Errorf("Parse(%s, %s, %+v) = %v, want that it needs rediss", test.mode, test.url, a, err)
			}
		}
	}
	if (Options{}).SkipsVerify() {
		t.Error("SkipsVerify of no Options = true")
	}
}

// The URL says where Redis is. Timeouts, retries and the protocol are the service's.
func TestOpen(t *testing.T) {
	const timeout = 700 * time.Millisecond
	const query = "?protocol=3&max_retries=9&min_retry_backoff=1s&max_retry_backoff=9s&dial_timeout=9s&read_timeout=9s" +
		"&write_timeout=9s&pool_timeout=9s&pool_size=7&pipeline_pool_size=3"
	for _, test := range []struct{ mode, url, network, addr string }{
		{Standalone, "rediss://u:p@h:1" + query, "tcp", "h:1"},
		{Standalone, "redis://h", "tcp", "h:6379"},
		{Standalone, "unix://u:p@/run/redis.sock" + query, "unix", "/run/redis.sock"},
		{Sentinel, "rediss://h" + query + "&master_name=m&username=u&password=p", "tcp", "FailoverClient"},
		{Cluster, "rediss://u:p@h:1" + query + "&addr=h2:2", "", "h:1 h2:2"},
	} {
		o := parse(t, test.mode, test.url, Access{})
		for range 2 { // the first leaves the Options as they are
			client := o.Open(timeout)
			t.Cleanup(func() { _ = client.Close() })
			var got opened
			switch c := client.(type) {
			case *redis.Client:
				got = openedClient(c.Options())
			case *redis.ClusterClient:
				got = openedCluster(c.Options())
			}
			want := opened{
				network: test.network, addr: test.addr,
				timeouts: [4]time.Duration{timeout, timeout, timeout, timeout},
				backoff:  [2]time.Duration{time.Millisecond, 4 * time.Millisecond},
				retries:  8, dials: 1, protocol: 2, poolSize: 1000, pipelinePool: -1, byContext: true, anonymous: true,
				secure: o.tls,
			}
			if strings.Contains(test.url, query) {
				want.username, want.password = "u", "p"
			}
			if got != want {
				t.Errorf("Open of %s, %s has\n%+v, want\n%+v", test.mode, test.url, got, want)
			}
		}
	}
}

// In an outage go-redis repeats itself for each connection. One line in ten seconds is logged.
func TestLogTo(t *testing.T) {
	var log testkit.Log
	LogTo(slog.New(slog.NewJSONHandler(&log, nil)))
	defer redis.SetLogger(&sparseLog{log: slog.New(slog.DiscardHandler)})
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + redistest.FreePort(), MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	for range 20 {
		if err := client.Ping(t.Context()).Err(); err == nil {
			t.Fatal("PING without a server = nil")
		}
	}
	if says := log.Line(t, "msg", "redis client")["says"]; !strings.Contains(fmt.Sprint(says), "dial") {
		t.Errorf("the line says %q, want what go-redis says of the failed dial", says)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines about 20 failed dials, want 1", n)
	}
}

// opened is what matters of a client's options.
type opened struct {
	network, addr, username, password                string
	timeouts                                         [4]time.Duration // dial, read, write, pool
	backoff                                          [2]time.Duration // min, max
	retries, dials, protocol, poolSize, pipelinePool int
	byContext, anonymous                             bool
	secure                                           *tls.Config
}

func openedClient(o *redis.Options) opened {
	return opened{
		o.Network, o.Addr, o.Username, o.Password,
		[4]time.Duration{o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout},
		[2]time.Duration{o.MinRetryBackoff, o.MaxRetryBackoff},
		o.MaxRetries, o.DialerRetries, o.Protocol, o.PoolSize, o.PipelinePoolSize,
		o.ContextTimeoutEnabled, o.DisableIdentity, o.TLSConfig,
	}
}

func openedCluster(o *redis.ClusterOptions) opened {
	return opened{
		"", strings.Join(o.Addrs, " "), o.Username, o.Password,
		[4]time.Duration{o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout},
		[2]time.Duration{o.MinRetryBackoff, o.MaxRetryBackoff},
		o.MaxRedirects, o.DialerRetries, o.Protocol, o.PoolSize, o.PipelinePoolSize,
		o.ContextTimeoutEnabled, o.DisableIdentity, o.TLSConfig,
	}
}

func parse(t *testing.T, mode, url string, a Access) Options {
	t.Helper()
	o, err := Parse(mode, url, a)
	if err != nil {
		t.Fatalf("Parse(%s, %q): %v", mode, url, err)
	}
	return o
}
