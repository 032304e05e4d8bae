package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"outboxsaga/internal/bench/relay"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// A rival that loses or reorders would be no rival: each row arrives once, in the order of its key, with
// all that Debezium would have made of it.
func TestEveryRowArrivesOnceInOrder(t *testing.T) {
	for name, cfg := range map[string]relay.Config{
		"best": {Every: 5 * time.Millisecond, Batch: 100}, "naive": {Every: 20 * time.Millisecond, Batch: 100, Naive: true},
	} {
		t.Run(name, func(t *testing.T) { relays(t, cfg) })
	}
}

func relays(t *testing.T, cfg relay.Config) {
	pool, err := pgxpool.New(t.Context(), stacktest.Database(t, provision.Migrations{FS: outbox.Migrations, Path: "migrations", Table: outbox.MigrationsTable}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := relay.Prepare(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	topic := stacktest.Topic(t, 3)
	cfg.Pool, cfg.Brokers, cfg.Log = pool, stacktest.Brokers(t), slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx, cfg) }()

	const keys, each = 10, 60
	for i := range each {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			var events []outbox.Event
			for k := range keys {
				e, err := outbox.New(topic, "thing", fmt.Sprint("key-", k), "thing.counted", i)
				if err != nil {
					return err
				}
				e.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
				events = append(events, e)
			}
			return outbox.Write(t.Context(), tx, events...)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	consumer, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	wait, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got, n := map[string][]string{}, 0
	for n < keys*each && wait.Err() == nil {
		for _, rec := range consumer.PollFetches(wait).Records() {
			n++
			got[string(rec.Key)] = append(got[string(rec.Key)], string(rec.Value))
			if len(rec.Headers) != 3 || rec.Headers[0].Key != "id" || len(rec.Headers[0].Value) != 36 || string(rec.Headers[1].Value) != "thing.counted" ||
				rec.Headers[2].Key != "traceparent" || time.Since(rec.Timestamp) > time.Minute {
				t.Fatalf("%+v", rec)
			}
		}
	}
	var want []string
	for i := range each {
		want = append(want, fmt.Sprint(i))
	}
	for k := range keys {
		if key := fmt.Sprint("key-", k); !slices.Equal(got[key], want) {
			t.Errorf("%s: %v", key, got[key])
		}
	}
	// Deletes are committed a moment after the records are there.
	left := -1
	for end := time.Now().Add(10 * time.Second); left != 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM outbox`).Scan(&left); err != nil {
			t.Fatal(err)
		}
	}
	if left != 0 {
		t.Errorf("%d rows are left", left)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
