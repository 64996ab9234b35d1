// Package redistest gives tests real Redis servers on free ports, alone, as a cluster, behind a sentinel or with TLS,
// and a proxy that spoils their replies. What a test starts ends with it.
package redistest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/embedredis"
	"authsession/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// Main runs a package's tests: func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }.
func Main(m *testing.M) int {
	redis.SetLogger(silent{})
	defer func() { shared.stop() }()
	return m.Run()
}

// silent drops the Redis client's log: tests make it fail on purpose.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Have tells whether there is a redis-server to test with. REQUIRE_REDIS=1 makes its absence a failure.
func Have(t testing.TB) bool {
	t.Helper()
	_, err := exec.LookPath("redis-server")
	if err != nil && os.Getenv("REQUIRE_REDIS") == "1" {
		t.Fatalf("REQUIRE_REDIS=1: %v", err)
	}
	return err == nil
}

// Need skips a test that only a real server can serve; in CI, by REQUIRE_REDIS, it never does.
func Need(t testing.TB) {
	t.Helper()
	if !Have(t) {
		t.Skip("no redis-server on the PATH")
	}
}

// shared serves the tests that do not touch the server itself.
var shared = struct {
	once sync.Once
	addr string
	err  error
	stop func()
}{stop: func() {}}

// Addr is the address of a Redis that the package's tests share: a redis-server where there is one, else an embedded
// one.
func Addr(t testing.TB) string {
	t.Helper()
	isReal := Have(t)
	shared.once.Do(func() {
		if !isReal {
			m, err := embedredis.Start()
			if shared.err = err; err == nil {
				shared.addr, shared.stop = m.Addr(), m.Close
			}
			return
		}
		dir, err := os.MkdirTemp("", "authsession-test")
		if err != nil {
			shared.err = err
			return
		}
		s := &Server{Dir: dir}
		shared.err = s.startOnFreePort()
		shared.addr, shared.stop = s.Addr, func() { s.Stop(); _ = os.RemoveAll(dir) }
	})
	testkit.Must(t, shared.err)
	return shared.addr
}

// Prefix is a key prefix that no other test has.
func Prefix(t testing.TB) string {
	special := strings.NewReplacer("/", "_", "*", "_", "?", "_", "[", "_", "]", "_", "{", "_")
	return fmt.Sprintf("%s-%d:", special.Replace(t.Name()), time.Now().UnixNano())
}

// Server is a redis-server that a test has started.
type Server struct {
	Addr, Port string
	TLSAddr    string // with TLS; "": none
	Dir        string

	before []string // arguments before the port; nil: no persistence
	after  []string // and after it
	cmd    *exec.Cmd
}

// Start runs a redis-server on a free port, without persistence unless args say otherwise.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := &Server{Dir: t.TempDir(), after: args}
	testkit.Must(t, s.startOnFreePort())
	t.Cleanup(s.Stop)
	return s
}

func (s *Server) startOnFreePort() error {
	var err error
	for range 5 { // another process may take the port before the server does
		s.Port = FreePort()
		s.Addr = "127.0.0.1:" + s.Port
		if err = s.start(); err == nil {
			return nil
		}
	}
	return err
}

// FreePort is a port that was free a moment ago.
func FreePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// Restart runs a stopped server again, on the same port.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	testkit.Must(t, s.start())
}

// start runs the server and waits until it answers.
func (s *Server) start() error {
	args := append(s.before[:len(s.before):len(s.before)], "--port", s.Port, "--bind", "127.0.0.1", "--dir", s.Dir)
	if s.before == nil {
		args = append(args, "--save", "")
	}
	args = append(args, s.after...)
	var output bytes.Buffer
	s.cmd = exec.Command("redis-server", args...)
	s.cmd.Stdout, s.cmd.Stderr = &output, &output
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("starting redis-server: %w", err)
	}
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1})
	defer c.Close()
	pid := fmt.Sprintf("process_id:%d\r", s.cmd.Process.Pid)
	for range 1000 {
		// Another's server may have the port: ours tells its process id, or asks for a password.
		info, err := c.Info(context.Background(), "server").Result()
		if strings.Contains(info, pid) || redis.IsAuthError(err) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.Stop()
	return fmt.Errorf("redis-server does not answer on %s: %s", s.Addr, output.String())
}

