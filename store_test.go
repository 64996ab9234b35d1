package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// openTestStore opens a store as REDIS_MODE, REDIS_URL and the like would.
func openTestStore(t testing.TB, mode, url, prefix string, timeout time.Duration, more ...string) *store {
	t.Helper()
	env := map[string]string{"REDIS_MODE": mode, "REDIS_URL": url}
	for i := 0; i < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	e := fromEnv{get: func(name string) string { return env[name] }}
	o := e.redis()
	if e.wrongs != nil {
		t.Fatalf("%s %s: %s", mode, url, e.wrongs)
	}
	s := openStore(o, prefix, timeout, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = s.close() })
	return s
}

// startCluster runs three primaries that share the slots, and returns once all agree.
func startCluster(t testing.TB) []*redisProcess {
	t.Helper()
	needRedis(t)
	var nodes []*redisProcess
	var clients []*redis.Client
	for i := range 3 {
		p := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", freePort(), "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
		c := p.client(t)
		from, to := i*16384/3, (i+1)*16384/3-1
		must(t, c.Do(t.Context(), "CLUSTER", "ADDSLOTSRANGE", from, to).Err())
		must(t, c.Do(t.Context(), "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err())
		nodes, clients = append(nodes, p), append(clients, c)
	}
	for _, p := range nodes[1:] {
		must(t, clients[0].Do(t.Context(), "CLUSTER", "MEET", "127.0.0.1", p.port, p.args[3]).Err())
	}
	waitFor(t, 20*time.Second, "the cluster to agree", func() bool {
		for _, c := range clients {
			info, err := c.ClusterInfo(t.Context()).Result()
			if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384") || !strings.Contains(info, "cluster_known_nodes:3") {
				return false
			}
		}
		return true
	})
	return nodes
}

// startSentinel runs a primary, a replica and a sentinel that watches them.
func startSentinel(t testing.TB) (primary, replica, sentinel *redisProcess) {
	t.Helper()
	needRedis(t)
	primary = startRedis(t)
	replica = startRedis(t, "--replicaof", "127.0.0.1 "+primary.port, "--repl-diskless-sync-delay", "0")
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "sentinel monitor mymaster 127.0.0.1 %s 1\nsentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n", primary.port), 0o600))
	sentinel = &redisProcess{dir: t.TempDir(), first: []string{conf, "--sentinel"}}
	must(t, sentinel.startOnFreePort())
	t.Cleanup(sentinel.stop)
	c := redis.NewSentinelClient(&redis.Options{Addr: sentinel.addr})
	defer c.Close()
	waitFor(t, 20*time.Second, "the sentinel to find the replica", func() bool {
		info, err := primary.client(t).Info(t.Context(), "replication").Result()
		replicas, sentinelErr := c.Replicas(t.Context(), "mymaster").Result()
		return err == nil && strings.Contains(info, "state=online") && sentinelErr == nil && len(replicas) == 1 && replicas[0]["master-link-status"] == "ok"
	})
	return primary, replica, sentinel
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The store's contract, on each kind of Redis there is.
func TestStore(t *testing.T) {
	kinds := map[string]func(t *testing.T) (mode, url string){
		"embedded": func(t *testing.T) (string, string) {
			m, err := startEmbeddedRedis()
			must(t, err)
			t.Cleanup(m.Close)
			return "standalone", "redis://" + m.Addr()
		},
		"server": func(t *testing.T) (string, string) {
			needRedis(t)
			return "standalone", "redis://" + startRedis(t).addr
		},
		"unix socket": func(t *testing.T) (string, string) {
			needRedis(t)
			socket := filepath.Join(t.TempDir(), "s")
			startRedis(t, "--unixsocket", socket)
			return "standalone", "unix://" + socket
		},
		"cluster": func(t *testing.T) (string, string) {
			nodes := startCluster(t)
			return "cluster", "redis://" + nodes[0].addr + "?addr=" + nodes[1].addr
		},
		"sentinel": func(t *testing.T) (string, string) {
			_, _, sentinel := startSentinel(t)
			return "sentinel", "redis://" + sentinel.addr + "?master_name=mymaster"
		},
	}
	for name, start := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mode, url := start(t)
			s := openTestStore(t, mode, url, "p:", 2*time.Second)
			if err := s.check(); err != nil {
				t.Fatalf("check() = %v", err)
			}
			soon := time.Now().Add(time.Hour).Unix()

			t.Run("exact", func(t *testing.T) {
				value := []byte(`{"v":1,"x":"` + strings.Repeat("é", 2500) + `"}`)
				must(t, s.put("p:exact", value, soon))
				s.wantRecord(t, "p:exact", value, soon)
			})
			t.Run("many at once", func(t *testing.T) {
				var all sync.WaitGroup
				for i := range 300 {
					key := "p:" + strconv.Itoa(i)
					all.Go(func() {
						if err := s.put(key, []byte(key), soon+int64(i)); err != nil {
							t.Errorf("put(%s) = %v", key, err)
						}
					})
				}
				all.Wait()
				for i := range 300 {
					key := "p:" + strconv.Itoa(i)
					s.wantRecord(t, key, []byte(key), soon+int64(i))
				}
			})
			t.Run("expires", func(t *testing.T) {
				at := time.Now().Unix() + 2
				must(t, s.put("p:brief", []byte("x"), at))
				waitFor(t, 5*time.Second, "the record to expire", func() bool { return s.redis.Exists(t.Context(), "p:brief").Val() == 0 })
				if now := time.Now(); now.Unix() < at {
					t.Errorf("the record was gone at %s, before %d", now, at)
				}
			})
			waitFor(t, 5*time.Second, "lanes and ticks to end", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.lanes) == 0 && len(s.unended) == 0 && !s.ticking
			})
		})
	}
}

