package outbox_test

import (
	"testing"

	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func database(t *testing.T) string {
	return stacktest.Database(t, provision.Migrations{FS: outbox.Migrations, Path: "migrations", Table: outbox.MigrationsTable})
}
