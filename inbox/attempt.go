package inbox

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// attempt is one transaction over some items. It changes no item before its commit:
// what becomes of them is kept here and applied by settle.
type attempt struct {
	c     *Consumer
	items []*item

	began  bool               // it has a connection
	fresh  map[uuid.UUID]bool // ids that this transaction put into the inbox
	buried map[recordKey]bool // records without a usable id that are dead letters already

	done, repeated int
	failed         []failure
	undo           [][16]byte // ids to take out of the inbox again: their events failed
	letters        []letter
	out            []outbox.Event
	kept           []*item // not done: failed, or held back by one that failed
}

// letter is a dead letter to be written, and announced unless it is silent.
type letter struct {
	DeadLetter
	silent bool
}

type failure struct {
	item *item
	err  error
}

// recordKey identifies a record also across a topic that was deleted and made anew.
type recordKey struct {
	topic     string
	partition int32
	offset    int64
	at        int64 // microseconds
}

func keyOf(topic string, partition int32, offset int64, at time.Time) recordKey {
	return recordKey{topic, partition, offset, at.UnixMicro()}
}

const (
	// The ids are sorted, so that two instances that record the same ids wait for
	// each other in one direction only.
	insertIDs = `INSERT INTO inbox (event_id) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING RETURNING event_id`

	deleteIDs = `DELETE FROM inbox WHERE event_id = ANY($1::uuid[])`

	selectBuried = `
SELECT topic, partition, "offset", recorded_at FROM dead_letters
WHERE (topic, partition, "offset", recorded_at) IN
      (SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::timestamptz[]))`
)

func (a *attempt) run(ctx context.Context) error {
	if a.c.cfg.Each != nil {
		return pgx.BeginFunc(ctx, a.c.cfg.Pool, func(tx pgx.Tx) error { return a.each(ctx, tx) })
	}
	return a.c.cfg.Pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return a.batch(ctx, conn.Conn()) })
}

// recovered makes a panic of the caller's code an error of the whole attempt: what it left in memory cannot be trusted.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = refusal{fmt.Errorf("the handler panicked: %v", p)}
	}
}

// batch is the transaction in two round trips.
func (a *attempt) batch(ctx context.Context, conn *pgx.Conn) (err error) {
	a.began = true
	defer func() {
		// A connection that a panic left in the middle of something is not put back into the pool.
		if err != nil && !conn.IsClosed() && !conn.PgConn().IsBusy() {
			if _, rollback := conn.Exec(ctx, "rollback"); rollback != nil {
				err = errors.Join(err, rollback)
			}
		}
	}()
	defer recovered(&err)
	load := &pgx.Batch{}
	load.Queue("begin")
	a.queueRecognize(load)
	var events []Event
	for _, it := range a.items {
		if it.rejected == nil {
			events = append(events, it.event)
		}
	}
	var work Batch
	if len(events) > 0 {
		work = a.c.cfg.Batch(events)
		work.Load(load)
	}
	if err := conn.SendBatch(ctx, load).Close(); err != nil {
		return errorf("load", err)
	}
	// Decide does no I/O: no error of its can be a fault.
	if err := a.decide(func(ev Event) ([]outbox.Event, error) { return work.Decide(ev) }, func(error) bool { return false }); err != nil {
		return err
	}
	save := &pgx.Batch{}
	if work != nil && a.done > 0 {
		work.Save(save)
	}
	if err := a.queueOutcome(save); err != nil {
		return err
	}
	save.Queue("commit").Exec(committed)
	if err := conn.SendBatch(ctx, save).Close(); err != nil {
		return errorf("save", err)
	}
	return nil
}

// each is the transaction with a savepoint for every event.
func (a *attempt) each(ctx context.Context, tx pgx.Tx) (err error) {
	a.began = true
	defer recovered(&err)
	load := &pgx.Batch{}
	a.queueRecognize(load)
	if err := tx.SendBatch(ctx, load).Close(); err != nil {
		return errorf("record ids", err)
	}
	err = a.decide(func(ev Event) ([]outbox.Event, error) {
		return nil, apart(ctx, tx, func(sp pgx.Tx) error { return a.c.cfg.Each(ctx, sp, ev) })
	}, func(err error) bool {
		var pg *pgconn.PgError
		if errors.As(err, &pg) {
			return isFault(err)
		}
		// An error of the handler's own, from decoding or from another service, looks like one of the network. It says something
		// about the database only if this transaction cannot go on.
		return tx.Conn().IsClosed() || ctx.Err() != nil
	})
	if err != nil {
		return err
	}
	save := &pgx.Batch{}
	if err := a.queueOutcome(save); err != nil {
		return err
	}
	if save.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, save).Close(); err != nil {
		return errorf("save", err)
	}
	return nil
}

// apart runs fn in a savepoint of tx, which fn may end itself.
func apart(ctx context.Context, tx pgx.Tx, fn func(pgx.Tx) error) error {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	lent := &lentTx{Tx: savepoint}
	if err := fn(lent); err != nil {
		if lent.committed {
			return undone{fmt.Errorf("the handler committed, then failed: %w", err)}
		}
		if rollback := savepoint.Rollback(ctx); rollback != nil && !errors.Is(rollback, pgx.ErrTxClosed) {
			err = errors.Join(err, rollback)
		}
		return err
	}
	if err := savepoint.Commit(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		return err
	}
	return nil
}

// lentTx remembers that its user has committed: then what was done cannot be undone alone.
type lentTx struct {
	pgx.Tx
	committed bool
}

func (t *lentTx) Commit(ctx context.Context) error {
	err := t.Tx.Commit(ctx)
	t.committed = t.committed || err == nil
	return err
}

