package bench

import "time"

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
	// Run measures a point. It is called one at a time.
	Run func(rate int, d time.Duration) (Point, error)

	now   func() time.Time // of tests; nil: time.Now
	begin time.Time
}

// Find goes up by half while steps hold, down by half while none does, then halves the distance to the lowest rate that did
// not, to 5 %. A step that does not hold is tried once more before it counts: one stall of the machine must
// not bound the search for good. What was found must then hold for the time of Confirm, else less is tried until something
// does: 5 % less twice, then 10, 20, 40, and half each time. The result is 0 if nothing was confirmed.
func (s Search) Find() (int, error) {
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
			return 0, err
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
	return s.confirm(good)
}

func above(rate int) int { return rate + max(rate/2, 1) }

func (s Search) over(d time.Duration) bool { return s.Most > 0 && s.now().Sub(s.begin) >= d }

func (s Search) step(rate int) (holds bool, err error) {
	p, err := s.Run(rate, s.Step)
	if err == nil && !p.Holds() && !s.over(s.Most) {
		p, err = s.Run(rate, s.Step)
	}
	return err == nil && p.Holds(), err
}

func (s Search) confirm(rate int) (int, error) {
	less, late := 0.05, 0
	for tries := 1; rate > 0; tries++ {
		if s.over(s.Most * 3 / 2) {
			if late++; late == 1 && s.Held > 0 && rate > s.Held {
				rate = (rate + s.Held) / 2
			} else {
				rate, late = min(rate, s.Held), 2
			}
		}
		if rate == 0 {
			break
		}
		p, err := s.Run(rate, s.Confirm)
		if err != nil {
			return 0, err
		}
		if p.Holds() {
			return rate, nil
		}
		if late == 2 {
			break
		}
		if tries > 2 {
			less = min(2*less, 0.5)
		}
		rate = int(float64(rate) * (1 - less))
	}
	return 0, nil
}
