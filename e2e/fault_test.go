//go:build e2e && linux

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
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

const (
	backLimit     = 1200 * time.Millisecond // from the end of a fault to the first 200
	failoverLimit = 3 * time.Second         // from the promotion of a replica to the first 200
	refusalLimit  = 500 * time.Millisecond  // for a refusal while Redis refuses or closes connections
	faultsAtOnce  = 4

	loadCallers = 8
	loadRate    = 50 // requests a second of all callers together
)

// fault is one way for Redis to fail and what callers and operators may see of it.
type fault struct {
	name    string
	setUp   step              // nil: one standalone redis-server
	redis   []string          // its arguments
	env     map[string]string // the service's
	atStart bool              // the fault begins before the service
	begin   step              // returns once the fault is there
	end     step              // returns once Redis is well again
	mode    redistest.Mode    // of a proxy before Redis; nil: no proxy. It is the fault if begin is nil
	lasts   time.Duration     // 0: a second

	during  string        // the statuses during the fault
	ready   string        // in /readyz during the fault; "": /readyz is 200
	back    time.Duration // limit from the end of the fault to the first 200; 0: backLimit
	quick   bool          // refusals come within refusalLimit
	forgets bool          // sessions acknowledged before the end of the fault are gone
	mayLose int           // acknowledged sessions
	evicts  bool          // the log warns of maxmemory-policy
}

// step is a part of a fault.
type step func(*testing.T, *outage)

