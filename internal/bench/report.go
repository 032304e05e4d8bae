package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The parts of a benchmark whose figures a report compares.
const (
	PartLatency = "latency" // points at fixed rates
	PartMaximum = "maximum" // steps of a search
	PartGrowth  = "growth"  // with orders already there
	PartRivals  = "rivals"  // other polling relays
)

// Report is results.json.
type Report struct {
	Machine  map[string]any    `json:"machine"`
	Versions map[string]string `json:"versions,omitempty"`
	Commit   string            `json:"commit"`
	Command  string            `json:"command,omitempty"`
	// Settings are those of the environment that change what is measured, as they took effect.
	Settings map[string]string `json:"settings,omitempty"`
	Runs     []Point           `json:"runs"`
	// Max is the highest rate that holds, by system, or by "system: case"; 0 where none was confirmed.
	Max map[string]int `json:"max_orders_per_s"`
	// Searches are all results behind Max, which has their medians.
	Searches map[string][]Found `json:"searches,omitempty"`
	Ceilings []Ceiling          `json:"ceilings,omitempty"`
	CatchUps []CatchUp          `json:"catch_ups,omitempty"`
	Soak     []SoakDay          `json:"soak,omitempty"`
	// SoakAudit is over everything, at the end of the soak.
	SoakAudit *Audited `json:"soak_audit,omitempty"`
	Figures   []Figure `json:"figures,omitempty"`
	Ratios    []Ratio  `json:"ratios,omitempty"`
	Notes     []string `json:"notes,omitempty"`
}

// Found adds the result of a search.
func (r *Report) Found(system string, found Found) {
	if r.Max == nil {
		r.Max = map[string]int{}
	}
	if r.Searches == nil {
		r.Searches = map[string][]Found{}
	}
	r.Searches[system] = append(r.Searches[system], found)
	rates := make([]float64, len(r.Searches[system]))
	for i, f := range r.Searches[system] {
		rates[i] = float64(f.Rate)
	}
	r.Max[system] = int(median(rates))
}

// Write writes results.json, results.md and the plots into dir.
func (r Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r.Figures, r.Ratios = r.figures(), r.ratios()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	files := map[string]string{"results.json": string(text) + "\n", "results.md": r.Markdown()}
	for name, svg := range r.plots() {
		files[name] = svg
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Header and Row are a point for a terminal.
const Header = "system            rate  achieved   p50 ms   p99 ms   max ms  accept p50/p99 ms  lost  idle, other, stolen cores  µs CPU/order  WAL B/order"

// Row is a line below [Header].
func (p Point) Row() string {
	mark := ""
	if p.Case != "" {
		mark = "  " + p.Case
	}
	if p.Confirms {
		mark += "  confirmation"
	}
	if !p.Holds() {
		mark += "  does not hold"
	}
	return fmt.Sprintf("%-14s %7d  %8.0f  %7.1f  %7.1f  %7.0f  %8.1f / %6.1f  %4d  %7.2f, %7.2f, %7.2f  %12.0f  %11.0f%s",
		p.System, p.Rate, p.Achieved, p.P50, p.P99, p.Max, p.AcceptP50, p.AcceptP99, p.Unfinished+p.Rejected, p.IdleCores, p.OtherCores, p.StolenCores, ofSystem(p.CPU), p.WALPerOrder, mark)
}

// String is a line that shows how a point comes on.
func (p Progress) String() string {
	if p.Settling {
		return fmt.Sprintf("%d orders/s: all sent, waiting for orders to settle", p.Rate)
	}
	return fmt.Sprintf("%d orders/s: %.0f of %.0f s, %d orders due, %d answered", p.Rate, p.Elapsed.Seconds(), p.Of.Seconds(), p.Due, p.Answered)
}

// of sums what processes have used whose names begin with one of names: all instances of a
// service.
func of(used map[string]float64, names ...string) (sum float64) {
	for process, v := range used {
		if isOf(process, names) {
			sum += v
		}
	}
	return sum
}

// ofSystem sums what all processes have used but the load generator.
func ofSystem(used map[string]float64) (sum float64) {
	for process, v := range used {
		if process != loadGenerator {
			sum += v
		}
	}
	return sum
}

// isOf tells whether a process is an instance of one of names.
func isOf(process string, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return process == n || strings.HasPrefix(process, n+"-") })
}

