package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"authsession/internal/config"
	"authsession/internal/redisconn"
	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// openTestStore opens a store with keys under p:, as env says of Redis. log, if not nil, gets its log.
func openTestStore(t testing.TB, env map[string]string, log *testkit.Log) *store {
	t.Helper()
	all := map[string]string{"AUTH_URL": "https://a.example/", "JWKS_URL": "file:///jwks.json", "KEY_PREFIX": "p:"}
	maps.Copy(all, env)
	cfg, err := config.Load(func(name string) string { return all[name] })
	testkit.Must(t, err)
	logger := slog.New(slog.DiscardHandler)
	if log != nil {
		logger = slog.New(slog.NewJSONHandler(log, nil))
	}
	s := openStore(cfg, prometheus.ObserverFunc(func(float64) {}), logger)
	t.Cleanup(s.close)
	return s
}

// redisAt is the environment for a standalone Redis.
func redisAt(addr string) map[string]string { return map[string]string{"REDIS_URL": "redis://" + addr} }

func inAnHour() int64 { return time.Now().Add(time.Hour).Unix() }

func (s *store) wantRecord(t testing.TB, key string, value []byte, expiresAt int64) {
	t.Helper()
	client := s.conn.Load().client
	got, err := client.Get(t.Context(), key).Bytes()
	if err != nil || !bytes.Equal(got, value) {
		t.Errorf("GET %s = %.50q, %v, want %.50q", key, got, err, value)
	}
	if at, err := client.ExpireTime(t.Context(), key).Result(); err != nil || int64(at/time.Second) != expiresAt {
		t.Errorf("EXPIRETIME %s = %d, %v, want %d", key, at/time.Second, err, expiresAt)
	}
}

func wantError(t testing.TB, call string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(strings.ToLower(err.Error()), want)) {
		t.Errorf("%s = %v, want %q in it", call, err, want)
	}
}

// The store's contract, on each kind of Redis.
func TestStore(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) (env map[string]string){
		"shared": func(t *testing.T) map[string]string { return redisAt(redistest.Addr(t)) }, // embedded without a server
		"unix socket": func(t *testing.T) map[string]string {
			redistest.Need(t)
			socket := filepath.Join(t.TempDir(), "s")
			redistest.Start(t, "--unixsocket", socket)
			return map[string]string{"REDIS_URL": "unix://" + socket}
		},
		"cluster": func(t *testing.T) map[string]string {
			nodes := redistest.Cluster(t)
			return map[string]string{"REDIS_MODE": "cluster", "REDIS_URL": "redis://" + nodes[0].Addr + "?addr=" + nodes[1].Addr}
		},
		"sentinel": func(t *testing.T) map[string]string {
			_, _, sentinel := redistest.Sentinel(t)
			return map[string]string{"REDIS_MODE": "sentinel", "REDIS_WAIT_REPLICAS": "1",
				"REDIS_URL": "redis://" + sentinel.Addr + "?master_name=mymaster"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := start(t)
			env["STORE_TIMEOUT"], env["KEY_PREFIX"] = "10s", redistest.Prefix(t)
			s := openTestStore(t, env, nil)
			if err := s.check(); err != nil {
				t.Fatalf("check() = %v", err)
			}
			if skew := s.clockSkew(); skew.Abs() > time.Second {
				t.Errorf("clockSkew() = %s, want next to nothing", skew)
			}
			soon := inAnHour()
			value := []byte(`{"v":1,"x":"` + strings.Repeat("é", 2500) + `"}`)
			testkit.Must(t, s.put("exact", value, soon))
			s.wantRecord(t, s.prefix+"exact", value, soon)

			var all sync.WaitGroup
			for i := range 300 {
				all.Go(func() {
					if err := s.put(strconv.Itoa(i), []byte(strconv.Itoa(i)), soon+int64(i)); err != nil {
						t.Errorf("put(%d) = %v", i, err)
					}
				})
			}
			all.Wait()
			for i := range 300 {
				s.wantRecord(t, s.prefix+strconv.Itoa(i), []byte(strconv.Itoa(i)), soon+int64(i))
			}

			s.close()
			if err := s.put("late", value, soon); err == nil {
				t.Error("put after close = nil")
			}
		})
	}
}

