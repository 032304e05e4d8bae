package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/valyala/fasthttp"
)

const (
	// workers bounds how many requests are under way at once. Beyond it orders wait in the
	// load generator, and the wait counts.
	workers = 512
	// settleTime is how long orders may take to settle after the load.
	settleTime = 20 * time.Second
)

// Progress is told about once a second while the load runs, and while orders settle after it.
type Progress struct {
	Rate          int
	Elapsed, Of   time.Duration
	Due, Answered int // orders
	Settling      bool
}

// order is one order of a run. Times are since the start.
type order struct {
	id              uuid.UUID
	meant, accepted time.Duration
	final           time.Duration
	ok, settled     bool
}

// Run sends orders at a rate for a time and measures. progress may be nil.
func Run(ctx context.Context, t Target, s Shape, rate int, duration time.Duration, progress func(Progress)) (Point, error) {
	n := int(float64(rate) * duration.Seconds())
	l := load{target: t, bodies: s.bodies(n), orders: make([]order, n), rate: rate, duration: duration, progress: progress}
	before, err := measure(ctx, t)
	if err != nil {
		return Point{}, err
	}
	if err := l.send(ctx); err != nil {
		return Point{}, err
	}
	after, err := measure(ctx, t)
	if err != nil {
		return Point{}, err
	}
	if err := l.settle(ctx); err != nil {
		return Point{}, err
	}
	p := Point{System: t.Name, Shape: s, Rate: rate, Seconds: duration.Seconds(), Sent: n}
	p.latencies(l.orders, duration)
	p.Failed = l.failed
	p.usage(before, after)
	return p, nil
}

// Place sends orders at a rate for a time, and does not wait for them to settle. It returns how many were accepted.
func Place(ctx context.Context, t Target, s Shape, rate int, duration time.Duration, progress func(Progress)) (accepted int, err error) {
	n := int(float64(rate) * duration.Seconds())
	l := load{target: t, bodies: s.bodies(n), orders: make([]order, n), rate: rate, duration: duration, progress: progress}
	err = l.send(ctx)
	for _, o := range l.orders {
		if o.ok {
			accepted++
		}
	}
	return accepted, err
}

// load is a run in progress.
type load struct {
	target   Target
	bodies   [][]byte
	orders   []order
	rate     int
	duration time.Duration
	progress func(Progress)

	start    time.Time
	answered atomic.Int64
	failed   int
}

func (l *load) tell(due int, settling bool) {
	if l.progress != nil {
		l.progress(Progress{l.rate, time.Since(l.start), l.duration, due, int(l.answered.Load()), settling})
	}
}

// send sends the orders, each at its time, and returns when all are answered.
func (l *load) send(ctx context.Context) error {
	client := newClient(workers)
	defer client.CloseIdleConnections()
	queue := make(chan int, len(l.orders)) // a full queue must not slow the schedule down
	var all sync.WaitGroup
	l.start = time.Now().Add(10 * time.Millisecond)
	for range min(workers, len(l.orders)) {
		all.Go(func() {
			for i := range queue {
				o := &l.orders[i]
				url := l.target.OrderURLs[i%len(l.target.OrderURLs)] + "/orders"
				err := client.post(url, l.bodies[i], fasthttp.StatusAccepted, func(res *fasthttp.Response) (err error) {
					o.id, err = uuid.ParseBytes(bytes.TrimPrefix(res.Header.Peek("Location"), []byte("/orders/")))
					return err
				})
				o.ok, o.accepted = err == nil, time.Since(l.start)
				l.answered.Add(1)
			}
		})
	}
	defer all.Wait()
	defer close(queue)
	second := 0
	for i := range l.orders {
		l.orders[i].meant = time.Duration(float64(i) / float64(l.rate) * float64(time.Second))
		// Sleeping is coarse; what is due is sent at once, with its own intended time.
		if err := l.until(ctx, l.orders[i].meant); err != nil {
			return err
		}
		queue <- i
		if now := int(l.orders[i].meant / time.Second); now > second {
			second = now
			l.tell(i, false)
		}
	}
	return l.until(ctx, l.duration)
}

func (l *load) until(ctx context.Context, at time.Duration) error {
	if wait := time.Until(l.start.Add(at)); wait > 20*time.Microsecond {
		time.Sleep(wait)
	}
	return ctx.Err()
}

// An order is settled as package order says: no step is in progress or compensating.
const (
	firstUnsettled = `
SELECT id FROM orders WHERE id >= $1
AND (payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING'))
ORDER BY id LIMIT 1`

	// The row of a settled order was written by the transaction that settled it.
	selectFinal = `
SELECT id, status = 'FAILED', pg_xact_commit_timestamp(xmin) FROM orders WHERE id >= $1
AND payment_status NOT IN ('IN_PROGRESS', 'COMPENSATING') AND stock_status NOT IN ('IN_PROGRESS', 'COMPENSATING')`
)

// settle waits for the orders to settle and reads when they did.
func (l *load) settle(ctx context.Context) error {
	index := make(map[uuid.UUID]*order, len(l.orders))
	first := uuid.Max
	for i := range l.orders {
		if o := &l.orders[i]; o.ok {
			index[o.id] = o
			if bytes.Compare(o.id[:], first[:]) < 0 {
				first = o.id
			}
		}
	}
	if err := await(ctx, l.target, first, settleTime, func() { l.tell(len(l.orders), true) }); err != nil {
		return err
	}
	rows, err := l.target.DB.Query(ctx, selectFinal, [16]byte(first))
	if err != nil {
		return err
	}
	var id uuid.UUID
	var failed bool
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &failed, &at}, func() error {
		if o := index[id]; o != nil {
			// The wall clock, not the monotonic one, is what PostgreSQL has too.
			o.settled, o.final = true, max(o.meant+time.Microsecond, at.Sub(l.start.Round(0)))
			if failed {
				l.failed++
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read when orders were final (is track_commit_timestamp on?): %w", err)
	}
	return nil
}

// await returns when all orders from an id on are settled, or the time is over. Looking
// costs little: it goes on where it has come to.
func await(ctx context.Context, t Target, from uuid.UUID, most time.Duration, tell func()) error {
	told := time.Now()
	for deadline := time.Now().Add(most); time.Now().Before(deadline); {
		err := t.DB.QueryRow(ctx, firstUnsettled, [16]byte(from)).Scan(&from)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for orders that are not settled: %w", err)
		}
		if time.Since(told) > time.Second {
			told = time.Now()
			tell()
		}
		pause(ctx, 50*time.Millisecond)
	}
	return ctx.Err()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
