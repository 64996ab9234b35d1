// Package redistest runs Redis servers for tests: alone, as a cluster, behind a sentinel or with TLS, and a proxy that
// spoils their replies. What a test starts ends with the test.
package redistest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"authsession/internal/testkit"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// Main runs the tests of a package that uses Addr: func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }.
// It drops the Redis client's log because tests make it fail on purpose.
func Main(m *testing.M) int {
	logging.Disable()
	defer func() { stopShared() }()
	return m.Run()
}

// Need skips a test that the embedded Redis cannot serve if redis-server is not on the PATH. With REQUIRE_REDIS=1 its
// absence fails the test.
func Need(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil && os.Getenv("REQUIRE_REDIS") == "1" {
		t.Fatalf("REQUIRE_REDIS=1: %v", err)
	} else if err != nil {
		t.Skip("no redis-server on the PATH")
	}
}

var (
	shared     = sync.OnceValues(startShared)
	stopShared = func() {}
)

// Addr returns the address of a Redis that the package's tests share: redis-server if it is on the PATH, else an
// embedded one. Tests must not change its settings.
func Addr(t testing.TB) string {
	t.Helper()
	addr, err := shared()
	testkit.Must(t, err)
	return addr
}

func startShared() (addr string, err error) {
	if _, err := exec.LookPath("redis-server"); err != nil && os.Getenv("REQUIRE_REDIS") == "1" {
		return "", fmt.Errorf("REQUIRE_REDIS=1: %w", err)
	} else if err != nil {
		m := miniredis.NewMiniRedis()
		m.ClockTTL(true)
		if err := m.StartAddr("127.0.0.1:0"); err != nil {
			return "", err
		}
		stopShared = m.Close
		return m.Addr(), nil
	}
	s := &Server{}
	if s.Dir, err = os.MkdirTemp("", "authsession-test"); err != nil {
		return "", err
	}
	stopShared = func() { s.Stop(); _ = os.RemoveAll(s.Dir) }
	err = s.startOnFreePort()
	return s.Addr, err
}

// Prefix returns a key prefix that no other test uses.
func Prefix(testing.TB) string { return rand.Text() + ":" }

// Server is a redis-server process.
type Server struct {
	Addr, Port string
	TLSAddr    string // "": no TLS
	Dir        string // working directory

	config      string   // configuration file; "": none, and no persistence
	certificate string   // file with the certificate and its key; "": no TLS
	args        []string // further arguments
	cmd         *exec.Cmd
}

// Start runs a redis-server on a free port, without persistence unless args set it. It skips the test as Need does.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return (&Server{args: args}).run(t)
}

func (s *Server) run(t testing.TB) *Server {
	t.Helper()
	Need(t)
	s.Dir = t.TempDir()
	testkit.Must(t, s.startOnFreePort())
	t.Cleanup(s.Stop)
	return s
}

func (s *Server) startOnFreePort() (err error) {
	for range 5 { // another process may take a port before the server does
		s.Port = FreePort()
		s.Addr = "127.0.0.1:" + s.Port
		if s.certificate != "" {
			s.TLSAddr = "127.0.0.1:" + FreePort()
		}
		if err = s.start(); err == nil {
			return nil
		}
	}
	return err
}

// StartTLS is Start with TLS at TLSAddr. certificate is a file from CA.Issue; clients need none unless args demand it.
func StartTLS(t testing.TB, certificate string, args ...string) *Server {
	t.Helper()
	return (&Server{certificate: certificate, args: args}).run(t)
}

// FreePort returns a TCP port of 127.0.0.1 that was free a moment ago.
func FreePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return port(l.Addr().String())
}

func port(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// Restart runs a stopped server again on the same port.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	testkit.Must(t, s.start())
}

// start runs the server and waits until it answers.
func (s *Server) start() error {
	args := []string{"--save", ""}
	if s.config != "" {
		args = []string{s.config, "--sentinel"}
	}
	args = append(args, "--port", s.Port, "--bind", "127.0.0.1", "--dir", s.Dir)
	if s.certificate != "" {
		args = append(args, "--tls-port", port(s.TLSAddr), "--tls-cert-file", s.certificate,
			"--tls-key-file", s.certificate, "--tls-ca-cert-file", s.certificate, "--tls-auth-clients", "no")
	}
	var output bytes.Buffer
	s.cmd = exec.Command("redis-server", append(args, s.args...)...)
	s.cmd.Stdout, s.cmd.Stderr = &output, &output
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("starting redis-server: %w", err)
	}
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1})
	defer c.Close()
	pid := fmt.Sprintf("process_id:%d\r", s.cmd.Process.Pid)
	for range 1000 {
		// The process id shows that no other process's server has the port.
		info, err := c.Info(context.Background(), "server").Result()
		if strings.Contains(info, pid) || redis.IsAuthError(err) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.Stop()
	return fmt.Errorf("redis-server does not answer on %s: %s", s.Addr, output.String())
}