// put and check refuse what Redis refuses, and say why without the password.
func TestStoreRefused(t *testing.T) {
	redistest.Need(t)
	const password = "s3cret-pw"
	user := func(rules ...any) []any {
		return append([]any{"ACL", "SETUSER", "svc", "on", ">" + password, "resetkeys", "-@all"}, rules...)
	}
	requirePass := []string{"--requirepass", password}
	for name, tt := range map[string]struct {
		args               []string // of the server
		user               []any    // a command that makes the user svc; nil: none
		password           string   // in REDIS_PASSWORD_FILE
		wantPut, wantCheck string   // in their errors, in lower case; "": no error
	}{
		"password":         {args: requirePass, password: password},
		"wrong password":   {args: requirePass, password: "wr0ng-pw", wantPut: "wrongpass", wantCheck: "wrongpass"},
		"no password":      {args: requirePass, wantPut: "noauth", wantCheck: "noauth"},
		"ACL without SET":  {user: user("~p:*", "+time"), password: password, wantPut: "noperm", wantCheck: "noperm"},
		"ACL without TIME": {user: user("~p:*", "+set"), password: password, wantCheck: "noperm"},
		"ACL, other keys":  {user: user("~q:*", "+set", "+time"), password: password, wantPut: "noperm", wantCheck: "noperm"},
		"replica":          {args: []string{"--replicaof", "127.0.0.1 1"}, wantPut: "readonly", wantCheck: "readonly"},
		"too few replicas": {args: []string{"--min-replicas-to-write", "1"}, wantPut: "noreplicas", wantCheck: "noreplicas"},
		"out of memory":    {args: []string{"--maxmemory", "1"}, wantPut: "oom", wantCheck: "oom"},
		"cluster node": {args: []string{"--cluster-enabled", "yes", "--cluster-port", redistest.FreePort()},
			wantPut: "clusterdown", wantCheck: "redis_mode=cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := redistest.Start(t, tt.args...)
			env := redisAt(p.Addr)
			if tt.user != nil {
				testkit.Must(t, p.Client(t).Do(t.Context(), tt.user...).Err())
				env = redisAt("svc@" + p.Addr)
			}
			if tt.password != "" {
				env["REDIS_PASSWORD_FILE"] = writeFile(t, "password", []byte(tt.password+"\n"))
			}
			s := openTestStore(t, env, nil)
			putErr, checkErr := s.put("x", []byte("x"), inAnHour()), s.check()
			wantError(t, "put", putErr, tt.wantPut)
			wantError(t, "check", checkErr, tt.wantCheck)
			wantError(t, "put after check", s.put("x", []byte("x"), inAnHour()), tt.wantPut)
			if skew := s.clockSkew(); skew.Abs() > time.Second {
				t.Errorf("clockSkew() = %s, want about 0", skew)
			}
			if text := fmt.Sprint(putErr, checkErr); strings.Contains(text, "-pw") ||
				timedOut(putErr) || timedOut(checkErr) {
				t.Errorf("%s: it holds the password, or counts as a timeout", text)
			}
		})
	}
}

// Only the reply OK is success, for a lone write, in a batch, with WAIT, and in a check.
func TestStoreOtherReplies(t *testing.T) {
	t.Parallel()
	proxy := redistest.StartProxy(t, redistest.Addr(t), func(client *net.TCPConn, reply []byte, came time.Time) {
		redistest.Pass(client, bytes.ReplaceAll(reply, []byte("+OK\r\n"), []byte("+QUEUED\r\n")), came)
	})
	for _, replicas := range []string{"0", "1"} {
		env := redisAt(proxy.Addr)
		env["REDIS_WAIT_REPLICAS"] = replicas
		s := openTestStore(t, env, nil)
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				if err := s.put(strconv.Itoa(i), []byte("x"), inAnHour()); err == nil {
					t.Errorf("put after +QUEUED with REDIS_WAIT_REPLICAS=%s = nil", replicas)
				}
			})
		}
		all.Wait()
		wantError(t, "check", s.check(), "other than ok")
	}
}

