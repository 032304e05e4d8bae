package bench

import (
	"fmt"
	"math"
	"slices"
)

// The names of the product and of its best rival in results.
const (
	CDC    = "cdc"
	Poller = "poller"
	Single = "single" // the product with one transaction an event
)

// Ratio compares the product with its best rival, or with itself, in one figure.
type Ratio struct {
	Name  string  `json:"name"`
	Left  float64 `json:"left"`
	Right float64 `json:"right"`
	Ratio float64 `json:"ratio"`
	// Bar is what the ratio should reach: at most if Below, else at least; 0: there is none.
	Bar   float64 `json:"bar,omitempty"`
	Below bool    `json:"below,omitempty"`
}

// OK tells whether the ratio reaches its bar.
func (r Ratio) OK() bool { return reaches(r.Ratio, r.Bar, r.Below) }

// Figure is one of the product that has a bar of its own, as it was measured. Bars are for [barCPUs] processors that
// everything shares.
type Figure struct {
	Name     string  `json:"name"`
	Measured float64 `json:"measured"`
	// Bar is what it should reach: at most if Below, else at least; 0: there is none.
	Bar   float64 `json:"bar,omitempty"`
	Below bool    `json:"below,omitempty"`
}

// OK tells whether the figure reaches its bar.
func (f Figure) OK() bool { return reaches(f.Measured, f.Bar, f.Below) }

func reaches(v, bar float64, below bool) bool {
	return bar == 0 || below && v <= bar || !below && v >= bar
}

const barCPUs = 4

// figures are those that the runs allow.
func (r Report) figures() (all []Figure) {
	for _, at := range []struct {
		rate     int
		p50, p99 float64 // ms
	}{{200, 5, 25}, {500, 7, 0}, {2000, 20, 50}} {
		if g := r.find(PartLatency, CDC, "", at.rate); g != nil {
			all = append(all, Figure{fmt.Sprintf("p50 at %d orders/s (ms)", at.rate), g.median(p50), at.p50, true},
				Figure{fmt.Sprintf("p99 at %d orders/s (ms)", at.rate), g.median(p99), at.p99, true})
		}
	}
	if rate, searched := r.Max[CDC]; searched {
		all = append(all, Figure{"highest rate that holds (orders/s)", float64(rate), 8000, false})
	}
	if g := r.find(PartLatency, CDC, "", 0); g != nil {
		all = append(all, Figure{"worker CPU when idle (cores)", g.cores("connect"), 0.2, true})
	}
	for _, s := range services {
		if most := r.mostMemory(s); most > 0 {
			all = append(all, Figure{"resident memory of " + s + " at rates that hold, at most (MiB)", most, memoryBar, true})
		}
	}
	return all
}

// mostMemory is the most of an instance of a service in the product's points at fixed rates and days of a soak. At a rate that
// does not hold, it depends on how many requests wait, which is the client's affair.
func (r Report) mostMemory(service string) (mib float64) {
	for _, p := range r.Runs {
		if p.System == CDC && p.Part == PartLatency && p.Holds() {
			mib = max(mib, p.most(service))
		}
	}
	for _, d := range r.Soak {
		mib = max(mib, d.Point.most(service))
	}
	return mib
}

// ratios are those that the runs allow.
func (r Report) ratios() (all []Ratio) {
	add := func(name string, left, right, bar float64, below bool) {
		if left > 0 && right > 0 {
			all = append(all, Ratio{name, left, right, math.Round(left/right*1000) / 1000, bar, below})
		}
	}
	bars := map[int]float64{200: 0.5, 500: 0.5, 2000: 1}
	var wals [2]float64
	for _, g := range r.groups(PartLatency) {
		rival := r.find(PartLatency, Poller, "", g.rate)
		if g.system != CDC || g.name != "" || rival == nil {
			continue
		}
		if g.rate == 0 {
			add("database CPU when idle (cores), cdc / poller", g.cores("postgres", "walsenders"), rival.cores("postgres", "walsenders"), 0.2, true)
			continue
		}
		if g.rate < 100 { // too few orders for anything per order
			continue
		}
		add(fmt.Sprintf("p50 at %d orders/s (ms), cdc / poller", g.rate), g.median(p50), rival.median(p50), bars[g.rate], true)
		add(fmt.Sprintf("p99 at %d orders/s (ms), cdc / poller", g.rate), g.median(p99), rival.median(p99), 0, true)
		wals = [2]float64{g.median(wal), rival.median(wal)}
		add(fmt.Sprintf("WAL per order at %d orders/s (bytes), cdc / poller", g.rate), wals[0], wals[1], 0.65, true)
	}
	most := func(system string) float64 { return float64(r.Max[system]) }
	add("highest rate that holds (orders/s), cdc / poller", most(CDC), most(Poller), 0.9, false)
	add("highest rate that holds, cdc / one transaction an event", most(CDC), most(Single), 25, false)
	add("highest rate that holds / what the bare transactions allow (orders/s), cdc", most(CDC), r.allowed(), 0, false)
	add("highest rate that holds, one single item / uniform", most(Keyed(CDC, "one item")), most(Keyed(CDC, "uniform")), 0.8, false)
	cases := []string{}
	for _, g := range r.groups(PartGrowth) {
		if g.system == CDC && !slices.Contains(cases, g.name) {
			cases = append(cases, g.name)
		}
	}
	for _, name := range cases[min(1, len(cases)):] {
		full, empty := r.find(PartGrowth, CDC, name, 500), r.find(PartGrowth, CDC, cases[0], 500)
		if full != nil && empty != nil {
			add("p99 at 500 orders/s (ms), "+name+" / "+cases[0], full.median(p99), empty.median(p99), 1.3, true)
		}
		add("highest rate that holds, "+name+" / "+cases[0], most(Keyed(CDC, name)), most(Keyed(CDC, cases[0])), 0.9, false)
	}
	for _, c := range r.CatchUps {
		add("events/s while catching up / events/s at the highest rate, "+c.System, c.EventsPerSecond, most(c.System)*c.EventsPerOrder, 2, false)
	}
	return all
}

// allowed is how many orders/s PostgreSQL could do if it had the machine to itself: an order takes one transaction that places it,
// and four steps, which are two commands carried out and two answers taken; all in the largest batches that were tried.
func (r Report) allowed() float64 {
	best := map[string]float64{}
	for _, c := range r.Ceilings {
		best[c.Name] = max(best[c.Name], c.PerSecond)
	}
	if best[CeilingOrder] == 0 || best[CeilingStep] == 0 {
		return 0
	}
	return 1 / (1/best[CeilingOrder] + 4/best[CeilingStep])
}

// Keyed is the key of a case of a system in [Report.Max].
func Keyed(system, name string) string {
	if name == "" {
		return system
	}
	return system + ": " + name
}
