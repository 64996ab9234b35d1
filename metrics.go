package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// What METRICS_ADDR serves: Prometheus's text at /metrics. Who does a thing counts it in a
// field of its own; here the fields get their names. No label has a value of a caller's.

// seconds are the upper bounds of buckets, from a lone write's time to what STORE_TIMEOUT
// and a slow caller may come to.
var seconds = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}

// requestMetrics counts what was answered.
type requestMetrics struct {
	answered *prometheus.CounterVec   // by route, code, error
	took     *prometheus.HistogramVec // by route
}

func newRequestMetrics() requestMetrics {
	return requestMetrics{
		answered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authsession_http_requests_total", Help: "Requests answered, by route, status code and error name.",
		}, []string{"route", "code", "error"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "authsession_http_request_duration_seconds", Help: "Time from a request's header to its answer.", Buckets: seconds,
		}, []string{"route"}),
	}
}

// count takes note of an answer; name is "" where it is no error.
func (m requestMetrics) count(route string, status int, name string, took time.Duration) {
	if route == "" {
		route = "none"
	}
	m.answered.WithLabelValues(route, strconv.Itoa(status), name).Inc()
	m.took.WithLabelValues(route).Observe(took.Seconds())
}

// metrics is the handler of METRICS_ADDR.
func (s *server) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.requests.answered, s.requests.took, s.store.took, s.store.batchSizes,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "authsession_" + name, Help: help}, value))
	}
	counter := func(name, help string, labels prometheus.Labels, value func() uint64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "authsession_" + name, Help: help, ConstLabels: labels}, func() float64 { return float64(value()) }))
	}
	gauge("http_requests_in_flight", "Requests for a session in work.", func() float64 { return float64(s.inFlight.Load()) })
	gauge("http_requests_in_flight_limit", "MAX_IN_FLIGHT.", func() float64 { return float64(s.maxInFlight) })
	counter("sessions_created_total", "Sessions that callers were promised.", nil, s.created.Load)
	gauge("redis_writes_waiting", "Records that wait for their batch.", func() float64 { return float64(s.store.queued()) })
	gauge("redis_clock_skew_seconds", "Redis's clock minus ours at the last check, the network's part left out.", func() float64 { return time.Duration(s.store.skew.Load()).Seconds() })
	const tokens = "Bearer tokens checked: remembered and verified are good, refused are not."
	counter("tokens_total", tokens, prometheus.Labels{"result": "remembered"}, s.verifier.remembered.Load)
	counter("tokens_total", tokens, prometheus.Labels{"result": "verified"}, s.verifier.anew.Load)
	counter("tokens_total", tokens, prometheus.Labels{"result": "refused"}, s.verifier.refused.Load)
	gauge("key_set_last_success_timestamp_seconds", "When the key set was last fetched well, in Unix time; 0: never.", func() float64 { return float64(s.verifier.keys.fetched.Load()) })
	gauge("key_set_last_refresh_success", "Whether the last fetch of the key set went well.", func() float64 {
		if s.verifier.keys.fresh.Load() {
			return 1
		}
		return 0
	})
	registry.MustRegister(buildInfo())
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return mux
}

func buildInfo() prometheus.Collector {
	version, revision, goVersion := build()
	labels := prometheus.Labels{"version": version, "revision": revision, "goversion": goVersion}
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "authsession_build_info", Help: "1, and what was built as labels.", ConstLabels: labels}, func() float64 { return 1 })
}
