package main

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/supervisor"
	"outboxsaga/internal/system"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// orderDatabase is a database of order-service without orders.
func orderDatabase(t *testing.T) *pgxpool.Pool {
	t.Helper()
	db, err := pgxpool.New(t.Context(), stacktest.Database(t, system.Services()[0].Database.Migrations...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// place puts an order in that was placed some time ago, and returns its id.
func place(t *testing.T, db *pgxpool.Pool, ago time.Duration, status, payment, stock string, attention bool) (id uuid.UUID) {
	t.Helper()
	err := db.QueryRow(t.Context(), `
INSERT INTO orders (id, customer_id, status, payment_status, stock_status, failure_reason, needs_attention, payment_command, stock_command, amount, items, created_at, updated_at)
VALUES (uuidv7(-$1::interval), 'alice', $2, $3, $4, CASE WHEN $2 = 'FAILED' THEN 'cancelled' ELSE '' END, $5, uuidv7(), uuidv7(), 5, '[]',
        clock_timestamp() - $1::interval, clock_timestamp()) RETURNING id`, ago, status, payment, stock, attention).Scan(&id)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// An order that waits is counted however old it is, also where the newest orders are not all.
func TestStatusCountsOldOrders(t *testing.T) {
	db := orderDatabase(t)
	if c, err := countOrders(t.Context(), db, 4, nil); err != nil || c != (orderCounts{All: true}) {
		t.Errorf("without orders: %+v, %v", c, err)
	}
	letter := place(t, db, 72*time.Hour, "FAILED", "COMPENSATING", "FAILED", true)
	place(t, db, 48*time.Hour, "FAILED", "COMPENSATING", "FAILED", false) // nothing leads to it
	place(t, db, 36*time.Hour, "SUCCESS", "SUCCESS", "SUCCESS", false)
	swept := place(t, db, 30*time.Hour, "SUCCESS", "SUCCESS", "SUCCESS", false)
	place(t, db, 24*time.Hour, "IN_PROGRESS", "SUCCESS", "IN_PROGRESS", false)
	place(t, db, 23*time.Hour, "SUCCESS", "SUCCESS", "SUCCESS", false)
	place(t, db, 2*time.Hour, "FAILED", "COMPENSATING", "FAILED", true)
	place(t, db, 30*time.Minute, "FAILED", "FAILED", "FAILED", false)
	place(t, db, time.Minute, "FAILED", "FAILED", "COMPENSATING", true)
	place(t, db, time.Second, "IN_PROGRESS", "IN_PROGRESS", "IN_PROGRESS", false)
	if _, err := db.Exec(t.Context(), `UPDATE orders_swept SET upto = $1`, swept); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what  string
		limit int
		named []uuid.UUID
		want  orderCounts // Oldest in hours
	}{
		{"all", 100, nil, orderCounts{Failed: 2, InProgress: 1, Compensating: 1, Attention: 1, OlderUnsettled: 4, OlderAttention: 2, Oldest: 72, All: true}},
		{"the newest, and what was not swept", 4, nil, orderCounts{Failed: 2, InProgress: 1, Compensating: 1, Attention: 1, OlderUnsettled: 2, OlderAttention: 1, Oldest: 24}},
		{"of a dead letter too", 4, []uuid.UUID{letter, uuid.New()}, orderCounts{Failed: 2, InProgress: 1, Compensating: 1, Attention: 1, OlderUnsettled: 3, OlderAttention: 2, Oldest: 72}},
		{"less than the last hour", 1, nil, orderCounts{InProgress: 1, OlderUnsettled: 1, Oldest: 24}},
	} {
		got, err := countOrders(t.Context(), db, test.limit, test.named)
		if err != nil {
			t.Fatal(err)
		}
		if got.All != got.Since.IsZero() {
			t.Errorf("%s: all %t, since %v", test.what, got.All, got.Since)
		}
		got.Since, got.Oldest = time.Time{}, float64(time.Duration(got.Oldest)*time.Second/time.Hour)
		if got != test.want {
			t.Errorf("%s:\n%+v, want\n%+v", test.what, got, test.want)
		}
	}
}

// What dead letters are about is found whatever became of them, and poison is passed over.
func TestStatusFindsTheOrdersOfDeadLetters(t *testing.T) {
	db := orderDatabase(t)
	var want []uuid.UUID
	for i, key := range []string{uuid.NewString(), "no order", "\xff", uuid.NewString()} {
		if id, err := uuid.Parse(key); err == nil {
			want = append(want, id)
		}
		if _, err := db.Exec(t.Context(), `
INSERT INTO dead_letters (id, event_id, event_type, topic, partition, "offset", recorded_at, key, payload, traceparent, error, attempts, failed_at, status, resolved_at, resolved_by, reason)
VALUES (uuidv7(), '', 'payment.compensated', 'payment.compensated', 0, $1, now(), $2, '', '', 'broken', 1, now(), 'discarded', now(), 'anna', 'not needed')`, i, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(want)
	if got, err := ordersOfLetters(t.Context(), db, 10); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := ordersOfLetters(t.Context(), db, 1); err != nil || !slices.Equal(got, want[:1]) {
		t.Errorf("%v, %v, want only the newest", got, err)
	}
}

// The lock is a supervisor's only if it is held in this database, with this key.
func TestStatusKnowsWhetherASupervisorActs(t *testing.T) {
	db, other := orderDatabase(t), orderDatabase(t)
	acts := func() (acts bool) {
		t.Helper()
		if err := db.QueryRow(t.Context(), selectSupervised, int64(supervisor.LockKey)).Scan(&acts); err != nil {
			t.Fatal(err)
		}
		return acts
	}
	lock := func(db *pgxpool.Pool, key int64) (end func()) {
		t.Helper()
		conn, err := db.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, key); err != nil {
			t.Fatal(err)
		}
		return func() {
			if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_unlock_all()`); err != nil {
				t.Error(err)
			}
			conn.Release()
		}
	}
	defer lock(other, supervisor.LockKey)()
	defer lock(db, supervisor.LockKey+1)()
	if acts() {
		t.Error("nobody holds the lock")
	}
	end := lock(db, supervisor.LockKey)
	if !acts() {
		t.Error("the lock is held")
	}
	if end(); acts() {
		t.Error("the lock was given back")
	}
}

// --watch may stand alone, and takes its value as other flags do.
func TestStatusWatchFlag(t *testing.T) {
	t.Setenv("ORDER_DATABASE_URL", "nonsense") // where a command that is right comes to
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{}, "ORDER_DATABASE_URL"},
		{[]string{"--watch"}, "ORDER_DATABASE_URL"},
		{[]string{"--watch=5s"}, "ORDER_DATABASE_URL"},
		{[]string{"--watch", "5s"}, "ORDER_DATABASE_URL"},
		{[]string{"--watch", "--json"}, "ORDER_DATABASE_URL"},
		{[]string{"--watch", "5s", "--json"}, "ORDER_DATABASE_URL"},
		{[]string{"--watch", "5ms"}, "200ms or more"},
		{[]string{"--watch=0s"}, "200ms or more"},
		{[]string{"--watch", "soon"}, `unknown command "soon"`},
		{[]string{"--watch", "5s", "6s"}, `unknown command "5s"`},
		{[]string{"5s"}, `unknown command "5s"`},
	} {
		c := newStatusCommand()
		c.SilenceUsage, c.SilenceErrors = true, true
		c.SetArgs(test.args)
		c.SetOut(io.Discard)
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("status %v: %v, want %q", test.args, err, test.want)
		}
	}
}
