//go:build e2e && linux

package e2e

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// deploy/check tests compose.yaml and kubernetes.yaml, because their libraries stay out of this module.

// systemd knows every line of the unit, and rates it well.
func TestUnit(t *testing.T) {
	need(t, "systemd-analyze --version")
	file := filepath.Join(t.TempDir(), "authsession.service")
	text := strings.ReplaceAll(string(read(t, "../deploy/authsession.service")), "/usr/local/bin/authsession", binary)
	testkit.Must(t, os.WriteFile(file, []byte(text), 0o600))
	for _, command := range []string{
		"systemd-analyze verify --man=no " + file + " 2>&1",
		"systemd-analyze security --offline=true --threshold=15 " + file + " 2>&1 >/dev/null", // 1.5 of 10
	} {
		if out, err := shell(".", nil, command); err != nil || out != "" {
			t.Errorf("%s: %v %s, want no finding", command, err, out)
		}
	}
}

// gateway is a running nginx with deploy/nginx.conf and deploy/tls.conf.
type gateway struct {
	url, tlsURL string
	ca          redistest.CA
	log         testkit.Log
}

// startGateway runs nginx in front of the service at upstream until the test ends.
func startGateway(t *testing.T, upstream string) *gateway {
	t.Helper()
	need(t, "nginx -v")
	dir, addr, tlsAddr := t.TempDir(), "127.0.0.1:"+redistest.FreePort(), "127.0.0.1:"+redistest.FreePort()
	g := &gateway{url: "http://" + addr, tlsURL: "https://" + tlsAddr, ca: redistest.NewCA(t)}
	pair := read(t, g.ca.Issue(t, "127.0.0.1", time.Now().Add(time.Hour)))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "tls.crt"), pair, 0o600))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "tls.key"), pair, 0o600))
	// The image's entrypoint does the same with compose.yaml's GATEWAY_ variables.
	fill := strings.NewReplacer("${GATEWAY_UPSTREAM}", upstream, "${GATEWAY_LISTEN}", addr,
		"${GATEWAY_INNER}", "127.0.0.1:"+redistest.FreePort(), "${GATEWAY_TLS_LISTEN}", tlsAddr, "${GATEWAY_CERTS}", dir)
	for _, file := range []string{"nginx.conf", "tls.conf"} {
		text := fill.Replace(string(read(t, "../deploy/"+file)))
		testkit.Must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	cmd := exec.Command("nginx", "-p", dir, "-c", "nginx.conf", "-e", "stderr")
	cmd.Stdout, cmd.Stderr = &g.log, &g.log
	testkit.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // the master ends its workers
		_ = cmd.Wait()
	})
	testkit.WaitFor(t, 10*time.Second, "nginx to listen", func() bool {
		status, _ := get(g.url + "/")
		return status != 0
	})
	if g.log.Has("[warn]") {
		t.Errorf("nginx warns: %s", g.log.String())
	}
	return g
}

// client returns a client with an address of its own, so that no rate limit takes it for another, and certificates.
func (g *gateway) client(t *testing.T, address byte, certificates ...tls.Certificate) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(g.ca.PEM)
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, address)}}
	transport := &http.Transport{DialContext: dialer.DialContext,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certificates, MinVersion: tls.VersionTLS10}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// do sends a request whose path no client cleans.
func do(t *testing.T, c *http.Client, method, base, path string, h http.Header, body string) testkit.Answer {
	t.Helper()
	r, err := http.NewRequest(method, base, strings.NewReader(body))
	testkit.Must(t, err)
	r.URL.Opaque, r.Header = path, h
	response, err := c.Do(r)
	return testkit.ReadAnswer(t, response, err)
}

// goodHeader returns the header of a good request with one field more or changed. Its token is the field's own.
func goodHeader(t *testing.T, name, value string) http.Header {
	t.Helper()
	h := http.Header{"Authorization": {"Bearer " + goodToken(t, name)}, "Content-Type": {"application/json"}}
	h.Set(name, value)
	return h
}

