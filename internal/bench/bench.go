// Package bench measures a running system from outside.
//
// Load is open: orders are sent at a fixed rate, whatever becomes of earlier ones, and every
// latency counts from the moment at which the order was meant to be sent. A slow
// system therefore cannot slow its measurement down (coordinated omission).
//
// Two latencies are kept. "accept" ends when the answer to POST /orders has been read.
// "final" ends when PostgreSQL has committed the transaction that gave the order
// its final status; that time is PostgreSQL's own (track_commit_timestamp), on
// the same machine and clock. An order that is not final at the end counts as infinitely slow.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/valyala/fasthttp"
)

// Target is the system to measure.
type Target struct {
	OrderURL, StockURL, PaymentURL string
	// DB is a pool on orderdb whose role may read everything.
	DB *pgxpool.Pool
	// Processes are those whose CPU time is counted: name → process id. PostgreSQL's is that of
	// the postmaster; its children count with it, walsenders apart.
	Processes map[string]int
}

// Shape is what is ordered.
type Shape struct {
	Customers, Items int
	Lines            int // of each order
}

// Point is one measurement.
type Point struct {
	System          string             `json:"system"`
	Rate            int                `json:"rate"`     // orders/s meant to be sent
	Achieved        float64            `json:"achieved"` // orders/s that became final while the load ran
	Seconds         float64            `json:"seconds"`
	Sent            int                `json:"sent"`
	Refused         int                `json:"refused"`    // not answered with 202
	Unfinished      int                `json:"unfinished"` // not final 20 s after the end
	P50             float64            `json:"p50_ms"`     // meant to be sent → final
	P99             float64            `json:"p99_ms"`
	Max             float64            `json:"max_ms"`
	AcceptP50       float64            `json:"accept_p50_ms"`
	AcceptP99       float64            `json:"accept_p99_ms"`
	CPU             map[string]float64 `json:"cpu_us_per_order"`
	IdleCores       float64            `json:"idle_cores"`
	WALPerOrder     float64            `json:"wal_bytes_per_order"`
	Batch           map[string]float64 `json:"events_per_transaction"`
	BacklogAtTheEnd int                `json:"backlog_at_the_end"` // orders in progress when the load ended
}

// Holds tells whether the system kept up: p99 within a second, nothing unfinished, no
// backlog that grows.
func (p Point) Holds() bool {
	return p.Unfinished == 0 && p.Refused == 0 && p.P99 <= 1000 && p.Achieved >= 0.97*float64(p.Rate)
}

// Prepare puts goods and money in, enough for any run.
func Prepare(ctx context.Context, t Target, s Shape) error {
	client := newClient(64)
	work := make(chan func() error)
	var all sync.WaitGroup
	var once sync.Once
	var first error
	for range 64 {
		all.Go(func() {
			for f := range work {
				if err := f(); err != nil {
					once.Do(func() { first = err })
				}
			}
		})
	}
	for i := range s.Customers {
		work <- func() error {
			return client.do(t.PaymentURL+"/accounts/"+customer(i)+"/deposits", []byte(`{"amount":1000000000000}`), 200, nil)
		}
	}
	for i := range s.Items {
		work <- func() error {
			return client.do(t.StockURL+"/items/"+item(i)+"/receipts", []byte(`{"quantity":1000000000000}`), 200, nil)
		}
	}
	close(work)
	all.Wait()
	return errors.Join(first, ctx.Err())
}

func customer(i int) string { return fmt.Sprintf("customer-%d", i) }
func item(i int) string     { return fmt.Sprintf("item-%d", i) }

// body of the i-th order; neighbours have different customers and items.
func (s Shape) body(i int) []byte {
	b := fmt.Appendf(nil, `{"customer_id":%q,"items":[`, customer(i*7919%s.Customers))
	for l := range max(s.Lines, 1) {
		if l > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `{"sku":%q,"quantity":1,"unit_price":5}`, item((i*104729+l)%s.Items))
	}
	return append(b, `]}`...)
}

// sent is one order of a run.
type sent struct {
	meant time.Time
	id    uuid.UUID
	ok    bool
}

