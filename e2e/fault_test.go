//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// The fault suite runs the service under steady load, breaks Redis, heals it, and looks whether the contract held. With
// FAULT_TABLE=file it writes what it measured as a table in Markdown; a relative name counts from this folder.

const (
	failoverLimit = 3 * time.Second // from a replica's promotion to the first 200
	faultsAtOnce  = 4               // scenarios
)

// fault is one way for Redis to fail, and what is to come of it.
type fault struct {
	name     string
	redis    []string          // redis-server's arguments
	login    string            // the service's "user:password" for it
	password string            // the test's own
	env      map[string]string // the service's
	setUp    step              // instead of one standalone redis-server
	atStart  bool              // the fault comes before the service
	begin    step              // returns once the fault is there
	end      step              // returns once Redis is well again
	after    step              // once the service is back, under load
	mode     redistest.Mode    // the fault is a proxy's
	lasts    time.Duration     // 0: a second

	struck  func(key string) bool // what the fault concerns; nil: all
	during  string                // the statuses meanwhile
	ready   string                // what /readyz names meanwhile; "": it is ready
	back    time.Duration         // from healing to the first 200, at most; 0: backLimit
	refusal time.Duration         // of three in four answers meanwhile, at most; 0: answerLimit, as for all
	forgets bool                  // what was acknowledged before healing is gone
	mayLose int                   // acknowledged sessions
	fills   int64                 // keys without expiry that begin adds
	evicts  bool                  // the start-up warning is due
}

// step does a part of a fault.
type step func(*testing.T, *outage)

