package inbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Status is the state of a dead letter. It starts [Open]; [Consumer.Redrive] and
// [Consumer.Discard] move it on, once.
type Status string

// The states of a dead letter.
const (
	Open      Status = "open"
	Redriven  Status = "redriven"
	Discarded Status = "discarded"
)

// DeadLetter is a record that could not be handled.
type DeadLetter struct {
	ID uuid.UUID // its own id, a UUIDv7
	// EventID is the header "id" as it was, valid or not; empty where there was none.
	EventID     string
	EventType   string
	Topic       string
	Partition   int32
	Offset      int64
	RecordedAt  time.Time // the record's timestamp
	Key         []byte
	Payload     []byte
	Traceparent string
	Error       string
	Attempts    int
	FailedAt    time.Time
	Status      Status
	// ResolvedAt, ResolvedBy and Reason say who redrove or discarded it, when and why.
	ResolvedAt *time.Time
	ResolvedBy *string
	Reason     *string
}

// DeadLetterFilter selects dead letters.
type DeadLetterFilter struct {
	Status    Status    // empty: any
	EventType string    // empty: any
	Topic     string    // empty: any
	After     uuid.UUID // only those with a later id; the zero id: from the first
	Limit     int       // 1 to 500; 0 means 50
}

// Errors of dead letters, to be tested with errors.Is.
var (
	ErrNoDeadLetter = errors.New("inbox: there is no dead letter with this id")
	ErrResolved     = errors.New("inbox: the dead letter is redriven or discarded already")
	ErrNoEvent      = errors.New("inbox: the dead letter is no event (no valid id, or a payload that is not understood): discard it")
	ErrTooOld       = errors.New("inbox: the event is older than the inbox remembers, it cannot be told whether it was handled already")
	ErrGroup        = errors.New("inbox: another group's")
	ErrHandled      = errors.New("inbox: the event has had its effect meanwhile, from another record with the same id: discard the dead letter")
)

const letterColumns = `id, event_id, event_type, topic, partition, "offset", recorded_at, key, payload, traceparent, error, attempts, failed_at`

// A record whose id was of the future is a dead letter; read again later, it can be handled, fail, and be one again: the same.
const insertLetters = `
INSERT INTO dead_letters (` + letterColumns + `, recorded)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::bigint[], $7::timestamptz[],
                     $8::bytea[], $9::bytea[], $10::text[], $11::text[], $12::integer[], $13::timestamptz[], $14::boolean[])
ON CONFLICT (topic, partition, "offset", recorded_at) DO UPDATE SET
	id = excluded.id, error = excluded.error, attempts = excluded.attempts, failed_at = excluded.failed_at, recorded = dead_letters.recorded OR excluded.recorded
WHERE dead_letters.status = 'open'`

func queueLetters(b *pgx.Batch, letters []letter) {
	n := len(letters)
	ids, eventIDs, types, topics := make([][16]byte, n), make([]string, n), make([]string, n), make([]string, n)
	partitions, offsets, recorded := make([]int32, n), make([]int64, n), make([]time.Time, n)
	keys, payloads, traces := make([][]byte, n), make([][]byte, n), make([]string, n)
	errs, attempts, failed, inInbox := make([]string, n), make([]int32, n), make([]time.Time, n), make([]bool, n)
	for i, d := range letters {
		ids[i], eventIDs[i], types[i], topics[i] = d.ID, d.EventID, d.EventType, d.Topic
		partitions[i], offsets[i], recorded[i] = d.Partition, d.Offset, d.RecordedAt
		keys[i], payloads[i], traces[i] = notNil(d.Key), notNil(d.Payload), d.Traceparent
		errs[i], attempts[i], failed[i], inInbox[i] = d.Error, int32(d.Attempts), d.FailedAt, d.recorded
	}
	b.Queue(insertLetters, ids, eventIDs, types, topics, partitions, offsets, recorded, keys, payloads, traces, errs, attempts, failed, inInbox)
}

