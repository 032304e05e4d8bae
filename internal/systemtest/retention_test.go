package systemtest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

const day = 24 * time.Hour

// Under load old partitions go, of the outbox once Debezium has confirmed what is in them, and nothing else is lost or
// late. An event of a time that the inbox has forgotten has no effect.
func TestRetentionUnderLoad(t *testing.T) {
	w := start(t, 2)
	l := w.load(100, 2)
	l.more(t, 100)
	db := w.DB("orderdb")
	// As if the service had run for a month: the outbox has rows of its first days.
	if _, err := db.Exec(t.Context(), `SELECT event_partitions_prepare('outbox', 30, 7), event_partitions_prepare('inbox', 30, 7)`); err != nil {
		t.Fatal(err)
	}
	old := idAt(30*day - time.Hour)
	if _, err := db.Exec(t.Context(), `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES ($1, 'order.dlt', 'order', 'old', 'order.dead_lettered', '{}')`, old); err != nil {
		t.Fatal(err)
	}
	begin, gone := time.Now(), 0
	for {
		dropped, kept, err := outbox.DropPartitions(t.Context(), db, 3*day)
		if err != nil {
			t.Fatal(err)
		}
		if gone += len(dropped); kept == nil {
			break
		}
		if time.Since(begin) > 60*time.Second {
			t.Fatalf("%d are dropped, then: %+v", gone, kept)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if gone != 27 {
		t.Errorf("%d partitions are dropped", gone)
	}
	t.Logf("27 partitions of the outbox dropped after %s", time.Since(begin).Round(time.Millisecond))
	arrived := 0
	for _, rec := range w.Records("order.dlt") {
		if string(rec.Key) == "old" {
			arrived++
		}
	}
	if arrived != 1 {
		t.Errorf("the old event arrived %d times", arrived)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, kept, err := inbox.DropPartitions(t.Context(), db, 11*day)
		if err != nil || time.Now().After(end) {
			t.Fatal(kept, err)
		}
		if kept == nil {
			break
		}
	}
	if since, _, err := inbox.Window(t.Context(), db); err != nil || time.Since(since) > 12*day || time.Since(since) < 10*day {
		t.Errorf("the inbox begins at %s, %v", since, err)
	}
	l.more(t, 200)
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
