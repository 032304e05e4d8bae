package service

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/gorilla/mux"
)

// deadLetters are the routes by which an operator sees and resolves dead letters.
type deadLetters struct {
	consumer *inbox.Consumer
	pool     *Pool
}

func (d deadLetters) routes(r *mux.Router) {
	r.Handle("/dead-letters", Handle(d.list)).Methods(http.MethodGet)
	r.Handle("/dead-letters/{id}", Handle(d.show)).Methods(http.MethodGet)
	r.Handle("/dead-letters/{id}/redrive", Handle(d.redrive)).Methods(http.MethodPost)
	r.Handle("/dead-letters/{id}/discard", Handle(d.discard)).Methods(http.MethodPost)
}

// letter is a dead letter as JSON.
type letter struct {
	ID            uuid.UUID       `json:"id"`
	Status        inbox.Status    `json:"status"`
	EventID       string          `json:"event_id"`
	EventType     string          `json:"event_type"`
	Topic         string          `json:"topic"`
	Partition     int32           `json:"partition"`
	Offset        int64           `json:"offset"`
	Key           string          `json:"key"`
	RecordedAt    time.Time       `json:"recorded_at"`
	Error         string          `json:"error"`
	Attempts      int             `json:"attempts"`
	FailedAt      time.Time       `json:"failed_at"`
	ResolvedAt    *time.Time      `json:"resolved_at"`
	ResolvedBy    *string         `json:"resolved_by"`
	Reason        *string         `json:"reason"`
	PayloadBytes  int             `json:"payload_bytes"`
	Payload       json.RawMessage `json:"payload,omitempty"`
	PayloadBase64 []byte          `json:"payload_base64,omitempty"`
}

func newLetter(d inbox.DeadLetter) letter {
	return letter{
		ID: d.ID, Status: d.Status, EventID: d.EventID, EventType: d.EventType,
		Topic: d.Topic, Partition: d.Partition, Offset: d.Offset, Key: strings.ToValidUTF8(string(d.Key), "\uFFFD"),
		RecordedAt: d.RecordedAt.UTC(), Error: d.Error, Attempts: d.Attempts, FailedAt: d.FailedAt.UTC(),
		ResolvedAt: d.ResolvedAt, ResolvedBy: d.ResolvedBy, Reason: d.Reason, PayloadBytes: len(d.Payload),
	}
}

// lettersAtOnce bounds the memory of a page: dead letters are read with their payloads of up to 1 MB.
const lettersAtOnce = 20

// list answers without payloads, and with the beginning of a long key; show has them.
func (d deadLetters) list(w http.ResponseWriter, r *http.Request) error {
	page, err := ReadPage(r)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	filter := inbox.DeadLetterFilter{
		Status: inbox.Status(query.Get("status")), EventType: query.Get("event_type"), Topic: query.Get("topic"),
	}
	switch filter.Status {
	case "", inbox.Open, inbox.Redriven, inbox.Discarded:
	default:
		return BadRequest("bad-value", `"status" must be open, redriven or discarded, not %q`, clip(string(filter.Status)))
	}
	if !isText(filter.EventType) {
		return BadRequest("bad-value", `"event_type" must be text`)
	}
	if !isText(filter.Topic) {
		return BadRequest("bad-value", `"topic" must be text`)
	}
	if page.Cursor != "" {
		if filter.After, err = uuid.Parse(page.Cursor); err != nil {
			return BadRequest("bad-cursor", `"cursor" is not one that this list gave`)
		}
	}
	var letters []letter
	for more := page.Limit + 1; more > 0; more -= filter.Limit {
		filter.Limit = min(more, lettersAtOnce)
		found, err := d.read(r.Context(), filter)
		if err != nil {
			return err
		}
		for i := range found {
			l := newLetter(found[i])
			l.Key = clip(l.Key) // it may have a megabyte too
			letters, filter.After = append(letters, l), found[i].ID
		}
		if len(found) < filter.Limit {
			break
		}
	}
	return WriteList(w, "dead_letters", page, letters, func(l letter) string { return l.ID.String() })
}

func (d deadLetters) show(w http.ResponseWriter, r *http.Request) error {
	id, err := ID("id", mux.Vars(r)["id"])
	if err != nil {
		return err
	}
	found, err := d.read(r.Context(), inbox.DeadLetterFilter{After: before(id), Limit: 1})
	if err != nil {
		return err
	}
	if len(found) == 0 || found[0].ID != id {
		return NotFound("dead-letter-not-found", "there is no dead letter %s", id)
	}
	l := newLetter(found[0])
	l.Payload, l.PayloadBase64 = payload(found[0].Payload)
	return WriteJSON(w, http.StatusOK, l)
}

