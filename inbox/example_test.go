package inbox_test

import (
	"context"
	"fmt"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A consumer that handles one event at a time. The record comes twice, as it may after a
// crash; the effect happens once.
func ExampleConsumer() {
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	t, done := stacktest.Example() // a PostgreSQL and a Kafka for this example
	defer done()
	pool, err := pgxpool.New(ctx, stacktest.Database(t,
		provision.Migrations{FS: outbox.Migrations, Path: "migrations", Table: outbox.MigrationsTable},
		provision.Migrations{FS: inbox.Migrations, Path: "migrations", Table: inbox.MigrationsTable}))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	_, _ = pool.Exec(ctx, `CREATE TABLE mails (address text)`)
	brokers, topic := stacktest.Brokers(t), stacktest.Topic(t, 1)

	record := kgo.Record{Topic: topic, Key: []byte("i-1"), Value: []byte(`ann@example.org`), Headers: []kgo.RecordHeader{
		{Key: "id", Value: []byte(outbox.NewID().String())}, {Key: "type", Value: []byte("invoice.issued")},
	}}
	again := record
	last := record
	last.Value, last.Headers = []byte("bob@example.org"), []kgo.RecordHeader{{Key: "id", Value: []byte(outbox.NewID().String())}}
	producer, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		panic(err)
	}
	defer producer.Close()
	if err := producer.ProduceSync(ctx, &record, &again, &last).FirstErr(); err != nil {
		panic(err)
	}

	consumer, err := inbox.New(inbox.Config{
		Pool: pool, Brokers: brokers, Group: "mailer", Topics: []string{topic},
		Each: func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
			_, err := tx.Exec(ctx, `INSERT INTO mails VALUES ($1)`, string(ev.Payload))
			return err
		},
		Hooks: inbox.Hooks{Committed: func(fresh, repeated, dead int, _ time.Duration) {
			fmt.Printf("%d with an effect, %d repeated, %d dead letters\n", fresh, repeated, dead)
			stop()
		}},
	})
	if err != nil {
		panic(err)
	}
	if err := consumer.Run(ctx); err != nil { // until ctx is done
		panic(err)
	}
	rows, _ := pool.Query(context.Background(), `SELECT address FROM mails ORDER BY address`)
	addresses, _ := pgx.CollectRows(rows, pgx.RowTo[string])
	fmt.Println(addresses)
	// Output:
	// 2 with an effect, 1 repeated, 0 dead letters
	// [ann@example.org bob@example.org]
}
