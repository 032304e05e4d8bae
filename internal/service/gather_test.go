package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// log is a commit function that remembers what it was given and decides by the items.
type commitLog struct {
	mu        sync.Mutex
	batches   [][]string
	deadlocks int
}

func (l *commitLog) commit(_ context.Context, items []string) ([]Result[string], error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches = append(l.batches, slices.Clone(items))
	if slices.Contains(items, "breaks the batch") {
		return nil, errors.New("this item is impossible")
	}
	var results []Result[string]
	for _, item := range items {
		switch {
		case item == "refused, and the connection broke":
			return nil, errors.Join(Conflict("x", "refused"), io.ErrUnexpectedEOF)
		case item == "panics":
			panic("boom")
		case item == "no database":
			return nil, &pgconn.PgError{Code: "57P01"}
		case item == "deadlock" && l.deadlocks < 2:
			l.deadlocks++
			return nil, fmt.Errorf("save: %w", &pgconn.PgError{Code: "40P01"})
		case item == "refused":
			results = append(results, Result[string]{Err: errors.New("refused")})
		default:
			results = append(results, Result[string]{Value: "did " + item})
		}
	}
	return results, nil
}

// together sends items so that they share a batch, and returns their results.
func together(t *testing.T, l *commitLog, items ...string) []string {
	t.Helper()
	results := make([]string, len(items))
	synctest.Test(t, func(t *testing.T) {
		g := NewGather(1, 100, l.commit)
		for i, item := range items {
			go func() {
				value, err := g.Do(t.Context(), item)
				results[i] = value
				if err != nil {
					results[i] = "error: " + err.Error()
				}
			}()
		}
		synctest.Wait() // all of them wait
		ctx, stop := context.WithCancel(t.Context())
		go g.Run(ctx)
		synctest.Wait()
		stop()
	})
	return results
}

func TestRequestsThatWaitShareATransaction(t *testing.T) {
	var l commitLog
	got := together(t, &l, "a", "b", "c", "refused")
	if want := []string{"did a", "did b", "did c", "error: refused"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if len(l.batches) != 1 {
		t.Errorf("%q", l.batches)
	}
}

func TestOneBadItemDoesNotFailTheOthers(t *testing.T) {
	for _, bad := range []string{"breaks the batch", "refused, and the connection broke", "panics"} {
		var l commitLog
		got := together(t, &l, "a", bad, "c")
		if got[0] != "did a" || got[2] != "did c" || !strings.HasPrefix(got[1], "error: ") {
			t.Errorf("%q", got)
		}
		if len(l.batches) != 4 {
			t.Errorf("%q", l.batches)
		}
	}
}

func TestAFaultOfTheDatabaseIsNotTriedItemByItem(t *testing.T) {
	var l commitLog
	for _, result := range together(t, &l, "a", "no database", "c") {
		if !strings.HasPrefix(result, "error: ") {
			t.Error(result)
		}
	}
	if len(l.batches) != 1 {
		t.Errorf("%q", l.batches)
	}
}

// A fault that begins while the items of a batch are tried one by one.
func TestAFaultAmongSingleItemsIsNotWaitedForByEach(t *testing.T) {
	var l commitLog
	items := []string{"a", "breaks the batch", "no database", "b", "c"}
	got := together(t, &l, items...)
	tried := slices.Index(l.batches[0], "no database") // in whatever order they came
	if len(l.batches) != 1+tried+1 {
		t.Errorf("%q", l.batches)
	}
	for i, item := range items {
		want := "error: "
		if slices.Index(l.batches[0], item) < tried && item != "breaks the batch" {
			want = "did " + item
		}
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("%s: %q", item, got[i])
		}
	}
}

func TestADeadlockIsTriedAgain(t *testing.T) {
	var l commitLog
	got := together(t, &l, "a", "deadlock")
	if want := []string{"did a", "did deadlock"}; !slices.Equal(got, want) || len(l.batches) != 3 {
		t.Errorf("%q %q", got, l.batches)
	}
}

func TestABatchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l commitLog
		g := NewGather(2, 3, l.commit)
		for i := range 10 {
			go g.Do(t.Context(), fmt.Sprint(i))
		}
		synctest.Wait()
		ctx, stop := context.WithCancel(t.Context())
		go g.Run(ctx)
		synctest.Wait()
		stop()
		done := 0
		for _, b := range l.batches {
			done += len(b)
			if len(b) > 3 {
				t.Errorf("%q", b)
			}
		}
		if done != 10 {
			t.Error(done)
		}
	})
}

// Shutdown finishes what was taken, refuses what was not, and leaves no goroutine (synctest
// would report it).
func TestGatherStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		committing, release := make(chan struct{}), make(chan struct{})
		g := NewGather(1, 1, func(ctx context.Context, items []int) ([]Result[int], error) {
			close(committing)
			<-release
			return []Result[int]{{Value: items[0]}}, ctx.Err()
		})
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan error)
		go func() { stopped <- g.Run(ctx) }()
		taken := make(chan error, 1)
		go func() {
			value, err := g.Do(t.Context(), 7)
			if value != 7 {
				err = fmt.Errorf("%d %w", value, err)
			}
			taken <- err
		}()
		<-committing
		late := make(chan error, 1)
		go func() {
			_, err := g.Do(t.Context(), 8)
			late <- err
		}()
		synctest.Wait()
		stop()
		synctest.Wait()
		close(release)
		if err := <-taken; err != nil {
			t.Error(err)
		}
		if err := <-late; !Unavailable(err) {
			t.Error(err)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if _, err := g.Do(t.Context(), 9); !errors.Is(err, errStopped) {
			t.Error(err)
		}
	})
}

// While the writers hang, as with a database that does not answer, nobody waits for them for long, nor for what one has taken.
func TestNobodyWaitsLongForAWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		g := NewGather(1, 1, func(_ context.Context, items []int) ([]Result[int], error) {
			<-release
			return []Result[int]{{Value: items[0]}}, nil
		})
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan error)
		go func() { stopped <- g.Run(ctx) }()
		taken := make(chan int, 1)
		go func() {
			value, _ := g.Do(t.Context(), 7)
			taken <- value
		}()
		synctest.Wait()
		begin := time.Now()
		if _, err := g.Do(t.Context(), 8); !Unavailable(err) || !strings.Contains(err.Error(), "nothing was done") || time.Since(begin) != acquireTimeout {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		release <- struct{}{}
		if value := <-taken; value != 7 {
			t.Error(value)
		}
		begin = time.Now()
		if _, err := g.Do(t.Context(), 9); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != commitTimeout { // taken, and not committed
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		close(release)
		stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

func TestAClientThatGoesAwayDoesNotWait(t *testing.T) {
	g := NewGather(1, 1, func(context.Context, []int) ([]Result[int], error) { return nil, nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Do(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
