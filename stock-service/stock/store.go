package stock

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"outboxsaga/internal/service"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// book is what a transaction has loaded, and changes.
type book struct {
	reservations service.Rows[Reservation] // by order id
	items        service.Rows[Item]        // by SKU
}

func newBook() book {
	return book{service.NewRows[Reservation](), service.NewRows[Item]()}
}

const (
	lockReservations = `
SELECT order_id::text, status, reason, items::text FROM reservations
WHERE order_id = ANY($1::uuid[]) ORDER BY reservations.order_id FOR UPDATE`

	// The items that are named, and those that the compensated orders hold. Reservations
	// are locked before, so this statement sees them as they stay.
	lockItems = `
SELECT sku, available, reserved, received FROM items
WHERE sku = ANY($1::text[] || ARRAY(
    SELECT line ->> 'sku' FROM reservations r, json_array_elements(r.items) line
    WHERE r.order_id = ANY($2::uuid[]) AND r.status = 'RESERVED'))
ORDER BY sku FOR UPDATE`

	// No ON CONFLICT: if another instance has just made the row, this transaction must
	// fail and be tried again, to see it.
	insertReservations = `
INSERT INTO reservations (order_id, status, reason, items)
SELECT order_id, status, reason, items::json
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS u (order_id, status, reason, items)`

	updateReservations = `
UPDATE reservations r SET status = u.status, updated_at = clock_timestamp()
FROM unnest($1::uuid[], $2::text[]) AS u (order_id, status) WHERE r.order_id = u.order_id`

	insertItems = `
INSERT INTO items (sku, available, reserved, received)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])`

	updateItems = `
UPDATE items i SET available = u.available, reserved = u.reserved, received = u.received
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS u (sku, available, reserved, received)
WHERE i.sku = u.sku`
)

func (k book) queueReservations(b *pgx.Batch, orders []string) {
	k.reservations.Queue(b, func(r Reservation) string { return r.OrderID }, lockReservations, service.OrderIDs(orders))
}

func (k book) queueItems(b *pgx.Batch, skus, compensated []string) {
	slices.Sort(skus)
	k.items.Queue(b, func(i Item) string { return i.SKU }, lockItems, slices.Compact(skus), service.OrderIDs(compensated))
}

// queueSave writes one statement for each kind of change.
func (k book) queueSave(b *pgx.Batch) {
	if added := k.reservations.Added(); len(added) > 0 {
		b.Queue(insertReservations, reservationColumns(added)...)
	}
	if changed := k.reservations.Changed(); len(changed) > 0 {
		columns := reservationColumns(changed)
		b.Queue(updateReservations, columns[0], columns[1])
	}
	if added := k.items.Added(); len(added) > 0 {
		b.Queue(insertItems, itemColumns(added)...)
	}
	if changed := k.items.Changed(); len(changed) > 0 {
		b.Queue(updateItems, itemColumns(changed)...)
	}
}

func reservationColumns(rows []Reservation) []any {
	n := len(rows)
	orders, statuses, reasons, lines := make([][16]byte, n), make([]string, n), make([]string, n), make([]string, n)
	for i, r := range rows {
		orders[i], statuses[i], reasons[i], lines[i] = uuid.MustParse(r.OrderID), string(r.Status), r.Reason, string(r.Lines)
	}
	return []any{orders, statuses, reasons, lines}
}

func itemColumns(rows []Item) []any {
	n := len(rows)
	skus, available, reserved, received := make([]string, n), make([]int64, n), make([]int64, n), make([]int64, n)
	for i, item := range rows {
		skus[i], available[i], reserved[i], received[i] = item.SKU, item.Available, item.Reserved, item.Received
	}
	return []any{skus, available, reserved, received}
}

// Store serves the HTTP routes. [NewStore] makes it, [Store.Run] runs its writers.
type Store struct {
	pool     *service.Pool
	receipts *service.Gather[Receipt, Item]
}

// Receipt is goods that came in.
type Receipt struct {
	SKU      string
	Quantity int64
	Key      *service.IdempotencyKey // may be nil
}

// NewStore makes a store on the database of stock-service.
func NewStore(pool *service.Pool) *Store {
	s := &Store{pool: pool}
	s.receipts = service.NewGather(1, 200, s.receive)
	return s
}

// Run owns the writer of receipts; it blocks until ctx is done.
func (s *Store) Run(ctx context.Context) error { return s.receipts.Run(ctx) }

// Receive adds goods to an item, which it makes if it is new, and returns the item. A
// receipt with a key that was used before adds nothing.
func (s *Store) Receive(ctx context.Context, r Receipt) (Item, error) {
	return s.receipts.Do(ctx, r)
}

// receive commits receipts together.
func (s *Store) receive(ctx context.Context, receipts []Receipt) ([]service.Result[Item], error) {
	claims := make([]service.Claim, len(receipts))
	skus := make([]string, len(receipts))
	for i, r := range receipts {
		claims[i] = service.Claim{Key: r.Key, Response: r.SKU}
		skus[i] = r.SKU
	}
	k := newBook()
	results := make([]service.Result[Item], len(receipts))
	err := service.Transact(ctx, s.pool, func(b *pgx.Batch) {
		service.QueueClaim(b, claims)
		k.queueItems(b, skus, nil)
	}, func(b *pgx.Batch) error {
		for i, r := range receipts {
			item := k.items.Get(r.SKU)
			if claims[i].Fresh {
				var err error
				if item, err = Receive(item, r.SKU, r.Quantity); err != nil {
					return err
				}
				k.items.Set(r.SKU, item)
			}
			results[i] = service.Result[Item]{Value: item, Err: claims[i].Err}
		}
		k.queueSave(b)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("receive goods: %w", err)
	}
	return results, nil
}

// Item reads one item; nil if there is none.
func (s *Store) Item(ctx context.Context, sku string) (*Item, error) {
	return service.SelectOne[Item](ctx, s.pool, "an item", `SELECT sku, available, reserved, received FROM items WHERE sku = $1`, sku)
}

// Items reads up to limit items whose SKU comes after another one.
func (s *Store) Items(ctx context.Context, after string, limit int) ([]Item, error) {
	return service.Select[Item](ctx, s.pool, "items",
		`SELECT sku, available, reserved, received FROM items WHERE sku > $1 ORDER BY sku LIMIT $2`, after, limit)
}

// View is a reservation as its readers see it.
type View struct {
	OrderID   uuid.UUID       `json:"order_id"`
	Status    Status          `json:"status"`
	Reason    string          `json:"reason,omitempty"`
	Items     json.RawMessage `json:"items"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// Reservation reads the reservation of an order; nil if there is none.
func (s *Store) Reservation(ctx context.Context, orderID uuid.UUID) (*View, error) {
	v, err := service.SelectOne[View](ctx, s.pool, "a reservation",
		`SELECT order_id, status, reason, items, created_at, updated_at FROM reservations WHERE order_id = $1`, orderID)
	if v != nil {
		v.CreatedAt, v.UpdatedAt = v.CreatedAt.UTC(), v.UpdatedAt.UTC()
	}
	return v, err
}
