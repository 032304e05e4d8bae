package audit

import (
	"context"
	"fmt"
	"slices"
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
	b.exec(b.db.Payment, `INSERT INTO payments (order_id, customer_id, amount, status, reason) VALUES ($1, 'alice', 10, 'CHARGED', '')`, o)
	b.exec(b.db.Payment, `UPDATE accounts SET balance = balance - 10, charged = charged + 10`)
	b.exec(b.db.Stock, `INSERT INTO reservations (order_id, status, reason, items) VALUES ($1, 'RESERVED', '', '[{"sku":"book","quantity":1}]')`, o)
	b.exec(b.db.Stock, `UPDATE items SET available = available - 1, reserved = reserved + 1`)
	b.event(b.db.Order, b.db.Payment, "payment", "payment.requested", o, ago)
	b.event(b.db.Order, b.db.Stock, "stock", "stock.requested", o, ago)
	b.event(b.db.Payment, b.db.Order, "payment.success", "payment.succeeded", o, ago)
	b.event(b.db.Stock, b.db.Order, "stock.success", "stock.succeeded", o, ago)
	return o
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

func TestEachViolationIsFoundAndNamed(t *testing.T) {
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
	b.order(idAt(30*time.Second), "IN_PROGRESS", "SUCCESS", "IN_PROGRESS", 30*time.Second)
	r := b.once(Options{})
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
			return OrderEffect, "their payment is not CHARGED", o.String()
		},
		"success with other items": func() (string, string, string) {
			o := b.success(minute)
			b.exec(b.db.Order, `UPDATE orders SET items = '[{"sku":"book","quantity":2,"unit_price":5}]' WHERE id = $1`, o)
			return OrderEffect, "items are not RESERVED", o.String()
		},
		"failed and charged": func() (string, string, string) {
			o := b.success(minute)
			b.exec(b.db.Order, `UPDATE orders SET status = 'FAILED', payment_status = 'FAILED', stock_status = 'FAILED', failure_reason = 'x' WHERE id = $1`, o)
			return OrderEffect, "their payment is CHARGED", o.String()
		},
		"no order": func() (string, string, string) {
			o := b.success(minute)
			b.exec(b.db.Order, `DELETE FROM orders WHERE id = $1`, o)
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
			return OrderLate, "a compensation is missing", o.String()
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := b
			b.t = t
			snapshot := b.keep()
			defer snapshot()
			rule, detail, id := plant()
			r := b.once(Options{})
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

// An event that was missing in one round and is there in the next came late; one that stays away stays
// reported, although its part of the outbox is not read again.
func TestRoundsGoOn(t *testing.T) {
	b := newBooks(t)
	b.success(5 * minute)
	late := b.event(b.db.Order, nil, "stock", "stock.requested", idAt(5*minute), 5*minute)
	lost := b.event(b.db.Order, nil, "stock", "stock.requested", idAt(5*minute), 5*minute)
	waiting := idAt(5 * minute)
	b.order(waiting, "FAILED", "FAILED", "COMPENSATING", 10*time.Second)
	a := New(b.db, Options{MaxIDs: 1})
	round := func() Report {
		t.Helper()
		r, err := a.Round(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := round()
	if len(r.Violations) != 1 || r.Violations[0].Count != 2 || len(r.Violations[0].IDs) != 1 || r.Checked["events"] != 6 || r.Open != 1 {
		t.Fatalf("%+v", r)
	}
	b.exec(b.db.Stock, `INSERT INTO inbox (event_id) VALUES ($1)`, late)
	r = round()
	if r.Late != 1 || len(r.Violations) != 1 || r.Violations[0].Count != 1 || r.Violations[0].IDs[0] != lost.String() || r.Checked["events"] != 0 {
		t.Errorf("%+v", r)
	}
	if r.Checked["orders"] != 1 || r.Open != 1 { // the one that waits is read again
		t.Errorf("%+v", r)
	}
	b.exec(b.db.Order, `UPDATE orders SET stock_status = 'COMPENSATED' WHERE id = $1`, waiting)
	b.exec(b.db.Stock, `INSERT INTO reservations (order_id, status, reason, items) VALUES ($1, 'RESERVED', '', '[{"sku":"book","quantity":1}]')`, waiting)
	b.exec(b.db.Stock, `UPDATE items SET available = available - 1, reserved = reserved + 1`)
	r = round()
	if len(r.Violations) != 2 || r.Violations[1].Rule != OrderEffect {
		t.Errorf("%+v", r.Violations)
	}
	if r = round(); r.Checked["orders"] != 0 {
		t.Errorf("%+v", r)
	}
	// A window that begins after all that is wrong.
	if r := b.once(Options{Since: 2 * minute}); !r.Clean() || r.Checked["events"] != 0 {
		t.Errorf("%+v", r)
	}
}

func TestDatabasesThatDoNotAnswer(t *testing.T) {
	b := newBooks(t)
	b.db.Stock.Close()
	if _, err := Once(t.Context(), b.db, Options{}); err == nil || !strings.HasPrefix(err.Error(), "audit: ") {
		t.Error(err)
	}
	if _, err := Conservation(t.Context(), b.db); err == nil {
		t.Error("no error")
	}
}

// On a running system under load every look is clean, and at its end nothing is open.
func TestARunningSystemIsClean(t *testing.T) {
	s := stacktest.NewSystem(t, 2)
	db := Databases{s.DB("orderdb"), s.DB("stockdb"), s.DB("paymentdb")}
	for path, body := range map[string]string{"payment-service/accounts/alice/deposits": `{"amount":5000}`, "stock-service/items/book/receipts": `{"quantity":400}`} {
		service, path, _ := strings.Cut(path, "/")
		if code, err := stacktest.Post(t.Context(), s.URL(service, 0)+"/"+path, nil, body, nil); code != 200 {
			t.Fatal(code, err)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 8*time.Second)
	defer stop()
	placed := make(chan int, 4)
	for i := range 4 {
		go func() {
			n := 0
			for ; ctx.Err() == nil; n++ {
				_, _ = stacktest.Post(ctx, s.URL("order-service", i%2)+"/orders", nil, `{"customer_id":"alice","items":[{"sku":"book","quantity":1,"unit_price":10}]}`, nil)
			}
			placed <- n
		}()
	}
	a := New(db, Options{Grace: 3 * time.Second})
	for ctx.Err() == nil {
		wrong, err := Conservation(t.Context(), db)
		if err != nil || len(wrong) > 0 {
			t.Fatal(wrong, err)
		}
		r, err := a.Round(t.Context())
		if err != nil || !r.Clean() {
			t.Fatalf("%+v %v", r, err)
		}
	}
	n := 0
	for range 4 {
		n += <-placed
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		var open int
		err := db.Order.QueryRow(t.Context(), `SELECT count(*) FROM orders WHERE status = 'IN_PROGRESS' OR payment_status = 'COMPENSATING' OR stock_status = 'COMPENSATING'`).Scan(&open)
		if err == nil && open == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal(open, err)
		}
	}
	time.Sleep(1100 * time.Millisecond)
	r, err := Once(t.Context(), db, Options{Grace: time.Second})
	if err != nil || !r.Clean() || r.Open != 0 || r.Checked["events"] < 4*400 || r.Checked["orders"] < 401 {
		t.Errorf("%+v %v", r, err)
	}
	t.Logf("%d requests; %+v", n, r)
}

// A million events, by default 250 thousand orders that settled, are audited from the start.
func BenchmarkAudit(b *testing.B) {
	k := newBooks(b)
	const orders = 250_000
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
	begin := time.Now().Add(-time.Hour).UnixMilli()
	// The same ids everywhere: the time of the order with a number, in the last hour.
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
	b.ReportAllocs()
	for b.Loop() {
		r, err := Once(context.Background(), k.db, Options{})
		if err != nil || !r.Clean() || r.Checked["events"] != 4*orders || r.Checked["orders"] != orders {
			b.Fatalf("%+v %v", r, err)
		}
	}
	b.ReportMetric(4*orders*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
