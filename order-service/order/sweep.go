package order

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"outboxsaga/internal/service"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// An order that is in progress for too long fails. An index of the orders in progress would be the
// plain way to find them, and would cost every order that never times out: an entry to make,
// to kill and to vacuum, and an update that is not HOT. But ids are UUIDv7, so the orders
// whose time has just come are a range of the primary key, and each has to be looked at
// once, when its time has come.
//
// What one look can miss is looked at again: an order that another transaction had locked,
// by its id; and an order that was not visible yet, because its transaction
// committed late, by a second look some time later. Where the second look has come to is
// kept in orders_swept, so that a start begins there and not at the first order.

const (
	// sweepEvery is how often orders are looked for whose time is over.
	sweepEvery = 500 * time.Millisecond
	// sweepRange is how many orders one statement looks at; sweepLimit how many
	// one transaction fails.
	sweepRange, sweepLimit = 5000, 500
	// secondLook is how much later an order is looked at again. It must exceed the time from the
	// making of an order's id to its commit (10 s, see service.Gather) and how far clocks may differ.
	secondLook = 2 * time.Minute
	// lookBack is how far before that position a start begins its first look: an instance whose clock was behind has given its
	// orders older ids, and would look for them by the same clock, but it may have ended, and its clock be right now. 5,000 orders
	// that have ended cost a start some 6 ms of PostgreSQL's time.
	lookBack = time.Hour
	// keepSwept is how often the second look's position is kept.
	keepSwept = 10 * time.Second
	// sweepTimeout bounds a round. A server that has gone without a word would else be waited for until TCP gives up.
	sweepTimeout = 15 * time.Second
)

const (
	// Up to $2, or what PostgreSQL's clock allows: an instance whose clock is ahead would fail what the others have just placed.
	lookAtOrders = `
WITH due AS (SELECT least($2, uuidv7_floor(now() - make_interval(secs => $3))) AS bound)
SELECT (SELECT bound FROM due), count(*), (array_agg(id))[count(*)], coalesce(array_agg(id) FILTER (WHERE status = 'IN_PROGRESS'), '{}')
FROM (SELECT id, status FROM orders WHERE id > $1 AND id < (SELECT bound FROM due) ORDER BY id LIMIT $4) range`

	// Several instances sweep at once: each takes what no other has locked.
	lockExpired = `
SELECT id::text, status, payment_status, payment_command, stock_status, stock_command, failure_reason, needs_attention
FROM orders WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED`

	selectSwept = `SELECT upto FROM orders_swept`
	// Never beyond what PostgreSQL's clock allows: this one, or another instance's, may be ahead.
	updateSwept = `
UPDATE orders_swept SET upto = least($1, allowed)
FROM (SELECT uuidv7_floor(clock_timestamp() - make_interval(secs => $2)) AS allowed) clock
WHERE upto < least($1, allowed) OR upto > allowed`
)

// sweep fails orders whose time is over, until ctx is done. It may run in several
// instances at once.
func (s *Saga) sweep(ctx context.Context) error {
	var first, second *sweeper
	var kept time.Time
	for {
		more, err := func() (bool, error) {
			ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
			defer cancel()
			if first == nil {
				var from uuid.UUID
				err := s.pool.QueryRow(ctx, selectSwept).Scan(&from)
				if errors.Is(err, pgx.ErrNoRows) {
					return false, errors.New("the table orders_swept has no row, and no order would time out: INSERT INTO orders_swept VALUES ('00000000-0000-0000-0000-000000000000')")
				}
				if err != nil {
					return false, fmt.Errorf("read orders_swept: %w", err)
				}
				begin := lower(from, s.until(secondLook))
				first, second = &sweeper{s, 0, floor(timeOf(begin).Add(-lookBack)), nil}, &sweeper{s, secondLook, begin, nil}
			}
			more, err := first.step(ctx)
			if err != nil {
				return false, err
			}
			moreLater, err := second.step(ctx)
			if more = more || moreLater; err != nil || more || time.Since(kept) < keepSwept {
				return more, err
			}
			kept = time.Now()
			_, err = s.pool.Exec(ctx, updateSwept, second.done(), (s.timeout + secondLook).Seconds())
			return false, err
		}()
		if err != nil && ctx.Err() == nil {
			s.log.Warn("looking for orders whose time is over failed; trying again", "error", err)
		}
		wait := sweepEvery
		if more {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// sweeper looks at each order once, when timeout and delay have passed since its placing.
type sweeper struct {
	saga  *Saga
	delay time.Duration
	at    uuid.UUID  // orders up to here were looked at
	again [][16]byte // but these were locked: in progress as far as is known
}

// step looks at the next orders and fails those in progress. more says that there are
// further ones whose time is over.
func (w *sweeper) step(ctx context.Context) (more bool, err error) {
	var until uuid.UUID
	var looked int
	var last *uuid.UUID
	var open [][16]byte
	err = w.saga.pool.QueryRow(ctx, lookAtOrders, [16]byte(w.at), [16]byte(w.saga.until(w.delay)), (w.saga.timeout+w.delay).Seconds(), sweepRange).Scan(&until, &looked, &last, &open)
	if err != nil {
		return false, fmt.Errorf("look for orders whose time is over: %w", err)
	}
	var locked [][16]byte
	for rest := append(w.again, open...); len(rest) > 0; {
		some := rest[:min(len(rest), sweepLimit)]
		rest = rest[len(some):]
		left, err := w.saga.expire(ctx, some)
		if err != nil {
			return false, err
		}
		locked = append(locked, left...)
	}
	w.again = locked
	if looked == sweepRange {
		w.at = *last
		return true, nil
	}
	w.at = until // also back: after a clock that was ahead is set right, orders come that are below what it has looked at
	return false, nil
}

// done is the id below which no order is in progress.
func (w *sweeper) done() [16]byte {
	low := w.at
	for _, id := range w.again {
		low = lower(low, id)
	}
	return low
}

// expire fails orders that are still in progress, in one transaction, and returns those that were locked.
func (s *Saga) expire(ctx context.Context, ids [][16]byte) (locked [][16]byte, err error) {
	k := newBook()
	err = service.Transact(ctx, s.pool, func(b *pgx.Batch) { k.queue(b, lockExpired, ids) },
		func(b *pgx.Batch) error { return s.end(b, k, Expire, "order.timed_out", "") })
	if err != nil {
		return nil, fmt.Errorf("time out %d orders: %w", len(ids), err)
	}
	for _, id := range ids {
		if k.orders.Get(uuid.UUID(id).String()).ID == "" {
			locked = append(locked, id)
		}
	}
	return locked, nil
}

// until is the bound of the ids of orders whose time has been over for that long, by this process's clock.
func (s *Saga) until(delay time.Duration) uuid.UUID { return floor(s.now().Add(-s.timeout - delay)) }

func lower(x, y uuid.UUID) uuid.UUID {
	if string(x[:]) < string(y[:]) {
		return x
	}
	return y
}

// timeOf is the time in a UUIDv7, or in what [floor] has made.
func timeOf(id uuid.UUID) time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))
}

// floor is the lowest UUIDv7 of a time: a bound on the ids of orders placed before.
func floor(t time.Time) (id uuid.UUID) {
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(max(0, t.UnixMilli())))
	copy(id[:6], ms[2:])
	return id
}
