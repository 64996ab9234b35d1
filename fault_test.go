//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// The fault suite runs the built binary under steady load, breaks Redis, heals it, and
// looks whether the contract held. With FAULT_TABLE=file it writes what it measured as a
// table in Markdown.

const (
	faultTimeout  = time.Second                         // STORE_TIMEOUT
	faultAnswer   = faultTimeout + 200*time.Millisecond // the contract's limit for an answer
	faultBack     = 1500 * time.Millisecond             // from healing to the first 200
	faultFailover = 3 * time.Second                     // from a replica's promotion to the first 200
	faultDetect   = 1000 * time.Millisecond             // Sentinel's down-after
	faultCallers  = 8
	faultRate     = 50 // requests a second, of all callers
	faultAtOnce   = 4  // scenarios
	faultLines    = 12 // of the Redis client and of its state, in one outage

	// What a healthy process may differ by from itself: a pool of connections to Redis,
	// the runtime's idle threads, a heap that is collected late.
	faultMoreFDs     = 24
	faultMoreThreads = 8
	faultMoreRSS     = 24 << 20
	faultGoroutines  = 24 // of a process that nobody calls

	faultPassword = "correct-horse-battery"
	faultUser     = "eu_must_not_be_logged"
)

// faultScenario is one way for Redis to fail.
type faultScenario struct {
	name    string
	redis   []string                        // redis-server's arguments
	env     map[string]string               // the service's
	setUp   func(t *testing.T, f *faultRun) // instead of one standalone redis-server
	atStart bool                            // the fault comes before the service
	begin   func(t *testing.T, f *faultRun) // returns once the fault is there
	end     func(t *testing.T, f *faultRun) // returns once Redis is well again
	after   func(t *testing.T, f *faultRun) // once the service is back, under load
	mode    proxyMode                       // the fault is the proxy's
	lasts   time.Duration                   // 0: a second
	struck  func(key string) bool           // what the fault concerns; nil: all
	during  string                          // the statuses meanwhile
	ready   string                          // what /readyz names meanwhile; "": it is ready
	back    time.Duration                   // 0: faultBack
	forgets bool                            // what was acknowledged before healing is gone
	mayLose int                             // acknowledged sessions
	evicts  bool                            // the start-up warning is due
}

