package e2e

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// These tests drive what deploy/ holds with the tools that read it: nginx in front of the service, promtool on rules
// and expressions. deploy/check has those of compose.yaml and kubernetes.yaml, whose libraries stay out of this module.

const deploy = "../deploy"

// gateway is a running nginx with deploy/nginx.conf and deploy/tls.conf.
type gateway struct {
	cmd     *exec.Cmd
	dir     string
	addr    string
	tlsAddr string
	log     testkit.Log // stdout and stderr
}

// startGateway runs nginx in front of the service at upstream until the test ends.
func startGateway(t *testing.T, upstream string) *gateway {
	t.Helper()
	needTool(t, "nginx", "REQUIRE_NGINX")
	dir := t.TempDir()
	writeCertificate(t, dir)
	for range 5 { // another process may take a port before nginx does
		g := &gateway{dir: dir, addr: "127.0.0.1:" + redistest.FreePort(), tlsAddr: "127.0.0.1:" + redistest.FreePort()}
		if g.start(t, upstream) {
			return g
		}
	}
	t.Fatal("nginx does not start")
	return nil
}

// start tells whether nginx listens on its addresses.
func (g *gateway) start(t *testing.T, upstream string) bool {
	t.Helper()
	// What the image's entrypoint does with compose.yaml's GATEWAY_ variables.
	fill := strings.NewReplacer("${GATEWAY_UPSTREAM}", upstream, "${GATEWAY_LISTEN}", g.addr,
		"${GATEWAY_INNER}", "127.0.0.1:"+redistest.FreePort(), "${GATEWAY_TLS_LISTEN}", g.tlsAddr, "${GATEWAY_CERTS}", g.dir)
	for _, file := range []string{"nginx.conf", "tls.conf"} {
		template, err := os.ReadFile(filepath.Join(deploy, file))
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(filepath.Join(g.dir, file), []byte(fill.Replace(string(template))), 0o600))
	}
	args := []string{"-p", g.dir, "-c", "nginx.conf", "-e", "stderr"}
	out, err := exec.Command("nginx", append(args, "-t")...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("[warn]")) {
		t.Fatalf("nginx -t: %v: %s", err, out)
	}
	g.cmd = exec.Command("nginx", args...)
	g.cmd.Stdout, g.cmd.Stderr = &g.log, &g.log
	testkit.Must(t, g.cmd.Start())
	exited := make(chan struct{})
	go func() { _ = g.cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = g.cmd.Process.Signal(syscall.SIGTERM) // the master ends its workers
		<-exited
	})
	pid := fmt.Sprintf("%d\n", g.cmd.Process.Pid)
	for {
		select {
		case <-exited:
			return false
		case <-time.After(5 * time.Millisecond):
			// nginx writes its process id once its addresses are its own.
			if written, _ := os.ReadFile(filepath.Join(g.dir, "nginx.pid")); string(written) == pid {
				return true
			}
		}
	}
}

// writeCertificate writes tls.crt and tls.key for 127.0.0.1 into dir.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	certificate, key := newCertificate(t)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	testkit.Must(t, err)
	for file, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: certificate},
		"tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		testkit.Must(t, os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600))
	}
}

// newCertificate makes a certificate for 127.0.0.1 that signs itself.
func newCertificate(t *testing.T) (der []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}}}
	der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	testkit.Must(t, err)
	return der, key
}

// do sends a request whose path is not cleaned on its way.
func (g *gateway) do(t *testing.T, c *http.Client, method, path string, h http.Header, body io.Reader) testkit.Answer {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+g.addr, body)
	testkit.Must(t, err)
	r.URL.Opaque = path
	r.Header = h
	response, err := c.Do(r)
	return testkit.ReadAnswer(t, response, err)
}

// post sends a body to the service.
func (g *gateway) post(t *testing.T, h http.Header, body io.Reader) testkit.Answer {
	t.Helper()
	return g.do(t, testkit.Client, "POST", "/auth/session", h, body)
}

// goodHeader is a good request's header with one more.
func goodHeader(t *testing.T, name, value string) http.Header {
	t.Helper()
	return http.Header{
		"Authorization": {"Bearer " + goodToken(t)}, "Content-Type": {"application/json"}, name: {value}}
}