func (d deadLetters) read(ctx context.Context, filter inbox.DeadLetterFilter) (found []inbox.DeadLetter, err error) {
	err = d.pool.Read(ctx, func(ctx context.Context) error {
		found, err = d.consumer.DeadLetters(ctx, filter)
		return err
	})
	return found, err
}

// before is the id just below id.
func before(id uuid.UUID) uuid.UUID {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]--
		if id[i] != 0xff {
			break
		}
	}
	return id
}

func (d deadLetters) redrive(w http.ResponseWriter, r *http.Request) error {
	id, by, err := decision(r)
	if err != nil {
		return err
	}
	if err := d.consumer.Redrive(r.Context(), id, by); err != nil {
		return refusal(err)
	}
	return WriteJSON(w, http.StatusOK, map[string]any{"id": id, "status": inbox.Redriven})
}

func (d deadLetters) discard(w http.ResponseWriter, r *http.Request) error {
	id, by, err := decision(r)
	if err != nil {
		return err
	}
	var body struct {
		Reason string `json:"reason"`
	}
	if err := ReadJSON(w, r, &body); err != nil {
		return err
	}
	if strings.TrimSpace(body.Reason) == "" || len(body.Reason) > 1000 {
		return BadRequest("bad-value", `"reason" must say in 1 to 1000 bytes why this event is not needed`)
	}
	if err := d.consumer.Discard(r.Context(), id, by, body.Reason); err != nil {
		return refusal(err)
	}
	return WriteJSON(w, http.StatusOK, map[string]any{"id": id, "status": inbox.Discarded})
}

// decision reads which dead letter, and who decides: the header X-Operator.
func decision(r *http.Request) (id uuid.UUID, by string, err error) {
	if id, err = ID("id", mux.Vars(r)["id"]); err != nil {
		return id, "", err
	}
	if by = r.Header.Get("X-Operator"); by == "" {
		by = "http"
	}
	if len(by) > 100 || !isText(by) {
		return id, "", BadRequest("bad-value", "the header X-Operator must be text of up to 100 bytes")
	}
	return id, by, nil
}

// refusal maps what the inbox says about a dead letter to a problem.
func refusal(err error) error {
	switch {
	case errors.Is(err, inbox.ErrNoDeadLetter):
		return NotFound("dead-letter-not-found", "there is no dead letter with this id")
	case errors.Is(err, inbox.ErrResolved):
		return Conflict("dead-letter-resolved", "%s", oneLine(err))
	case errors.Is(err, inbox.ErrNoEvent), errors.Is(err, inbox.ErrTooOld), errors.Is(err, inbox.ErrHandled), errors.Is(err, inbox.ErrGroup):
		return Unprocessable("dead-letter-not-redrivable", "%s", oneLine(err))
	case Unavailable(err):
		return err
	}
	return Unprocessable("redrive-failed", "the event failed again, the dead letter stays open: %s", oneLine(err))
}

// announce makes the event that tells of a dead letter. Its key is the record's, so that it
// stays in order with the other events of the order.
func announce(topic, eventType string, d inbox.DeadLetter) (outbox.Event, error) {
	p := events.DeadLettered{
		OrderID: orderOf(d), EventID: d.EventID, EventType: d.EventType,
		Topic: d.Topic, Partition: d.Partition, Offset: d.Offset,
		Error: d.Error, Attempts: d.Attempts, FailedAt: d.FailedAt.UTC(),
	}
	p.Payload, p.PayloadBase64 = payload(d.Payload)
	key := string(d.Key)
	if key == "" || len(key) > 1000 || !isText(key) {
		key = "unknown"
	}
	ev, err := outbox.New(topic, "order", key, eventType, p)
	if err != nil {
		return ev, err
	}
	if len(ev.Payload) > outbox.MaxPayload {
		p.Payload, p.PayloadBase64, p.PayloadOmitted = nil, nil, true
		if ev, err = outbox.New(topic, "order", key, eventType, p); err != nil {
			return ev, err
		}
	}
	ev.Traceparent = wellFormed(d.Traceparent)
	return ev, nil
}

// payload is the original as JSON where it is, else as bytes.
func payload(original []byte) (json.RawMessage, []byte) {
	if utf8.Valid(original) && json.Valid(original) {
		return original, nil
	}
	return nil, original
}

// orderOf finds the order that a record is about: its key, or its order_id; empty if neither
// is an order's id.
func orderOf(d inbox.DeadLetter) string {
	if id, err := uuid.Parse(string(d.Key)); err == nil && len(d.Key) == 36 {
		return id.String()
	}
	var body struct {
		OrderID string `json:"order_id"`
	}
	if json.Unmarshal(d.Payload, &body) != nil {
		return ""
	}
	if id, err := uuid.Parse(body.OrderID); err == nil && len(body.OrderID) == 36 {
		return id.String()
	}
	return ""
}

// isText: PostgreSQL can hold it.
func isText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}
