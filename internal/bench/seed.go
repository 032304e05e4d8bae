package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// seedChunk is how many orders a transaction seeds.
const seedChunk = 20_000

// seedID makes the id of what belongs to order n: the same in all databases, a UUIDv7.
const seedID = `
CREATE OR REPLACE FUNCTION pg_temp.seed_id(what text, n bigint, ms bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
	SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(md5(what || n), 1, 3) || '8' || substr(md5(what || n), 4, 15))::uuid
$$`

// The statements for a chunk of orders: $1 to $2 are their numbers, $3 and $4 the first and last time of all as
// milliseconds, $5 how many there are in all, $6 customers or items or both.
const (
	// seedOf has what the statements need of an order.
	seedOf = `
WITH numbered AS (SELECT n, $3::bigint + n * ($4::bigint - $3::bigint) / $5::bigint AS ms FROM generate_series($1::bigint, $2::bigint) n),
o AS (SELECT n, ms, pg_temp.seed_id('order', n, ms) AS id, to_timestamp(ms / 1000.0) AS at, to_timestamp(ms / 1000.0) AT TIME ZONE 'UTC' AS utc,
	pg_temp.seed_id('payment', n, ms) AS payment, pg_temp.seed_id('stock', n, ms) AS stock,
	pg_temp.seed_id('paid', n, ms + 5) AS paid, pg_temp.seed_id('reserved', n, ms + 5) AS reserved,
	'customer-' || (n * 7919 % $6::bigint) AS customer, 'item-' || (n * 104729 % $7::bigint) AS sku
	FROM numbered)`

	// A real order is inserted and updated in its page: so is this one.
	seedOrders = seedOf + `
INSERT INTO orders (id, customer_id, payment_command, stock_command, amount, items, created_at, updated_at)
SELECT id, customer, payment, stock, 5, '[{"sku":"' || sku || '","quantity":1,"unit_price":5}]', at, at FROM o ORDER BY n`

	seedSettled = seedOf + `
UPDATE orders SET status = 'SUCCESS', payment_status = 'SUCCESS', stock_status = 'SUCCESS', updated_at = o.at + interval '10 ms',
timeline = '{"at":"' || to_char(o.utc, 'YYYY-MM-DD"T"HH24:MI:SS.US') || 'Z","event":"payment.succeeded","event_id":"' || paid || '"}' || chr(10) ||
           '{"at":"' || to_char(o.utc, 'YYYY-MM-DD"T"HH24:MI:SS.US') || 'Z","event":"stock.succeeded","event_id":"' || reserved || '"}' || chr(10)
FROM o WHERE orders.id = o.id`

	seedCommands = seedOf + `
INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload, created_at)
SELECT e.* FROM o, LATERAL (VALUES
	(payment, 'payment', 'order', o.id::text, 'payment.requested', '{"order_id":"' || o.id || '","customer_id":"' || customer || '","amount":5}', utc),
	(stock, 'stock', 'order', o.id::text, 'stock.requested', '{"order_id":"' || o.id || '","items":[{"sku":"' || sku || '","quantity":1}]}', utc)) e
ORDER BY n`

	seedAnswered = seedOf + `
INSERT INTO inbox (event_id, received_at) SELECT e.id, at FROM o, LATERAL (VALUES (paid), (reserved)) e (id) ORDER BY n`

	seedReservations = seedOf + `
INSERT INTO reservations (order_id, status, reason, items, created_at, updated_at)
SELECT id, 'RESERVED', '', ('[{"sku":"' || sku || '","quantity":1}]')::json, at, at FROM o ORDER BY n`

	seedReserved = seedOf + `
INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload, created_at)
SELECT reserved, 'stock.success', 'order', id::text, 'stock.succeeded', '{"order_id":"' || id || '"}', utc FROM o ORDER BY n`

	seedStockInbox = seedOf + ` INSERT INTO inbox (event_id, received_at) SELECT stock, at FROM o ORDER BY n`

	seedItems = seedOf + `
UPDATE items SET available = available - sold, reserved = reserved + sold FROM (SELECT sku, count(*) AS sold FROM o GROUP BY sku) o WHERE items.sku = o.sku`

	seedPayments = seedOf + `
INSERT INTO payments (order_id, customer_id, amount, status, reason, created_at, updated_at)
SELECT id, customer, 5, 'CHARGED', '', at, at FROM o ORDER BY n`

	seedPaid = seedOf + `
INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload, created_at)
SELECT paid, 'payment.success', 'order', id::text, 'payment.succeeded', '{"order_id":"' || id || '","amount":5}', utc FROM o ORDER BY n`

	seedPaymentInbox = seedOf + ` INSERT INTO inbox (event_id, received_at) SELECT payment, at FROM o ORDER BY n`

	seedAccounts = seedOf + `
UPDATE accounts SET balance = balance - spent, charged = charged + spent
FROM (SELECT customer, 5 * count(*) AS spent FROM o GROUP BY customer) o WHERE accounts.customer_id = o.customer`
)

// Seed puts n settled orders of the shape's customers and items into the databases, which must have these: the rows
// that the services would have left, outbox and inbox included, with ids of today, then vacuums.
// No connector may read the slots, or the events are sent. order, stock and payment are pools of superusers.
func Seed(ctx context.Context, order, stock, payment *pgxpool.Pool, s Shape, n int, progress func(done int)) error {
	if n == 0 {
		return nil
	}
	now := time.Now().UTC()
	last := now.Add(-time.Second)
	first := now.Add(-6 * time.Hour)
	if midnight := now.Truncate(24 * time.Hour); first.Before(midnight) {
		first = midnight
	}
	if last.Before(first) {
		last = first
	}
	var all errgroup.Group
	for _, part := range []struct {
		pool       *pgxpool.Pool
		statements []string
		progress   func(int)
	}{
		{order, []string{seedOrders, seedSettled, seedCommands, seedAnswered}, progress},
		{stock, []string{seedReservations, seedReserved, seedStockInbox, seedItems}, nil},
		{payment, []string{seedPayments, seedPaid, seedPaymentInbox, seedAccounts}, nil},
	} {
		all.Go(func() error {
			return part.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				// Without statistics a chunk would be joined with the whole table.
				for _, sql := range []string{seedID, `SET enable_hashjoin = off`, `SET enable_mergejoin = off`, `SET enable_seqscan = off`, `SET synchronous_commit = off`} {
					if _, err := conn.Exec(ctx, sql); err != nil {
						return err
					}
				}
				for from := 1; from <= n; from += seedChunk {
					to := min(n, from+seedChunk-1)
					// At once: an order that the service saw before it is settled, it would cancel, for its time is over.
					err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
						for _, sql := range part.statements {
							if _, err := tx.Exec(ctx, sql, from, to, first.UnixMilli(), last.UnixMilli(), n, s.Customers, s.Items); err != nil {
								return err
							}
						}
						return nil
					})
					if err != nil {
						return fmt.Errorf("seed orders %d to %d: %w", from, to, err)
					}
					if part.progress != nil {
						part.progress(to)
					}
				}
				for _, sql := range []string{`RESET ALL`, `VACUUM (ANALYZE)`, `CHECKPOINT`} {
					if _, err := conn.Exec(ctx, sql); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	return all.Wait()
}
