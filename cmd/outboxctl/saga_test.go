package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/order-service/order"

	"github.com/google/uuid"
)

// stuckSaga is an order that waits for payment, with the events given; each is "type" or "type*", where
// the star says that its consumer has handled it. The first is the command.
func stuckSaga(status order.StepStatus, described ...string) *saga {
	s := &saga{OrderID: uuid.Must(uuid.NewV7()), Order: &orderRow{
		Status: order.Failed, PaymentStatus: status, StockStatus: order.StepFailed, CreatedAt: time.Now(),
	}}
	for _, text := range described {
		name, handled := strings.CutSuffix(text, "*")
		id := uuid.Must(uuid.NewV7())
		e := sagaEvent{At: time.Now(), Event: name, EventID: &id, From: "payment", To: "order", Topic: name}
		if strings.HasSuffix(name, "requested") {
			e.From, e.To, e.Topic = "order", "payment", "payment"
		}
		if handled {
			e.ReceivedAt = &e.At
		}
		s.Events = append(s.Events, e)
	}
	if len(s.Events) > 0 {
		s.Order.PaymentCommand = *s.Events[0].EventID
	}
	return s
}

func (s *saga) withLetter(of int, service string, status inbox.Status) *saga {
	by, reason := "anna", "not needed"
	l := sagaLetter{Service: service, ID: uuid.Must(uuid.NewV7()), EventID: s.Events[of].EventID.String(), Status: status, Error: "broken"}
	if status != inbox.Open {
		l.ResolvedBy, l.Reason = &by, &reason
	}
	s.DeadLetters = append(s.DeadLetters, l)
	return s
}

// withOldAnswer has order-service's dead letter of an answer whose row is in no outbox any more.
func (s *saga) withOldAnswer(eventType string, status inbox.Status) *saga {
	s.withLetter(0, "order", status)
	l := &s.DeadLetters[len(s.DeadLetters)-1]
	l.EventID, l.EventType = uuid.Must(uuid.NewV7()).String(), eventType
	return s
}

func TestWhatAnOrderWaitsFor(t *testing.T) {
	const asked, undo = events.TypePaymentRequested, events.TypePaymentCompensationRequested
	letter := func(command string) *saga { // an answer that is a dead letter, of the command or of another record
		s := stuckSaga(order.StepInProgress, asked+"*", events.TypePaymentDeadLettered)
		if command == "" {
			command = s.Order.PaymentCommand.String()
		}
		s.Events[1].Payload, _ = json.Marshal(events.DeadLettered{EventID: command})
		return s
	}
	for name, c := range map[string]struct {
		saga    *saga
		cause   cause
		event   string
		service string
		text    string
	}{
		"sent, not handled":        {stuckSaga(order.StepInProgress, asked), commandNotHandled, asked, "payment", "payment-service has not handled"},
		"not known to the outbox":  {stuckSaga(order.StepInProgress), commandNotHandled, asked, "payment", "payment-service has not handled"},
		"handled, no answer":       {stuckSaga(order.StepInProgress, asked+"*"), answerMissing, asked, "payment", "has no answer"},
		"answered":                 {stuckSaga(order.StepInProgress, asked+"*", "payment.succeeded"), answerNotHandled, "payment.succeeded", "order", "order-service has not handled it"},
		"refused":                  {stuckSaga(order.StepInProgress, asked+"*", "payment.refused"), answerNotHandled, "payment.refused", "order", "order-service has not handled it"},
		"answer has no effect":     {stuckSaga(order.StepInProgress, asked+"*", "payment.succeeded*"), answerIgnored, "payment.succeeded", "order", "that should not be"},
		"put aside, not yet told":  {letter("").withLetter(0, "payment", inbox.Redriven), answerNotHandled, events.TypePaymentDeadLettered, "order", "order-service has not handled it"},
		"another record put aside": {letter(uuid.NewString()), answerMissing, asked, "payment", "has no answer"},
		"answer put aside":         {stuckSaga(order.StepInProgress, asked+"*", "payment.succeeded*").withLetter(1, "order", inbox.Open), deadLetterOpen, "payment.succeeded", "order", "redrive"},
		"old answer put aside":     {stuckSaga(order.StepInProgress, asked+"*").withOldAnswer("payment.succeeded", inbox.Open), deadLetterOpen, "payment.succeeded", "order", "redrive"},
		"old answer discarded":     {stuckSaga(order.StepInProgress, asked+"*").withOldAnswer("payment.succeeded", inbox.Discarded), deadLetterDropped, "payment.succeeded", "order", "anna (not needed)"},
		"old answer of the step":   {stuckSaga(order.StepCompensating, undo+"*").withOldAnswer("payment.succeeded", inbox.Open), answerMissing, undo, "payment", "has no answer"},
		"compensation not handled": {stuckSaga(order.StepCompensating, undo), commandNotHandled, undo, "payment", "payment-service has not handled"},
		"compensation put aside":   {stuckSaga(order.StepCompensating, undo+"*").withLetter(0, "payment", inbox.Open), deadLetterOpen, undo, "payment", "redrive"},
		"compensation discarded":   {stuckSaga(order.StepCompensating, undo+"*").withLetter(0, "payment", inbox.Discarded), deadLetterDropped, undo, "payment", "anna (not needed)"},
		"compensation redriven":    {stuckSaga(order.StepCompensating, undo+"*", "payment.compensated").withLetter(0, "payment", inbox.Redriven), answerNotHandled, "payment.compensated", "order", "order-service has not handled it"},
		// The success that was there before the compensation is no answer to it.
		"an older answer": {stuckSaga(order.StepCompensating, undo, "payment.succeeded*"), commandNotHandled, undo, "payment", "payment-service has not handled"},
	} {
		got := c.saga.waits()
		if len(got) != 1 {
			t.Errorf("%s: waits for %v", name, got)
			continue
		}
		w := got[0]
		if w.Step != order.Payment || w.Cause != c.cause || w.Event != c.event || w.Service != c.service || !strings.Contains(w.Text, c.text) {
			t.Errorf("%s: %+v", name, w)
		}
		if hasLetter := w.DeadLetter != nil; hasLetter != (c.cause == deadLetterOpen || c.cause == deadLetterDropped) {
			t.Errorf("%s: dead letter %v", name, w.DeadLetter)
		}
	}
	if got := stuckSaga(order.StepCompensated, undo+"*").waits(); len(got) != 0 {
		t.Errorf("a settled order waits for %v", got)
	}
}

