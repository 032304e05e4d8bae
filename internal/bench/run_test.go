package bench

import (
	"testing"
	"time"

	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Orders of an earlier time do not count, and what waits or is compensated is unsettled.
func TestUnsettledAndFailedOrdersAreCounted(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), stacktest.Database(t, system.Services()[0].Database.Migrations...))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	target, since := Target{DB: pool}, time.Now()
	place := func(at time.Time, status, payment, stock, reason string) {
		t.Helper()
		id := lowest(at)
		copy(id[6:], uuid.Must(uuid.NewV7()).NodeID())
		if _, err := pool.Exec(t.Context(), `
INSERT INTO orders (id, customer_id, status, payment_status, stock_status, failure_reason, payment_command, stock_command, amount, items, created_at, updated_at)
VALUES ($1, 'alice', $2, $3, $4, $5, $1, $1, 1, '[]', now(), now())`, [16]byte(id), status, payment, stock, reason); err != nil {
			t.Fatal(err)
		}
	}
	place(since.Add(-time.Second), "IN_PROGRESS", "SUCCESS", "IN_PROGRESS", "")
	place(since.Add(-time.Second), "FAILED", "FAILED", "COMPENSATING", "timeout")
	place(since.Add(time.Second), "SUCCESS", "SUCCESS", "SUCCESS", "")
	place(since.Add(time.Second), "FAILED", "FAILED", "FAILED", "timeout")
	if failed, err := Failed(t.Context(), target, since); err != nil || failed != 1 {
		t.Errorf("%d orders failed, want 1: %v", failed, err)
	}
	if err := Drain(t.Context(), target, since); err != nil {
		t.Error(err)
	}
	for _, want := range []struct {
		since, orders int
		most          time.Duration
	}{{1, 0, time.Minute}, {-2, 2, 100 * time.Millisecond}} {
		var n int
		from := lowest(since.Add(time.Duration(want.since) * time.Second))
		if err := pool.QueryRow(t.Context(), countUnsettled, [16]byte(from)).Scan(&n); err != nil || n != want.orders {
			t.Errorf("%d orders are unsettled, want %d: %v", n, want.orders, err)
		}
		if settled, err := await(t.Context(), target, from, want.most, func() {}); err != nil || settled != (want.orders == 0) {
			t.Errorf("settled is %v: %v", settled, err)
		}
	}
}
