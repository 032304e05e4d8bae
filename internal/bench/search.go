package bench

import (
	"context"
	"time"

	"github.com/google/uuid"
)

// Search finds the highest rate that holds. It goes up from start by steps of a quarter
// while short points hold, then halves the distance to the lowest rate that did not, to 5 %. What it
// found must then hold for the time of confirm, else 5 % less is tried, up to five times. After most the steps end with
// what was found so far; 0: no bound. run measures a point; it is called one at a time. The result is 0 if nothing holds.
func Search(start int, short, confirm, most time.Duration, run func(rate int, d time.Duration) (Point, error)) (int, error) {
	good, bad := 0, 0
	begin := time.Now()
	for rate := start; rate > 0; {
		if most > 0 && good > 0 && time.Since(begin) > most {
			break
		}
		p, err := run(rate, short)
		if err != nil {
			return 0, err
		}
		if p.Holds() {
			good = rate
		} else {
			bad = rate
		}
		switch {
		case bad == 0:
			rate = good * 5 / 4
		case good == 0:
			rate = bad * 3 / 4
		case bad-good <= good/20:
			rate = 0
		default:
			rate = (good + bad) / 2
		}
		if rate == good {
			break
		}
	}
	for rate, tries := good, 6; rate > 0 && tries > 0; rate, tries = rate*19/20, tries-1 {
		p, err := run(rate, confirm)
		if err != nil {
			return 0, err
		}
		if p.Holds() {
			return rate, nil
		}
	}
	return 0, nil
}

// Drain waits until no order since a time is unsettled, at most two minutes: what a point that did not
// hold has left behind must not burden the next one.
func Drain(ctx context.Context, t Target, since time.Time) error {
	var from uuid.UUID // the lowest UUIDv7 of that time
	for i, ms := 0, since.UnixMilli(); i < 6; i++ {
		from[i] = byte(ms >> (8 * (5 - i)))
	}
	return await(ctx, t, from, 2*time.Minute, func() {})
}
