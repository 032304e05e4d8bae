// Package migrations holds the DDL of order-service for golang-migrate. It runs
// after the migrations of the outbox and the inbox, which it builds on.
package migrations

import "embed"

// FS holds the migration files, at its root.
//
//go:embed *.sql
var FS embed.FS