var faultScenarios = []faultScenario{
	{
		name: "nothing", during: "200",
	}, {
		name: "absent at start", atStart: true, during: "503", ready: "refused",
		begin: faultKill, end: faultStart, forgets: true,
	}, {
		name: "kill -9, no persistence", during: "503", ready: "refused",
		begin: faultKill, end: faultStart, forgets: true,
	}, {
		name: "SHUTDOWN with AOF", redis: []string{"--appendonly", "yes"}, during: "503", ready: "refused",
		begin: func(t *testing.T, f *faultRun) { f.shutDown(t, f.admin.Shutdown) }, end: faultStart,
	}, {
		name: "LOADING for 2 s", during: "503", ready: "LOADING",
		redis: strings.Fields("--key-load-delay 2000 --loading-process-events-interval-bytes 1024 --rdbcompression no"),
		begin: func(t *testing.T, f *faultRun) {
			var fill []any
			for i := range 1000 {
				fill = append(fill, fmt.Sprint("fill:", i), strings.Repeat("x", 200))
			}
			for pair := range slices.Chunk(fill, 2) {
				faultDo(t, f, "SET", pair[0], pair[1])
			}
			f.shutDown(t, f.admin.ShutdownSave)
			faultStart(t, f)
		},
		end: func(t *testing.T, f *faultRun) { faultInfo(t, f.primary, "persistence", "\nloading:0") },
	}, {
		name: "SIGSTOP 3 s", during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		begin: faultStop, end: faultContinue,
	}, {
		name: "maxmemory reached (OOM)", during: "503", ready: "OOM",
		begin: faultCommand("CONFIG", "SET", "maxmemory", "1"), end: faultCommand("CONFIG", "SET", "maxmemory", "0"),
	}, {
		name: "demoted (READONLY)", during: "503", ready: "READONLY",
		begin: faultCommand("REPLICAOF", "127.0.0.1", "1"), end: faultCommand("REPLICAOF", "NO", "ONE"),
	}, {
		name: "replicas missing (NOREPLICAS)", during: "503", ready: "NOREPLICAS",
		begin: faultCommand("CONFIG", "SET", "min-replicas-to-write", "1"), end: faultCommand("CONFIG", "SET", "min-replicas-to-write", "0"),
	}, {
		name: "snapshot failed (MISCONF)", redis: []string{"--enable-protected-configs", "yes"}, during: "503", ready: "MISCONF",
		begin: func(t *testing.T, f *faultRun) {
			dir := t.TempDir()
			faultDo(t, f, "CONFIG", "SET", "dir", dir)
			must(t, os.Remove(dir))
			faultDo(t, f, "CONFIG", "SET", "save", "3600 1000000")
			faultDo(t, f, "BGSAVE")
			faultInfo(t, f.primary, "persistence", "rdb_last_bgsave_status:err")
		},
		end: faultCommand("CONFIG", "SET", "save", ""),
	}, {
		name: "password rotated", redis: []string{"--requirepass", faultPassword}, during: "503", ready: "WRONGPASS",
		begin: func(t *testing.T, f *faultRun) {
			faultDo(t, f, "CONFIG", "SET", "requirepass", "another")
			faultDo(t, f, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		},
		end: faultCommand("CONFIG", "SET", "requirepass", faultPassword),
	}, {
		name: "ACL without SET", during: "503", ready: "NOPERM",
		begin: faultCommand("ACL", "SETUSER", "default", "-set"), end: faultCommand("ACL", "SETUSER", "default", "+set"),
	}, {
		name: "ACL without the keys", during: "503", ready: "NOPERM",
		begin: faultCommand("ACL", "SETUSER", "default", "resetkeys", "~other:*"), end: faultCommand("ACL", "SETUSER", "default", "allkeys"),
	}, {
		name: "the least ACL", redis: strings.Fields("--user least on >" + faultPassword + " resetkeys ~f:* -@all +set +time"), during: "200",
	}, {
		name: "address that drops SYNs", during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		setUp: faultProxied, begin: func(t *testing.T, f *faultRun) { f.proxy.drop(t) }, end: func(t *testing.T, f *faultRun) { f.proxy.admit(t) },
	}, {
		name: "each reply 200 ms late", during: "200", mode: late(200 * time.Millisecond), lasts: 2 * time.Second,
	}, {
		name: "replies swallowed", during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		mode: func(*net.TCPConn, []byte) {},
	}, {
		name: "connections reset", during: "503", ready: "redis: ",
		mode: func(client *net.TCPConn, _ []byte) { _ = client.SetLinger(0); _ = client.Close() },
	}, {
		name: "EOF for each reply", during: "503", ready: "redis: ",
		mode: func(client *net.TCPConn, _ []byte) { _ = client.Close() },
	}, {
		name: "garbage for each reply", during: "503", ready: "redis: ",
		mode: func(client *net.TCPConn, _ []byte) { _, _ = client.Write([]byte("\x00\xff<html>\r\n")) },
	}, {
		name: "SET answered with garbage", during: "503", ready: "redis: ", mode: faultForOK("\x00\xff<html>\r\n"),
	}, {
		name: "SET answered +QUEUED", during: "503", ready: "other than OK", mode: faultForOK("+QUEUED\r\n"),
	}, {
		name: "SET answered with nothing", during: "503", ready: "redis: ", mode: faultForOK("$0\r\n\r\n"),
	}, {
		name: "SET answered nil", during: "503", ready: "redis: ", mode: faultForOK("_\r\n"),
	}, {
		name: "clock 30 s ahead", during: "503", ready: "clock", mode: clockAhead(30 * time.Second),
	}, {
		name: "clock 30 s behind", during: "503", ready: "clock", mode: clockAhead(-30 * time.Second),
	}, {
		name: "clock ahead by over SESSION_TTL", env: map[string]string{"SESSION_TTL": "1m"}, during: "503", ready: "clock", mode: clockAhead(time.Hour),
	}, {
		name: "FLUSHALL", during: "200", begin: faultCommand("FLUSHALL"), forgets: true,
	}, {
		name: "maxmemory-policy allkeys-lru", redis: []string{"--maxmemory-policy", "allkeys-lru"}, during: "200", evicts: true,
	}, {
		// Replication is asynchronous: what the primary had acknowledged and not yet sent
		// to its replica when it died is lost. At this rate that is a request or two.
		name: "Sentinel: primary killed", setUp: faultSentinel, during: "503 504", ready: "redis: ", mayLose: 5,
		begin: faultKill, end: faultPromotion, back: faultFailover,
	}, {
		name: "Sentinel: primary stopped", setUp: faultSentinel, during: "503 504", ready: "redis: ", lasts: 1500 * time.Millisecond,
		begin: faultStop, end: faultPromotion, back: faultFailover, after: faultDemotion,
	}, {
		name: "Cluster: primary killed", setUp: faultCluster, struck: faultOn(0), during: "503 504", ready: "redis: ", lasts: 2 * time.Second, mayLose: 5,
		begin: faultKill, end: faultPromotion, back: faultFailover,
	}, {
		name: "Cluster: primary stopped", setUp: faultCluster, struck: faultOn(0), during: "503 504", ready: "redis: ", lasts: 2 * time.Second,
		begin: faultStop, end: faultPromotion, back: faultFailover, after: faultDemotion,
	}, {
		name: "Cluster: primary stopped 3 s, no replica", setUp: faultCluster, struck: faultOn(2), during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		begin: func(t *testing.T, f *faultRun) { f.primary = f.servers[2]; faultStop(t, f) }, end: faultContinue,
	},
}

func TestFault(t *testing.T) {
	needRedis(t)
	noise := listenForNoise(t)
	rows := make([]string, len(faultScenarios))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range faultAtOnce {
		workers.Go(func() {
			for {
				i := len(rows) - int(next.Add(1)) // from the last, which are the longest
				if i < 0 {
					return
				}
				t.Run(faultScenarios[i].name, func(t *testing.T) { rows[i] = faultScenarios[i].run(t, noise) })
			}
		})
	}
	workers.Wait()
	if file := os.Getenv("FAULT_TABLE"); file != "" {
		head := "| fault | during it | first 200 after healing | answers at most after | acknowledged / lost |\n|---|---|---|---|---|\n"
		must(t, os.WriteFile(file, []byte(head+strings.Join(rows, "")), 0o644))
	}
}

// faultRun is a scenario under way.
type faultRun struct {
	primary *redisProcess         // that the fault strikes
	replica *redisProcess         // that is to take over
	servers []*redisProcess       // a cluster's primaries
	admin   redis.UniversalClient // commands Redis, and looks what is in it
	proxy   *redisProxy           // nil: none
	env     map[string]string
}

// run drives the scenario and returns its row of the table.
func (sc faultScenario) run(t *testing.T, noise *faultNoise) string {
	f := &faultRun{env: map[string]string{"KEY_PREFIX": "f:"}}
	if sc.setUp != nil {
		sc.setUp(t, f)
	} else {
		faultStandalone(t, f, sc.redis...)
	}
	if sc.mode != nil {
		f.useProxy(t)
		sc.begin = func(*testing.T, *faultRun) { f.proxy.set(sc.mode) }
		sc.end = func(*testing.T, *faultRun) { f.proxy.set(pass) }
	}
	maps.Copy(f.env, sc.env)
	struck := func(c *faultCall) bool { return sc.struck == nil || sc.struck(c.key) }
	limit := cmp.Or(sc.back, faultBack)

	if sc.atStart {
		sc.begin(t, f)
	}
	s := startFaultService(t, f.env)
	began := time.Now() // if atStart
	load := s.steadyLoad(t)
	if !sc.atStart {
		s.waitReady(t)
		load.await(t, 5*time.Second, "a second of answers", func(c *faultCall) bool { return c.start.After(load.begun.Add(time.Second)) })
	}
	before, striking := s.use(t), time.Now()
	if !sc.atStart {
		if sc.begin != nil {
			sc.begin(t, f)
		}
		began = time.Now()
	}

	// Meanwhile.
	waitFor(t, 2*time.Second, "/readyz to say "+cmp.Or(sc.ready, "that it is well"), func() bool {
		status, body := s.get("/readyz")
		return sc.ready == "" && status == 200 || sc.ready != "" && status == 503 && strings.Contains(body, sc.ready)
	})
	time.Sleep(time.Until(began.Add(cmp.Or(sc.lasts, time.Second))))
	ended := time.Now()
	if sc.end != nil {
		sc.end(t, f)
	}
	healed := time.Now()

	// Back.
	first := load.await(t, limit+3*time.Second, "a 200 after healing", func(c *faultCall) bool {
		return c.answer.status == 200 && c.end().After(healed) && struck(c)
	})
	after := first.end().Sub(healed)
	if after > limit+noise.within(healed, first.end()) {
		t.Errorf("the first 200 came %s after healing, want at most %s", after, limit)
	}
	if sc.after != nil {
		sc.after(t, f)
	}
	settled := time.Now()
	load.await(t, 5*time.Second, "a second of answers", func(c *faultCall) bool { return c.start.After(settled.Add(time.Second)) })
	s.waitReady(t)
	calls := load.stop()

	// What the callers saw.
	slowest := time.Duration(0)
	meanwhile := map[int]int{}
	var sessions []*faultCall
	for i := range calls {
		c := &calls[i]
		if c.err != nil {
			t.Fatalf("a call that began %s after the fault: %v", c.start.Sub(began), c.err)
		}
		slowest = max(slowest, c.took)
		if most := faultAnswer + noise.within(c.start, c.end()); c.took > most {
			t.Errorf("an answer %d came after %s, want at most %s", c.answer.status, c.took, most)
		}
		switch c.answer.status {
		case 200:
			if !sc.forgets || c.start.After(healed) {
				sessions = append(sessions, c)
			}
		case 503:
			wantError(t, c.answer, 503, "unavailable")
		case 504:
			wantError(t, c.answer, 504, "timeout")
		default:
			t.Fatalf("status %d %s", c.answer.status, c.answer.body)
		}
		switch inFault := c.start.After(began) && c.end().Before(ended); {
		case inFault:
			meanwhile[c.answer.status]++
			spared := c.answer.status == 200 && !struck(c)
			if most := 200*time.Millisecond + noise.within(c.start, c.end()); spared && c.took > most {
				t.Errorf("a session that the fault does not concern took %s, want at most %s", c.took, most)
			}
			if !spared && !strings.Contains(sc.during, strconv.Itoa(c.answer.status)) {
				t.Errorf("%s after the fault: status %d %s, want %s", c.start.Sub(began), c.answer.status, c.answer.body, sc.during)
			}
		case c.end().Before(striking) || c.start.After(first.end()):
			if c.answer.status != 200 {
				t.Errorf("%s after healing, the first 200 being there after %s: status %d %s", c.start.Sub(healed), after, c.answer.status, c.answer.body)
			}
		}
	}
	if sc.struck != nil && meanwhile[200] < faultRate/10 {
		t.Errorf("statuses meanwhile %v: the other primaries' sessions must go on", meanwhile)
	}

	// What Redis holds.
	lost := f.missing(t, sessions)
	if lost > sc.mayLose {
		t.Errorf("%d of %d acknowledged sessions are lost, want at most %d", lost, len(sessions), sc.mayLose)
	}

	// What is left behind.
	s.wantUse(t, before)
	s.wantLog(t, calls, sc.evicts)
	s.wantFewGoroutines(t)

	var statuses []string
	for status, n := range meanwhile {
		statuses = append(statuses, fmt.Sprintf("%d ×%d", status, n))
	}
	slices.Sort(statuses)
	row := []string{sc.name, strings.Join(statuses, ", "), faultMS(after), faultMS(slowest), fmt.Sprintf("%d / %d", len(sessions), lost)}
	switch {
	case sc.during == "200":
		row[2] = "-"
	case sc.back != 0:
		row[2] += ", the promotion taking " + faultMS(healed.Sub(began))
	}
	t.Logf("meanwhile %s; first 200 %s after healing; answers at most after %s; acknowledged / lost %s", row[1], row[2], row[3], row[4])
	return "| " + strings.Join(row, " | ") + " |\n"
}

func faultMS(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

// missing counts the sessions that are not in Redis, and fails where one has another
// expiry than its caller was told, or where a record has none.
func (f *faultRun) missing(t *testing.T, sessions []*faultCall) (lost int) {
	t.Helper()
	replies, err := f.admin.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for _, c := range sessions {
			p.ExpireTime(t.Context(), c.key)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("looking for the sessions: %v", err)
	}
	for i, c := range sessions {
		switch at := replies[i].(*redis.DurationCmd).Val(); {
		case at == -2:
			lost++
		case int64(at/time.Second) != c.session.ExpiresAt:
			t.Errorf("EXPIRETIME = %d, want expires_at %d", at/time.Second, c.session.ExpiresAt)
		}
	}
	if _, cluster := f.admin.(*redis.ClusterClient); cluster {
		return lost
	}
	// What landed without being acknowledged must die too.
	info := f.admin.Info(t.Context(), "keyspace").Val()
	counts := regexp.MustCompile(`keys=(\d+),expires=(\d+)`).FindStringSubmatch(info)
	fill := f.admin.Exists(t.Context(), "fill:0").Val() * 1000
	if counts == nil || faultInt(counts[1]) != faultInt(counts[2])+fill {
		t.Errorf("keyspace %q: a record without expiry", info)
	}
	return lost
}

func faultInt(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// Faults.

func faultDo(t *testing.T, f *faultRun, args ...any) {
	t.Helper()
	if err := f.admin.Do(t.Context(), args...).Err(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

func faultCommand(args ...any) func(*testing.T, *faultRun) {
	return func(t *testing.T, f *faultRun) { faultDo(t, f, args...) }
}

func faultKill(_ *testing.T, f *faultRun) { f.primary.stop() }

func faultStart(t *testing.T, f *faultRun) {
	must(t, f.primary.start())
}

func (f *faultRun) shutDown(t *testing.T, command func(context.Context) *redis.StatusCmd) {
	command(t.Context()) // answers by closing
	if err := f.primary.cmd.Wait(); err != nil {
		t.Fatalf("redis-server after SHUTDOWN: %v", err)
	}
	f.primary.cmd = nil
}

func faultStop(t *testing.T, f *faultRun) { f.primary.pause(t) }

func faultContinue(t *testing.T, f *faultRun) { f.primary.resume(t) }

// pause returns once the server stands still.
func (p *redisProcess) pause(t *testing.T) {
	must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	waitFor(t, time.Second, "the stop", func() bool {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		return bytes.Contains(stat, []byte(") T "))
	})
}

func (p *redisProcess) resume(t *testing.T) {
	must(t, p.cmd.Process.Signal(syscall.SIGCONT))
}

// faultInfo waits until a section of the server's INFO says want.
func faultInfo(t *testing.T, p *redisProcess, section, want string) {
	t.Helper()
	c := p.client(t)
	waitFor(t, 20*time.Second, want, func() bool {
		return strings.Contains(c.Info(t.Context(), section).Val(), want)
	})
}

// faultPromotion waits until the replica is the primary: that is Redis's own doing.
func faultPromotion(t *testing.T, f *faultRun) {
	faultInfo(t, f.replica, "replication", "role:master")
}

// faultDemotion wakes what was the primary, and waits until it knows. What it would
// acknowledge in between would be lost.
func faultDemotion(t *testing.T, f *faultRun) {
	faultContinue(t, f)
	faultInfo(t, f.primary, "replication", "role:slave")
}

// Set-ups.

func faultStandalone(t *testing.T, f *faultRun, args ...string) {
	f.primary = startRedis(t, args...)
	user, password := "", ""
	switch {
	case slices.Contains(args, "--requirepass"):
		user, password = ":"+faultPassword+"@", faultPassword
	case slices.Contains(args, "--user"):
		user = "least:" + faultPassword + "@"
	}
	f.env["REDIS_URL"] = "redis://" + user + f.primary.addr
	f.admin = faultAdmin(t, &redis.Options{Addr: f.primary.addr, Password: password})
}

// faultAdmin keeps one connection: a password that changes does not shut it out.
func faultAdmin(t *testing.T, o *redis.Options) *redis.Client {
	o.PoolSize = 1
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func faultProxied(t *testing.T, f *faultRun) {
	faultStandalone(t, f)
	f.useProxy(t)
}

func (f *faultRun) useProxy(t *testing.T) {
	if f.proxy == nil {
		f.proxy = startProxy(t, f.primary.addr, pass)
		f.env["REDIS_URL"] = "redis://" + f.proxy.addr
	}
}

// faultSentinel is a primary, its replica, and one Sentinel that decides alone.
func faultSentinel(t *testing.T, f *faultRun) {
	primary, replica, sentinel := startSentinel(t)
	must(t, sentinel.client(t).Do(t.Context(), "SENTINEL", "SET", "mymaster", "down-after-milliseconds", faultDetect.Milliseconds()).Err())
	f.primary, f.replica = primary, replica
	f.env["REDIS_MODE"] = "sentinel"
	f.env["REDIS_URL"] = "redis://" + sentinel.addr + "?master_name=mymaster"
	f.admin = faultAdmin(t, &redis.Options{Addr: replica.addr})
}

// faultCluster is three primaries, the first with a replica. What one of them lacks does
// not concern the others.
func faultCluster(t *testing.T, f *faultRun) {
	f.servers = startCluster(t)
	f.primary = f.servers[0]
	bus := freePort()
	f.replica = startRedis(t, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "2000")
	must(t, f.primary.client(t).Do(t.Context(), "CLUSTER", "MEET", "127.0.0.1", f.replica.port, bus).Err())
	id := f.primary.client(t).ClusterMyID(t.Context()).Val()
	c := f.replica.client(t)
	waitFor(t, 10*time.Second, "the replica to know its primary", func() bool { return c.ClusterReplicate(t.Context(), id).Err() == nil })
	faultInfo(t, f.replica, "replication", "master_link_status:up")
	var addrs []string
	for _, p := range f.servers {
		addrs = append(addrs, p.addr)
		waitFor(t, 10*time.Second, "the replica to be known", func() bool {
			return strings.Contains(p.client(t).ClusterNodes(t.Context()).Val(), "slave "+id)
		})
	}
	f.env["REDIS_MODE"] = "cluster"
	f.env["REDIS_URL"] = "redis://" + addrs[0] + "?addr=" + addrs[1] + "&addr=" + addrs[2]
	admin := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs[1:]})
	t.Cleanup(func() { _ = admin.Close() })
	f.admin = admin
}

// faultOn tells whether a key is that primary's.
func faultOn(primary int) func(key string) bool {
	return func(key string) bool { return faultSlot(key)*3/16384 == primary }
}

// faultSlot is the key's slot in a cluster: CRC-16/XMODEM.
func faultSlot(key string) int {
	crc := uint16(0)
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return int(crc % 16384)
}

// faultForOK answers SET, and nothing else, with text.
func faultForOK(text string) proxyMode {
	return func(client *net.TCPConn, reply []byte) {
		pass(client, bytes.ReplaceAll(reply, []byte("+OK\r\n"), []byte(text)))
	}
}

// drop cuts the connections there are and makes the kernel drop SYNs, as a firewall
// does: nobody accepts, and a backlog of none is full.
func (p *redisProxy) drop(t *testing.T) {
	p.backlog(t, 0)
	must(t, p.listener.SetDeadline(time.Now()))
	p.accepting.Wait()
	for _, c := range p.conns {
		_ = c.Close()
	}
	for range 16 {
		c, err := net.DialTimeout("tcp", p.addr, 200*time.Millisecond)
		if err != nil {
			return
		}
		p.conns = append(p.conns, c)
	}
	t.Fatal("the proxy's port still takes connections")
}

func (p *redisProxy) admit(t *testing.T) {
	p.backlog(t, 128)
	must(t, p.listener.SetDeadline(time.Time{}))
	p.accepting.Go(p.accept)
}

func (p *redisProxy) backlog(t *testing.T, n int) {
	t.Helper()
	raw, err := p.listener.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), n) }))
	must(t, err)
}

