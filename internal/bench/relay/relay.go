// Package relay is the rival of change data capture: a polling relay, which reads the outbox by
// SQL and produces to Kafka. It exists for the benchmark.
//
// [Delete] is the best that we can write. It deletes a row when Kafka has acknowledged it, in the transaction
// that has read it: so the primary key is an index of the unsent rows alone. It was chosen by the CPU time of
// PostgreSQL and the log bytes of a row, from its insert to its vacuum, in batches of 20 (of 1,000) rows, on
// the same schema and machine:
//
//	delete by ctid in the partition, one relay a database        16 (10) µs   370 B   Delete
//	the same with FOR UPDATE SKIP LOCKED                         15 (11) µs   424 B
//	delete by id through the partitioned table, SKIP LOCKED      18 (11) µs   424 B
//	sent flag, partial index on unsent rows, SKIP LOCKED         29 (16) µs   790 B   Flag
//	rows stay; what the last poll's snapshot did not see         30 (10) µs   312 B
//
// SKIP LOCKED lets several relays share a database, at the price of a log record a row, and of the order: an
// advisory lock in its place lets one work and the others wait. The last design must read again, with
// every poll, all rows of the time that a transaction may take.
//
// Dead index entries are passed by beginning the search a quarter of a second before the last row that was
// sent; a search a minute back once a second, and one from the very beginning every ten seconds, find what
// became visible later than that. A batch is produced as one pipelined request, between two round trips to the
// database. Commits of the relay do not wait for the disk: a delete that is lost sends its row again, which may happen
// anyway.
//
// [Notify] is Delete that is woken: a trigger sends a notification for each statement that writes into the outbox. That
// spares the polls of an idle system and the wait for the next one; where much is written it polls every 5 ms. PostgreSQL
// lets only one transaction of a whole server commit at a time if they have sent one, the flush of its log included (a lock
// that PreCommit_Notify takes), so who writes waits for all others who do.
//
// What a relay does not give, beside the cost of polling: rows are sent in the order of their ids, not of
// their commits; nothing can be sent again, because the rows are gone.
package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Design is how a relay works.
type Design string

const (
	// Delete is the best: see the package.
	Delete Design = "delete"
	// Notify is Delete, woken by NOTIFY; it polls besides, for what it was not woken for.
	Notify Design = "notify"
	// Flag marks rows as sent, has a partial index of those that are not, and locks with SKIP LOCKED.
	Flag Design = "flag"
	// Naive sends and deletes one row after the other, waits for each, and pauses also after a full batch.
	Naive Design = "naive"
)

// Config of a relay.
type Config struct {
	Design  Design
	Pool    *pgxpool.Pool // on a database with an outbox
	Brokers []string
	// Every is the time from one poll to the next, unless there was a full batch, or [Notify] is woken: then the next is at once, but not within 5 ms.
	Every time.Duration
	Batch int
	Log   *slog.Logger
}

// Prepare makes a database fit for being polled: no slot keeps its log, and no delete logs the old row's key for
// one. It needs a superuser.
func Prepare(ctx context.Context, pool *pgxpool.Pool, design Design) error {
	statements := []string{
		`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`,
		`DO $$ DECLARE t regclass; BEGIN
			FOR t IN SELECT relid FROM pg_partition_tree('outbox') LOOP EXECUTE format('ALTER TABLE %s REPLICA IDENTITY NOTHING', t); END LOOP;
		END $$`,
	}
	if design == Flag {
		statements = append(statements, `ALTER TABLE outbox ADD COLUMN sent boolean NOT NULL DEFAULT false`, `CREATE INDEX outbox_unsent ON outbox (id) WHERE NOT sent`)
	}
	if design == Notify {
		statements = append(statements,
			`CREATE FUNCTION outbox_wake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY outbox; RETURN NULL; END $$`,
			`CREATE TRIGGER wake AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION outbox_wake()`)
	}
	for _, sql := range statements {
		if _, err := pool.Exec(ctx, sql); err != nil {
			return fmt.Errorf("prepare the outbox for polling: %w", err)
		}
	}
	return nil
}

// Run relays until ctx is done, then returns nil. Faults are waited out.
func Run(ctx context.Context, cfg Config) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.NoCompression()), // as the connectors have it
		kgo.MaxBufferedRecords(max(10_000, 2*cfg.Batch)),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	for ctx.Err() == nil {
		err := cfg.Pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			r := &relay{cfg: cfg, kafka: client, conn: conn.Conn()}
			return r.loop(ctx)
		})
		if err != nil && ctx.Err() == nil {
			cfg.Log.Warn("relay: a batch failed; it is sent again", "error", err)
			sleep(ctx, 200*time.Millisecond)
		}
	}
	return nil
}

