package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"outboxsaga/internal/bench/relay"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

var migrations = provision.Migrations{FS: outbox.Migrations, Path: "migrations", Table: outbox.MigrationsTable}

// A rival that loses or reorders would be no rival: each row arrives once, in the order of its key, with
// all that Debezium would have made of it.
func TestEveryRowArrivesOnceInOrder(t *testing.T) {
	for _, cfg := range []relay.Config{
		{Design: relay.Delete, Every: 5 * time.Millisecond, Batch: 100},
		{Design: relay.Notify, Every: time.Hour, Batch: 100},
		{Design: relay.Flag, Every: 5 * time.Millisecond, Batch: 100},
		{Design: relay.Naive, Every: 20 * time.Millisecond, Batch: 100},
	} {
		t.Run(string(cfg.Design), func(t *testing.T) {
			cfg.Pool = open(t, stacktest.Database(t, migrations), cfg.Design)
			cfg.Brokers = stacktest.Brokers(t)
			topic := stacktest.Topic(t, 3)
			start(t, cfg, 1)
			write(t, cfg.Pool, topic, 0, 60)
			got := read(t, cfg.Brokers, topic, keys*60)
			for key, values := range got {
				if !slices.Equal(values, numbers(60)) {
					t.Errorf("%s: %v", key, values)
				}
			}
			unsent(t, cfg)
		})
	}
}

// Two relays on a database do not send twice: one works, the other waits.
func TestOneOfTwoRelaysWorks(t *testing.T) {
	cfg := relay.Config{Design: relay.Delete, Every: time.Millisecond, Batch: 10, Pool: open(t, stacktest.Database(t, migrations), relay.Delete), Brokers: stacktest.Brokers(t)}
	topic := stacktest.Topic(t, 3)
	start(t, cfg, 2)
	write(t, cfg.Pool, topic, 0, 30)
	unsent(t, cfg)
	for key, values := range read(t, cfg.Brokers, topic, keys*30) {
		if !slices.Equal(values, numbers(30)) {
			t.Errorf("%s: %v", key, values)
		}
	}
}

// What becomes visible long after newer rows were sent is found nevertheless.
func TestALateCommitIsSent(t *testing.T) {
	cfg := relay.Config{Design: relay.Delete, Every: 5 * time.Millisecond, Batch: 100, Pool: open(t, stacktest.Database(t, migrations), relay.Delete), Brokers: stacktest.Brokers(t)}
	topic := stacktest.Topic(t, 3)
	start(t, cfg, 1)
	late, err := cfg.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback(context.Background()) }()
	if err := outbox.Write(t.Context(), late, event(t, topic, 0, 99)); err != nil {
		t.Fatal(err)
	}
	for end, i := time.Now().Add(1500*time.Millisecond), 0; time.Now().Before(end); i++ {
		write(t, cfg.Pool, topic, i, i+1)
		time.Sleep(50 * time.Millisecond)
	}
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	unsent(t, cfg)
}

// The relay survives the broker, and PostgreSQL: nothing is lost. Repeats are allowed, and no row overtakes another of its
// key when it comes for the first time.
func TestSurvivesItsBrokerAndItsDatabase(t *testing.T) {
	stack, err := stacktest.New("relay")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	if err := stack.UpOnly(ctx, devstack.Postgres, devstack.Kafka); err != nil {
		t.Fatal(err)
	}
	if _, err := provision.Migrate(ctx, stack.PostgresURL("postgres"), "", migrations); err != nil {
		t.Fatal(err)
	}
	const topic = "survives"
	if err := provision.Topics(ctx, stack.Brokers(), 1, provision.Topic{Name: topic, Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	cfg := relay.Config{Design: relay.Delete, Every: 5 * time.Millisecond, Batch: 100, Pool: open(t, stack.PostgresURL("postgres"), relay.Delete), Brokers: stack.Brokers()}
	start(t, cfg, 1)
	const each = 200
	for i, engine := range []string{devstack.Kafka, devstack.Postgres} {
		from := i * each / 2
		write(t, cfg.Pool, topic, from, from+each/4)
		if err := stack.Stop(ctx, engine); err != nil {
			t.Fatal(err)
		}
		if engine == devstack.Kafka {
			write(t, cfg.Pool, topic, from+each/4, from+each/2)
		}
		if err := stack.UpOnly(ctx, engine); err != nil {
			t.Fatal(err)
		}
		if engine == devstack.Postgres {
			cfg.Pool.Reset()
			write(t, cfg.Pool, topic, from+each/4, from+each/2)
		}
	}
	unsent(t, cfg)
	for key, values := range read(t, cfg.Brokers, topic, keys*each) {
		var first []string
		for _, v := range values {
			if !slices.Contains(first, v) {
				first = append(first, v)
			}
		}
		if !slices.Equal(first, numbers(each)) {
			t.Errorf("%s: %v", key, first)
		}
	}
}

func open(t *testing.T, url string, design relay.Design) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := relay.Prepare(t.Context(), pool, design); err != nil {
		t.Fatal(err)
	}
	return pool
}

// start runs relays until the test ends.
func start(t *testing.T, cfg relay.Config, n int) {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, n)
	for range n {
		go func() { done <- relay.Run(ctx, cfg) }()
	}
	t.Cleanup(func() {
		stop()
		for range n {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

const keys = 10

func event(t *testing.T, topic string, key, i int) outbox.Event {
	t.Helper()
	e, err := outbox.New(topic, "thing", fmt.Sprint("key-", key), "thing.counted", i)
	if err != nil {
		t.Fatal(err)
	}
	e.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	return e
}

// write writes the numbers of [from, to) for each key, a transaction for each number.
func write(t *testing.T, pool *pgxpool.Pool, topic string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			var events []outbox.Event
			for k := range keys {
				events = append(events, event(t, topic, k, i))
			}
			return outbox.Write(t.Context(), tx, events...)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func numbers(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

// read reads n different records, by key, and all their repeats so far.
func read(t *testing.T, brokers []string, topic string, n int) map[string][]string {
	t.Helper()
	consumer, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	wait, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, ids := map[string][]string{}, map[string]bool{}
	for len(ids) < n && wait.Err() == nil {
		for _, rec := range consumer.PollFetches(wait).Records() {
			got[string(rec.Key)] = append(got[string(rec.Key)], string(rec.Value))
			if len(rec.Headers) != 3 || rec.Headers[0].Key != "id" || len(rec.Headers[0].Value) != 36 || string(rec.Headers[1].Value) != "thing.counted" ||
				rec.Headers[2].Key != "traceparent" || time.Since(rec.Timestamp).Abs() > time.Minute {
				t.Fatalf("%+v", rec)
			}
			ids[string(rec.Headers[0].Value)] = true
		}
	}
	if len(ids) != n || len(got) != keys {
		t.Fatalf("%d records of %d keys arrived, want %d", len(ids), len(got), n)
	}
	return got
}

// unsent waits until no row is left to send: that is committed a moment after the records are there.
func unsent(t *testing.T, cfg relay.Config) {
	t.Helper()
	sql := `SELECT count(*) FROM outbox`
	if cfg.Design == relay.Flag {
		sql += ` WHERE NOT sent`
	}
	left := -1
	for end := time.Now().Add(30 * time.Second); left != 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := cfg.Pool.QueryRow(t.Context(), sql).Scan(&left); err != nil {
			t.Fatal(err)
		}
	}
	if left != 0 {
		t.Errorf("%d rows are left", left)
	}
}
