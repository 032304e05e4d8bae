package outbox

import "embed"

// Migrations holds the DDL of the outbox for golang-migrate, in the folder
// "migrations". Run it with a version table of its own ([MigrationsTable]) before
// your service's migrations, as the role that owns the tables.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// MigrationsTable is the version table for [Migrations].
const MigrationsTable = "outbox_migrations"
