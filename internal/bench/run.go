package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
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
	// stuckTime is how long orders may be unsettled while none of them settles, until a drain gives up.
	stuckTime = 2 * time.Minute
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
	l := newLoad(t, s, rate, duration, progress)
	// Asking the engines costs them something, which is kept out of what the processes use.
	var before, after sample
	if err := before.askEngines(ctx, t); err != nil {
		return Point{}, err
	}
	before.readProcesses(t)
	if err := l.send(ctx); err != nil {
		return Point{}, err
	}
	after.readProcesses(t)
	if err := after.askEngines(ctx, t); err != nil {
		return Point{}, err
	}
	if err := l.settle(ctx); err != nil {
		return Point{}, err
	}
	p := Point{System: t.Name, Shape: s, Rate: rate, Seconds: duration.Seconds(), Sent: len(l.orders)}
	p.latencies(l.orders, duration)
	p.Failed, p.Refused = l.failed, l.refused
	p.usage(before, after)
	return p, nil
}

// Place sends orders at a rate for a time, and does not wait for them to settle. It returns how many were accepted.
func Place(ctx context.Context, t Target, s Shape, rate int, duration time.Duration, progress func(Progress)) (accepted int, err error) {
	l := newLoad(t, s, rate, duration, progress)
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

	start           time.Time
	answered        atomic.Int64
	failed, refused int
}

func newLoad(t Target, s Shape, rate int, duration time.Duration, progress func(Progress)) *load {
	n := int(float64(rate) * duration.Seconds())
	l := &load{target: t, orders: make([]order, n), rate: rate, duration: duration, progress: progress}
	l.bodies, l.refused = s.bodies(n)
	for i, at := range arrivals(n, duration) {
		l.orders[i].meant = at
	}
	return l
}

// arrivals are the moments of a Poisson process of which n fall into a time: exponential gaps, stretched so that they do.
// They are the same for the same n and time.
func arrivals(n int, duration time.Duration) []time.Duration {
	random := rand.New(rand.NewSource(2))
	gaps := make([]float64, n+1) // the last one reaches beyond the last order
	sum := 0.0
	for i := range gaps {
		gaps[i] = random.ExpFloat64()
		sum += gaps[i]
	}
	all := make([]time.Duration, n)
	at := 0.0
	for i := range all {
		at += gaps[i]
		all[i] = time.Duration(at / sum * float64(duration))
	}
	return all
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

	countUnsettled = `
SELECT count(*) FROM orders WHERE id >= $1
AND (payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING'))`

	countFailed = `SELECT count(*) FROM orders WHERE id >= $1 AND status = 'FAILED'`

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
	// What has not settled then is unfinished.
	if _, err := await(ctx, l.target, first, settleTime, func() { l.tell(len(l.orders), true) }); err != nil {
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

// await returns when all orders from an id on are settled, or the time is over, and says which. Looking
// costs little: it goes on where it has come to.
func await(ctx context.Context, t Target, from uuid.UUID, most time.Duration, tell func()) (settled bool, err error) {
	told := time.Now()
	for deadline := time.Now().Add(most); time.Now().Before(deadline); {
		err := t.DB.QueryRow(ctx, firstUnsettled, [16]byte(from)).Scan(&from)
		if errors.Is(err, pgx.ErrNoRows) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("look for orders that are not settled: %w", err)
		}
		if time.Since(told) > time.Second {
			told = time.Now()
			tell()
		}
		pause(ctx, 50*time.Millisecond)
	}
	return false, ctx.Err()
}

// Drain waits until no order since a time is unsettled: what a point that did not hold has left behind must not burden the
// next one. It goes on while orders settle; an error says how many do not, when none has for two minutes.
func Drain(ctx context.Context, t Target, since time.Time) error {
	from := lowest(since)
	return drain(func() (n int, err error) {
		err = t.DB.QueryRow(ctx, countUnsettled, [16]byte(from)).Scan(&n)
		return n, err
	}, func() (settled bool, err error) { return await(ctx, t, from, stuckTime, func() {}) })
}

// drain counts before each wait and after it.
func drain(count func() (int, error), wait func() (settled bool, err error)) error {
	before, err := count()
	for err == nil {
		settled, failure := wait()
		if failure != nil || settled {
			return failure
		}
		var left int
		if left, err = count(); err == nil && left >= before {
			return fmt.Errorf("%d orders are unsettled, and none has settled for %s", left, stuckTime)
		}
		before = left
	}
	return fmt.Errorf("count unsettled orders: %w", err)
}

// Failed counts the orders since a time that have failed: were refused, were cancelled, or waited too long.
func Failed(ctx context.Context, t Target, since time.Time) (n int, err error) {
	if err = t.DB.QueryRow(ctx, countFailed, [16]byte(lowest(since))).Scan(&n); err != nil {
		return 0, fmt.Errorf("count failed orders: %w", err)
	}
	return n, nil
}

// lowest is the lowest UUIDv7 of a time.
func lowest(at time.Time) (id uuid.UUID) {
	for i, ms := 0, at.UnixMilli(); i < 6; i++ {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
