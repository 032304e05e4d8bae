package order_test

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/order-service/order"

	"github.com/google/uuid"
)

// eventually waits until a query answers with a text.
func eventually(t *testing.T, o office, want, sql string, args ...any) {
	t.Helper()
	var got string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if got = servicetest.Text(t, o.Pool, sql, args...); got == want {
			return
		}
	}
	t.Fatalf("%s is %q after 10 s, want %q", sql, got, want)
}

const byStatus = `SELECT coalesce(string_agg(status || ' ' || n, ', ' ORDER BY status), '') FROM (SELECT status, count(*) AS n FROM orders GROUP BY status) s`

// backdate moves an order into the past: its id is its time.
func backdate(t *testing.T, o office, id uuid.UUID, by time.Duration) uuid.UUID {
	t.Helper()
	old := id
	ms := time.Now().Add(-by).UnixMilli()
	for i := range 6 {
		old[i] = byte(ms >> (8 * (5 - i)))
	}
	if _, err := o.Pool.Exec(t.Context(), `UPDATE orders SET id = $2, created_at = created_at - make_interval(secs => $3) WHERE id = $1`, id, old, by.Seconds()); err != nil {
		t.Fatal(err)
	}
	return old
}

func TestTimeout(t *testing.T) {
	pool := database(t)
	o := join(t, pool, 700*time.Millisecond)
	join(t, pool, 700*time.Millisecond) // two sweep
	done, half, none := o.place(t), o.place(t), o.place(t)
	o.deliver(t, events.PaymentSuccess(done.String(), 3000), events.StockSuccess(done.String()), events.PaymentSuccess(half.String(), 3000))
	if got := o.state(t, none); got != "IN_PROGRESS payment IN_PROGRESS, stock IN_PROGRESS" {
		t.Fatal(got)
	}
	eventually(t, o, "FAILED 2, SUCCESS 1", byStatus)
	for id, want := range map[uuid.UUID]string{
		done: "SUCCESS payment SUCCESS, stock SUCCESS",
		half: "FAILED payment COMPENSATING, stock IN_PROGRESS, timeout",
		none: "FAILED payment IN_PROGRESS, stock IN_PROGRESS, timeout",
	} {
		if got := o.state(t, id); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if v := o.view(t, half); v.UpdatedAt.Sub(v.CreatedAt) < 700*time.Millisecond {
		t.Error("failed after", v.UpdatedAt.Sub(v.CreatedAt))
	}
	if n := servicetest.Text(t, pool, `SELECT count(*)::text FROM outbox WHERE topic = 'payment.compensation' AND aggregate_id = $1`, half.String()); n != "1" {
		t.Error(n, "compensations")
	}
}

// insertOld makes orders of an hour ago, every other one settled.
const insertOld = `
INSERT INTO orders (id, customer_id, payment_command, stock_command, amount, items, created_at, updated_at, status, payment_status, stock_status)
SELECT uuidv7('-1 hour'), 'alice', uuidv7(), uuidv7(), 1, '[]', now(), now(), s, p, p
FROM generate_series(1, $1) n, LATERAL (SELECT CASE WHEN n % 2 = 0 THEN 'SUCCESS' ELSE 'IN_PROGRESS' END AS s, CASE WHEN n % 2 = 0 THEN 'SUCCESS' ELSE 'IN_PROGRESS' END AS p) x`

// A clock that was ahead, of this instance or of one before it, must not be what later orders are measured by.
func TestTimeoutAfterAClockWasAhead(t *testing.T) {
	const upto = `SELECT (upto > uuidv7('5 minutes'))::text FROM orders_swept`
	t.Run("of an instance before", func(t *testing.T) {
		pool := database(t)
		if _, err := pool.Exec(t.Context(), `UPDATE orders_swept SET upto = uuidv7('1 hour')`); err != nil {
			t.Fatal(err)
		}
		o := join(t, pool, 700*time.Millisecond)
		o.place(t)
		eventually(t, o, "FAILED 1", byStatus)
		eventually(t, o, "false", upto)
	})
	t.Run("of this one", func(t *testing.T) {
		var ahead atomic.Int64
		ahead.Store(int64(time.Hour))
		pool := database(t)
		if _, err := pool.Exec(t.Context(), insertOld, 1); err != nil {
			t.Fatal(err)
		}
		o := join(t, pool, 700*time.Millisecond, func(s *order.Saga) {
			s.SetClock(func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
		})
		eventually(t, o, "FAILED 1", byStatus) // the clock that was ahead has looked
		ahead.Store(0)
		o.place(t)
		eventually(t, o, "FAILED 2", byStatus)
		eventually(t, o, "false", upto)
	})
	t.Run("while others place orders", func(t *testing.T) {
		pool := database(t)
		for _, sql := range []string{insertOld, strings.Replace(insertOld, "-1 hour", "-1 second", 1)} {
			if _, err := pool.Exec(t.Context(), sql, 1); err != nil {
				t.Fatal(err)
			}
		}
		o := join(t, pool, time.Minute, func(s *order.Saga) {
			s.SetClock(func() time.Time { return time.Now().Add(time.Hour) })
		})
		eventually(t, o, "FAILED 1, IN_PROGRESS 1", byStatus) // the clock that is ahead has looked
		time.Sleep(1200 * time.Millisecond)                   // twice more
		eventually(t, o, "FAILED 1, IN_PROGRESS 1", byStatus)
	})
}

// Orders of an instance whose clock was behind, and which has ended since, have ids below what the others have looked at.
func TestTimeoutAfterAClockWasBehind(t *testing.T) {
	pool := database(t)
	for _, sql := range []string{`UPDATE orders_swept SET upto = uuidv7('-3 minutes')`, strings.Replace(insertOld, "$1", "1", 1)} {
		if _, err := pool.Exec(t.Context(), strings.Replace(sql, "-1 hour", "-50 minutes", 1)); err != nil {
			t.Fatal(err)
		}
	}
	o := join(t, pool, time.Minute)
	eventually(t, o, "FAILED 1", byStatus)
}

// Without the row that says where to begin nothing would time out: that is said, and mended at once.
func TestTimeoutWithoutAStart(t *testing.T) {
	pool := database(t)
	if _, err := pool.Exec(t.Context(), `DELETE FROM orders_swept`); err != nil {
		t.Fatal(err)
	}
	log := make(lines, 100)
	o := join(t, pool, 100*time.Millisecond, func(s *order.Saga) { s.SetLog(slog.New(slog.NewTextHandler(log, nil))) })
	o.place(t)
	select {
	case line := <-log:
		if !strings.Contains(line, "INSERT INTO orders_swept") {
			t.Error(line)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing is said")
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO orders_swept VALUES ('00000000-0000-0000-0000-000000000000')`); err != nil {
		t.Fatal(err)
	}
	eventually(t, o, "FAILED 1", byStatus)
}

// lines are what a log was told.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

// Thousands at once, and by a start long after: in batches, each once.
func TestTimeoutAfterAnOutage(t *testing.T) {
	pool := database(t)
	if _, err := pool.Exec(t.Context(), insertOld, 12000); err != nil {
		t.Fatal(err)
	}
	var offices []office
	for range 3 {
		offices = append(offices, join(t, pool, time.Minute))
	}
	o := offices[0]
	young := o.place(t)
	eventually(t, o, "FAILED 6000, IN_PROGRESS 1, SUCCESS 6000", byStatus)
	if got := servicetest.Text(t, pool, `SELECT max(length(timeline) - length(replace(timeline, 'order.timed_out', '')))::text FROM orders`); got != "15" {
		t.Error("an order timed out twice:", got)
	}
	// The second look was here too: a next start need not begin at the first order.
	eventually(t, o, "t", `SELECT left((upto > (SELECT id FROM orders WHERE id < $1 ORDER BY id DESC LIMIT 1))::text, 1) FROM orders_swept`, young)
}

// An order that another transaction has locked when its time comes fails when that ends.
func TestTimeoutOfALockedOrder(t *testing.T) {
	o := open(t, 300*time.Millisecond)
	id := o.place(t)
	tx, err := o.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM orders WHERE id = $1 FOR UPDATE`, id); err != nil {
		t.Fatal(err)
	}
	later := o.place(t)
	eventually(t, o, "FAILED", `SELECT status FROM orders WHERE id = $1`, later) // it does not wait for the lock
	if got := servicetest.Text(t, o.Pool, `SELECT status FROM orders WHERE id = $1`, id); got != "IN_PROGRESS" {
		t.Fatal(got)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, o, "FAILED", `SELECT status FROM orders WHERE id = $1`, id)
}

// An order that becomes visible when the first look has passed is found by the second one, or by a start.
func TestTimeoutOfAnOrderThatCommitsLate(t *testing.T) {
	o := open(t, 200*time.Millisecond)
	early := o.place(t)
	eventually(t, o, "FAILED", `SELECT status FROM orders WHERE id = $1`, early) // the first look has passed
	late := backdate(t, o, o.place(t), time.Minute)
	if got := servicetest.Text(t, o.Pool, `SELECT (upto < $1)::text FROM orders_swept`, late); got != "true" {
		t.Fatal("the second look has passed already")
	}
	// Its time comes in another minute; a start begins where the second look has come to.
	join(t, o.Pool, 200*time.Millisecond)
	eventually(t, o, "FAILED", `SELECT status FROM orders WHERE id = $1`, late)
}