var faults = []fault{
	{
		name: "nothing", during: "200",
	}, {
		name: "absent at start", atStart: true, refusal: refusalLimit, during: "503", ready: "refused",
		begin: kill, end: restart, forgets: true,
	}, {
		name: "kill -9, no persistence", refusal: refusalLimit, during: "503", ready: "refused",
		begin: kill, end: restart, forgets: true,
	}, {
		name: "SHUTDOWN with AOF", redis: []string{"--appendonly", "yes"}, during: "503", ready: "refused",
		refusal: refusalLimit,
		begin:   func(t *testing.T, o *outage) { o.shutDown(t, o.admin.Shutdown) }, end: restart,
	}, {
		name: "LOADING for 2 s", during: "503", ready: "LOADING", fills: 1000,
		redis: strings.Fields("--key-load-delay 2000 --loading-process-events-interval-bytes 1024 --rdbcompression no"),
		begin: func(t *testing.T, o *outage) {
			for i := range o.fills {
				o.do(t, "SET", fmt.Sprint("fill:", i), strings.Repeat("x", 200))
			}
			o.shutDown(t, o.admin.ShutdownSave)
			restart(t, o)
		},
		end: func(t *testing.T, o *outage) { waitInfo(t, o.primary, "persistence", "\nloading:0") },
	}, {
		name: "SIGSTOP 3 s", during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		begin: pause, end: resume,
	}, {
		name: "maxmemory reached (OOM)", during: "503", ready: "OOM",
		begin: command("CONFIG", "SET", "maxmemory", "1"), end: command("CONFIG", "SET", "maxmemory", "0"),
	}, {
		name: "demoted (READONLY)", during: "503", ready: "READONLY",
		begin: command("REPLICAOF", "127.0.0.1", "1"), end: command("REPLICAOF", "NO", "ONE"),
	}, {
		name: "replicas missing (NOREPLICAS)", during: "503", ready: "NOREPLICAS",
		begin: command("CONFIG", "SET", "min-replicas-to-write", "1"),
		end:   command("CONFIG", "SET", "min-replicas-to-write", "0"),
	}, {
		name: "snapshot failed (MISCONF)", during: "503", ready: "MISCONF",
		redis: []string{"--enable-protected-configs", "yes"},
		begin: func(t *testing.T, o *outage) {
			dir := t.TempDir()
			o.do(t, "CONFIG", "SET", "dir", dir)
			testkit.Must(t, os.Remove(dir))
			o.do(t, "CONFIG", "SET", "save", "3600 1000000")
			o.do(t, "BGSAVE")
			waitInfo(t, o.primary, "persistence", "rdb_last_bgsave_status:err")
		},
		end: command("CONFIG", "SET", "save", ""),
	}, {
		name: "password rotated", during: "503", ready: "WRONGPASS",
		redis: []string{"--requirepass", redisPassword}, login: ":" + redisPassword, password: redisPassword,
		begin: func(t *testing.T, o *outage) {
			o.do(t, "CONFIG", "SET", "requirepass", "another")
			o.do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		},
		end: command("CONFIG", "SET", "requirepass", redisPassword),
	}, {
		name: "password rotated, file changed", during: "200", setUp: rotating(standalone), begin: rotate,
	}, {
		name: "Sentinel: password rotated, file changed", during: "200", setUp: rotating(sentinel), begin: rotate,
	}, {
		name: "Cluster: password rotated, file changed", during: "200", setUp: rotating(cluster), begin: rotate,
	}, {
		name: "ACL without SET", during: "503", ready: "NOPERM",
		begin: command("ACL", "SETUSER", "default", "-set"), end: command("ACL", "SETUSER", "default", "+set"),
	}, {
		name: "ACL without the keys", during: "503", ready: "NOPERM",
		begin: command("ACL", "SETUSER", "default", "resetkeys", "~other:*"),
		end:   command("ACL", "SETUSER", "default", "allkeys"),
	}, {
		name: "the least ACL", during: "200", login: "least:" + redisPassword,
		redis: strings.Fields("--user least on >" + redisPassword + " resetkeys ~f:* -@all +set +time"),
	}, {
		name: "address that drops SYNs", during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		setUp: proxied, back: 400 * time.Millisecond,
		begin: func(t *testing.T, o *outage) { o.proxy.Drop(t) },
		end:   func(t *testing.T, o *outage) { o.proxy.Admit(t) },
	}, {
		name: "each reply 200 ms late", during: "200", lasts: 2 * time.Second,
		mode: redistest.Late(200 * time.Millisecond),
	}, {
		name: "replies swallowed", during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		back: answerLimit, // each caller first waits for a reply that was swallowed
		mode: func(*net.TCPConn, []byte, time.Time) {},
	}, {
		name: "connections reset", during: "503", ready: "redis: ", refusal: refusalLimit,
		mode: func(client *net.TCPConn, _ []byte, _ time.Time) { _ = client.SetLinger(0); _ = client.Close() },
	}, {
		name: "EOF for each reply", during: "503", ready: "redis: ", refusal: refusalLimit,
		mode: func(client *net.TCPConn, _ []byte, _ time.Time) { _ = client.Close() },
	}, {
		name: "garbage for each reply", during: "503", ready: "redis: ",
		mode: func(client *net.TCPConn, _ []byte, _ time.Time) { _, _ = client.Write([]byte("\x00\xff<html>\r\n")) },
	}, {
		name: "SET answered with garbage", during: "503", ready: "redis: ", mode: insteadOfOK("\x00\xff<html>\r\n"),
	}, {
		name: "SET answered +QUEUED", during: "503", ready: "redis: ", mode: insteadOfOK("+QUEUED\r\n"),
	}, {
		name: "SET answered with nothing", during: "503", ready: "redis: ", mode: insteadOfOK("$0\r\n\r\n"),
	}, {
		name: "SET answered nil", during: "503", ready: "redis: ", mode: insteadOfOK("_\r\n"),
	}, {
		name: "SET answered $9223372036854775806", during: "503", ready: "redis: ",
		mode: insteadOfOK("$9223372036854775806\r\n"),
	}, {
		name: "SET answered $100000000000000", during: "503", ready: "redis: ", mode: insteadOfOK("$100000000000000\r\n"),
	}, {
		name: "clock 30 s ahead", during: "503", ready: "clock", mode: redistest.ClockAhead(30 * time.Second),
	}, {
		name: "clock 30 s behind", during: "503", ready: "clock", mode: redistest.ClockAhead(-30 * time.Second),
	}, {
		name: "clock ahead by over SESSION_TTL", during: "503", ready: "clock",
		env: map[string]string{"SESSION_TTL": "1m"}, mode: redistest.ClockAhead(time.Hour),
	}, {
		name: "FLUSHALL", during: "200", begin: command("FLUSHALL"), forgets: true,
	}, {
		name: "maxmemory-policy allkeys-lru", during: "200", evicts: true,
		redis: []string{"--maxmemory-policy", "allkeys-lru"},
	}, {
		// Replication is asynchronous: what the primary had acknowledged and not yet sent to its replica when it died is
		// lost. At this rate that is a request or two.
		name: "Sentinel: primary killed", during: "503 504", ready: "redis: ", mayLose: 5,
		setUp: sentinel, begin: kill, end: promotion, back: failoverLimit,
	}, {
		name: "Sentinel: primary stopped", during: "503 504", ready: "redis: ", lasts: 1500 * time.Millisecond,
		setUp: sentinel, begin: pause, end: promotion, back: failoverLimit, after: demotion,
	}, {
		// The old primary goes on acknowledging what it will throw away, and the service does not believe it.
		name: "Sentinel: SENTINEL FAILOVER", during: "200 503 504", ready: "replace", mayLose: 1,
		setUp: sentinel, begin: failOver, end: promotion, back: failoverLimit,
	}, {
		name: "Sentinel: CLIENT PAUSE WRITE, then FAILOVER", during: "200 503 504", // 200 at the end, by the new one
		setUp: sentinel, end: promotion, back: failoverLimit,
		begin: func(t *testing.T, o *outage) {
			testkit.Must(t, o.primary.Client(t).Do(t.Context(), "CLIENT", "PAUSE", 4000, "WRITE").Err())
			failOver(t, o)
		},
	}, {
		name: "Sentinel: primary killed, replicas 100 ms behind", during: "503 504", ready: "redis: ", mayLose: 25,
		setUp: twoReplicas, begin: killLagging, end: promotion, back: failoverLimit,
	}, {
		name: "the same with REDIS_WAIT_REPLICAS=1", during: "503 504", ready: "redis: ",
		env:   map[string]string{"REDIS_WAIT_REPLICAS": "1"},
		setUp: twoReplicas, begin: killLagging, end: promotion, back: 15 * time.Second,
	}, {
		name: "REDIS_WAIT_REPLICAS=1, no replica", during: "503 504", ready: "replicas", lasts: 2 * time.Second,
		env:   map[string]string{"REDIS_WAIT_REPLICAS": "1"},
		setUp: sentinel, back: answerLimit,
		begin: func(_ *testing.T, o *outage) { o.replica.Stop() }, end: func(t *testing.T, o *outage) {
			o.replica.Restart(t)
			waitInfo(t, o.primary, "replication", "state=online")
		},
	}, {
		name: "Cluster: primary killed", during: "503 504", lasts: 2 * time.Second, mayLose: 5,
		setUp: cluster, struck: onPrimary(0), begin: kill, end: promotion, back: failoverLimit,
	}, {
		name: "Cluster: primary stopped", during: "503 504", lasts: 2 * time.Second,
		setUp: cluster, struck: onPrimary(0), begin: pause, end: promotion, back: failoverLimit, after: demotion,
	}, {
		name: "Cluster: primary stopped 3 s, no replica", during: "503 504", lasts: 3 * time.Second,
		setUp: cluster, struck: onPrimary(2),
		begin: func(t *testing.T, o *outage) { o.primary = o.nodes[2]; pause(t, o) }, end: resume,
	},
}

