package service

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// under makes a pace of 10 ms on a machine where the share of time in which processors are short is what pressure points to.
func under(pressure *float64) *Pace {
	var stalled time.Duration
	last := time.Now()
	p := NewPace(10 * time.Millisecond)
	p.stalled = func() (time.Duration, error) {
		stalled += time.Duration(*pressure * float64(time.Since(last)))
		last = time.Now()
		return stalled, nil
	}
	return p
}

// busy is a pace of 10 ms on a machine that always has too much to do.
func busy() *Pace {
	always := 1.0
	p := under(&always)
	for range 50 {
		p.Between()
		time.Sleep(pressureEvery)
	}
	return p
}

func TestPaceFollowsThePressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pressure := 1.0
		p := under(&pressure)
		if d := p.Between(); d != 0 {
			t.Errorf("%v when nothing is known", d)
		}
		for _, c := range []struct {
			pressure    float64
			least, most time.Duration
		}{
			{1, 9 * time.Millisecond, 10 * time.Millisecond},
			{0.7, 4500 * time.Microsecond, 5500 * time.Microsecond},
			{little, 0, 100 * time.Microsecond},
			{0.1, 0, 0},
		} {
			pressure = c.pressure
			for range 30 {
				time.Sleep(pressureEvery)
				p.Between()
			}
			if d := p.Between(); d < c.least || d > c.most {
				t.Errorf("%v at a pressure of %v, want %v to %v", d, c.pressure, c.least, c.most)
			}
		}
		pressure = 1
		time.Sleep(time.Minute) // nobody asks, and then the last minute counts
		if d := p.Between(); d < 9*time.Millisecond {
			t.Errorf("%v after a minute", d)
		}
		asked, tells := 0, p.stalled
		p.stalled = func() (time.Duration, error) { asked++; return 0, errors.New("no such file") }
		time.Sleep(pressureEvery)
		for range 5 {
			if d := p.Between(); d != 0 {
				t.Errorf("%v when it cannot be told", d)
			}
		}
		if asked != 1 {
			t.Errorf("the system was asked %d times at once", asked)
		}
		p.stalled, pressure = tells, 0
		time.Sleep(pressureEvery)
		if d := p.Between(); d != 0 {
			t.Errorf("%v when it can be told again, of a time that is not known", d)
		}
	})
}

// What is behind a full transaction does not wait for more.
func TestBehindAFullTransactionNothingWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := ahead(t, nil, busy(), 2, 1, 5)
		if got := count(); got != 5 {
			t.Errorf("%d in place of 5 transactions at once", got)
		}
	})
}

func TestStalled(t *testing.T) {
	const text = "some avg10=79.77 avg60=72.61 avg300=62.65 total=18315014095\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
	if d, err := parseStalled(text); err != nil || d != 18315014095*time.Microsecond {
		t.Error(d, err)
	}
	for _, text := range []string{"", "some avg10=1", "some total=x", "full total=1"} {
		if _, err := parseStalled(text); err == nil {
			t.Errorf("%q is understood", text)
		}
	}
	if _, err := os.Stat(pressureFile); err != nil {
		t.Skip("this system does not tell:", err)
	}
	if d, err := stalledFor(); err != nil || d <= 0 {
		t.Error(d, err)
	}
}

// What comes until the next transaction may begin goes into it; the first waits for nothing.
func TestSpacedTransactionsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l commitLog
		g := NewGather(2, 100, l.commit)
		g.Pace = busy()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go g.Run(ctx)
		begin := time.Now()
		done := make(chan time.Duration, 4)
		for i, item := range []string{"a", "b", "c", "d"} {
			go func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				if _, err := g.Do(t.Context(), item); err != nil {
					t.Error(err)
				}
				done <- time.Since(begin)
			}()
		}
		var took []time.Duration
		for range 4 {
			took = append(took, <-done)
		}
		if took[0] != 0 || took[1] < 9*time.Millisecond || took[3] > 10*time.Millisecond {
			t.Errorf("done after %v", took)
		}
		if len(l.batches) != 2 || !slices.Equal(l.batches[1], []string{"b", "c", "d"}) {
			t.Errorf("transactions %q", l.batches)
		}
	})
}