func (s *store) wantRecord(t testing.TB, key string, value []byte, expiresAt int64) {
	t.Helper()
	got, err := s.redis.Get(t.Context(), key).Bytes()
	if err != nil || !bytes.Equal(got, value) {
		t.Errorf("GET %s = %.50q, %v, want %.50q", key, got, err, value)
	}
	if at, err := s.redis.ExpireTime(t.Context(), key).Result(); err != nil || int64(at/time.Second) != expiresAt {
		t.Errorf("EXPIRETIME %s = %d, %v, want %d", key, at/time.Second, err, expiresAt)
	}
}

// timedPut is a put of a small value, and how long it took.
func (s *store) timedPut(key string, expiresAt int64) (c faultCall) {
	c.start = time.Now()
	c.err = s.put(key, []byte("x"), expiresAt)
	c.took = time.Since(c.start)
	return c
}

// What Redis says no to, put and check say no to, and why.
func TestStoreRefused(t *testing.T) {
	needRedis(t)
	soon := time.Now().Add(time.Hour).Unix()
	passwordFile := func(t *testing.T, password string) string {
		file := filepath.Join(t.TempDir(), "password")
		must(t, os.WriteFile(file, []byte(password+"\n"), 0o600))
		return file
	}
	tests := []struct {
		name string
		args []string // of the server
		acl  []string // of a user "svc" with the password in the file
		file string   // the password in REDIS_PASSWORD_FILE
		want string   // in both errors; "" is that both work
	}{
		{"password", []string{"--requirepass", "s3cret-pw"}, nil, "s3cret-pw", ""},
		{"wrong password", []string{"--requirepass", "s3cret-pw"}, nil, "wr0ng-pw", "WRONGPASS"},
		{"no password", []string{"--requirepass", "s3cret-pw"}, nil, "", "NOAUTH"},
		{"least ACL", nil, []string{"resetkeys", "~p:*", "-@all", "+set", "+time"}, "s3cret-pw", ""},
		{"ACL without SET", nil, []string{"resetkeys", "~p:*", "-@all", "+time"}, "s3cret-pw", "NOPERM"},
		{"ACL without TIME", nil, []string{"resetkeys", "~p:*", "-@all", "+set"}, "s3cret-pw", "NOPERM"},
		{"ACL of other keys", nil, []string{"resetkeys", "~q:*", "-@all", "+set", "+time"}, "s3cret-pw", "NOPERM"},
		{"replica", []string{"--replicaof", "127.0.0.1 1"}, nil, "", "READONLY"},
		{"no replicas", []string{"--min-replicas-to-write", "1"}, nil, "", "NOREPLICAS"},
		{"out of memory", []string{"--maxmemory", "1"}, nil, "", "OOM"},
		{"cluster node", []string{"--cluster-enabled", "yes", "--cluster-port", freePort()}, nil, "", "REDIS_MODE=cluster"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := startRedis(t, test.args...)
			url, more := "redis://"+p.addr, []string{}
			if test.file != "" {
				more = []string{"REDIS_PASSWORD_FILE", passwordFile(t, test.file)}
			}
			if test.acl != nil {
				args := append([]any{"ACL", "SETUSER", "svc", "on", ">" + test.file}, anys(test.acl)...)
				must(t, p.client(t).Do(t.Context(), args...).Err())
				url = "redis://svc@" + p.addr
			}
			s := openTestStore(t, "standalone", url, "p:", time.Second, more...)
			for name, err := range map[string]error{"put": s.put("p:x", []byte("x"), soon), "check": s.check()} {
				switch {
				case test.want == "" && err != nil:
					t.Errorf("%s = %v, want nil", name, err)
				case test.name == "cluster node" && name == "put" && err != nil: // it has no slots: any error
				case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
					t.Errorf("%s = %v, want an error with %s", name, err, test.want)
				case err != nil && (strings.Contains(err.Error(), "-pw") || timedOut(err)):
					t.Errorf("%s = %v: it holds the password, or counts as a timeout", name, err)
				}
			}
		})
	}
}