// faultService is the built binary, running, and what its callers hold.
type faultService struct {
	*service
	prefix string
	token  string
}

// startFaultService returns once the service listens and has its keys. Its Redis need
// not be there.
func startFaultService(t *testing.T, env map[string]string) *faultService {
	t.Helper()
	all := serviceEnv(t, "")
	all["STORE_TIMEOUT"] = faultTimeout.String()
	maps.Copy(all, env)
	s := &faultService{startService(t, all), all["KEY_PREFIX"], ecKey().sign(t, goodClaims())}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the service's log ends %s", s.log.tail())
		}
	})
	waitFor(t, 10*time.Second, "the key set", func() bool { return strings.Contains(s.log.String(), `"msg":"key set loaded"`) })
	return s
}

func (l *logBuffer) tail() string {
	text, _, _ := strings.Cut(l.String(), "SIGQUIT") // stacks follow
	return text[max(0, len(text)-2000):]
}

func (s *faultService) waitReady(t *testing.T) {
	t.Helper()
	waitFor(t, 10*time.Second, "/readyz", func() bool { status, _ := s.get("/readyz"); return status == 200 })
}

// faultCall is one request and what came of it.
type faultCall struct {
	start   time.Time
	took    time.Duration
	err     error
	answer  answer
	session sessionAnswer // of a 200
	key     string        // where its record is
}

