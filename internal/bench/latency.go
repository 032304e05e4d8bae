package bench

import (
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// histogram keeps latencies from a microsecond to [Infinite], to three digits.
type histogram struct{ h *hdrhistogram.Histogram }

func newHistogram() histogram {
	return histogram{hdrhistogram.New(1, Infinite.Microseconds(), 3)}
}

func (h histogram) add(d time.Duration) {
	_ = h.h.RecordValue(min(max(1, d.Microseconds()), Infinite.Microseconds())) // in the range: no error
}

// ms is a quantile in milliseconds.
func (h histogram) ms(quantile float64) float64 {
	return math.Round(float64(h.h.ValueAtQuantile(quantile))/10) / 100
}

// latencies fills in what follows from the orders' times.
func (p *Point) latencies(orders []order, duration time.Duration) {
	accept, final, second, last := newHistogram(), newHistogram(), newHistogram(), newHistogram()
	done := 0
	for _, o := range orders {
		toAccept, toFinal := Infinite, Infinite
		switch {
		case !o.ok:
			p.Rejected++
		case !o.settled:
			p.Unfinished++
			toAccept = o.accepted - o.meant
		default:
			toAccept, toFinal = o.accepted-o.meant, o.final-o.meant
		}
		accept.add(toAccept)
		final.add(toFinal)
		switch o.meant * 4 / duration {
		case 1:
			second.add(toFinal)
		case 3:
			last.add(toFinal)
		}
		end := o.meant + toFinal
		if end <= duration {
			done++
		} else {
			p.BacklogEnd++
		}
		if o.meant < duration/2 && end > duration/2 {
			p.BacklogHalf++
		}
	}
	if len(orders) == 0 {
		return
	}
	p.P50, p.P90, p.P99, p.Max = final.ms(50), final.ms(90), final.ms(99), final.ms(100)
	p.AcceptP50, p.AcceptP99 = accept.ms(50), accept.ms(99)
	p.Achieved = math.Round(float64(done)/p.Seconds*10) / 10
	p.Growing = grows(second, last)
}

// grows compares the latencies of the orders meant for the second and for the last quarter of a load. Where more comes than is
// done, each order waits longer than the one before: at a rate 5 % too high, the quarters of a load of 6 s are 150 ms
// apart, those of a minute 1.5 s. The median sees what all orders suffer from, p90 the backlog of a single partition.
func grows(second, last histogram) bool {
	const enough = 100 // orders, for a p90
	return last.ms(50) > 1.5*second.ms(50)+50 ||
		second.h.TotalCount() >= enough && last.h.TotalCount() >= enough && last.ms(90) > 1.5*second.ms(90)+200
}
