package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// The names of the product and of its best rival in results.
const (
	CDC    = "cdc"
	Poller = "poller"
	// PollerFlag is the relay that marks rows as sent in place of deleting them.
	PollerFlag = "poller-flag"
	Single     = "single" // the product with one transaction an event
	// Gathering is the product as it is set where processors are short: Debezium gathers events for some milliseconds.
	Gathering = "cdc-gathered"
	Poller10  = "poller-10ms"
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
	// Open: a search behind it is open ([Found]), or found nothing on the right. The ratio is Least to Most then; a Most of 0 is without bound.
	Open  bool    `json:"open,omitempty"`
	Least float64 `json:"least,omitempty"`
	Most  float64 `json:"most,omitempty"`
}

// OK tells whether the ratio reaches its bar. known is false where it might or might not.
func (r Ratio) OK() (ok, known bool) {
	if !r.Open {
		return reaches(r.Ratio, r.Bar, r.Below), true
	}
	most := cmp.Or(r.Most, math.Inf(1))
	ok = reaches(r.Least, r.Bar, r.Below)
	return ok, ok == reaches(most, r.Bar, r.Below)
}

// quotient has three digits. It is 0 where there is nothing to divide by, or no bound.
func quotient(left, right float64) float64 {
	if right == 0 || math.IsInf(left, 0) {
		return 0
	}
	return math.Round(left/right*1000) / 1000
}

// Figure is one of the product that has a bar of its own, as it was measured. Bars are for [barCPUs] processors that
// everything shares.
type Figure struct {
	Name     string  `json:"name"`
	Measured float64 `json:"measured"`
	// Bar is what it should reach: at most if Below, else at least; 0: there is none.
	Bar   float64 `json:"bar,omitempty"`
	Below bool    `json:"below,omitempty"`
	// Unheld: the rate that it is for does not hold. No bar is reached then.
	Unheld bool `json:"unheld,omitempty"`
}

// OK tells whether the figure reaches its bar.
func (f Figure) OK() bool { return f.Bar == 0 || !f.Unheld && reaches(f.Measured, f.Bar, f.Below) }

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
			all = append(all, Figure{fmt.Sprintf("p50 at %d orders/s (ms)", at.rate), g.median(p50), at.p50, true, !g.holds()},
				Figure{fmt.Sprintf("p99 at %d orders/s (ms)", at.rate), g.median(p99), at.p99, true, !g.holds()})
		}
	}
	if rate, searched := r.Max[CDC]; searched {
		all = append(all, Figure{Name: "highest rate that holds (orders/s)", Measured: float64(rate), Bar: 8000})
	}
	if g := r.find(PartLatency, CDC, "", 0); g != nil {
		all = append(all, Figure{Name: "worker CPU when idle (cores)", Measured: g.cores("connect"), Bar: 0.2, Below: true})
	}
	for _, s := range services {
		if most := r.mostMemory(s); most > 0 {
			all = append(all, Figure{Name: fmt.Sprintf("resident memory of %s at up to %d orders/s, at most (MiB)", s, memoryRate), Measured: most, Bar: memoryBar, Below: true})
		}
	}
	return all
}

// memoryRate is the rate that the bar of the memory is for: with more orders at once there are more in memory.
const memoryRate = 1000

