package inbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// An error of the handler's own that looks like one of the network, or has cost the connection, is about the event, and stops nobody else.
func TestAHandlersOwnErrorIsNoFault(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		var faults []error
		cfg.Hooks.Fault = func(err error) { faults = append(faults, err) }
		own := map[string]error{
			"fails always to be read": io.ErrUnexpectedEOF, "fails always to find the host": &net.OpError{Op: "dial", Err: errors.New("no such host")},
			"fails always in time": context.DeadlineExceeded, "fails always to be encoded": errors.New("too large"),
		}
		r.failWith = func(payload string) error { return own[payload] }
		if cfg.Each != nil {
			cfg.Each = func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
				if string(ev.Payload) != "fails always to be encoded" {
					return r.each(ctx, tx, ev)
				}
				b := &pgx.Batch{}
				b.Queue(`SELECT 1`)
				b.Queue(`SELECT $1::integer`, int64(3_000_000_000))
				return tx.SendBatch(ctx, b).Close()
			}
		}
		for payload := range own {
			r.send(event(payload, payload), event("other", "after "+payload))
		}
		c, stop := r.start(cfg)
		r.eventually(len(own), effects)
		r.eventually(len(own), `SELECT error FROM dead_letters WHERE attempts = 8`)
		r.redriveInVain(c)
		r.eventually(len(own), `SELECT error FROM dead_letters WHERE attempts = 9`)
		stop()
		if len(faults) != 0 {
			t.Errorf("faults: %v", faults)
		}
	})
}

// redriveInVain redrives all dead letters, whose events fail again.
func (r *rig) redriveInVain(c *inbox.Consumer) {
	r.t.Helper()
	letters, err := c.DeadLetters(r.t.Context(), inbox.DeadLetterFilter{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range letters {
		if err := c.Redrive(r.t.Context(), d.ID, "me"); err == nil {
			r.t.Errorf("redriven: %s", d.Payload)
		}
	}
}

// A row that is there already may come of another transaction, so a redrive tries that again, and then counts it like any failure.
func TestARedriveThatMeetsADuplicateCounts(t *testing.T) {
	for when, constraint := range map[string]string{
		"at the statement": `ALTER TABLE effects ADD UNIQUE (key)`,
		"at the commit":    `ALTER TABLE effects ADD UNIQUE (key) DEFERRABLE INITIALLY DEFERRED`,
	} {
		t.Run(when, func(t *testing.T) {
			bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
				r.exec(constraint)
				c, _ := r.start(cfg)
				r.send(event("k", "first"), event("k", "second"))
				r.eventually(1, `SELECT error FROM dead_letters WHERE attempts = 8`)
				r.redriveInVain(c)
				r.eventually(1, `SELECT error FROM dead_letters WHERE attempts = 9`)
			})
		})
	}
}

// A batch that takes longer than a transaction may is cut down until it does not.
func TestABatchThatTakesTooLong(t *testing.T) {
	t.Parallel()
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		cfg.Timeout = time.Second
		r.before = func(string) { time.Sleep(30 * time.Millisecond) } // 64 of them take two seconds
		const n = 64
		for i := range n {
			r.send(event(fmt.Sprint("key ", i), "x"))
		}
		r.start(cfg)
		r.eventually(n, effects)
		if letters := r.strings(`SELECT error FROM dead_letters`); len(letters) != 0 {
			t.Errorf("dead letters: %q", letters)
		}
	})
}

// lines collects log lines.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// The announcement of a dead letter is less than the letter, and much less than all other events.
func TestADeadLetterThatCannotBeAnnouncedIsKept(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*rig, *inbox.Config){
		"the hook fails": func(_ *rig, cfg *inbox.Config) {
			cfg.DeadLetter = func(inbox.DeadLetter) (outbox.Event, error) { return outbox.Event{}, io.EOF }
		},
		"the hook panics": func(_ *rig, cfg *inbox.Config) {
			cfg.DeadLetter = func(inbox.DeadLetter) (outbox.Event, error) { panic("boom") }
		},
		"the event is none": func(_ *rig, cfg *inbox.Config) {
			cfg.DeadLetter = func(d inbox.DeadLetter) (outbox.Event, error) { return outbox.New("dlt", "test", "", "dead", d) }
		},
		"the outbox refuses it": func(r *rig, _ *inbox.Config) {
			r.exec(`ALTER TABLE outbox ADD CONSTRAINT topics CHECK (topic <> 'dlt')`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
				log := &lines{}
				cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
				change(r, &cfg)
				noID := event("k", "no id")
				noID.Headers = nil
				r.send(event("k", "first"), event("bad", "permanent"), noID, event("k", "last"))
				r.start(cfg)
				r.eventually(2, effects)
				got := r.eventually(2, `SELECT encode(payload, 'escape') || ': ' || error FROM dead_letters ORDER BY payload`)
				if want := []string{`no id: the record has no header "id": it was not sent through an outbox`, "permanent: handler: never"}; !slices.Equal(got, want) {
					t.Errorf("dead letters %q, want %q", got, want)
				}
				r.send(event("k", "after"))
				r.eventually(3, effects)
				if n := strings.Count(log.String(), "cannot be announced"); n != 2 {
					t.Errorf("%d lines say that, want 2, in\n%s", n, log)
				}
			})
		})
	}
}

