package order

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"outboxsaga/internal/service"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// askEvery is how often the waiters ask for what other instances have committed.
const askEvery = 100 * time.Millisecond

// askTimeout bounds one such question.
const askTimeout = 5 * time.Second

const selectSettled = `
SELECT id FROM orders WHERE id = ANY($1::uuid[])
AND payment_status NOT IN ('IN_PROGRESS', 'COMPENSATING') AND stock_status NOT IN ('IN_PROGRESS', 'COMPENSATING')`

// waiters are the requests that wait for their orders to settle. One query serves
// them all: after each commit of this instance, and every 100 ms for the commits of
// others. While nobody waits nothing is asked.
type waiters struct {
	pool     *service.Pool
	draining <-chan struct{}
	wake     chan struct{}
	count    atomic.Int64

	mu      sync.Mutex
	waiting map[uuid.UUID][]chan struct{}
}

func newWaiters(rt service.Runtime) *waiters {
	return &waiters{pool: rt.Pool, draining: rt.Draining, wake: make(chan struct{}, 1), waiting: map[uuid.UUID][]chan struct{}{}}
}

// Committed tells the waiters that orders may have settled. It does not block.
func (s *Saga) Committed() { s.waiters.poke() }

func (w *waiters) poke() {
	if w.count.Load() == 0 {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default: // it is awake
	}
}

// wait returns when the order is settled, the time is over, the client has gone or the
// service shuts down.
func (w *waiters) wait(ctx context.Context, id uuid.UUID, most time.Duration) {
	settled := make(chan struct{})
	w.mu.Lock()
	w.waiting[id] = append(w.waiting[id], settled)
	w.mu.Unlock()
	w.count.Add(1)
	defer w.leave(id, settled)
	w.poke() // it may have settled before this
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-settled:
	case <-timer.C:
	case <-ctx.Done():
	case <-w.draining:
	}
}

func (w *waiters) leave(id uuid.UUID, settled chan struct{}) {
	w.count.Add(-1)
	w.mu.Lock()
	defer w.mu.Unlock()
	rest := w.waiting[id]
	for i, c := range rest {
		if c == settled {
			rest = append(rest[:i:i], rest[i+1:]...)
		}
	}
	if w.waiting[id] = rest; len(rest) == 0 {
		delete(w.waiting, id)
	}
}

// run asks for the waiters until ctx is done.
func (w *waiters) run(ctx context.Context) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-tick.C:
		}
		w.ask(ctx)
	}
}

func (w *waiters) ask(ctx context.Context) {
	w.mu.Lock()
	ids := make([][16]byte, 0, len(w.waiting))
	for id := range w.waiting {
		ids = append(ids, id)
	}
	w.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	// A server that has gone without a word would else be waited for until TCP gives up.
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	done, err := service.Collect(ctx, w.pool, pgx.RowTo[uuid.UUID], selectSettled, ids)
	if err != nil {
		return // the next tick asks again; the waiters have their time limit
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range done {
		for _, c := range w.waiting[id] {
			close(c)
		}
		delete(w.waiting, id)
	}
}
