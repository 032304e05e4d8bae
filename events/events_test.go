package events_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"outboxsaga/events"
)

var update = flag.Bool("update", false, "write the golden files anew")

const orderID = "0199f3a0-0000-7000-8000-000000000001"

// messages are one of each kind, by the name of its golden file.
func messages() map[string]events.Message {
	letter := events.DeadLettered{
		OrderID: orderID, EventID: "0199f3a0-0000-7000-8000-000000000002", EventType: events.TypePaymentRequested, Topic: events.TopicPayment,
		Partition: 3, Offset: 42, Error: "the amount is negative", Attempts: 8, FailedAt: time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC),
		Payload: json.RawMessage(`{"order_id":"x"}`),
	}
	noJSON := letter
	noJSON.Payload, noJSON.PayloadBase64 = nil, []byte("\xff no JSON")
	return map[string]events.Message{
		"payment.requested":              events.RequestPayment(orderID, "alice", 3000),
		"payment.compensation_requested": events.CompensatePayment(orderID),
		"payment.succeeded":              events.PaymentSuccess(orderID, 3000),
		"payment.refused":                events.PaymentRefusal(orderID, events.ReasonInsufficientFunds),
		"payment.compensated":            events.PaymentCompensation(orderID, events.OutcomeRefunded),
		"payment.dead_lettered":          {Topic: events.TopicPaymentDLT, Type: events.TypePaymentDeadLettered, OrderID: orderID, Payload: letter},
		"stock.requested":                events.RequestStock(orderID, []events.Item{{SKU: "book", Quantity: 2}, {SKU: "pen", Quantity: 1}}),
		"stock.compensation_requested":   events.CompensateStock(orderID),
		"stock.succeeded":                events.StockSuccess(orderID),
		"stock.refused":                  events.StockRefusal(orderID, events.ReasonUnknownItem),
		"stock.compensated":              events.StockCompensation(orderID, events.OutcomeNothingToRelease),
		"stock.dead_lettered":            {Topic: events.TopicStockDLT, Type: events.TypeStockDeadLettered, OrderID: orderID, Payload: noJSON},
		"order.dead_lettered":            {Topic: events.TopicOrderDLT, Type: events.TypeOrderDeadLettered, OrderID: orderID, Payload: events.DeadLettered{Topic: "stock.success", Error: "large", Attempts: 1, FailedAt: letter.FailedAt, PayloadOmitted: true}},
	}
}

// The JSON is a promise to consumers in other code bases.
func TestPayloadsAreThoseOfTheGoldenFiles(t *testing.T) {
	for name, m := range messages() {
		if m.Type != name {
			t.Errorf("the type of %s is %s", name, m.Type)
		}
		got, err := json.MarshalIndent(m.Payload, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		file := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
		}
		// And back: what is sent is what is decoded, also with a field of a newer sender.
		newer := strings.Replace(string(want), "{", `{"added_later": [1],`, 1)
		for _, text := range []string{string(want), newer} {
			decoded, err := events.Decode(name, orderID, []byte(text))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !reflect.DeepEqual(normal(t, decoded), normal(t, m.Payload)) {
				t.Errorf("%s: decoded %+v, want %+v", name, decoded, m.Payload)
			}
		}
	}
}

// normal is a payload without the white space that a golden file adds to a raw message.
func normal(t *testing.T, payload any) string {
	t.Helper()
	text, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]struct{ eventType, payload, want string }{
		"no type":       {"", `{}`, `no header "type"`},
		"unknown type":  {"payment.exploded", `{}`, "unknown"},
		"not JSON":      {events.TypePaymentSucceeded, `nope`, "does not fit PaymentSucceeded"},
		"wrong kind":    {events.TypePaymentSucceeded, `{"order_id":"` + orderID + `","amount":"3"}`, "does not fit"},
		"fraction":      {events.TypePaymentSucceeded, `{"order_id":"` + orderID + `","amount":1.5}`, "does not fit"},
		"another order": {events.TypeStockSucceeded, `{"order_id":"another"}`, "is not the record's key"},
		"null":          {events.TypeStockSucceeded, `null`, "is not the record's key"},
	} {
		if body, err := events.Decode(c.eventType, orderID, []byte(c.payload)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v %v, want %q", name, body, err, c.want)
		}
	}
}

// Every topic has exactly one database that writes it, and every message a topic that
// its sender's database may write.
func TestTopicsAndTheirWriters(t *testing.T) {
	all := events.Topics()
	sorted := slices.Clone(all)
	slices.Sort(sorted)
	if len(slices.Compact(sorted)) != 13 || len(all) != 13 {
		t.Errorf("%d topics, want 13 different ones: %v", len(all), all)
	}
	for name, m := range messages() {
		if !slices.Contains(all, m.Topic) {
			t.Errorf("%s goes to %q, which is no topic", name, m.Topic)
		}
	}
}

func TestConsumer(t *testing.T) {
	for _, topic := range events.Topics() {
		want := "order"
		switch topic {
		case events.TopicPayment, events.TopicPaymentCompensation:
			want = "payment"
		case events.TopicStock, events.TopicStockCompensation:
			want = "stock"
		case events.TopicOrderDLT:
			want = ""
		}
		if got := events.Consumer(topic); got != want {
			t.Errorf("%s: %q, want %q", topic, got, want)
		}
	}
}