// Where not even the row can be written, nothing is passed over, and somebody is told.
func TestADeadLetterThatCannotBeKeptIsWaitedFor(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		faults := make(chan error, 1000)
		cfg.Hooks.Fault = func(err error) { faults <- err }
		r.exec(`ALTER TABLE dead_letters ADD CONSTRAINT none CHECK (topic = '')`)
		r.send(event("k", "permanent"))
		c, _ := r.start(cfg)
		for range 3 {
			if err := <-faults; !strings.Contains(err.Error(), "keep a dead letter") {
				t.Errorf("fault %v", err)
			}
		}
		if err := c.Ready(t.Context()); err == nil {
			t.Error("ready while nothing moves")
		}
		r.exec(`ALTER TABLE dead_letters DROP CONSTRAINT none`)
		r.eventually(1, `SELECT error FROM dead_letters`)
		r.send(event("k", "last"))
		r.eventually(1, effects)
	})
}

// A handler may end the savepoint that it was given, as one does elsewhere. What it did counts once, or not at all.
func TestAHandlerMayEndItsTransaction(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Each = func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
		defer func() { _ = tx.Rollback(ctx) }()
		if err := r.each(ctx, tx, ev); err != nil {
			return err
		}
		switch string(ev.Payload) {
		case "rolls back":
			return tx.Rollback(ctx)
		case "rolls back too late":
			over, cancel := context.WithCancel(ctx)
			cancel()
			return errors.Join(errors.New("too late"), tx.Rollback(over))
		case "leaves rows open":
			_, err := tx.Query(ctx, `SELECT generate_series(1, 10000)`)
			return err
		case "commits, then fails":
			return errors.Join(tx.Commit(ctx), errors.New("too late"))
		}
		return tx.Commit(ctx)
	}
	c, _ := r.start(cfg)
	r.send(event("a", "first"), event("b", "rolls back"), event("c", "commits, then fails"), event("d", "fails always"), event("e", "rolls back too late"),
		event("f", "leaves rows open"), event("g", "last"))
	r.eventually(2, effects)
	letters := r.eventually(4, `SELECT encode(payload, 'escape') || ' ' || attempts FROM dead_letters ORDER BY payload`)
	if want := []string{"commits, then fails 8", "fails always 8", "leaves rows open 8", "rolls back too late 8"}; !slices.Equal(letters, want) {
		t.Errorf("dead letters %q, want %q", letters, want)
	}
	r.redriveInVain(c)
	r.eventually(4, `SELECT error FROM dead_letters WHERE attempts = 9`)
	if got := r.strings(`SELECT payload FROM effects ORDER BY payload`); !slices.Equal(got, []string{"first", "last"}) {
		t.Errorf("effects %q", got)
	}
	if ids := r.strings(`SELECT event_id::text FROM inbox`); len(ids) != 7 {
		t.Errorf("%d ids in the inbox, want 7", len(ids))
	}
}

// panicky panics in the step that its event names.
type panicky struct {
	batch
	in string
}

func (b *panicky) panicIn(step string) {
	if b.in == step {
		panic("boom")
	}
}

func (b *panicky) Load(q *pgx.Batch) {
	b.panicIn("panics in Load")
	q.Queue(`SELECT 1`).Query(func(pgx.Rows) error {
		b.panicIn("panics in a callback")
		return nil
	})
}

func (b *panicky) Save(q *pgx.Batch) {
	b.panicIn("panics in Save")
	b.batch.Save(q)
}

