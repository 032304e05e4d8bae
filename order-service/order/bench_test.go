package order_test

import (
	"sync"
	"testing"
	"time"

	"outboxsaga/events"

	"github.com/google/uuid"
)

// BenchmarkLifecycle is what an order costs the database that takes it: placed in transactions of 100,
// then answered in two further ones. It reports the WAL of an order and how many of its
// updates were HOT.
func BenchmarkLifecycle(b *testing.B) {
	o := open(b, time.Hour)
	const together = 100
	var wal string
	if err := o.Pool.QueryRow(b.Context(), `SELECT pg_current_wal_lsn()::text`).Scan(&wal); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for n := 0; n < b.N; n += together {
		ids := make([]uuid.UUID, together)
		var all sync.WaitGroup
		for i := range ids {
			all.Go(func() { ids[i] = o.place(b) })
		}
		all.Wait()
		paid, reserved := make([]events.Message, together), make([]events.Message, together)
		for i, id := range ids {
			paid[i], reserved[i] = events.PaymentSuccess(id.String(), 3000), events.StockSuccess(id.String())
		}
		o.deliver(b, paid...)
		o.deliver(b, reserved...)
	}
	b.StopTimer()
	var written, updates, hot float64
	if err := o.Pool.QueryRow(b.Context(), `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::float8`, wal).Scan(&written); err != nil {
		b.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // backends report their counts when they have been idle for a second
	if _, err := o.Pool.Exec(b.Context(), `SELECT pg_stat_force_next_flush()`); err != nil {
		b.Fatal(err)
	}
	if err := o.Pool.QueryRow(b.Context(), `SELECT n_tup_upd::float8, n_tup_hot_upd::float8 FROM pg_stat_user_tables WHERE relname = 'orders'`).Scan(&updates, &hot); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(written/float64(b.N), "WAL-B/order")
	b.ReportMetric(100*hot/max(updates, 1), "%HOT")
}
