package main

import (
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"authsession/internal/linelog"
	"authsession/internal/redistest"
	"authsession/internal/testkit"
)

// scrape is what /metrics says now.
func (ts *testServer) scrape(t testing.TB) string {
	t.Helper()
	w := httptest.NewRecorder()
	registry := ts.metrics.registry(&ts.api, ts.callers, linelog.New(io.Discard))
	metricsRoutes(registry).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("GET /metrics = %d", w.Code)
	}
	return w.Body.String()
}

// wantSkew checks what the metrics say of Redis's clock, in seconds.
func wantSkew(t testing.TB, text string, want float64) {
	t.Helper()
	match := regexp.MustCompile(`(?m)^authsession_redis_clock_skew_seconds (\S+)$`).FindStringSubmatch(text)
	if match == nil {
		t.Fatal("/metrics has no authsession_redis_clock_skew_seconds")
	}
	if skew, err := strconv.ParseFloat(match[1], 64); err != nil || math.Abs(skew-want) > 0.1 {
		t.Errorf("authsession_redis_clock_skew_seconds = %s, want %g within 0.1", match[1], want)
	}
}

func TestMetrics(t *testing.T) {
	ts := newTestServer(t, nil)
	token := ts.token(t)
	for range 3 {
		ts.wantSession(t, ts.post(t, token, goodBody))
	}
	ts.post(t, token, `{}`).WantError(t, 400, "bad_request")
	ts.post(t, "a.b.SECRET", goodBody).WantError(t, 401, "unauthorized")
	ts.exchange(t, message("GET /livez HTTP/1.1")) // without Host
	ts.do(t, "SECRETMETHOD", "/SECRET-path", nil, nil).WantError(t, 404, "not_found")
	testkit.Must(t, ts.store.check())
	testkit.Must(t, ts.verifier.WaitReady(t.Context()))
	// A request is counted after its answer.
	const last = `authsession_http_requests_total{code="404",error="not_found",route="none"} 1`
	testkit.WaitFor(t, 5*time.Second, last, func() bool { return strings.Contains(ts.scrape(t), last+"\n") })
	text := ts.scrape(t)
	for _, want := range []string{
		`authsession_http_requests_total{code="200",error="",route="/auth/session"} 3`,
		`authsession_http_requests_total{code="400",error="bad_request",route="/auth/session"} 1`,
		`authsession_http_requests_total{code="401",error="unauthorized",route="/auth/session"} 1`,
		`authsession_http_request_duration_seconds_count{route="/auth/session"} 5`,
		`authsession_http_refusals_total{code="400"} 1`,
		`authsession_http_refusals_total{code="431"} 0`,
		`authsession_log_lines_dropped_total 0`,
		`authsession_http_requests_in_flight 0`,
		`authsession_http_requests_in_flight_limit 2048`,
		`authsession_sessions_created_total 3`,
		`authsession_redis_write_duration_seconds_count 3`,
		`authsession_redis_batch_size_count 3`,
		`authsession_redis_batch_size_sum 3`,
		`authsession_redis_writes_waiting 0`,
		`authsession_redis_primaries_failing 0`,
		`authsession_key_set_last_refresh_success 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("/metrics has no line %s", want)
		}
	}
	wantSkew(t, text, 0)
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

// needTool skips a test whose tool is not on the PATH. Where the variable is 1, as in CI, it fails it.
func needTool(t *testing.T, tool, variable string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil && os.Getenv(variable) == "1" {
		t.Fatalf("%s=1: %v", variable, err)
	} else if err != nil {
		t.Skipf("no %s on the PATH", tool)
	}
}

// A key set that fails, and a clock that is off, can be seen.
func TestMetricsOfTrouble(t *testing.T) {
	behind := redistest.StartProxy(t, redistest.Addr(t), redistest.ClockAhead(-30*time.Second))
	ts := newTestServer(t, map[string]string{
		"JWKS_URL": "file:///does/not/exist", "REDIS_URL": "redis://" + behind.Addr})
	testkit.WaitFor(t, 5*time.Second, "the fetch to fail", func() bool { return ts.log.Has("fetching key set failed") })
	if err := ts.store.check(); err == nil {
		t.Error("check = nil with a clock 30 s behind")
	}
	ts.post(t, "a.b.c", goodBody).WantError(t, 401, "unauthorized")
	text := ts.scrape(t)
	wantSkew(t, text, -30)
	for _, line := range []string{
		`authsession_key_set_last_success_timestamp_seconds 0`,
		`authsession_key_set_last_refresh_success 0`,
		`authsession_redis_primaries_failing 1`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("/metrics has no line %s", line)
		}
	}
}
