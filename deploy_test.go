package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
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
)

// These tests drive what deploy/ holds with the tools that read it: nginx in front of the
// service, promtool on rules and expressions. deploy/check has those of compose.yaml and
// kubernetes.yaml, whose libraries stay out of this module.

// needTool ends a test whose tool is not on the PATH; where the variable is 1, as in CI,
// that is a failure.
func needTool(t *testing.T, tool, variable string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil && os.Getenv(variable) == "1" {
		t.Fatalf("%s=1: %v", variable, err)
	} else if err != nil {
		t.Skipf("no %s on the PATH", tool)
	}
}

// gateway is a running nginx with deploy/nginx.conf and deploy/tls.conf.
type gateway struct {
	cmd  *exec.Cmd
	addr string
	tls  string     // address with TLS
	log  *logBuffer // stdout and stderr
}

// startGateway runs nginx in front of the service at upstream until the test ends.
func startGateway(t *testing.T, upstream string) *gateway {
	t.Helper()
	needTool(t, "nginx", "REQUIRE_NGINX")
	dir := t.TempDir()
	writeCertificate(t, dir)
	for range 5 { // another process may take a port before nginx does
		g := &gateway{addr: "127.0.0.1:" + freePort(), tls: "127.0.0.1:" + freePort(), log: &logBuffer{}}
		// What the image's entrypoint does with compose.yaml's GATEWAY_ variables.
		fill := strings.NewReplacer("${GATEWAY_UPSTREAM}", upstream, "${GATEWAY_LISTEN}", g.addr, "${GATEWAY_TLS_LISTEN}", g.tls, "${GATEWAY_CERTS}", dir)
		for _, file := range []string{"nginx.conf", "tls.conf"} {
			template, err := os.ReadFile(filepath.Join("deploy", file))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, file), []byte(fill.Replace(string(template))), 0o600))
		}
		args := []string{"-p", dir, "-c", "nginx.conf", "-e", "stderr"}
		if out, err := exec.Command("nginx", append(args, "-t")...).CombinedOutput(); err != nil || bytes.Contains(out, []byte("[warn]")) {
			t.Fatalf("nginx -t: %v: %s", err, out)
		}
		g.cmd = exec.Command("nginx", args...)
		g.cmd.Stdout, g.cmd.Stderr = g.log, g.log
		must(t, g.cmd.Start())
		exited := make(chan struct{})
		go func() { _ = g.cmd.Wait(); close(exited) }()
		t.Cleanup(func() {
			_ = g.cmd.Process.Signal(syscall.SIGTERM) // the master ends its workers
			<-exited
		})
		pid := fmt.Sprintf("%d\n", g.cmd.Process.Pid)
		for up := true; up; { // until it listens, or has given up
			select {
			case <-exited:
				up = false
			case <-time.After(5 * time.Millisecond):
				// nginx writes its process id once both addresses are its own.
				if written, _ := os.ReadFile(filepath.Join(dir, "nginx.pid")); string(written) == pid {
					return g
				}
			}
		}
	}
	t.Fatal("nginx does not start")
	return nil
}

// writeCertificate writes tls.crt and tls.key for 127.0.0.1 into dir.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "tls.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

// do sends a request whose path is not cleaned on its way.
func (g *gateway) do(t *testing.T, c *http.Client, method, path string, h http.Header, body io.Reader) answer {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+g.addr, body)
	must(t, err)
	r.URL.Opaque = path
	r.Header = h
	response, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	must(t, err)
	return answer{response.StatusCode, response.Header, data}
}

// waitForRequest waits for a request's log line, which comes after its answer.
func waitForRequest(t *testing.T, log *logBuffer, id string) {
	t.Helper()
	waitFor(t, 5*time.Second, "the log line of request "+id, func() bool { return strings.Contains(log.String(), `"request_id":"`+id+`"`) })
}

// wantGatewayError is wantError for the gateway's own answers, whose 429 is temporary too.
func wantGatewayError(t *testing.T, a answer, status int, name string) {
	t.Helper()
	if status != http.StatusTooManyRequests {
		wantError(t, a, status, name)
		return
	}
	wantHeaders(t, a, "application/vnd.goa.error")
	var e errorAnswer
	a.decode(t, &e)
	if want := (errorAnswer{ID: e.ID, Message: e.Message, Name: name, Temporary: true}); a.status != status || e != want || e.ID == "" || e.Message == "" ||
		a.header.Get("Goa-Error") != name || a.header.Get("Retry-After") != "1" {
		t.Fatalf("answer %d %v %s, want %d %s", a.status, a.header, a.body, status, name)
	}
}

