package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"authsession/internal/embedredis"
	"authsession/internal/groupcommit"
	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// openTestStore opens a store as REDIS_MODE, REDIS_URL and more variables, each with its value behind it, say.
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
	ignore := prometheus.ObserverFunc(func(float64) {})
	s := openStore(o, prefix, timeout, 0, ignore, ignore, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = s.close() })
	return s
}

// inAnHour is when a test's records expire.
func inAnHour() int64 { return time.Now().Add(time.Hour).Unix() }

// The store's contract, on each kind of Redis there is.
func TestStore(t *testing.T) {
	kinds := map[string]func(t *testing.T) (mode, url string){
		"embedded": func(t *testing.T) (string, string) {
			m, err := embedredis.Start()
			testkit.Must(t, err)
			t.Cleanup(m.Close)
			return "standalone", "redis://" + m.Addr()
		},
		"server": func(t *testing.T) (string, string) {
			redistest.Need(t)
			return "standalone", "redis://" + redistest.Start(t).Addr
		},
		"unix socket": func(t *testing.T) (string, string) {
			redistest.Need(t)
			socket := filepath.Join(t.TempDir(), "s")
			redistest.Start(t, "--unixsocket", socket)
			return "standalone", "unix://" + socket
		},
		"cluster": func(t *testing.T) (string, string) {
			nodes := redistest.Cluster(t)
			return "cluster", "redis://" + nodes[0].Addr + "?addr=" + nodes[1].Addr
		},
		"sentinel": func(t *testing.T) (string, string) {
			_, _, sentinel := redistest.Sentinel(t)
			return "sentinel", "redis://" + sentinel.Addr + "?master_name=mymaster"
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
			if skew := s.clockSkew(); skew.Abs() > 500*time.Millisecond {
				t.Errorf("clockSkew() = %s, want next to nothing", skew)
			}
			soon := inAnHour()

			t.Run("exact", func(t *testing.T) {
				value := []byte(`{"v":1,"x":"` + strings.Repeat("é", 2500) + `"}`)
				testkit.Must(t, s.put("acme", "exact", value, soon))
				s.wantRecord(t, "p:exact", value, soon)
			})
			t.Run("many at once", func(t *testing.T) {
				var all sync.WaitGroup
				for i := range 300 {
					name := strconv.Itoa(i)
					all.Go(func() {
						if err := s.put("acme", name, []byte(name), soon+int64(i)); err != nil {
							t.Errorf("put(%s) = %v", name, err)
						}
					})
				}
				all.Wait()
				for i := range 300 {
					name := strconv.Itoa(i)
					s.wantRecord(t, "p:"+name, []byte(name), soon+int64(i))
				}
			})
			t.Run("expires", func(t *testing.T) {
				at := time.Now().Unix() + 2
				testkit.Must(t, s.put("acme", "brief", []byte("x"), at))
				testkit.WaitFor(t, 5*time.Second, "the record to expire",
					func() bool { return s.client.Exists(t.Context(), "p:brief").Val() == 0 })
				if now := time.Now(); now.Unix() < at {
					t.Errorf("the record was gone at %s, before %d", now, at)
				}
			})
			if n := s.writer.Waiting(); n > 0 {
				t.Errorf("%d writes wait after all have ended", n)
			}
		})
	}
}

func (s *store) wantRecord(t testing.TB, key string, value []byte, expiresAt int64) {
	t.Helper()
	got, err := s.client.Get(t.Context(), key).Bytes()
	if err != nil || !bytes.Equal(got, value) {
		t.Errorf("GET %s = %.50q, %v, want %.50q", key, got, err, value)
	}
	if at, err := s.client.ExpireTime(t.Context(), key).Result(); err != nil || int64(at/time.Second) != expiresAt {
		t.Errorf("EXPIRETIME %s = %d, %v, want %d", key, at/time.Second, err, expiresAt)
	}
}

