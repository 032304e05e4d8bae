package outbox

import (
	"context"
	"fmt"
)

// SettingError is a setting of PostgreSQL with which no event would leave the database. Its text is one
// line and says what to do.
type SettingError struct{ text string }

// Error is the setting and what to do.
func (e SettingError) Error() string { return e.text }

// CheckPublication tells whether a connector can read this outbox: the publication outbox_pub is there and
// publishes the inserts of the outbox as those of one table. Any role may ask. What is wrong is a
// [SettingError]; another error means that the database could not be asked.
func CheckPublication(ctx context.Context, db Querier) error {
	var exists, right, covers bool
	err := db.QueryRow(ctx, `
SELECT p.oid IS NOT NULL, coalesce(p.pubviaroot AND p.pubinsert, false),
       EXISTS (SELECT FROM pg_publication_tables t JOIN pg_class c ON c.relname = t.tablename AND c.relnamespace::regnamespace::text = quote_ident(t.schemaname)
               WHERE t.pubname = 'outbox_pub' AND c.oid = to_regclass('outbox'))
FROM (VALUES ('outbox_pub')) want (name) LEFT JOIN pg_publication p ON p.pubname = want.name`).Scan(&exists, &right, &covers)
	switch {
	case err != nil:
		return fmt.Errorf("outbox: read the publication: %w", err)
	case !exists:
		return SettingError{"the publication outbox_pub is missing, so no event would leave the outbox: CREATE PUBLICATION outbox_pub FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true), as the outbox's migrations do, and make the replication slot anew"}
	case !right:
		return SettingError{"the publication outbox_pub must publish inserts as those of the table outbox: ALTER PUBLICATION outbox_pub SET (publish = 'insert', publish_via_partition_root = true)"}
	case !covers:
		return SettingError{"the publication outbox_pub does not have the table outbox: ALTER PUBLICATION outbox_pub ADD TABLE outbox"}
	}
	return nil
}
