package order

import (
	"encoding/json"
	"strings"
	"time"

	"outboxsaga/events"

	"github.com/google/uuid"
)

// entry is a line of an order's timeline.
type entry struct {
	At      time.Time // UTC
	Event   string
	EventID string // may be empty
	Reason  string // may be empty, and anything
}

// maxReason bounds what an event can add to a row, in bytes.
const maxReason = 500

// append adds the entry as a line: {"at","event","event_id","reason"}. It is written by hand
// because there are five for every order.
func (e entry) append(b []byte) []byte {
	b = append(b, `{"at":"`...)
	b = e.At.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","event":"`...)
	b = append(b, e.Event...) // a word: nothing to escape
	if e.EventID != "" {
		b = append(b, `","event_id":"`...)
		b = append(b, e.EventID...)
	}
	b = append(b, '"')
	if e.Reason != "" {
		if len(e.Reason) > maxReason {
			e.Reason = strings.ToValidUTF8(e.Reason[:maxReason], "") + "…"
		}
		text, err := json.Marshal(e.Reason)
		if err != nil {
			panic(err) // a string
		}
		b = append(append(b, `,"reason":`...), text...)
	}
	return append(b, '}', '\n')
}

// Timeline is the whole timeline of an order, one JSON object a line. The row keeps only
// what came after the placing (stored): what was placed when, with which commands, is
// in its columns, and every update writes the row anew.
func Timeline(placed time.Time, paymentCommand, stockCommand uuid.UUID, stored string) string {
	b := make([]byte, 0, 350+len(stored))
	placed = placed.UTC()
	b = entry{At: placed, Event: "order.placed"}.append(b)
	b = entry{At: placed, Event: events.TypePaymentRequested, EventID: paymentCommand.String()}.append(b)
	b = entry{At: placed, Event: events.TypeStockRequested, EventID: stockCommand.String()}.append(b)
	return string(append(b, stored...))
}

// split makes a list of a timeline's lines.
func split(lines string) []json.RawMessage {
	entries := make([]json.RawMessage, 0, 8)
	for line := range strings.Lines(lines) {
		entries = append(entries, json.RawMessage(strings.TrimSuffix(line, "\n")))
	}
	return entries
}