func TestGateway(t *testing.T) {
	s := startReady(t, redistest.Addr(t), map[string]string{
		"CLIENT_CERT_HEADER": "X-Client-Cert", "TRUSTED_PROXIES": "127.0.0.1/32"})
	g := startGateway(t, strings.TrimPrefix(s.url, "http://"))
	t.Run("requests", func(t *testing.T) { testGatewayRequests(t, g) })
	t.Run("malformed", func(t *testing.T) { testGatewayMalformed(t, g) })
	t.Run("bound tokens", func(t *testing.T) { testGatewayBoundTokens(t, g) })
	t.Run("rate", func(t *testing.T) { testGatewayRate(t, g) })
	t.Run("log", func(t *testing.T) {
		for _, secret := range []string{"hush", endUser, s.token} {
			if g.log.Has(secret) {
				t.Errorf("the gateway's log contains %q", secret)
			}
		}
		g.log.Line(t, "request_id", "logged")
		if line := s.log.Line(t, "request_id", "logged"); line["remote_ip"] != "127.0.1.1" {
			t.Errorf("remote_ip = %v, want 127.0.1.1", line["remote_ip"])
		}
		if s.log.Has(`"request_id":"inside"`) {
			t.Error("a path that is not public reached the service")
		}
	})
	t.Run("no service", func(t *testing.T) {
		s.signal(t, syscall.SIGSTOP)
		do(t, testkit.Client, "POST", g.url, "/auth/session", nil, goodBody).WantError(t, 504, "timeout")
		s.signal(t, syscall.SIGKILL)
		s.wantExit(t, 10*time.Second, -1)
		do(t, testkit.Client, "POST", g.url, "/auth/session", nil, goodBody).WantError(t, 503, "unavailable")
	})
}

func testGatewayRequests(t *testing.T, g *gateway) {
	c := g.client(t, 1)
	old := g.client(t, 1)
	old.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS11
	if _, err := old.Get(g.tlsURL + "/openapi.yaml"); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("GET over TLS 1.1: %v, want its version refused", err)
	}
	head, tail := `{"end_user_id":"eu_1","x":"`, `"}`
	fits := head + strings.Repeat("x", 64<<10-len(head)-len(tail)) + tail
	long := testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{"x": strings.Repeat("x", 5945)}))
	for _, test := range []struct {
		name   string
		method string // "": POST
		path   string // "": /auth/session
		header string // "name: value", beside or instead of a good request's
		body   string // "": goodBody
		status int
		error  string
	}{
		{name: "logged", path: "/auth/session?password=hush", header: "X-Request-Id: logged", status: 200},
		{name: "long id", header: "X-Request-Id: " + strings.Repeat("x", 65), status: 200},
		{name: "v1", path: "/v1/auth/session", status: 200},
		{name: "description", method: "GET", path: "/openapi.yaml", status: 200},
		{name: "other method", method: "DELETE", status: 405, error: "method_not_allowed"},
		{name: "bad token", header: "Authorization: Bearer x", status: 401, error: "unauthorized"},
		{name: "long token", header: "Authorization: Bearer " + long, status: 200},
		{name: "long header", header: "X-Long: " + strings.Repeat("x", 20<<10), status: 400, error: "bad_request"},
		{name: "media type", header: "Content-Type: text/plain", status: 415, error: "unsupported_media_type"},
		{name: "64 KiB", body: fits, status: 200},
		{name: "over 64 KiB", body: fits + " ", status: 413, error: "request_too_large"},
		{name: "far over 64 KiB", body: fits + fits + fits, status: 413, error: "request_too_large"},
	} {
		name, value, _ := strings.Cut(cmp.Or(test.header, "X-Test: requests"), ": ")
		h := goodHeader(t, name, value)
		a := do(t, c, cmp.Or(test.method, "POST"), g.url, cmp.Or(test.path, "/auth/session"), h, cmp.Or(test.body, goodBody))
		if a.Status != test.status {
			t.Errorf("%s = %d %s, want %d", test.name, a.Status, a.Body, test.status)
		} else if test.error != "" {
			a.WantError(t, test.status, test.error)
		}
		if id := a.Header.Get("X-Request-Id"); name == "X-Request-Id" && (id == value) != (len(value) <= 64) {
			t.Errorf("%s: X-Request-Id = %q", test.name, id)
		}
	}
	for _, path := range []string{
		"/", "/readyz", "/livez", "/metrics", "/v1/readyz", "/auth/session/", "/v1/v1/auth/session", "//readyz",
		"/auth/session/../../readyz", "/auth/session/%2e%2e/%2e%2e/readyz", "/readyz?/auth/session", "/auth//session",
	} {
		for _, method := range []string{"GET", "POST"} {
			do(t, c, method, g.url, path, goodHeader(t, "X-Request-Id", "inside"), "").WantError(t, 404, "not_found")
		}
	}
}

