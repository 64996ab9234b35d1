package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// A Redis that demands client certificates gets them, and a new one once the files have another.
func TestStoreClientCertificate(t *testing.T) {
	redistest.Need(t)
	ca, stranger := redistest.NewCA(t), redistest.NewCA(t)
	inAnHour := time.Now().Add(time.Hour)
	p := redistest.StartTLS(t, ca.Issue(t, "127.0.0.1", inAnHour), "--tls-auth-clients", "yes")
	url, caFile := "rediss://"+p.TLSAddr, writeFile(t, "ca.pem", ca.PEM)
	cert := filepath.Join(t.TempDir(), "client.pem")
	use := func(issued string) {
		t.Helper()
		data, err := os.ReadFile(issued)
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(cert+".new", data, 0o600))
		testkit.Must(t, os.Rename(cert+".new", cert))
	}
	use(stranger.Issue(t, "client", inAnHour))
	s := openTestStore(t, "standalone", url, "p:", time.Second,
		"REDIS_CA_FILE", caFile, "REDIS_CERT_FILE", cert, "REDIS_KEY_FILE", cert)
	bare := openTestStore(t, "standalone", url, "p:", time.Second, "REDIS_CA_FILE", caFile)
	for name, s := range map[string]*store{"no certificate": bare, "a stranger's": s} {
		if err := s.check(); err == nil {
			t.Errorf("check with %s = nil", name)
		}
	}
	use(ca.Issue(t, "client", inAnHour))
	testkit.WaitFor(t, 5*time.Second, "the new certificate to count", func() bool { return s.check() == nil })
	testkit.Must(t, os.Remove(cert))
	testkit.Must(t, s.check()) // over the connection there is
	p.Stop()
	p.Restart(t)
	if err := s.check(); err == nil {
		t.Error("check = nil over a new connection without the files")
	}
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	testkit.Must(t, os.WriteFile(file, data, 0o600))
	return file
}

// With TLS each node must have a certificate for its address, or all one for REDIS_TLS_SERVER_NAME.
func TestStoreTLSNames(t *testing.T) {
	redistest.Need(t)
	ca := redistest.NewCA(t)
	caFile := writeFile(t, "ca.pem", ca.PEM)
	for _, name := range []string{"127.0.0.1", "redis.test"} {
		cert := ca.Issue(t, name, time.Now().Add(time.Hour))
		for mode, start := range map[string]func() (url string){
			"standalone": func() string { return "rediss://" + redistest.StartTLS(t, cert).TLSAddr },
			"cluster": func() string {
				nodes := redistest.ClusterTLS(t, cert)
				return "rediss://" + nodes[0].TLSAddr + "?addr=" + nodes[1].TLSAddr
			},
			"sentinel": func() string {
				_, _, sentinel := redistest.SentinelTLS(t, cert)
				return "rediss://" + sentinel.TLSAddr + "?master_name=mymaster"
			},
		} {
			t.Run(fmt.Sprintf("%s for %s", mode, name), func(t *testing.T) {
				url := start()
				for serverName, good := range map[string]bool{
					"": name == "127.0.0.1", "127.0.0.1": name == "127.0.0.1", name: true, "other.test": false,
				} {
					s := openTestStore(t, mode, url, "p:", 2*time.Second,
						"REDIS_CA_FILE", caFile, "REDIS_TLS_SERVER_NAME", serverName)
					var err error
					for i := range 10 { // on all primaries
						if err == nil {
							err = s.put("acme", fmt.Sprint(i), []byte("x"), inAnHour())
						}
					}
					if (err == nil) != good {
						t.Errorf("put with REDIS_TLS_SERVER_NAME=%s = %v, want good %t", serverName, err, good)
					}
					if err := s.check(); (err == nil) != good || good && s.primariesFailing() != nil {
						t.Errorf("check with REDIS_TLS_SERVER_NAME=%s = %v, %v, want good %t",
							serverName, err, s.primariesFailing(), good)
					}
				}
			})
		}
	}
}
