package main

import (
	"bytes"
	"fmt"
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
		DeadLetters: map[string]int{"order-service": 0, "stock-service": 3},
		Orders:      &orderCounts{Success: 10, Oldest: 7300, OlderUnsettled: 2, OlderAttention: 1, All: true},
		Supervised:  new(false),
		Acts:        []supervisor.Done{{At: time.Date(2026, 1, 2, 3, 4, 1, 0, time.UTC), Connector: "orderdb", Act: supervisor.Restart, Reason: "FAILED: x", Outcome: "done"}},
	}
	s.Trouble = s.trouble(pipelines)
	var out bytes.Buffer
	s.print(&out)
	for _, want := range []string{
		"orderdb    FAILED   extended        4096 MiB  4096 MiB  500 MiB     5s ago     12      1m15.4s",
		"stockdb    RUNNING  lost, not read", "paymentdb  ?        snapshot",
		"order-service    Stable  2        7 on stock.success  0", "stock-service    Empty   0        0                   3",
		"Orders of the last hour: 10 SUCCESS, 0 FAILED, 0 IN_PROGRESS, 0 compensating, 0 need attention; 2 older ones are not settled, 1 need attention; the oldest that is not settled waits for 2h1m40s\n\n",
		"2026-01-02 03:04:01  restart orderdb: FAILED: x (done)",
		"- Kafka Connect: no answer", "- the topic stock.dlt is missing", "- connector orderdb is FAILED: java.lang.X:  too large",
		"- slot outbox_orderdb keeps 4096 MiB of log, and is lost 500 MiB later (max_slot_wal_keep_size): see what holds up connector orderdb", "- slot outbox_stockdb is lost (wal_removed)",
		"- 12 events of orderdb are in no inbox, the oldest for 75 s", "- stock-service has 3 open dead letters", "- no instance of stock-service consumes",
		"- no instance of payment-service consumes", "- an order waits for 2h1m40s: outboxctl saga stuck",
		"- 1 orders need attention, their compensation is a dead letter: outboxctl saga stuck",
		"- no supervisor acts: what breaks from now on stays broken: start one with scripts/up.sh or outboxctl supervise",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "outbox_paymentdb is not read") {
		t.Error("a snapshot needs no attention")
	}
	out.Reset()
	status{}.print(&out)
	if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, "orderdb ? ? ? ? ? ? ? ?") || !strings.Contains(got, "order-service ? ? ? ?") ||
		!strings.Contains(got, "Orders: not known") || !strings.Contains(got, "last acts: not known") {
		t.Errorf("what is not known:\n%s", out.String())
	}
	well := status{Facts: supervisor.Facts{Groups: map[string]supervisor.Group{}}}
	if trouble := well.trouble(nil); len(trouble) != 0 {
		t.Error(trouble)
	}
}

func TestStatusTellsOfASilentConnector(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	beat := func(ago time.Duration, change func(*supervisor.Pipeflow)) string {
		flow := supervisor.Pipeflow{Connector: &supervisor.Connector{State: "RUNNING"}, Slot: &supervisor.Slot{Exists: true, Active: true, Read: time.Hour}, Heartbeat: now.Add(-ago)}
		if change != nil {
			change(&flow)
		}
		s := status{Facts: supervisor.Facts{At: now, Pipelines: map[string]supervisor.Pipeflow{"stockdb": flow}}}
		return strings.Join(s.trouble([]supervisor.Pipeline{{Name: "stockdb", Slot: "outbox_stockdb", Group: "stock-service"}}), "\n")
	}
	const want = "connector stockdb has sent no heartbeat for %s: nothing of stockdb flows, whatever Connect says (see the log of its worker), unless the worker's clock is behind"
	if got := beat(31*time.Second, nil); got != fmt.Sprintf(want, "31s") {
		t.Errorf("%q", got)
	}
	// Kafka keeps heartbeats for an hour.
	for read, age := range map[time.Duration]string{10 * time.Second: "", 31 * time.Second: "31s", 2 * time.Hour: "1h0m0s"} {
		got := beat(0, func(f *supervisor.Pipeflow) { f.Heartbeat, f.NoHeartbeat, f.Slot.Read = time.Time{}, true, read })
		if said := strings.Contains(got, "heartbeat"); said != (age != "") || said && got != fmt.Sprintf(want, age) {
			t.Errorf("none in Kafka, and the slot is read for %s: %q", read, got)
		}
	}
	snapshot := time.Minute
	for name, got := range map[string]string{
		"a young heartbeat": beat(30*time.Second, nil),
		"not known":         beat(time.Hour, func(f *supervisor.Pipeflow) { f.Heartbeat = time.Time{} }),
		"a snapshot":        beat(time.Hour, func(f *supervisor.Pipeflow) { f.Slot.Snapshot = &snapshot }),
		"a new reader":      beat(time.Hour, func(f *supervisor.Pipeflow) { f.Slot.Read = 10 * time.Second }),
		"another cause":     beat(time.Hour, func(f *supervisor.Pipeflow) { f.Slot.Active = false }),
	} {
		if strings.Contains(got, "heartbeat") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestStatusSaysWhichOrdersItLookedAt(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		since time.Time
		want  string
	}{
		{now.Add(-90 * time.Second), "\nOrders of the last 1m30s, the newest 20000: 1 SUCCESS, 0 FAILED, 0 IN_PROGRESS, 0 compensating, 0 need attention\n  (all since 2026-01-02 03:02:35, and before that "},
		{now.Add(-5 * time.Hour), "\nOrders of the last hour: 1 SUCCESS, 0 FAILED, 0 IN_PROGRESS, 0 compensating, 0 need attention\n  (all since 2026-01-01 22:04:05, and before that "},
	} {
		var out strings.Builder
		orderCounts{Success: 1, Since: test.since}.print(&out, now)
		if !strings.HasPrefix(out.String(), test.want) {
			t.Errorf("%s\nwant %s", out.String(), test.want)
		}
	}
}

// The warning comes when half of what a slot may hold back is used, whatever the setting.
func TestNearlyLost(t *testing.T) {
	for _, test := range []struct {
		retained, safe int64
		want           bool
	}{
		{10 << 20, 54 << 20, false}, {31 << 20, 33 << 20, false}, {33 << 20, 31 << 20, true}, {64 << 20, 0, true}, {70 << 20, -6 << 20, true},
		{1 << 30, 3 << 30, false}, {3 << 30, 1 << 30, true}, {0, 64 << 20, false},
	} {
		if got := nearlyLost(supervisor.Slot{Retained: test.retained, Safe: &test.safe}); got != test.want {
			t.Errorf("%d kept, %d left: %t", test.retained, test.safe, got)
		}
	}
	if nearlyLost(supervisor.Slot{Retained: 1 << 40}) {
		t.Error("without a limit no slot is lost")
	}
}
