// Package provision brings PostgreSQL and Kafka to the state that the services and
// the connectors need: roles, databases, migrations, replication slots, topics.
//
// Everything is idempotent: what is there is kept, what is missing is made, and what
// differs in a way that could lose events (a topic with another number of partitions)
// is an error. The order matters and is kept: publication (in a migration), then
// slot, then services, then connectors.
package provision

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"time"

	"outboxsaga/outbox"

	"github.com/golang-migrate/migrate/v4"
	migratedb "github.com/golang-migrate/migrate/v4/database"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sync/errgroup"
)

// Owner is the role that owns the databases and all in them. Nobody logs in as it.
const Owner = "saga_owner"

// CDC is the role of the connectors: it replicates and reads the outbox, nothing else.
const CDC = "cdc"

// Supervisor is the role of the supervisors: it sees how replication goes, reads outbox and inbox, and writes what it does
// and what a new slot may leave out. To end walsenders and drop slots it needs rights that reach further: it could end any
// session but a superuser's, drop any slot, and read a log through one.
const Supervisor = "supervisor"

// Migrations is the DDL of one owner of tables.
type Migrations struct {
	FS    fs.FS  // files of golang-migrate
	Path  string // the folder in FS; "." for its root
	Table string // the version table
}

// Database is one service's database.
type Database struct {
	Name       string
	Role       string       // the service's login
	Password   string       // of Role; empty: none is set (the local stack trusts loopback)
	Migrations []Migrations // in this order
}

// Slot is the name of the replication slot of a database, as in connectors/NAME.json.
func (d Database) Slot() string { return "outbox_" + d.Name }

// Postgres makes roles, databases, schema and slots. superuser is the URL of a role
// that may do so, of any database of the instance. password gives that of [CDC] and of [Supervisor]; it may be empty.
func Postgres(ctx context.Context, superuser string, password func(role string) string, databases []Database) error {
	conn, err := pgx.Connect(ctx, superuser)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := checkSettings(ctx, conn, databases); err != nil {
		return err
	}
	if err := role(ctx, conn, Owner, "NOLOGIN", ""); err != nil {
		return err
	}
	if err := role(ctx, conn, CDC, "LOGIN REPLICATION", password(CDC)); err != nil {
		return err
	}
	if err := role(ctx, conn, Supervisor, "LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE", password(Supervisor)); err != nil { // slots are dropped by who may replicate
		return err
	}
	if err := execAll(ctx, conn, "GRANT pg_monitor, pg_signal_backend TO "+Supervisor); err != nil {
		return err
	}
	for _, d := range databases {
		if err := role(ctx, conn, d.Role, "LOGIN", d.Password); err != nil {
			return err
		}
		if err := database(ctx, conn, d); err != nil {
			return fmt.Errorf("database %s: %w", d.Name, err)
		}
	}
	var all errgroup.Group
	for _, d := range databases {
		all.Go(func() error {
			target, err := withDatabase(superuser, d.Name)
			if err != nil {
				return err
			}
			if err := schema(ctx, target, d); err != nil {
				return fmt.Errorf("database %s: %w", d.Name, err)
			}
			return nil
		})
	}
	return all.Wait()
}

func role(ctx context.Context, conn *pgx.Conn, name, options, password string) error {
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, name).Scan(&exists); err != nil {
		return fmt.Errorf("role %s: %w", name, err)
	}
	statement := "CREATE ROLE "
	if exists {
		statement = "ALTER ROLE "
	}
	statement += pgx.Identifier{name}.Sanitize() + " " + options
	if password != "" {
		statement += " PASSWORD " + literal(password)
	}
	if _, err := conn.Exec(ctx, statement); err != nil {
		// Not wrapped with the statement: it may hold the password.
		return fmt.Errorf("role %s: %w", name, err)
	}
	return nil
}

// literal quotes a string for DDL, which takes no parameters.
func literal(s string) string {
	out := []byte{'\''}
	for i := range len(s) {
		if s[i] == '\'' {
			out = append(out, '\'')
		}
		out = append(out, s[i])
	}
	return string(append(out, '\''))
}

