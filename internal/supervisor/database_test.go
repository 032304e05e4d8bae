package supervisor_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/supervisor"
	"outboxsaga/internal/system"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
)

// These tests need databases only: Kafka and Connect do not answer.

func database(t *testing.T) (address string, pool *pgxpool.Pool) {
	t.Helper()
	address = stacktest.Database(t, system.SharedMigrations()...)
	return address, poolOf(t, address)
}

func poolOf(t *testing.T, address string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func newSupervisor(t *testing.T, cfg supervisor.Config) *supervisor.Supervisor {
	t.Helper()
	cfg.Workers, cfg.Brokers = []string{"http://127.0.0.1:1"}, []string{"127.0.0.1:1"}
	s, err := supervisor.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// An outbox of 60,000 events in 50 minutes is more than a look reads.
func TestUnseenOfAFullHour(t *testing.T) {
	t.Parallel()
	_, from := database(t)
	_, to := database(t)
	exec(t, from, `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload)
		SELECT overlay(uuidv7()::text placing left(uuidv7_floor(now() - make_interval(secs => 4 + n * 0.05))::text, 13) from 1 for 13)::uuid, 'events', 'x', 'x', 'x', '{}'
		FROM generate_series(1, 60000) n`)
	rows, err := from.Query(t.Context(), `SELECT id FROM outbox ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil || len(ids) != 60000 {
		t.Fatal(len(ids), err)
	}
	handled := func(ids []uuid.UUID) {
		t.Helper()
		exec(t, to, `INSERT INTO inbox (event_id) SELECT unnest($1::uuid[])`, ids)
	}
	fresh := func() *supervisor.Supervisor {
		return newSupervisor(t, supervisor.Config{
			Pipelines: []supervisor.Pipeline{{Name: "a", DB: from}, {Name: "b", DB: to}},
			Consumer:  func(string) string { return "b" },
		})
	}
	handled(ids[:48000])
	t.Run("a flow that stands still for 10 minutes", func(t *testing.T) {
		f := fresh().Look(t.Context()).Pipelines["a"]
		if len(f.Unseen) < 10_000 || f.Unseen[0].ID != ids[48000] {
			t.Errorf("%d unseen, oldest for %s, want 10,000 or more, the oldest %s", len(f.Unseen), f.Oldest(time.Now()), ids[48000])
		}
	})
	handled(ids[48000:52000])
	t.Run("fewer than are kept are counted", func(t *testing.T) {
		f := fresh().Look(t.Context()).Pipelines["a"]
		if len(f.Unseen) != 8000 || f.Unseen[0].ID != ids[52000] {
			t.Errorf("%d unseen, oldest for %s, want 8,000, the oldest %s", len(f.Unseen), f.Oldest(time.Now()), ids[52000])
		}
	})
	handled(ids[52000:])
	lost := ids[30000]
	exec(t, to, `DELETE FROM inbox WHERE event_id = $1`, lost)
	t.Run("one that is lost in the middle is found by and by", func(t *testing.T) {
		s := fresh()
		for range 10 {
			f := s.Look(t.Context())
			if unseen := f.Pipelines["a"].Unseen; len(unseen) == 1 && unseen[0].ID == lost {
				exec(t, from, `DELETE FROM outbox WHERE id = $1`, lost)
				if unseen := s.Look(t.Context()).Pipelines["a"].Unseen; len(unseen) != 0 {
					t.Errorf("its row is gone, and it is waited for: %+v", unseen)
				}
				return
			} else if len(unseen) > 0 {
				t.Fatalf("%d unseen", len(unseen))
			}
		}
		t.Error("it is not found")
	})
}

// next is the transaction that begins next.
func next(t *testing.T, p supervisor.Pipeline) int64 {
	t.Helper()
	xid, err := supervisor.Next(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return xid
}

// What the inboxes have of the time before a topic was made anew needs not be sent again: when they have all of it.
func TestOlderEvents(t *testing.T) {
	t.Parallel()
	_, from := database(t)
	_, to := database(t)
	write := func(topic string, n int) (ids []uuid.UUID) {
		t.Helper()
		rows, err := from.Query(t.Context(), `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) SELECT uuidv7(), $1, 'x', 'x', 'x', '{}' FROM generate_series(1, $2) RETURNING id`, topic, n)
		if err == nil {
			ids, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		}
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	p := supervisor.Pipeline{Name: "a", DB: from}
	s := newSupervisor(t, supervisor.Config{
		Pipelines: []supervisor.Pipeline{p, {Name: "b", DB: to}},
		Consumer: func(topic string) string {
			return map[string]string{"events": "b", "others": "b", "strange": "c"}[topic]
		},
	})
	var since map[string]int64
	knows := func(when, topic string, of int64) {
		t.Helper()
		if since[topic] != of {
			t.Errorf("%s: of %s something is known since %d, not %d", when, topic, since[topic], of)
		}
	}
	walk := func(n int) {
		t.Helper()
		for range n {
			var err error
			if since, err = s.Walk(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
	}
	old := write("events", 25_000) // more than one look reads
	others := write("others", 10)
	write("people", 10)
	write("strange", 10)
	of := next(t, p)
	for range 5 { // what is open now is not of that time
		write("people", 1)
	}
	write("events", 100) // still under way
	handled := func(ids ...uuid.UUID) { exec(t, to, `INSERT INTO inbox (event_id) SELECT unnest($1::uuid[])`, ids) }
	handled(old[:15_000]...)
	handled(others...)
	topics := map[string]int64{"events": of, "others": of, "people": of, "strange": of}

	s.Topics("a", topics, of)
	walk(5)
	knows("events are in no inbox", "events", of)
	knows("of another topic they all are", "others", supervisor.Always)
	handled(old[15_000])
	walk(2)
	knows("the next one is in no inbox", "events", of)
	handled(old[15_001:]...)
	s.Topics("a", topics, of-1)
	walk(5)
	knows("a transaction of that time is open", "events", of)
	s.Topics("a", topics, of)
	walk(1)
	knows("that was not all", "events", of)
	walk(2)
	knows("the inbox has all", "events", supervisor.Always)
	knows("no inbox takes them", "people", of)
	knows("an inbox takes them that is not looked into", "strange", of)
	s.Topics("a", map[string]int64{"events": supervisor.Later}, next(t, p))
	walk(5)
	knows("the topic was found just now", "events", supervisor.Later)
}

// The next transaction is after all that were begun, also those that have not ended.
func TestNextTransaction(t *testing.T) {
	_, pool := database(t)
	var open, ended int64
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if err := pool.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&ended); err != nil {
		t.Fatal(err)
	}
	if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&open); err != nil {
		t.Fatal(err)
	}
	if xid := next(t, supervisor.Pipeline{Name: "a", DB: pool}); xid <= open || open <= ended {
		t.Errorf("the next transaction is %d: %d is open", xid, open)
	}
}

// What the supervisor that acted before has kept is known to the next one, but for what is so no more.
func TestKept(t *testing.T) {
	_, pool := database(t)
	p := supervisor.Pipeline{Name: "a", DB: pool}
	fresh := func() *supervisor.Supervisor {
		return newSupervisor(t, supervisor.Config{Pipelines: []supervisor.Pipeline{p}})
	}
	exec(t, pool, `SELECT pg_current_xact_id()`)
	at := next(t, p)
	for name, c := range map[string]struct {
		published bool
		id        string
		before    int64
		since     bool // what was kept of the topic is known
	}{
		"all":                             {true, "id", at, true},
		"its topic was made anew":         {true, "other", at, false},
		"it was not published when first": {false, "id", 0, false},
	} {
		if err := supervisor.Tell(t.Context(), fresh(), p, at, 5, "id"); err != nil {
			t.Fatal(err)
		}
		before, since, err := supervisor.Known(t.Context(), fresh(), p, c.published, c.id)
		if err != nil || before != c.before || (since == 5) != c.since {
			t.Errorf("%s: known before %d, not %d; since %d, %v", name, before, c.before, since, err)
		}
	}
}

// reader reads a slot, on a connection of its own.
type reader struct{ conn *pgconn.PgConn }

// newReader begins to read a slot.
func newReader(ctx context.Context, address, slot string) (*reader, error) {
	conn, err := pgconn.Connect(ctx, address+"&replication=database")
	if err != nil {
		return nil, err
	}
	conn.Frontend().SendQuery(&pgproto3.Query{String: fmt.Sprintf(`START_REPLICATION SLOT %s LOGICAL 0/0 (proto_version '1', publication_names 'outbox_pub')`, slot)})
	err = conn.Frontend().Flush()
	for err == nil {
		var message pgproto3.BackendMessage
		if message, err = conn.ReceiveMessage(ctx); err != nil {
			break
		}
		switch m := message.(type) {
		case *pgproto3.CopyBothResponse:
			return &reader{conn}, nil
		case *pgproto3.ErrorResponse:
			err = pgconn.ErrorResponseToPgError(m)
		}
	}
	return nil, errors.Join(err, conn.Close(ctx))
}

func (r *reader) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = r.conn.Close(ctx)
}

// say confirms nothing, at a time of the reader's clock.
func (r *reader) say(at time.Time) error {
	status := make([]byte, 34) // 'r', three positions, the time since 2000 in microseconds, no answer is asked for
	status[0] = 'r'
	binary.BigEndian.PutUint64(status[25:], uint64(at.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds()))
	r.conn.Frontend().Send(&pgproto3.CopyData{Data: status})
	return r.conn.Frontend().Flush()
}

// A slot that is gone is noticed between two looks, once.
func TestSlotGone(t *testing.T) {
	_, pool := database(t)
	slot := fmt.Sprintf("gone_%d", time.Now().UnixNano())
	exec(t, pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	s := newSupervisor(t, supervisor.Config{Pipelines: []supervisor.Pipeline{{Name: "a", Slot: slot, DB: pool}}})
	before := s.Look(t.Context())
	if s.SlotGone(t.Context(), before) {
		t.Error("it is there")
	}
	exec(t, pool, `SELECT pg_drop_replication_slot($1)`, slot)
	if !s.SlotGone(t.Context(), before) {
		t.Error("it is gone, and was there at the last look")
	}
	if s.SlotGone(t.Context(), s.Look(t.Context())) {
		t.Error("the last look has found it gone")
	}
}

// The clock of a slot's reader may be wrong by hours: what counts is that it speaks.
func TestSilenceByOurOwnClock(t *testing.T) {
	address, pool := database(t)
	slot := fmt.Sprintf("silence_%d", time.Now().UnixNano())
	exec(t, pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	r, err := newReader(t.Context(), address, slot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.close()
		_, _ = pool.Exec(context.Background(), `SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, slot)
		if _, err := pool.Exec(context.Background(), `SELECT pg_drop_replication_slot($1)`, slot); err != nil {
			t.Error(err)
		}
	})
	s := newSupervisor(t, supervisor.Config{Pipelines: []supervisor.Pipeline{{Name: "a", Slot: slot, DB: pool}}})
	silence := func() time.Duration {
		t.Helper()
		f := s.Look(t.Context())
		if p := f.Pipelines["a"]; p.Slot != nil && p.Slot.Silence != nil {
			return *p.Slot.Silence
		}
		t.Fatal(f.Unknown)
		return 0
	}
	for _, skew := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		for range 3 {
			before := time.Now()
			if err := r.say(before.Add(skew)); err != nil {
				t.Fatal(err)
			}
			var reply time.Time
			for end := before.Add(30 * time.Second); reply.Sub(before.Add(skew)).Abs() > time.Millisecond; time.Sleep(10 * time.Millisecond) {
				_ = pool.QueryRow(t.Context(), `SELECT coalesce(reply_time, '-infinity') FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = $1`, slot).Scan(&reply)
				if time.Now().After(end) {
					t.Fatal("PostgreSQL has not heard it")
				}
			}
			if d := silence(); d != 0 {
				t.Errorf("its clock is wrong by %s: %s after it spoke it is silent for %s", skew, time.Since(before), d)
			}
		}
		a := silence()
		time.Sleep(600 * time.Millisecond)
		if b := silence(); a <= 0 || b < a+500*time.Millisecond {
			t.Errorf("its clock is wrong by %s: it is silent for %s, later for %s", skew, a, b)
		}
	}
}