// waitForRequest waits for a request's log line, which comes after its answer.
func waitForRequest(t *testing.T, log *testkit.Log, id string) {
	t.Helper()
	testkit.WaitFor(t, 5*time.Second, "the log line of request "+id, func() bool {
		return log.Has(`"request_id":"` + id + `"`)
	})
}

func TestGateway(t *testing.T) {
	needTool(t, "nginx", "REQUIRE_NGINX")
	env := serviceEnv(t, redistest.Addr(t))
	env["CLIENT_CERT_HEADER"], env["TRUSTED_PROXIES"] = "X-Client-Cert", "127.0.0.1/32"
	s := startService(t, env)
	s.waitReady(t)
	g := startGateway(t, strings.TrimPrefix(s.url, "http://"))
	for _, test := range []struct {
		name string
		run  func(*testing.T, *gateway, *service)
	}{
		{"request id", testGatewayRequestID},
		{"paths inside", testGatewayInside},
		{"paths outside", testGatewayOutside},
		{"body and header sizes", testGatewaySizes},
		{"refusals", testGatewayRefusals},
		{"malformed", testGatewayMalformed},
		{"slow body", testGatewaySlowBody},
		{"TLS", testGatewayTLS},
		{"bound tokens", testGatewayBoundTokens},
		{"address", testGatewayAddress},
		{"rate", testGatewayRate},
		{"log", testGatewayLog},
		{"no service", testGatewayNoService}, // the last: it ends the service
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, g, s) })
	}
}

func testGatewayRequestID(t *testing.T, g *gateway, s *service) {
	for id, kept := range map[string]bool{
		"aZ09._-": true, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false, "a b": false, `a"b`: false, "": false,
	} {
		a := g.post(t, goodHeader(t, "X-Request-Id", id), strings.NewReader(goodBody))
		if a.Status != 200 {
			t.Fatalf("POST /auth/session = %d %s, want 200", a.Status, a.Body)
		}
		a.WantHeaders(t, "application/json")
		got := a.Header.Get("X-Request-Id")
		if (got == id) != kept {
			t.Errorf("X-Request-Id %q came back as %q", id, got)
		}
		waitForRequest(t, &s.log, got)
		waitForRequest(t, &g.log, got)
	}
}

func testGatewayInside(t *testing.T, g *gateway, s *service) {
	for _, path := range []string{
		"/", "/readyz", "/livez", "/metrics", "/v1", "/v1/readyz", "/auth/session/", "/auth/sessions", "/v1/v1/auth/session",
		"/auth/session/../../readyz", "/auth/session/%2e%2e/%2e%2e/readyz", "//readyz", "/readyz?/auth/session",
		"/readyz#/auth/session", "/auth/../readyz", "/auth//session", "/openapi.yaml/x", "http://" + g.addr + "/readyz",
	} {
		for _, method := range []string{"GET", "POST"} {
			a := g.do(t, testkit.Client, method, path, goodHeader(t, "X-Request-Id", "inside"), nil)
			a.WantError(t, 404, "not_found")
			if a.Header.Get("X-Request-Id") != "inside" {
				t.Errorf("%s %s: X-Request-Id = %q", method, path, a.Header.Get("X-Request-Id"))
			}
		}
	}
	if s.log.Has(`"request_id":"inside"`) {
		t.Error("the service heard of a path that is not public")
	}
}

func testGatewayOutside(t *testing.T, g *gateway, s *service) {
	for method, path := range map[string]string{
		"POST": "/v1/auth/session", "GET": "/openapi.yaml", "DELETE": "/auth/session", "PUT": "/readyz/../auth/session",
	} {
		h := goodHeader(t, "X-Request-Id", "outside-"+method)
		g.do(t, testkit.Client, method, path, h, strings.NewReader(goodBody))
		waitForRequest(t, &s.log, "outside-"+method)
	}
}

