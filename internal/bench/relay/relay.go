// Package relay is the rival of change data capture: a polling relay, which reads the outbox by
// SQL and produces to Kafka. It exists for the benchmark.
//
// [Config] describes both the best one that we can write and a naive one. The best one deletes a row
// when Kafka has acknowledged it, in the transaction that has locked it (FOR UPDATE SKIP LOCKED): so the
// primary key is an index of the unsent rows alone, and a delete writes less log than marking
// a row as sent, which writes the row and its index entries again. Measured side by side on
// the same schema. Dead index entries are passed by beginning the search a quarter of a second before the last row
// that was sent; a search a minute back once a second, and one from the very beginning every ten seconds, find what
// became visible later than that. Rows are read, produced as one pipelined batch, and deleted in two
// round trips. Its commits do not wait for the disk: a delete that is lost sends its row again, which may happen anyway.
//
// What it does not give, beside the cost of polling: rows are sent in the order of their ids, not of
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

// Config of a relay.
type Config struct {
	Pool    *pgxpool.Pool // on a database with an outbox
	Brokers []string
	// Every is the pause after a poll that found less than a full batch.
	Every time.Duration
	Batch int
	// Naive sends and deletes one row after the other, and waits for each.
	Naive bool
	Log   *slog.Logger
}

type row struct {
	id              [16]byte
	topic, key, typ string
	payload         []byte
	traceparent     *string
	created         time.Time
}

const (
	columns = `id, topic, aggregate_id, type, payload, traceparent, created_at`

	anyUnsent = `SELECT FROM outbox WHERE id > $1 LIMIT 1`

	takeRows = `DELETE FROM outbox WHERE id = ANY (ARRAY(
	SELECT id FROM outbox WHERE id > $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING ` + columns

	nextRows = `SELECT ` + columns + ` FROM outbox ORDER BY created_at LIMIT $1`
)

// Prepare makes a database fit for being polled: no slot keeps its log, and no delete logs the old row's key for
// one. It needs a superuser.
func Prepare(ctx context.Context, pool *pgxpool.Pool) error {
	for _, sql := range []string{
		`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`,
		`DO $$ DECLARE t regclass; BEGIN
			FOR t IN SELECT relid FROM pg_partition_tree('outbox') LOOP EXECUTE format('ALTER TABLE %s REPLICA IDENTITY NOTHING', t); END LOOP;
		END $$`,
	} {
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
		kgo.ProducerBatchCompression(kgo.Lz4Compression()),
		kgo.MaxBufferedRecords(max(10_000, 2*cfg.Batch)),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	r := &relay{cfg: cfg, kafka: client}
	idle := true
	for ctx.Err() == nil {
		n, err := r.poll(ctx, idle)
		if err != nil && ctx.Err() == nil {
			cfg.Log.Warn("relay: a batch failed; it is sent again", "error", err)
			n = 0
		}
		if idle = n == 0; n == cfg.Batch {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(cfg.Every):
		}
	}
	return nil
}

type relay struct {
	cfg   Config
	kafka *kgo.Client
	// The newest row that was sent, and when the search last began a minute back and at the very beginning.
	newest        time.Time
	looked, swept time.Time
}

func (r *relay) poll(ctx context.Context, idle bool) (int, error) {
	if r.cfg.Naive {
		return r.oneByOne(ctx)
	}
	from := r.from()
	if idle { // an empty poll is one cheap round trip
		tag, err := r.cfg.Pool.Exec(ctx, anyUnsent, from)
		if err != nil || tag.RowsAffected() == 0 {
			return 0, err
		}
	}
	return r.batch(ctx, from)
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

// batch sends up to a batch of rows in one transaction.
func (r *relay) batch(ctx context.Context, from [16]byte) (n int, err error) {
	err = r.cfg.Pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
		defer func() {
			if err != nil && !conn.Conn().IsClosed() {
				end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
				defer cancel()
				_, rollback := conn.Exec(end, "rollback")
				err = errors.Join(err, rollback)
			}
		}()
		var rows []row
		take := &pgx.Batch{}
		take.Queue("begin")
		take.Queue("set local synchronous_commit = off")
		take.Queue(takeRows, from, r.cfg.Batch).Query(func(result pgx.Rows) (err error) {
			rows, err = collect(result)
			return err
		})
		if err := conn.SendBatch(ctx, take).Close(); err != nil {
			return err
		}
		// RETURNING has no order of its own.
		slices.SortFunc(rows, func(a, b row) int { return bytes.Compare(a.id[:], b.id[:]) })
		n = len(rows)
		if n > 0 {
			records := make([]*kgo.Record, n)
			for i := range rows {
				records[i] = rows[i].record()
			}
			if err := r.kafka.ProduceSync(ctx, records...).FirstErr(); err != nil {
				return fmt.Errorf("produce: %w", err)
			}
			if at := idTime(rows[n-1].id); at.After(r.newest) {
				r.newest = at
			}
		}
		_, err = conn.Exec(ctx, "commit")
		return err
	})
	return n, err
}

// oneByOne is what is often written first.
func (r *relay) oneByOne(ctx context.Context) (int, error) {
	result, err := r.cfg.Pool.Query(ctx, nextRows, r.cfg.Batch)
	if err != nil {
		return 0, err
	}
	rows, err := collect(result)
	if err != nil {
		return 0, err
	}
	for i := range rows {
		if err := r.kafka.ProduceSync(ctx, rows[i].record()).FirstErr(); err != nil {
			return i, err
		}
		if _, err := r.cfg.Pool.Exec(ctx, `DELETE FROM outbox WHERE id = $1`, rows[i].id); err != nil {
			return i, err
		}
	}
	return 0, nil // it pauses also after a full batch
}

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