// A panic anywhere in the caller's code ends neither the process nor the other events.
func TestAPanicIsTheCulpritsAlone(t *testing.T) {
	for _, in := range []string{"panics in Batch", "panics in Load", "panics in a callback", "panics in Save"} {
		t.Run(in, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config()
			cfg.Batch = func(events []inbox.Event) inbox.Batch {
				b := &panicky{batch: batch{rig: r}}
				for _, ev := range events {
					if string(ev.Payload) == in {
						b.in = in
					}
				}
				b.panicIn("panics in Batch")
				return b
			}
			for i := range 20 {
				r.send(event(fmt.Sprint("key ", i), "good"))
				if i == 10 {
					r.send(event("culprit", in))
				}
			}
			r.start(cfg)
			r.eventually(20, effects)
			got := r.eventually(1, `SELECT encode(payload, 'escape') || ' ' || error FROM dead_letters`)
			if want := in + " the handler panicked: boom"; got[0] != want {
				t.Errorf("dead letter %q, want %q", got[0], want)
			}
		})
	}
}

// Two records with one id that was of the future became two dead letters, and the inbox knows of neither.
func TestRedrivingTwoLettersOfOneEventHasOneEffect(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		c, _ := r.start(cfg)
		future := eventOf(-30*time.Hour, "k", "once")
		r.send(future, copyOf(future))
		r.eventually(2, `SELECT error FROM dead_letters`)
		// Two days later: the ids are not in the future any more. Nobody waits for that here.
		r.exec(`UPDATE dead_letters SET event_id = '` + id(eventOf(0, "k", "")) + `'`)
		letters, err := c.DeadLetters(t.Context(), inbox.DeadLetterFilter{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Redrive(t.Context(), letters[0].ID, "me"); err != nil {
			t.Error(err)
		}
		if err := c.Redrive(t.Context(), letters[1].ID, "me"); !errors.Is(err, inbox.ErrHandled) {
			t.Errorf("the other one: %v", err)
		}
		if got := r.strings(effects); !slices.Equal(got, []string{"once"}) {
			t.Errorf("effects %q", got)
		}
	})
}

// An event that never ends, or takes its connection with it, waits alone: others pass, and what it has done does not stand.
func TestAnEventThatTakesTooLongAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cfg := r.config()
	cfg.Timeout, cfg.MaxBatch = 500*time.Millisecond, 8
	cfg.Each = func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
		if err := r.each(ctx, tx, ev); err != nil {
			return err
		}
		switch string(ev.Payload) {
		case "hangs":
			<-ctx.Done()
			return ctx.Err()
		case "cancels":
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			_, err := tx.Exec(short, `SELECT pg_sleep(10)`)
			return err
		}
		return nil
	}
	for i := range 5 {
		r.send(event(fmt.Sprint("hangs ", i), "hangs"), event("cancels", "cancels"), event(fmt.Sprint("key ", i), "good"))
	}
	r.start(cfg)
	r.eventually(5, effects)
	r.send(event("later", "good"))
	if got := r.eventually(6, effects); slices.Contains(got, "hangs") || slices.Contains(got, "cancels") {
		t.Errorf("effects %q", got)
	}
}