// With REDIS_WAIT_REPLICAS a write counts only when a replica has it.
func TestStoreReplicas(t *testing.T) {
	t.Parallel()
	redistest.Need(t)
	primary := redistest.Start(t)
	env := redisAt(primary.Addr)
	env["REDIS_WAIT_REPLICAS"] = "1"
	s := openTestStore(t, env, nil)
	for call, err := range map[string]error{"put": s.put("x", []byte("x"), inAnHour()), "check": s.check()} {
		if !errors.Is(err, errReplicas) {
			t.Errorf("%s without a replica = %v, want errReplicas", call, err)
		}
	}
	replica := redistest.Start(t, "--replicaof", "127.0.0.1 "+primary.Port, "--repl-diskless-sync-delay", "0")
	testkit.WaitFor(t, 20*time.Second, "the replica", func() bool { return s.check() == nil })
	testkit.Must(t, s.put("y", []byte("y"), inAnHour()))
	if got := replica.Client(t).Get(t.Context(), "p:y").Val(); got != "y" {
		t.Errorf("the replica has %q after put, want y", got)
	}
}

// A clock that is over 2 s off is a reason to refuse, until it is right again.
func TestStoreClock(t *testing.T) {
	for by, want := range map[time.Duration]string{
		0: "", time.Second: "", -time.Second: "",
		30 * time.Second: "clock", -30 * time.Second: "clock", 2 * time.Hour: "clock",
	} {
		t.Run(by.String(), func(t *testing.T) {
			t.Parallel()
			proxy := redistest.StartProxy(t, redistest.Addr(t), redistest.ClockAhead(by))
			env := redisAt(proxy.Addr)
			env["KEY_PREFIX"] = redistest.Prefix(t)
			s := openTestStore(t, env, nil)
			wantError(t, "check", s.check(), want)
			wantError(t, "put", s.put("x", []byte("x"), inAnHour()), want)
			if skew := s.clockSkew(); (skew - by).Abs() > 900*time.Millisecond {
				t.Errorf("clockSkew() = %s, want %s", skew, by)
			}
			proxy.Set(redistest.Pass)
			ctx, cancel := context.WithCancel(t.Context())
			var watching sync.WaitGroup
			watching.Go(func() { s.watch(ctx) })
			testkit.WaitFor(t, 10*time.Second, "a put after the clock is right", func() bool {
				return s.put("x", []byte("x"), inAnHour()) == nil
			})
			cancel()
			watching.Wait()
		})
	}
}

// Each primary of a cluster that has sessions counts for check, and put follows a slot that moves.
func TestStoreCluster(t *testing.T) {
	t.Parallel()
	nodes := redistest.Cluster(t)
	env := map[string]string{"REDIS_MODE": "cluster", "REDIS_URL": "redis://" + nodes[0].Addr}
	var log testkit.Log
	s := openTestStore(t, env, &log)
	probes := func(prefix string) (counts [3]int) {
		for i, p := range nodes {
			keys, err := p.Client(t).Keys(t.Context(), prefix+"probe*").Result()
			testkit.Must(t, err)
			counts[i] = len(keys)
		}
		return counts
	}
	testkit.Must(t, s.check())
	if got := probes("p:"); got != [3]int{1, 1, 1} {
		t.Errorf("probes on the primaries: %d, want one on each", got)
	}
	env["KEY_PREFIX"] = "{tag}:"
	tagged := openTestStore(t, env, nil)
	testkit.Must(t, tagged.check())
	if got := probes("{tag}:"); got[0]+got[1]+got[2] != 1 {
		t.Errorf("probes with a hash tag: %d, want one, on the primary that has all sessions", got)
	}

	moveSlot(t, nodes[0], nodes[1], nodes[0].Client(t).ClusterKeySlot(t.Context(), "{b}").Val())
	testkit.Must(t, s.put("{b}", []byte("x"), inAnHour()))

	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx) })
	testkit.WaitFor(t, 10*time.Second, "the log line", func() bool { return log.Has("redis takes sessions") })
	for _, p := range nodes { // so that the slots of a dead one are not dropped before the checks are done
		testkit.Must(t, p.Client(t).ConfigSet(t.Context(), "cluster-node-timeout", "60000").Err())
	}
	nodes[2].Stop()
	testkit.Must(t, s.check()) // two of three are enough
	if got := slices.Collect(maps.Keys(s.primariesFailing())); !slices.Equal(got, []string{nodes[2].Addr}) {
		t.Errorf("primariesFailing() = %q, want %s", got, nodes[2].Addr)
	}
	cancel()
	watching.Wait()
	watching.Go(func() { s.watch(t.Context()) })
	testkit.WaitFor(t, 10*time.Second, "the failing primary in the log", func() bool {
		return log.Has("redis takes only some sessions") && log.Has(nodes[2].Addr)
	})
	nodes[0].Stop()
	nodes[1].Stop()
	testkit.WaitFor(t, 10*time.Second, "the log line", func() bool { return log.Has("redis takes no sessions") })
}