// kinds are the processes that are told apart, with the colours of their bars.
var kinds = []struct {
	name, colour string
	processes    []string
}{
	{"PostgreSQL", "#336791", []string{"postgres"}},
	{"walsenders", "#8fb3d1", []string{"walsenders"}},
	{"services", "#00a29c", []string{"order-service", "stock-service", "payment-service"}},
	{"worker or relay", "#e07b39", []string{"connect", "relay"}},
	{"broker", "#777777", []string{"kafka"}},
	{"load generator", "#d9d9d9", []string{loadGenerator}},
}

// group are the runs of a system at a rate.
type group struct {
	part, system, name string // name is the points' Case
	rate               int
	confirms           bool
	runs               []Point
}

// groups are those of a part, by case, rate and system in the order of their coming.
func (r Report) groups(part string) (all []group) {
	for _, p := range r.Runs {
		if p.Part != part {
			continue
		}
		i := slices.IndexFunc(all, func(g group) bool {
			return g.system == p.System && g.rate == p.Rate && g.name == p.Case && g.confirms == p.Confirms
		})
		if i < 0 {
			i = len(all)
			all = append(all, group{part, p.System, p.Case, p.Rate, p.Confirms, nil})
		}
		all[i].runs = append(all[i].runs, p)
	}
	slices.SortStableFunc(all, func(a, b group) int { return a.rate - b.rate })
	return all
}

// parts are those that there are points of, in the order of their coming.
func (r Report) parts() (all []string) {
	for _, p := range r.Runs {
		if !slices.Contains(all, p.Part) {
			all = append(all, p.Part)
		}
	}
	return all
}

// find is the group of a system at a rate; nil if there is none.
func (r Report) find(part, system, name string, rate int) *group {
	for _, g := range r.groups(part) {
		if g.system == system && g.rate == rate && g.name == name {
			return &g
		}
	}
	return nil
}

// held are the runs that hold. What an order costs is told by them alone: in others some of the work is not done yet.
func (g group) held() group {
	g.runs = slices.DeleteFunc(slices.Clone(g.runs), func(p Point) bool { return !p.Holds() })
	return g
}

func (g group) holds() bool { return len(g.held().runs) == len(g.runs) }

// mark says in a table which runs do not hold.
func (g group) mark() (text string) {
	if g.confirms {
		text = " (confirmation)"
	}
	switch n := len(g.held().runs); {
	case n == len(g.runs):
		return text
	case n == 0:
		return text + " (does not hold)"
	default:
		return text + fmt.Sprintf(" (holds in %d of %d)", n, len(g.runs))
	}
}

// median of a figure over the runs; spread shows their range too, if there are several.
func (g group) median(f func(Point) float64) float64 {
	values := make([]float64, len(g.runs))
	for i, p := range g.runs {
		values[i] = f(p)
	}
	return median(values)
}

// median of an even number of values is the mean of the two in the middle; it sorts them. Of none it is 0.
func median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return 0
	}
	slices.Sort(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

func (g group) spread(f func(Point) float64) string {
	text := fmt.Sprintf("%.1f", g.median(f))
	if len(g.runs) == 1 {
		return text
	}
	low, high := f(g.runs[0]), f(g.runs[0])
	for _, p := range g.runs {
		low, high = min(low, f(p)), max(high, f(p))
	}
	return fmt.Sprintf("%s (%.1f–%.1f)", text, low, high)
}

// cpu is the median CPU time per order of processes, in µs; cores the same as processors in use.
func (g group) cpu(processes ...string) float64 {
	return g.median(func(p Point) float64 { return of(p.CPU, processes...) })
}

func (g group) cores(processes ...string) float64 {
	return g.median(func(p Point) float64 { return of(p.Cores, processes...) })
}

func p50(p Point) float64 { return p.P50 }
func p99(p Point) float64 { return p.P99 }
func wal(p Point) float64 { return p.WALPerOrder }
