package service

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// acquireTimeout bounds how long a request waits for a connection. When all are busy for longer, or the database
// does not answer, it fails ([Unavailable]): a client that may come again is better than a pile of those that wait.
const acquireTimeout = 2 * time.Second

// reserved is how many connections reads leave alone: one each for the consumer, two writers, and what asks whether the
// database answers. Of a small pool one is left for reads.
const reserved = 4

// Pool is a service's connections to its database. Reads take all but some of them at most, so that clients that read
// cannot keep the consumer, the writers and /readyz from working. [NewPool] makes it.
type Pool struct {
	*pgxpool.Pool
	reads  chan struct{} // holds an element for each read under way
	waited atomic.Int64  // nanoseconds, of what pgxpool does not count: for a read's turn, and in vain
}

// NewPool bounds the reads of a pool that is used by nobody else.
func NewPool(pool *pgxpool.Pool) *Pool {
	size := int(pool.Config().MaxConns)
	return &Pool{Pool: pool, reads: make(chan struct{}, max(1, size-reserved))}
}

// Read runs do, which reads with one connection at a time, once there are few enough others. Like [Transact] it waits 2 s at most.
func (p *Pool) Read(ctx context.Context, do func(context.Context) error) error {
	wait, cancel := context.WithTimeout(ctx, acquireTimeout)
	defer cancel()
	var err error
	begin := time.Now()
	select {
	case p.reads <- struct{}{}:
	case <-wait.Done():
		err = wait.Err()
	}
	p.waited.Add(int64(time.Since(begin)))
	if err != nil {
		return p.busy(ctx, err)
	}
	defer func() { <-p.reads }()
	return do(ctx)
}

func (p *Pool) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	wait, cancel := context.WithTimeout(ctx, acquireTimeout)
	defer cancel()
	begin := time.Now()
	conn, err := p.Acquire(wait)
	if err != nil && wait.Err() != nil {
		p.waited.Add(int64(time.Since(begin)))
		return nil, p.busy(ctx, err)
	}
	return conn, err
}

// waits is how long all have waited for connections so far, also in vain.
func (p *Pool) waits() time.Duration {
	return p.Stat().AcquireDuration() + time.Duration(p.waited.Load())
}

// busy is the error of what has waited for [acquireTimeout], unless it is ctx that is over.
func (p *Pool) busy(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	s := p.Stat()
	return fmt.Errorf("no connection to the database within %s (%d of %d are in use, up to %d of them for reads: look for what holds them, or set DATABASE_POOL_SIZE): %w",
		acquireTimeout, s.AcquiredConns(), s.MaxConns(), cap(p.reads), err)
}

// Collect reads rows outside a transaction. Like [Transact] it waits some seconds at most for a connection.
func Collect[T any](ctx context.Context, pool *Pool, scan pgx.RowToFunc[T], sql string, args ...any) (found []T, err error) {
	err = pool.Read(ctx, func(ctx context.Context) error {
		conn, err := pool.acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		rows, err := conn.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(rows, scan)
		return err
	})
	return found, err
}

// Transact runs one transaction in two round trips: what load queued, then what save
// queued together with the commit. Between the two the callbacks of load have run, so
// save decides on what they brought; it does no I/O. Without load (nil) one round trip is
// enough. An error of either, or of a statement, rolls everything back.
func Transact(ctx context.Context, pool *Pool, load func(*pgx.Batch), save func(*pgx.Batch) error) (err error) {
	conn, err := pool.acquire(ctx)
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