func TestTroublesOnTheWay(t *testing.T) {
	r := roads{
		connectors: map[string]string{"order": "connector orderdb does not stream"},
		services:   map[string]string{"payment": "payment-service is not ready"},
		groups:     map[string]string{},
		lag:        map[string]map[string]int64{"payment": {"payment": 3}, "stock": {"stock": 0}, "order": {}},
	}
	for _, c := range []struct{ from, to, topic, want string }{
		{"order", "payment", "payment", "payment-service is not ready; payment-service is 3 records behind on topic payment; connector orderdb does not stream"},
		{"order", "stock", "stock", "connector orderdb does not stream"},
		{"stock", "order", "stock.success", "order-service, the connector and the consumer group look well: has the record just come?"},
	} {
		if got := strings.Join(r.troubles(c.from, c.to, c.topic), "; "); got != c.want {
			t.Errorf("%s to %s: %s", c.from, c.to, got)
		}
	}
}

func TestAround(t *testing.T) {
	id := uuid.Must(uuid.NewV7())
	bound := around(id)
	if bytes.Compare(bound[:], id[:]) >= 0 {
		t.Errorf("%s is not below %s", bound, id)
	}
	seconds, _ := id.Time().UnixTime()
	bound[6] = 0x70 // the version, so that its time can be read
	if before, _ := bound.Time().UnixTime(); seconds-before < 599 || seconds-before > 601 {
		t.Errorf("%s is %d s before %s", bound, seconds-before, id)
	}
	if got := around(uuid.New()); got != (uuid.UUID{}) {
		t.Errorf("an id without a time: %s", got)
	}
}

// What only the timeline knows is shown; what the outbox has is not shown twice.
func TestTimeline(t *testing.T) {
	s := stuckSaga(order.StepInProgress, events.TypePaymentRequested)
	s.Order.StockCommand = uuid.Must(uuid.NewV7())
	s.Order.Timeline = fmt.Sprintf(`{"at":"2026-01-02T03:04:06Z","event":"stock.refused","event_id":%q}`+"\n", uuid.Must(uuid.NewV7())) +
		`{"at":"2026-01-02T03:04:07Z","event":"order.cancelled"}` + "\n"
	s.addTimeline()
	var got []string
	for _, e := range s.Events {
		got = append(got, fmt.Sprintf("%s %s>%s %t", e.Event, e.From, e.To, e.OutboxGone))
	}
	if text := strings.Join(got, ", "); text != "order.placed order> false, stock.requested order>stock true, stock.refused stock>order true, order.cancelled order> false, payment.requested order>payment false" {
		t.Error(text)
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb\tc": "a b c", "\x1b[31mred": "\uFFFD[31mred", "zoé": "zoé", "\xff": "\uFFFD", "1234567890€": "1234567890…", "\u202e": "\uFFFD",
	} {
		if got := plain(in, 11); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestServiceURLs(t *testing.T) {
	for _, name := range []string{"STOCK_URL", "PAYMENT_URL", "ORDER_PORT", "PAYMENT_PORT"} {
		t.Setenv(name, "")
	}
	t.Setenv("ORDER_URL", "https://orders.example:8443/")
	t.Setenv("STOCK_PORT", "18081")
	desks, err := desksOf("all")
	if err != nil || len(desks) != 3 || desks[0].base != "https://orders.example:8443" || desks[1].base != "http://127.0.0.1:18081" || desks[2].base != "http://127.0.0.1:8082" {
		t.Errorf("%+v %v", desks, err)
	}
	t.Setenv("ORDER_URL", "orders")
	if _, err := desksOf("order"); err == nil || !strings.Contains(err.Error(), "ORDER_URL") {
		t.Error(err)
	}
}