func TestGateway(t *testing.T) {
	needTool(t, "nginx", "REQUIRE_NGINX")
	needRedis(t)
	env := serviceEnv(t, testRedisAddr(t))
	s := startService(t, env)
	waitFor(t, 5*time.Second, "readiness", func() bool { status, _ := s.get("/readyz"); return status == 200 })
	g := startGateway(t, strings.TrimPrefix(s.url, "http://"))
	header := func(name, value string) http.Header {
		return http.Header{"Authorization": {"Bearer " + ecKey().sign(t, goodClaims())}, "Content-Type": {"application/json"}, name: {value}}
	}
	post := func(h http.Header, body string) answer {
		t.Helper()
		return g.do(t, testClient, "POST", "/auth/session", h, strings.NewReader(body))
	}

	t.Run("request id", func(t *testing.T) {
		for id, kept := range map[string]bool{"aZ09._-": true, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false, "a b": false, `a"b`: false, "": false} {
			a := post(header("X-Request-Id", id), goodBody)
			if a.status != 200 {
				t.Fatalf("POST /auth/session = %d %s, want 200", a.status, a.body)
			}
			wantHeaders(t, a, "application/json")
			got := a.header.Get("X-Request-Id")
			if (got == id) != kept {
				t.Errorf("X-Request-Id %q came back as %q", id, got)
			}
			waitForRequest(t, s.log, got)
			waitForRequest(t, g.log, got)
		}
	})
	t.Run("paths inside", func(t *testing.T) {
		for _, path := range []string{"/", "/readyz", "/livez", "/metrics", "/v1", "/v1/readyz", "/auth/session/", "/auth/sessions", "/v1/v1/auth/session",
			"/auth/session/../../readyz", "/auth/session/%2e%2e/%2e%2e/readyz", "//readyz", "/readyz?/auth/session", "/readyz#/auth/session",
			"/auth/../readyz", "/auth//session", "/openapi.yaml/x", "http://" + g.addr + "/readyz"} {
			for _, method := range []string{"GET", "POST"} {
				a := g.do(t, testClient, method, path, header("X-Request-Id", "inside"), nil)
				wantGatewayError(t, a, 404, "not_found")
				if a.header.Get("X-Request-Id") != "inside" {
					t.Errorf("%s %s: X-Request-Id = %q", method, path, a.header.Get("X-Request-Id"))
				}
			}
		}
		if strings.Contains(s.log.String(), `"request_id":"inside"`) {
			t.Error("the service heard of a path that is not public")
		}
	})
	t.Run("paths outside", func(t *testing.T) {
		for method, path := range map[string]string{"POST": "/v1/auth/session", "GET": "/openapi.yaml", "DELETE": "/auth/session", "PUT": "/readyz/../auth/session"} {
			g.do(t, testClient, method, path, header("X-Request-Id", "outside-"+method), strings.NewReader(goodBody))
			waitForRequest(t, s.log, "outside-"+method)
		}
	})
	t.Run("body and header sizes", func(t *testing.T) {
		fits := `{"end_user_id":"eu_1","x":"` + strings.Repeat("x", maxBody-29) + `"}`
		if a := post(header("X-Request-Id", "fits"), fits); len(fits) != maxBody || a.status != 200 {
			t.Errorf("POST of %d bytes = %d %s, want 200 for %d", len(fits), a.status, a.body, maxBody)
		}
		wantGatewayError(t, post(header("X-Request-Id", "over"), fits+" "), 413, "request_too_large")
		waitForRequest(t, s.log, "over")
		chunked := io.MultiReader(strings.NewReader(fits), strings.NewReader(" ")) // of no known length
		wantGatewayError(t, g.do(t, testClient, "POST", "/auth/session", header("X-Request-Id", "chunked"), chunked), 413, "request_too_large")
		waitForRequest(t, s.log, "chunked")
		wantGatewayError(t, post(header("X-Request-Id", "far-over"), strings.Repeat(fits, 4)), 413, "request_too_large")
		long := header("X-Request-Id", "long")
		long.Set("Authorization", "Bearer "+ecKey().sign(t, with(map[string]any{"x": strings.Repeat("x", 5945)})))
		if a := post(long, goodBody); len(long.Get("Authorization")) < 8180 || a.status != 200 {
			t.Errorf("POST with a token of %d bytes = %d %s, want 200", len(long.Get("Authorization")), a.status, a.body)
		}
		wantGatewayError(t, post(header("X-Long", strings.Repeat("x", 20<<10)), goodBody), 400, "bad_request")
	})
	t.Run("refusals", func(t *testing.T) {
		wantError(t, post(header("Authorization", "Bearer x"), goodBody), 401, "unauthorized")
		wantError(t, post(header("Content-Type", "text/plain"), goodBody), 415, "unsupported_media_type")
	})
	t.Run("TLS", func(t *testing.T) {
		roots := x509.NewCertPool()
		certificate, err := os.ReadFile(filepath.Join(g.cmd.Args[2], "tls.crt"))
		must(t, err)
		roots.AppendCertsFromPEM(certificate)
		for _, version := range []uint16{tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: version, MaxVersion: version}}}
			r, err := http.NewRequest("POST", "https://"+g.tls+"/auth/session", strings.NewReader(goodBody))
			must(t, err)
			r.Header = header("X-Request-Id", "tls")
			response, err := client.Do(r)
			if version == tls.VersionTLS11 {
				if err == nil || !strings.Contains(err.Error(), "protocol version") {
					t.Errorf("a request over TLS 1.1: %v, want its version refused", err)
				}
				continue
			}
			must(t, err)
			_ = response.Body.Close()
			if response.StatusCode != 200 {
				t.Errorf("POST over %s = %d, want 200", tls.VersionName(version), response.StatusCode)
			}
			client.CloseIdleConnections()
		}
	})
	t.Run("rate", func(t *testing.T) {
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		greedy := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
		defer greedy.CloseIdleConnections()
		var passed int
		var a answer
		waitFor(t, 20*time.Second, "the rate limit", func() bool {
			a = g.do(t, greedy, "POST", "/auth/session", http.Header{}, strings.NewReader(goodBody))
			passed++
			return a.status != http.StatusUnauthorized
		})
		wantGatewayError(t, a, 429, "too_many_requests")
		if passed < 40 {
			t.Errorf("%d requests pass at once, want a burst of 40", passed)
		}
		if a := post(header("X-Request-Id", "another"), goodBody); a.status != 200 {
			t.Errorf("POST of another client = %d %s, want 200", a.status, a.body)
		}
	})
	t.Run("log", func(t *testing.T) {
		h := header("X-Request-Id", "last")
		g.do(t, testClient, "POST", "/auth/session?password=hush", h, strings.NewReader(goodBody))
		waitForRequest(t, g.log, "last")
		for name, secret := range map[string]string{"query": "hush", "token": strings.TrimPrefix(h.Get("Authorization"), "Bearer "), "body": "eu_1"} {
			if strings.Contains(g.log.String(), secret) {
				t.Errorf("the gateway's log holds the %s", name)
			}
		}
		for text := range strings.SplitSeq(strings.TrimSpace(g.log.String()), "\n") {
			if !json.Valid([]byte(text)) {
				t.Errorf("log line %q is no JSON", text)
			}
		}
	})
	t.Run("no service", func(t *testing.T) {
		s.signal(t, syscall.SIGKILL)
		s.wait(t, 5*time.Second)
		wantGatewayError(t, post(header("X-Request-Id", "nobody"), goodBody), 503, "unavailable")
	})
}