func anys(texts []string) (all []any) {
	for _, text := range texts {
		all = append(all, text)
	}
	return all
}

// Each primary of a cluster counts for check; a dead one costs only its own sessions.
func TestStoreClusterPrimaryDies(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t)
	s := openTestStore(t, "cluster", "redis://"+nodes[0].addr, "p:", time.Second)
	must(t, s.check())
	for _, p := range nodes {
		keys, err := p.client(t).Keys(t.Context(), "p:probe*").Result()
		if err != nil || len(keys) != 1 {
			t.Errorf("probes on %s = %q, %v, want one", p.addr, keys, err)
		}
	}

	// While a slot moves, what is not in it yet belongs to the next owner.
	from, to := nodes[0].client(t), nodes[1].client(t)
	probe := from.Keys(t.Context(), "p:probe*").Val()[0]
	slot := from.ClusterKeySlot(t.Context(), probe).Val()
	must(t, from.Del(t.Context(), probe).Err())
	must(t, to.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "IMPORTING", from.ClusterMyID(t.Context()).Val()).Err())
	must(t, from.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "MIGRATING", to.ClusterMyID(t.Context()).Val()).Err())
	if err := s.check(); err != nil {
		t.Errorf("check() = %v while a slot moves", err)
	}

	nodes[2].stop()
	if err := s.check(); err == nil {
		t.Error("check() = nil with a primary dead")
	}
	soon, fine := time.Now().Add(time.Hour).Unix(), 0
	for i := range 60 {
		if s.put("p:"+strconv.Itoa(i), []byte("x"), soon) == nil {
			fine++
		}
	}
	if fine < 20 || fine == 60 {
		t.Errorf("%d of 60 puts work with one of three primaries dead", fine)
	}
}

// A cluster whose slots are nobody's yet is not well.
func TestStoreClusterWithoutSlots(t *testing.T) {
	needRedis(t)
	p := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", freePort())
	s := openTestStore(t, "cluster", "redis://"+p.addr, "p:", time.Second)
	for name, err := range map[string]error{"put": s.put("p:x", []byte("x"), time.Now().Add(time.Hour).Unix()), "check": s.check()} {
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), "slot") {
			t.Errorf("%s = %v, want an error with slot", name, err)
		}
	}
}

// A sentinel's failover ends in time, with nothing acknowledged by what was primary.
func TestStoreSentinelFailover(t *testing.T) {
	t.Parallel()
	primary, replica, sentinel := startSentinel(t)
	s := openTestStore(t, "sentinel", "redis://"+sentinel.addr+"?master_name=mymaster", "p:", time.Second)
	soon := time.Now().Add(time.Hour).Unix()
	must(t, s.put("p:before", []byte("x"), soon))
	primary.stop()
	killed := time.Now()
	waitFor(t, 10*time.Second, "puts to work again", func() bool { return s.put("p:after", []byte("x"), soon) == nil })
	if took := time.Since(killed); took > 500*time.Millisecond+4*time.Second { // down-after 0.5 s, 3 s, and a slow machine
		t.Errorf("the first put after the failover took %s", took)
	}
	if n := replica.client(t).Exists(t.Context(), "p:after").Val(); n != 1 {
		t.Error("what was acknowledged after the failover is not on the new primary")
	}
}