// What Redis says no to, put and check say no to, and why.
func TestStoreRefused(t *testing.T) {
	redistest.Need(t)
	const password = "s3cret-pw"
	user := func(rules ...any) []any {
		return append([]any{"ACL", "SETUSER", "svc", "on", ">" + password, "resetkeys", "-@all"}, rules...)
	}
	tests := []struct {
		name       string
		args       []string // of the server
		user       []any    // a command that makes the user "svc"; nil: none
		file       string   // the password in REDIS_PASSWORD_FILE
		put, check string   // in their errors; "" is that it works
	}{
		{"password", []string{"--requirepass", password}, nil, password, "", ""},
		{"wrong password", []string{"--requirepass", password}, nil, "wr0ng-pw", "WRONGPASS", "WRONGPASS"},
		{"no password", []string{"--requirepass", password}, nil, "", "NOAUTH", "NOAUTH"},
		{"least ACL", nil, user("~p:*", "+set", "+time"), password, "", ""},
		{"ACL without SET", nil, user("~p:*", "+time"), password, "NOPERM", "NOPERM"},
		{"ACL without TIME", nil, user("~p:*", "+set"), password, "NOPERM", "NOPERM"},
		{"ACL of other keys", nil, user("~q:*", "+set", "+time"), password, "NOPERM", "NOPERM"},
		{"replica", []string{"--replicaof", "127.0.0.1 1"}, nil, "", "READONLY", "READONLY"},
		{"no replicas", []string{"--min-replicas-to-write", "1"}, nil, "", "NOREPLICAS", "NOREPLICAS"},
		{"out of memory", []string{"--maxmemory", "1"}, nil, "", "OOM", "OOM"},
		{"cluster node", []string{"--cluster-enabled", "yes", "--cluster-port", redistest.FreePort()}, nil, "",
			"CLUSTERDOWN", "REDIS_MODE=cluster"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := redistest.Start(t, test.args...)
			url := "redis://" + p.Addr
			if test.user != nil {
				testkit.Must(t, p.Client(t).Do(t.Context(), test.user...).Err())
				url = "redis://svc@" + p.Addr
			}
			var more []string
			if test.file != "" {
				file := filepath.Join(t.TempDir(), "password")
				testkit.Must(t, os.WriteFile(file, []byte(test.file+"\n"), 0o600))
				more = []string{"REDIS_PASSWORD_FILE", file}
			}
			s := openTestStore(t, "standalone", url, "p:", time.Second, more...)
			for _, call := range []struct {
				name string
				err  error
				want string
			}{
				{"put", s.put("acme", "x", []byte("x"), inAnHour()), test.put},
				{"check", s.check(), test.check},
			} {
				switch {
				case call.want == "" && call.err != nil:
					t.Errorf("%s = %v, want nil", call.name, call.err)
				case call.want != "" && (call.err == nil || !strings.Contains(call.err.Error(), call.want)):
					t.Errorf("%s = %v, want an error with %s", call.name, call.err, call.want)
				case call.err != nil && (strings.Contains(call.err.Error(), "-pw") || groupcommit.TimedOut(call.err)):
					t.Errorf("%s = %v: it holds the password, or counts as a timeout", call.name, call.err)
				}
			}
		})
	}
}

