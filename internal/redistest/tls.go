package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"authsession/internal/testkit"
)

// StartTLS runs a redis-server that also listens with TLS. certAndKey is a file from CA.Issue; clients need no
// certificate unless args say otherwise.
func StartTLS(t testing.TB, certAndKey string, args ...string) *Server {
	t.Helper()
	for range 5 { // another process may take the port before the server does
		port := FreePort()
		s := &Server{Dir: t.TempDir(), TLSAddr: "127.0.0.1:" + port, after: append(tlsArgs(port, certAndKey), args...)}
		if err := s.startOnFreePort(); err == nil {
			t.Cleanup(s.Stop)
			return s
		}
	}
	out, _ := exec.Command("redis-server", "--version").CombinedOutput()
	t.Fatalf("redis-server does not start with TLS: %s", out)
	return nil
}

func tlsArgs(port, certAndKey string) []string {
	return []string{"--tls-port", port, "--tls-cert-file", certAndKey, "--tls-key-file", certAndKey,
		"--tls-ca-cert-file", certAndKey, "--tls-auth-clients", "no"}
}

// ClusterTLS is Cluster with TLS between the nodes too.
func ClusterTLS(t testing.TB, certAndKey string) []*Server {
	t.Helper()
	return cluster(t, func(args ...string) *Server {
		return StartTLS(t, certAndKey, append(args, "--tls-cluster", "yes")...)
	})
}

// SentinelTLS is Sentinel with TLS between all of them too.
func SentinelTLS(t testing.TB, certAndKey string) (primary, replica, sentinel *Server) {
	t.Helper()
	Need(t)
	port := func(s *Server) string { _, port, _ := net.SplitHostPort(s.TLSAddr); return port }
	primary = StartTLS(t, certAndKey, "--tls-replication", "yes")
	replica = StartTLS(t, certAndKey, "--tls-replication", "yes", "--replicaof", "127.0.0.1 "+port(primary),
		"--repl-diskless-sync-delay", "0")
	tlsPort := FreePort()
	sentinel = startSentinel(t, port(primary), append(tlsArgs(tlsPort, certAndKey), "--tls-replication", "yes")...)
	sentinel.TLSAddr = "127.0.0.1:" + tlsPort
	waitSentinel(t, primary, sentinel)
	return primary, replica, sentinel
}

// CA is a certificate authority of the test's own.
type CA struct {
	PEM []byte // its certificate

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA.
func NewCA(t testing.TB) CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	testkit.Must(t, err)
	cert, err := x509.ParseCertificate(der)
	testkit.Must(t, err)
	return CA{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert, key}
}

// Issue writes a certificate for an IP address or a host name, good until then, with the CA's and its key to one file.
func (ca CA) Issue(t testing.TB, name string, until time.Time) (file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	testkit.Must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	testkit.Must(t, err)
	data := slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), ca.PEM,
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	file = filepath.Join(t.TempDir(), "server.pem")
	testkit.Must(t, os.WriteFile(file, data, 0o600))
	return file
}
