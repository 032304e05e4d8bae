package bench

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Markdown is the report as tables: of several runs at a rate the median, and the range
// of the latencies.
func (r Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Commit %s; %v, %v CPUs, %v MiB; %v %v; stacks on %v; %v", r.Commit, r.Machine["cpu"], r.Machine["cpus"], r.Machine["memory_mib"],
		r.Machine["os"], r.Machine["kernel"], r.Machine["filesystem"], r.Machine["go"])
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(&b, "; %s %s", name, r.Versions[name])
	}
	b.WriteString(".\n")
	if r.Command != "" {
		fmt.Fprintf(&b, "`%s`\n", r.Command)
	}
	var settings []string
	for _, name := range slices.Sorted(maps.Keys(r.Settings)) {
		settings = append(settings, name+"="+r.Settings[name])
	}
	if len(settings) > 0 {
		fmt.Fprintf(&b, "`%s`\n", strings.Join(settings, " "))
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "\n> %s\n", note)
	}
	r.writeBars(&b)
	if len(r.Max) > 0 {
		b.WriteString("\n### Highest rate that holds (p99 ≤ 1 s, nothing lost, no order failed, no growing backlog)\n\n| system | orders/s | all searches |\n|---|---|---|\n")
		for _, system := range slices.Sorted(maps.Keys(r.Max)) {
			var all []string
			for _, f := range r.Searches[system] {
				all = append(all, f.String())
			}
			fmt.Fprintf(&b, "| %s | **%d** | %s |\n", system, r.Max[system], strings.Join(all, "; "))
		}
	}
	for _, part := range r.parts() {
		r.writePart(&b, part)
	}
	r.writeSoak(&b)
	if len(r.CatchUps) > 0 {
		b.WriteString("\n### Catching up\n\n| system | down s | orders/s meanwhile | events waiting | start s | caught up after s, the start included | events/s |\n|---|---|---|---|---|---|---|\n")
		for _, c := range r.CatchUps {
			fmt.Fprintf(&b, "| %s | %.0f | %d | %d | %.1f | %.1f | %.0f |\n", c.System, c.DownSeconds, c.Rate, c.Waiting, c.StartSeconds, c.Seconds, c.EventsPerSecond)
		}
	}
	if len(r.Ceilings) > 0 {
		b.WriteString("\n### Ceilings: the same statements without services, HTTP and events\n\n| what | best concurrency | rows a transaction | per second |\n|---|---|---|---|\n")
		for _, c := range r.Ceilings {
			fmt.Fprintf(&b, "| %s | %d | %d | %.0f |\n", c.Name, c.Concurrency, c.Batch, c.PerSecond)
		}
	}
	return b.String()
}

// writeBars writes what was measured beside what it should be.
func (r Report) writeBars(b *strings.Builder) {
	figures, ratios := r.figures(), r.ratios()
	if len(figures)+len(ratios) > 0 {
		b.WriteString("\n### Bars\n")
	}
	if len(figures) > 0 {
		if cpus := fmt.Sprint(r.Machine["cpus"]); cpus != fmt.Sprint(barCPUs) {
			fmt.Fprintf(b, "\nThe bars of the first table are for %d processors; this machine has %s.\n", barCPUs, cpus)
		}
		b.WriteString("\n| the product alone | measured | bar | |\n|---|---|---|---|\n")
		for _, f := range figures {
			name := f.Name
			if f.Unheld {
				name += " (does not hold)"
			}
			fmt.Fprintf(b, "| %s | **%.4g** | %s |\n", name, f.Measured, verdict(f.Bar, f.Below, f.OK(), true))
		}
	}
	if len(ratios) > 0 {
		b.WriteString("\n| compared | left | right | ratio | bar | |\n|---|---|---|---|---|---|\n")
		for _, x := range ratios {
			ratio := fmt.Sprintf("**%.2f**", x.Ratio)
			switch {
			case x.Open && x.Most > 0:
				ratio = fmt.Sprintf("**%.2f to %.2f**", x.Least, x.Most)
			case x.Open:
				ratio = fmt.Sprintf("**%.2f or more**", x.Least)
			}
			ok, known := x.OK()
			fmt.Fprintf(b, "| %s | %.4g | %.4g | %s | %s |\n", x.Name, x.Left, x.Right, ratio, verdict(x.Bar, x.Below, ok, known))
		}
	}
}