// A supervisor that cannot log in is not ready, and says so once.
func TestAWrongSetUpIsNotReady(t *testing.T) {
	address, pool := database(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path += "_late"
	var log logged
	s := newSupervisor(t, supervisor.Config{
		Pipelines: []supervisor.Pipeline{{Name: "a", DB: poolOf(t, u.String())}}, Every: 100 * time.Millisecond, Log: log.logger(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { // before the pools are closed
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	until(t, "it says what does not answer", 30*time.Second, func() bool { return log.count("no answer", "the lock's database") > 0 })
	time.Sleep(time.Second)
	if n := log.count("no answer", "the lock's database"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Error(err)
	}
	name := pgx.Identifier{strings.TrimPrefix(u.Path, "/")}.Sanitize()
	exec(t, pool, `CREATE DATABASE `+name)
	t.Cleanup(func() { _, _ = pool.Exec(context.Background(), `DROP DATABASE `+name+` WITH (FORCE)`) })
	until(t, "it acts", 30*time.Second, s.Leads)
	until(t, "it says that it is answered", 30*time.Second, func() bool { return log.count("it answers again", "the lock's database") == 1 })
	until(t, "it says what else does not answer", 30*time.Second, func() bool { return log.count("no answer", "Kafka Connect") > 0 })
	if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "Kafka Connect") {
		t.Error(err)
	}
}

// The lock is kept while an act takes longer than PostgreSQL lets its session idle.
func TestLongActsKeepTheLock(t *testing.T) {
	t.Parallel()
	_, pool := database(t)
	held, err := supervisor.HoldDuring(t.Context(), pool, 2*time.Second, func() { time.Sleep(5 * time.Second) })
	if err != nil || !held {
		t.Error(held, err)
	}
}

func until(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}