// A put ends in time whatever Redis does, and tells "no answer" from "no connection".
func TestStoreTimeouts(t *testing.T) {
	const timeout = time.Second
	soon := time.Now().Add(time.Hour).Unix()
	noise := listenForNoise(t)
	silent := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	closing := listen(t, func(net.Conn) {})
	garbage := listen(t, func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			if _, err := r.ReadString('\n'); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}
	})
	tests := []struct {
		name, addr string
		timedOut   bool
		atMost     time.Duration
	}{
		{"never answers", silent, true, timeout + 200*time.Millisecond},
		{"closes", closing, false, timeout},
		{"no redis", garbage, false, timeout + 200*time.Millisecond},
		{"refuses", "127.0.0.1:" + freePort(), false, timeout},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := openTestStore(t, "standalone", "redis://"+test.addr, "p:", timeout)
			calls := make([]faultCall, 50)
			var all sync.WaitGroup
			for i := range calls {
				all.Go(func() { calls[i] = s.timedPut("p:x", soon) })
			}
			all.Wait()
			for _, c := range calls {
				if most := test.atMost + noise.within(c.start, c.end()); c.err == nil || timedOut(c.err) != test.timedOut || c.took > most {
					t.Errorf("put = %v (timed out: %t) after %s, want timed out: %t within %s", c.err, timedOut(c.err), c.took, test.timedOut, most)
				}
			}
		})
	}
}

// A stopped Redis holds up its own callers only as long as they agreed to, and those
// that come after it wakes up are served.
func TestStoreStopped(t *testing.T) {
	needRedis(t)
	p := startRedis(t)
	s := openTestStore(t, "standalone", "redis://"+p.addr, "p:", 300*time.Millisecond)
	soon := time.Now().Add(time.Hour).Unix()
	noise := listenForNoise(t)
	must(t, s.put("p:first", []byte("x"), soon))
	must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	calls := make([]faultCall, 500)
	var all sync.WaitGroup
	for i := range calls {
		all.Go(func() { calls[i] = s.timedPut("p:"+strconv.Itoa(i), soon) })
	}
	all.Wait()
	for _, c := range calls {
		if extra := noise.within(c.start, c.end()); !timedOut(c.err) || c.took > 500*time.Millisecond+extra {
			t.Errorf("put to a stopped redis = %v after %s; noise %s", c.err, c.took, extra)
		}
	}
	must(t, p.cmd.Process.Signal(syscall.SIGCONT))
	waitFor(t, 5*time.Second, "puts to work again", func() bool { return s.put("p:last", []byte("x"), soon) == nil })
}

// listen serves f on each connection to a free port.
func listen(t testing.TB, f func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return l.Addr().String()
}

// A record that Redis would drop at once, or too early or late, is not acknowledged.
func TestStoreClock(t *testing.T) {
	redisAddr := testRedisAddr(t)
	for by, good := range map[time.Duration]bool{0: true, -30 * time.Second: false, 30 * time.Second: false, 2 * time.Hour: false, -2 * time.Hour: false} {
		t.Run(by.String(), func(t *testing.T) {
			s := openTestStore(t, "standalone", "redis://"+startProxy(t, redisAddr, clockAhead(by)).addr, testPrefix(t), time.Second)
			for name, err := range map[string]error{"put": s.put(s.prefix+"x", []byte("x"), time.Now().Add(time.Hour).Unix()), "check": s.check()} {
				if (err == nil) != good || err != nil && !strings.Contains(err.Error(), "clock") {
					t.Errorf("%s with a clock %s ahead = %v", name, by, err)
				}
			}
		})
	}
}

