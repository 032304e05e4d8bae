package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Transact runs one transaction in two round trips: what load queued, then what save
// queued together with the commit. Between the two the callbacks of load have run, so
// save decides on what they brought; it does no I/O. Without load (nil) one round trip is
// enough. An error of either, or of a statement, rolls everything back.
func Transact(ctx context.Context, pool *pgxpool.Pool, load func(*pgx.Batch), save func(*pgx.Batch) error) error {
	return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
		defer func() {
			if err != nil && !conn.Conn().IsClosed() {
				// Outlives ctx: a connection must not go back with an open transaction.
				end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
				defer cancel()
				_, rollback := conn.Exec(end, "rollback")
				err = errors.Join(err, rollback)
			}
		}()
		first := &pgx.Batch{}
		first.Queue("begin")
		second := first
		if load != nil {
			load(first)
			if err := conn.SendBatch(ctx, first).Close(); err != nil {
				return fmt.Errorf("load: %w", err)
			}
			second = &pgx.Batch{}
		}
		if err := save(second); err != nil {
			return err
		}
		second.Queue("commit").Exec(func(tag pgconn.CommandTag) error {
			if tag.String() != "COMMIT" {
				return fmt.Errorf("commit answered %s: %w", tag, pgx.ErrTxCommitRollback)
			}
			return nil
		})
		if err := conn.SendBatch(ctx, second).Close(); err != nil {
			return fmt.Errorf("save: %w", err)
		}
		return nil
	})
}
