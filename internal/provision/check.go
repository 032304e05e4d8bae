package provision

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
)

// Check says what of PostgreSQL's settings change data capture cannot work with: the server's, the
// connectors' role, each database's publication. Every error says what to do. urls are those of the databases, by
// their names, with a role that may log in to them and to the database postgres beside them. Databases at one address
// are of one server.
func Check(ctx context.Context, urls map[string]string, databases []Database) error {
	configs, servers := map[string]*pgx.ConnConfig{}, map[string][]Database{}
	for _, d := range databases {
		config, err := pgx.ParseConfig(urls[d.Name])
		if err != nil { // the parser's reason may quote the password
			return fmt.Errorf("database %s: its URL cannot be read: want postgres://user:password@host:port/%[1]s", d.Name)
		}
		address := net.JoinHostPort(config.Host, fmt.Sprint(config.Port))
		configs[d.Name], servers[address] = config, append(servers[address], d)
	}
	var wrong []error
	for _, address := range slices.Sorted(maps.Keys(servers)) {
		for _, err := range checkServer(ctx, configs, servers[address]) {
			if len(servers) > 1 {
				err = fmt.Errorf("%s: %w", address, err)
			}
			wrong = append(wrong, err)
		}
	}
	return errors.Join(wrong...)
}

func checkServer(ctx context.Context, configs map[string]*pgx.ConnConfig, databases []Database) (wrong []error) {
	config := configs[databases[0].Name].Copy()
	config.Database = "postgres" // ours may be missing
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return []error{fmt.Errorf("connect to PostgreSQL, which ADMIN_DATABASE_URL, or ORDER_, STOCK_ and PAYMENT_DATABASE_URL, name with user and password: %w", err)}
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, err := range []error{checkSettings(ctx, conn, databases), checkRole(ctx, conn)} {
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	for _, d := range databases {
		if err := checkDatabase(ctx, configs[d.Name]); err != nil {
			wrong = append(wrong, fmt.Errorf("database %s: %w", d.Name, err))
		}
	}
	return wrong
}

// checkSettings refuses a server on which change data capture cannot work for databases. Slots and senders
// that others use are not free for it.
func checkSettings(ctx context.Context, conn *pgx.Conn, databases []Database) error {
	ours := make([]string, len(databases))
	for i, d := range databases {
		ours[i] = d.Slot()
	}
	var level string
	var slots, senders, usedSlots, usedSenders int
	err := conn.QueryRow(ctx, `
SELECT current_setting('wal_level'), current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int,
       (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> ALL ($1)),
       (SELECT count(*) FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
        WHERE s.slot_name IS NULL OR s.slot_name <> ALL ($1))`, ours).Scan(&level, &slots, &senders, &usedSlots, &usedSenders)
	need := len(databases) + max(usedSlots, usedSenders)
	switch {
	case err != nil:
		return fmt.Errorf("read the settings of PostgreSQL: %w", err)
	case level != "logical":
		return fmt.Errorf("PostgreSQL has wal_level=%s: set wal_level=logical and restart it", level)
	case slots < len(databases)+usedSlots || senders < len(databases)+usedSenders:
		return fmt.Errorf("PostgreSQL has max_replication_slots=%d and max_wal_senders=%d: both must be at least %d, for %d databases and what others use (%d and %d); set them and restart it",
			slots, senders, need, len(databases), usedSlots, usedSenders)
	}
	return nil
}

func checkRole(ctx context.Context, conn *pgx.Conn) error {
	var login, replication bool
	err := conn.QueryRow(ctx, `SELECT rolcanlogin, rolreplication OR rolsuper FROM pg_roles WHERE rolname = $1`, CDC).Scan(&login, &replication)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("the connectors' role %s is missing: run outboxctl provision", CDC)
	case err != nil:
		return fmt.Errorf("read the roles of PostgreSQL: %w", err)
	case !login || !replication:
		return fmt.Errorf("the connectors' role %s may not log in and replicate: ALTER ROLE %s LOGIN REPLICATION", CDC, CDC)
	}
	return nil
}

func checkDatabase(ctx context.Context, config *pgx.ConnConfig) error {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("run outboxctl provision if it is missing: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := outbox.CheckPublication(ctx, conn); err != nil {
		return err
	}
	var whole bool // the connectors' snapshots read through it
	if err := conn.QueryRow(ctx, `SELECT to_regprocedure('outbox_confirmed_topics(name)') IS NOT NULL`).Scan(&whole); err != nil {
		return fmt.Errorf("read the functions of the outbox: %w", err)
	}
	if !whole {
		return errors.New("the outbox is of an older version: run outboxctl provision, or the outbox's migrations")
	}
	var reads bool // a role that is missing was said before
	if err := conn.QueryRow(ctx, `SELECT coalesce((SELECT has_table_privilege(oid, 'outbox', 'SELECT') AND has_function_privilege(oid, 'outbox_confirmed_topics(name)', 'EXECUTE')
		FROM pg_roles WHERE rolname = $1), true)`, CDC).Scan(&reads); err != nil {
		return fmt.Errorf("read the rights of %s: %w", CDC, err)
	}
	if !reads {
		return fmt.Errorf("the connectors' role %s may not read the outbox: GRANT SELECT ON outbox TO %s; GRANT EXECUTE ON FUNCTION outbox_confirmed_topics(name) TO %s", CDC, CDC, CDC)
	}
	return nil
}