func TestStoreTLS(t *testing.T) {
	needRedis(t)
	ca := newCA(t)
	good := ca.issue(t, "127.0.0.1", time.Now().Add(time.Hour))
	p := startTLS(t, good)
	soon := time.Now().Add(time.Hour).Unix()
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(caFile, ca.pem, 0o600))
	s := openTestStore(t, "standalone", "rediss://"+p.tls, "p:", 2*time.Second, "REDIS_CA_FILE", caFile)
	must(t, s.put("p:x", []byte("x"), soon))
	must(t, s.check())

	// A restart leaves dead connections in the pool; retries get past them.
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() { _ = s.put("p:"+strconv.Itoa(i), []byte("x"), soon) })
	}
	all.Wait()
	p.stop()
	must(t, p.start())
	failed := 0
	for range 20 {
		if s.put("p:x", []byte("x"), soon) != nil {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("%d of 20 puts failed after a restart, want one at most", failed)
	}

	for name, addr := range map[string]string{
		"expired":    startTLS(t, ca.issue(t, "127.0.0.1", time.Now().Add(-time.Hour))).tls,
		"wrong host": startTLS(t, ca.issue(t, "127.0.0.9", time.Now().Add(time.Hour))).tls,
		"plain text": p.addr,
	} {
		s := openTestStore(t, "standalone", "rediss://"+addr, "p:", time.Second, "REDIS_CA_FILE", caFile)
		start := time.Now()
		if err := s.put("p:x", []byte("x"), soon); err == nil || time.Since(start) > 1200*time.Millisecond {
			t.Errorf("%s: put = %v after %s", name, err, time.Since(start))
		}
	}
	s = openTestStore(t, "standalone", "rediss://"+p.tls, "p:", time.Second)
	if err := s.put("p:x", []byte("x"), soon); err == nil {
		t.Error("put without REDIS_CA_FILE = nil: an unknown root is trusted")
	}
}

// startTLS runs a redis-server that also listens with TLS.
func startTLS(t testing.TB, certAndKey string) *redisProcess {
	t.Helper()
	var p *redisProcess
	for range 5 { // another process may take the port before the server does
		port := freePort()
		p = &redisProcess{dir: t.TempDir(), tls: "127.0.0.1:" + port, args: []string{
			"--tls-port", port, "--tls-cert-file", certAndKey, "--tls-key-file", certAndKey, "--tls-ca-cert-file", certAndKey, "--tls-auth-clients", "no"}}
		if err := p.startOnFreePort(); err == nil {
			t.Cleanup(p.stop)
			return p
		}
	}
	out, _ := exec.Command("redis-server", "--version").CombinedOutput()
	t.Fatalf("redis-server does not start with TLS: %s", out)
	return nil
}

type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t testing.TB) testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return testCA{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue writes a server's certificate and key to one file.
func (ca testCA) issue(t testing.TB, ip string, until time.Time) (file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until, IPAddresses: []net.IP{net.ParseIP(ip)}}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	file = filepath.Join(t.TempDir(), "server.pem")
	data := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	must(t, os.WriteFile(file, data, 0o600))
	return file
}

// The log says when the store ceases and begins to be well, once each, and warns once
// of a Redis that may evict.
func TestStoreWatch(t *testing.T) {
	needRedis(t)
	p := startRedis(t, "--maxmemory-policy", "allkeys-lru")
	var log logBuffer
	s := openTestStore(t, "standalone", "redis://"+p.addr, "p:", time.Second)
	s.log = slog.New(slog.NewJSONHandler(&log, nil))
	p.stop()
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx) })
	waitFor(t, 5*time.Second, "the first line", func() bool { return log.String() != "" })
	must(t, p.start())
	waitFor(t, 5*time.Second, "the store to be well", func() bool { return strings.Contains(log.String(), "redis takes sessions") })
	waitFor(t, 5*time.Second, "the warning", func() bool { return strings.Contains(log.String(), "maxmemory_policy") })
	cancel()
	p.stop()
	watching.Wait()
	for text, want := range map[string]int{"redis takes no sessions": 1, "redis takes sessions": 1, `"maxmemory_policy":"allkeys-lru"`: 1} {
		if n := strings.Count(log.String(), text); n != want {
			t.Errorf("%d log lines with %q, want %d:\n%s", n, text, want, log.String())
		}
	}
}

func TestQuietLogger(t *testing.T) {
	var log logBuffer
	l := &quietLogger{log: slog.New(slog.NewJSONHandler(&log, nil))}
	for range 1000 {
		l.Printf(t.Context(), "dialing %s", "redis")
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines of 1000 are logged, want 1", n)
	}
}

func TestTimedOut(t *testing.T) {
	for err, want := range map[error]bool{
		nil:                      false,
		context.DeadlineExceeded: true,
		fmt.Errorf("reading: %w", os.ErrDeadlineExceeded): true,
		redis.ErrPoolTimeout:                              true,
		io.EOF:                                            false,
		errors.New("READONLY You can't write against a read only replica."): false,
	} {
		if got := timedOut(err); got != want {
			t.Errorf("timedOut(%v) = %t, want %t", err, got, want)
		}
	}
}
