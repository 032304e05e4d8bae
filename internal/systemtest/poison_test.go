package systemtest

import (
	"fmt"
	"strings"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Poison of every form goes aside, in every topic: 100 records each, and 1,000 in each
// partition of stock. An order behind them settles within 5 s, and one behind answers for
// orders that nobody knows within 3 s; the race detector is not held to these times.
func poison(w *world) {
	t := w.t
	customer, sku := w.customer(1_000_000), w.item(1000)
	id := func() kgo.RecordHeader {
		return kgo.RecordHeader{Key: "id", Value: []byte(outbox.NewID().String())}
	}
	kind := func(s string) kgo.RecordHeader { return kgo.RecordHeader{Key: "type", Value: []byte(s)} }
	types := map[string]string{events.TopicPayment: events.TypePaymentRequested, events.TopicPaymentCompensation: events.TypePaymentCompensationRequested,
		events.TopicStock: events.TypeStockRequested, events.TopicStockCompensation: events.TypeStockCompensationRequested,
		events.TopicPaymentSuccess: events.TypePaymentSucceeded, events.TopicPaymentFailed: events.TypePaymentRefused, events.TopicPaymentCompensated: events.TypePaymentCompensated,
		events.TopicStockSuccess: events.TypeStockSucceeded, events.TopicStockFailed: events.TypeStockRefused, events.TopicStockCompensated: events.TypeStockCompensated,
		events.TopicPaymentDLT: events.TypePaymentDeadLettered, events.TopicStockDLT: events.TypeStockDeadLettered}
	burst := func() (records []*kgo.Record) {
		for topic, eventType := range types {
			n := 100
			if topic == events.TopicStock {
				n = 1000 * events.Partitions
			}
			for i := range n {
				key := []byte(uuid.Must(uuid.NewV7()).String()) // all partitions, also the order's
				r := &kgo.Record{Topic: topic, Key: key, Headers: []kgo.RecordHeader{id(), kind(eventType)}}
				switch i % 9 {
				case 0:
					r.Headers = nil
				case 1:
					r.Value = []byte("\xff\x00 no JSON")
				case 2:
					r.Value = []byte(`{"order_id":17}`)
				case 3:
					r.Headers[1] = kind("no.such.type")
					r.Value = []byte(`{}`)
				case 4:
					r.Value = []byte(`{"order_id":"another"}`)
				case 5:
					r.Headers[0].Value = []byte(uuid.NewString())
				case 6:
					r.Key, r.Value = nil, []byte(`[]`)
				case 7:
					r.Key, r.Value = []byte("\xff\x00"), []byte(`null`)
				case 8: // fits, but is impossible: a negative amount, no items; no one's order
					r.Value = fmt.Appendf(nil, `{"order_id":%q,"customer_id":%q,"amount":-5,"items":[]}`, key, customer)
				}
				records = append(records, r)
			}
			records = append(records, &kgo.Record{Topic: topic, Key: []byte("large"), Value: []byte(strings.Repeat("x", 900_000)), Headers: []kgo.RecordHeader{id(), kind(eventType)}})
		}
		return records
	}
	letters := func() (n int) {
		for _, db := range []string{"orderdb", "stockdb", "paymentdb"} {
			n += len(w.query(db, `SELECT 'x' FROM dead_letters WHERE topic <> ALL (ARRAY['x'])`))
		}
		return n
	}
	all := 0
	behind := func() time.Duration {
		records := burst()
		all += len(records)
		w.Produce(records...)
		begin := time.Now()
		o := w.settled(w.place(customer, sku, 1, 10).ID, 30*time.Second)
		took := time.Since(begin)
		t.Logf("an order behind %d poison records settled after %v", len(records), took.Round(time.Millisecond))
		if o.Status != "SUCCESS" {
			t.Errorf("%s", o)
		}
		for end := time.Now().Add(30 * time.Second); letters() < all && time.Now().Before(end); {
			time.Sleep(100 * time.Millisecond)
		}
		if n := letters(); n < all {
			t.Errorf("%d dead letters of %d poison records", n, all)
		}
		return took
	}
	behind() // shows how fast the JVMs compile, the second one how long an order waits
	if took := behind(); took > 5*time.Second && !stacktest.Race {
		t.Errorf("an order behind poison took %v, more than 5 s", took)
	}

	unknown := events.PaymentSuccess(uuid.Must(uuid.NewV7()).String(), 1)
	ev, err := outbox.New(unknown.Topic, "order", unknown.OrderID, unknown.Type, unknown.Payload)
	if err != nil {
		t.Fatal(err)
	}
	strangers := map[string]bool{}
	for range 20 { // every partition has one
		u := uuid.Must(uuid.NewV7()).String()
		strangers[u] = true
		w.Produce(&kgo.Record{Topic: ev.Topic, Key: []byte(u), Value: []byte(strings.ReplaceAll(string(ev.Payload), unknown.OrderID, u)), Headers: []kgo.RecordHeader{id(), kind(ev.Type)}})
	}
	begin := time.Now()
	w.settled(w.place(customer, sku, 1, 10).ID, 30*time.Second)
	took := time.Since(begin)
	t.Logf("an order behind answers for unknown orders settled after %v", took.Round(time.Millisecond))
	if took > 3*time.Second && !stacktest.Race {
		t.Errorf("an order behind answers for unknown orders took %v, more than 3 s", took)
	}
	// Nothing of it is left to be put aside later: its dead letters are announced, and the answers to nobody are given up.
	w.drained(30 * time.Second)
	w.await("20 dead letters of answers for unknown orders", func() bool {
		n := 0
		for _, key := range w.query("orderdb", `SELECT convert_from(key, 'UTF8') FROM dead_letters WHERE topic = $1 AND error LIKE '%there is no order%'`, events.TopicPaymentSuccess) {
			if strangers[key] {
				n++
			}
		}
		return n == len(strangers)
	})
}