// nginx's own refusals look like the service's errors.
func testGatewayMalformed(t *testing.T, g *gateway) {
	const host = " HTTP/1.1\r\nHost: h\r\n"
	for request, status := range map[string]int{
		"GARBAGE\r\n\r\n":                                               400,
		"\x16\x03\x01\r\n\r\n":                                          400,
		"GET /%zz" + host + "\r\n":                                      400,
		"GET /../.." + host + "\r\n":                                    400,
		"POST /auth/session HTTP/1.1\r\n\r\n":                           400,
		"CONNECT h:443" + host + "\r\n":                                 400,
		"CONNECT /auth/session" + host + "\r\n":                         405,
		"TRACE /auth/session" + host + "\r\n":                           405,
		"POST /auth/session" + host + "Transfer-Encoding: gzip\r\n\r\n": 400,
		"POST /auth/session" + host + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
		"POST /auth/session" + host + "Authorization: Bearer x\r\nContent-Length: 20\r\n\r\n{":  408,
	} {
		c := dial(t, g.url, 1)[0].do([]byte(request))
		testkit.Must(t, c.err)
		names := map[int]string{400: "bad_request", 405: "method_not_allowed", 408: "timeout"}
		if c.answer.WantError(t, status, names[status]); status == 405 && c.answer.Header.Get("Allow") != "POST" {
			t.Errorf("%q: Allow = %q, want POST", request, c.answer.Header.Get("Allow"))
		}
	}
}

// A token that is bound to a certificate is accepted over a connection with that certificate. What callers send in the
// gateway's header does not come through.
func testGatewayBoundTokens(t *testing.T, g *gateway) {
	certificate := func() tls.Certificate {
		file := redistest.NewCA(t).Issue(t, "client", time.Now().Add(time.Hour))
		pair, err := tls.LoadX509KeyPair(file, file)
		testkit.Must(t, err)
		return pair
	}
	own, other := certificate(), certificate()
	sum := sha256.Sum256(own.Certificate[0])
	bound := testkit.Sign(t, testkit.EC(), testkit.With(map[string]any{
		"client_id": "bound", "cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}}))
	byteSequence := ":" + base64.StdEncoding.EncodeToString(own.Certificate[0]) + ":"
	escaped := url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]})))
	for _, test := range []struct {
		name         string
		base         string
		certificates []tls.Certificate
		header       string
		want         int
	}{
		{name: "its certificate", base: g.tlsURL, certificates: []tls.Certificate{own}, want: 200},
		{name: "its certificate, header", base: g.tlsURL, certificates: []tls.Certificate{own}, header: "x", want: 200},
		{name: "another's", base: g.tlsURL, certificates: []tls.Certificate{other}, header: byteSequence, want: 401},
		{name: "no certificate", base: g.tlsURL, header: escaped, want: 401},
		{name: "no TLS", base: g.url, header: escaped, want: 401},
	} {
		c := g.client(t, 3, test.certificates...)
		for _, name := range []string{"X-Client-Cert", "x-CLIENT-cert", "X_Client_Cert"} {
			h := http.Header{"Authorization": {"Bearer " + bound}, name: {test.header}}
			if a := do(t, c, "POST", test.base, "/auth/session", h, goodBody); a.Status != test.want {
				t.Errorf("%s in %s: POST = %d %s, want %d", test.name, name, a.Status, a.Body, test.want)
			}
		}
	}
}