func (c *faultCall) end() time.Time { return c.start.Add(c.took) }

func (s *faultService) call() (c faultCall) {
	c.start = time.Now()
	r, err := http.NewRequest("POST", s.url+"/auth/session", strings.NewReader(`{"end_user_id":"`+faultUser+`"}`))
	if err != nil {
		c.err = err
		return c
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	response, err := testClient.Do(r)
	if err != nil {
		c.err = err
		return c
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	c.took, c.err = time.Since(c.start), err
	c.answer = answer{response.StatusCode, response.Header, body}
	if response.StatusCode == 200 && err == nil {
		c.err = json.Unmarshal(body, &c.session)
		c.key = sessionKey(s.prefix, c.session.SessionID)
	}
	return c
}

// faultLoad is callers at work.
type faultLoad struct {
	begun   time.Time
	mu      sync.Mutex
	calls   []faultCall
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// steadyLoad sends faultRate requests a second from faultCallers, and asks /livez now and
// then, which must be 200 always.
func (s *faultService) steadyLoad(t *testing.T) *faultLoad {
	ctx, cancel := context.WithCancel(context.Background())
	l := &faultLoad{begun: time.Now(), cancel: cancel}
	every := func(period, offset time.Duration, f func()) {
		l.running.Go(func() {
			for next := l.begun.Add(offset); ; next = next.Add(period) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Until(next)):
				}
				f()
				if late := time.Since(next); late > period {
					next = next.Add(late.Truncate(period)) // a caller that waited sends no burst
				}
			}
		})
	}
	for i := range faultCallers {
		every(time.Second*faultCallers/faultRate, time.Duration(i)*time.Second/faultRate, func() {
			c := s.call()
			l.mu.Lock()
			l.calls = append(l.calls, c)
			l.mu.Unlock()
		})
	}
	every(100*time.Millisecond, 0, func() {
		if status, body := s.get("/livez"); status != 200 {
			t.Errorf("/livez = %d %s", status, body)
		}
	})
	t.Cleanup(func() { l.stop() })
	return l
}