// An event that needs a row that is locked or a partition of the caller's that is not there, or meets an internal error, waits alone too.
func TestAnEventThatAloneCannotBeHandled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`CREATE TABLE days (day date) PARTITION BY RANGE (day)`)
	r.exec(`CREATE TABLE locked (id int); INSERT INTO locked VALUES (1)`)
	lock, err := r.look.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.WithoutCancel(t.Context()))
	if _, err := lock.Exec(t.Context(), `SELECT FROM locked FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	statements := map[string]string{
		"locked":       `SELECT FROM locked FOR UPDATE NOWAIT`,
		"no partition": `INSERT INTO days VALUES ('1970-01-01')`,
		"odd":          `DO $$ BEGIN RAISE EXCEPTION 'odd' USING ERRCODE = 'XX000'; END $$`,
	}
	cfg := r.config()
	cfg.MaxBatch = 8
	cfg.Each = func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
		if err := r.each(ctx, tx, ev); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, statements[string(ev.Payload)])
		return err
	}
	for payload := range statements {
		r.send(event(payload, payload), event("key "+payload, "good"))
	}
	r.start(cfg)
	r.eventually(3, effects)
	r.send(event("later", "good"))
	if got := r.eventually(4, effects); slices.ContainsFunc(got, func(payload string) bool { return payload != "good" }) {
		t.Errorf("effects %q", got)
	}
	if letters := r.strings(`SELECT error FROM dead_letters`); len(letters) != 0 {
		t.Errorf("dead letters: %q", letters)
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.eventually(5, effects); !slices.Contains(got, "locked") {
		t.Errorf("effects %q", got)
	}
}

// While an event waits that alone cannot be handled, the consumer is ready for others.
func TestAnEventThatWaitsAloneLeavesTheConsumerReady(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`CREATE TABLE days (day date) PARTITION BY RANGE (day)`)
	cfg := r.config()
	faults := make(chan error, 1000)
	cfg.Hooks.Fault = func(err error) { faults <- err }
	cfg.Each = func(ctx context.Context, tx pgx.Tx, _ inbox.Event) error {
		_, err := tx.Exec(ctx, `INSERT INTO days VALUES ('1970-01-01')`)
		return err
	}
	r.send(event("k", "x"))
	c, _ := r.start(cfg)
	for range 5 {
		<-faults
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := c.Ready(t.Context())
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// A callback of Load may refuse with any error of its own; one of Save comes too late.
func TestCallbacksOfABatch(t *testing.T) {
	for in, want := range map[string]string{
		"fails in a callback of Load": "inbox: load: unexpected EOF", "has a callback of Save": "inbox: Save queued a statement with a callback",
	} {
		t.Run(in, func(t *testing.T) {
			r := newRig(t)
			cfg := r.config()
			cfg.Batch = func(events []inbox.Event) inbox.Batch {
				b := &calling{batch: batch{rig: r}}
				for _, ev := range events {
					if string(ev.Payload) == in {
						b.in = in
					}
				}
				return b
			}
			r.send(event("a", "good"), event("b", in), event("c", "good"))
			r.start(cfg)
			r.eventually(2, effects)
			if got := r.eventually(1, `SELECT error FROM dead_letters`); !strings.HasPrefix(got[0], want) {
				t.Errorf("%q, want %q", got[0], want)
			}
		})
	}
}

type calling struct {
	batch
	in string
}

func (b *calling) Load(q *pgx.Batch) {
	q.Queue(`SELECT 1`).Query(func(pgx.Rows) error {
		if b.in == "fails in a callback of Load" {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
}

func (b *calling) Save(q *pgx.Batch) {
	b.batch.Save(q)
	if b.in == "has a callback of Save" {
		q.Queue(`SELECT 1`).Exec(func(pgconn.CommandTag) error { return nil })
	}
}

// A missing partition is known by what PostgreSQL says in every language.
func TestNoPartition(t *testing.T) {
	r := newRig(t)
	for _, insert := range []string{
		`INSERT INTO inbox (event_id) VALUES ('ffffffff-ffff-7fff-bfff-ffffffffffff')`,
		`INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES ('ffffffff-ffff-7fff-bfff-ffffffffffff', 't', 'a', 'k', 't', '{}')`,
	} {
		_, err := r.look.Exec(t.Context(), insert)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "23514" || pg.ConstraintName != "" || pg.TableName == "" {
			t.Errorf("%s: %+v", insert, pg)
		}
	}
	// One of the user's own, with another name, says nothing about days.
	r.exec(`CREATE TABLE inbox_default PARTITION OF inbox DEFAULT`)
	if _, _, err := inbox.Window(t.Context(), r.look); err != nil {
		t.Error(err)
	}
}

// The rights that docs/libraries.md names are enough, and needed: with them a consumer does all that it can be asked for.
func TestRights(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		// A name of its own in each database: roles belong to the whole instance.
		role := "mailer_" + strings.ReplaceAll(r.topic, "-", "_")
		r.exec(`CREATE ROLE ` + role + ` LOGIN`)
		owner := r.look
		t.Cleanup(func() { _, _ = owner.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role) })
		try := func(want string, sql string, args ...any) {
			t.Helper()
			_, err := r.look.Exec(t.Context(), `SET ROLE `+role)
			if err != nil {
				t.Fatal(err)
			}
			_, err = r.look.Exec(t.Context(), sql, args...)
			var pg *pgconn.PgError
			if errors.As(err, &pg) != (want != "") || pg != nil && pg.Code != want {
				t.Errorf("%s: %v, want %q", sql, err, want)
			}
			r.exec(`RESET ROLE`)
		}
		one := r.look.Config().Copy()
		one.MaxConns = 1 // SET ROLE is of a connection
		pool, err := pgxpool.NewWithConfig(t.Context(), one)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		r.look = pool
		try("42501", `SELECT event_partitions_drop('inbox', '1 day')`)
		try("42501", `SELECT event_partitions_prepare('inbox', 11, 7)`)
		r.exec(fmt.Sprintf(`
			GRANT USAGE ON SCHEMA public TO %[1]s;
			GRANT SELECT, INSERT ON outbox TO %[1]s;
			GRANT SELECT, INSERT, DELETE ON inbox TO %[1]s;
			GRANT SELECT, INSERT, UPDATE ON dead_letters TO %[1]s;
			GRANT SELECT, INSERT ON inbox_group TO %[1]s;
			GRANT EXECUTE ON FUNCTION event_partitions_prepare(text, integer, integer), event_partitions_drop(text, interval) TO %[1]s;
			GRANT SELECT, INSERT ON effects TO %[1]s;
			GRANT USAGE ON SEQUENCE effects_n_seq TO %[1]s`, role))
		limited := r.pool.Config().Copy()
		limited.ConnConfig.User = role
		if cfg.Pool, err = pgxpool.NewWithConfig(t.Context(), limited); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cfg.Pool.Close)
		c, stop := r.start(cfg)
		defer stop()
		r.send(event("a", "good"), event("b", "fails twice"), event("c", "permanent"), event("d", "permanent too"))
		r.eventually(2, effects)
		r.eventually(2, `SELECT error FROM dead_letters`)
		letters, err := c.DeadLetters(t.Context(), inbox.DeadLetterFilter{Status: inbox.Open})
		if err != nil || len(letters) != 2 {
			t.Fatalf("%v, %v", letters, err)
		}
		if err := c.Discard(t.Context(), letters[0].ID, "me", "a test"); err != nil {
			t.Error(err)
		}
		if err := c.Redrive(t.Context(), letters[1].ID, "me"); err == nil || !strings.Contains(err.Error(), "never") {
			t.Error(err)
		}
		if _, err := outbox.PreparePartitions(t.Context(), cfg.Pool, 7); err != nil {
			t.Error(err)
		}
		if _, err := inbox.PreparePartitions(t.Context(), cfg.Pool, 11, 7); err != nil {
			t.Error(err)
		}
		if _, _, err := inbox.DropPartitions(t.Context(), cfg.Pool, 11*day); err != nil {
			t.Error(err)
		}
		if _, _, err := outbox.DropPartitions(t.Context(), cfg.Pool, 3*day); err != nil {
			t.Error(err)
		}
	})
}

// A record whose dead letter is open, and whose id the inbox does not have, fails for good once more: it is the same letter.
func TestADeadLetterThatComesAgain(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		_, stop := r.start(cfg)
		r.send(event("k", "permanent"))
		r.eventually(1, `SELECT id::text FROM dead_letters`)
		stop()
		r.exec(`DELETE FROM inbox; UPDATE dead_letters SET recorded = false`)
		r.loseOffsets(cfg)
		r.start(cfg)
		r.send(event("k", "last"))
		r.eventually(1, effects)
		if got := r.strings(`SELECT status || ' ' || recorded FROM dead_letters JOIN outbox USING (id) WHERE outbox.topic = 'dlt'`); !slices.Equal(got, []string{"open true"}) {
			t.Errorf("letters that were announced as they are kept: %q", got)
		}
	})
}

// What looks like a deployment's fault, and would be waited out, is the event's if the handler says so.
func TestPermanentIsTheEvents(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Each = func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
		if _, err := tx.Exec(ctx, `SELECT $1::text::regclass`, string(ev.Payload)); string(ev.Payload) != "effects" && err != nil {
			return inbox.Permanent(err)
		}
		return r.each(ctx, tx, ev)
	}
	r.start(cfg)
	r.send(event("a", "no_such_table"), event("b", "effects"))
	r.eventually(1, effects)
	r.eventually(1, `SELECT id::text FROM dead_letters WHERE error LIKE '%no_such_table%' AND attempts = 1`)
}

// A handler that panics in a redrive is an error of its event.
func TestAPanicInARedrive(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		cfg.MaxAttempts = 1
		c, _ := r.start(cfg)
		r.send(event("k", "panics twice"))
		r.eventually(1, `SELECT id::text FROM dead_letters`)
		id := uuid.MustParse(r.strings(`SELECT id::text FROM dead_letters`)[0])
		if err := c.Redrive(t.Context(), id, "me"); err == nil || !strings.Contains(err.Error(), "panicked: boom") {
			t.Errorf("a redrive that panics: %v", err)
		}
		if got := r.strings(`SELECT status || ' ' || attempts FROM dead_letters`); !slices.Equal(got, []string{"open 2"}) {
			t.Errorf("%q", got)
		}
		if err := c.Redrive(t.Context(), id, "me"); err != nil {
			t.Error(err)
		}
	})
}