var faults = []fault{
	{
		name: "absent at start", atStart: true, quick: true, during: "503", ready: "refused",
		begin: kill, end: restart, forgets: true,
	}, {
		name: "kill -9, no persistence", quick: true, during: "503", ready: "refused",
		begin: kill, end: restart, forgets: true,
	}, {
		name: "SHUTDOWN with AOF", redis: []string{"--appendonly", "yes"}, quick: true, during: "503", ready: "refused",
		begin: func(t *testing.T, o *outage) { o.admin.Shutdown(t.Context()); kill(t, o) }, end: restart,
	}, {
		name: "LOADING for 2 s", during: "503", ready: "LOADING",
		redis: strings.Fields("--key-load-delay 2000 --loading-process-events-interval-bytes 1024 --rdbcompression no"),
		begin: func(t *testing.T, o *outage) {
			for i := range 1000 {
				o.do(t, "SET", fmt.Sprint("fill:", i), strings.Repeat("x", 200), "EX", 3600)
			}
			o.admin.ShutdownSave(t.Context())
			kill(t, o)
			restart(t, o)
		},
		end: func(t *testing.T, o *outage) { waitInfo(t, o.primary, "persistence", "\nloading:0") },
	}, {
		name: "SIGSTOP 3 s", during: "503 504", ready: "redis: ", lasts: 3 * time.Second, begin: pause, end: resume,
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
		name: "password rotated", during: "503", ready: "WRONGPASS", setUp: withPassword,
		begin: func(t *testing.T, o *outage) {
			o.do(t, "ACL", "SETUSER", "least", "resetpass", ">another")
			o.do(t, "CLIENT", "KILL", "USER", "least")
		},
		end: func(t *testing.T, o *outage) { o.do(t, "ACL", "SETUSER", "least", ">"+redisPassword) },
	}, {
		name: "password rotated, file changed", during: "200", setUp: withPassword,
		begin: func(t *testing.T, o *outage) {
			o.do(t, "ACL", "SETUSER", "least", ">another")
			testkit.Must(t, os.WriteFile(o.env["REDIS_PASSWORD_FILE"], []byte("another"), 0o600))
			o.do(t, "ACL", "SETUSER", "least", "<"+redisPassword)
			o.do(t, "CLIENT", "KILL", "USER", "least")
		},
	}, {
		name: "ACL without SET", during: "503", ready: "NOPERM",
		begin: command("ACL", "SETUSER", "default", "-set"), end: command("ACL", "SETUSER", "default", "+set"),
	}, {
		name: "ACL without the keys", during: "503", ready: "NOPERM",
		begin: command("ACL", "SETUSER", "default", "resetkeys", "~other:*"),
		end:   command("ACL", "SETUSER", "default", "allkeys"),
	}, {
		name: "address that drops SYNs", during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		mode:  redistest.Pass,
		begin: func(t *testing.T, o *outage) { o.proxy.Drop(t) },
		end:   func(t *testing.T, o *outage) { o.proxy.Admit(t) },
	}, {
		name: "each reply 200 ms late", during: "200", lasts: 2 * time.Second,
		mode: redistest.Late(200 * time.Millisecond),
	}, {
		name: "replies swallowed", during: "503 504", ready: "redis: ", lasts: 3 * time.Second,
		mode: func(*net.TCPConn, []byte, time.Time) {},
	}, {
		name: "half of each reply", during: "503 504", ready: "redis: ", lasts: 2 * time.Second,
		mode: func(client *net.TCPConn, reply []byte, came time.Time) {
			redistest.Pass(client, reply[:min(2, len(reply))], came)
		},
	}, {
		name: "connections reset", during: "503", ready: "redis: ", quick: true,
		mode: func(client *net.TCPConn, _ []byte, _ time.Time) { _ = client.SetLinger(0); _ = client.Close() },
	}, {
		name: "EOF for each reply", during: "503", ready: "redis: ", quick: true,
		mode: func(client *net.TCPConn, _ []byte, _ time.Time) { _ = client.Close() },
	}, {
		name: "SET answered +QUEUED", during: "503", ready: "redis: ",
		mode: func(client *net.TCPConn, reply []byte, came time.Time) {
			redistest.Pass(client, bytes.ReplaceAll(reply, []byte("+OK\r\n"), []byte("+QUEUED\r\n")), came)
		},
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
		// Replication is asynchronous: a write that the primary has acknowledged and not yet sent when it dies is lost.
		name: "Sentinel: primary killed", during: "503 504", ready: "redis: ", mayLose: 5,
		setUp: sentinel, begin: kill, end: promotion, back: failoverLimit,
	}, {
		name: "Sentinel: primary stopped", during: "503 504", ready: "redis: ", lasts: 1500 * time.Millisecond,
		setUp: sentinel, begin: pause, back: failoverLimit,
		end: func(t *testing.T, o *outage) { promotion(t, o); resume(t, o) }, // two primaries, until the sentinel sees it
	}, {
		// The old primary goes on acknowledging writes that it will throw away.
		name: "Sentinel: SENTINEL FAILOVER", during: "200 503 504", ready: "replacing", mayLose: 1,
		setUp: sentinel, end: promotion, back: failoverLimit,
		begin: func(t *testing.T, o *outage) {
			testkit.Must(t, o.sentinel.Client(t).Do(t.Context(), "SENTINEL", "FAILOVER", "mymaster").Err())
		},
	}, {
		// A WAIT on another connection than the write's would not notice.
		name: "REDIS_WAIT_REPLICAS=1: replica stopped", during: "503 504", ready: "replicas", lasts: 2 * time.Second,
		env: map[string]string{"REDIS_WAIT_REPLICAS": "1"}, setUp: sentinel,
		begin: func(t *testing.T, o *outage) { o.replica.Pause(t) },
		end:   func(t *testing.T, o *outage) { o.replica.Resume(t) },
	}, {
		name: "Cluster: primary killed", during: "503 504", lasts: 2 * time.Second, mayLose: 5,
		setUp: cluster, begin: kill, end: promotion, back: failoverLimit,
	}, {
		name: "Cluster: primary stopped 3 s, no replica", during: "503 504", lasts: 3 * time.Second,
		setUp: cluster,
		begin: func(t *testing.T, o *outage) { o.primary = o.nodes[2]; pause(t, o) }, end: resume,
	},
}

// TestFault runs the service under steady load, breaks Redis, heals it, and checks that every acknowledged session is
// there. With FAULT_TABLE=file it writes its measurements as a table in Markdown; a relative name counts from e2e.
func TestFault(t *testing.T) {
	rows := make([]string, len(faults))
	slots := make(chan struct{}, faultsAtOnce)
	var running sync.WaitGroup
	for i := len(faults) - 1; i >= 0; i-- { // the last ones take longest
		slots <- struct{}{}
		running.Go(func() {
			t.Run(faults[i].name, func(t *testing.T) { rows[i] = (&outage{fault: faults[i]}).run(t) })
			<-slots
		})
	}
	running.Wait()
	if file := os.Getenv("FAULT_TABLE"); file != "" {
		head := "| fault | during it | first 200 after | slowest answer | acknowledged / lost |\n|---|---|---|---|---|\n"
		testkit.Must(t, os.WriteFile(file, []byte(head+strings.Join(rows, "\n")+"\n"), 0o644))
	}
}

