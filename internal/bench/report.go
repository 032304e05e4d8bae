package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// Report is results.json.
type Report struct {
	Machine map[string]any `json:"machine"`
	Commit  string         `json:"commit"`
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
	return os.WriteFile(filepath.Join(dir, "results.md"), []byte(r.Markdown()), 0o644)
}

// Header and Row are a point for a terminal.
const Header = "    rate  achieved   p50 ms   p99 ms   max ms  accept p50/p99   unfinished  idle cores  µs CPU/order"

// Row is a line below [Header].
func (p Point) Row() string {
	var cpu float64
	for name, v := range p.CPU {
		if name != "load generator" {
			cpu += v
		}
	}
	return fmt.Sprintf("%8d  %8.0f  %7.1f  %7.1f  %7.0f  %6.1f / %5.1f  %11d  %10.2f  %12.0f",
		p.Rate, p.Achieved, p.P50, p.P99, p.Max, p.AcceptP50, p.AcceptP99, p.Unfinished+p.Refused, p.IdleCores, cpu)
}

// Markdown is the report as a table: the median of each system's and rate's runs.
func (r Report) Markdown() string {
	type key struct {
		system string
		rate   int
	}
	groups := map[key][]Point{}
	var keys []key
	for _, p := range r.Runs {
		k := key{p.System, p.Rate}
		if groups[k] == nil {
			keys = append(keys, k)
		}
		groups[k] = append(groups[k], p)
	}
	sort.SliceStable(keys, func(i, j int) bool { return keys[i].rate < keys[j].rate })
	var b strings.Builder
	fmt.Fprintf(&b, "Commit %s, %v, %v CPUs.\n\n", r.Commit, r.Machine["cpu"], r.Machine["cpus"])
	b.WriteString("| system | orders/s sent | achieved | p50 ms | p99 ms | accept p50 ms | CPU µs/order: postgres, walsenders, services, worker, broker | WAL B/order | events/tx order, stock, payment |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, k := range keys {
		g := groups[k]
		m := func(f func(Point) float64) float64 {
			values := make([]float64, len(g))
			for i, p := range g {
				values[i] = f(p)
			}
			slices.Sort(values)
			return values[len(values)/2]
		}
		cpu := func(names ...string) float64 {
			return m(func(p Point) (sum float64) {
				for _, n := range names {
					sum += p.CPU[n]
				}
				return sum
			})
		}
		batch := func(name string) float64 { return m(func(p Point) float64 { return p.Batch[name] }) }
		fmt.Fprintf(&b, "| %s | %d | %.0f | %.1f | %.1f | %.1f | %.0f, %.0f, %.0f, %.0f, %.0f | %.0f | %.1f, %.1f, %.1f |\n", k.system, k.rate,
			m(func(p Point) float64 { return p.Achieved }), m(func(p Point) float64 { return p.P50 }), m(func(p Point) float64 { return p.P99 }),
			m(func(p Point) float64 { return p.AcceptP50 }), cpu("postgres"), cpu("walsenders"), cpu("order-service", "stock-service", "payment-service"),
			cpu("connect"), cpu("kafka"), m(func(p Point) float64 { return p.WALPerOrder }), batch("order"), batch("stock"), batch("payment"))
	}
	b.WriteString("\n")
	for system, rate := range r.Max {
		fmt.Fprintf(&b, "Highest rate that holds (p99 ≤ 1 s, nothing unfinished), %s: **%d orders/s**.\n", system, rate)
	}
	return b.String()
}