// moveSlot begins to move a slot, so that keys which are not there yet belong to its next owner.
func moveSlot(t *testing.T, from, to *redistest.Server, slot int64) {
	t.Helper()
	a, b := from.Client(t), to.Client(t)
	fromID, toID := a.ClusterMyID(t.Context()).Val(), b.ClusterMyID(t.Context()).Val()
	testkit.Must(t, b.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err())
	testkit.Must(t, a.Do(t.Context(), "CLUSTER", "SETSLOT", slot, "MIGRATING", toID).Err())
}

// A cluster whose slots have no owner yet takes no sessions.
func TestStoreClusterWithoutSlots(t *testing.T) {
	redistest.Need(t)
	p := redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", redistest.FreePort())
	s := openTestStore(t, map[string]string{"REDIS_MODE": "cluster", "REDIS_URL": "redis://" + p.Addr}, nil)
	wantError(t, "put", s.put("x", []byte("x"), inAnHour()), "slot")
	wantError(t, "check", s.check(), "slot")
}

// go-redis says "redis: nil" of a cluster that announces no addresses. check, put and /readyz say what it is.
func TestStoreClusterWithoutAddresses(t *testing.T) {
	t.Parallel()
	nodes := redistest.Cluster(t)
	for _, p := range nodes {
		testkit.Must(t, p.Client(t).ConfigSet(t.Context(), "cluster-preferred-endpoint-type", "unknown-endpoint").Err())
	}
	ts := newTestServer(t, map[string]string{"REDIS_MODE": "cluster", "REDIS_URL": "redis://" + nodes[0].Addr})
	wantError(t, "put", ts.store.put("x", []byte("x"), inAnHour()), "unknown-endpoint is not supported")
	wantError(t, "check", ts.store.check(), "unknown-endpoint is not supported")
	e := ts.do(t, "GET", "/readyz", nil, "").WantError(t, 503, "unavailable")
	if want := "not ready: redis: " + redisconn.ErrNoAddresses.Error(); e.Message != want {
		t.Errorf("/readyz says %q, want %q", e.Message, want)
	}
}

// publicReason names the fault and no address.
func TestPublicReason(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 6379},
		Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"refused":      {err: fmt.Errorf("failed to authenticate: %w", refused), want: "connection refused"},
		"clock":        {err: fmt.Errorf("10.0.0.7: %w by 30s", errClock), want: "redis's clock is off ours"},
		"failover":     {err: redisconn.ErrFailover, want: "the sentinels are replacing the primary"},
		"timeout":      {err: fmt.Errorf("10.0.0.7: %w", context.DeadlineExceeded), want: "no answer in time"},
		"cluster node": {err: errClusterNode, want: errClusterNode.Error()},
		"redis's word": {err: redis.ErrCrossSlot, want: "CROSSSLOT"},
		"nil reply":    {err: redis.Nil, want: "its connection or its answer is broken"},
		"anything": {err: errors.New("x509: certificate is valid for 10.0.0.7"),
			want: "its connection or its answer is broken"},
	} {
		if got := publicReason(tt.err); got != tt.want {
			t.Errorf("%s: publicReason(%v) = %q, want %q", name, tt.err, got, tt.want)
		}
	}
}