// outage is a fault under way.
type outage struct {
	fault
	primary  *redistest.Server     // the fault concerns it
	replica  *redistest.Server     // takes over
	sentinel *redistest.Server     // decides
	nodes    []*redistest.Server   // a cluster's primaries
	admin    redis.UniversalClient // sends commands to Redis, and looks what is in it
	proxy    *redistest.Proxy      // between the service and the primary; nil: none
	env      map[string]string     // the service's
	service  *service

	striking, began time.Time // before and after begin
	ended, healed   time.Time // before and after end
	first           call      // the first 200 after that
}

// run drives the fault and returns its row of the table.
func (o *outage) run(t *testing.T) string {
	o.prepare(t)
	if o.atStart {
		o.begin(t, o)
	}
	o.service = start(t, o.env)
	find(t, &o.service.log, "(key set loaded)")
	stop := startLoad(t, o.service)
	fds, rss := o.service.fds(t), o.service.memory(t, "VmRSS")
	if !o.atStart {
		o.service.waitReady(t)
		time.Sleep(time.Second)
		o.striking = time.Now()
		o.begin(t, o)
	}
	o.began = time.Now()
	if o.ready == "" {
		o.service.waitReady(t)
	} else {
		o.service.waitHealth(t, 5*time.Second, 503, o.ready)
	}
	wantGet(t, o.service.url+"/livez", 200)
	time.Sleep(time.Until(o.began.Add(cmp.Or(o.lasts, time.Second))))
	o.ended = time.Now()
	o.end(t, o)
	o.healed = time.Now()

	o.service.waitReady(t)
	limit := cmp.Or(o.back, backLimit)
	time.Sleep(time.Until(o.healed.Add(limit + time.Second)))
	calls, noise := stop()
	for _, c := range calls {
		if c.answer.Status == 200 && c.end().After(o.healed) && o.struck(t, c.key) &&
			(o.first.took == 0 || c.end().Before(o.first.end())) {
			o.first = c
		}
	}
	if after := o.first.end().Sub(o.healed); o.first.took == 0 || after > limit+noise {
		t.Fatalf("the first 200 came %s after healing, want at most %s", after, limit+noise)
	}

	slowest, meanwhile := o.wantCalls(t, calls, noise)
	acknowledged, lost := o.wantRecords(t, calls)
	o.service.waitUsage(t, fds, rss)
	o.service.wantLog(t, o.first.session.SessionID)
	if got := o.service.log.Has("maxmemory-policy"); got != o.evicts {
		t.Errorf("the log warns of maxmemory-policy: %t, want %t", got, o.evicts)
	}
	var responses []string
	for _, status := range slices.Sorted(maps.Keys(meanwhile)) {
		responses = append(responses, fmt.Sprintf("%d ×%d", status, meanwhile[status]))
	}
	row := fmt.Sprintf("| %s | %s | %s | %s | %d / %d |", o.name, strings.Join(responses, ", "),
		o.first.end().Sub(o.healed).Round(time.Millisecond), slowest.Round(time.Millisecond), acknowledged, lost)
	t.Log(row)
	return row
}

// prepare starts the fault's Redis and sets what the fault leaves out.
func (o *outage) prepare(t *testing.T) {
	o.env = serviceEnv(t, "")
	if o.setUp == nil {
		o.setUp = standalone
	}
	if o.setUp(t, o); o.mode != nil {
		o.proxy = redistest.StartProxy(t, o.primary.Addr, redistest.Pass)
		o.env["REDIS_URL"] = "redis://" + o.proxy.Addr
	}
	if o.mode != nil && o.begin == nil {
		o.begin = func(t *testing.T, o *outage) {
			o.proxy.Set(o.mode)
			if o.ready == "clock" { // TIME is asked once a second
				o.service.waitHealth(t, 5*time.Second, 503, o.ready)
			}
		}
		o.end = func(*testing.T, *outage) { o.proxy.Set(redistest.Pass) }
	}
	maps.Copy(o.env, o.fault.env)
	for _, s := range []*step{&o.begin, &o.end} {
		if *s == nil {
			*s = func(*testing.T, *outage) {}
		}
	}
}