// Each primary of a cluster that has sessions counts for check, also while a slot moves.
func TestStoreCheckCluster(t *testing.T) {
	t.Parallel()
	nodes := redistest.Cluster(t)
	probes := func(prefix string) (counts []int) {
		for _, p := range nodes {
			keys, err := p.Client(t).Keys(t.Context(), prefix+"probe*").Result()
			testkit.Must(t, err)
			counts = append(counts, len(keys))
		}
		return counts
	}
	s := openTestStore(t, "cluster", "redis://"+nodes[0].Addr, "p:", time.Second)
	testkit.Must(t, s.check())
	if got := fmt.Sprint(probes("p:")); got != "[1 1 1]" {
		t.Errorf("probes on the primaries: %s, want one on each", got)
	}
	tagged := openTestStore(t, "cluster", "redis://"+nodes[0].Addr, "{tag}:", time.Second)
	testkit.Must(t, tagged.check())
	sum := 0
	for _, n := range probes("{tag}:") {
		sum += n
	}
	if sum != 1 {
		t.Errorf("%d probes with a hash tag, want one, where all sessions lie", sum)
	}

	// While a slot moves, what is not in it yet belongs to the next owner.
	from, to := nodes[0].Client(t), nodes[1].Client(t)
	probe := from.Keys(t.Context(), "p:probe*").Val()[0]
	slot := from.ClusterKeySlot(t.Context(), probe).Val()
	fromID, toID := from.ClusterMyID(t.Context()).Val(), to.ClusterMyID(t.Context()).Val()
	testkit.Must(t, from.Del(t.Context(), probe).Err())
	testkit.Must(t, to.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err())
	testkit.Must(t, from.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "MIGRATING", toID).Err())
	if err := s.check(); err != nil {
		t.Errorf("check() = %v while a slot moves", err)
	}

	var log testkit.Log
	s.log = slog.New(slog.NewJSONHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx) })
	testkit.WaitFor(t, 5*time.Second, "the log line", func() bool { return log.Has("redis takes sessions") })
	nodes[2].Stop()
	if err := s.check(); err != nil {
		t.Errorf("check() = %v with one of three primaries dead", err)
	}
	if f := s.primariesFailing(); len(f) != 1 || f[0].addr != nodes[2].Addr {
		t.Errorf("primaries failing = %v, want %s", f, nodes[2].Addr)
	}
	if err := tagged.check(); (err == nil) != (len(tagged.primariesFailing()) == 0) {
		t.Errorf("check() = %v where all sessions lie on one primary, and failing are %v", err, tagged.primariesFailing())
	}
	cancel()
	watching.Wait()
	watching.Go(func() { s.watch(t.Context()) })
	testkit.WaitFor(t, 5*time.Second, "the failing primary in the log", func() bool {
		return log.Has("redis takes only some sessions") && log.Has(nodes[2].Addr+": ")
	})
	nodes[0].Stop()
	nodes[1].Stop()
	if err := s.check(); err == nil {
		t.Error("check() = nil with all primaries dead")
	}
	if n := len(s.primariesFailing()); n == 0 {
		t.Error("no primary is failing with all dead")
	}
	testkit.WaitFor(t, 5*time.Second, "the log line", func() bool { return log.Has("redis takes no sessions") })
}

// What callers of /readyz get to know of an error names the fault and no address.
func TestLack(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 6379},
		Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("failed to authenticate: %w", refused), "connection refused"},
		{fmt.Errorf("10.0.0.7: %w by 30s", groupcommit.ErrClock), "redis's clock is off ours"},
		{fmt.Errorf("10.0.0.7: %w", context.DeadlineExceeded), "no answer in time"},
		{errNoSlots, "no primary of the cluster has slots"},
		{errClusterNode, errClusterNode.Error()},
		{redis.ErrCrossSlot, "CROSSSLOT"}, // as any refusal of Redis
		{redis.Nil, "its connection or its answer is broken"},
		{errors.New("x509: certificate is valid for 10.0.0.7"), "its connection or its answer is broken"},
	} {
		if got := lack(test.err); got != test.want {
			t.Errorf("lack(%v) = %q, want %q", test.err, got, test.want)
		}
	}
}

// A cluster whose slots are nobody's yet is not well.
func TestStoreClusterWithoutSlots(t *testing.T) {
	redistest.Need(t)
	p := redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", redistest.FreePort())
	s := openTestStore(t, "cluster", "redis://"+p.Addr, "p:", time.Second)
	for name, err := range map[string]error{"put": s.put("acme", "x", []byte("x"), inAnHour()), "check": s.check()} {
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), "slot") {
			t.Errorf("%s = %v, want an error with slot", name, err)
		}
	}
}

// A clock that is over 2 s off is a reason not to be ready, and by how much can be read.
func TestStoreCheckClock(t *testing.T) {
	for by, good := range map[time.Duration]bool{
		0: true, time.Second: true, -time.Second: true, -30 * time.Second: false, 30 * time.Second: false,
		2 * time.Hour: false, -2 * time.Hour: false,
	} {
		t.Run(by.String(), func(t *testing.T) {
			proxy := redistest.StartProxy(t, redistest.Addr(t), redistest.ClockAhead(by))
			s := openTestStore(t, "standalone", "redis://"+proxy.Addr, redistest.Prefix(t), time.Second)
			err := s.check()
			if (err == nil) != good || err != nil && !strings.Contains(err.Error(), "clock") {
				t.Errorf("check() = %v, want nil: %t, or an error with clock", err, good)
			}
			if skew := s.clockSkew(); (skew - by).Abs() > 500*time.Millisecond {
				t.Errorf("clockSkew() = %s, want %s", skew, by)
			}
		})
	}
}