// await returns the call that ended first of those that f takes.
func (l *faultLoad) await(t *testing.T, atMost time.Duration, what string, f func(*faultCall) bool) (found faultCall) {
	t.Helper()
	waitFor(t, atMost, what, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := range l.calls {
			if c := &l.calls[i]; f(c) && (found.took == 0 || c.end().Before(found.end())) {
				found = *c
			}
		}
		return found.took != 0
	})
	return found
}

func (l *faultLoad) stop() []faultCall {
	l.cancel()
	l.running.Wait()
	return l.calls
}

// faultUse is what the process takes of the machine.
type faultUse struct{ rss, peak, threads, fds int64 }

func (s *faultService) use(t *testing.T) (u faultUse) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "status")
	fds, fdErr := os.ReadDir(dir + "fd")
	if err != nil || fdErr != nil {
		t.Fatalf("looking at the service: %v, %v; its log ends %s", err, fdErr, s.log.tail())
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		n := faultInt(strings.Fields(value + " -")[0])
		switch name {
		case "VmRSS":
			u.rss = n << 10
		case "VmHWM":
			u.peak = n << 10
		case "Threads":
			u.threads = n
		}
	}
	u.fds = int64(len(fds))
	return u
}

// wantUse checks that the process lives, and takes what it took before.
func (s *faultService) wantUse(t *testing.T, before faultUse) {
	t.Helper()
	testClient.CloseIdleConnections()
	var u faultUse
	within := func() bool {
		u = s.use(t)
		return u.fds <= before.fds+faultMoreFDs && u.threads <= before.threads+faultMoreThreads && u.rss <= before.rss+faultMoreRSS
	}
	for deadline := time.Now().Add(5 * time.Second); !within() && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	if !within() {
		t.Errorf("the process takes %+v, before the fault %+v", u, before)
	}
	t.Logf("before %+v, now %+v", before, u)
}

