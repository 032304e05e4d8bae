package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// connectFaults: what goes wrong inside Kafka Connect. The supervisor heals them.
func (w *world) connectFaults() []kind {
	databases := system.Databases()
	touches := []string{"worker", "Postgres"}
	return []kind{
		{"connector deleted", 1, func(dice *rand.Rand) fault {
			d := pick(dice, databases)
			return connectorDeleted{about{"connector deleted", "connector " + d.Name + " deleted", touches, 0, fromFaultHealed}, w, d}
		}},
		{"task failed", 1, func(dice *rand.Rand) fault {
			d := pick(dice, databases)
			return taskFailed{about{"task failed", "task of " + d.Name + " fails: the connector may not log in", touches, 0, fromFaultHealed}, w, d}
		}},
		{"task stuck", 1, func(dice *rand.Rand) fault {
			d := pick(dice, databases)
			return &taskStuck{about: about{"task stuck", "task of " + d.Name + " stuck: a silent reader holds its slot", touches, 0, fromFaultHealed}, world: w, database: d}
		}},
	}
}

// connectorDeleted: its slot and its offsets stay.
type connectorDeleted struct {
	about
	world    *world
	database provision.Database
}

func (f connectorDeleted) inject(ctx context.Context) error {
	return f.world.connect(ctx).Delete(ctx, f.database.Name)
}

func (f connectorDeleted) heal(context.Context) error { return nil }

// taskFailed: the connector's login is refused for a moment, as with a rotated password, while it
// starts. Connect marks the task FAILED and never starts it again.
type taskFailed struct {
	about
	world    *world
	database provision.Database
}

func (f taskFailed) inject(ctx context.Context) error {
	if err := f.world.exec(ctx, "orderdb", "ALTER ROLE "+provision.CDC+" NOLOGIN"); err != nil {
		return err
	}
	defer func() { _ = f.world.exec(context.WithoutCancel(ctx), "orderdb", "ALTER ROLE "+provision.CDC+" LOGIN") }()
	client := f.world.connect(ctx)
	if err := client.Restart(ctx, f.database.Name, false); err != nil {
		return err
	}
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); pause(ctx, 100*time.Millisecond) {
		s, err := client.Status(ctx, f.database.Name)
		if err != nil {
			continue
		}
		for _, state := range append(s.Tasks, s.Connector) {
			if state.State == "FAILED" {
				return nil
			}
		}
	}
	return fmt.Errorf("the task of %s does not fail", f.database.Name)
}

func (f taskFailed) heal(context.Context) error { return nil }

// taskStuck: a reader that is gone without a farewell, as after a failure of its host, holds the slot. The
// connector says RUNNING and waits. The supervisor ends the silent reader's walsender.
type taskStuck struct {
	about
	world    *world
	database provision.Database
	reader   *pgconn.PgConn
}

func (f *taskStuck) inject(ctx context.Context) (err error) {
	f.reader, err = pgconn.Connect(ctx, f.world.stack.UserURL(provision.CDC, f.database.Name)+"&replication=database")
	if err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); { // the connector comes back at once, and is faster at times
		err = f.world.exec(ctx, f.database.Name, `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, f.database.Slot())
		if err == nil {
			err = f.take(ctx)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// take begins to read, and confirms nothing, ever.
func (f *taskStuck) take(ctx context.Context) error {
	f.reader.Frontend().SendQuery(&pgproto3.Query{String: fmt.Sprintf(`START_REPLICATION SLOT %s LOGICAL 0/0 (proto_version '1', publication_names 'outbox_pub')`, f.database.Slot())})
	if err := f.reader.Frontend().Flush(); err != nil {
		return err
	}
	var refused error
	for {
		message, err := f.reader.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		switch m := message.(type) {
		case *pgproto3.CopyBothResponse:
			return nil
		case *pgproto3.ErrorResponse:
			refused = pgconn.ErrorResponseToPgError(m)
		case *pgproto3.ReadyForQuery:
			return refused
		}
	}
}

// heal leaves the slot to the supervisor; the connection is closed only when the flow is back.
func (f *taskStuck) heal(context.Context) error { return nil }

func (f *taskStuck) end(ctx context.Context) {
	if f.reader != nil {
		_ = f.reader.Close(ctx)
	}
}

// connect asks any worker that answers.
func (w *world) connect(ctx context.Context) connect.Client {
	urls := w.stack.ConnectURLs()
	for _, url := range urls {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := system.Ask(try, url+"/connectors")
		cancel()
		if err == nil {
			return connect.Client{URL: url}
		}
	}
	return connect.Client{URL: urls[0]}
}
