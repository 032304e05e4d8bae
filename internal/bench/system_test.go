package bench

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/internal/audit"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/stacktest"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// open starts a whole system with two instances of each service.
func open(t *testing.T) (Target, *stacktest.System) {
	t.Helper()
	s := stacktest.NewSystem(t, 2)
	admin := s.DB("postgres")
	if _, err := admin.Exec(t.Context(), `ALTER SYSTEM SET track_commit_timestamp = on`); err != nil {
		t.Fatal(err)
	}
	s.Kill(devstack.Postgres) // the setting needs a start, and connectors and services survive that
	s.Restart(devstack.Postgres)
	target := Target{Name: "cdc", DB: s.DB("orderdb"), Processes: map[string]int{}}
	for i := range 2 {
		target.OrderURLs = append(target.OrderURLs, s.URL("order-service", i))
		target.StockURLs = append(target.StockURLs, s.URL("stock-service", i))
		target.PaymentURLs = append(target.PaymentURLs, s.URL("payment-service", i))
	}
	for _, name := range []string{devstack.Postgres, devstack.Kafka, devstack.Connect, "order-service", "order-service-2", "stock-service", "payment-service"} {
		pid, running := s.PID(name)
		if !running {
			t.Fatal(name, "does not run")
		}
		target.Processes[name] = pid
	}
	// All flows again when an order settles.
	for end := time.Now().Add(time.Minute); ; {
		var answer struct{ Settled bool }
		header := map[string][]string{"Prefer": {"wait=5"}}
		code, err := stacktest.Post(t.Context(), target.OrderURLs[0]+"/orders", header, `{"customer_id":"x","items":[{"sku":"x","quantity":1,"unit_price":1}]}`, &answer)
		if err == nil && code == 200 && answer.Settled {
			return target, s
		}
		if time.Now().After(end) {
			t.Fatal("no order settles: ", code, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestRunOnTheRealStack(t *testing.T) {
	target, system := open(t)
	shape := Shape{Customers: 20, Items: 10, Lines: 2, Refused: 30}
	if err := Prepare(t.Context(), target, shape); err != nil {
		t.Fatal(err)
	}
	looks := auditMeanwhile(t, audit.Databases{Order: system.DB("orderdb"), Stock: system.DB("stockdb"), Payment: system.DB("paymentdb")})
	t.Run("a point", func(t *testing.T) { aPoint(t, target, shape) })
	t.Run("final is what a client sees", func(t *testing.T) { finalIsWhatAClientSees(t, target, shape) })
	t.Run("every look of the audit is clean", looks)
	t.Run("seeded orders are like real ones", func(t *testing.T) { seededOrdersAreLikeRealOnes(t, system, shape) })
	t.Run("a system that is not there", func(t *testing.T) {
		gone := target
		gone.PaymentURLs = []string{"http://127.0.0.1:1"}
		if err := Prepare(t.Context(), gone, shape); err == nil {
			t.Error("prepared")
		}
		if _, err := Run(t.Context(), gone, shape, 10, time.Second, nil); err == nil {
			t.Error("measured")
		}
	})
}

// auditMeanwhile audits a system until the test that it returns runs: every look must be clean, and at the end nothing may be open.
func auditMeanwhile(t *testing.T, books audit.Databases) func(*testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	rounds, orders := 0, 0
	look := func(a *audit.Auditor) error {
		wrong, err := audit.Conservation(ctx, books)
		if err != nil || len(wrong) > 0 {
			return fmt.Errorf("%v %w", wrong, err)
		}
		r, err := a.Round(ctx)
		if err != nil || !r.Clean() {
			return fmt.Errorf("%+v %w", r, err)
		}
		rounds, orders = rounds+1, orders+int(r.Checked["orders"])
		return nil
	}
	ended := make(chan error, 1)
	var stopping atomic.Bool
	go func() {
		a := audit.New(books, audit.Options{Grace: 4 * time.Second}) // as slow machines need while the JVMs compile
		for {
			if err := look(a); err != nil || stopping.Load() {
				ended <- err
				return
			}
		}
	}()
	t.Cleanup(cancel)
	return func(t *testing.T) {
		stopping.Store(true)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if rounds < 10 || orders < 50 {
			t.Errorf("%d rounds have judged %d orders only", rounds, orders)
		}
		time.Sleep(1100 * time.Millisecond)
		r, err := audit.Once(ctx, books, audit.Options{Grace: time.Second})
		if err != nil || !r.Clean() || r.Open != 0 || r.Checked["events"] < 4*200 || r.Checked["orders"] < 240 {
			t.Errorf("%+v %v", r, err)
		}
		t.Logf("%d rounds have judged %d orders; at the end %v", rounds, orders, r.Checked)
	}
}

func aPoint(t *testing.T, target Target, shape Shape) {
	var told []Progress
	begin := time.Now()
	p, err := Run(t.Context(), target, shape, 50, 4*time.Second, func(p Progress) { told = append(told, p) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", p)
	if p.Sent != 200 || p.Rejected != 0 || p.Unfinished != 0 || p.Failed < 30 || p.Failed > 90 || len(told) == 0 {
		t.Errorf("sent %d, rejected %d, unfinished %d, failed %d, told %d times", p.Sent, p.Rejected, p.Unfinished, p.Failed, len(told))
	}
	if p.AcceptP50 <= 0 || p.P50 < p.AcceptP50/2 || p.P99 < p.P50 || p.Max < p.P99 || p.Achieved <= 0 || p.Achieved > 55 {
		t.Errorf("latencies %+v", p)
	}
	for _, name := range []string{"postgres", "walsenders", "kafka", "connect", "order-service", "order-service-2", "stock-service", "payment-service", loadGenerator} {
		if p.CPU[name] <= 0 || p.CPU[name] > 100_000 {
			t.Errorf("CPU of %s: %v µs an order", name, p.CPU[name])
		}
	}
	if failed, err := Failed(t.Context(), target, begin); err != nil || failed != p.Failed {
		t.Errorf("%d orders failed, want %d: %v", failed, p.Failed, err)
	}
	if p.WALPerOrder < 1000 || p.WALPerOrder > 100_000 || p.Batch["order"] < 1 || p.Batch["stock"] < 1 || p.Batch["payment"] < 1 {
		t.Errorf("WAL %v, batches %v", p.WALPerOrder, p.Batch)
	}
}

// A client that waits for its order is answered after the moment that counts as final, and not
// long after. So the figures are neither too good nor too bad.
func finalIsWhatAClientSees(t *testing.T, target Target, shape Shape) {
	type seen struct {
		id   uuid.UUID
		from time.Time
		to   time.Time
	}
	var mu sync.Mutex
	var all []seen
	var clients sync.WaitGroup
	bodies, _ := shape.bodies(40)
	for i, body := range bodies {
		clients.Go(func() {
			var answer struct {
				ID      uuid.UUID
				Settled bool
			}
			from := time.Now()
			code, err := stacktest.Post(context.Background(), target.OrderURLs[i%2]+"/orders", map[string][]string{"Prefer": {"wait=20"}}, string(body), &answer)
			if err != nil || code != 200 || !answer.Settled {
				t.Error(code, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, seen{answer.ID, from, time.Now()})
		})
		time.Sleep(10 * time.Millisecond)
	}
	clients.Wait()
	for _, s := range all {
		var final time.Time
		if err := target.DB.QueryRow(t.Context(), `SELECT pg_xact_commit_timestamp(xmin) FROM orders WHERE id = $1`, s.id).Scan(&final); err != nil {
			t.Fatal(err)
		}
		// The other instance's waiters look every 100 ms.
		if final.Before(s.from) || final.After(s.to) || s.to.Sub(final) > 2*time.Second {
			t.Errorf("placed at %s, final at %s, seen at %s", s.from, final, s.to)
		}
	}
	if len(all) != len(bodies) {
		t.Error(len(all), "orders were seen")
	}
}

// Seeded orders have rows of the same number and size as those that were placed, and all adds up.
func seededOrdersAreLikeRealOnes(t *testing.T, s *stacktest.System, shape Shape) {
	const n = 1000
	shape.Lines, shape.Refused = 1, 0
	order, stock, payment := s.DB("orderdb"), s.DB("stockdb"), s.DB("paymentdb")
	target := Target{Name: "cdc", DB: order, OrderURLs: []string{s.URL("order-service", 0)}, StockURLs: []string{s.URL("stock-service", 0)}, PaymentURLs: []string{s.URL("payment-service", 0)}}
	if _, err := Run(t.Context(), target, shape, 50, 4*time.Second, nil); err != nil {
		t.Fatal(err)
	}
	tables := []struct {
		name, rows string
		pool       *pgxpool.Pool
		each       int
	}{
		{"orders", "FROM orders t WHERE status = 'SUCCESS' AND items NOT LIKE '%,{%'", order, 1}, {"outbox", "FROM outbox t WHERE payload NOT LIKE '%,{%'", order, 2}, {"inbox", "FROM inbox t", order, 2},
		{"reservations", "FROM reservations t WHERE status = 'RESERVED' AND json_array_length(items) = 1", stock, 1}, {"outbox", "FROM outbox t WHERE topic = 'stock.success'", stock, 1}, {"inbox", "FROM inbox t", stock, 1},
		{"payments", "FROM payments t WHERE status = 'CHARGED' AND amount = 5", payment, 1}, {"outbox", "FROM outbox t WHERE topic = 'payment.success' AND payload LIKE '%:5}'", payment, 1}, {"inbox", "FROM inbox t", payment, 1},
	}
	type measure struct {
		Rows int
		Size float64
	}
	read := func(pool *pgxpool.Pool, from string) (m measure) {
		if err := pool.QueryRow(t.Context(), `SELECT count(*), avg(pg_column_size(t.*)) `+from).Scan(&m.Rows, &m.Size); err != nil {
			t.Fatal(err)
		}
		return m
	}
	before := map[int]measure{}
	for i, table := range tables {
		before[i] = read(table.pool, table.rows)
	}
	s.Kill(devstack.Connect) // else the services would get events before their inboxes are seeded
	if err := Seed(t.Context(), order, stock, payment, shape, n, func(int) {}); err != nil {
		t.Fatal(err)
	}
	for i, table := range tables {
		was, is := before[i], read(table.pool, table.rows)
		seeded := (is.Size*float64(is.Rows) - was.Size*float64(was.Rows)) / n / float64(table.each)
		if is.Rows-was.Rows != n*table.each || math.Abs(seeded/was.Size-1) > 0.04 {
			t.Errorf("%s, %s: %d rows more, want %d, of %.1f bytes; real ones have %.1f", table.name, table.rows, is.Rows-was.Rows, n*table.each, seeded, was.Size)
		}
	}
	report, err := audit.Once(t.Context(), audit.Databases{Order: order, Stock: stock, Payment: payment}, audit.Options{Grace: 5 * time.Second})
	if err != nil || !report.Clean() || report.Checked["orders"] < n {
		t.Errorf("%+v: %v", report, err)
	}
}