func testGatewaySizes(t *testing.T, g *gateway, s *service) {
	const maxBody = 64 << 10
	head, tail := `{"end_user_id":"eu_1","x":"`, `"}`
	fits := head + strings.Repeat("x", maxBody-len(head)-len(tail)) + tail
	post := func(id string, body io.Reader) testkit.Answer {
		t.Helper()
		return g.post(t, goodHeader(t, "X-Request-Id", id), body)
	}
	if a := post("fits", strings.NewReader(fits)); a.Status != 200 {
		t.Errorf("POST of %d bytes = %d %s, want 200", len(fits), a.Status, a.Body)
	}
	post("over", strings.NewReader(fits+" ")).WantError(t, 413, "request_too_large")
	waitForRequest(t, &s.log, "over")
	chunked := io.MultiReader(strings.NewReader(fits), strings.NewReader(" ")) // of no known length
	post("chunked", chunked).WantError(t, 413, "request_too_large")
	waitForRequest(t, &s.log, "chunked")
	post("far-over", strings.NewReader(strings.Repeat(fits, 4))).WantError(t, 413, "request_too_large")

	long := goodHeader(t, "X-Request-Id", "long")
	claims := testkit.With(map[string]any{"x": strings.Repeat("x", 5945)})
	long.Set("Authorization", "Bearer "+testkit.Sign(t, testkit.EC(), claims))
	if a := g.post(t, long, strings.NewReader(goodBody)); len(long.Get("Authorization")) < 8180 || a.Status != 200 {
		t.Errorf("POST with a token of %d bytes = %d %s, want 200", len(long.Get("Authorization")), a.Status, a.Body)
	}
	tooLong := goodHeader(t, "X-Long", strings.Repeat("x", 20<<10))
	g.post(t, tooLong, strings.NewReader(goodBody)).WantError(t, 400, "bad_request")
}

// What the service refuses comes to the caller as it is.
func testGatewayRefusals(t *testing.T, g *gateway, _ *service) {
	post := func(name, value string) testkit.Answer {
		t.Helper()
		return g.post(t, goodHeader(t, name, value), strings.NewReader(goodBody))
	}
	post("Authorization", "Bearer x").WantError(t, 401, "unauthorized")
	post("Content-Type", "text/plain").WantError(t, 415, "unsupported_media_type")
}

// What nginx refuses by itself looks like the service's answers too.
func testGatewayMalformed(t *testing.T, g *gateway, s *service) {
	const host = " HTTP/1.1\r\nHost: h\r\n"
	for _, test := range []struct {
		request string
		status  int
		name    string
	}{
		{"GARBAGE\r\n\r\n", 400, "bad_request"},
		{"\x16\x03\x01\r\n\r\n", 400, "bad_request"},
		{"GET /%zz" + host + "\r\n", 400, "bad_request"},
		{"GET /../.." + host + "\r\n", 400, "bad_request"},
		{"POST /auth/session HTTP/1.1\r\n\r\n", 400, "bad_request"}, // no Host
		{"OPTIONS *" + host + "\r\n", 400, "bad_request"},
		{"CONNECT h:443" + host + "\r\n", 400, "bad_request"},
		{"CONNECT /auth/session" + host + "\r\n", 405, "method_not_allowed"},
		{"TRACE /auth/session?x" + host + "\r\n", 405, "method_not_allowed"},
		{"GET /" + strings.Repeat("x", 40<<10) + host + "\r\n", 400, "bad_request"},
		{"GET /auth/session HTTP/9.9\r\nHost: h\r\n\r\n", 400, "bad_request"},
		{"POST /auth/session" + host + "Transfer-Encoding: gzip\r\n\r\n", 400, "bad_request"},
		{"POST /auth/session" + host + "Content-Length: x\r\n\r\n", 400, "bad_request"},
		{"POST /auth/session" + host + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_request"},
	} {
		a := send(t, g.addr, test.request)
		a.WantError(t, test.status, test.name)
		allow := ""
		switch {
		case test.status == 405 && strings.Contains(test.request, "/auth/session"):
			allow = "POST"
		case test.status == 405:
			allow = "GET, HEAD, POST"
		}
		if got := a.Header.Get("Allow"); got != allow {
			t.Errorf("%.40q: Allow = %q, want %q", test.request, got, allow)
		}
	}
	send(t, g.tlsAddr, "POST /auth/session"+host+"\r\n").WantError(t, 400, "bad_request")
}

// send sends a request as it is written.
func send(t *testing.T, addr, request string) testkit.Answer {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	testkit.Must(t, err)
	defer c.Close()
	testkit.Must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, request)
	testkit.Must(t, err)
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	return testkit.ReadAnswer(t, response, err)
}