// Stop kills the server if it runs.
func (s *Server) Stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Client returns a client of this server.
func (s *Server) Client(t testing.TB) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Cluster runs three primaries that share the slots, and returns once all agree.
func Cluster(t testing.TB) []*Server {
	t.Helper()
	return ClusterTLS(t, "")
}

// ClusterTLS is Cluster with TLS to and between the nodes. certificate is a file from CA.Issue.
func ClusterTLS(t testing.TB, certificate string) (nodes []*Server) {
	t.Helper()
	var clients []*redis.Client
	for i := range 3 {
		bus := FreePort()
		s := &Server{certificate: certificate, args: []string{"--cluster-enabled", "yes", "--cluster-port", bus,
			"--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"}}
		if certificate != "" {
			s.args = append(s.args, "--tls-cluster", "yes")
		}
		nodes = append(nodes, s.run(t))
		clients = append(clients, s.Client(t))
		from, to := i*16384/3, (i+1)*16384/3-1
		testkit.Must(t, clients[i].Do(t.Context(), "CLUSTER", "ADDSLOTSRANGE", from, to).Err())
		testkit.Must(t, clients[i].Do(t.Context(), "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err())
		if i > 0 {
			testkit.Must(t, clients[0].Do(t.Context(), "CLUSTER", "MEET", "127.0.0.1", s.Port, bus).Err())
		}
	}
	testkit.WaitFor(t, 20*time.Second, "the cluster to agree", func() bool {
		for _, c := range clients {
			info := c.ClusterInfo(t.Context()).Val()
			if !strings.Contains(info, "cluster_slots_ok:16384") || !strings.Contains(info, "cluster_known_nodes:3") ||
				!strings.Contains(info, "cluster_state:ok") {
				return false
			}
		}
		return true
	})
	return nodes
}

// Sentinel runs a primary, a replica, and a sentinel that watches them under the name mymaster.
func Sentinel(t testing.TB) (primary, replica, sentinel *Server) {
	t.Helper()
	return SentinelTLS(t, "")
}

// SentinelTLS is Sentinel with TLS to and between the servers. certificate is a file from CA.Issue.
func SentinelTLS(t testing.TB, certificate string) (primary, replica, sentinel *Server) {
	t.Helper()
	var args []string
	if certificate != "" {
		args = []string{"--tls-replication", "yes"}
	}
	start := func(config string, more ...string) *Server {
		return (&Server{certificate: certificate, config: config, args: append(more, args...)}).run(t)
	}
	primary = start("")
	primaryPort := primary.Port
	if certificate != "" {
		primaryPort = port(primary.TLSAddr)
	}
	replica = start("", "--replicaof", "127.0.0.1 "+primaryPort, "--repl-diskless-sync-delay", "0")
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor mymaster 127.0.0.1 %s 1\n", primaryPort) +
		"sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n"
	testkit.Must(t, os.WriteFile(config, []byte(text), 0o600))
	sentinel = start(config)

	client, watcher := primary.Client(t), redis.NewSentinelClient(&redis.Options{Addr: sentinel.Addr})
	defer watcher.Close()
	testkit.WaitFor(t, 20*time.Second, "the sentinel to find the replica", func() bool {
		replicas := watcher.Replicas(t.Context(), "mymaster").Val()
		return strings.Contains(client.Info(t.Context(), "replication").Val(), "state=online") &&
			len(replicas) == 1 && replicas[0]["master-link-status"] == "ok"
	})
	return primary, replica, sentinel
}

// CA is a certificate authority for one test.
type CA struct {
	PEM []byte // its certificate

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA returns a new CA.
func NewCA(t testing.TB) CA {
	t.Helper()
	return issue(t, nil, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
}

// Issue writes a certificate for an IP address or a host name, valid until then, the CA's certificate and the private
// key to one file.
func (ca CA) Issue(t testing.TB, name string, until time.Time) (file string) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	issued := issue(t, &ca, template)
	key, err := x509.MarshalPKCS8PrivateKey(issued.key)
	testkit.Must(t, err)
	data := slices.Concat(issued.PEM, ca.PEM, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	file = filepath.Join(t.TempDir(), "server.pem")
	testkit.Must(t, os.WriteFile(file, data, 0o600))
	return file
}

// issue returns template with a new key, signed by parent, or by itself if parent is nil.
func issue(t testing.TB, parent *CA, template *x509.Certificate) CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	if parent == nil {
		parent = &CA{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	testkit.Must(t, err)
	cert, err := x509.ParseCertificate(der)
	testkit.Must(t, err)
	return CA{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert, key}
}