func TestFault(t *testing.T) {
	redistest.Need(t)
	noise := testkit.ListenForNoise(t)
	rows := make([]string, len(faults))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range faultsAtOnce {
		workers.Go(func() {
			for {
				i := len(rows) - int(next.Add(1)) // from the last, which are the longest
				if i < 0 {
					return
				}
				t.Run(faults[i].name, func(t *testing.T) {
					o := &outage{fault: faults[i], noise: noise, env: map[string]string{"KEY_PREFIX": "f:"}}
					rows[i] = o.run(t)
				})
			}
		})
	}
	workers.Wait()
	if file := os.Getenv("FAULT_TABLE"); file != "" {
		head := "| fault | during it | first 200 after healing | answers at most after | acknowledged / lost |\n" +
			"|---|---|---|---|---|\n"
		testkit.Must(t, os.WriteFile(file, []byte(head+strings.Join(rows, "")), 0o644))
	}
}

// A caller whose three tries lie within 540 ms gets a session where Redis was back before the last one.
func TestFaultRetries(t *testing.T) {
	redistest.Need(t)
	for _, f := range faults {
		switch f.name {
		case "kill -9, no persistence", "SIGSTOP 3 s", "address that drops SYNs", "connections reset":
		default:
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			o := &outage{fault: f, noise: testkit.ListenForNoise(t), env: map[string]string{"KEY_PREFIX": "f:"}}
			o.prepare(t)
			s := startWithKeys(t, o.env)
			s.waitReady(t)
			o.begin(t, o)
			var healed atomic.Int64 // Unix ns; 0: not yet
			var callers sync.WaitGroup
			var served atomic.Int64
			until := time.Now().Add(4500 * time.Millisecond)
			for i := range 8 {
				callers.Go(func() {
					time.Sleep(time.Duration(i) * 67 * time.Millisecond)
					for time.Now().Before(until) {
						c := s.post(goodBody)
						for _, pause := range []time.Duration{180 * time.Millisecond, 360 * time.Millisecond} {
							if c.answer.Status == 200 {
								break
							}
							time.Sleep(time.Until(c.start.Add(pause)))
							c = s.post(goodBody)
						}
						back := healed.Load()
						after := c.start.Sub(time.Unix(0, back))
						switch limit := cmp.Or(o.back, backLimit) + o.noise.Within(c.start, c.end()); {
						case c.answer.Status == 200:
							served.Add(1)
						case back != 0 && after > limit:
							t.Errorf("the last of three tries, %s after healing = %d %s", after, c.answer.Status, c.answer.Body)
						}
						time.Sleep(20 * time.Millisecond)
					}
				})
			}
			time.Sleep(3 * time.Second)
			o.end(t, o)
			healed.Store(time.Now().UnixNano())
			callers.Wait()
			if served.Load() == 0 {
				t.Error("no caller was served")
			}
		})
	}
}