func testGatewaySlowBody(t *testing.T, g *gateway, s *service) {
	a := send(t, g.addr, "POST /auth/session HTTP/1.1\r\nHost: h\r\nX-Request-Id: slow\r\n"+
		"Authorization: Bearer "+s.token+"\r\nContent-Length: 20\r\n\r\n{")
	a.WantError(t, 408, "timeout")
	waitForRequest(t, &g.log, "slow")
}

// roots has the gateway's certificate.
func (g *gateway) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	certificate, err := os.ReadFile(filepath.Join(g.dir, "tls.crt"))
	testkit.Must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	return roots
}

func testGatewayTLS(t *testing.T, g *gateway, _ *service) {
	roots := g.roots(t)
	post := func(version uint16) (status int, err error) {
		config := &tls.Config{RootCAs: roots, MinVersion: version, MaxVersion: version}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		defer client.CloseIdleConnections()
		r, err := http.NewRequest("POST", "https://"+g.tlsAddr+"/auth/session", strings.NewReader(goodBody))
		testkit.Must(t, err)
		r.Header = goodHeader(t, "X-Request-Id", "tls")
		response, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		if status, err := post(version); status != 200 || err != nil {
			t.Errorf("POST over %s = %d, %v, want 200", tls.VersionName(version), status, err)
		}
	}
	if _, err := post(tls.VersionTLS11); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("POST over TLS 1.1: %v, want its version refused", err)
	}
}

// A token that is bound to a certificate is good over a connection with that one. What callers send in the gateway's
// header does not come through.
func testGatewayBoundTokens(t *testing.T, g *gateway, _ *service) {
	own, ownKey := newCertificate(t)
	other, otherKey := newCertificate(t)
	sum := sha256.Sum256(own)
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 4)}} // a rate of its own
	cnf := map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}
	bound := testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"cnf": cnf}))
	plain := goodToken(t)
	byteSequence := ":" + base64.StdEncoding.EncodeToString(own) + ":"
	escaped := url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own})))
	withOwn := []tls.Certificate{{Certificate: [][]byte{own}, PrivateKey: ownKey}}
	withOther := []tls.Certificate{{Certificate: [][]byte{other}, PrivateKey: otherKey}}
	withChain := []tls.Certificate{{Certificate: [][]byte{other, own}, PrivateKey: otherKey}}
	for _, test := range []struct {
		name         string
		scheme       string
		certificates []tls.Certificate
		token        string
		sent         []string // in the gateway's header
		want         int
	}{
		{"its certificate", "https", withOwn, bound, nil, 200},
		{"another certificate", "https", withOther, bound, nil, 401},
		{"its certificate behind another", "https", withChain, bound, nil, 401},
		{"no certificate", "https", nil, bound, nil, 401},
		{"no TLS", "http", nil, bound, nil, 401},
		{"header sent, its certificate", "https", withOwn, bound, []string{"x"}, 200},
		{"header sent, another certificate", "https", withOther, bound, []string{byteSequence}, 401},
		{"header sent, no certificate", "https", nil, bound, []string{byteSequence}, 401},
		{"header sent escaped, no certificate", "https", nil, bound, []string{escaped}, 401},
		{"header sent twice, no certificate", "https", nil, bound, []string{escaped, escaped}, 401},
		{"header sent, no TLS", "http", nil, bound, []string{byteSequence}, 401},
		{"header sent escaped, no TLS", "http", nil, bound, []string{escaped}, 401},
		{"no bound token, any certificate", "https", withOther, plain, nil, 200},
		{"no bound token, no certificate", "https", nil, plain, nil, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := &tls.Config{RootCAs: g.roots(t), Certificates: test.certificates}
			transport := &http.Transport{TLSClientConfig: config, DialContext: dialer.DialContext}
			client := &http.Client{Transport: transport}
			defer client.CloseIdleConnections()
			addr := map[string]string{"http": g.addr, "https": g.tlsAddr}[test.scheme]
			for _, name := range []string{"X-Client-Cert", "x-CLIENT-cert", "X_Client_Cert"} {
				r, err := http.NewRequest("POST", test.scheme+"://"+addr+"/auth/session", strings.NewReader(goodBody))
				testkit.Must(t, err)
				r.Header = http.Header{"Authorization": {"Bearer " + test.token}, name: test.sent}
				response, err := client.Do(r)
				if a := testkit.ReadAnswer(t, response, err); a.Status != test.want {
					t.Errorf("POST with %s = %d %s, want %d", name, a.Status, a.Body, test.want)
				}
				if test.sent == nil {
					break
				}
			}
		})
	}
}

