package provision_test

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
)

// schema is all that migrations make: relations and their columns, functions, constraints, indexes, triggers, and who may do what.
const schema = `
SELECT format('%s %s %s %s', c.relkind, c.relname, c.reloptions, c.relacl) || coalesce(format(': %s %s %s', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END), '') FROM pg_class c
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped WHERE c.relnamespace = 'public'::regnamespace
UNION ALL SELECT pg_get_functiondef(p.oid) || (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(coalesce(p.proacl, acldefault('f', p.proowner))) a) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
UNION ALL SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
ORDER BY 1`

// Each migration's way down leads to what was there before it.
func TestMigrationsGoDown(t *testing.T) {
	for _, d := range system.Databases() {
		t.Run(d.Name, func(t *testing.T) {
			db, err := pgx.Connect(t.Context(), stacktest.Database(t))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close(context.WithoutCancel(t.Context()))
			now := func() []string {
				t.Helper()
				rows, err := db.Query(t.Context(), schema)
				if err != nil {
					t.Fatal(err)
				}
				lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					t.Fatal(err)
				}
				return lines
			}
			for _, m := range d.Migrations {
				all, err := provision.Open(db.Config(), m)
				if err != nil {
					t.Fatal(err)
				}
				defer all.Close()
				files, err := fs.Glob(m.FS, path.Join(m.Path, "*.up.sql"))
				if err != nil || len(files) == 0 {
					t.Fatal(files, err)
				}
				for _, file := range files {
					step := func(n int) []string {
						t.Helper()
						if err := all.Steps(n); err != nil {
							t.Fatalf("%s by %d: %v", file, n, err)
						}
						return now()
					}
					before := now()
					after := step(1)
					differ(t, file+": down", before, step(-1))
					differ(t, file+": up again", after, step(1))
				}
			}
		})
	}
}

func differ(t *testing.T, when string, want, got []string) {
	t.Helper()
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("%s: there is no more\n%s", when, line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("%s: there is\n%s", when, line)
		}
	}
}

func files(of map[string]string) provision.Migrations {
	m := fstest.MapFS{}
	for name, text := range of {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return provision.Migrations{FS: m, Path: ".", Table: "t_migrations"}
}

// A migration that needs a table for itself waits for those who read it without stopping those who write, and what has failed can be tried again.
func TestMigrateBesideOthers(t *testing.T) {
	url := stacktest.Database(t)
	db, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.WithoutCancel(t.Context()))
	of := map[string]string{"1_table.up.sql": `CREATE TABLE t (a int); SELECT 1 / 0`}
	migrate := func(ctx context.Context) error {
		later, err := provision.Migrate(ctx, url, "", files(of))
		if later {
			return errors.New("a later program has migrated it")
		}
		return err
	}
	if err := migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "division by zero") {
		t.Fatal(err)
	}
	of["1_table.up.sql"] = `CREATE TABLE t (a int)`
	if err := migrate(t.Context()); err != nil {
		t.Fatal(err)
	}

	reading, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reading.Exec(t.Context(), `SELECT FROM t`); err != nil {
		t.Fatal(err)
	}
	of["2_column.up.sql"] = `ALTER TABLE t ADD COLUMN b int`
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := migrate(short); err == nil || !strings.Contains(err.Error(), "pg_stat_activity") {
		t.Fatal(err)
	}
	migrated := make(chan error, 1)
	go func() { migrated <- migrate(t.Context()) }()
	writer, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close(context.WithoutCancel(t.Context()))
	waits := 0
	for end := time.Now().Add(20 * time.Second); waits < 2; { // of about 500 ms each
		begin := time.Now()
		if begin.After(end) {
			t.Fatalf("writers waited %d times: the migration does not try", waits)
		}
		if _, err := writer.Exec(t.Context(), `INSERT INTO t (a) VALUES (1)`); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Fatalf("a writer waited for %v", took)
		} else if took > 200*time.Millisecond {
			waits++
		}
	}
	select {
	case err := <-migrated:
		t.Fatalf("it did not wait for the reader: %v", err)
	default:
	}
	if err := reading.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-migrated; err != nil {
		t.Error(err)
	}
	if _, err := db.Exec(t.Context(), `UPDATE t SET b = 1`); err != nil {
		t.Error(err)
	}

	// An older program, which does not have the newest file.
	second := of["2_column.up.sql"]
	delete(of, "2_column.up.sql")
	if later, err := provision.Migrate(t.Context(), url, "", files(of)); err != nil || !later {
		t.Errorf("later %v: %v", later, err)
	}
	of["2_column.up.sql"] = second
	if _, err := provision.Migrate(t.Context(), url, "", files(nil)); err == nil || !strings.Contains(err.Error(), "no files") {
		t.Errorf("without files: %v", err)
	}

	// The process ended in the middle.
	if _, err := db.Exec(t.Context(), `UPDATE t_migrations SET dirty = true`); err != nil {
		t.Fatal(err)
	}
	const todo = "if not, UPDATE t_migrations SET version = 1, dirty = false; and try again"
	if err := migrate(t.Context()); err == nil || !strings.Contains(err.Error(), todo) {
		t.Error(err)
	}
}
