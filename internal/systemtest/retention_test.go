package systemtest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

const day = 24 * time.Hour

// Under load old partitions go, those of the outbox once Debezium has confirmed what is in them, and nothing else is
// lost or late. Two instances of each service are at it, with no more rights than services have. An event of a time that
// the inbox has forgotten has no effect.
func TestRetentionUnderLoad(t *testing.T) {
	w := start(t, 2)
	l := w.load(100, 2)
	l.more(t, 200)
	before := time.Now()
	l.more(t, 600)
	// As if the services had run for a month: the outbox has rows of its first days.
	for _, db := range databases {
		w.exec(db, `SELECT event_partitions_prepare('outbox', 30, 7), event_partitions_prepare('inbox', 30, 7)`)
	}
	old := idAt(30*day - time.Hour)
	w.exec("orderdb", `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES ($1, 'order.dlt', 'order', 'old', 'order.dead_lettered', '{}')`, old)

	begin := time.Now()
	var dropping errgroup.Group
	var gone [2]atomic.Int64
	for i, role := range map[string]string{"orderdb": "order_service", "stockdb": "stock_service"} {
		for range 2 {
			dropping.Go(func() error {
				conn, err := pgx.Connect(t.Context(), w.UserURL(role, i))
				if err != nil {
					return err
				}
				defer conn.Close(context.Background())
				for time.Since(begin) < 90*time.Second {
					dropped, kept, err := outbox.DropPartitions(t.Context(), conn, 3*day)
					gone[0].Add(int64(len(dropped)))
					if err != nil {
						return err
					}
					more, keptToo, err := inbox.DropPartitions(t.Context(), conn, 11*day)
					gone[1].Add(int64(len(more)))
					if err != nil || kept == nil && keptToo == nil {
						return err
					}
					time.Sleep(200 * time.Millisecond)
				}
				return fmt.Errorf("the partitions of %s are not dropped", i)
			})
		}
	}
	if err := dropping.Wait(); err != nil {
		t.Fatal(err)
	}
	end := time.Now()
	if gone[0].Load() != 2*27 || gone[1].Load() != 2*19 {
		t.Errorf("%d partitions of the outbox and %d of the inbox are dropped, want 54 and 38", gone[0].Load(), gone[1].Load())
	}
	l.more(t, 200)
	arrived := 0
	for _, rec := range w.Records("order.dlt") {
		if string(rec.Key) == "old" {
			arrived++
		}
	}
	if arrived != 1 {
		t.Errorf("the old event arrived %d times", arrived)
	}
	usual, during := w.delays(before, begin), w.delays(begin, end)
	t.Logf("54 partitions of the outbox and 38 of the inbox dropped in %.1f s; row to inbox, before: %s, meanwhile: %s", end.Sub(begin).Seconds(), usual, during)
	if during.worst > usual.worst+time.Second {
		t.Error("events were held up")
	}

	// payment-service does it by itself, soon after its start.
	w.Kill("payment-service-2")
	w.Restart("payment-service-2")
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		left := w.query("paymentdb", `SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent IN ('outbox'::regclass, 'inbox'::regclass)`)
		if len(left) == 4+7+12+7 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("payment-service leaves %d partitions: %q", len(left), left)
		}
	}
	w.await("46 lines on dropped partitions in its log", func() bool { // they come after the commit
		log, err := os.ReadFile(w.LogFile("payment-service-2"))
		return err == nil && strings.Count(string(log), "partition dropped") == 27+19
	})
	w.finish(l)

	// 12 days old: the inbox cannot tell whether it was there.
	customer := w.customer(1000)
	event := idAt(12 * day)
	order := uuid.Must(uuid.NewV7()).String()
	w.Produce(&kgo.Record{
		Topic: "payment", Key: []byte(order), Value: fmt.Appendf(nil, `{"order_id":%q,"customer_id":%q,"amount":10}`, order, customer),
		Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(event.String())}, {Key: "type", Value: []byte("payment.requested")}},
	})
	for end := time.Now().Add(20 * time.Second); len(w.query("paymentdb", `SELECT error FROM dead_letters WHERE event_id = '`+event.String()+`' AND error LIKE '%inbox begins at%'`)) != 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the event older than the inbox is no dead letter")
		}
	}
	if got := w.query("paymentdb", `SELECT balance::text FROM accounts WHERE customer_id = '`+customer+`'`); !slices.Equal(got, []string{"1000"}) {
		t.Errorf("the balance is %v", got)
	}
}