// wantLog checks that the log is short on Redis and holds no secret.
func (s *faultService) wantLog(t *testing.T, calls []faultCall, evicts bool) {
	t.Helper()
	text := s.log.String()
	lines := strings.Count(text, `"msg":"redis client"`) + strings.Count(text, `"msg":"redis takes `)
	if lines > faultLines {
		t.Errorf("%d lines on Redis in the log, want at most %d", lines, faultLines)
	}
	warnings := regexp.MustCompile(`"level":"WARN".*maxmemory-policy`).FindAllString(text, -1)
	if evicts && len(warnings) != 1 || !evicts && len(warnings) != 0 {
		t.Errorf("warnings that name maxmemory-policy: %q, want one: %t", warnings, evicts)
	}
	signature := s.token[strings.LastIndexByte(s.token, '.')+1:]
	for _, secret := range []string{signature, faultPassword, faultUser} {
		if strings.Contains(text, secret) {
			t.Errorf("the log holds the secret %q", secret)
		}
	}
	for i := range calls {
		if id := calls[i].session.SessionID; id != "" && strings.Contains(text, id) {
			t.Errorf("the log holds a session_id")
		}
	}
}

// wantFewGoroutines ends the service with SIGQUIT, to which Go answers with all stacks.
func (s *faultService) wantFewGoroutines(t *testing.T) {
	t.Helper()
	length := len(s.log.String())
	s.signal(t, syscall.SIGQUIT)
	s.wait(t, 5*time.Second)
	stacks := s.log.String()[length:]
	n := strings.Count(stacks, "\ngoroutine ")
	if n == 0 || n > faultGoroutines {
		t.Errorf("%d goroutines in the end, want at most %d", n, faultGoroutines)
	}
	t.Logf("%d goroutines", n)
}

// faultNoise notes how late this process's timers fire. On a busy machine an answer is
// measured late by as much, and the service is as late: limits give way by twice that, and
// by nothing where the machine is quiet.
type faultNoise struct {
	mu   sync.Mutex
	late []struct {
		at time.Time
		by time.Duration
	}
}

func listenForNoise(t *testing.T) *faultNoise {
	n := &faultNoise{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		const step = 5 * time.Millisecond
		for ctx.Err() == nil {
			start := time.Now()
			time.Sleep(step)
			if by := time.Since(start) - step; by > step {
				n.mu.Lock()
				n.late = append(n.late, struct {
					at time.Time
					by time.Duration
				}{start, by})
				n.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return n
}

func (n *faultNoise) within(from, to time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	var worst time.Duration
	for _, l := range n.late {
		if l.at.Before(to) && l.at.Add(l.by).After(from) {
			worst = max(worst, l.by)
		}
	}
	return 2 * worst
}
