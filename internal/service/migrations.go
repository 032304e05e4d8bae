package service

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Migrations holds the DDL of what all services share, the table idempotency_keys, for
// golang-migrate, in the folder "migrations".
//
//go:embed migrations/*.sql
var Migrations embed.FS

// MigrationsTable is the version table for [Migrations].
const MigrationsTable = "service_migrations"

// SchemaTable is the version table for the migrations of the service itself
// ([Service.Migrations]).
const SchemaTable = "schema_migrations"

// checkMigrations compares the versions in the database with those that this program
// was built with. A newer database is accepted: during a deployment the old program
// runs beside it.
func checkMigrations(ctx context.Context, pool *pgxpool.Pool, own fs.FS) error {
	for _, m := range []struct {
		table string
		files fs.FS
		dir   string
	}{
		{outbox.MigrationsTable, outbox.Migrations, "migrations"},
		{inbox.MigrationsTable, inbox.Migrations, "migrations"},
		{MigrationsTable, Migrations, "migrations"},
		{SchemaTable, own, "."},
	} {
		if m.files == nil {
			continue
		}
		want, err := latest(m.files, m.dir)
		if err != nil {
			return fmt.Errorf("embedded migrations of %s: %w", m.table, err)
		}
		have, dirty, err := version(ctx, pool, m.table)
		switch {
		case err != nil:
			return err
		case dirty:
			return fmt.Errorf("migration %d of %s failed half-way: mend it and set the version by hand", have, m.table)
		case have < want:
			return fmt.Errorf("the database has version %d of %s, this program needs %d: run the migrations", have, m.table, want)
		}
	}
	return nil
}

// version reads golang-migrate's table. Without the table nothing was migrated.
func version(ctx context.Context, pool *pgxpool.Pool, table string) (version int64, dirty bool, err error) {
	err = pool.QueryRow(ctx, `SELECT version, dirty FROM `+pgx.Identifier{table}.Sanitize()).Scan(&version, &dirty)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "42P01", errors.Is(err, pgx.ErrNoRows):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("read the version in %s: %w", table, err)
	}
	return version, dirty, nil
}

// latest is the highest number of a file NUMBER_name.up.sql.
func latest(files fs.FS, dir string) (int64, error) {
	names, err := fs.Glob(files, strings.TrimPrefix(dir+"/*.up.sql", "./"))
	if err != nil {
		return 0, err
	}
	var highest int64
	for _, name := range names {
		number, _, _ := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], "_")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: the name must begin with a number: %w", name, err)
		}
		highest = max(highest, n)
	}
	return highest, nil
}
