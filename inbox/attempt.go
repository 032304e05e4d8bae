package inbox

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
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
	lost   bool               // the connection was lost
	unable bool               // a handler's error was the database's
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
	silent   bool
	recorded bool // the inbox has its event's id
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

	// $1 is in milliseconds. What the role or the database sets for itself stays.
	boundIdle = `
SELECT set_config('idle_in_transaction_session_timeout', $1, true)
WHERE current_setting('idle_in_transaction_session_timeout') = '0'`

	deleteIDs = `DELETE FROM inbox WHERE event_id = ANY($1::uuid[])`

	selectBuried = `
SELECT topic, partition, "offset", recorded_at FROM dead_letters
WHERE (topic, partition, "offset", recorded_at) IN
      (SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::timestamptz[]))`

	// Only a commit that has written something waits for a synchronous standby. The one that wrote what is only repeated
	// now may have been interrupted while it waited. Connectors leave such messages out; the prefix is that of their heartbeats.
	awaitStandby = `SELECT pg_logical_emit_message(true, 'outbox-hb', '')`
)

func (a *attempt) run(ctx context.Context) error {
	return a.c.cfg.Pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
		a.began = true
		if a.c.cfg.Each != nil {
			err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return a.each(ctx, tx) })
		} else {
			err = a.batch(ctx, conn.Conn())
		}
		a.lost = conn.Conn().IsClosed()
		return err
	})
}

// recovered makes a panic of the caller's code an error of the whole attempt: what it left in memory cannot be trusted.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = refusal{fmt.Errorf("the handler panicked: %v", p)}
	}
}

// batch is the transaction in two round trips.
func (a *attempt) batch(ctx context.Context, conn *pgx.Conn) (err error) {
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
		return blame(ctx, conn, errorf("load", err))
	}
	// Decide does no I/O: no error of its can be a fault.
	if err := a.decide(func(ev Event) ([]outbox.Event, error) { return work.Decide(ev) }, func(error) bool { return false }); err != nil {
		return err
	}
	save := &pgx.Batch{}
	if work != nil && a.done > 0 {
		work.Save(save)
		for _, q := range save.QueuedQueries {
			if q.Fn != nil { // it would be asked after the commit
				return refusal{errors.New("inbox: Save queued a statement with a callback, which could refuse nothing any more: let SQL raise the error")}
			}
		}
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
	defer recovered(&err)
	load := &pgx.Batch{}
	a.queueRecognize(load)
	if err := tx.SendBatch(ctx, load).Close(); err != nil {
		return errorf("record ids", err)
	}
	err = a.decide(func(ev Event) ([]outbox.Event, error) {
		return nil, apart(ctx, tx, func(sp pgx.Tx) error { return a.c.cfg.Each(ctx, sp, ev) })
	}, func(err error) bool {
		// What the handler marks is the event's, whatever it looks like.
		return !IsPermanent(err) && isFault(blame(ctx, tx.Conn(), err)) || tx.Conn().IsClosed() && !isRefusal(err) || ctx.Err() != nil
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

// blame marks an error that the caller's code has brought, from decoding or from another service: it may look like one of the network,
// but says something about the database only if PostgreSQL has told it, or the transaction cannot go on.
func blame(ctx context.Context, conn *pgx.Conn, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) || conn.IsClosed() || ctx.Err() != nil {
		return err
	}
	return refusal{err}
}

// apart runs fn in a savepoint of tx, which fn may end itself. An error that is [undone] leaves open what of fn's work stands.
func apart(ctx context.Context, tx pgx.Tx, fn func(pgx.Tx) error) error {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	lent := &lentTx{Tx: savepoint}
	err = fn(lent)
	switch {
	case tx.Conn().IsClosed() && unencodable(err):
		return undone{refusal{err}}
	case tx.Conn().PgConn().IsBusy():
		return undone{errors.Join(err, errors.New("the handler left rows open: close them before it returns"))}
	case lent.broken != nil: // pgx holds it for ended, PostgreSQL may not
		return undone{errors.Join(err, lent.broken)}
	case err != nil && lent.committed:
		return undone{fmt.Errorf("the handler committed, then failed: %w", err)}
	case err != nil:
		if rollback := savepoint.Rollback(ctx); rollback != nil && !errors.Is(rollback, pgx.ErrTxClosed) {
			return undone{errors.Join(err, rollback)}
		}
		return err
	}
	if err := savepoint.Commit(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		return undone{err}
	}
	return nil
}

// unencodable tells whether pgx could not encode a value of a batch. It closes the connection then if it has queued statements before.
func unencodable(err error) bool {
	var batch pgx.ErrPreprocessingBatch
	return errors.As(err, &batch) && !isFault(err)
}

// lentTx remembers how its user has ended it.
type lentTx struct {
	pgx.Tx
	committed bool
	broken    error // it could not be ended, for want of time perhaps
}

func (t *lentTx) Commit(ctx context.Context) error {
	err := t.Tx.Commit(ctx)
	t.committed = t.committed || err == nil
	return t.ended(err)
}

func (t *lentTx) Rollback(ctx context.Context) error { return t.ended(t.Tx.Rollback(ctx)) }

func (t *lentTx) ended(err error) error {
	if err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		t.broken = errors.Join(t.broken, err)
	}
	return err
}

// undone is an error for which the whole attempt must be rolled back.
type undone struct{ error }

func (u undone) Unwrap() error { return u.error }

// queueRecognize queues what tells new records from repeated ones, and bounds how long PostgreSQL waits for this process, which
// may freeze or vanish: the ids are locked meanwhile.
func (a *attempt) queueRecognize(b *pgx.Batch) {
	if !a.c.idleBound {
		b.Queue(boundIdle, strconv.FormatInt(max(1, a.c.cfg.Timeout.Milliseconds()), 10))
	}
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
		case fault(err):
			a.unable = true
			return err
		case errors.As(err, &undo):
			return refusal{err}
		case IsPermanent(err):
			a.bury(it, err, it.failures+1)
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
	if a.repeated == len(a.items) {
		b.Queue(awaitStandby)
	}
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
	a.letters = append(a.letters, letter{silent: it.silent, recorded: it.hasID, DeadLetter: DeadLetter{
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
