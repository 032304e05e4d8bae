// Package inbox consumes events so that each has its effect once.
//
// Kafka delivers at least once, and a CDC pipeline repeats records after every
// crash. A [Consumer] takes what Kafka has, in batches, and runs each batch in one
// PostgreSQL transaction: the event ids go into the table inbox, the effect
// into the caller's tables, the answers into the outbox. What is guaranteed:
//
//   - Effect once: an event id that is in the inbox has had its effect; a repeated
//     record is skipped. Id, effect and answers commit together or not at all.
//   - Order: events with the same key, of one partition, are handled in the order
//     of the partition. An event that waits for its retry holds back those behind
//     it with the same key, and no others.
//   - Nothing is lost: offsets are marked after the commit, and never past an event
//     that is neither handled nor put aside as a dead letter.
//   - A fault is not a refusal: while the database cannot work (down, deadlock,
//     serialization, timeout, missing table or right) the consumer waits and
//     retries, for as long as it lasts, and stays in its group. It never drops or
//     puts aside a record for that.
//   - A record that can never work (no id, an id that is no UUIDv7, a payload that
//     Decode rejects, an error marked [Permanent]) becomes a dead letter. Any other
//     error of a handler is retried a bounded number of times first.
//
// What is not promised: order between partitions or topics; that an event's cause
// is already visible in the sender's database.
//
// The tables come with [Migrations], which build on those of package outbox. One
// inbox belongs to one consumer group (table inbox_group). An event older than the inbox's first
// partition cannot be proven new and becomes a dead letter. Call [PreparePartitions]
// at least once a day: without a partition for an event's id the consumer waits.
// docs/libraries.md has the rights that a service needs, and what a handler may do.
package inbox

import (
	"context"
	"errors"
	"time"

	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Event is a received record.
type Event struct {
	ID          uuid.UUID // header "id", a UUIDv7
	Type        string    // header "type"
	Key         string    // the record's key: the aggregate id
	Topic       string
	Partition   int32
	Offset      int64
	Timestamp   time.Time // when the outbox row was written
	Traceparent string    // header "traceparent", may be empty
	Payload     []byte
	// Body is what [Config.Decode] made of Payload.
	Body any
}

// Batch is the work of one transaction: load, decide, save. A value serves one
// attempt; a retry gets a new one.
//
// The transaction needs two round trips: the first begins, records the ids and runs
// what Load queued, the second runs what Save queued, writes the outbox rows and
// commits.
type Batch interface {
	// Load queues the statements that read and lock the rows the events may need,
	// with callbacks that keep the results. It runs before it is known which of the
	// events are new. Lock rows in the order of their keys, so that two instances
	// do not deadlock.
	Load(b *pgx.Batch)
	// Decide handles one new event against what Load brought, changes the loaded
	// state in memory, and returns the events to send. It does no I/O. When it
	// returns an error it must have changed nothing; the rest of the batch goes on.
	Decide(ev Event) ([]outbox.Event, error)
	// Save queues the statements that write the changed state, without callbacks:
	// they would run after the commit. What must be refused raises an error in SQL.
	Save(b *pgx.Batch)
}

// Each handles one event in a transaction that the whole batch shares; tx is a
// savepoint in it. It writes the events it sends with [outbox.Write] in tx. An error
// rolls back this event alone. It may commit tx or roll it back itself; if it
// commits and then fails, the whole batch is rolled back and the event is tried alone.
//
// An error is the event's, whatever it wraps, unless PostgreSQL cannot work, the
// connection of tx is lost (but for a value that pgx cannot encode in a batch) or ctx is done.
//
// It is the convenience beside [Batch]: simpler, and slower by the round trips
// that it makes for every event.
type Each func(ctx context.Context, tx pgx.Tx, ev Event) error

// Permanent marks err as one that no retry can mend: the event becomes a dead letter
// at once. In [Each] it is the event's then whatever it wraps, also an error of PostgreSQL that looks like a fault (a table
// that the payload names and that is missing), unless the connection is lost or ctx is done. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

type permanent struct{ err error }

func (p permanent) Error() string { return p.err.Error() }
func (p permanent) Unwrap() error { return p.err }

// IsPermanent tells whether err, or an error that it wraps, is marked [Permanent].
func IsPermanent(err error) bool {
	var p permanent
	return errors.As(err, &p)
}

// PreparePartitions makes the partitions that the inbox needs, from past days ago (or the day after the newest that is
// there, if that is longer ago) to ahead days from now, and returns how many were missing. Call it at least once a day:
// without a partition for an event's id the consumer waits. past must exceed outbox
// retention plus topic retention. Safe in several processes at once and under load.
func PreparePartitions(ctx context.Context, db outbox.Querier, past, ahead int) (int, error) {
	var made int
	err := db.QueryRow(ctx, `SELECT event_partitions_prepare('inbox', $1, $2)`, past, ahead).Scan(&made)
	if err != nil {
		return 0, errorf("prepare partitions", err)
	}
	return made, nil
}

// Window is the time that the inbox remembers: ids from since (included) to until
// (excluded) can be proven new or seen.
func Window(ctx context.Context, db outbox.Querier) (since, until time.Time, err error) {
	since, until, _, err = window(ctx, db)
	return since, until, err
}

// window is [Window], and the time by the database's clock: this machine's may be wrong by days.
func window(ctx context.Context, db outbox.Querier) (since, until, now time.Time, err error) {
	var s, u *time.Time
	if err := db.QueryRow(ctx, `SELECT since, until, clock_timestamp() FROM event_partitions_window('inbox')`).Scan(&s, &u, &now); err != nil {
		return since, until, now, errorf("partitions", err)
	}
	if s == nil || u == nil {
		return since, until, now, errNoPartition
	}
	return *s, *u, now, nil
}