// The service's log has the address of the gateway's peer, whatever that sends.
func testGatewayAddress(t *testing.T, g *gateway, s *service) {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	defer client.CloseIdleConnections()
	h := goodHeader(t, "X-Request-Id", "address")
	h["X-Forwarded-For"] = []string{"192.0.2.7", "127.0.0.1"}
	g.do(t, client, "POST", "/auth/session", h, strings.NewReader(goodBody))
	waitForRequest(t, &s.log, "address")
	if line := s.log.Line(t, "request_id", "address"); line["remote_ip"] != "127.0.0.3" {
		t.Errorf("remote_ip = %v, want 127.0.0.3", line["remote_ip"])
	}
}

func testGatewayRate(t *testing.T, g *gateway, _ *service) {
	// Each caller sends as fast as it can, from an address of its own, until it is refused.
	greedy := func(address byte, h http.Header) (passed int) {
		t.Helper()
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, address)}}
		client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
		defer client.CloseIdleConnections()
		var a testkit.Answer
		testkit.WaitFor(t, 20*time.Second, "the rate limit", func() bool {
			for range 100 {
				a = g.do(t, client, "DELETE", "/auth/session", h, nil) // cheap
				if a.Status == http.StatusTooManyRequests {
					return true
				}
				passed++
			}
			return false
		})
		a.WantError(t, 429, "too_many_requests")
		return passed
	}
	token := http.Header{"Authorization": {"Bearer " + goodToken(t)}}
	if passed := greedy(2, token); passed < 400 {
		t.Errorf("%d requests with a token pass at once, want a burst of 400", passed)
	}
	if passed := greedy(3, token); passed > 200 { // what has run off meanwhile
		t.Errorf("%d requests with that token pass at once from another address, want few", passed)
	}
	if a := g.post(t, goodHeader(t, "X-Request-Id", "another"), strings.NewReader(goodBody)); a.Status != 200 {
		t.Errorf("POST of another client = %d %s, want 200", a.Status, a.Body)
	}
}

func testGatewayLog(t *testing.T, g *gateway, _ *service) {
	h := goodHeader(t, "X-Request-Id", "last")
	g.do(t, testkit.Client, "POST", "/auth/session?password=hush", h, strings.NewReader(goodBody))
	waitForRequest(t, &g.log, "last")
	token := strings.TrimPrefix(h.Get("Authorization"), "Bearer ")
	for name, secret := range map[string]string{"query": "hush", "token": token, "body": endUser} {
		if g.log.Has(secret) {
			t.Errorf("the gateway's log holds the %s", name)
		}
	}
	for text := range strings.SplitSeq(strings.TrimSpace(g.log.String()), "\n") {
		if !json.Valid([]byte(text)) {
			t.Errorf("log line %q is no JSON", text)
		}
	}
}

func testGatewayNoService(t *testing.T, g *gateway, s *service) {
	s.signal(t, syscall.SIGKILL)
	s.wait(t, 5*time.Second)
	a := g.post(t, goodHeader(t, "X-Request-Id", "nobody"), strings.NewReader(goodBody))
	a.WantError(t, 503, "unavailable")
}

// A service that neither answers nor closes costs its caller 504, and no other replica gets what it may have done.
func TestGatewaySilentService(t *testing.T) {
	var connections atomic.Int64
	silent := func() (addr string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		testkit.Must(t, err)
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				connections.Add(1)
				go func() {
					defer c.Close()
					_, _ = io.Copy(io.Discard, c)
				}()
			}
		}()
		return l.Addr().String()
	}
	g := startGateway(t, silent()+"; server "+silent())
	g.post(t, http.Header{}, strings.NewReader(goodBody)).WantError(t, 504, "timeout")
	if n := connections.Load(); n != 1 {
		t.Errorf("%d replicas were asked, want 1", n)
	}
}