// A Redis that does not answer holds up neither put nor check beyond STORE_TIMEOUT; both work when it answers again.
func TestStoreTimeout(t *testing.T) {
	t.Parallel()
	var gate sync.RWMutex // locked: no reply gets through
	proxy := redistest.StartProxy(t, redistest.Addr(t), func(client *net.TCPConn, reply []byte, came time.Time) {
		gate.RLock()
		defer gate.RUnlock()
		redistest.Pass(client, reply, came)
	})
	env := redisAt(proxy.Addr)
	env["STORE_TIMEOUT"] = "300ms"
	s := openTestStore(t, env, nil)
	gate.Lock()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := s.put("x", []byte("x"), inAnHour()); !timedOut(err) {
				t.Errorf("put = %v while Redis does not answer, want a timeout", err)
			}
		})
		all.Go(func() {
			if err := s.check(); !timedOut(err) {
				t.Errorf("check = %v while Redis does not answer, want a timeout", err)
			}
		})
	}
	all.Wait()
	gate.Unlock()
	testkit.WaitFor(t, 10*time.Second, "a good check", func() bool { return s.check() == nil })
	testkit.WaitFor(t, 10*time.Second, "a good put", func() bool { return s.put("x", []byte("x"), inAnHour()) == nil })
}

// Through a failover nothing is acknowledged that the new primary does not have.
func TestStoreFailover(t *testing.T) {
	t.Parallel()
	_, replica, sentinel := redistest.Sentinel(t)
	s := openTestStore(t, map[string]string{"REDIS_MODE": "sentinel",
		"REDIS_URL": "redis://" + sentinel.Addr + "?master_name=mymaster"}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.redis.WatchSentinels(ctx, time.Second, s.connect) })
	testkit.WaitFor(t, 10*time.Second, "the subscription", func() bool {
		return strings.Contains(sentinel.Client(t).ClientList(t.Context()).Val(), " sub=5 ")
	})
	testkit.Must(t, sentinel.Client(t).Do(t.Context(), "SENTINEL", "FAILOVER", "mymaster").Err())
	var acknowledged []string
	isPrimary := func() bool {
		return strings.Contains(replica.Client(t).Info(t.Context(), "replication").Val(), "role:master")
	}
	testkit.WaitFor(t, 30*time.Second, "the switch, and sessions after it", func() bool {
		name, switched := strconv.Itoa(len(acknowledged)), isPrimary()
		err := s.put(name, []byte("x"), inAnHour())
		if err == nil {
			acknowledged = append(acknowledged, "p:"+name)
		}
		return err == nil && switched
	})
	for _, key := range acknowledged {
		if replica.Client(t).Exists(t.Context(), key).Val() != 1 {
			t.Errorf("%s of %d keys was acknowledged, and the new primary does not have it", key, len(acknowledged))
		}
	}
	cancel()
	running.Wait()
}

// The log says once each when the store ceases and begins to work, and warns once of a Redis that may evict.
func TestStoreWatch(t *testing.T) {
	t.Parallel()
	redistest.Need(t)
	p := redistest.Start(t, "--maxmemory-policy", "allkeys-lru")
	var log testkit.Log
	s := openTestStore(t, redisAt(p.Addr), &log)
	p.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx) })
	testkit.WaitFor(t, 10*time.Second, "the first line", func() bool { return log.String() != "" })
	p.Restart(t)
	testkit.WaitFor(t, 10*time.Second, "the store to work", func() bool { return log.Has("redis takes sessions") })
	cancel()
	watching.Wait()
	testkit.Must(t, s.check())
	for _, text := range []string{
		"redis takes no sessions", "redis takes sessions", `"maxmemory_policy":"allkeys-lru"`,
	} {
		if n := strings.Count(log.String(), text); n != 1 {
			t.Errorf("%d log lines with %q, want 1:\n%s", n, text, &log)
		}
	}
}

