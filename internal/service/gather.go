package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// commitTimeout bounds one commit of a [Gather], and how long an item that was taken waits for its own.
const commitTimeout = 10 * time.Second

// errBusy is the answer to what no writer takes within [acquireTimeout]: as with connections, a client that may come
// again is better than a pile of those that wait.
var errBusy = notBegun("the service has had more to do than it can for %s", acquireTimeout)

// errStopped is the answer to what arrives when the writers have gone.
var errStopped = notBegun("the service is stopping")

// Result is what became of one item: Value, or Err where this item alone was refused.
type Result[R any] struct {
	Value R
	Err   error
}

// Gather lets concurrent requests share a transaction (group commit). A writer takes what
// is waiting: one request alone waits for nobody, and under load
// batches grow by themselves. [NewGather] makes one, [Gather.Run] runs it.
type Gather[T, R any] struct {
	// Backpressure, if set before Run, holds each transaction back while the consumer has a backlog. What waits
	// meanwhile goes into it too.
	Backpressure *Backpressure
	// Pace, if set before Run, spaces transactions. What waits meanwhile goes into the next one. After a full one the next begins at once.
	Pace *Pace

	turn  chan struct{} // holds an element while a writer takes
	began time.Time     // the last transaction, unless it was full: of the writer that takes

	writers, max int
	commit       func(ctx context.Context, items []T) ([]Result[R], error)
	waiting      chan request[T, R]
	stopped      chan struct{}
}

type request[T, R any] struct {
	item  T
	reply chan Result[R] // buffered: the writer never waits for a client
}

// NewGather makes a gather with a number of writers, which commit at most max items each.
// commit does the work of one transaction and returns one result for each item, in the
// same order.
//
// When commit returns an error, nothing may have been committed. A deadlock is tried
// again; if the database cannot work, all items get the error; any other error belongs to one of
// them, so each is tried alone, and the others succeed.
func NewGather[T, R any](writers, max int, commit func(ctx context.Context, items []T) ([]Result[R], error)) *Gather[T, R] {
	return &Gather[T, R]{writers: writers, max: max, commit: commit, turn: make(chan struct{}, 1), waiting: make(chan request[T, R]), stopped: make(chan struct{})}
}

// Run owns the writers and blocks until ctx is done and they have finished what they had
// taken. It returns nil. It may be called once; afterwards Do fails.
func (g *Gather[T, R]) Run(ctx context.Context) error {
	defer close(g.stopped)
	var writers sync.WaitGroup
	for range g.writers {
		writers.Go(func() { g.write(ctx) })
	}
	writers.Wait()
	return nil
}

// Do waits until the item is committed, at most 2 s until a writer takes it and 10 s from then on. It returns early when ctx is done.
// If no writer took it, nothing was done and the error says so; else it may be committed nevertheless.
func (g *Gather[T, R]) Do(ctx context.Context, item T) (R, error) {
	var none R
	req := request[T, R]{item, make(chan Result[R], 1)}
	patience := time.NewTimer(acquireTimeout) // a context with a deadline costs more, for every order
	defer patience.Stop()
	select {
	case g.waiting <- req:
	case <-patience.C:
		return none, errBusy
	case <-ctx.Done():
		return none, ctx.Err()
	case <-g.stopped:
		return none, errStopped
	}
	patience.Reset(commitTimeout)
	select {
	case result := <-req.reply:
		return result.Value, result.Err
	case <-patience.C:
		return none, context.DeadlineExceeded
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

func (g *Gather[T, R]) write(ctx context.Context) {
	var taken []request[T, R]
	for {
		if taken = g.take(ctx, taken[:0]); len(taken) == 0 {
			return
		}
		// What was taken is finished, also when ctx ends meanwhile.
		_ = g.settle(context.WithoutCancel(ctx), taken) // who asked was told
		clear(taken)
	}
}

// take waits until something is waiting and a transaction may begin, and appends what waits by then. It returns nothing when ctx is
// done before.
func (g *Gather[T, R]) take(ctx context.Context, taken []request[T, R]) []request[T, R] {
	select {
	case <-ctx.Done():
		return taken
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	}
	if ctx.Err() != nil {
		return taken
	}
	select {
	case <-ctx.Done():
		return taken
	case req := <-g.waiting:
		taken = append(taken, req)
	}
	if left := time.Until(g.began.Add(g.Pace.Between())); left > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(left):
		}
	}
	g.Backpressure.wait(ctx)
	for {
		if len(taken) == g.max { // to wait for more would gain nothing
			g.began = time.Time{}
			return taken
		}
		select {
		case req := <-g.waiting:
			taken = append(taken, req)
		default:
			g.began = time.Now()
			return taken
		}
	}
}

// settle commits what was taken, together if possible, and answers each request. It returns the fault for which the database
// cannot work now, if there is one.
func (g *Gather[T, R]) settle(ctx context.Context, taken []request[T, R]) error {
	items := make([]T, len(taken))
	for i, req := range taken {
		items[i] = req.item
	}
	results, err := g.try(ctx, items)
	switch {
	case err == nil:
		for i, req := range taken {
			req.reply <- results[i]
		}
		return nil
	case len(taken) > 1 && !Unavailable(err):
		for len(taken) > 0 {
			one, rest := taken[:1], taken[1:]
			if err = g.settle(ctx, one); err != nil { // each of the others would wait for as long
				fail(rest, err)
				return err
			}
			taken = rest
		}
		return nil
	}
	fail(taken, err)
	if Unavailable(err) && !collision(err) {
		return err
	}
	return nil
}

func fail[T, R any](taken []request[T, R], err error) {
	for _, req := range taken {
		req.reply <- Result[R]{Err: err}
	}
}

// try commits items, again after a deadlock or a collision with another instance: by
// then that one has committed.
func (g *Gather[T, R]) try(ctx context.Context, items []T) (results []Result[R], err error) {
	for range 5 {
		if results, err = g.once(ctx, items); !collision(err) {
			break
		}
	}
	return results, err
}

func (g *Gather[T, R]) once(ctx context.Context, items []T) (results []Result[R], err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the commit panicked: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	results, err = g.commit(ctx, items)
	if err == nil && len(results) != len(items) {
		err = fmt.Errorf("the commit returned %d results for %d items", len(results), len(items))
	}
	return results, err
}

// collision: two transactions wanted the same rows. A new try sees what the other did.
func collision(err error) bool {
	var pg *pgconn.PgError
	return errors.Is(err, errNoClaim) || errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "40001" || pg.Code == "23505")
}
