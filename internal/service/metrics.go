package service

import (
	"net/http"
	"strconv"
	"time"

	"outboxsaga/inbox"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what /metrics shows, in a registry of its own.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	events   *prometheus.CounterVec
	batches  prometheus.Histogram
	faults   prometheus.Counter
	retries  prometheus.Counter
	lost     prometheus.Counter
	dropped  *prometheus.CounterVec
	kept     *prometheus.GaugeVec
	windows  windows
}

func newMetrics(pool *Pool, pressure *Backpressure) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_request_duration_seconds", Help: "Time to answer a request, by route.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route", "method", "code"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "inbox_events_total", Help: "Records consumed, by result: fresh (had an effect), repeated (skipped), dead (put aside).",
		}, []string{"result"}),
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "inbox_transaction_duration_seconds", Help: "Time of a consumer's transaction.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		faults:  prometheus.NewCounter(prometheus.CounterOpts{Name: "inbox_faults_total", Help: "Transactions that failed because the database could not work."}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{Name: "inbox_retries_total", Help: "Attempts at an event that failed and are repeated."}),
		lost:    prometheus.NewCounter(prometheus.CounterOpts{Name: "inbox_records_lost_total", Help: "Records that Kafka removed before they were handled."}),
	}
	m.dropped = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "partitions_dropped_total", Help: "Partitions dropped by this instance after their retention."}, []string{"table"})
	m.kept = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "partitions_kept", Help: "1 if a partition is kept past its retention, by reason."}, []string{"table", "reason"})
	m.registry.MustRegister(m.dropped, m.kept, &m.windows, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests, m.events, m.batches, m.faults, m.retries, m.lost)
	for _, result := range []string{"fresh", "repeated", "dead"} {
		m.events.WithLabelValues(result) // shown from the start, as 0
	}
	for name, gauge := range map[string]struct {
		help string
		read func(*pgxpool.Stat) int32
	}{
		"db_pool_connections":     {"Connections to the database.", (*pgxpool.Stat).TotalConns},
		"db_pool_in_use":          {"Connections that are in use.", (*pgxpool.Stat).AcquiredConns},
		"db_pool_max_connections": {"The most connections that the pool opens.", (*pgxpool.Stat).MaxConns},
	} {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: gauge.help},
			func() float64 { return float64(gauge.read(pool.Stat())) }))
	}
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "db_pool_wait_seconds_total", Help: "Time spent waiting for a connection of the pool.",
	}, func() float64 { return pool.waits().Seconds() }), prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "backpressure_wait_seconds_total", Help: "Time for which writers of new work were held back because the consumer had a backlog.",
	}, func() float64 { return pressure.waits().Seconds() }))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) hooks() inbox.Hooks {
	return inbox.Hooks{
		Committed: func(fresh, repeated, dead int, took time.Duration) {
			m.events.WithLabelValues("fresh").Add(float64(fresh))
			m.events.WithLabelValues("repeated").Add(float64(repeated))
			m.events.WithLabelValues("dead").Add(float64(dead))
			m.batches.Observe(took.Seconds())
		},
		Fault: func(error) { m.faults.Inc() },
		Retry: func(inbox.Event, int, error) { m.retries.Inc() },
		Lost:  func(_ string, _ int32, records int64) { m.lost.Add(float64(records)) },
	}
}

// observe measures requests by the template of their route, so that ids do not
// become labels.
func (m *metrics) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route, method := "none", "other"
		if current := mux.CurrentRoute(r); current != nil {
			if template, err := current.GetPathTemplate(); err == nil {
				route, method = template, r.Method
			}
		}
		start, seen := time.Now(), &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			m.requests.WithLabelValues(route, method, strconv.Itoa(seen.status)).Observe(time.Since(start).Seconds())
		}()
		next.ServeHTTP(seen, r)
	})
}

// statusWriter remembers the status for [metrics.observe].
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers the status.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap serves [http.ResponseController].
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
