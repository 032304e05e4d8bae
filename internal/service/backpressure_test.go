package service

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// ahead runs a gather that b holds back and p spaces, gives it items at once, and tells how many of its transactions have gone ahead so far.
func ahead(t *testing.T, b *Backpressure, p *Pace, writers, most, items int) (count func() int) {
	t.Helper()
	done := make(chan int, items)
	g := NewGather(writers, most, func(_ context.Context, items []int) ([]Result[int], error) {
		done <- len(items)
		return make([]Result[int], len(items)), nil
	})
	g.Backpressure, g.Pace = b, p
	go g.Run(t.Context())
	for i := range items {
		go func() {
			if _, err := g.Do(t.Context(), i); err != nil && t.Context().Err() == nil {
				t.Error(err)
			}
		}()
	}
	return func() int {
		synctest.Wait()
		return len(done)
	}
}

// For each transaction of the consumer one of new work goes ahead. Turns that nobody wanted are not saved up.
func TestNewWorkWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBackpressure()
		for range 10 {
			b.begun(backlog)
			b.committed()
		}
		b.begun(backlog)
		count := ahead(t, b, nil, 2, 1, 6)
		for want := 1; want < 5; want++ {
			if got := count(); got != want {
				t.Errorf("%d in place of %d went ahead", got, want)
			}
			time.Sleep(400 * time.Millisecond) // it takes its time
			b.committed()
			b.begun(backlog)
		}
		if held := b.waits(); held < time.Second {
			t.Errorf("what went ahead in 1.6 s had been held back for %s", held)
		}
	})
}

// What comes while a transaction is held back goes into it.
func TestWhatIsHeldBackIsGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBackpressure()
		b.begun(backlog)
		count := ahead(t, b, nil, 1, 100, 100)
		if got := count(); got != 0 {
			t.Errorf("%d went ahead", got)
		}
		b.committed()
		if got := count(); got != 1 {
			t.Errorf("%d transactions for 100 items", got)
		}
	})
}

func TestNothingIsHeldBackWithoutABacklog(t *testing.T) {
	for name, consumer := range map[string]func(*Backpressure){
		"it has begun nothing":         func(*Backpressure) {},
		"less waits":                   func(b *Backpressure) { b.begun(backlog - 1) },
		"less waits now":               func(b *Backpressure) { b.begun(backlog); b.committed(); b.begun(1) },
		"nothing has come for long":    func(b *Backpressure) { b.begun(backlog); b.committed(); time.Sleep(betweenTransactions) },
		"its transaction does not end": func(b *Backpressure) { b.begun(backlog); time.Sleep(longestHold) },
		"its transactions fail": func(b *Backpressure) {
			b.begun(backlog)
			time.Sleep(longestHold / 2)
			b.begun(backlog)
			time.Sleep(longestHold / 2)
			b.begun(backlog)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := NewBackpressure()
				consumer(b)
				if got := ahead(t, b, nil, 2, 1, 20)(); got != 20 {
					t.Errorf("%d of 20 went ahead", got)
				}
			})
		})
	}
}

// A consumer that has come to the end, or does not go on, holds back for a bounded time, also what waits already.
func TestNothingIsHeldBackForLong(t *testing.T) {
	for name, c := range map[string]struct {
		consumer func(*Backpressure)
		bound    time.Duration
	}{
		"it has come to the end":       {func(b *Backpressure) { b.committed() }, betweenTransactions},
		"its transaction does not end": {func(*Backpressure) {}, longestHold},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := NewBackpressure()
				b.begun(backlog)
				count := ahead(t, b, nil, 2, 1, 20)
				count()
				c.consumer(b)
				time.Sleep(c.bound - time.Millisecond)
				if got := count(); got > 1 {
					t.Errorf("%d went ahead at once", got)
				}
				time.Sleep(time.Millisecond)
				if got := count(); got != 20 {
					t.Errorf("%d of 20 went ahead after %s", got, c.bound)
				}
			})
		})
	}
}

// Shutdown does not wait for the consumer.
func TestShutdownEndsBackpressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBackpressure()
		b.begun(backlog)
		begin := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		stop()
		b.wait(ctx)
		if took := time.Since(begin); took != 0 {
			t.Errorf("it waited for %s", took)
		}
	})
}
