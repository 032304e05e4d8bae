package bench

import (
	"errors"
	"testing"
	"time"
)

// fakeSystem holds up to limit, and while confirmed up to confirmed. Its points take their time on its clock and some more.
type fakeSystem struct {
	limit, confirmed int
	broken           func(rate, point int) bool // what the machine spoils; nil: nothing

	clock         time.Duration
	points        int
	confirmations []int
}

const settling = 2 * time.Second

func (f *fakeSystem) search(held, start int, most time.Duration) (Found, error) {
	s := Search{Held: held, Start: start, Step: 6 * time.Second, Confirm: time.Minute, Most: most, now: func() time.Time { return time.Time{}.Add(f.clock) }}
	s.Run = func(rate int, d time.Duration, confirms bool) (Point, error) {
		f.points++
		f.clock += d + settling
		limit := f.limit
		if confirms {
			f.confirmations = append(f.confirmations, rate)
			limit = f.confirmed
		}
		p := Point{Rate: rate}
		if rate > limit || f.broken != nil && f.broken(rate, f.points) {
			p.P99 = 1001
		}
		return p, nil
	}
	return s.Find()
}

func TestSearch(t *testing.T) {
	for _, c := range []struct{ limit, held, start, low, high int }{
		{8000, 0, 4000, 7600, 8000}, {8000, 0, 8000, 7600, 8000}, {8000, 0, 20_000, 7600, 8000}, {8000, 0, 100, 7600, 8000},
		{8000, 2000, 0, 7600, 8000}, {600, 500, 0, 570, 600}, {500, 500, 0, 500, 500}, {1, 0, 4000, 0, 1}, {0, 0, 4000, 0, 0}, {40, 0, 1, 38, 40},
	} {
		// What holds for a second may not hold for a minute.
		f := &fakeSystem{limit: c.limit, confirmed: c.limit * 97 / 100}
		got, err := f.search(c.held, c.start, 0)
		if err != nil || got.Rate < c.low*94/100 || got.Rate > c.high || got.Open || got.Not > 0 && got.Not <= got.Rate || f.points > 40 {
			t.Errorf("%d from %d, %d: found %+v after %d points: %v", c.limit, c.held, c.start, got, f.points, err)
		}
	}
	boom := errors.New("boom")
	broken := Search{Start: 10, Step: 1, Confirm: 1, Run: func(int, time.Duration, bool) (Point, error) { return Point{}, boom }}
	if _, err := broken.Find(); !errors.Is(err, boom) {
		t.Error(err)
	}
	broken.Held, broken.Start, broken.Most = 10, 0, time.Nanosecond // to the confirmation
	if _, err := broken.Find(); !errors.Is(err, boom) {
		t.Error(err)
	}
}

// One stall of the machine does not bound the search.
func TestSearchTriesTwice(t *testing.T) {
	seen := map[int]bool{}
	f := &fakeSystem{limit: 8000, confirmed: 8000, broken: func(rate, _ int) bool {
		first := !seen[rate]
		seen[rate] = true
		return first
	}}
	if got, err := f.search(2000, 0, 0); err != nil || got.Rate < 7600 {
		t.Errorf("found %+v of 8000: %v", got, err)
	}
}

// What steps have found is lowered until it is confirmed.
func TestSearchConfirmsSomething(t *testing.T) {
	f := &fakeSystem{limit: 8000, confirmed: 3000}
	got, err := f.search(2000, 0, 0)
	if err != nil || got.Rate < 1500 || got.Rate > 3000 || got.Not < 3000 || !got.Open || len(f.confirmations) > 8 {
		t.Errorf("found %+v by %v: %v", got, f.confirmations, err)
	}
	f = &fakeSystem{limit: 8000, confirmed: 0}
	if got, err := f.search(2000, 0, 0); err != nil || got.Rate != 0 || len(f.confirmations) > 20 {
		t.Errorf("found %+v by %v: %v", got, f.confirmations, err)
	}
}

func TestSearchIsBounded(t *testing.T) {
	const most = 3 * time.Minute
	// A step that has begun ends, and so do a confirmation and those on the way to what held before.
	const atMost = most*3/2 + 3*(time.Minute+settling)
	for name, c := range map[string]struct {
		system fakeSystem
		held   int
		found  Found
	}{
		"nothing holds":                  {fakeSystem{}, 0, Found{0, 1, false}},
		"steps hold, and nothing longer": {fakeSystem{limit: 8000}, 0, Found{0, 3533, true}},
		"only what held before":          {fakeSystem{limit: 100_000, confirmed: 2000}, 2000, Found{2000, 44365, true}},
		"nothing any more":               {fakeSystem{limit: 8000}, 2000, Found{0, 2000, true}},
		"something in between":           {fakeSystem{limit: 8000, confirmed: 4600}, 2000, Found{4521, 7042, true}},
	} {
		f := c.system
		start := 1000
		if c.held > 0 {
			start = 0
		}
		got, err := f.search(c.held, start, most)
		if err != nil || got != c.found || f.clock > atMost {
			t.Errorf("%s: found %+v after %s by %v: %v", name, got, f.clock, f.confirmations, err)
		}
	}
	slow := &fakeSystem{limit: 100_000, confirmed: 100_000}
	if got, err := slow.search(0, 1, 20*time.Second); err != nil || got != (Found{3, 0, true}) || slow.points != 4 {
		t.Errorf("found %+v after %d points: %v", got, slow.points, err) // 1, 2, 3 and the confirmation
	}
}

func TestDrain(t *testing.T) {
	wait := func(settled bool, err error) func() (bool, error) {
		return func() (bool, error) { return settled, err }
	}
	counts := func(all ...int) func() (int, error) {
		return func() (int, error) {
			if len(all) == 0 {
				return 0, errors.New("counted too often")
			}
			n := all[0]
			all = all[1:]
			return n, nil
		}
	}
	if err := drain(counts(7), wait(true, nil)); err != nil {
		t.Error(err)
	}
	err := drain(counts(9000, 5000, 70, 70), wait(false, nil))
	if err == nil || err.Error() != "70 orders are unsettled, and none has settled for 2m0s" {
		t.Error(err)
	}
	boom := errors.New("boom")
	if err := drain(counts(7), wait(false, boom)); !errors.Is(err, boom) {
		t.Error(err)
	}
	if err := drain(func() (int, error) { return 0, boom }, wait(false, nil)); !errors.Is(err, boom) {
		t.Error(err)
	}
}
