package service

import (
	"outboxsaga/events"
	"outboxsaga/outbox"

	"github.com/google/uuid"
)

// Outbox makes the outbox row of a saga message. id is the event's; the zero id: a new
// one. traceparent may be empty.
func Outbox(id uuid.UUID, m events.Message, traceparent string) (outbox.Event, error) {
	ev, err := outbox.New(m.Topic, "order", m.OrderID, m.Type, m.Payload)
	if err != nil {
		return ev, err
	}
	if id != uuid.Nil {
		ev.ID = id
	}
	ev.Traceparent = traceparent
	return ev, nil
}
