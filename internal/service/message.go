package service

import (
	"fmt"
	"regexp"
	"slices"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/google/uuid"
)

// Decode reads an event of the saga, for [Service.Decode]: its type is one of types, its
// payload fits, and its key is an order's id. An error means that the record can never work.
func Decode(ev inbox.Event, types ...string) (any, error) {
	body, err := events.Decode(ev.Type, ev.Key, ev.Payload)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(types, ev.Type) {
		return nil, fmt.Errorf("the event type %q is not for this service, which handles %q", ev.Type, types)
	}
	if id, err := uuid.Parse(ev.Key); err != nil || id.String() != ev.Key {
		return nil, fmt.Errorf("the key %.100q is not an order's id (a UUID in lower case)", ev.Key)
	}
	return body, nil
}

// Outbox makes the outbox row of a saga message. id is the event's; the zero id: a new
// one. A traceparent that is no trace context is left out, as the standard asks.
func Outbox(id uuid.UUID, m events.Message, traceparent string) (outbox.Event, error) {
	ev, err := outbox.New(m.Topic, "order", m.OrderID, m.Type, m.Payload)
	if err != nil {
		return ev, err
	}
	if id != uuid.Nil {
		ev.ID = id
	}
	ev.Traceparent = wellFormed(traceparent)
	return ev, nil
}

// Answer makes the outbox rows of the messages that a decision on ev sends.
func Answer(ev inbox.Event, messages []events.Message) ([]outbox.Event, error) {
	rows := make([]outbox.Event, len(messages))
	for i, m := range messages {
		var err error
		if rows[i], err = Outbox(uuid.Nil, m, ev.Traceparent); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// traceparentForm is that of W3C Trace Context, version 00.
var traceparentForm = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// wellFormed is a trace context to go on with; empty where there is none or it is malformed, as the standard asks.
func wellFormed(traceparent string) string {
	if !traceparentForm.MatchString(traceparent) {
		return ""
	}
	return traceparent
}
