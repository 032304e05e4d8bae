package stock

import (
	"fmt"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/service"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
)

// Topics are those that stock-service consumes.
func Topics() []string {
	return []string{events.TopicStock, events.TopicStockCompensation}
}

// Decode reads an event and rejects what can never work.
func Decode(ev inbox.Event) (any, error) {
	body, err := service.Decode(ev, events.TypeStockRequested, events.TypeStockCompensationRequested)
	if err != nil {
		return nil, err
	}
	if cmd, ok := body.(events.StockRequested); ok {
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

// Load reads and locks the orders' reservations, then the items that they may move.
func (b *batch) Load(sql *pgx.Batch) {
	orders, compensated, skus := []string{}, []string{}, []string{}
	for _, ev := range b.events {
		orders = append(orders, ev.Key)
		switch body := ev.Body.(type) {
		case events.StockRequested:
			for _, item := range body.Items {
				skus = append(skus, item.SKU)
			}
		case events.CompensationRequested:
			compensated = append(compensated, ev.Key)
		}
	}
	b.book.queueReservations(sql, orders)
	b.book.queueItems(sql, skus, compensated)
}

// Decide leads an event to its decision.
func (b *batch) Decide(ev inbox.Event) ([]outbox.Event, error) {
	was := b.book.reservations.Get(ev.Key)
	var d Decision
	var err error
	switch body := ev.Body.(type) {
	case events.StockRequested:
		if d, err = Reserve(was, b.book.items.Get, body); err != nil {
			err = inbox.Permanent(err)
		}
	case events.CompensationRequested:
		d, err = Release(was, b.book.items.Get, body.OrderID)
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
	b.book.reservations.Set(ev.Key, d.Reservation)
	for _, item := range d.Items {
		b.book.items.Set(item.SKU, item)
	}
	return answers, nil
}

// Save writes what has changed.
func (b *batch) Save(sql *pgx.Batch) { b.book.queueSave(sql) }