// documentedACL is the command behind a line "# role" of docs/operate.md.
func documentedACL(t *testing.T, role, password string) []any {
	t.Helper()
	text, err := os.ReadFile("docs/operate.md")
	testkit.Must(t, err)
	_, after, found := strings.Cut(string(text), "\n# "+role+"\n")
	line, _, _ := strings.Cut(after, "\n")
	var args []any
	for word := range strings.FieldsSeq(strings.Replace(line, ">password", ">"+password, 1)) {
		args = append(args, word)
	}
	if !found || !strings.HasPrefix(line, "ACL SETUSER authsession ") {
		t.Fatalf("docs/operate.md has no ACL for %s", role)
	}
	return args
}

// The ACLs in docs/operate.md are enough: for the warning about eviction, while a slot moves, and through a failover.
func TestStoreLeastACL(t *testing.T) {
	redistest.Need(t)
	const password, sentinels = "s3cret-pw", "s3cret-sentinels"
	open := func(t *testing.T, mode, url string, log *testkit.Log) *store {
		t.Helper()
		return openTestStore(t, map[string]string{"REDIS_MODE": mode, "REDIS_URL": url, "KEY_PREFIX": "auth_session:",
			"REDIS_PASSWORD_FILE": writeFile(t, "password", []byte(password))}, log)
	}
	allow := func(t *testing.T, p *redistest.Server, role string) {
		t.Helper()
		testkit.Must(t, p.Client(t).Do(t.Context(), documentedACL(t, role, password)...).Err())
	}
	const dataNode = "standalone, and data nodes behind sentinels"
	wantWorking := func(t *testing.T, s *store) {
		t.Helper()
		if err := s.check(); err != nil || len(s.primariesFailing()) > 0 {
			t.Errorf("check = %v, failing %v", err, s.primariesFailing())
		}
		for i := range 20 {
			wantError(t, "put", s.put(strconv.Itoa(i), []byte("x"), inAnHour()), "")
		}
	}
	t.Run("standalone", func(t *testing.T) {
		t.Parallel()
		p := redistest.Start(t, "--maxmemory-policy", "volatile-lru")
		allow(t, p, dataNode)
		var log testkit.Log
		wantWorking(t, open(t, "standalone", "redis://authsession@"+p.Addr, &log))
		if !log.Has(`"maxmemory_policy":"volatile-lru"`) {
			t.Errorf("no warning about volatile-lru in the log: %s", &log)
		}
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		nodes := redistest.Cluster(t)
		for _, p := range nodes {
			allow(t, p, "every node of a cluster")
		}
		s := open(t, "cluster", "redis://authsession@"+nodes[0].Addr, nil)
		wantWorking(t, s)
		moveSlot(t, nodes[0], nodes[1], nodes[0].Client(t).ClusterKeySlot(t.Context(), "{b}").Val())
		wantError(t, "put while its slot moves", s.put("{b}", []byte("x"), inAnHour()), "")
	})
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		primary, replica, sentinel := redistest.Sentinel(t)
		allow(t, primary, dataNode)
		allow(t, replica, dataNode)
		c := redis.NewClient(&redis.Options{Addr: sentinel.Addr}) // stays logged in as default
		defer c.Close()
		testkit.Must(t, c.Do(t.Context(), documentedACL(t, "every sentinel", sentinels)...).Err())
		testkit.Must(t, c.Do(t.Context(), "ACL", "SETUSER", "default", "resetpass", ">another").Err())
		s := open(t, "sentinel",
			"redis://authsession:"+sentinels+"@"+sentinel.Addr+"?master_name=mymaster&username=authsession", nil)
		wantWorking(t, s)
		primary.Stop()
		testkit.WaitFor(t, 30*time.Second, "the failover", func() bool { return s.check() == nil })
		wantWorking(t, s)
	})
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	testkit.Must(t, os.WriteFile(file, data, 0o600))
	return file
}