// relay is one connection's work.
type relay struct {
	cfg        Config
	kafka      *kgo.Client
	conn       *pgx.Conn
	partitions []partition
	// The newest row that was sent, and when the search last began a minute back and at the very beginning.
	newest        time.Time
	looked, swept time.Time
	idle          bool
}

// loop polls until something fails.
func (r *relay) loop(ctx context.Context) (err error) {
	defer func() {
		if !r.conn.IsClosed() { // it goes back to the pool: without a transaction, without the lock
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_, rollback := r.conn.Exec(end, "rollback")
			_, unlock := r.conn.Exec(end, "SELECT pg_advisory_unlock_all()")
			_, unlisten := r.conn.Exec(end, "UNLISTEN *")
			err = errors.Join(err, rollback, unlock, unlisten)
		}
	}()
	if r.cfg.Design != Naive {
		if _, err := r.conn.Exec(ctx, "SET synchronous_commit = off"); err != nil {
			return err
		}
	}
	for mine := r.cfg.Design != Delete && r.cfg.Design != Notify; !mine && ctx.Err() == nil; {
		if err := r.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtext('relay'))`).Scan(&mine); err != nil {
			return err
		}
		if !mine {
			sleep(ctx, time.Second)
		}
	}
	if r.cfg.Design == Notify {
		if _, err := r.conn.Exec(ctx, "LISTEN outbox"); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		begin := time.Now()
		full, err := r.poll(ctx)
		if err == nil && !full {
			err = r.wait(ctx, begin)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wokenEvery is how often a relay that is woken polls at most: each poll costs as much as that of another relay.
const wokenEvery = 5 * time.Millisecond

// wait ends when the next poll is due after one that began then, or when there is something to do.
func (r *relay) wait(ctx context.Context, begin time.Time) error {
	d := r.cfg.Every - time.Since(begin)
	if r.cfg.Design != Notify {
		sleep(ctx, d)
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	if _, err := r.conn.WaitForNotification(limited); err != nil {
		if limited.Err() != nil && !r.conn.IsClosed() { // the time is over
			return nil
		}
		return err
	}
	sleep(ctx, wokenEvery-time.Since(begin))
	cancel()
	for known := true; known; { // the others that are known already are answered by the same poll
		_, err := r.conn.WaitForNotification(limited)
		known = err == nil
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (r *relay) poll(ctx context.Context) (full bool, err error) {
	switch r.cfg.Design {
	case Naive:
		return false, r.oneByOne(ctx)
	case Flag:
		n, err := r.batch(ctx, r.idle, `SELECT FROM outbox WHERE NOT sent LIMIT 1`, `
UPDATE outbox SET sent = true WHERE NOT sent AND id = ANY (ARRAY(
	SELECT id FROM outbox WHERE NOT sent ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING `+columns, r.cfg.Batch)
		r.idle = n == 0
		return n == r.cfg.Batch, err
	}
	from := r.from()
	if r.partitions == nil || from == [16]byte{} {
		if r.partitions, err = partitions(ctx, r.conn); err != nil {
			return false, err
		}
	}
	sum := 0
	for _, p := range r.partitions {
		if !p.ends.After(idTime(from)) || p.begins.After(time.Now().Add(time.Second)) && from != [16]byte{} {
			continue
		}
		n, err := r.batch(ctx, r.idle, p.any, p.take, from, r.cfg.Batch)
		if err != nil || n == r.cfg.Batch {
			return true, err
		}
		sum += n
	}
	r.idle = sum == 0
	return false, nil
}

// from is where to search: rows become visible in another order than that of their ids, but seldom much later.
func (r *relay) from() (id [16]byte) {
	now := time.Now()
	at := r.newest.Add(-250 * time.Millisecond)
	switch {
	case now.Sub(r.swept) > 10*time.Second:
		r.swept, r.looked = now, now
		return id
	case now.Sub(r.looked) > time.Second || at.Before(now.Add(-time.Minute)):
		r.looked = now
		at = now.Add(-time.Minute)
	}
	for i, ms := 0, at.UnixMilli(); i < 6; i++ {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

// idTime is the time in an UUIDv7.
func idTime(id [16]byte) time.Time {
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

// partition is a day of the outbox.
type partition struct {
	begins, ends time.Time
	any, take    string // statements
}

// partitions are those of the outbox, oldest first.
func partitions(ctx context.Context, conn *pgx.Conn) (all []partition, err error) {
	rows, err := conn.Query(ctx, `SELECT relid::regclass::text, right(relid::regclass::text, 8) FROM pg_partition_tree('outbox') WHERE isleaf ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	var name, suffix string
	_, err = pgx.ForEachRow(rows, []any{&name, &suffix}, func() error {
		day, err := time.Parse("20060102", suffix)
		all = append(all, partition{
			begins: day, ends: day.AddDate(0, 0, 1),
			any: `SELECT FROM ` + name + ` WHERE id > $1 LIMIT 1`,
			take: `DELETE FROM ` + name + ` WHERE ctid = ANY (ARRAY(
	SELECT ctid FROM ` + name + ` WHERE id > $1 ORDER BY id LIMIT $2)) RETURNING ` + columns,
		})
		return err
	})
	return all, err
}

// batch sends up to a batch of rows in one transaction. take has one argument more than look: how many rows.
func (r *relay) batch(ctx context.Context, idle bool, look, take string, args ...any) (int, error) {
	if idle { // an empty poll is one cheap round trip
		tag, err := r.conn.Exec(ctx, look, args[:len(args)-1]...)
		if err != nil || tag.RowsAffected() == 0 {
			return 0, err
		}
	}
	var rows []row
	b := &pgx.Batch{}
	b.Queue("begin")
	b.Queue(take, args...).Query(func(result pgx.Rows) (err error) {
		rows, err = collect(result)
		return err
	})
	if err := r.conn.SendBatch(ctx, b).Close(); err != nil {
		return 0, err
	}
	if len(rows) > 0 {
		// RETURNING has no order of its own.
		slices.SortFunc(rows, func(a, b row) int { return bytes.Compare(a.id[:], b.id[:]) })
		records := make([]*kgo.Record, len(rows))
		for i := range rows {
			records[i] = rows[i].record()
		}
		if err := r.kafka.ProduceSync(ctx, records...).FirstErr(); err != nil {
			return 0, fmt.Errorf("produce: %w", err)
		}
	}
	if _, err := r.conn.Exec(ctx, "commit"); err != nil {
		return 0, err
	}
	if len(rows) > 0 {
		if at := idTime(rows[len(rows)-1].id); at.After(r.newest) {
			r.newest = at
		}
	}
	return len(rows), nil
}

// oneByOne is what is often written first.
func (r *relay) oneByOne(ctx context.Context) error {
	result, err := r.conn.Query(ctx, `SELECT `+columns+` FROM outbox ORDER BY created_at LIMIT $1`, r.cfg.Batch)
	if err != nil {
		return err
	}
	rows, err := collect(result)
	if err != nil {
		return err
	}
	for i := range rows {
		if err := r.kafka.ProduceSync(ctx, rows[i].record()).FirstErr(); err != nil {
			return err
		}
		if _, err := r.conn.Exec(ctx, `DELETE FROM outbox WHERE id = $1`, rows[i].id); err != nil {
			return err
		}
	}
	return nil
}

type row struct {
	id              [16]byte
	topic, key, typ string
	payload         []byte
	traceparent     *string
	created         time.Time
}

const columns = `id, topic, aggregate_id, type, payload, traceparent, created_at`

func collect(result pgx.Rows) (rows []row, err error) {
	var one row
	_, err = pgx.ForEachRow(result, []any{&one.id, &one.topic, &one.key, &one.typ, &one.payload, &one.traceparent, &one.created}, func() error {
		rows = append(rows, one)
		one.payload = nil // the next one has bytes of its own
		return nil
	})
	return rows, err
}

// record is what Debezium's EventRouter makes of the row.
func (r row) record() *kgo.Record {
	headers := []kgo.RecordHeader{{Key: "id", Value: []byte(uuid.UUID(r.id).String())}, {Key: "type", Value: []byte(r.typ)}}
	if r.traceparent != nil {
		headers = append(headers, kgo.RecordHeader{Key: "traceparent", Value: []byte(*r.traceparent)})
	}
	return &kgo.Record{Topic: r.topic, Key: []byte(r.key), Value: r.payload, Headers: headers, Timestamp: r.created}
}