// outage is a fault under way.
type outage struct {
	fault
	noise    *testkit.Noise
	primary  *redistest.Server     // that the fault strikes
	replica  *redistest.Server     // that is to take over
	sentinel *redistest.Server     // that decides
	nodes    []*redistest.Server   // a cluster's primaries
	admin    redis.UniversalClient // commands Redis, and looks what is in it
	proxy    *redistest.Proxy      // nil: none
	lag      *redistest.Proxy      // between the primary and its replicas; nil: none
	env      map[string]string     // the service's

	passwordFile string // the service's; "": none

	striking, began time.Time // just before the fault, and once it is there
	ended, healed   time.Time // just before Redis is well again, and once it is
	first           call      // the first 200 after that
}

// run drives the fault and returns its row of the table.
func (o *outage) run(t *testing.T) string {
	o.prepare(t)
	if o.atStart {
		o.begin(t, o)
	}
	s := startWithKeys(t, o.env)
	o.began = time.Now() // if atStart
	load := s.steadyLoad(t)
	if !o.atStart {
		s.waitReady(t)
		load.awaitSecond(t, load.begun)
	}
	before := s.usage(t)
	o.striking = time.Now()
	if !o.atStart {
		o.begin(t, o)
		o.began = time.Now()
	}

	testkit.WaitFor(t, 2*time.Second, "/readyz to say "+cmp.Or(o.ready, "that it is well"), func() bool {
		status, body := s.get("/readyz")
		if strings.Contains(body, "127.0.0.1") {
			t.Errorf("GET /readyz = %d %s, which tells an address", status, body)
		}
		return o.ready == "" && status == 200 || o.ready != "" && status == 503 && strings.Contains(body, o.ready)
	})
	time.Sleep(time.Until(o.began.Add(cmp.Or(o.lasts, time.Second))))
	o.ended = time.Now()
	o.end(t, o)
	o.healed = time.Now()

	limit := cmp.Or(o.back, backLimit)
	o.first = load.await(t, limit+3*time.Second, "a 200 after healing", func(c *call) bool {
		return c.answer.Status == 200 && c.end().After(o.healed) && o.struck(c.key)
	})
	if after := o.first.end().Sub(o.healed); after > limit+o.noise.Within(o.healed, o.first.end()) {
		t.Errorf("the first 200 came %s after healing, want at most %s", after, limit)
	}
	o.after(t, o)
	load.awaitSecond(t, time.Now())
	s.waitReady(t)
	calls := load.stop()

	slowest, meanwhile := o.wantCalls(t, calls)
	acknowledged, lost := o.wantRecords(t, calls)
	s.wantUsage(t, before)
	s.wantLog(t, calls, o.evicts)
	s.wantFewGoroutines(t)
	return o.row(t, slowest, meanwhile, acknowledged, lost)
}

