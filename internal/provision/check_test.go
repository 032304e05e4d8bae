package provision_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Each setting with which no event could flow is said, and what to do about it.
func TestCheck(t *testing.T) {
	s, err := stacktest.New("settings")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.UpOnly(ctx, devstack.Postgres); err != nil {
		t.Fatal(err)
	}
	admin, urls := s.PostgresURL("postgres"), map[string]string{}
	for _, d := range system.Databases() {
		urls[d.Name] = s.PostgresURL(d.Name)
	}
	restart := func(statements ...string) {
		t.Helper()
		conn, err := pgx.Connect(ctx, admin)
		if err != nil {
			t.Fatal(err)
		}
		for _, statement := range statements {
			if _, err := conn.Exec(ctx, statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		conn.Close(ctx)
		if err := s.Stop(ctx, devstack.Postgres); err != nil {
			t.Fatal(err)
		}
		if err := s.UpOnly(ctx, devstack.Postgres); err != nil {
			t.Fatal(err)
		}
	}
	wants := func(wants ...string) {
		t.Helper()
		err := provision.Check(ctx, urls, system.Databases())
		if err == nil {
			t.Fatalf("no error, want %q", wants)
		}
		if lines := strings.Count(err.Error(), "\n") + 1; lines != len(wants) {
			t.Errorf("%d lines, want %d:\n%v", lines, len(wants), err)
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("no %q in\n%v", want, err)
			}
		}
	}
	wants("role cdc is missing: run outboxctl provision", "database orderdb: run outboxctl provision", "database stockdb: ", "database paymentdb: ")
	if err := provision.Postgres(ctx, admin, nobody, system.Databases()); err != nil {
		t.Fatal(err)
	}
	if err := provision.Check(ctx, urls, system.Databases()); err != nil {
		t.Errorf("provisioned: %v", err)
	}
	restart(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`, `ALTER SYSTEM SET wal_level = replica`)
	wants("wal_level=replica: set wal_level=logical and restart it")
	restart(`ALTER SYSTEM RESET wal_level`, `ALTER SYSTEM SET max_replication_slots = 2`)
	wants("max_replication_slots=2 and max_wal_senders=16: both must be at least 3")
	restart(`ALTER SYSTEM SET max_replication_slots = 3`, `ALTER SYSTEM SET max_wal_senders = 2`)
	wants("max_replication_slots=3 and max_wal_senders=2: both must be at least 3")
	restart(`ALTER SYSTEM RESET max_wal_senders`)
	execute(t, s.PostgresURL("postgres"), `SELECT pg_create_physical_replication_slot('a_standby')`)
	wants("max_replication_slots=3 and max_wal_senders=16: both must be at least 4, for 3 databases and what others use (1 and 0)")
	execute(t, s.PostgresURL("postgres"), `SELECT pg_drop_replication_slot('a_standby')`)
	if err := provision.Check(ctx, urls, system.Databases()); err != nil {
		t.Errorf("mended: %v", err)
	}

	execute(t, s.PostgresURL("paymentdb"), `ALTER FUNCTION outbox_confirmed_topics RENAME TO x`)
	wants("database paymentdb: the outbox is of an older version: run outboxctl provision")
	execute(t, s.PostgresURL("paymentdb"), `ALTER FUNCTION x RENAME TO outbox_confirmed_topics`)
	execute(t, s.PostgresURL("stockdb"), `REVOKE SELECT ON outbox FROM cdc`)
	wants("database stockdb: the connectors' role cdc may not read the outbox: GRANT SELECT ON outbox TO cdc")
	execute(t, s.PostgresURL("stockdb"), `ALTER PUBLICATION outbox_pub DROP TABLE outbox`)
	wants("database stockdb: the publication outbox_pub does not have the table outbox: ALTER PUBLICATION outbox_pub ADD TABLE outbox")
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestCheckTopics(t *testing.T) {
	brokers, topic := stacktest.Brokers(t), stacktest.Topic(t, 3)
	if err := provision.CheckTopics(t.Context(), brokers, provision.Topic{Name: topic, Partitions: 3}); err != nil {
		t.Error(err)
	}
	err := provision.CheckTopics(t.Context(), brokers, provision.Topic{Name: topic, Partitions: 6}, provision.Topic{Name: "nowhere", Partitions: 6})
	if err == nil || !strings.Contains(err.Error(), "has 3 partitions, it must have 6") || !strings.Contains(err.Error(), "topic nowhere is missing: run outboxctl provision") {
		t.Error(err)
	}
}

// A row that was written while its database's clock was wrong must not stop all that is behind it.
func TestTopicsTakeTheTimesOfAWrongClock(t *testing.T) {
	topic := stacktest.Topic(t, 1)
	client, err := kgo.NewClient(kgo.SeedBrokers(stacktest.Brokers(t)...), kgo.ProducerLinger(0))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, ahead := range []time.Duration{8 * time.Hour, 30 * 24 * time.Hour, -30 * 24 * time.Hour} {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("x"), Timestamp: time.Now().Add(ahead)}).FirstErr(); err != nil {
			t.Errorf("%s ahead: %v", ahead, err)
		}
	}
}

// Kafka deletes whole segments: with its own segments of a week it would keep records for two, longer than an inbox remembers them.
func TestSegmentsEndSoon(t *testing.T) {
	topic := stacktest.Topic(t, 1)
	client, err := kgo.NewClient(kgo.SeedBrokers(stacktest.Brokers(t)...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	configs, err := kadm.NewClient(client).DescribeTopicConfigs(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs[0].Configs {
		if c.Key == "segment.ms" {
			if got := c.MaybeValue(); got != "43200000" {
				t.Errorf("segment.ms is %s", got)
			}
			return
		}
	}
	t.Error("there is no segment.ms")
}