func database(ctx context.Context, conn *pgx.Conn, d Database) error {
	name, login := pgx.Identifier{d.Name}.Sanitize(), pgx.Identifier{d.Role}.Sanitize()
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, d.Name).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		// file_copy checkpoints; wal_log is the faster strategy for a small template.
		if _, err := conn.Exec(ctx, "CREATE DATABASE "+name+" OWNER "+Owner+" STRATEGY wal_log"); err != nil {
			return err
		}
	}
	for _, statement := range []string{
		"REVOKE ALL ON DATABASE " + name + " FROM PUBLIC",
		"GRANT CONNECT, TEMPORARY ON DATABASE " + name + " TO " + login,
		"GRANT CONNECT ON DATABASE " + name + " TO " + CDC + ", " + Supervisor,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// schema migrates and grants; the slot comes last, in a session that has written nothing. Where a later program has
// migrated, rights are its own, but for tables that this call has made.
func schema(ctx context.Context, url string, d Database) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := execAll(ctx, conn,
		"ALTER SCHEMA public OWNER TO "+Owner,
		"REVOKE ALL ON SCHEMA public FROM PUBLIC"); err != nil {
		return err
	}
	before, err := tables(ctx, conn)
	if err != nil {
		return err
	}
	later, err := Migrate(ctx, url, Owner, d.Migrations...)
	if err != nil {
		return err
	}
	all, err := tables(ctx, conn)
	if err != nil {
		return err
	}
	var statements []string
	if later {
		statements = grantTables(d, slices.DeleteFunc(all, func(t table) bool { return slices.Contains(before, t) }))
	} else {
		statements = append(grantTables(d, all), grantRest(d)...)
	}
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return execAll(ctx, tx, statements...) }); err != nil {
		return err
	}
	return slot(ctx, conn, d)
}

type table struct {
	Name      string
	Partition bool
}

