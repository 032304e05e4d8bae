package bench

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// Search is a search for the highest rate that holds.
type Search struct {
	// Held is a rate below Start that has held before; 0: there is none.
	Held int
	// Start is the first rate that is tried. 0: the next one above Held.
	Start int
	// Step and Confirm are how long a step and a confirmation last.
	Step, Confirm time.Duration
	// Most bounds the search from its beginning, whether anything holds or not: after it no step begins, and after
	// one and a half times as much no confirmation but one half way down to Held, and one of Held. 0: no bound.
	Most time.Duration
	// Run measures a point, a step or a confirmation. It is called one at a time.
	Run func(rate int, d time.Duration, confirms bool) (Point, error)

	now    func() time.Time // of tests; nil: time.Now
	begin  time.Time
	failed []int // rates that did not hold
}

// Found is the result of a search.
type Found struct {
	Rate int `json:"rate"` // the highest that was confirmed to hold; 0: none
	// Not is the lowest above it that did not hold, 0 if there is none. Between the two nothing was tried, or steps held that
	// nobody had the time to confirm.
	Not int `json:"not,omitempty"`
	// Open: the two are not near each other, or the time was over before anything above the rate was tried to the end.
	Open bool `json:"open,omitempty"`
}

// String is the rate, and where it is not sure what is known.
func (f Found) String() string {
	text := "none"
	if f.Rate > 0 {
		text = strconv.Itoa(f.Rate)
	}
	if f.Not > 0 && (f.Open || f.Rate == 0) {
		text += fmt.Sprintf(", not %d", f.Not)
	}
	if f.Open {
		text += " (open)"
	}
	return text
}

// most is what the rate can be at most, as far as the search says.
func (f Found) most() float64 {
	switch {
	case !f.Open:
		return float64(f.Rate)
	case f.Not == 0:
		return math.Inf(1)
	}
	return float64(f.Not)
}

// nearby is how far apart what holds and what does not may be, or the search is open.
const nearby = 1.12

// Find goes up by half while steps hold, down by half while none does, then halves the distance to the lowest rate that did
// not, to 5 %. A step that does not hold is tried once more before it counts: one stall of the machine must
// not bound the search for good. What was found must then hold for the time of Confirm, else less is tried until something
// does: 5 % less twice, then 10, 20, 40, and half each time.
func (s Search) Find() (Found, error) {
	if s.now == nil {
		s.now = time.Now
	}
	s.begin = s.now()
	good, bad, rate := s.Held, 0, s.Start
	if rate == 0 {
		rate = above(s.Held)
	}
	for rate > good && !s.over(s.Most) {
		holds, err := s.step(rate)
		if err != nil {
			return Found{}, err
		}
		if holds {
			good = rate
		} else {
			bad = rate
		}
		switch {
		case bad == 0:
			rate = above(good)
		case good == 0:
			rate = bad / 2
		case bad-good <= good/20:
			rate = 0
		default:
			rate = (good + bad) / 2
		}
	}
	rate, err := s.confirm(good)
	if err != nil {
		return Found{}, err
	}
	found := Found{Rate: rate}
	for _, not := range s.failed {
		if not > rate && (found.Not == 0 || not < found.Not) {
			found.Not = not
		}
	}
	found.Open = found.Not == 0 && s.over(s.Most) || float64(found.Not) > nearby*float64(rate) && (rate > 0 || s.over(s.Most))
	return found, nil
}

func above(rate int) int { return rate + max(rate/2, 1) }

func (s Search) over(d time.Duration) bool { return s.Most > 0 && s.now().Sub(s.begin) >= d }

func (s *Search) step(rate int) (holds bool, err error) {
	p, err := s.Run(rate, s.Step, false)
	if err == nil && !p.Holds() && !s.over(s.Most) {
		if p, err = s.Run(rate, s.Step, false); err == nil && !p.Holds() {
			s.failed = append(s.failed, rate)
		}
	}
	return err == nil && p.Holds(), err
}

func (s *Search) confirm(rate int) (int, error) {
	less, late := 0.05, 0
	for tries := 1; rate > 0; tries++ {
		p, err := s.Run(rate, s.Confirm, true)
		if err != nil {
			return 0, err
		}
		if p.Holds() {
			return rate, nil
		}
		s.failed = append(s.failed, rate)
		if s.over(s.Most * 3 / 2) {
			if late++; rate <= s.Held || late > 2 {
				return 0, nil
			}
			rate = s.Held + (rate-s.Held)*(2-late)/2
			continue
		}
		if tries > 2 {
			less = min(2*less, 0.5)
		}
		rate = int(float64(rate) * (1 - less))
	}
	return 0, nil
}
