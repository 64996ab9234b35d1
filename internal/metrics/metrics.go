// Package metrics names the service's Prometheus metrics. No label holds a value that a caller chose.
package metrics

import (
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics counts requests and times the writes to Redis. It is safe for concurrent use.
type Metrics struct {
	Registry   *prometheus.Registry
	RedisWrite prometheus.Histogram // seconds of each session's write, waiting included

	requests *prometheus.CounterVec   // by route, code, error
	duration *prometheus.HistogramVec // by route, in seconds
	clients  *prometheus.CounterVec   // by client, outcome
}

// New returns metrics in a registry of their own, with those of Go and the process. version is the program's.
func New(version string) *Metrics {
	// Upper bounds in seconds, from a lone write to the slowest caller.
	buckets := []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		RedisWrite: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "authsession_redis_write_duration_seconds",
			Help:    "Time of one session's write to Redis, waiting included.",
			Buckets: buckets,
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authsession_http_requests_total",
			Help: "Requests answered, by route, status code and error name.",
		}, []string{"route", "code", "error"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "authsession_http_request_duration_seconds",
			Help:    "Time from a request's header to its answer.",
			Buckets: buckets,
		}, []string{"route"}),
		clients: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authsession_client_requests_total",
			Help: "Requests with a good token, with CLIENTS_FILE: by client (other: not listed) and outcome: " +
				"created, refused (4xx), limited (429) or failed (5xx).",
		}, []string{"client", "outcome"}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "authsession_build_info", Help: "1, with the build.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()}}, func() float64 { return 1 })
	m.Registry.MustRegister(m.requests, m.duration, m.clients, m.RedisWrite, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Func registers a value that is read when Prometheus asks: a counter where the name ends in _total, else a gauge.
func (m *Metrics) Func(name, help string, value func() float64) {
	opts := prometheus.Opts{Name: "authsession_" + name, Help: help}
	if strings.HasSuffix(name, "_total") {
		m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts(opts), value))
	} else {
		m.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts), value))
	}
}

// Route counts the requests of one route.
type Route struct {
	ok       prometheus.Counter // found once, because finding a counter by its labels takes 0.8 µs
	duration prometheus.Observer
	requests *prometheus.CounterVec // by code, error
}

// Route returns the counters of a route; "none" stands for requests that match no route.
func (m *Metrics) Route(route string) *Route {
	requests := m.requests.MustCurryWith(prometheus.Labels{"route": route})
	return &Route{requests.WithLabelValues("200", ""), m.duration.WithLabelValues(route), requests}
}

// Observe counts an answer with its error's name, "" for none.
func (r *Route) Observe(status int, errorName string, took time.Duration) {
	if status == 200 {
		r.ok.Inc()
	} else {
		r.requests.WithLabelValues(strconv.Itoa(status), errorName).Inc()
	}
	r.duration.Observe(took.Seconds())
}

// CountClient counts an answer to a client; name is its name in CLIENTS_FILE, or "other".
func (m *Metrics) CountClient(name string, status int) {
	outcome := "refused"
	switch {
	case status == 200:
		outcome = "created"
	case status == 429:
		outcome = "limited"
	case status >= 500:
		outcome = "failed"
	}
	m.clients.WithLabelValues(name, outcome).Inc()
}