// Stop kills the server, if it runs.
func (s *Server) Stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Wait waits for the end of a server that was asked to shut down. The error is that it did not end well.
func (s *Server) Wait() error {
	err := s.cmd.Wait()
	s.cmd = nil
	return err
}

// Process is the running server's.
func (s *Server) Process() *os.Process { return s.cmd.Process }

// Client looks into the server.
func (s *Server) Client(t testing.TB) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Cluster runs three primaries that share the slots, and returns once all agree.
func Cluster(t testing.TB) []*Server {
	t.Helper()
	return cluster(t, func(args ...string) *Server { return Start(t, args...) })
}

func cluster(t testing.TB, start func(args ...string) *Server) []*Server {
	t.Helper()
	Need(t)
	var nodes []*Server
	var clients []*redis.Client
	var buses []string
	for i := range 3 {
		buses = append(buses, FreePort())
		s := start("--cluster-enabled", "yes", "--cluster-port", buses[i], "--cluster-node-timeout", "2000",
			"--cluster-require-full-coverage", "no")
		c := s.Client(t)
		from, to := i*16384/3, (i+1)*16384/3-1
		testkit.Must(t, c.Do(t.Context(), "CLUSTER", "ADDSLOTSRANGE", from, to).Err())
		testkit.Must(t, c.Do(t.Context(), "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err())
		nodes, clients = append(nodes, s), append(clients, c)
	}
	for i, s := range nodes[1:] {
		testkit.Must(t, clients[0].Do(t.Context(), "CLUSTER", "MEET", "127.0.0.1", s.Port, buses[i+1]).Err())
	}
	testkit.WaitFor(t, 20*time.Second, "the cluster to agree", func() bool {
		for _, c := range clients {
			info, err := c.ClusterInfo(t.Context()).Result()
			for _, want := range []string{"cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"} {
				if err != nil || !strings.Contains(info, want) {
					return false
				}
			}
		}
		return true
	})
	return nodes
}

// Sentinel runs a primary, a replica, and a sentinel that watches them under the name mymaster.
func Sentinel(t testing.TB) (primary, replica, sentinel *Server) {
	t.Helper()
	Need(t)
	primary = Start(t)
	replica = Start(t, "--replicaof", "127.0.0.1 "+primary.Port, "--repl-diskless-sync-delay", "0")
	sentinel = startSentinel(t, primary.Port)
	waitSentinel(t, primary, sentinel)
	return primary, replica, sentinel
}

// startSentinel runs a sentinel that watches the primary on a port.
func startSentinel(t testing.TB, port string, more ...string) *Server {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor mymaster 127.0.0.1 %s 1\n", port) +
		"sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n"
	testkit.Must(t, os.WriteFile(conf, []byte(text), 0o600))
	s := &Server{Dir: t.TempDir(), before: []string{conf, "--sentinel"}, after: more}
	testkit.Must(t, s.startOnFreePort())
	t.Cleanup(s.Stop)
	return s
}

// waitSentinel waits until a sentinel has found the primary's replica.
func waitSentinel(t testing.TB, primary, sentinel *Server) {
	t.Helper()
	c := redis.NewSentinelClient(&redis.Options{Addr: sentinel.Addr})
	defer c.Close()
	testkit.WaitFor(t, 20*time.Second, "the sentinel to find the replica", func() bool {
		info, err := primary.Client(t).Info(t.Context(), "replication").Result()
		replicas, sentinelErr := c.Replicas(t.Context(), "mymaster").Result()
		return err == nil && strings.Contains(info, "state=online") &&
			sentinelErr == nil && len(replicas) == 1 && replicas[0]["master-link-status"] == "ok"
	})
}
