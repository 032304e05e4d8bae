package provision

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Check says what of PostgreSQL's settings change data capture cannot work with: the server's, the
// connectors' role, each database's publication. Every error says what to do. admin is the URL of a role
// that may log in to the databases.
func Check(ctx context.Context, admin string, databases []Database) error {
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	wrong := []error{checkSettings(ctx, conn, len(databases)), checkRole(ctx, conn)}
	for _, d := range databases {
		if err := checkDatabase(ctx, admin, d); err != nil {
			wrong = append(wrong, fmt.Errorf("database %s: %w", d.Name, err))
		}
	}
	return errors.Join(wrong...)
}

// checkSettings refuses a server on which change data capture cannot work.
func checkSettings(ctx context.Context, conn *pgx.Conn, slots int) error {
	var level string
	var maxSlots, maxSenders int
	err := conn.QueryRow(ctx, `SELECT current_setting('wal_level'), current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int`).
		Scan(&level, &maxSlots, &maxSenders)
	switch {
	case err != nil:
		return fmt.Errorf("read the settings of PostgreSQL: %w", err)
	case level != "logical":
		return fmt.Errorf("PostgreSQL has wal_level=%s: set wal_level=logical and restart it", level)
	case maxSlots < slots || maxSenders < slots:
		return fmt.Errorf("PostgreSQL has max_replication_slots=%d and max_wal_senders=%d: both must be at least %d; set them and restart it", maxSlots, maxSenders, slots)
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

func checkDatabase(ctx context.Context, admin string, d Database) error {
	url, err := withDatabase(admin, d.Name)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("run outboxctl provision if it is missing: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return checkPublication(ctx, conn)
}

func checkPublication(ctx context.Context, conn *pgx.Conn) error {
	var viaRoot, covers bool
	err := conn.QueryRow(ctx, `SELECT pubviaroot AND pubinsert, EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = p.pubname AND t.tablename = 'outbox')
		FROM pg_publication p WHERE pubname = 'outbox_pub'`).Scan(&viaRoot, &covers)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return errors.New("the publication outbox_pub is missing: run the outbox's migrations")
	case err != nil:
		return err
	case !viaRoot:
		return errors.New("the publication outbox_pub must publish inserts as those of the table outbox: ALTER PUBLICATION outbox_pub SET (publish = 'insert', publish_via_partition_root = true)")
	case !covers:
		return errors.New("the publication outbox_pub does not have the table outbox: ALTER PUBLICATION outbox_pub ADD TABLE outbox")
	}
	return nil
}