// notNil: a record without key or value is kept as an empty one.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// DeadLetters lists dead letters in the order in which they were put aside.
func (c *Consumer) DeadLetters(ctx context.Context, f DeadLetterFilter) ([]DeadLetter, error) {
	if f.Limit == 0 {
		f.Limit = 50
	}
	if f.Limit < 1 || f.Limit > 500 {
		return nil, fmt.Errorf("inbox: a limit of %d is not between 1 and 500", f.Limit)
	}
	status := `($2 = '' OR status = $2)`
	if f.Status == Open { // a text of its own, so that it has the plan of its index: those that are resolved stay for ever
		status = `$2 <> '' AND status = 'open'`
	}
	rows, err := c.cfg.Pool.Query(ctx, `SELECT `+letterColumns+`, status, resolved_at, resolved_by, reason FROM dead_letters
		WHERE id > $1 AND `+status+` AND ($3 = '' OR event_type = $3) AND ($4 = '' OR topic = $4) ORDER BY id LIMIT $5`,
		f.After, string(f.Status), f.EventType, f.Topic, f.Limit)
	if err != nil {
		return nil, errorf("list dead letters", err)
	}
	letters, err := pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter])
	if err != nil {
		return nil, errorf("list dead letters", err)
	}
	return letters, nil
}

// lock reads an open dead letter and locks it for the rest of the transaction.
func lock(ctx context.Context, tx pgx.Tx, id uuid.UUID) (DeadLetter, error) {
	rows, err := tx.Query(ctx, `SELECT `+letterColumns+`, status, resolved_at, resolved_by, reason FROM dead_letters WHERE id = $1 FOR UPDATE`, id)
	if err != nil {
		return DeadLetter{}, err
	}
	d, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[DeadLetter])
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return d, ErrNoDeadLetter
	case err != nil:
		return d, err
	case d.Status != Open:
		return d, fmt.Errorf("%w: %s by %s at %s", ErrResolved, d.Status, *d.ResolvedBy, d.ResolvedAt.UTC().Format(time.RFC3339))
	}
	return d, nil
}

// resolve records the end of a dead letter.
func resolve(ctx context.Context, tx pgx.Tx, id uuid.UUID, status Status, by string, reason *string) error {
	_, err := tx.Exec(ctx, `UPDATE dead_letters SET status = $2, resolved_at = clock_timestamp(), resolved_by = $3, reason = $4 WHERE id = $1`,
		id, string(status), by, reason)
	return err
}

// Discard closes an open dead letter without effect. by says who decided, reason
// why; both are kept and must not be empty. Errors: [ErrNoDeadLetter], [ErrResolved].
func (c *Consumer) Discard(ctx context.Context, id uuid.UUID, by, reason string) error {
	if by == "" || reason == "" {
		return errors.New("inbox: to discard a dead letter say who decides and why")
	}
	by, reason = clean(by), clean(reason)
	err := pgx.BeginFunc(ctx, c.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := lock(ctx, tx, id); err != nil {
			return err
		}
		return resolve(ctx, tx, id, Discarded, by, &reason)
	})
	if err != nil {
		return fmt.Errorf("discard %s: %w", id, err)
	}
	return nil
}

// Redrive runs the handler on the stored record, with the event's own id and key, in one
// transaction that also closes the dead letter and writes the outbox rows. by says who
// decided. If the handler fails, its error is returned, and the dead letter stays open
// with one more attempt. Errors besides: [ErrNoDeadLetter], [ErrResolved],
// [ErrNoEvent], [ErrHandled], [ErrGroup], and [ErrTooOld] for what was that already when it was put aside: other letters
// can be redriven however old.
func (c *Consumer) Redrive(ctx context.Context, id uuid.UUID, by string) error {
	if by == "" {
		return errors.New("inbox: to redrive a dead letter say who decides")
	}
	found := false
	err := c.retryConflict(ctx, func() error {
		found = false
		return pgx.BeginFunc(ctx, c.cfg.Pool, func(tx pgx.Tx) error {
			d, err := lock(ctx, tx, id)
			if err != nil {
				return err
			}
			found = true
			if err := c.checkOwner(ctx, tx); err != nil {
				return err
			}
			if err := c.rerun(ctx, tx, d); err != nil {
				return err
			}
			return resolve(ctx, tx, id, Redriven, clean(by), nil)
		})
	})
	// Not where the handler did not run. At the commit too, where a constraint may be checked.
	refused := errors.Is(err, ErrNoEvent) || errors.Is(err, ErrTooOld) || errors.Is(err, ErrResolved) || errors.Is(err, ErrHandled) || errors.Is(err, ErrGroup)
	if found && err != nil && !refused && !isFault(err) {
		if _, uncounted := c.cfg.Pool.Exec(ctx, countFailure, id, clean(err.Error())); uncounted != nil {
			err = errors.Join(err, uncounted)
		}
	}
	if err != nil {
		return fmt.Errorf("redrive %s: %w", id, err)
	}
	return nil
}

