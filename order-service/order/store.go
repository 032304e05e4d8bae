package order

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/service"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	lockOrders = `
SELECT id::text, status, payment_status, payment_command, stock_status, stock_command, failure_reason, needs_attention
FROM orders WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE`

	updateOrders = `
UPDATE orders o SET status = u.status, payment_status = u.payment, stock_status = u.stock, failure_reason = u.reason,
       needs_attention = u.attention, timeline = o.timeline || u.timeline, updated_at = clock_timestamp()
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::text[])
     AS u (id, status, payment, stock, reason, attention, timeline)
WHERE o.id = u.id`

	insertOrders = `
INSERT INTO orders (id, customer_id, payment_command, stock_command, amount, items, created_at, updated_at)
SELECT id, customer_id, payment_command, stock_command, amount, items, created_at, created_at
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::uuid[], $5::bigint[], $6::text[], $7::timestamptz[])
     AS u (id, customer_id, payment_command, stock_command, amount, items, created_at)`
)

// book is what a transaction has loaded, and changes.
type book struct {
	orders   service.Rows[Order] // by id
	timeline map[string][]byte   // lines to append
}

func newBook() book {
	return book{service.NewRows[Order](), map[string][]byte{}}
}

// queue reads and locks orders. Ids are [16]byte for pgx: an uuid.UUID would be sent as text.
func (k book) queue(b *pgx.Batch, sql string, ids [][16]byte) {
	b.Queue(sql, ids).Query(func(rows pgx.Rows) error {
		var o Order
		_, err := pgx.ForEachRow(rows, []any{&o.ID, &o.Status, &o.Payment.Status, &o.Payment.Command, &o.Stock.Status, &o.Stock.Command, &o.FailureReason, &o.NeedsAttention}, func() error {
			k.orders.Loaded(o.ID, o)
			return nil
		})
		return err
	})
}

// apply keeps a decision and its entries in the timeline, and returns the rows to send.
func (k book) apply(d Decision, cause entry, traceparent string) ([]outbox.Event, error) {
	k.orders.Set(d.Order.ID, d.Order)
	k.note(d.Order.ID, cause)
	rows := make([]outbox.Event, len(d.Send))
	for i, m := range d.Send {
		var err error
		if rows[i], err = service.Outbox(uuid.Nil, m, traceparent); err != nil {
			return nil, err
		}
		k.note(d.Order.ID, entry{At: cause.At, Event: m.Type, EventID: rows[i].ID.String()})
	}
	return rows, nil
}

func (k book) note(id string, e entry) { k.timeline[id] = e.append(k.timeline[id]) }

func (k book) queueSave(b *pgx.Batch) {
	changed := k.orders.Changed()
	if len(changed) == 0 {
		return
	}
	n := len(changed)
	ids, attention := make([][16]byte, n), make([]bool, n)
	status, payment, stock, reasons, lines := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	for i, o := range changed {
		ids[i], attention[i] = uuid.MustParse(o.ID), o.NeedsAttention
		status[i], payment[i], stock[i], reasons[i] = string(o.Status), string(o.Payment.Status), string(o.Stock.Status), o.FailureReason
		lines[i] = string(k.timeline[o.ID])
	}
	b.Queue(updateOrders, ids, status, payment, stock, reasons, attention, lines)
}

// Saga places orders and leads them to their end. [NewSaga] makes it; its Run
// functions are its background work.
type Saga struct {
	pool    *service.Pool
	timeout time.Duration
	now     func() time.Time
	log     *slog.Logger
	placing *service.Gather[Placement, Placed]
	waiters *waiters
}

// NewSaga makes a saga on the database of order-service. timeout is how long after its
// placing an order fails that has not succeeded.
func NewSaga(rt service.Runtime, timeout time.Duration) *Saga {
	s := &Saga{pool: rt.Pool, timeout: timeout, log: rt.Log, now: now}
	s.waiters = newWaiters(rt)
	// Two writers: one gathers while the other waits for its commit.
	s.placing = service.NewGather(2, min(200, cmp.Or(rt.MaxBatch, 200)), s.place)
	s.placing.Backpressure, s.placing.Pace = rt.Backpressure, rt.Pace
	return s
}

// now is the time as PostgreSQL keeps it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// Background are the functions that must run for the saga to work.
func (s *Saga) Background() []func(context.Context) error {
	return []func(context.Context) error{s.placing.Run, s.waiters.run, s.sweep}
}

// Line is a line of an order as it was placed.
type Line struct {
	SKU       string `json:"sku"`
	Quantity  int64  `json:"quantity"`
	UnitPrice int64  `json:"unit_price"` // minor units
}

// Placement is an order to place. It has been checked.
type Placement struct {
	CustomerID  string
	Lines       []Line
	Amount      int64
	Traceparent string
	Key         *service.IdempotencyKey // may be nil
}

// Placed is an order that was placed.
type Placed struct {
	ID       uuid.UUID
	At       time.Time
	Commands [2]uuid.UUID // the event ids of the commands for payment and stock
	Items    string       // as JSON
	// Again: the Idempotency-Key was used before, for this order; only its ID is set.
	Again bool
}

// Place commits an order with its two commands. With a key that was used before it
// returns the order of then.
func (s *Saga) Place(ctx context.Context, p Placement) (Placed, error) { return s.placing.Do(ctx, p) }

// place commits placements together: in one round trip, or in two where one of them
// has an Idempotency-Key, whose claim decides whether there is an order to place.
func (s *Saga) place(ctx context.Context, placements []Placement) ([]service.Result[Placed], error) {
	results := make([]service.Result[Placed], len(placements))
	claims := make([]service.Claim, len(placements))
	var load func(*pgx.Batch)
	for i, p := range placements {
		results[i].Value.ID = outbox.NewID()
		claims[i] = service.Claim{Key: p.Key, Response: results[i].Value.ID.String(), Fresh: p.Key == nil}
		if p.Key != nil {
			load = func(b *pgx.Batch) { service.QueueClaim(b, claims) }
		}
	}
	err := service.Transact(ctx, s.pool, load, func(b *pgx.Batch) error {
		fresh := newPlacing(len(placements))
		for i, p := range placements {
			switch c := claims[i]; {
			case c.Err != nil:
				results[i] = service.Result[Placed]{Err: c.Err}
			case !c.Fresh:
				results[i].Value = Placed{ID: uuid.MustParse(c.Stored), Again: true}
			default:
				if err := fresh.add(&results[i].Value, s.now(), p); err != nil {
					return err
				}
			}
		}
		return fresh.queue(b)
	})
	if err != nil {
		return nil, fmt.Errorf("place %d orders: %w", len(placements), err)
	}
	return results, nil
}

// placing gathers the columns of new orders and their outbox rows.
type placing struct {
	ids, payments, stocks [][16]byte
	customers, items      []string
	amounts               []int64
	created               []time.Time
	events                []outbox.Event
}

func newPlacing(n int) *placing { return &placing{events: make([]outbox.Event, 0, 2*n)} }

func (p *placing) add(placed *Placed, now time.Time, order Placement) error {
	id := placed.ID.String()
	items := make([]events.Item, len(order.Lines))
	for i, l := range order.Lines {
		items[i] = events.Item{SKU: l.SKU, Quantity: l.Quantity}
	}
	text, err := json.Marshal(order.Lines)
	if err != nil {
		return err
	}
	for i, m := range []events.Message{events.RequestPayment(id, order.CustomerID, order.Amount), events.RequestStock(id, items)} {
		ev, err := service.Outbox(uuid.Nil, m, order.Traceparent)
		if err != nil {
			return err
		}
		p.events = append(p.events, ev)
		placed.Commands[i] = ev.ID
	}
	placed.At, placed.Items = now, string(text)
	p.ids, p.payments, p.stocks = append(p.ids, placed.ID), append(p.payments, placed.Commands[0]), append(p.stocks, placed.Commands[1])
	p.customers, p.amounts, p.items = append(p.customers, order.CustomerID), append(p.amounts, order.Amount), append(p.items, placed.Items)
	p.created = append(p.created, now)
	return nil
}

func (p *placing) queue(b *pgx.Batch) error {
	if len(p.ids) == 0 {
		return nil
	}
	b.Queue(insertOrders, p.ids, p.customers, p.payments, p.stocks, p.amounts, p.items, p.created)
	return outbox.Queue(b, p.events...)
}

// Cancel fails an order that is in progress, and returns what it is then. The zero Order: there is
// none. A FAILED order stays as it is, a SUCCESS order too.
func (s *Saga) Cancel(ctx context.Context, id uuid.UUID, traceparent string) (Order, error) {
	k := newBook()
	err := service.Transact(ctx, s.pool, func(b *pgx.Batch) { k.queue(b, lockOrders, [][16]byte{id}) },
		func(b *pgx.Batch) error { return s.end(b, k, Cancel, "order.cancelled", traceparent) })
	if err != nil {
		return Order{}, fmt.Errorf("cancel order %s: %w", id, err)
	}
	return k.orders.Get(id.String()), nil
}

// end leads the orders in k to a decision that no event has asked for.
func (s *Saga) end(b *pgx.Batch, k book, decide func(Order) Decision, event, traceparent string) error {
	var send []outbox.Event
	for _, was := range k.orders.All() {
		d := decide(was)
		if d.Order == was {
			continue
		}
		rows, err := k.apply(d, entry{At: s.now(), Event: event}, traceparent)
		if err != nil {
			return err
		}
		send = append(send, rows...)
	}
	k.queueSave(b)
	return outbox.Queue(b, send...)
}
