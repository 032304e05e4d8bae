package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"outboxsaga/internal/provision"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
)

// postgresFaults: slots, locks, connections.
func (w *world) postgresFaults() (all []kind) {
	databases := system.Databases()
	all = append(all,
		kind{"slot lost", 1, func(*rand.Rand) fault {
			return slotLost{about{"slot lost", "all slots lost: WAL burst while the workers are stopped", []string{"worker", "Postgres"}, 0, fromHeal}, w}
		}},
		kind{"slot dropped", 1, func(dice *rand.Rand) fault {
			d := pick(dice, databases)
			return slotDropped{about{"slot dropped", "slot of " + d.Name + " dropped", []string{"worker", "Postgres"}, 0, fromFaultHealed}, w, d}
		}},
		kind{"long transaction", 1, func(dice *rand.Rand) fault {
			hold := between(dice, 3*time.Second, 8*time.Second)
			return &longTransaction{about: about{"long transaction", fmt.Sprintf("all accounts and items locked, idle in transaction for %.1f s", hold.Seconds()), []string{"Postgres"}, hold, fromHeal}, world: w}
		}},
		kind{"no connections", 1, func(dice *rand.Rand) fault {
			d := pick(dice, databases)
			hold := between(dice, 2*time.Second, 6*time.Second)
			return noConnections{about{"no connections", fmt.Sprintf("%s gets no connection for %.1f s", d.Role, hold.Seconds()), []string{"Postgres"}, hold, fromHeal}, w, d.Role}
		}})
	return all
}

// slotLost: the log grows past max_slot_wal_keep_size while nobody reads. The supervisor drops the lost
// slots, the connectors make new ones and send what Kafka does not have.
type slotLost struct {
	about
	world *world
}

func (f slotLost) inject(ctx context.Context) (err error) {
	w := f.world
	for _, worker := range w.workers {
		if err := w.signal(worker, syscall.SIGSTOP); err != nil {
			return err
		}
	}
	if err := w.setting(ctx, "max_slot_wal_keep_size = '1MB'"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.setting(ctx, keepWAL)) }()
	for range 30 {
		if err := w.burst(ctx, 40); err != nil {
			return err
		}
		left, err := w.texts(ctx, "orderdb", `SELECT slot_name::text FROM pg_replication_slots WHERE wal_status IS DISTINCT FROM 'lost'`)
		if err != nil || len(left) == 0 {
			return err
		}
	}
	return errors.New("PostgreSQL keeps the slots whatever is written")
}

func (f slotLost) heal(context.Context) error {
	for _, worker := range f.world.workers {
		if err := f.world.signal(worker, syscall.SIGCONT); err != nil {
			return err
		}
	}
	return nil
}

// setting changes a setting of the running server.
func (w *world) setting(ctx context.Context, assignment string) error {
	if err := w.exec(ctx, "orderdb", "ALTER SYSTEM SET "+assignment); err != nil {
		return err
	}
	return w.exec(ctx, "orderdb", "SELECT pg_reload_conf()")
}

// burst writes megabytes of log and a checkpoint, which removes what is not needed. It is written in a
// database that nobody reads: a walsender that had to send it to a stopped worker would hang there, and
// the checkpoint with it.
func (w *world) burst(ctx context.Context, megabytes int) error {
	err := w.exec(ctx, "postgres", `SELECT pg_logical_emit_message(false, 'chaos', repeat(md5(n::text), 32768)) FROM generate_series(1, $1::int) n`, megabytes)
	if err != nil {
		return err
	}
	return w.exec(ctx, "postgres", "CHECKPOINT")
}

// slotDropped: somebody drops a slot under its reader.
type slotDropped struct {
	about
	world    *world
	database provision.Database
}

func (f slotDropped) inject(ctx context.Context) error {
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); { // the reader comes back at once, and holds it
		err = f.world.exec(ctx, f.database.Name, `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, f.database.Slot())
		if err == nil {
			err = f.world.exec(ctx, f.database.Name, `SELECT pg_drop_replication_slot($1)`, f.database.Slot())
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (f slotDropped) heal(context.Context) error { return nil }

// longTransaction locks rows that every order needs, holds back vacuum and decoding, and does nothing. It stops the writers
// of a service, which use one or two connections of its pool: reads go on with the rest. [poolExhausted] takes them all.
type longTransaction struct {
	about
	world *world
	ends  []func(context.Context) error
}

func (f *longTransaction) inject(ctx context.Context) error {
	for database, sql := range map[string]string{
		"paymentdb": `SELECT 1 FROM accounts ORDER BY customer_id FOR UPDATE`,
		"stockdb":   `SELECT 1 FROM items ORDER BY sku FOR UPDATE`,
	} {
		conn, err := pgx.Connect(ctx, f.world.stack.PostgresURL(database))
		if err != nil {
			return err
		}
		f.ends = append(f.ends, conn.Close) // which rolls back
		if _, err := conn.Exec(ctx, "BEGIN; SELECT pg_current_xact_id(); SAVEPOINT s; "+sql); err != nil {
			return err
		}
	}
	return nil
}

func (f *longTransaction) heal(ctx context.Context) (err error) {
	for _, end := range f.ends {
		err = errors.Join(err, end(ctx))
	}
	return err
}

// noConnections takes all connections of a role, and lets it have none: PostgreSQL refuses it.
type noConnections struct {
	about
	world *world
	role  string
}

func (f noConnections) inject(ctx context.Context) error {
	if err := f.world.exec(ctx, "orderdb", "ALTER ROLE "+f.role+" CONNECTION LIMIT 0"); err != nil {
		return err
	}
	return f.world.exec(ctx, "orderdb", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, f.role)
}

func (f noConnections) heal(ctx context.Context) error {
	return f.world.exec(ctx, "orderdb", "ALTER ROLE "+f.role+" CONNECTION LIMIT -1")
}
