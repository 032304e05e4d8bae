package supervisor

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics is what was seen and done, in a registry of its own.
type metrics struct {
	registry                                                            *prometheus.Registry
	lead                                                                prometheus.Gauge
	acts                                                                *prometheus.CounterVec
	running, active, lag, retained, safe, silence, beat, unseen, oldest *prometheus.GaugeVec
	group, confirmed, since                                             *prometheus.GaugeVec
	unknown                                                             prometheus.Gauge
	seen                                                                []*prometheus.GaugeVec // all of them: what only the supervisor that acts shows
	beats                                                               map[string]time.Time   // the newest heartbeats
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), beats: map[string]time.Time{}}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(g)
		m.seen = append(m.seen, g)
		return g
	}
	m.running = gauge("cdc_connector_running", "1 if Kafka Connect says RUNNING of connector and task.", "connector")
	m.active = gauge("cdc_slot_active", "1 if the replication slot is read.", "connector")
	m.lag = gauge("cdc_slot_lag_bytes", "Log that the connector has not confirmed.", "connector")
	m.retained = gauge("cdc_slot_retained_bytes", "Log that PostgreSQL keeps for the slot.", "connector")
	m.safe = gauge("cdc_slot_safe_bytes", "Log that may be written until the slot is lost.", "connector")
	m.silence = gauge("cdc_slot_silence_seconds", "Time since the slot's reader has said something.", "connector")
	m.beat = gauge("cdc_heartbeat_age_seconds", "Age of the connector's newest heartbeat in Kafka; where that has none any more, for how long at least it has sent none.", "connector")
	m.unseen = gauge("outbox_unseen_events", "Events older than 3 s that are not in their consumer's inbox.", "connector")
	m.oldest = gauge("outbox_oldest_unseen_seconds", "Age of the oldest event that is not in its consumer's inbox; 0: none.", "connector")
	m.confirmed = gauge("cdc_confirmed_transaction", "The outbox rows of all transactions before this one are in Kafka or in an inbox, but for those before cdc_confirmed_since_transaction: a new slot leaves them out. Absent: not known, all would be sent.", "connector")
	m.since = gauge("cdc_confirmed_since_transaction", "The oldest transaction of which that is known on a topic; 3: of all. Absent: of none yet.", "connector", "topic")
	m.group = gauge("inbox_consumer_lag_records", "Records that a consumer group has not committed.", "group", "topic")
	m.lead = prometheus.NewGauge(prometheus.GaugeOpts{Name: "supervisor_leads", Help: "1 if this supervisor is the one that acts."})
	m.unknown = prometheus.NewGauge(prometheus.GaugeOpts{Name: "supervisor_unknown", Help: "What could not be asked in the last look."})
	m.acts = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "supervisor_acts_total", Help: "Acts, by outcome: done, would (dry run), failed."},
		[]string{"connector", "act", "outcome"})
	m.registry.MustRegister(m.lead, m.unknown, m.acts, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) leads(is bool) {
	m.lead.Set(number(is))
	if is {
		return
	}
	for _, g := range m.seen { // another one shows what is so from now on
		g.Reset()
	}
	m.beats = map[string]time.Time{}
	m.unknown.Set(0)
}

// set shows a value, or that it is not known.
func set(g *prometheus.GaugeVec, known bool, value float64, labels ...string) {
	if known {
		g.WithLabelValues(labels...).Set(value)
	} else {
		g.DeleteLabelValues(labels...)
	}
}

func (m *metrics) acted(connector string, kind Kind, outcome string) {
	if outcome != "done" && outcome != "would" {
		outcome = "failed"
	}
	m.acts.WithLabelValues(connector, string(kind), outcome).Inc()
}

func (m *metrics) show(f Facts, confirmations map[string]*confirmation) {
	m.unknown.Set(float64(len(f.Unknown)))
	for name, flow := range f.Pipelines {
		m.running.WithLabelValues(name).Set(number(flow.Connector != nil && flow.Connector.State == "RUNNING"))
		s, answers := deref(flow.Slot), flow.Slot != nil // its PostgreSQL
		set(m.active, answers, number(s.Active), name)
		set(m.lag, answers, float64(s.LagBytes), name)
		set(m.retained, answers, float64(s.Retained), name)
		set(m.safe, s.Safe != nil, float64(deref(s.Safe)), name)
		set(m.silence, s.Silence != nil, deref(s.Silence).Seconds(), name)
		set(m.unseen, answers, float64(len(flow.Unseen)), name)
		set(m.oldest, answers, flow.Oldest(f.At).Seconds(), name)
		if !flow.Heartbeat.IsZero() {
			m.beats[name] = flow.Heartbeat
		}
		// It grows older also while Kafka does not answer.
		if flow.Heartbeat.IsZero() {
			flow.Heartbeat = m.beats[name]
		}
		age, known := flow.SinceHeartbeat(f.At)
		set(m.beat, known, age.Seconds(), name)
	}
	for name, c := range confirmations {
		set(m.confirmed, c.before != 0, float64(c.before), name)
		for topic, known := range c.topics {
			set(m.since, known.xid != later, float64(known.xid), name, topic)
		}
	}
	for name, g := range f.Groups {
		for topic, lag := range g.Lag {
			m.group.WithLabelValues(name, topic).Set(float64(lag))
		}
	}
}

// Oldest is the age of the oldest unseen event; 0 if there is none.
func (p Pipeflow) Oldest(now time.Time) time.Duration {
	if len(p.Unseen) == 0 {
		return 0
	}
	return now.Sub(p.Unseen[0].At())
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func number(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
