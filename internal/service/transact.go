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

// acquireTimeout bounds how long a request waits for a connection. When all are busy for longer, or the database
// does not answer, it fails ([Unavailable]): a client that may come again is better than a pile of those that wait.
const acquireTimeout = 2 * time.Second

func acquire(ctx context.Context, pool *pgxpool.Pool) (*pgxpool.Conn, error) {
	wait, cancel := context.WithTimeout(ctx, acquireTimeout)
	defer cancel()
	conn, err := pool.Acquire(wait)
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		s := pool.Stat()
		return nil, fmt.Errorf("no connection to the database within %s (%d of %d are in use: look for what holds them, or set DATABASE_POOL_SIZE): %w",
			acquireTimeout, s.AcquiredConns(), s.MaxConns(), err)
	}
	return conn, err
}

// Collect reads rows outside a transaction. Like [Transact] it waits 2 s at most for a connection.
func Collect[T any](ctx context.Context, pool *pgxpool.Pool, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	conn, err := acquire(ctx, pool)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// Transact runs one transaction in two round trips: what load queued, then what save
// queued together with the commit. Between the two the callbacks of load have run, so
// save decides on what they brought; it does no I/O. Without load (nil) one round trip is
// enough. An error of either, or of a statement, rolls everything back.
func Transact(ctx context.Context, pool *pgxpool.Pool, load func(*pgx.Batch), save func(*pgx.Batch) error) (err error) {
	conn, err := acquire(ctx, pool)
	if err != nil {
		return err
	}
	defer conn.Release()
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
}
