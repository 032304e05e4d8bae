package provision_test

import (
	"context"
	"io/fs"
	"path"
	"slices"
	"testing"

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
