package supervisor

import (
	"maps"
	"testing"
	"time"
)

// What is not known is not shown as it was, and who does not act shows nothing.
func TestMetricsShowOnlyWhatIsKnown(t *testing.T) {
	m, at := newMetrics(), time.Now()
	expect := func(when string, want map[string]float64) {
		t.Helper()
		families, err := m.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			switch name := f.GetName(); name {
			case "cdc_connector_running", "cdc_slot_lag_bytes", "cdc_heartbeat_age_seconds", "outbox_unseen_events", "supervisor_unknown":
				got[name] = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	show := func(at time.Time, flow Pipeflow, unknown ...string) {
		m.show(Facts{At: at, Pipelines: map[string]Pipeflow{"x": flow}, Unknown: unknown}, nil)
	}
	running := &Connector{State: "RUNNING"}
	m.leads(true)
	show(at, Pipeflow{Connector: running, Slot: &Slot{Active: true, LagBytes: 7}, Heartbeat: at.Add(-time.Second)})
	expect("all answer", map[string]float64{"cdc_connector_running": 1, "cdc_slot_lag_bytes": 7, "cdc_heartbeat_age_seconds": 1, "outbox_unseen_events": 0, "supervisor_unknown": 0})
	show(at.Add(40*time.Second), Pipeflow{Connector: running}, "Kafka", "PostgreSQL")
	expect("Kafka and PostgreSQL do not", map[string]float64{"cdc_connector_running": 1, "cdc_heartbeat_age_seconds": 41, "supervisor_unknown": 2})
	m.leads(false)
	expect("another one acts", map[string]float64{"supervisor_unknown": 0})
	m.leads(true)
	show(at, Pipeflow{Connector: running, NoHeartbeat: true, Slot: &Slot{}})
	expect("nor is there a reader", map[string]float64{"cdc_connector_running": 1, "cdc_slot_lag_bytes": 0, "outbox_unseen_events": 0, "supervisor_unknown": 0})
	show(at, Pipeflow{Connector: running, Slot: &Slot{Active: true, Read: 90 * time.Second}, NoHeartbeat: true})
	expect("Kafka has no heartbeat", map[string]float64{"cdc_connector_running": 1, "cdc_slot_lag_bytes": 0, "cdc_heartbeat_age_seconds": 90, "outbox_unseen_events": 0, "supervisor_unknown": 0})
}
