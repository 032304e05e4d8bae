package inbox

import "embed"

// Migrations holds the DDL of the inbox for golang-migrate, in the folder
// "migrations". Run it with a version table of its own ([MigrationsTable]) before
// your service's migrations, as the role that owns the tables.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// MigrationsTable is the version table for [Migrations].
const MigrationsTable = "inbox_migrations"