// idAt is a UUIDv7 of some time ago.
func idAt(ago time.Duration) uuid.UUID {
	id := uuid.Must(uuid.NewV7())
	ms := time.Now().Add(-ago).UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id
}

var databases = []string{"orderdb", "stockdb", "paymentdb"}

// delays is how long events took from their row in an outbox to the transaction of their consumer.
type delays struct {
	n                  int
	median, p99, worst time.Duration
}

func (d delays) String() string {
	return fmt.Sprintf("%d events, median %v, p99 %v, worst %v", d.n, d.median.Round(time.Millisecond), d.p99.Round(time.Millisecond), d.worst.Round(time.Millisecond))
}

// delays looks at the events of a time. All databases have the same clock.
func (w *world) delays(since, until time.Time) delays {
	w.t.Helper()
	w.drainedUntil(until, 20*time.Second)
	type row struct {
		ID uuid.UUID
		At time.Time
	}
	written := map[uuid.UUID]time.Time{}
	var took []time.Duration
	read := func(db, sql string, each func(row)) {
		rows, err := w.DB(db).Query(context.Background(), sql, since, until)
		if err != nil {
			w.t.Fatal(err)
		}
		all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
		if err != nil {
			w.t.Fatal(err)
		}
		for _, r := range all {
			each(r)
		}
	}
	for _, db := range databases {
		read(db, `SELECT id, created_at AT TIME ZONE 'UTC' FROM outbox WHERE created_at AT TIME ZONE 'UTC' BETWEEN $1 AND $2`, func(r row) { written[r.ID] = r.At })
	}
	for _, db := range databases {
		read(db, `SELECT event_id, received_at FROM inbox WHERE received_at >= $1 AND $2::timestamptz IS NOT NULL`, func(r row) {
			if at, known := written[r.ID]; known {
				took = append(took, r.At.Sub(at))
			}
		})
	}
	if len(took) == 0 {
		w.t.Fatal("no event arrived")
	}
	slices.Sort(took)
	return delays{len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1]}
}

// The slot is gone, with events that only the outbox has: the connector makes a new one, which begins after them, and
// sends the retained outbox anew. Their partition is past its retention, and must stay until all of them are in Kafka.
func partitionStays(w *world) {
	const rows = 60_000
	t := w.t
	worker := connect.Client{URL: w.ConnectURL()}
	w.exec("orderdb", `SELECT event_partitions_prepare('outbox', 5, 7)`)
	if err := worker.Stop(t.Context(), "orderdb"); err != nil {
		t.Fatal(err)
	}
	// An id is its time and a number.
	w.exec("orderdb", `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload)
		SELECT overlay(uuidv7_floor(now() - interval '5 days')::text PLACING '7000-8000-' || lpad(n::text, 12, '0') FROM 15)::uuid,
		       'order.dlt', 'order', 'old', 'order.dead_lettered', '{}' FROM generate_series(1, $1::int) n`, rows)
	w.exec("orderdb", `SELECT pg_drop_replication_slot('outbox_orderdb')`)
	if err := worker.Resume(t.Context(), "orderdb"); err != nil {
		t.Fatal(err)
	}
	kept := map[outbox.Reason]int{}
	gone := false
	for begin := time.Now(); !gone; time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > 90*time.Second {
			t.Fatalf("the partition is not dropped: %v", kept)
		}
		dropped, why, err := outbox.DropPartitions(t.Context(), w.DB("orderdb"), 3*day)
		if err != nil {
			t.Fatal(err)
		}
		if why != nil {
			kept[why.Reason]++
		}
		gone = len(dropped) > 0
	}
	w.Kill(devstack.Connect) // what it had only in memory is gone now
	ids := map[string]bool{}
	for _, rec := range w.Records("order.dlt") {
		for _, h := range rec.Headers {
			if h.Key == "id" && string(rec.Key) == "old" {
				ids[string(h.Value)] = true
			}
		}
	}
	t.Logf("kept %v times; then %d of %d events are in Kafka", kept, len(ids), rows)
	if len(ids) != rows {
		t.Error("events are lost: their partition was dropped before they were sent")
	}
	if kept[outbox.Unconfirmed] == 0 || kept[outbox.NoSlot]+kept[outbox.SlotInactive] == 0 {
		t.Error("the drop was never tried while the connector was at it")
	}
	w.Restart(devstack.Connect)
}
