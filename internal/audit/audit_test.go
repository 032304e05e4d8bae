package audit

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// books are three databases with orders in them, made by SQL as the services make them.
type books struct {
	t  testing.TB
	db Databases
}

func newBooks(t testing.TB) *books {
	t.Helper()
	b := &books{t: t}
	for i, pool := range []**pgxpool.Pool{&b.db.Order, &b.db.Stock, &b.db.Payment} {
		p, err := pgxpool.New(context.Background(), stacktest.Database(t, system.Services()[i].Database.Migrations...))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		*pool = p
	}
	b.exec(b.db.Stock, `INSERT INTO items VALUES ('book', 100, 0, 100)`)
	b.exec(b.db.Payment, `INSERT INTO accounts VALUES ('alice', 1000, 0, 1000)`)
	return b
}

func (b *books) exec(pool *pgxpool.Pool, sql string, args ...any) {
	b.t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

// idAt is a new UUIDv7 of some time ago.
func idAt(ago time.Duration) uuid.UUID {
	id := uuid.Must(uuid.NewV7())
	at := floor(time.Now().Add(-ago))
	copy(id[:6], at[:6])
	return id
}

// event puts an event into an outbox and, unless it is lost, into its consumer's inbox.
func (b *books) event(from, to *pgxpool.Pool, topic, typ string, order uuid.UUID, ago time.Duration) uuid.UUID {
	b.t.Helper()
	id := idAt(ago)
	b.exec(from, `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES ($1, $2, 'order', $3, $4, '{}')`, id, topic, order.String(), typ)
	if to != nil {
		b.exec(to, `INSERT INTO inbox (event_id) VALUES ($1)`, id)
	}
	return id
}

// success is an order that has both its effects.
func (b *books) success(ago time.Duration) uuid.UUID {
	b.t.Helper()
	o := idAt(ago)
	b.order(o, "SUCCESS", "SUCCESS", "SUCCESS", ago)
	b.charge(o, 10)
	b.reserve(o)
	b.event(b.db.Order, b.db.Payment, "payment", "payment.requested", o, ago)
	b.event(b.db.Order, b.db.Stock, "stock", "stock.requested", o, ago)
	b.event(b.db.Payment, b.db.Order, "payment.success", "payment.succeeded", o, ago)
	b.event(b.db.Stock, b.db.Order, "stock.success", "stock.succeeded", o, ago)
	return o
}

func (b *books) charge(o uuid.UUID, amount int) {
	b.t.Helper()
	b.exec(b.db.Payment, `INSERT INTO payments (order_id, customer_id, amount, status, reason) VALUES ($1, 'alice', $2, 'CHARGED', '')`, o, amount)
	b.exec(b.db.Payment, `UPDATE accounts SET balance = balance - $1, charged = charged + $1`, amount)
}

func (b *books) reserve(o uuid.UUID) {
	b.t.Helper()
	b.exec(b.db.Stock, `INSERT INTO reservations (order_id, status, reason, items) VALUES ($1, 'RESERVED', '', '[{"sku":"book","quantity":1}]')`, o)
	b.exec(b.db.Stock, `UPDATE items SET available = available - 1, reserved = reserved + 1`)
}

func (b *books) release(o uuid.UUID) {
	b.t.Helper()
	b.exec(b.db.Stock, `UPDATE reservations SET status = 'RELEASED' WHERE order_id = $1`, o)
	b.exec(b.db.Stock, `UPDATE items SET available = available + 1, reserved = reserved - 1`)
}

// order is one without its effects and events.
func (b *books) order(id uuid.UUID, status, payment, stock string, ago time.Duration) {
	b.t.Helper()
	b.exec(b.db.Order, `INSERT INTO orders (id, customer_id, status, payment_status, stock_status, failure_reason, payment_command, stock_command, amount, items, created_at, updated_at)
		VALUES ($1, 'alice', $2, $3, $4, $5, $1, $1, 10, '[{"sku":"book","quantity":1,"unit_price":10}]', $6, $6)`,
		id, status, payment, stock, map[bool]string{true: "x"}[status == "FAILED"], time.Now().Add(-ago))
}

func (b *books) once(o Options) Report {
	b.t.Helper()
	r, err := Once(b.t.Context(), b.db, o)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

const minute = time.Minute

// quick does not wait long for what is missing.
var quick = Options{Grace: time.Second}

func TestEachViolationIsFoundAndNamed(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	for range 20 {
		b.success(minute)
	}
	b.success(0)                                                                       // too young to be judged
	b.event(b.db.Order, nil, "stock", "stock.requested", idAt(0), -10*minute)          // under way
	b.event(b.db.Order, nil, "order.dlt", "order.dead_lettered", idAt(minute), minute) // nobody consumes it
	aside := b.event(b.db.Order, nil, "stock", "stock.requested", idAt(minute), minute)
	b.exec(b.db.Stock, `INSERT INTO dead_letters (id, event_id, event_type, topic, partition, "offset", recorded_at, key, payload, traceparent, error, attempts, failed_at)
		VALUES (gen_random_uuid(), $1, '', 'stock', 0, 0, now(), '', '', '', 'x', 1, now())`, aside.String())
	refused := idAt(minute)
	b.order(refused, "FAILED", "FAILED", "COMPENSATED", minute)
	b.reserve(refused)
	b.release(refused)
	half := idAt(30 * time.Second)
	b.order(half, "IN_PROGRESS", "SUCCESS", "IN_PROGRESS", 30*time.Second)
	b.charge(half, 10)
	b.reserve(half) // its answer is under way: it may have it or not
	r := b.once(quick)
	if !r.Clean() || r.Checked["events"] != 81 || r.Checked["inbox_ids"] != 80 || r.Checked["orders"] != 22 || r.Checked["items"] != 1 || r.Checked["accounts"] != 1 || r.Open != 1 {
		t.Fatalf("%+v", r)
	}

	for name, plant := range map[string]func() (rule, detail, id string){
		"lost": func() (string, string, string) {
			return EventLost, "inbox of payment-service", b.event(b.db.Order, nil, "payment", "payment.requested", idAt(minute), minute).String()
		},
		"lost answer": func() (string, string, string) {
			return EventLost, "inbox of order-service", b.event(b.db.Stock, nil, "stock.failed", "stock.refused", idAt(minute), minute).String()
		},
		"invented": func() (string, string, string) {
			id := idAt(minute)
			b.exec(b.db.Order, `INSERT INTO inbox (event_id) VALUES ($1)`, id)
			return EventInvented, "inbox of order-service", id.String()
		},
		"asked twice": func() (string, string, string) {
			o := b.success(minute)
			b.event(b.db.Order, b.db.Payment, "payment", "payment.requested", o, minute)
			return EventTwice, "payment.requested twice", o.String()
		},
		"charged twice": func() (string, string, string) {
			b.exec(b.db.Payment, `UPDATE accounts SET balance = balance - 10, charged = charged + 10`)
			return Conserved, "accounts: ", "alice"
		},
		"reserved twice": func() (string, string, string) {
			b.exec(b.db.Stock, `UPDATE items SET available = available - 1, reserved = reserved + 1`)
			return Conserved, "items: ", "book"
		},
		"success without payment": func() (string, string, string) {
			o := idAt(minute)
			b.order(o, "SUCCESS", "SUCCESS", "SUCCESS", minute)
			return OrderEffect, "payments of orders that are SUCCESS with payment SUCCESS are missing", o.String()
		},
		"success with other items": func() (string, string, string) {
			o := b.success(minute)
			b.exec(b.db.Order, `UPDATE orders SET items = '[{"sku":"book","quantity":2,"unit_price":5}]' WHERE id = $1`, o)
			return OrderEffect, "not of their order's items", o.String()
		},
		"compensated twice": func() (string, string, string) {
			b.event(b.db.Stock, b.db.Order, "stock.compensated", "stock.compensated", refused, minute)
			b.event(b.db.Stock, b.db.Order, "stock.compensated", "stock.compensated", refused, 5*time.Second)
			return EventTwice, "stock-service has sent stock.compensated twice", refused.String()
		},
		"charged other than ordered, not settled": func() (string, string, string) {
			o := idAt(30 * time.Second)
			b.order(o, "IN_PROGRESS", "IN_PROGRESS", "IN_PROGRESS", 30*time.Second)
			b.charge(o, 11)
			return OrderEffect, "not of their order's amount", o.String()
		},
		"succeeded without effect, not settled": func() (string, string, string) {
			o := idAt(30 * time.Second)
			b.order(o, "IN_PROGRESS", "IN_PROGRESS", "SUCCESS", 30*time.Second)
			return OrderEffect, "reservations of orders that are IN_PROGRESS with stock SUCCESS are missing", o.String()
		},
		"undone after success": func() (string, string, string) {
			o := b.success(minute)
			b.release(o)
			return OrderEffect, "reservations of orders that are SUCCESS with stock SUCCESS are RELEASED", o.String()
		},
		"acknowledged and not undone": func() (string, string, string) {
			o := idAt(minute)
			b.order(o, "FAILED", "FAILED", "COMPENSATED", minute)
			b.reserve(o)
			return OrderEffect, "FAILED with stock COMPENSATED are RESERVED", o.String()
		},
		"charged more than once, unlike its payments": func() (string, string, string) {
			b.exec(b.db.Payment, `ALTER TABLE accounts DROP CONSTRAINT accounts_conserved`)
			b.exec(b.db.Payment, `UPDATE accounts SET balance = balance - 10`)
			return Conserved, "accounts: ", "alice"
		},
		"failed and charged": func() (string, string, string) {
			o := b.success(minute)
			b.exec(b.db.Order, `UPDATE orders SET status = 'FAILED', payment_status = 'FAILED', stock_status = 'COMPENSATED', failure_reason = 'x' WHERE id = $1`, o)
			b.release(o)
			return OrderEffect, "payments of orders that are FAILED with payment FAILED are CHARGED", o.String()
		},
		"no order": func() (string, string, string) {
			o := b.success(minute)
			b.exec(b.db.Order, `DELETE FROM orders WHERE id = $1`, o)
			return OrderEffect, "orders that do not exist", o.String()
		},
		"charged without an order": func() (string, string, string) {
			o := idAt(minute)
			b.charge(o, 10)
			return OrderEffect, "orders that do not exist", o.String()
		},
		"reserved without an order": func() (string, string, string) {
			o := idAt(minute)
			b.reserve(o)
			return OrderEffect, "orders that do not exist", o.String()
		},
		"late": func() (string, string, string) {
			o := idAt(2 * minute)
			b.order(o, "IN_PROGRESS", "IN_PROGRESS", "IN_PROGRESS", 2*minute)
			return OrderLate, "IN_PROGRESS longer than", o.String()
		},
		"never compensated": func() (string, string, string) {
			o := idAt(2 * minute)
			b.order(o, "FAILED", "FAILED", "COMPENSATING", 2*minute)
			b.reserve(o)
			return OrderLate, "a compensation is missing", o.String()
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := b
			b.t = t
			snapshot := b.keep()
			defer snapshot()
			rule, detail, id := plant()
			r := b.once(quick)
			if len(r.Violations) != 1 {
				t.Fatalf("%+v", r.Violations)
			}
			if v := r.Violations[0]; v.Rule != rule || !strings.Contains(v.Detail, detail) || v.Count != 1 || !slices.Equal(v.IDs, []string{id}) {
				t.Errorf("%+v, want %s, %s, %s", v, rule, detail, id)
			}
		})
	}
}

// keep remembers all rows; the returned function brings them back.
func (b *books) keep() (restore func()) {
	tables := map[*pgxpool.Pool][]string{
		b.db.Order: {"orders", "outbox", "inbox"}, b.db.Stock: {"items", "reservations", "outbox", "inbox"}, b.db.Payment: {"accounts", "payments", "outbox", "inbox"},
	}
	for pool, names := range tables {
		for _, name := range names {
			b.exec(pool, fmt.Sprintf(`CREATE TABLE kept_%s AS SELECT * FROM %s`, name, name))
		}
	}
	return func() {
		for pool, names := range tables {
			for _, name := range names {
				b.exec(pool, fmt.Sprintf(`DELETE FROM %s`, name))
				b.exec(pool, fmt.Sprintf(`INSERT INTO %s SELECT * FROM kept_%s`, name, name))
				b.exec(pool, `DROP TABLE kept_`+name)
			}
		}
	}
}

func (b *books) rounds(o Options) (*Auditor, func() Report) {
	a := New(b.db, o)
	return a, func() Report {
		b.t.Helper()
		r, err := a.Round(b.t.Context())
		if err != nil {
			b.t.Fatal(err)
		}
		return r
	}
}

// violated are rules with their counts.
func violated(r Report) string {
	var all []string
	for _, v := range r.Violations {
		all = append(all, fmt.Sprint(v.Rule, " ", v.Count))
	}
	return strings.Join(all, ", ")
}

// An event that was missing in one round and is there in the next came late. What is wrong stays reported until
// it is mended, although its part of the tables is not read again.
func TestRoundsGoOn(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	o := b.success(5 * minute)
	late := b.event(b.db.Order, nil, "stock", "stock.requested", idAt(5*minute), 5*minute)
	lost := b.event(b.db.Order, nil, "stock", "stock.requested", idAt(5*minute), 5*minute)
	b.event(b.db.Order, b.db.Payment, "payment", "payment.requested", o, 4*minute)
	invented := idAt(5 * minute)
	b.exec(b.db.Order, `INSERT INTO inbox (event_id) VALUES ($1)`, invented)
	waiting := idAt(6 * minute)
	b.order(waiting, "FAILED", "FAILED", "COMPENSATING", 10*time.Second)
	b.reserve(waiting)
	a, round := b.rounds(Options{Grace: time.Second, MaxIDs: 1})
	r := round()
	if violated(r) != "event-lost 2, event-invented 1, event-twice 1" || len(r.Violations[0].IDs) != 1 || r.Checked["events"] != 7 || r.Checked["orders"] != 2 || r.Open != 1 || r.Late != 0 {
		t.Fatalf("%+v", r)
	}
	b.exec(b.db.Stock, `INSERT INTO inbox (event_id) VALUES ($1)`, late)
	r = round()
	if violated(r) != "event-lost 1, event-invented 1, event-twice 1" || r.Late != 1 || r.Violations[0].IDs[0] != lost.String() || r.Checked["events"] != 0 || r.Duration > 900*time.Millisecond {
		t.Errorf("%+v", r) // nor is there anything to wait for
	}
	if r.Checked["orders"] != 1 || r.Open != 1 { // only the one that waits is read again
		t.Errorf("%+v", r)
	}
	b.exec(b.db.Stock, `INSERT INTO dead_letters (id, event_id, event_type, topic, partition, "offset", recorded_at, key, payload, traceparent, error, attempts, failed_at)
		VALUES (gen_random_uuid(), $1, '', 'stock', 0, 0, now(), '', '', '', 'x', 1, now())`, lost.String())
	b.exec(b.db.Stock, `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES ($1, 'stock.success', 'order', 'x', 'y', '{}')`, invented)
	b.exec(b.db.Order, `UPDATE orders SET stock_status = 'COMPENSATED' WHERE id = $1`, waiting) // and it is still reserved
	for range 2 {
		if r = round(); violated(r) != "event-twice 1, order-effect 1" || r.Checked["orders"] != 1 {
			t.Errorf("%+v", r)
		}
	}
	b.release(waiting)
	if r = round(); violated(r) != "event-twice 1" || r.Open != 0 {
		t.Errorf("%+v", r)
	}
	if r = round(); r.Checked["orders"] != 0 {
		t.Errorf("%+v", r)
	}
	// A clock five minutes behind: not seen by the rounds, only when everything is read anew.
	b.event(b.db.Payment, nil, "payment.success", "payment.succeeded", idAt(5*minute), 5*minute)
	if r = round(); violated(r) != "event-twice 1" || r.Checked["events"] != 0 {
		t.Errorf("%+v", r)
	}
	a.full = time.Now().Add(-2 * time.Hour)
	if r = round(); violated(r) != "event-lost 1, event-twice 1" || r.Checked["events"] != 9 || r.Checked["orders"] != 2 {
		t.Errorf("%+v", r)
	}
	// A window that begins after all that is wrong.
	if r := b.once(Options{Grace: time.Second, Since: 2 * minute}); !r.Clean() || r.Checked["events"] != 0 {
		t.Errorf("%+v", r)
	}
}

// The newest events are read again by the next round: none is judged a repetition of itself, and one that
// was committed late among them is seen.
func TestTheOverlapOfRounds(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	o := b.success(30 * time.Second)
	a, round := b.rounds(quick)
	for range 3 {
		if r := round(); !r.Clean() || r.Checked["events"] != 4 {
			t.Fatalf("%+v", r)
		}
		a.sent["order"].suspects[[2]string{o.String(), "payment.requested"}] = true // a suspicion without reason is dropped
	}
	b.event(b.db.Order, b.db.Stock, "stock", "stock.requested", o, 40*time.Second)
	if r := round(); violated(r) != "event-twice 1" {
		t.Errorf("%+v", r)
	}
}

// What is old by its id may have been committed just now: it is given the same time as what is young.
func TestWhatArrivesWithinGraceIsNotReported(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	lost := b.event(b.db.Order, nil, "stock", "stock.requested", idAt(minute), minute)
	o := b.success(minute)
	b.exec(b.db.Payment, `DELETE FROM payments`)
	b.exec(b.db.Payment, `UPDATE accounts SET balance = 1000, charged = 0`)
	invented := idAt(minute)
	b.exec(b.db.Order, `INSERT INTO inbox (event_id) VALUES ($1)`, invented)
	go func() {
		time.Sleep(300 * time.Millisecond)
		_, _ = b.db.Stock.Exec(context.Background(), `INSERT INTO inbox (event_id) VALUES ($1)`, lost)
		_, _ = b.db.Payment.Exec(context.Background(), `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES ($1, 'payment.failed', 'order', 'x', 'y', '{}')`, invented)
		time.Sleep(2 * time.Second)
		_, _ = b.db.Payment.Exec(context.Background(), `WITH x AS (UPDATE accounts SET balance = 990, charged = 10)
			INSERT INTO payments (order_id, customer_id, amount, status, reason) VALUES ($1, 'alice', 10, 'CHARGED', '')`, o)
	}()
	if r := b.once(Options{Grace: 5 * time.Second}); !r.Clean() || r.Late != 0 {
		t.Errorf("%+v", r)
	}
}

// What retention has dropped cannot be judged, on either side.
func TestRetention(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	now := time.Now().UTC()
	midnight := now.Truncate(24 * time.Hour)
	yesterday := now.Sub(midnight) + time.Hour
	b.event(b.db.Order, nil, "stock", "stock.requested", idAt(yesterday), yesterday)
	b.exec(b.db.Order, `INSERT INTO inbox (event_id) VALUES ($1)`, idAt(yesterday))
	b.event(b.db.Order, nil, "order.dlt", "order.dead_lettered", idAt(yesterday), yesterday)
	_, round := b.rounds(quick)
	if r := round(); violated(r) != "event-lost 1, event-invented 1" {
		t.Fatalf("%+v", r)
	}
	b.exec(b.db.Payment, `DROP TABLE outbox_`+midnight.Add(-time.Hour).Format("20060102"))
	for day := -11; day < 0; day++ {
		b.exec(b.db.Stock, `DROP TABLE inbox_`+midnight.AddDate(0, 0, day).Format("20060102"))
	}
	for name, look := range map[string]func() Report{"the next round": round, "a new audit": func() Report { return b.once(quick) }} {
		if r := look(); !r.Clean() || r.Late != 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// A round that cannot be ended does not swallow what it has found.
func TestARoundThatFails(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	o := b.success(5 * minute)
	b.event(b.db.Order, b.db.Payment, "payment", "payment.requested", o, 5*minute)
	b.exec(b.db.Order, `INSERT INTO inbox (event_id) VALUES ($1)`, idAt(5*minute))
	b.exec(b.db.Stock, `ALTER TABLE reservations RENAME TO gone`)
	a, round := b.rounds(quick)
	if _, err := a.Round(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "audit: read the reservations: ") {
		t.Fatal(err)
	}
	b.exec(b.db.Stock, `ALTER TABLE gone RENAME TO reservations`)
	if r := round(); violated(r) != "event-invented 1, event-twice 1" || r.Checked["events"] != 0 || r.Checked["orders"] != 1 {
		t.Errorf("%+v", r)
	}
}

// A role that may only read can audit.
func TestAuditOnlyReads(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	b.success(minute)
	role := "auditor_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	b.exec(b.db.Order, `CREATE ROLE `+role+` LOGIN IN ROLE pg_read_all_data`)
	t.Cleanup(func() { b.exec(b.db.Order, `DROP ROLE `+role) })
	for _, pool := range []**pgxpool.Pool{&b.db.Order, &b.db.Stock, &b.db.Payment} {
		owner := *pool
		cfg := owner.Config()
		cfg.ConnConfig.User = role
		p, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		*pool = p
		defer func() { p.Close(); *pool = owner }()
	}
	if r := b.once(quick); !r.Clean() || r.Checked["events"] != 4 {
		t.Errorf("%+v", r)
	}
}

// Sums over all effects are made again when they are due; in between their findings stay, and the rows are still looked at.
func TestSumsTakeTheirShare(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	b.success(minute)
	b.exec(b.db.Stock, `UPDATE items SET available = available - 1, reserved = reserved + 1`)
	a, round := b.rounds(quick)
	if r := round(); violated(r) != "conservation 1" {
		t.Fatalf("%+v", r)
	}
	a.sums.took = time.Hour
	b.exec(b.db.Stock, `UPDATE items SET available = available + 1, reserved = reserved - 1`)
	b.exec(b.db.Payment, `ALTER TABLE accounts DROP CONSTRAINT accounts_conserved`)
	b.exec(b.db.Payment, `UPDATE accounts SET balance = 0`)
	if r := round(); violated(r) != "conservation 1, conservation 1" {
		t.Errorf("%+v", r)
	}
	a.sums.took = 0
	if r := round(); violated(r) != "conservation 1" || r.Violations[0].IDs[0] != "alice" {
		t.Errorf("%+v", r)
	}
}

func TestHistory(t *testing.T) {
	h := newHistory()
	event := func(i int) row { return row{id: idAtMilli(i), typ: "x", about: fmt.Sprint("order-", i)} }
	n, sets := 3_000_000, 4
	if stacktest.Race { // one goroutine; it takes ten times as long then
		n, sets = 300_000, 3
	}
	for i := range n {
		h.add(event(i), idAtMilli(n-1000))
	}
	if len(h.suspects) > 30 || len(h.fed) != 1000 || len(h.bits) != sets {
		t.Errorf("%d of %d are suspected without reason, %d read again, %d sets", len(h.suspects), n, len(h.fed), len(h.bits))
	}
	clear(h.suspects)
	for i := range 1000 { // read again: the same events; and a repetition of old ones
		h.add(event(n-1-i), idAtMilli(n))
		again := event(i * (n / 1000))
		again.id = idAtMilli(n + i)
		h.add(again, idAtMilli(n))
	}
	if len(h.suspects) != 1000 {
		t.Errorf("%d of 1000 repetitions are suspected", len(h.suspects))
	}
	h.forget(idAtMilli(n))
	if len(h.fed) != 1000 {
		t.Error(len(h.fed))
	}
	for range 5 {
		h.bits[len(h.bits)-1].room = 0
		h.grow()
	}
	bytes := 0
	for _, b := range h.bits {
		bytes += 8 * len(b.words)
	}
	if len(h.bits) != largest || bytes != largest<<largestLog/8 {
		t.Errorf("%d sets of %d bytes", len(h.bits), bytes)
	}
}

func idAtMilli(i int) id { return floor(time.UnixMilli(int64(i))) }

func TestDatabasesThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	b := newBooks(t)
	b.db.Stock.Close()
	if _, err := Once(t.Context(), b.db, Options{}); err == nil || !strings.HasPrefix(err.Error(), "audit: ") {
		t.Error(err)
	}
	if _, err := Conservation(t.Context(), b.db); err == nil {
		t.Error("no error")
	}
}

// The events of AUDIT_BENCH_ORDERS (default 250 thousand) settled orders, four each, are audited from the start.
func BenchmarkAudit(b *testing.B) {
	k := newBooks(b)
	orders := 250_000
	if text := os.Getenv("AUDIT_BENCH_ORDERS"); text != "" {
		orders, _ = strconv.Atoi(text)
	}
	seed := func(pool *pgxpool.Pool, sql string) {
		conn, err := pool.Acquire(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Release()
		if _, err := conn.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			b.Fatal(err)
		}
	}
	// The same ids everywhere: the time of the order with a number, one each 13 ms.
	begin := time.Now().Add(-2*minute - time.Duration(orders)*13*time.Millisecond).UnixMilli()
	id := func(kind int) string {
		return fmt.Sprintf(`(lpad(to_hex(%d::bigint + n * 13), 12, '0') || '7%03d8000' || lpad(to_hex(n), 12, '0'))::uuid`, begin, kind)
	}
	series := fmt.Sprintf(` FROM generate_series(1, %d) n`, orders)
	outbox := func(topic, typ string, kind int) string {
		return `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) SELECT ` + id(kind) + `, '` + topic + `', 'order', ` + id(0) + `::text, '` + typ + `', '{}'` + series
	}
	inbox := func(kind int) string { return `INSERT INTO inbox (event_id) SELECT ` + id(kind) + series }
	seed(k.db.Order, `INSERT INTO orders (id, customer_id, status, payment_status, stock_status, payment_command, stock_command, amount, items, created_at, updated_at)
		SELECT `+id(0)+`, 'alice', 'SUCCESS', 'SUCCESS', 'SUCCESS', `+id(1)+`, `+id(2)+`, 10, '[{"sku":"book","quantity":1,"unit_price":10}]', now(), now()`+series)
	for _, sql := range []string{outbox("payment", "payment.requested", 1), outbox("stock", "stock.requested", 2), inbox(3), inbox(4), `VACUUM ANALYZE`} {
		seed(k.db.Order, sql)
	}
	seed(k.db.Payment, `INSERT INTO payments (order_id, customer_id, amount, status, reason) SELECT `+id(0)+`, 'alice', 10, 'CHARGED', ''`+series)
	seed(k.db.Payment, fmt.Sprintf(`UPDATE accounts SET deposited = %d, charged = %d, balance = 0`, 10*orders, 10*orders))
	for _, sql := range []string{outbox("payment.success", "payment.succeeded", 3), inbox(1), `VACUUM ANALYZE`} {
		seed(k.db.Payment, sql)
	}
	seed(k.db.Stock, `INSERT INTO reservations (order_id, status, reason, items) SELECT `+id(0)+`, 'RESERVED', '', '[{"sku":"book","quantity":1}]'`+series)
	seed(k.db.Stock, fmt.Sprintf(`UPDATE items SET received = %d, reserved = %d, available = 0`, orders, orders))
	for _, sql := range []string{outbox("stock.success", "stock.succeeded", 4), inbox(2), `VACUUM ANALYZE`} {
		seed(k.db.Stock, sql)
	}
	b.Run("Once", func(b *testing.B) {
		for b.Loop() {
			peak := peakHeap(func() {
				r, err := Once(context.Background(), k.db, Options{})
				if err != nil || !r.Clean() || r.Checked["events"] != int64(4*orders) || r.Checked["orders"] != int64(orders) {
					b.Fatalf("%+v %v", r, err)
				}
			})
			b.ReportMetric(float64(peak)/(1<<20), "MB-peak")
		}
		b.ReportMetric(float64(4*orders*b.N)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("NextRound", func(b *testing.B) {
		a := New(k.db, Options{})
		round := func() {
			if _, err := a.Round(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
		round() // it reads everything
		a.sums.took = time.Hour
		for b.Loop() {
			round()
		}
	})
	b.Run("Conservation", func(b *testing.B) {
		for b.Loop() {
			if wrong, err := Conservation(context.Background(), k.db); err != nil || len(wrong) > 0 {
				b.Fatal(wrong, err)
			}
		}
	})
}

// peakHeap is the most that was in use above what there was before, in bytes.
func peakHeap(work func()) (peak uint64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	done, end := make(chan bool), make(chan bool)
	go func() {
		defer close(end)
		for {
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc-min(before, m.HeapAlloc))
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	work()
	close(done)
	<-end
	return peak
}
