package outbox_test

import (
	"context"
	"fmt"

	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
)

// The business row and its event commit together.
func ExampleWrite() {
	ctx := context.Background()
	t, done := stacktest.Example() // a PostgreSQL for this example; yours is your own
	defer done()
	url := stacktest.Database(t, provision.Migrations{FS: outbox.Migrations, Path: "migrations", Table: outbox.MigrationsTable})
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		panic(err)
	}
	defer conn.Close(ctx)
	_, _ = conn.Exec(ctx, `CREATE TABLE invoices (id text PRIMARY KEY, amount bigint)`)

	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO invoices VALUES ('i-1', 4200)`); err != nil {
			return err
		}
		ev, err := outbox.New("invoices", "invoice", "i-1", "invoice.issued", map[string]any{"amount": 4200})
		if err != nil {
			return err
		}
		return outbox.Write(ctx, tx, ev)
	})
	if err != nil {
		panic(err)
	}
	// From here Debezium takes it: this row becomes a record of the topic "invoices".
	var topic, key, payload string
	_ = conn.QueryRow(ctx, `SELECT topic, aggregate_id, payload FROM outbox`).Scan(&topic, &key, &payload)
	fmt.Println(topic, key, payload)
	// Output: invoices i-1 {"amount":4200}
}