// struck reports whether the fault concerns a key: the others' primary goes on.
func (o *outage) struck(t *testing.T, key string) bool {
	cluster, ok := o.admin.(*redis.ClusterClient)
	if !ok {
		return true
	}
	node, err := cluster.MasterForKey(t.Context(), key)
	testkit.Must(t, err)
	addr := node.Options().Addr
	return addr == o.primary.Addr || addr == o.replica.Addr
}

// wantCalls checks what the callers saw. It returns the time of the slowest answer and how many of each status came
// during the fault.
func (o *outage) wantCalls(t *testing.T, calls []call, noise time.Duration) (
	slowest time.Duration, meanwhile map[int]int,
) {
	t.Helper()
	wantStatuses(t, calls, 200, 503, 504)
	meanwhile = map[int]int{}
	settled := o.first.end()
	if o.back > 0 { // the sentinel's or the cluster's nodes learn of a promotion one after the other
		settled = o.healed.Add(o.back)
	}
	for _, c := range calls {
		status, limit := c.answer.Status, answerLimit
		during := c.start.After(o.began) && c.end().Before(o.ended)
		outside := c.end().Before(o.striking) || c.start.After(settled)
		if during && o.quick {
			limit = refusalLimit
		}
		if slowest = max(slowest, c.took); c.took > limit+noise {
			t.Errorf("%s after the fault: %d came after %s, want at most %s", c.start.Sub(o.began), status, c.took, limit)
		}
		spared := status == 200 && !o.struck(t, c.key)
		if during && !spared && !strings.Contains(o.during, strconv.Itoa(status)) {
			t.Errorf("%s after the fault: %d %s, want %s", c.start.Sub(o.began), status, c.answer.Body, o.during)
		}
		if during {
			meanwhile[status]++
		}
		if outside && status != 200 {
			t.Errorf("%s after healing, %s after the first 200: %d %s",
				c.start.Sub(o.healed), c.start.Sub(o.first.end()), status, c.answer.Body)
		}
	}
	if o.nodes != nil && meanwhile[200] < loadRate/10 {
		t.Errorf("statuses during the fault %v, want the other primaries' sessions to go on", meanwhile)
	}
	return slowest, meanwhile
}

// wantRecords checks that Redis has every acknowledged session with the expiry that its caller was told, and no record
// without expiry. It returns how many sessions were acknowledged and how many are lost.
func (o *outage) wantRecords(t *testing.T, calls []call) (acknowledged, lost int) {
	t.Helper()
	sessions := slices.DeleteFunc(slices.Clone(calls), func(c call) bool {
		return c.answer.Status != 200 || o.forgets && !c.start.After(o.healed)
	})
	for _, c := range sessions {
		at, err := o.admin.ExpireTime(t.Context(), c.key).Result()
		testkit.Must(t, err)
		if at == -2 {
			lost++
		} else if int64(at/time.Second) != c.session.ExpiresAt {
			t.Errorf("EXPIRETIME = %d, want expires_at %d", at/time.Second, c.session.ExpiresAt)
		}
	}
	if lost > o.mayLose {
		t.Errorf("%d of %d acknowledged sessions are lost, want at most %d", lost, len(sessions), o.mayLose)
	}
	if o.nodes == nil { // records that were not acknowledged must expire too
		info := o.admin.Info(t.Context(), "keyspace").Val()
		counts := regexp.MustCompile(`keys=(\d+),expires=(\d+)`).FindStringSubmatch(info)
		if counts == nil || counts[1] != counts[2] {
			t.Errorf("keyspace %q: a record without expiry", info)
		}
	}
	return len(sessions), lost
}

// startLoad sends loadRate requests a second from loadCallers until stop. The noise is twice the delay of the latest
// timer here. Limits give way by it, because on a busy machine the service is as late, and so is the measuring.
func startLoad(t *testing.T, s *service) (stop func() (calls []call, noise time.Duration)) {
	ctx, cancel := context.WithCancel(t.Context())
	var calls [loadCallers][]call
	var noise time.Duration
	var running sync.WaitGroup
	for i := range calls {
		running.Go(func() {
			time.Sleep(time.Duration(i) * time.Second / loadRate)
			for tick := time.Tick(loadCallers * time.Second / loadRate); ctx.Err() == nil; <-tick {
				calls[i] = append(calls[i], s.post(goodBody)) // a caller that waits sends no burst afterwards
			}
		})
	}
	running.Go(func() {
		const step = 5 * time.Millisecond
		for ctx.Err() == nil {
			at := time.Now()
			time.Sleep(step)
			noise = max(noise, 2*(time.Since(at)-step))
		}
	})
	stop = func() ([]call, time.Duration) {
		cancel()
		running.Wait()
		return slices.Concat(calls[:]...), noise
	}
	t.Cleanup(func() { stop() })
	return stop
}

