package order

import (
	"fmt"
	"strings"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/service"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Topics are those that order-service consumes.
func Topics() []string {
	return []string{
		events.TopicPaymentSuccess, events.TopicPaymentFailed, events.TopicPaymentCompensated, events.TopicPaymentDLT,
		events.TopicStockSuccess, events.TopicStockFailed, events.TopicStockCompensated, events.TopicStockDLT,
	}
}

// Decode reads an event and rejects what can never work.
func Decode(ev inbox.Event) (any, error) {
	if ev.Type == events.TypePaymentDeadLettered || ev.Type == events.TypeStockDeadLettered {
		// Its key is that of the record put aside, which may be anything.
		return events.Decode(ev.Type, ev.Key, ev.Payload)
	}
	body, err := service.Decode(ev,
		events.TypePaymentSucceeded, events.TypePaymentRefused, events.TypePaymentCompensated,
		events.TypeStockSucceeded, events.TypeStockRefused, events.TypeStockCompensated)
	if err != nil {
		return nil, err
	}
	switch body := body.(type) {
	case events.PaymentSucceeded:
		if body.Amount < 1 {
			return nil, fmt.Errorf("the amount %d is not positive", body.Amount)
		}
	case events.Refused:
		return body, word("reason", body.Reason)
	case events.Compensated:
		return body, word("outcome", body.Outcome)
	}
	return body, nil
}

// word accepts reasons and outcomes, also those that a newer participant may have.
func word(field, value string) error {
	if len(value) < 1 || len(value) > 100 || strings.Trim(value, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return fmt.Errorf("the %s %.100q is not a word of a-z 0-9 _ with 1 to 100 characters", field, value)
	}
	return nil
}

// batch is the work on some events in one transaction.
type batch struct {
	saga   *Saga
	events []inbox.Event
	book   book
}

// NewBatch starts the work on events that [Decode] has accepted.
func (s *Saga) NewBatch(evs []inbox.Event) inbox.Batch {
	return &batch{saga: s, events: evs, book: newBook()}
}

// Load reads and locks the orders.
func (b *batch) Load(sql *pgx.Batch) {
	ids := make([][16]byte, 0, len(b.events))
	for _, ev := range b.events {
		if id, concerned := orderOf(ev); concerned {
			ids = append(ids, id)
		}
	}
	b.book.queue(sql, lockOrders, ids)
}

// orderOf is the order that an event is about. A dead letter may be about none: about a
// record that no order has sent, or that came to the topic of another service than its own.
func orderOf(ev inbox.Event) (id uuid.UUID, concerned bool) {
	if letter, ok := ev.Body.(events.DeadLettered); ok {
		id, err := uuid.Parse(letter.OrderID)
		event, bad := uuid.Parse(letter.EventID)
		whose, known := commands[letter.EventType]
		itsOwn := (whose == Payment) == (ev.Type == events.TypePaymentDeadLettered)
		return id, err == nil && known && itsOwn && bad == nil && event.Version() == 7
	}
	return uuid.MustParse(ev.Key), true
}

// commands are the events that order-service sends, with who gets them.
var commands = map[string]Participant{
	events.TypePaymentRequested: Payment, events.TypePaymentCompensationRequested: Payment,
	events.TypeStockRequested: Stock, events.TypeStockCompensationRequested: Stock,
}

// Decide leads an event to its decision. An order that is not there may be there in a
// moment: its event can overtake the moment at which its transaction becomes visible. Hence an
// error that is tried again, not one that is permanent.
func (b *batch) Decide(ev inbox.Event) ([]outbox.Event, error) {
	id, concerned := orderOf(ev)
	if !concerned {
		return nil, nil
	}
	was := b.book.orders.Get(id.String())
	if was.ID == "" {
		return nil, fmt.Errorf("%s: there is no order %s (yet)", ev.Type, id)
	}
	d, reason, err := decide(was, ev)
	if err != nil || d.Order == was {
		return nil, err
	}
	return b.book.apply(d, entry{At: b.saga.now(), Event: ev.Type, EventID: ev.ID.String(), Reason: reason}, ev.Traceparent)
}

// decide says which event leads to which decision.
func decide(o Order, ev inbox.Event) (d Decision, reason string, err error) {
	switch body := ev.Body.(type) {
	case events.PaymentSucceeded:
		return Succeeded(o, Payment), "", nil
	case events.StockSucceeded:
		return Succeeded(o, Stock), "", nil
	case events.Refused:
		if ev.Type == events.TypePaymentRefused {
			return Refused(o, Payment, body.Reason), body.Reason, nil
		}
		return Refused(o, Stock, body.Reason), body.Reason, nil
	case events.Compensated:
		if ev.Type == events.TypePaymentCompensated {
			return Compensated(o, Payment), body.Outcome, nil
		}
		return Compensated(o, Stock), body.Outcome, nil
	case events.DeadLettered:
		return DeadLettered(o, commands[body.EventType], body), body.Error, nil
	}
	return d, "", inbox.Permanent(fmt.Errorf("no decision for a %T", ev.Body))
}

// Save writes what has changed.
func (b *batch) Save(sql *pgx.Batch) { b.book.queueSave(sql) }