func TestMetricNamesInDeploy(t *testing.T) {
	env := serviceEnv(t, redistest.Addr(t))
	env["METRICS_ADDR"], env["CLIENTS_FILE"] = "127.0.0.1:0", filepath.Join(t.TempDir(), "clients.json")
	testkit.Must(t, os.WriteFile(env["CLIENTS_FILE"], []byte(`{"clients": {"*": {}}}`), 0o600))
	s := startService(t, env)
	s.waitReady(t)
	s.session(t, goodBody) // and its labels are there
	var names []string
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(s.scrape(t), -1) {
		names = append(names, match[1])
	}
	for _, file := range []string{"alerts.yaml", "alerts_test.yaml", "dashboard.json"} {
		text, err := os.ReadFile(filepath.Join(deploy, file))
		testkit.Must(t, err)
		used := regexp.MustCompile(`\b(?:authsession|go|process)_[a-z_]+`).FindAllString(string(text), -1)
		if len(used) < 10 {
			t.Errorf("%s: %d metric names found", file, len(used))
		}
		for _, name := range used {
			family := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
			if !slices.Contains(names, name) && !slices.Contains(names, family) {
				t.Errorf("%s: /metrics has no %s", file, name)
			}
		}
	}
}

// promtool runs promtool and fails the test where that does.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v: %s", args, err, out)
	}
}

func TestAlerts(t *testing.T) {
	rules, err := os.ReadFile(filepath.Join(deploy, "alerts.yaml"))
	testkit.Must(t, err)
	alerts, whys := bytes.Count(rules, []byte("- alert: ")), bytes.Count(rules, []byte("          why: "))
	if alerts == 0 || whys != alerts {
		t.Errorf("%d alerts say why, of %d", whys, alerts)
	}
	doc, err := os.ReadFile("../docs/operate.md")
	testkit.Must(t, err)
	for _, alert := range regexp.MustCompile(`- alert: (\w+)`).FindAllSubmatch(rules, -1) {
		if row := regexp.MustCompile("(?m)^\\| .*`" + string(alert[1]) + "`.* \\| .+ \\|$"); !row.Match(doc) {
			t.Errorf("docs/operate.md does not say where to look first for %s", alert[1])
		}
	}
	if bytes.Contains(rules, []byte("job=")) {
		t.Error("a rule holds for one name of the scrape job only")
	}
	needTool(t, "promtool", "REQUIRE_PROMTOOL")
	promtool(t, "check", "rules", filepath.Join(deploy, "alerts.yaml"))
	promtool(t, "test", "rules", filepath.Join(deploy, "alerts_test.yaml"))
}

// The dashboard's panels have places and expressions that Grafana and Prometheus take.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deploy, "dashboard.json"))
	testkit.Must(t, err)
	type source struct{ Type, UID string }
	var dashboard struct {
		UID, Title    string
		SchemaVersion int
		Panels        []struct {
			ID         int
			Title      string
			Datasource source
			GridPos    struct{ X, Y, W, H int }
			Targets    []struct {
				RefID, Expr string
				Datasource  source
			}
		}
	}
	testkit.Must(t, json.Unmarshal(text, &dashboard))
	if dashboard.UID == "" || dashboard.Title == "" || dashboard.SchemaVersion < 39 || len(dashboard.Panels) == 0 {
		t.Fatalf("dashboard %q %q of schema %d with %d panels",
			dashboard.UID, dashboard.Title, dashboard.SchemaVersion, len(dashboard.Panels))
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q: another has its id", p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x > 23 {
					t.Fatalf("panel %q is over the edge or over %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			if want := (source{"prometheus", "${datasource}"}); p.Datasource != want || target.Datasource != want {
				t.Errorf("panel %q: data source %v, %v, want %v", p.Title, p.Datasource, target.Datasource, want)
			}
			rules = append(rules, rule{
				fmt.Sprintf("panel:%d_%s", p.ID, target.RefID), strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")})
		}
	}
	needTool(t, "promtool", "REQUIRE_PROMTOOL")
	type group struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	}
	groups, err := json.Marshal(map[string][]group{"groups": {{"dashboard", rules}}})
	testkit.Must(t, err)
	file := filepath.Join(t.TempDir(), "rules.yaml") // JSON is YAML
	testkit.Must(t, os.WriteFile(file, groups, 0o600))
	promtool(t, "check", "rules", file)
}
