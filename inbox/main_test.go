package inbox_test

import (
	"testing"

	"outboxsaga/inbox"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func database(t testing.TB) string {
	return stacktest.Database(t,
		provision.Migrations{FS: outbox.Migrations, Path: "migrations", Table: outbox.MigrationsTable},
		provision.Migrations{FS: inbox.Migrations, Path: "migrations", Table: inbox.MigrationsTable})
}

func brokers(t testing.TB) []string { return stacktest.Brokers(t) }

func topic(t testing.TB, partitions int32) string { return stacktest.Topic(t, partitions) }