func tables(ctx context.Context, conn *pgx.Conn) ([]table, error) {
	rows, err := conn.Query(ctx, `SELECT format('%I', relname), relispartition FROM pg_class
		WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[table])
}

// grantTables gives the roles of the service, the connector and the supervisor what they need of tables, and takes what they
// had more. A new table of a migration is covered because the same call has made it.
func grantTables(d Database, all []table) []string {
	login := pgx.Identifier{d.Role}.Sanitize()
	statements := []string{
		"GRANT USAGE ON SCHEMA public TO " + login + ", " + CDC + ", " + Supervisor,
		"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO " + login,
	}
	for _, t := range all {
		// Partitions are reached through their table; a right of their own would go round
		// what the table refuses.
		if t.Partition {
			statements = append(statements, "REVOKE ALL ON "+t.Name+" FROM "+login+", "+CDC+", "+Supervisor)
			continue
		}
		statements = append(statements, "REVOKE ALL ON "+t.Name+" FROM "+Supervisor)
		statements = append(statements, "GRANT SELECT, INSERT, UPDATE, DELETE ON "+t.Name+" TO "+login)
		if t.Name == "supervisor_acts" { // in one database only
			statements = append(statements, "GRANT SELECT, INSERT, UPDATE, DELETE ON "+t.Name+" TO "+Supervisor)
		}
	}
	return statements
}

// grantRest is what differs from table to table, after [grantTables].
func grantRest(d Database) []string {
	login := pgx.Identifier{d.Role}.Sanitize()
	statements := []string{
		// Rows of the outbox are never changed; the inbox forgets an id only in the
		// transaction that recorded it.
		"REVOKE UPDATE, DELETE ON outbox FROM " + login,
		"REVOKE UPDATE ON inbox FROM " + login,
		// What retention and the supervisor know is written by their functions only.
		"REVOKE INSERT, UPDATE, DELETE ON event_partitions_dropped, event_partitions_sealed, outbox_confirmed FROM " + login,
		"GRANT EXECUTE ON FUNCTION event_partitions_prepare(text, integer, integer), event_partitions_drop(text, interval) TO " + login,
		"GRANT SELECT ON outbox TO " + CDC,
		"GRANT EXECUTE ON FUNCTION outbox_confirmed_topics(name) TO " + CDC,
		"GRANT SELECT ON outbox, inbox, outbox_confirmed TO " + Supervisor,
		"GRANT EXECUTE ON FUNCTION outbox_confirm(name, text[], text[], xid8[], xid8, text, timestamptz, interval) TO " + Supervisor,
	}
	for _, m := range d.Migrations {
		statements = append(statements, "REVOKE INSERT, UPDATE, DELETE ON "+pgx.Identifier{m.Table}.Sanitize()+" FROM "+login)
	}
	return statements
}

func execAll(ctx context.Context, db interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
}, statements ...string) error {
	for _, s := range statements {
		if _, err := db.Exec(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// slot makes the replication slot, after the publication that it will read through:
// a slot decodes with the catalog of the time of each row, so a publication made later
// would not exist for earlier rows.
func slot(ctx context.Context, conn *pgx.Conn, d Database) error {
	if err := outbox.CheckPublication(ctx, conn); err != nil {
		return err
	}
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, d.Slot()).Scan(&exists); err != nil || exists {
		return err
	}
	// A standby that synchronizes slots gets a copy of it (PostgreSQL 17), so that the connector goes on there
	// after a failover.
	create := `SELECT pg_create_logical_replication_slot($1, 'pgoutput', failover => true)`
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return err
	}
	if version < 17_00_00 {
		create = `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`
	}
	if _, err := conn.Exec(ctx, create, d.Slot()); err != nil {
		return fmt.Errorf("replication slot %s: %w", d.Slot(), err)
	}
	return nil
}

// lockWait is how long a migration waits for a table that others use: whoever writes meanwhile waits behind it. lockPause is
// until it tries again.
const lockWait, lockPause = "500ms", time.Second

// Migrate brings a database to the newest version of each of the migrations, in their
// order, as role (empty: as the URL's own). Where others use a table for long it tries again until ctx is over. Each file is one
// transaction: one that failed leaves nothing behind. What a later program has migrated is left as it is, and later tells of it.
func Migrate(ctx context.Context, databaseURL, role string, migrations ...Migrations) (later bool, err error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return false, err
	}
	config.RuntimeParams["lock_timeout"] = lockWait
	if role != "" {
		config.RuntimeParams["role"] = role
	}
	for _, m := range migrations {
		ahead, err := migrateOne(ctx, config, m)
		if err != nil {
			return false, fmt.Errorf("migrate (%s): %w", m.Table, err)
		}
		later = later || ahead
	}
	return later, nil
}

func migrateOne(ctx context.Context, config *pgx.ConnConfig, m Migrations) (later bool, err error) {
	for {
		later, err = up(ctx, config, m)
		if !isLocked(err) {
			return later, err
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("others use its tables for too long: look in pg_stat_activity for their transactions (a dump, a report, the snapshot of a connector), wait for them or end them, and try again: %w", err)
		case <-time.After(lockPause):
		}
	}
}

func up(ctx context.Context, config *pgx.ConnConfig, m Migrations) (later bool, err error) {
	all, err := open(config, m)
	if err != nil {
		return false, err
	}
	defer all.Close()
	stop := context.AfterFunc(ctx, func() { all.GracefulStop <- true })
	defer stop()
	err = all.Up()
	var dirty migrate.ErrDirty
	var failed migratedb.Error // of a file: what else the driver does fails with a pointer to one
	switch {
	case err == nil || errors.Is(err, migrate.ErrNoChange):
		return false, ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		if files, globErr := fs.Glob(m.FS, path.Join(m.Path, "*.up.sql")); globErr != nil || len(files) == 0 {
			return false, fmt.Errorf("no files NUMBER_name.up.sql in the folder %q: %w", m.Path, errors.Join(err, globErr))
		}
		return true, ctx.Err() // a version that these files do not know is a later program's, which only adds
	case errors.As(err, &dirty):
		undone := fmt.Sprintf("UPDATE %s SET version = %d, dirty = false", m.Table, dirty.Version-1)
		if dirty.Version == 1 {
			undone = "DELETE FROM " + m.Table
		}
		return false, fmt.Errorf("version %d was interrupted: see whether what its file does is there; if it is, UPDATE %s SET dirty = false; if not, %s; and try again", dirty.Version, m.Table, undone)
	case errors.As(err, &failed) && errors.As(failed.OrigErr, new(*pgconn.PgError)):
		return false, errors.Join(err, stepBack(all))
	}
	return false, err
}

// stepBack takes back the version of a file that failed.
func stepBack(all *migrate.Migrate) error {
	version, _, err := all.Version()
	if err != nil {
		return err
	}
	if version == 1 {
		return all.Force(migratedb.NilVersion)
	}
	return all.Force(int(version) - 1)
}

// isLocked: a migration, or the lock that lets one process migrate, could not be had in [lockWait].
func isLocked(err error) bool {
	var ofFile migratedb.Error
	var other *migratedb.Error
	switch {
	case errors.As(err, &ofFile):
		err = ofFile.OrigErr
	case errors.As(err, &other):
		err = other.OrigErr
	}
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03"
}

// open gives migrations a connection of their own, which closing them ends.
func open(config *pgx.ConnConfig, m Migrations) (*migrate.Migrate, error) {
	files, err := iofs.New(m.FS, m.Path)
	if err != nil {
		return nil, err
	}
	var db *sql.DB = stdlib.OpenDB(*config)
	driver, err := migratepgx.WithInstance(db, &migratepgx.Config{MigrationsTable: m.Table})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	all, err := migrate.NewWithInstance("iofs", files, "pgx5", driver)
	if err != nil {
		return nil, errors.Join(err, driver.Close())
	}
	return all, nil
}

// withDatabase replaces the database in a URL.
func withDatabase(raw, name string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", errors.New("the URL of PostgreSQL is not a URL: want postgres://user@host:port/database")
	}
	u.Path = "/" + name
	return u.String(), nil
}