const countFailure = `UPDATE dead_letters SET attempts = attempts + 1, error = $2 WHERE id = $1 AND status = 'open'`

// rerun handles the event of d in tx, which is to be rolled back if that fails.
func (c *Consumer) rerun(ctx context.Context, tx pgx.Tx, d DeadLetter) (err error) {
	defer recovered(&err)
	it := parse(recordOf(d), c.cfg.Decode)
	if it.rejected != nil {
		return fmt.Errorf("%w: %w", ErrNoEvent, it.rejected)
	}
	since, until, now, err := window(ctx, tx)
	if err != nil {
		return err
	}
	// An id that the inbox could not judge then is not in it, and another record with it may have been handled since.
	var recorded, known bool
	// Of older letters, of which it is not known: not those that were of the future, nor with a NUL byte in the type.
	if err := tx.QueryRow(ctx, `SELECT coalesce(recorded, $2), recorded IS NOT NULL FROM dead_letters WHERE id = $1`, d.ID,
		!idTime(it.event.ID).After(d.FailedAt.Add(maxSkew)) && !strings.ContainsRune(d.EventType, '\uFFFD')).Scan(&recorded, &known); err != nil {
		return err
	}
	ids := [][16]byte{it.event.ID}
	switch rejected, fault := judge(it.event.ID, since, until, later(now, c.now())); {
	case errors.Is(rejected, ErrTooOld) && recorded && known:
		ids = nil // it was in the inbox from the first, so no other record had its effect; those that still come are too old
	case rejected != nil || fault != nil:
		return errors.Join(rejected, fault)
	}
	if c.cfg.Each != nil {
		if tag, err := tx.Exec(ctx, insertIDs, ids); err != nil || tag.RowsAffected() == 0 && !recorded {
			return cmp.Or(err, ErrHandled)
		}
		err := apart(ctx, tx, func(sp pgx.Tx) error { return c.cfg.Each(ctx, sp, it.event) })
		if err != nil {
			err = blame(ctx, tx.Conn(), err)
		}
		return err
	}
	work := c.cfg.Batch([]Event{it.event})
	load := &pgx.Batch{}
	load.Queue(insertIDs, ids).Exec(func(tag pgconn.CommandTag) error {
		if tag.RowsAffected() == 0 && !recorded {
			return ErrHandled
		}
		return nil
	})
	work.Load(load)
	if err := tx.SendBatch(ctx, load).Close(); err != nil {
		return blame(ctx, tx.Conn(), err)
	}
	out, err := work.Decide(it.event)
	if err != nil {
		return refusal{err}
	}
	save := &pgx.Batch{}
	work.Save(save)
	if err := outbox.Queue(save, out...); err != nil {
		return err
	}
	if save.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, save).Close()
}

func recordOf(d DeadLetter) *kgo.Record {
	r := &kgo.Record{
		Topic: d.Topic, Partition: d.Partition, Offset: d.Offset, Timestamp: d.RecordedAt,
		Key: d.Key, Value: d.Payload,
	}
	for key, value := range map[string]string{"id": d.EventID, "type": d.EventType, "traceparent": d.Traceparent} {
		if value != "" {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
		}
	}
	return r
}

// isConflict: another transaction made the same row first; the next try sees it.
func isConflict(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "23505" || pg.Code[:2] == "40")
}

func (c *Consumer) retryConflict(ctx context.Context, do func() error) (err error) {
	for range c.cfg.MaxAttempts {
		if err = do(); err == nil || !isConflict(err) || ctx.Err() != nil {
			return err
		}
	}
	return err
}