// prepare starts the fault's Redis and fills in what the fault leaves out.
func (o *outage) prepare(t *testing.T) {
	if o.setUp == nil {
		o.setUp = standalone
	}
	o.setUp(t, o)
	if o.mode != nil {
		o.useProxy(t)
		o.begin = func(*testing.T, *outage) { o.proxy.Set(o.mode) }
		o.end = func(*testing.T, *outage) { o.proxy.Set(redistest.Pass) }
	}
	maps.Copy(o.env, o.fault.env)
	for _, s := range []*step{&o.begin, &o.end, &o.after} {
		if *s == nil {
			*s = func(*testing.T, *outage) {}
		}
	}
	if o.struck == nil {
		o.struck = func(string) bool { return true }
	}
}

// wantCalls checks what the callers saw. It returns the time of the slowest answer, and how many of each status came
// while the fault lasted.
func (o *outage) wantCalls(t *testing.T, calls []call) (slowest time.Duration, meanwhile map[int]int) {
	t.Helper()
	meanwhile = map[int]int{}
	slow := 0
	for i := range calls {
		c := &calls[i]
		status, body, late := c.answer.Status, c.answer.Body, o.noise.Within(c.start, c.end())
		if c.err != nil {
			t.Fatalf("a call that began %s after the fault: %v", c.start.Sub(o.began), c.err)
		}
		slowest = max(slowest, c.took)
		if c.took > answerLimit+late {
			t.Errorf("an answer %d came after %s, want at most %s", status, c.took, answerLimit+late)
		}
		switch status {
		case 200:
		case 503:
			c.answer.WantError(t, 503, "unavailable")
		case 504:
			c.answer.WantError(t, 504, "timeout")
		default:
			t.Fatalf("status %d %s", status, body)
		}
		switch inFault := c.start.After(o.began) && c.end().Before(o.ended); {
		case inFault:
			meanwhile[status]++
			if o.refusal > 0 && c.took > o.refusal+late {
				slow++
			}
			spared := status == 200 && !o.struck(c.key)
			if spared && c.took > 200*time.Millisecond+late {
				t.Errorf("a session that the fault does not concern took %s, want at most %s",
					c.took, 200*time.Millisecond+late)
			}
			if !spared && !strings.Contains(o.during, strconv.Itoa(status)) {
				t.Errorf("%s after the fault: status %d %s, want %s", c.start.Sub(o.began), status, body, o.during)
			}
		case c.end().Before(o.striking) || c.start.After(o.first.end()):
			if status != 200 {
				t.Errorf("%s after healing, the first 200 being there after %s: status %d %s",
					c.start.Sub(o.healed), o.first.end().Sub(o.healed), status, body)
			}
		}
	}
	if slow > 0 && 4*slow > meanwhile[503] { // the others were held up on a busy machine
		t.Errorf("%d of %d refusals meanwhile took more than %s", slow, meanwhile[503], o.refusal)
	}
	if o.nodes != nil && meanwhile[200] < loadRate/10 {
		t.Errorf("statuses meanwhile %v: the other primaries' sessions must go on", meanwhile)
	}
	return slowest, meanwhile
}

