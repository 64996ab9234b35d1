package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// scrape is what /metrics says now.
func (ts *testServer) scrape(t testing.TB) string {
	t.Helper()
	w := httptest.NewRecorder()
	ts.metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("GET /metrics = %d", w.Code)
	}
	return w.Body.String()
}

// metricNames are the families that /metrics serves.
func metricNames(t testing.TB) []string {
	t.Helper()
	ts := newTestServer(t, nil)
	ts.wantSession(t, ts.post(t, ts.token(t), goodBody))
	var names []string
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(ts.scrape(t), -1) {
		names = append(names, match[1])
	}
	return names
}

func TestMetrics(t *testing.T) {
	ts := newTestServer(t, nil)
	token := ts.token(t)
	for range 3 {
		ts.wantSession(t, ts.post(t, token, goodBody))
	}
	wantError(t, ts.post(t, token, `{}`), 400, "bad_request")
	wantError(t, ts.post(t, "a.b.SECRET", goodBody), 401, "unauthorized")
	wantError(t, ts.do(t, "SECRETMETHOD", "/SECRET-path", nil, nil), 404, "not_found")
	must(t, ts.store.check())
	waitFor(t, 5*time.Second, "the end of the first fetch", func() bool { return ts.verifier.keys.fetched.Load() > 0 })
	text := ts.scrape(t)
	for _, want := range []string{
		`authsession_http_requests_total{code="200",error="",route="/auth/session"} 3`,
		`authsession_http_requests_total{code="400",error="bad_request",route="/auth/session"} 1`,
		`authsession_http_requests_total{code="401",error="unauthorized",route="/auth/session"} 1`,
		`authsession_http_requests_total{code="404",error="not_found",route="none"} 1`,
		`authsession_http_request_duration_seconds_count{route="/auth/session"} 5`,
		`authsession_http_requests_in_flight 0`,
		`authsession_http_requests_in_flight_limit 2048`,
		`authsession_sessions_created_total 3`,
		`authsession_redis_write_duration_seconds_count 3`,
		`authsession_redis_batch_size_count 3`,
		`authsession_redis_batch_size_sum 3`,
		`authsession_redis_writes_waiting 0`,
		`authsession_redis_clock_skew_seconds 0`,
		`authsession_tokens_total{result="verified"} 1`,
		`authsession_tokens_total{result="remembered"} 3`,
		`authsession_tokens_total{result="refused"} 1`,
		`authsession_key_set_last_refresh_success 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("/metrics has no line %s", want)
		}
	}
	for _, pattern := range []string{
		`\nauthsession_build_info\{goversion="go[^"]+",revision="[^"]*",version="[^"]*"\} 1\n`,
		`\nauthsession_key_set_last_success_timestamp_seconds 1\.[0-9]+e\+09\n`,
		`\ngo_goroutines [1-9]`,
		`\nprocess_resident_memory_bytes [1-9]`,
	} {
		if !regexp.MustCompile(pattern).MatchString(text) {
			t.Errorf("/metrics has no %s", pattern)
		}
	}
	if strings.Contains(text, "SECRET") || strings.Contains(text, "acme") {
		t.Error("/metrics has something of a caller's")
	}
	t.Run("promtool", func(t *testing.T) {
		needTool(t, "promtool", "REQUIRE_PROMTOOL")
		c := exec.Command("promtool", "check", "metrics")
		c.Stdin = strings.NewReader(text)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("promtool check metrics: %v: %s", err, out)
		}
	})
}

// A key set that fails, and a clock that is off, can be seen.
func TestMetricsOfTrouble(t *testing.T) {
	ts := newTestServer(t, map[string]string{"JWKS_URL": "file:///does/not/exist", "REDIS_URL": "redis://" + startProxy(t, testRedisAddr(t), clockAhead(-30*time.Second)).addr})
	waitFor(t, 5*time.Second, "the fetch to fail", func() bool { return strings.Contains(ts.log.String(), "fetching key set failed") })
	if err := ts.store.check(); err == nil {
		t.Error("check = nil with a clock 30 s behind")
	}
	wantError(t, ts.post(t, "a.b.c", goodBody), 401, "unauthorized")
	text := ts.scrape(t)
	for _, pattern := range []string{
		`\nauthsession_key_set_last_success_timestamp_seconds 0\n`,
		`\nauthsession_key_set_last_refresh_success 0\n`,
		`\nauthsession_redis_clock_skew_seconds -(29|30)`,
	} {
		if !regexp.MustCompile(pattern).MatchString(text) {
			t.Errorf("/metrics has no %s", pattern)
		}
	}
}

// METRICS_ADDR is a listener of its own: what is on one address is not on the other.
func TestMetricsAddr(t *testing.T) {
	env := serviceEnv(t, testRedisAddr(t))
	env["METRICS_ADDR"] = "127.0.0.1:0"
	s := startService(t, env)
	addr := regexp.MustCompile(`"msg":"serving metrics","addr":"([^"]+)"`).FindStringSubmatch(s.log.String())
	if addr == nil {
		t.Fatalf("the log does not say where metrics are: %s", s.log.String())
	}
	for url, want := range map[string]int{s.url + "/metrics": 404, "http://" + addr[1] + "/metrics": 200, "http://" + addr[1] + "/readyz": 404, "http://" + addr[1] + "/auth/session": 404} {
		response, err := testClient.Get(url)
		must(t, err)
		text, err := io.ReadAll(response.Body)
		must(t, err)
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("GET %s = %d %.80s, want %d", url, response.StatusCode, text, want)
		}
	}
}