// undone is an error for which the whole attempt must be rolled back.
type undone struct{ error }

func (u undone) Unwrap() error { return u.error }

// queueRecognize queues what tells new records from repeated ones.
func (a *attempt) queueRecognize(b *pgx.Batch) {
	a.fresh, a.buried = map[uuid.UUID]bool{}, map[recordKey]bool{}
	var ids [][16]byte
	var strangers []*item
	for _, it := range a.items {
		if it.hasID {
			ids = append(ids, it.event.ID)
		} else {
			strangers = append(strangers, it)
		}
	}
	if len(ids) > 0 {
		slices.SortFunc(ids, func(x, y [16]byte) int { return bytes.Compare(x[:], y[:]) })
		b.Queue(insertIDs, ids).Query(func(rows pgx.Rows) error {
			var id [16]byte
			_, err := pgx.ForEachRow(rows, []any{&id}, func() error {
				a.fresh[id] = true
				return nil
			})
			return err
		})
	}
	if len(strangers) > 0 {
		var topics []string
		var partitions []int32
		var offsets []int64
		var times []time.Time
		for _, it := range strangers {
			topics, partitions = append(topics, it.event.Topic), append(partitions, it.event.Partition)
			offsets, times = append(offsets, it.event.Offset), append(times, it.event.Timestamp)
		}
		b.Queue(selectBuried, topics, partitions, offsets, times).Query(func(rows pgx.Rows) error {
			var topic string
			var partition int32
			var offset int64
			var at time.Time
			_, err := pgx.ForEachRow(rows, []any{&topic, &partition, &offset, &at}, func() error {
				a.buried[keyOf(topic, partition, offset, at)] = true
				return nil
			})
			return err
		})
	}
}

// decide goes through the items in order and sorts them by what became of them. fault tells which errors of handle say
// nothing about the event.
func (a *attempt) decide(handle func(Event) ([]outbox.Event, error), fault func(error) bool) error {
	held := map[holdKey]bool{}
	for _, it := range a.items {
		ev := it.event
		if it.hasID {
			if !a.fresh[ev.ID] {
				a.repeated++
				continue
			}
		} else if a.buried[keyOf(ev.Topic, ev.Partition, ev.Offset, ev.Timestamp)] {
			a.repeated++
			continue
		}
		delete(a.fresh, ev.ID) // the same id again in this batch is a repetition
		key := holdKey{partition{ev.Topic, ev.Partition}, ev.Key}
		if held[key] && it.rejected == nil && it.record.Key != nil {
			a.keep(it)
			continue
		}
		if it.rejected != nil {
			a.bury(it, it.rejected, it.failures)
			continue
		}
		out, err := handle(ev)
		var undo undone
		switch {
		case err == nil:
			a.done++
			a.out = append(a.out, out...)
		case errors.As(err, &undo):
			return refusal{err}
		case IsPermanent(err):
			a.bury(it, err, it.failures+1)
		case fault(err):
			return err
		default:
			held[key] = true
			a.failed = append(a.failed, failure{it, err})
			a.keep(it)
		}
	}
	return nil
}

type holdKey struct {
	partition partition
	key       string
}

// keep leaves an item for a later transaction, which must find its id new.
func (a *attempt) keep(it *item) {
	a.kept = append(a.kept, it)
	if it.hasID {
		a.undo = append(a.undo, it.event.ID)
	}
}

// queueOutcome queues what the transaction writes beside the handler's own
// statements. The outbox rows come last.
func (a *attempt) queueOutcome(b *pgx.Batch) error {
	if len(a.undo) > 0 {
		b.Queue(deleteIDs, a.undo)
	}
	if len(a.letters) > 0 {
		queueLetters(b, a.letters)
		for _, d := range a.letters {
			if a.c.cfg.DeadLetter == nil || d.silent {
				continue
			}
			ev, err := a.c.cfg.DeadLetter(d.DeadLetter)
			if err != nil {
				return refusal{errorf("announce a dead letter", err)}
			}
			a.out = append(a.out, ev)
		}
	}
	return outbox.Queue(b, a.out...)
}

// settle applies the outcome to the items, after the commit.
func (a *attempt) settle() {
	kept := make(map[*item]bool, len(a.kept))
	for _, it := range a.kept {
		kept[it] = true
	}
	for _, it := range a.items {
		if !kept[it] {
			a.c.queue.finish(it)
		}
	}
	for _, f := range a.failed {
		a.c.fail(f.item, f.err)
	}
	for _, d := range a.letters {
		a.c.cfg.Logger.Warn("inbox: dead letter", "id", d.ID, "event", d.EventID, "type", d.EventType, "topic", d.Topic,
			"partition", d.Partition, "offset", d.Offset, "attempts", d.Attempts, "error", d.Error)
	}
}

func (a *attempt) bury(it *item, err error, attempts int) {
	a.letters = append(a.letters, letter{silent: it.silent, DeadLetter: DeadLetter{
		ID: outbox.NewID(), EventID: header(it.record, "id"), EventType: header(it.record, "type"),
		Topic: it.event.Topic, Partition: it.event.Partition, Offset: it.event.Offset, RecordedAt: it.event.Timestamp,
		Key: it.record.Key, Payload: it.record.Value, Traceparent: header(it.record, "traceparent"),
		Error: clean(err.Error()), Attempts: cmp.Or(attempts, 1), FailedAt: a.c.now().UTC(), Status: Open,
	}})
}

// committed fails where the server answered COMMIT with ROLLBACK.
func committed(tag pgconn.CommandTag) error {
	if tag.String() != "COMMIT" {
		return fmt.Errorf("commit answered %s: %w", tag, pgx.ErrTxCommitRollback)
	}
	return nil
}