// verdict fills the two last columns: the bar, and whether it is met.
func verdict(bar float64, below, ok, known bool) string {
	sign, word := "≥", "met"
	if below {
		sign = "≤"
	}
	switch {
	case !known:
		word = "not known: a search is open"
	case !ok:
		word = "**missed**"
	}
	if bar == 0 {
		return "|"
	}
	return fmt.Sprintf("%s %g | %s", sign, bar, word)
}

// writePart writes a table of a part's points, and one of the processors in use where next to nothing was
// ordered.
func (r Report) writePart(b *strings.Builder, part string) {
	var loaded, idle []group
	for _, g := range r.groups(part) {
		if g.rate < 10 {
			idle = append(idle, g)
		} else {
			loaded = append(loaded, g)
		}
	}
	if len(loaded) > 0 {
		fmt.Fprintf(b, "\n### Part %s\n\n", part)
		b.WriteString(`| system | case | orders/s | achieved | p50 ms | p99 ms | accept p50 ms | CPU µs/order: Postgres, walsenders, services, worker or relay, broker, load generator | WAL B/order | events/transaction: order, stock, payment | MiB resident: order, stock, payment, worker or relay, broker, load generator | idle, other, stolen cores |
|---|---|---|---|---|---|---|---|---|---|---|---|
`)
	}
	for _, g := range loaded {
		batch := func(name string) float64 { return g.median(func(p Point) float64 { return p.Batch[name] }) }
		held := g.held()
		var cpu, memory []string
		bytes := "–"
		if len(held.runs) > 0 {
			bytes = fmt.Sprintf("%.0f", held.median(wal))
			for _, k := range kinds {
				cpu = append(cpu, fmt.Sprintf("%.0f", held.cpu(k.processes...)))
			}
		} else {
			cpu = []string{"–"}
		}
		for _, names := range [][]string{services[0:1], services[1:2], services[2:3], {"connect", "relay"}, {"kafka"}, {loadGenerator}} {
			memory = append(memory, fmt.Sprintf("%.0f", g.median(func(p Point) float64 { return p.most(names...) })))
		}
		fmt.Fprintf(b, "| %s | %s | %d%s | %.0f | %s | %s | %s | %s | %s | %.1f, %.1f, %.1f | %s | %.1f, %.1f, %.1f |\n", g.system, g.name, g.rate, g.mark(),
			g.median(func(p Point) float64 { return p.Achieved }),
			g.spread(p50), g.spread(p99), g.spread(func(p Point) float64 { return p.AcceptP50 }), strings.Join(cpu, ", "),
			bytes, batch("order"), batch("stock"), batch("payment"), strings.Join(memory, ", "),
			g.median(func(p Point) float64 { return p.IdleCores }), g.median(func(p Point) float64 { return p.OtherCores }), g.median(func(p Point) float64 { return p.StolenCores }))
	}
	if len(idle) > 0 {
		fmt.Fprintf(b, "\nProcessors in use at next to no load, part %s:\n\n| system | case | orders/s | p50 ms | Postgres | walsenders | services | worker or relay | broker |\n|---|---|---|---|---|---|---|---|---|\n", part)
	}
	for _, g := range idle {
		fmt.Fprintf(b, "| %s | %s | %d | %.1f", g.system, g.name, g.rate, g.median(p50))
		for _, k := range kinds[:len(kinds)-1] {
			fmt.Fprintf(b, " | %.4f", g.cores(k.processes...))
		}
		b.WriteString(" |\n")
	}
}