// Run sends orders at a rate for a time and measures.
func Run(ctx context.Context, t Target, s Shape, rate int, duration time.Duration) (Point, error) {
	const workers = 512
	n := int(float64(rate) * duration.Seconds())
	orders := make([]sent, n)
	accept := hdrhistogram.New(1, (60 * time.Second).Microseconds(), 3)
	var mu sync.Mutex

	before, err := measure(ctx, t)
	if err != nil {
		return Point{}, err
	}
	client := newClient(workers)
	defer client.CloseIdleConnections()
	queue := make(chan int, n) // a full queue must not slow the schedule down
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			mine := hdrhistogram.New(1, (60 * time.Second).Microseconds(), 3)
			for i := range queue {
				var answer struct {
					ID uuid.UUID `json:"id"`
				}
				err := client.do(t.OrderURL+"/orders", s.body(i), fasthttp.StatusAccepted, &answer)
				orders[i].id, orders[i].ok = answer.ID, err == nil
				_ = mine.RecordValue(time.Since(orders[i].meant).Microseconds())
			}
			mu.Lock()
			accept.Merge(mine)
			mu.Unlock()
		})
	}
	start := time.Now().Add(10 * time.Millisecond)
	for i := range n {
		orders[i].meant = start.Add(time.Duration(float64(i) / float64(rate) * float64(time.Second)))
		// Sleeping is coarse; what is due is sent at once, with its own intended time.
		if wait := time.Until(orders[i].meant); wait > 0 {
			time.Sleep(wait)
		}
		if ctx.Err() != nil {
			break
		}
		queue <- i
	}
	end := time.Now()
	var backlog int
	if err := t.DB.QueryRow(ctx, `SELECT count(*) FROM orders WHERE status = 'IN_PROGRESS'`).Scan(&backlog); err != nil {
		return Point{}, err
	}
	after, err := measure(ctx, t)
	if err != nil {
		return Point{}, err
	}
	close(queue)
	all.Wait()
	p := Point{
		Rate: rate, Seconds: duration.Seconds(), Sent: n, BacklogAtTheEnd: backlog,
		AcceptP50: float64(accept.ValueAtQuantile(50)) / 1000, AcceptP99: float64(accept.ValueAtQuantile(99)) / 1000,
	}
	p.fill(before, after)
	return p, p.finish(ctx, t, orders, end)
}

// finish waits for the orders to be final and reads when they were.
func (p *Point) finish(ctx context.Context, t Target, orders []sent, end time.Time) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		var open int
		if err := t.DB.QueryRow(ctx, `SELECT count(*) FROM orders WHERE status = 'IN_PROGRESS'`).Scan(&open); err != nil {
			return err
		}
		if open == 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	final := make(map[uuid.UUID]time.Time, len(orders))
	first := uuid.Max
	for _, o := range orders {
		if o.ok && o.id.String() < first.String() {
			first = o.id
		}
	}
	rows, err := t.DB.Query(ctx, `SELECT id, pg_xact_commit_timestamp(xmin) FROM orders WHERE id >= $1 AND status <> 'IN_PROGRESS'`, first)
	if err != nil {
		return err
	}
	for rows.Next() {
		var id uuid.UUID
		var at time.Time
		if err := rows.Scan(&id, &at); err != nil {
			return err
		}
		final[id] = at
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read when orders were final (is track_commit_timestamp on?): %w", err)
	}
	latency := hdrhistogram.New(1, (5 * time.Minute).Microseconds(), 3)
	done := 0
	for _, o := range orders {
		if !o.ok {
			p.Refused++
			continue
		}
		at, ok := final[o.id]
		if !ok {
			p.Unfinished++
			_ = latency.RecordValue((5 * time.Minute).Microseconds())
			continue
		}
		if at.Before(end) {
			done++
		}
		_ = latency.RecordValue(max(1, at.Sub(o.meant).Microseconds()))
	}
	p.P50, p.P99 = float64(latency.ValueAtQuantile(50))/1000, float64(latency.ValueAtQuantile(99))/1000
	p.Max = float64(latency.Max()) / 1000
	p.Achieved = math.Round(float64(done)/p.Seconds*10) / 10
	return nil
}

// Maximum searches the highest rate that holds: up by steps of a quarter from start, then
// between the last two. It returns all points that it measured, and that rate.
func Maximum(ctx context.Context, t Target, s Shape, start int, duration time.Duration, report func(Point)) (best int, points []Point, err error) {
	good, bad := 0, 0
	rate := start
	for range 12 {
		p, err := Run(ctx, t, s, rate, duration)
		if err != nil {
			return good, points, err
		}
		points = append(points, p)
		report(p)
		if p.Holds() {
			good = rate
		} else {
			bad = rate
			pause(ctx, 2*time.Second) // the backlog has been worked off by finish; let caches settle
		}
		switch {
		case bad == 0:
			rate = good * 5 / 4
		case good == 0:
			rate = bad * 3 / 4
		case bad-good <= good/14:
			return good, points, nil
		default:
			rate = (good + bad) / 2
		}
	}
	return good, points, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// client is a fast HTTP client: the load generator shares the machine with what it measures.
type client struct{ fasthttp.Client }

func newClient(connections int) *client {
	return &client{fasthttp.Client{
		Name: "bench", MaxConnsPerHost: connections, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
		NoDefaultUserAgentHeader: true, MaxIdleConnDuration: time.Minute,
	}}
}

func (c *client) do(url string, body []byte, want int, out any) error {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.Header.SetMethod(fasthttp.MethodPost)
	req.Header.SetContentType("application/json")
	req.SetRequestURI(url)
	req.SetBodyRaw(body)
	if err := c.Do(req, res); err != nil {
		return fmt.Errorf("POST %s: %w", url, err)
	}
	if res.StatusCode() != want {
		return fmt.Errorf("POST %s: %d: %.200s", url, res.StatusCode(), res.Body())
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(res.Body(), out)
}

// Machine describes where a measurement was made.
func Machine() map[string]any {
	return map[string]any{"cpus": runtime.NumCPU(), "os": runtime.GOOS, "arch": runtime.GOARCH, "go": runtime.Version(), "cpu": cpuModel()}
}