// mostMemory is the most of an instance of a service at the end of the product's points and days of a soak. At a rate that
// does not hold, it depends on how many requests wait, which is the client's affair.
func (r Report) mostMemory(service string) (mib float64) {
	overloaded := false // what an overload has left in memory goes late
	for _, p := range r.Runs {
		if p.System != CDC || p.Part != PartLatency && p.Part != PartMaximum {
			continue
		}
		if p.Part == PartLatency {
			overloaded = false
		}
		// The idle point comes at once after the warming up, which may be an overload.
		if overloaded = overloaded || p.Rate > memoryRate || !p.Holds(); !overloaded && p.Rate > 0 {
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
			all = append(all, Ratio{Name: name, Left: left, Right: right, Ratio: quotient(left, right), Bar: bar, Below: below})
		}
	}
	// What was searched is known within bounds.
	addSearched := func(name string, left, right bounds, bar float64) {
		if !left.known || !right.known {
			return
		}
		x := Ratio{Name: name, Left: left.least, Right: right.least, Ratio: quotient(left.least, right.least), Bar: bar}
		if left.most > left.least || right.most > right.least || right.least == 0 {
			x.Open, x.Least, x.Most = true, quotient(left.least, right.most), quotient(left.most, right.least)
		}
		all = append(all, x)
	}
	cores, cpu := func(p Point) float64 { return ofSystem(p.Cores) }, func(p Point) float64 { return ofSystem(p.CPU) }
	bars := map[int]float64{200: 0.5, 500: 0.5, 2000: 1}
	for _, g := range r.groups(PartLatency) {
		rival := r.find(PartLatency, Poller, "", g.rate)
		if g.system != CDC && g.system != Gathering || g.name != "" || rival == nil {
			continue
		}
		of := ", " + g.system + " / " + Poller
		bar := func(ours float64) float64 { // the bars are for the product as it comes
			if g.system != CDC {
				return 0
			}
			return ours
		}
		if g.rate == 0 {
			add("database CPU when idle (cores)"+of, g.cores("postgres", "walsenders"), rival.cores("postgres", "walsenders"), bar(0.2), true)
			add("CPU of all processes when idle (cores)"+of, g.median(cores), rival.median(cores), 0, true)
			continue
		}
		if g.rate < 10 || !g.holds() && !rival.holds() {
			continue
		}
		add(fmt.Sprintf("p50 at %d orders/s (ms)", g.rate)+of, g.median(p50), rival.median(p50), bar(bars[g.rate]), true)
		add(fmt.Sprintf("p99 at %d orders/s (ms)", g.rate)+of, g.median(p99), rival.median(p99), 0, true)
		if g.rate < 100 || !g.holds() || !rival.holds() { // too few orders for anything per order, or not all of their work
			continue
		}
		add(fmt.Sprintf("CPU of all processes per order at %d orders/s (µs)", g.rate)+of, g.median(cpu), rival.median(cpu), 0, true)
		add(fmt.Sprintf("WAL per order at %d orders/s (bytes)", g.rate)+of, g.median(wal), rival.median(wal), bar(0.65), true)
	}
	for _, g := range append(r.groups(PartRivals), r.groups(PartLatency)...) { // a relay that keeps its rows, with a partial index
		if own := r.find(PartLatency, CDC, "", g.rate); g.system == PollerFlag && g.rate >= 100 && g.holds() && own != nil && own.holds() {
			add(fmt.Sprintf("WAL per order at %d orders/s (bytes), cdc / %s", g.rate, PollerFlag), own.median(wal), g.median(wal), 0.65, true)
		}
	}
	most := r.bounds
	addSearched("highest rate that holds (orders/s), cdc / poller", most(CDC), most(Poller), 0.9)
	addSearched("highest rate that holds (orders/s), "+Gathering+" / poller", most(Gathering), most(Poller), 0.9)
	addSearched("highest rate that holds (orders/s), "+Gathering+" / poller-10ms", most(Gathering), most(Poller10), 0.9)
	addSearched("highest rate that holds, cdc / one transaction an event", most(CDC), most(Single), 25)
	if allowed := r.allowed(); allowed > 0 {
		addSearched("highest rate that holds / what the bare transactions allow (orders/s), cdc", most(CDC), bounds{allowed, allowed, true}, 0)
	}
	addSearched("highest rate that holds, one single item / uniform", most(Keyed(CDC, "one item")), most(Keyed(CDC, "uniform")), 0.8)
	cases := []string{}
	for _, g := range r.groups(PartGrowth) {
		if g.system == CDC && !slices.Contains(cases, g.name) {
			cases = append(cases, g.name)
		}
	}
	for _, name := range cases[min(1, len(cases)):] {
		full, empty := r.find(PartGrowth, CDC, name, 500), r.find(PartGrowth, CDC, cases[0], 500)
		if full != nil && empty != nil && (full.holds() || empty.holds()) {
			add("p99 at 500 orders/s (ms), "+name+" / "+cases[0], full.median(p99), empty.median(p99), 1.3, true)
		}
		addSearched("highest rate that holds, "+name+" / "+cases[0], most(Keyed(CDC, name)), most(Keyed(CDC, cases[0])), 0.9)
	}
	caughtUp := map[string]float64{}
	for _, c := range r.CatchUps {
		at := most(c.System)
		at.least, at.most = at.least*c.EventsPerOrder, at.most*c.EventsPerOrder
		addSearched("events/s while catching up / events/s at the highest rate, "+c.System, bounds{c.EventsPerSecond, c.EventsPerSecond, true}, at, 2)
		caughtUp[c.System] = c.EventsPerSecond
	}
	add("events/s while catching up, cdc / poller", caughtUp[CDC], caughtUp[Poller], 0, false)
	return all
}

// bounds are what a search has found: at least least holds, more than most does not.
type bounds struct {
	least, most float64
	known       bool
}

func (r Report) bounds(key string) (b bounds) {
	rate, known := r.Max[key]
	b = bounds{float64(rate), float64(rate), known}
	for _, f := range r.Searches[key] {
		if f.Open {
			b.most = max(b.most, f.most())
		}
	}
	return b
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