// Checks at the same time are one, and a Redis that does not answer holds up none beyond the store's timeout.
func TestStoreCheckTogether(t *testing.T) {
	ts, gate := newSlowTestServer(t, map[string]string{"STORE_TIMEOUT": "500ms"})
	var sent pipelines
	ts.store.client.AddHook(&sent)
	gate.Lock()
	var all sync.WaitGroup
	start := time.Now()
	for range 50 {
		all.Go(func() {
			if err := ts.store.check(); !groupcommit.TimedOut(err) {
				t.Errorf("check() = %v with a Redis that does not answer, want a timeout", err)
			}
		})
	}
	all.Wait()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("the checks took %s, want 500 ms", took)
	}
	if n := sent.Load(); n < 1 || n > 3 { // a goroutine may be late
		t.Errorf("50 checks sent %d pipelines, want 1", n)
	}
	gate.Unlock()
	testkit.WaitFor(t, 5*time.Second, "a good check", func() bool { return ts.store.check() == nil })
}

// pipelines counts those that a Redis client sends.
type pipelines struct{ atomic.Int64 }

func (p *pipelines) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (p *pipelines) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (p *pipelines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		p.Add(1)
		return next(ctx, commands)
	}
}

func TestStoreTLS(t *testing.T) {
	redistest.Need(t)
	ca := redistest.NewCA(t)
	p := redistest.StartTLS(t, ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	soon := inAnHour()
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	testkit.Must(t, os.WriteFile(caFile, ca.PEM, 0o600))
	s := openTestStore(t, "standalone", "rediss://"+p.TLSAddr, "p:", 2*time.Second, "REDIS_CA_FILE", caFile)
	testkit.Must(t, s.put("acme", "x", []byte("x"), soon))
	testkit.Must(t, s.check())

	// A restart leaves dead connections in the pool; retries get past them.
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() { _ = s.put("acme", strconv.Itoa(i), []byte("x"), soon) })
	}
	all.Wait()
	p.Stop()
	p.Restart(t)
	failed := 0
	for range 20 {
		if s.put("acme", "x", []byte("x"), soon) != nil {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("%d of 20 puts failed after a restart, want one at most", failed)
	}

	for name, addr := range map[string]string{
		"expired":    redistest.StartTLS(t, ca.Issue(t, "127.0.0.1", time.Now().Add(-time.Hour))).TLSAddr,
		"wrong host": redistest.StartTLS(t, ca.Issue(t, "127.0.0.9", time.Now().Add(time.Hour))).TLSAddr,
		"plain text": p.Addr,
	} {
		s := openTestStore(t, "standalone", "rediss://"+addr, "p:", time.Second, "REDIS_CA_FILE", caFile)
		start := time.Now()
		if err := s.put("acme", "x", []byte("x"), soon); err == nil || time.Since(start) > 1200*time.Millisecond {
			t.Errorf("%s: put = %v after %s", name, err, time.Since(start))
		}
	}
	s = openTestStore(t, "standalone", "rediss://"+p.TLSAddr, "p:", time.Second)
	if err := s.put("acme", "x", []byte("x"), soon); err == nil {
		t.Error("put without REDIS_CA_FILE = nil: an unknown root is trusted")
	}
}

// The log says when the store ceases and begins to be well, once each, and warns once of a Redis that may evict.
func TestStoreWatch(t *testing.T) {
	redistest.Need(t)
	p := redistest.Start(t, "--maxmemory-policy", "allkeys-lru")
	var log testkit.Log
	s := openTestStore(t, "standalone", "redis://"+p.Addr, "p:", time.Second)
	s.log = slog.New(slog.NewJSONHandler(&log, nil))
	p.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx) })
	testkit.WaitFor(t, 5*time.Second, "the first line", func() bool { return log.String() != "" })
	p.Restart(t)
	testkit.WaitFor(t, 5*time.Second, "the store to be well", func() bool { return log.Has("redis takes sessions") })
	testkit.WaitFor(t, 5*time.Second, "the warning", func() bool { return log.Has("maxmemory_policy") })
	cancel()
	p.Stop()
	watching.Wait()
	for text, want := range map[string]int{
		"redis takes no sessions": 1, "redis takes sessions": 1, `"maxmemory_policy":"allkeys-lru"`: 1,
	} {
		if n := strings.Count(log.String(), text); n != want {
			t.Errorf("%d log lines with %q, want %d:\n%s", n, text, want, &log)
		}
	}
}
