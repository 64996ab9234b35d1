package main

import (
	"cmp"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"authsession/internal/clients"
	"authsession/internal/linelog"
	"authsession/internal/listener"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are what Prometheus reads of the service. Those of requests and of Redis's times are kept here; the others
// are read, when Prometheus asks, from whoever counts them. No label has a value of a caller's.
type metrics struct {
	answered   *prometheus.CounterVec   // by route, code, error
	took       *prometheus.HistogramVec // by route
	byClient   *prometheus.CounterVec   // by client, outcome
	created    *sync.Map                // of clients' names to their counter of sessions
	redisWrite prometheus.Histogram
	batchSize  prometheus.Histogram
}

func newMetrics() metrics {
	// Upper bounds, from a lone write's time to what STORE_TIMEOUT and a slow caller may come to.
	seconds := []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}
	return metrics{
		answered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authsession_http_requests_total",
			Help: "Requests answered, by route, status code and error name.",
		}, []string{"route", "code", "error"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "authsession_http_request_duration_seconds",
			Help:    "Time from a request's header to its answer.",
			Buckets: seconds,
		}, []string{"route"}),
		byClient: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authsession_client_requests_total",
			Help: "Requests with a good token, with CLIENTS_FILE: by client (other: not listed) and outcome: " +
				"created, refused (4xx), limited (429) or failed (5xx).",
		}, []string{"client", "outcome"}),
		created: new(sync.Map),
		redisWrite: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "authsession_redis_write_duration_seconds",
			Help:    "Time of one session's write, waiting included.",
			Buckets: seconds,
		}),
		batchSize: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "authsession_redis_batch_size",
			Help:    "Records that went to Redis together.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128},
		}),
	}
}

// routeMetrics counts the answers of one route. What most requests need is looked up once: labels cost 0.8 µs each
// time.
type routeMetrics struct {
	ok       prometheus.Counter
	took     prometheus.Observer
	answered *prometheus.CounterVec // by code, error
}

// of returns the metrics of a route; "" stands for requests that match none.
func (m metrics) of(route string) routeMetrics {
	if route == "" {
		route = "none"
	}
	answered := m.answered.MustCurryWith(prometheus.Labels{"route": route})
	return routeMetrics{answered.WithLabelValues("200", ""), m.took.WithLabelValues(route), answered}
}

// count takes note of an answer. name is the error's, "" for none.
func (m routeMetrics) count(status int, name string, took time.Duration) {
	if name == "" && status == 200 {
		m.ok.Inc()
	} else {
		m.answered.WithLabelValues(strconv.Itoa(status), name).Inc()
	}
	m.took.Observe(took.Seconds())
}

// countClient takes note of an answer to a client of CLIENTS_FILE, nil for one that is not listed.
func (m metrics) countClient(c *clients.Client, status int) {
	name, outcome := "other", "refused"
	if c != nil && c.Name != "*" {
		name = c.Name
	}
	switch {
	case status == 200:
		counter, found := m.created.Load(name) // since labels cost time
		if !found {
			counter, _ = m.created.LoadOrStore(name, m.byClient.WithLabelValues(name, "created"))
		}
		counter.(prometheus.Counter).Inc()
		return
	case status == 429:
		outcome = "limited"
	case status >= 500:
		outcome = "failed"
	}
	m.byClient.WithLabelValues(name, outcome).Inc()
}

// registry has every metric there is.
func (m metrics) registry(a *api, connections *listener.Listener, lines *linelog.Writer) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.answered, m.took, m.byClient, m.redisWrite, m.batchSize,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		opts := prometheus.GaugeOpts{Name: "authsession_" + name, Help: help, ConstLabels: labels}
		registry.MustRegister(prometheus.NewGaugeFunc(opts, value))
	}
	counter := func(name, help string, labels prometheus.Labels, value func() uint64) {
		opts := prometheus.CounterOpts{Name: "authsession_" + name, Help: help, ConstLabels: labels}
		registry.MustRegister(prometheus.NewCounterFunc(opts, func() float64 { return float64(value()) }))
	}
	gauge("http_requests_in_flight", "Requests for a session in work, their bodies read.", nil,
		func() float64 { return float64(a.inFlight.InUse()) })
	gauge("http_requests_in_flight_limit", "MAX_IN_FLIGHT.", nil, func() float64 { return float64(a.inFlight.Max()) })
	for _, status := range listener.Statuses {
		counter("http_refusals_total", "Requests that net/http refused before a route was found, by status code.",
			prometheus.Labels{"code": strconv.Itoa(status)}, func() uint64 { return connections.Refused(status) })
	}
	counter("log_lines_dropped_total", "Log lines that their reader did not take.", nil, lines.Dropped)
	counter("sessions_created_total", "Sessions that callers were promised.", nil, a.created.Load)
	gauge("redis_writes_waiting", "Records that wait for their batch.", nil,
		func() float64 { return float64(a.store.writer.Waiting()) })
	gauge("redis_clock_skew_seconds", "Redis's clock minus ours at the last check, the network's part left out.", nil,
		func() float64 { return a.store.clockSkew().Seconds() })
	gauge("redis_primaries_failing", "Primaries of Redis that took no session at the last check.", nil,
		func() float64 { return float64(len(a.store.primariesFailing())) })
	gauge("key_set_last_success_timestamp_seconds",
		"When the key set was last fetched well, in Unix time; 0: never.", nil,
		func() float64 { last, _ := a.verifier.KeySetStatus(); return float64(last) })
	gauge("key_set_last_refresh_success", "Whether the last fetch of the key set went well.", nil,
		func() float64 { _, fresh := a.verifier.KeySetStatus(); return truth(fresh) })
	if a.clients != nil {
		gauge("clients_file_last_success_timestamp_seconds", "When CLIENTS_FILE was last read well, in Unix time.", nil,
			func() float64 { last, _ := a.clients.Status(); return float64(last) })
		gauge("clients_file_last_load_success", "Whether the last reading of CLIENTS_FILE went well.", nil,
			func() float64 { _, fresh := a.clients.Status(); return truth(fresh) })
	}
	version, revision, goVersion := build()
	gauge("build_info", "1, and what was built as labels.",
		prometheus.Labels{"version": version, "revision": revision, "goversion": goVersion},
		func() float64 { return 1 })
	return registry
}

// truth is a gauge's value for what is so, or is not.
func truth(so bool) float64 {
	if so {
		return 1
	}
	return 0
}

// build is what this program was built from and with; "" is not known.
func build() (builtVersion, builtRevision, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, revision, ""
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			builtRevision = setting.Value
		}
	}
	return cmp.Or(version, info.Main.Version), cmp.Or(revision, builtRevision), info.GoVersion
}

// version and revision are what the linker was told (Dockerfile), or "".
var version, revision string
