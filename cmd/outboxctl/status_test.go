package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/supervisor"
)

func TestStatusSaysWhatNeedsAttention(t *testing.T) {
	pipelines := []supervisor.Pipeline{
		{Name: "orderdb", Slot: "outbox_orderdb", Group: "order-service"},
		{Name: "stockdb", Slot: "outbox_stockdb", Group: "stock-service"},
		{Name: "paymentdb", Slot: "outbox_paymentdb", Group: "payment-service"},
	}
	safe, snapshot := int64(500<<20), time.Minute
	s := status{
		Facts: supervisor.Facts{
			At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			Pipelines: map[string]supervisor.Pipeflow{
				"orderdb": {
					Connector: &supervisor.Connector{State: "FAILED", Cause: "java.lang.X:\n too large"},
					Slot:      &supervisor.Slot{Exists: true, Active: true, WALStatus: "extended", Retained: 4 << 30, LagBytes: 4 << 30, Safe: &safe},
					Heartbeat: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC),
				},
				"stockdb":   {Connector: &supervisor.Connector{State: "RUNNING"}, Slot: &supervisor.Slot{Exists: true, WALStatus: "lost", Reason: "wal_removed"}},
				"paymentdb": {Slot: &supervisor.Slot{Exists: true, WALStatus: "reserved", Snapshot: &snapshot}},
			},
			MissingTopics: []string{"stock.dlt"},
			Groups: map[string]supervisor.Group{
				"order-service": {State: "Stable", Members: 2, Lag: map[string]int64{"stock.success": 7, "stock.failed": 0, "payment.dlt": -1}},
				"stock-service": {State: "Empty"},
			},
			Unknown: []string{"Kafka Connect: no answer"},
		},
		OldestUnseen: map[string]float64{"orderdb": 75.4}, UnseenEvents: map[string]int{"orderdb": 12},
		DeadLetters: map[string]int{"stock-service": 3},
		Orders:      orderCounts{Success: 10, Oldest: 100},
		Acts:        []supervisor.Done{{At: time.Date(2026, 1, 2, 3, 4, 1, 0, time.UTC), Connector: "orderdb", Act: supervisor.Restart, Reason: "FAILED: x", Outcome: "done"}},
	}
	s.Trouble = s.trouble(pipelines)
	var out bytes.Buffer
	s.print(&out)
	for _, want := range []string{
		"orderdb    FAILED   extended        4096 MiB  4096 MiB  500 MiB     5s ago     12      1m15.4s",
		"stockdb    RUNNING  lost, not read", "paymentdb  ?        snapshot",
		"order-service    Stable  2        7 on stock.success  0", "stock-service    Empty   0        0                   3",
		"Orders of the last hour: 10 SUCCESS, 0 FAILED, 0 IN_PROGRESS, 0 compensating, 0 need attention; the oldest that is not settled waits for 100.0 s",
		"2026-01-02 03:04:01  restart orderdb: FAILED: x (done)",
		"- Kafka Connect: no answer", "- the topic stock.dlt is missing", "- connector orderdb is FAILED: java.lang.X:  too large",
		"- slot outbox_orderdb keeps 4096 MiB of log, and is lost 500 MiB later", "- slot outbox_stockdb is lost (wal_removed)",
		"- 12 events of orderdb are in no inbox, the oldest for 75 s", "- stock-service has 3 open dead letters", "- no instance of stock-service consumes",
		"- no instance of payment-service consumes", "- an order waits for 100 s: outboxctl saga stuck",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "outbox_paymentdb is not read") {
		t.Error("a snapshot needs no attention")
	}
	well := status{Facts: supervisor.Facts{Groups: map[string]supervisor.Group{}}}
	if trouble := well.trouble(nil); len(trouble) != 0 {
		t.Error(trouble)
	}
}