// The steps and set-ups of the fault table.

func (o *outage) do(t *testing.T, args ...any) {
	t.Helper()
	if err := o.admin.Do(t.Context(), args...).Err(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

func command(args ...any) step { return func(t *testing.T, o *outage) { o.do(t, args...) } }

func kill(_ *testing.T, o *outage)    { o.primary.Stop() }
func restart(t *testing.T, o *outage) { o.primary.Restart(t) }
func pause(t *testing.T, o *outage)   { o.primary.Pause(t) }
func resume(t *testing.T, o *outage)  { o.primary.Resume(t) }

// waitInfo waits until a section of the server's INFO contains want.
func waitInfo(t *testing.T, s *redistest.Server, section, want string) {
	t.Helper()
	c := s.Client(t)
	testkit.WaitFor(t, 30*time.Second, want, func() bool {
		return strings.Contains(c.Info(t.Context(), section).Val(), want)
	})
}

// promotion waits until the replica is the primary, which is Redis's own doing.
func promotion(t *testing.T, o *outage) { waitInfo(t, o.replica, "replication", "role:master") }

func standalone(t *testing.T, o *outage) {
	o.primary = redistest.Start(t, o.redis...)
	o.env["REDIS_URL"] = "redis://" + o.primary.Addr
	o.admin = o.primary.Client(t)
}

// withPassword is standalone with a user for the service that has the smallest ACL, and its password in a file.
func withPassword(t *testing.T, o *outage) {
	standalone(t, o)
	o.do(t, "ACL", "SETUSER", "least", "on", ">"+redisPassword, "resetkeys", "~"+o.env["KEY_PREFIX"]+"*",
		"-@all", "+set", "+time")
	o.env["REDIS_URL"] = "redis://least@" + o.primary.Addr
	o.env["REDIS_PASSWORD_FILE"] = filepath.Join(t.TempDir(), "password")
	testkit.Must(t, os.WriteFile(o.env["REDIS_PASSWORD_FILE"], []byte(redisPassword), 0o600))
}

// sentinel is a primary, its replica, and one Sentinel that decides alone.
func sentinel(t *testing.T, o *outage) {
	o.primary, o.replica, o.sentinel = redistest.Sentinel(t)
	o.env["REDIS_MODE"] = "sentinel"
	o.env["REDIS_URL"] = "redis://" + o.sentinel.Addr + "?master_name=mymaster"
	o.admin = o.replica.Client(t)
}

// cluster is three primaries, of which the first has a replica. A primary that fails does not concern the others' keys.
func cluster(t *testing.T, o *outage) {
	o.nodes = redistest.Cluster(t)
	o.primary = o.nodes[0]
	bus := redistest.FreePort()
	o.replica = redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "2000")
	first, c := o.primary.Client(t), o.replica.Client(t)
	testkit.Must(t, first.Do(t.Context(), "CLUSTER", "MEET", "127.0.0.1", o.replica.Port, bus).Err())
	id := first.ClusterMyID(t.Context()).Val()
	testkit.WaitFor(t, 20*time.Second, "the replica to know its primary", func() bool {
		return c.ClusterReplicate(t.Context(), id).Err() == nil
	})
	waitInfo(t, o.replica, "replication", "master_link_status:up")
	var addrs []string
	for _, s := range o.nodes {
		addrs = append(addrs, s.Addr)
		c := s.Client(t)
		testkit.WaitFor(t, 20*time.Second, "the replica to be known", func() bool {
			return strings.Contains(c.ClusterNodes(t.Context()).Val(), "slave "+id)
		})
	}
	o.env["REDIS_MODE"] = "cluster"
	o.env["REDIS_URL"] = "redis://" + addrs[0] + "?addr=" + addrs[1] + "&addr=" + addrs[2]
	admin := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: addrs[1:], ClusterStateReloadInterval: 100 * time.Millisecond})
	t.Cleanup(func() { _ = admin.Close() })
	o.admin = admin
}
