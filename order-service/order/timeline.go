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
	At      time.Time `json:"at"`
	Event   string    `json:"event"`
	EventID string    `json:"event_id,omitempty"`
	Reason  string    `json:"reason,omitempty"`
}

// maxReason bounds what an event can add to a row, in bytes.
const maxReason = 500

// write appends the entry as a line.
func (e entry) write(to *strings.Builder) {
	if len(e.Reason) > maxReason {
		e.Reason = strings.ToValidUTF8(e.Reason[:maxReason], "") + "…"
	}
	text, err := json.Marshal(e)
	if err != nil {
		panic(err) // times and strings
	}
	to.Write(text)
	to.WriteByte('\n')
}

// Timeline is the whole timeline of an order, one JSON object a line. The row keeps only
// what came after the placing (stored): what was placed when, with which commands, is
// in its columns, and every update writes the row anew.
func Timeline(placed time.Time, paymentCommand, stockCommand uuid.UUID, stored string) string {
	var lines strings.Builder
	placed = placed.UTC()
	entry{At: placed, Event: "order.placed"}.write(&lines)
	entry{At: placed, Event: events.TypePaymentRequested, EventID: paymentCommand.String()}.write(&lines)
	entry{At: placed, Event: events.TypeStockRequested, EventID: stockCommand.String()}.write(&lines)
	lines.WriteString(stored)
	return lines.String()
}

// split makes a list of a timeline's lines.
func split(lines string) []json.RawMessage {
	var entries []json.RawMessage
	for line := range strings.Lines(lines) {
		entries = append(entries, json.RawMessage(strings.TrimSuffix(line, "\n")))
	}
	return entries
}