// A server certificate must be good, and a client certificate is read again for each new connection.
func TestStoreTLS(t *testing.T) {
	t.Parallel()
	redistest.Need(t)
	ca, stranger, soon := redistest.NewCA(t), redistest.NewCA(t), time.Now().Add(time.Hour)
	p := redistest.StartTLS(t, ca.Issue(t, "127.0.0.1", soon), "--tls-auth-clients", "yes")
	cert := writeFile(t, "client.pem", nil)
	use := func(issued string) {
		t.Helper()
		data, err := os.ReadFile(issued)
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(cert, data, 0o600))
	}
	env := map[string]string{"REDIS_URL": "rediss://" + p.TLSAddr, "REDIS_CA_FILE": writeFile(t, "ca.pem", ca.PEM)}
	bare := openTestStore(t, env, nil)
	env["REDIS_CERT_FILE"], env["REDIS_KEY_FILE"] = cert, cert
	use(stranger.Issue(t, "client", soon))
	s := openTestStore(t, env, nil)
	for name, s := range map[string]*store{"no certificate": bare, "a stranger's": s} {
		if err := s.check(); err == nil {
			t.Errorf("check with %s = nil", name)
		}
	}
	use(ca.Issue(t, "client", soon))
	testkit.WaitFor(t, 10*time.Second, "the new certificate to count", func() bool { return s.check() == nil })

	// A restart leaves dead connections in the pool. Retries get past them.
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() { _ = s.put(strconv.Itoa(i), []byte("x"), inAnHour()) })
	}
	all.Wait()
	p.Stop()
	p.Restart(t)
	failed := 0
	for range 20 {
		if s.put("x", []byte("x"), inAnHour()) != nil {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("%d of 20 puts failed after a restart, want at most one", failed)
	}
	for name, addr := range map[string]string{
		"expired":    redistest.StartTLS(t, ca.Issue(t, "127.0.0.1", time.Now().Add(-time.Hour))).TLSAddr,
		"wrong host": redistest.StartTLS(t, ca.Issue(t, "127.0.0.9", soon)).TLSAddr,
		"plain text": p.Addr,
	} {
		env["REDIS_URL"] = "rediss://" + addr
		if err := openTestStore(t, env, nil).put("x", []byte("x"), inAnHour()); err == nil {
			t.Errorf("%s: put = nil", name)
		}
	}
	env = map[string]string{"REDIS_URL": "rediss://" + p.TLSAddr}
	if err := openTestStore(t, env, nil).put("x", []byte("x"), inAnHour()); err == nil {
		t.Error("put without REDIS_CA_FILE = nil: an unknown root is trusted")
	}
}

// With TLS each node must have a certificate for its address, or all one for REDIS_TLS_SERVER_NAME.
func TestStoreTLSNames(t *testing.T) {
	redistest.Need(t)
	ca := redistest.NewCA(t)
	caFile := writeFile(t, "ca.pem", ca.PEM)
	for mode, start := range map[string]func(t *testing.T, cert string) (url string){
		"cluster": func(t *testing.T, cert string) string {
			nodes := redistest.ClusterTLS(t, cert)
			return "rediss://" + nodes[0].TLSAddr + "?addr=" + nodes[1].TLSAddr
		},
		"sentinel": func(t *testing.T, cert string) string {
			_, _, sentinel := redistest.SentinelTLS(t, cert)
			return "rediss://" + sentinel.TLSAddr + "?master_name=mymaster"
		},
	} {
		for _, name := range []string{"127.0.0.1", "redis.test"} {
			t.Run(mode+" for "+name, func(t *testing.T) {
				t.Parallel()
				url := start(t, ca.Issue(t, name, time.Now().Add(time.Hour)))
				for serverName, works := range map[string]bool{
					"": name == "127.0.0.1", "127.0.0.1": name == "127.0.0.1", name: true, "other.test": false,
				} {
					s := openTestStore(t, map[string]string{"REDIS_MODE": mode, "REDIS_URL": url, "REDIS_CA_FILE": caFile,
						"REDIS_TLS_SERVER_NAME": serverName, "STORE_TIMEOUT": "2s"}, nil)
					putErr, checkErr := s.put("x", []byte("x"), inAnHour()), s.check()
					if (putErr == nil) != works || (checkErr == nil) != works {
						t.Errorf("put, check with REDIS_TLS_SERVER_NAME=%s = %v, %v, want success: %t",
							serverName, putErr, checkErr, works)
					}
				}
			})
		}
	}
}