// The gateway limits the rate of a token, wherever it comes from, and no other's.
func testGatewayRate(t *testing.T, g *gateway) {
	h := goodHeader(t, "X-Greedy", "")
	for _, address := range []byte{4, 5} {
		passed, a := -1, testkit.Answer{}
		for c := g.client(t, address); a.Status != 429 && passed < 5000; passed++ {
			a = do(t, c, "DELETE", g.url, "/auth/session", h, "")
		}
		a.WantError(t, 429, "too_many_requests")
		// The second address finds the burst of 400 used up, but for what the rate has added.
		if (passed >= 400) != (address == 4) {
			t.Errorf("%d requests with a token pass from address %d", passed, address)
		}
	}
	other := goodHeader(t, "X-Other", "")
	if a := do(t, g.client(t, 6), "POST", g.url, "/auth/session", other, goodBody); a.Status != 200 {
		t.Errorf("POST of another client = %d %s, want 200", a.Status, a.Body)
	}
}

// Behind the gateway, graceful restarts of one of two replicas lose no request.
func TestGatewayRestart(t *testing.T) {
	env := serviceEnv(t, redistest.Addr(t))
	env["DRAIN_DELAY"] = "1s"
	stays, restarted := start(t, env), start(t, env)
	env["ADDR"] = strings.TrimPrefix(restarted.url, "http://")
	stays.waitReady(t)
	restarted.waitReady(t)
	g := startGateway(t, env["ADDR"]+" fail_timeout=1s; server "+strings.TrimPrefix(stays.url, "http://"))
	stop := startLoad(t, &service{url: g.url, token: stays.token})
	for range 4 {
		restarted.signal(t, syscall.SIGTERM)
		restarted.wantExit(t, 20*time.Second, 0)
		restarted = start(t, env)
		testkit.WaitFor(t, 20*time.Second, "requests at the new process", func() bool {
			return restarted.log.Has(`"route":"/auth/session"`)
		})
	}
	calls, _ := stop()
	wantStatuses(t, calls, 200)
}

// promtool accepts the alerts, what alerts_test.yaml says of them, and the expressions of the dashboard. Their metrics
// exist, and docs/operate.md has a row for each alert.
func TestAlerts(t *testing.T) {
	clients := filepath.Join(t.TempDir(), "clients.json")
	testkit.Must(t, os.WriteFile(clients, []byte(`{"clients": {"*": {}}}`), 0o600))
	s := startReady(t, redistest.Addr(t), map[string]string{"CLIENTS_FILE": clients})
	s.session(t, goodBody) // so that its labels are there
	metrics := wantGet(t, s.metricsURL(t)+"/metrics", 200)
	for _, file := range []string{"alerts.yaml", "alerts_test.yaml", "dashboard.json"} {
		text := read(t, "../deploy/"+file)
		for _, name := range regexp.MustCompile(`\b(?:authsession|go|process)_[a-z_]+`).FindAll(text, -1) {
			if !regexp.MustCompile(`(?m)^` + string(name) + `[ {]`).MatchString(metrics) {
				t.Errorf("%s: /metrics has no %s", file, name)
			}
		}
	}
	doc := read(t, "../docs/operate.md")
	for _, alert := range regexp.MustCompile(`- alert: (\w+)`).FindAllSubmatch(read(t, "../deploy/alerts.yaml"), -1) {
		if row := regexp.MustCompile("(?m)^\\| .*`" + string(alert[1]) + "`.* \\| .+ \\|$"); !row.Match(doc) {
			t.Errorf("docs/operate.md has no row for %s", alert[1])
		}
	}
	rules := "groups:\n- name: dashboard\n  rules:\n"
	for i, expr := range regexp.MustCompile(`"expr": (".+")`).FindAllSubmatch(read(t, "../deploy/dashboard.json"), -1) {
		text := strings.ReplaceAll(string(expr[1]), "$__rate_interval", "5m")
		rules += fmt.Sprintf("  - {record: 'panel:%d', expr: %s}\n", i, text)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	testkit.Must(t, os.WriteFile(file, []byte(rules), 0o600))
	need(t, "promtool --version")
	for _, command := range []string{
		"promtool check rules alerts.yaml " + file, "promtool test rules alerts_test.yaml",
	} {
		if out, err := shell("../deploy", nil, command); err != nil {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
}
