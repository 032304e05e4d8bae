package bench

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Report is results.json.
type Report struct {
	Machine map[string]any `json:"machine"`
	Commit  string         `json:"commit"`
	Shape   Shape          `json:"shape"`
	Runs    []Point        `json:"runs"`
	Max     map[string]int `json:"max_orders_per_s"` // by system
}

// Write writes results.json and results.md into dir.
func (r Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), text, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.md"), []byte(r.Markdown()), 0o644); err != nil {
		return err
	}
	for name, plot := range map[string]string{"latency.svg": r.LatencyPlot(), "cpu.svg": r.CPUPlot()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(plot), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Product and Rival are the systems that are compared.
const Product, Rival = "cdc", "poller"

// ratios compares the product with its best rival, where both were measured.
func (r Report) ratios() string {
	find := func(system string, rate int) *group {
		for _, g := range r.groups() {
			if g.system == system && g.rate == rate {
				return &g
			}
		}
		return nil
	}
	var lines []string
	add := func(what string, ours, theirs float64, format string) {
		if theirs > 0 {
			lines = append(lines, fmt.Sprintf("| %s | "+format+" | "+format+" | %.2f |\n", what, ours, theirs, ours/theirs))
		}
	}
	for _, g := range r.groups() {
		ours, theirs := find(Product, g.rate), find(Rival, g.rate)
		if g.system != Product || theirs == nil {
			continue
		}
		if g.rate == 0 {
			database := func(p Point) float64 { return p.Cores["postgres"] + p.Cores["walsenders"] }
			add("cores of PostgreSQL without load", ours.median(database), theirs.median(database), "%.3f")
			continue
		}
		add(fmt.Sprintf("p50 ms at %d", g.rate), ours.median(func(p Point) float64 { return p.P50 }), theirs.median(func(p Point) float64 { return p.P50 }), "%.1f")
		add(fmt.Sprintf("p99 ms at %d", g.rate), ours.median(func(p Point) float64 { return p.P99 }), theirs.median(func(p Point) float64 { return p.P99 }), "%.1f")
		add(fmt.Sprintf("WAL bytes/order at %d", g.rate), ours.median(func(p Point) float64 { return p.WALPerOrder }), theirs.median(func(p Point) float64 { return p.WALPerOrder }), "%.0f")
	}
	add("highest rate that holds", float64(r.Max[Product]), float64(r.Max[Rival]), "%.0f")
	if len(lines) == 0 {
		return ""
	}
	return fmt.Sprintf("\n| | %s | %s | ratio |\n|---|---|---|---|\n", Product, Rival) + strings.Join(lines, "")
}

// Header and Row are a point for a terminal.
const Header = "     rate  achieved   p50 ms   p99 ms   max ms  accept p50/p99 ms  lost  idle, other cores  µs CPU/order  WAL B/order"

// Row is a line below [Header].
func (p Point) Row() string {
	var cpu float64
	for name, v := range p.CPU {
		if name != loadGenerator {
			cpu += v
		}
	}
	mark := ""
	if !p.Holds() {
		mark = "  does not hold"
	}
	return fmt.Sprintf("%9d  %8.0f  %7.1f  %7.1f  %7.0f  %8.1f / %6.1f  %4d  %8.2f, %8.2f  %12.0f  %11.0f%s",
		p.Rate, p.Achieved, p.P50, p.P99, p.Max, p.AcceptP50, p.AcceptP99, p.Unfinished+p.Rejected, p.IdleCores, p.OtherCores, cpu, p.WALPerOrder, mark)
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
func (p Point) of(used map[string]float64, names ...string) (sum float64) {
	for process, v := range used {
		for _, n := range names {
			if process == n || strings.HasPrefix(process, n+"-") {
				sum += v
			}
		}
	}
	return sum
}

// group are the runs of a system at a rate.
type group struct {
	system string
	rate   int
	runs   []Point
}

func (r Report) groups() (all []group) {
	for _, p := range r.Runs {
		i := slices.IndexFunc(all, func(g group) bool { return g.system == p.System && g.rate == p.Rate })
		if i < 0 {
			i = len(all)
			all = append(all, group{p.System, p.Rate, nil})
		}
		all[i].runs = append(all[i].runs, p)
	}
	slices.SortStableFunc(all, func(a, b group) int { return a.rate - b.rate })
	return all
}

// median of a figure over the runs; spread shows their range too, if there are several.
func (g group) median(f func(Point) float64) float64 {
	values := make([]float64, len(g.runs))
	for i, p := range g.runs {
		values[i] = f(p)
	}
	slices.Sort(values)
	return values[len(values)/2]
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

// idle are the processors in use without any load.
func (g group) idle() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(g.runs[0].Cores)) {
		if cores := g.median(func(p Point) float64 { return p.Cores[name] }); cores >= 0.005 && name != loadGenerator {
			parts = append(parts, fmt.Sprintf("%s %.2f", name, cores))
		}
	}
	return fmt.Sprintf("Cores in use without load, %s: %s.\n\n", g.system, strings.Join(parts, ", "))
}

// Markdown is the report as a table: of several runs at a rate the median, and the range
// of the latencies.
func (r Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Commit %s; %v, %v CPUs, %v MiB.\n\n", r.Commit, r.Machine["cpu"], r.Machine["cpus"], r.Machine["memory_mib"])
	b.WriteString(`| system | orders/s | achieved | p50 ms | p99 ms | accept p50 ms | CPU µs/order: Postgres, walsenders, services, worker, broker | WAL B/order | events/transaction: order, stock, payment | idle, other cores |
|---|---|---|---|---|---|---|---|---|---|
`)
	idle := ""
	for _, g := range r.groups() {
		if g.rate == 0 { // there is nothing per order
			idle += g.idle()
			continue
		}
		cpu := func(names ...string) float64 {
			return g.median(func(p Point) float64 { return p.of(p.CPU, names...) })
		}
		batch := func(name string) float64 { return g.median(func(p Point) float64 { return p.Batch[name] }) }
		mark := ""
		if !slices.ContainsFunc(g.runs, Point.Holds) {
			mark = " (does not hold)"
		}
		fmt.Fprintf(&b, "| %s | %d%s | %.0f | %s | %s | %s | %.0f, %.0f, %.0f, %.0f, %.0f | %.0f | %.1f, %.1f, %.1f | %.1f, %.1f |\n", g.system, g.rate, mark,
			g.median(func(p Point) float64 { return p.Achieved }),
			g.spread(func(p Point) float64 { return p.P50 }), g.spread(func(p Point) float64 { return p.P99 }), g.spread(func(p Point) float64 { return p.AcceptP50 }),
			cpu("postgres"), cpu("walsenders"), cpu("order-service", "stock-service", "payment-service"), cpu("connect", "relay"), cpu("kafka"),
			g.median(func(p Point) float64 { return p.WALPerOrder }), batch("order"), batch("stock"), batch("payment"),
			g.median(func(p Point) float64 { return p.IdleCores }), g.median(func(p Point) float64 { return p.OtherCores }))
	}
	b.WriteString("\n" + idle)
	for _, system := range slices.Sorted(maps.Keys(r.Max)) {
		fmt.Fprintf(&b, "Highest rate that holds (p99 ≤ 1 s, nothing lost, no growing backlog), %s: **%d orders/s**.\n", system, r.Max[system])
	}
	b.WriteString(r.ratios())
	return b.String()
}