// A service that neither answers nor closes costs its caller 504, and no other replica
// gets what it may have done.
func TestGatewaySilentService(t *testing.T) {
	var connections atomic.Int64
	silent := func() string {
		return listen(t, func(c net.Conn) {
			connections.Add(1)
			_, _ = io.Copy(io.Discard, c)
		})
	}
	g := startGateway(t, silent()+"; server "+silent())
	wantGatewayError(t, g.do(t, testClient, "POST", "/auth/session", http.Header{}, strings.NewReader(goodBody)), 504, "timeout")
	if n := connections.Load(); n != 1 {
		t.Errorf("%d replicas were asked, want 1", n)
	}
}

func TestMetricNamesInDeploy(t *testing.T) {
	names := metricNames(t)
	for _, file := range []string{"alerts.yaml", "alerts_test.yaml", "dashboard.json"} {
		text, err := os.ReadFile(filepath.Join("deploy", file))
		must(t, err)
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

func TestAlerts(t *testing.T) {
	needTool(t, "promtool", "REQUIRE_PROMTOOL")
	for _, args := range [][]string{{"check", "rules", "deploy/alerts.yaml"}, {"test", "rules", "deploy/alerts_test.yaml"}} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v: %s", args, err, out)
		}
	}
	rules, err := os.ReadFile("deploy/alerts.yaml")
	must(t, err)
	if alerts, whys := bytes.Count(rules, []byte("- alert: ")), bytes.Count(rules, []byte("          why: ")); alerts == 0 || whys != alerts {
		t.Errorf("%d alerts say why, of %d", whys, alerts)
	}
}

// The dashboard's panels have places and expressions that Grafana and Prometheus take.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("deploy/dashboard.json")
	must(t, err)
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
	must(t, json.Unmarshal(text, &dashboard))
	if dashboard.UID == "" || dashboard.Title == "" || dashboard.SchemaVersion < 39 || len(dashboard.Panels) == 0 {
		t.Fatalf("dashboard %q %q of schema %d with %d panels", dashboard.UID, dashboard.Title, dashboard.SchemaVersion, len(dashboard.Panels))
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
			rules = append(rules, rule{fmt.Sprintf("panel:%d_%s", p.ID, target.RefID), strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")})
		}
	}
	needTool(t, "promtool", "REQUIRE_PROMTOOL")
	type group struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	}
	file := filepath.Join(t.TempDir(), "rules.yaml") // JSON is YAML
	must(t, os.WriteFile(file, encodeJSON(map[string][]group{"groups": {{"dashboard", rules}}}), 0o600))
	if out, err := exec.Command("promtool", "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v: %s", err, out)
	}
}