// wantRecords checks that Redis holds what callers were promised, with the expiry that they were told, and nothing that
// does not expire. It returns how many sessions there should be, and how many are not.
func (o *outage) wantRecords(t *testing.T, calls []call) (acknowledged, lost int) {
	t.Helper()
	sessions := slices.DeleteFunc(slices.Clone(calls), func(c call) bool {
		return c.answer.Status != 200 || o.forgets && !c.start.After(o.healed)
	})
	replies, err := o.admin.Pipelined(t.Context(), func(p redis.Pipeliner) error {
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
	if lost > o.mayLose {
		t.Errorf("%d of %d acknowledged sessions are lost, want at most %d", lost, len(sessions), o.mayLose)
	}
	if o.nodes == nil { // what landed without being acknowledged must die too
		info := o.admin.Info(t.Context(), "keyspace").Val()
		counts := regexp.MustCompile(`keys=(\d+),expires=(\d+)`).FindStringSubmatch(info)
		if counts == nil || number(counts[1]) != number(counts[2])+o.fills {
			t.Errorf("keyspace %q: a record without expiry", info)
		}
	}
	return len(sessions), lost
}

func (o *outage) row(t *testing.T, slowest time.Duration, meanwhile map[int]int, acknowledged, lost int) string {
	t.Helper()
	var statuses []string
	for status, n := range meanwhile {
		statuses = append(statuses, fmt.Sprintf("%d ×%d", status, n))
	}
	slices.Sort(statuses)
	during, back := strings.Join(statuses, ", "), inMS(o.first.end().Sub(o.healed))
	switch {
	case o.during == "200":
		back = "-"
	case o.back >= failoverLimit:
		back += ", the promotion taking " + inMS(o.healed.Sub(o.began))
	}
	t.Logf("meanwhile %s; first 200 %s after healing; answers at most after %s; acknowledged / lost %d / %d",
		during, back, inMS(slowest), acknowledged, lost)
	return fmt.Sprintf("| %s | %s | %s | %s | %d / %d |\n", o.name, during, back, inMS(slowest), acknowledged, lost)
}

// Steps.

func (o *outage) do(t *testing.T, args ...any) {
	t.Helper()
	if err := o.admin.Do(t.Context(), args...).Err(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

func command(args ...any) step {
	return func(t *testing.T, o *outage) { o.do(t, args...) }
}

func kill(_ *testing.T, o *outage) { o.primary.Stop() }

// killLagging kills the primary with all that is on its way to the replicas.
func killLagging(t *testing.T, o *outage) {
	o.lag.Set(func(*net.TCPConn, []byte, time.Time) {})
	kill(t, o)
}

func restart(t *testing.T, o *outage) { o.primary.Restart(t) }

func pause(t *testing.T, o *outage) { o.primary.Pause(t) }

func resume(t *testing.T, o *outage) { o.primary.Resume(t) }

func (o *outage) shutDown(t *testing.T, command func(context.Context) *redis.StatusCmd) {
	command(t.Context()) // answers by closing
	if err := o.primary.Wait(); err != nil {
		t.Fatalf("redis-server after SHUTDOWN: %v", err)
	}
}

// waitInfo waits until a section of the server's INFO says want.
func waitInfo(t *testing.T, s *redistest.Server, section, want string) {
	t.Helper()
	c := s.Client(t)
	testkit.WaitFor(t, 20*time.Second, want, func() bool {
		return strings.Contains(c.Info(t.Context(), section).Val(), want)
	})
}

// promotion waits until the replica is the primary, which is Redis's own doing.
func promotion(t *testing.T, o *outage) { waitInfo(t, o.replica, "replication", "role:master") }

// demotion wakes what was the primary, and waits until it knows. What it would acknowledge in between would be lost.
func demotion(t *testing.T, o *outage) {
	resume(t, o)
	waitInfo(t, o.primary, "replication", "role:slave")
}

func failOver(t *testing.T, o *outage) {
	testkit.Must(t, o.sentinel.Client(t).Do(t.Context(), "SENTINEL", "FAILOVER", "mymaster").Err())
}

// insteadOfOK answers SET, and nothing else, with text.
func insteadOfOK(text string) redistest.Mode {
	return func(client *net.TCPConn, reply []byte, came time.Time) {
		redistest.Pass(client, bytes.ReplaceAll(reply, []byte("+OK\r\n"), []byte(text)), came)
	}
}

// Set-ups.

func standalone(t *testing.T, o *outage) {
	o.primary = redistest.Start(t, o.redis...)
	login := o.login
	if login != "" {
		login += "@"
	}
	o.env["REDIS_URL"] = "redis://" + login + o.primary.Addr
	o.useAdmin(t, &redis.Options{Addr: o.primary.Addr, Password: o.password})
}

// useAdmin keeps one connection: a password that changes does not shut it out.
func (o *outage) useAdmin(t *testing.T, options *redis.Options) {
	options.PoolSize = 1
	o.admin = redis.NewClient(options)
	t.Cleanup(func() { _ = o.admin.Close() })
}

func proxied(t *testing.T, o *outage) {
	standalone(t, o)
	o.useProxy(t)
}

func (o *outage) useProxy(t *testing.T) {
	o.proxy = redistest.StartProxy(t, o.primary.Addr, redistest.Pass)
	o.env["REDIS_URL"] = "redis://" + o.proxy.Addr
}

// sentinel is a primary, its replica, and one Sentinel that decides alone.
func sentinel(t *testing.T, o *outage) {
	primary, replica, sentinel := redistest.Sentinel(t)
	const downAfter = 1000 // ms
	testkit.Must(t, sentinel.Client(t).
		Do(t.Context(), "SENTINEL", "SET", "mymaster", "down-after-milliseconds", downAfter).Err())
	o.primary, o.replica, o.sentinel = primary, replica, sentinel
	o.env["REDIS_MODE"] = "sentinel"
	o.env["REDIS_URL"] = "redis://" + sentinel.Addr + "?master_name=mymaster"
	o.useAdmin(t, &redis.Options{Addr: replica.Addr})
}

// twoReplicas is sentinel with one more replica, which is never promoted, and replication that is late.
func twoReplicas(t *testing.T, o *outage) {
	sentinel(t, o)
	const patience = 60_000 // ms, so that the sentinel leaves the replicas' detour alone
	testkit.Must(t, o.sentinel.Client(t).
		Do(t.Context(), "SENTINEL", "SET", "mymaster", "failover-timeout", patience).Err())
	o.lag = redistest.StartProxy(t, o.primary.Addr, redistest.Late(100*time.Millisecond))
	_, port, _ := net.SplitHostPort(o.lag.Addr)
	testkit.Must(t, o.replica.Client(t).Do(t.Context(), "REPLICAOF", "127.0.0.1", port).Err())
	second := redistest.Start(t, "--replicaof", "127.0.0.1 "+port, "--replica-priority", "0")
	for _, s := range []*redistest.Server{o.replica, second} {
		waitInfo(t, s, "replication", "master_link_status:up")
	}
	c := o.sentinel.Client(t)
	testkit.WaitFor(t, 20*time.Second, "the sentinel to know the replicas", func() bool {
		return strings.Contains(c.Info(t.Context(), "sentinel").Val(), "slaves=2")
	})
}

// cluster is three primaries, the first with a replica. What one of them lacks does not concern the others.
func cluster(t *testing.T, o *outage) {
	o.nodes = redistest.Cluster(t)
	o.primary = o.nodes[0]
	bus := redistest.FreePort()
	o.replica = redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "2000")
	first := o.primary.Client(t)
	testkit.Must(t, first.Do(t.Context(), "CLUSTER", "MEET", "127.0.0.1", o.replica.Port, bus).Err())
	id := first.ClusterMyID(t.Context()).Val()
	c := o.replica.Client(t)
	testkit.WaitFor(t, 10*time.Second, "the replica to know its primary", func() bool {
		return c.ClusterReplicate(t.Context(), id).Err() == nil
	})
	waitInfo(t, o.replica, "replication", "master_link_status:up")
	var addrs []string
	for _, s := range o.nodes {
		addrs = append(addrs, s.Addr)
		c := s.Client(t)
		testkit.WaitFor(t, 10*time.Second, "the replica to be known", func() bool {
			return strings.Contains(c.ClusterNodes(t.Context()).Val(), "slave "+id)
		})
	}
	o.env["REDIS_MODE"] = "cluster"
	o.env["REDIS_URL"] = "redis://" + addrs[0] + "?addr=" + addrs[1] + "&addr=" + addrs[2]
	admin := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs[1:]})
	t.Cleanup(func() { _ = admin.Close() })
	o.admin = admin
}

// rotating is a set-up whose service has a user of its own on the data nodes, with the least ACL and its password in a
// file.
func rotating(setUp step) step {
	return func(t *testing.T, o *outage) {
		setUp(t, o)
		o.passwordFile = filepath.Join(t.TempDir(), "password")
		testkit.Must(t, os.WriteFile(o.passwordFile, []byte(redisPassword+"-1"), 0o600))
		o.everywhere(t, "ACL", "SETUSER", "least", "on", ">"+redisPassword+"-1", "resetkeys", "~f:*",
			"-@all", "+set", "+time", "+cluster|slots", "+asking")
		o.env["REDIS_PASSWORD_FILE"] = o.passwordFile
		if o.env["REDIS_MODE"] == "sentinel" {
			o.env["REDIS_URL"] += "&username=least"
		} else {
			o.env["REDIS_URL"] = strings.Replace(o.env["REDIS_URL"], "redis://", "redis://least@", 1)
		}
	}
}

// rotate gives the user a second password, then the file, and then takes the first one and all connections away.
func rotate(t *testing.T, o *outage) {
	o.everywhere(t, "ACL", "SETUSER", "least", ">"+redisPassword+"-2")
	testkit.Must(t, os.WriteFile(o.passwordFile+".new", []byte(redisPassword+"-2"), 0o600))
	testkit.Must(t, os.Rename(o.passwordFile+".new", o.passwordFile))
	o.everywhere(t, "ACL", "SETUSER", "least", "<"+redisPassword+"-1")
	o.everywhere(t, "CLIENT", "KILL", "USER", "least")
}

// everywhere sends a command to all data nodes.
func (o *outage) everywhere(t *testing.T, args ...any) {
	t.Helper()
	servers := []*redistest.Server{o.replica}
	if o.replica == nil {
		servers = nil
	}
	if servers = append(servers, o.nodes...); o.nodes == nil {
		servers = append(servers, o.primary)
	}
	for _, s := range servers {
		testkit.Must(t, s.Client(t).Do(t.Context(), args...).Err())
	}
}

// onPrimary tells whether a key is that primary's of redistest.Cluster.
func onPrimary(i int) func(key string) bool {
	return func(key string) bool { s := slot(key); return i*16384/3 <= s && s < (i+1)*16384/3 }
}

// slot is the key's slot in a cluster: CRC-16/XMODEM.
func slot(key string) int {
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

func inMS(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}
