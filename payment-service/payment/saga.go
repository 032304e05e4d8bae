package payment

import (
	"fmt"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/service"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
)

// Topics are those that payment-service consumes.
func Topics() []string {
	return []string{events.TopicPayment, events.TopicPaymentCompensation}
}

// Decode reads an event and rejects what can never work.
func Decode(ev inbox.Event) (any, error) {
	body, err := service.Decode(ev, events.TypePaymentRequested, events.TypePaymentCompensationRequested)
	if err != nil {
		return nil, err
	}
	if cmd, ok := body.(events.PaymentRequested); ok {
		if err := Validate(cmd); err != nil {
			return nil, err
		}
	}
	return body, nil
}

// batch is the work on some events in one transaction.
type batch struct {
	events []inbox.Event
	book   book
}

// NewBatch starts the work on events that [Decode] has accepted.
func NewBatch(evs []inbox.Event) inbox.Batch {
	return &batch{events: evs, book: newBook()}
}

// Load reads and locks the orders' payments, then the accounts that they may move.
func (b *batch) Load(sql *pgx.Batch) {
	orders, compensated, customers := []string{}, []string{}, []string{}
	for _, ev := range b.events {
		orders = append(orders, ev.Key)
		switch body := ev.Body.(type) {
		case events.PaymentRequested:
			customers = append(customers, body.CustomerID)
		case events.CompensationRequested:
			compensated = append(compensated, ev.Key)
		}
	}
	b.book.queuePayments(sql, orders)
	b.book.queueAccounts(sql, customers, compensated)
}

// Decide leads an event to its decision.
func (b *batch) Decide(ev inbox.Event) ([]outbox.Event, error) {
	was := b.book.payments.Get(ev.Key)
	var d Decision
	var err error
	switch body := ev.Body.(type) {
	case events.PaymentRequested:
		if d, err = Charge(was, b.book.accounts.Get, body); err != nil {
			err = inbox.Permanent(err)
		}
	case events.CompensationRequested:
		d, err = Refund(was, b.book.accounts.Get, body.OrderID)
	default:
		err = inbox.Permanent(fmt.Errorf("no decision for a %T", body))
	}
	if err != nil {
		return nil, fmt.Errorf("%s for order %s: %w", ev.Type, ev.Key, err)
	}
	answers, err := service.Answer(ev, d.Send)
	if err != nil {
		return nil, err
	}
	b.book.payments.Set(ev.Key, d.Payment)
	for _, a := range d.Accounts {
		b.book.accounts.Set(a.CustomerID, a)
	}
	return answers, nil
}

// Save writes what has changed.
func (b *batch) Save(sql *pgx.Batch) { b.book.queueSave(sql) }
