// Package outbox writes events in the transaction that made them true.
//
// A row in the table outbox becomes a Kafka record: Debezium reads the row from
// the write-ahead log and its EventRouter routes it to the row's topic. What is
// guaranteed:
//
//   - Atomic: the event leaves if and only if the transaction commits. There is
//     no second write that could fail.
//   - At least once: after a crash of Debezium, Connect or Kafka a record may come
//     again, with the same event id. Consumers deduplicate by it (package inbox).
//   - Order: the records of one aggregate arrive in the order in which their
//     transactions committed, and within a transaction in the order given to
//     [Write]. Between aggregates nothing is promised. What a new slot sends (after
//     one was lost) is in the order of the INSERTs, by the database's clock: the same,
//     if a transaction has locked its aggregate when it writes.
//
// What is not promised: that the transaction is already visible to other sessions
// when a consumer gets the event. It may come some milliseconds before.
//
// The table comes with [Migrations]. It is partitioned by the day in the id, so
// that retention drops partitions; see [PreparePartitions] and [DropPartitions]. Add a CHECK that lists the topics
// your database may write: one row with a topic that does not exist stalls the
// connector for ever, silently.
package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// MaxPayload is the largest payload in bytes. It stays below the default
// max.request.size of Kafka's producer (1 MiB), with room for key and headers.
const MaxPayload = 1_000_000

// maxText bounds what goes into a record beside its payload, each in bytes.
const maxText = 1000

// Event is a row of the outbox.
type Event struct {
	// ID identifies the event for ever; consumers deduplicate by it. It must be a
	// UUIDv7 of about now, as [NewID] makes it: its time decides the partition.
	ID uuid.UUID
	// Topic is where the record goes. It must exist in Kafka.
	Topic string
	// AggregateType names the kind of thing the event is about, for readers.
	AggregateType string
	// AggregateID is the record's key: events of one aggregate keep their order. 1000 bytes at most.
	AggregateID string
	// Type goes into the header "type". 1000 bytes at most.
	Type string
	// Payload is the record's value, UTF-8 text as it is; usually JSON.
	Payload []byte
	// Traceparent goes into the header of that name (W3C Trace Context); may be empty. 1000 bytes at most.
	Traceparent string
}

// NewID makes a UUIDv7 of now. Ids made by one process ascend, unless its clock is set back by more than a second.
func NewID() uuid.UUID { return notAhead(uuid.Must(uuid.NewV7()), time.Now()) }

// notAhead is id, with the time now if its own is more than a second ahead of that. Package uuid lets ids ascend
// from the latest time that it has seen: a clock that was ahead once would be in all ids until it is then.
func notAhead(id uuid.UUID, now time.Time) uuid.UUID {
	high := binary.BigEndian.Uint64(id[:8]) // 48 bits of milliseconds, 16 of others
	if ms := now.UnixMilli(); int64(high>>16) > ms+1000 {
		binary.BigEndian.PutUint64(id[:8], uint64(ms)<<16|high&0xffff)
	}
	return id
}

// New makes an event with a new id and payload as JSON.
func New(topic, aggregateType, aggregateID, eventType string, payload any) (Event, error) {
	text, err := json.Marshal(payload)
	if err != nil {
		return Event{}, fmt.Errorf("outbox: payload of %s: %w", eventType, err)
	}
	return Event{
		ID: NewID(), Topic: topic, AggregateType: aggregateType, AggregateID: aggregateID,
		Type: eventType, Payload: text,
	}, nil
}

// insert is one statement for any number of rows, so it is prepared once.
const insert = `
INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload, traceparent)
SELECT id, topic, aggregate_type, aggregate_id, type, payload, nullif(traceparent, '')
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
     AS u (id, topic, aggregate_type, aggregate_id, type, payload, traceparent)`

// Write inserts events, in this order, with one statement in tx. They leave when
// tx commits, and never if it does not. Make it the last statement of the
// transaction. An event that can never be sent (empty topic, payload over
// [MaxPayload], …) is an error before the database is asked, and tx stays usable.
func Write(ctx context.Context, tx pgx.Tx, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	args, err := columns(events)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, insert, args...); err != nil {
		return fmt.Errorf("outbox: write %d events: %w", len(events), err)
	}
	return nil
}

// Queue is [Write] for a pipeline: it adds the statement to b, which the caller
// sends inside a transaction of his own.
func Queue(b *pgx.Batch, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	args, err := columns(events)
	if err != nil {
		return err
	}
	b.Queue(insert, args...)
	return nil
}

func columns(events []Event) ([]any, error) {
	n := len(events)
	ids := make([][16]byte, n)
	text := make([]string, 6*n)
	topics, kinds, keys, types, payloads, traces := text[:n:n], text[n:2*n:2*n], text[2*n:3*n:3*n], text[3*n:4*n:4*n], text[4*n:5*n:5*n], text[5*n:]
	for i, e := range events {
		if err := e.validate(); err != nil {
			return nil, fmt.Errorf("outbox: event %d (%s, type %.100q): %w", i, e.ID, e.Type, err)
		}
		ids[i], topics[i], kinds[i], keys[i] = e.ID, e.Topic, e.AggregateType, e.AggregateID
		types[i], payloads[i], traces[i] = e.Type, string(e.Payload), e.Traceparent
	}
	return []any{ids, topics, kinds, keys, types, payloads, traces}, nil
}

func (e Event) validate() error {
	switch {
	case e.ID.Version() != 7:
		return errors.New("the id must be a UUIDv7: use outbox.NewID")
	case e.Topic == "":
		return errors.New("the topic is empty")
	case e.AggregateID == "" || len(e.AggregateID) > maxText:
		return fmt.Errorf("the aggregate id must have 1 to %d bytes, it has %d", maxText, len(e.AggregateID))
	case e.Type == "" || len(e.Type) > maxText:
		return fmt.Errorf("the type must have 1 to %d bytes, it has %d", maxText, len(e.Type))
	case len(e.Traceparent) > maxText:
		return fmt.Errorf("the traceparent has %d bytes, more than %d: leave it out, it is no trace context", len(e.Traceparent), maxText)
	case len(e.Payload) > MaxPayload:
		return fmt.Errorf("the payload has %d bytes, more than the %d that fit a record: send a reference instead", len(e.Payload), MaxPayload)
	case !utf8.Valid(e.Payload):
		return errors.New("the payload is not UTF-8 text: encode it, for example as JSON or base64")
	}
	for _, s := range []string{e.Topic, e.AggregateType, e.AggregateID, e.Type, e.Traceparent} {
		if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("%q is not text without NUL bytes", s)
		}
	}
	if bytes.IndexByte(e.Payload, 0) >= 0 {
		return errors.New("the payload has a NUL byte, which PostgreSQL's text cannot hold")
	}
	return nil
}

// Querier is what the partition functions need: a pool, a connection or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// PreparePartitions makes the partitions from yesterday to ahead days (1 to 400)
// from now, and returns how many were missing. Call it at least once a day: without
// a partition for today's ids every [Write] fails. It is safe in several processes
// at once and under load.
func PreparePartitions(ctx context.Context, db Querier, ahead int) (int, error) {
	var made int
	err := db.QueryRow(ctx, `SELECT event_partitions_prepare('outbox', 1, $1)`, ahead).Scan(&made)
	if err != nil {
		return 0, fmt.Errorf("outbox: prepare partitions: %w", err)
	}
	return made, nil
}

// PreparedUntil is the time of the first id that has no partition yet.
func PreparedUntil(ctx context.Context, db Querier) (time.Time, error) {
	_, until, err := Window(ctx, db)
	return until, err
}
