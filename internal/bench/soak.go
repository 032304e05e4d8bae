package bench

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// PartSoak is the part with many orders over many days.
const PartSoak = "soak"

// SoakDay is what was found when a day's orders had settled and retention had run.
type SoakDay struct {
	Day   int   `json:"day"` // from 1
	Point Point `json:"point"`
	// Dropped are the partitions that retention has dropped after the day.
	Dropped int `json:"partitions_dropped"`
	// EventBytes are the outboxes and inboxes of all services after that, with their indexes; TableBytes all
	// tables, each with its database's name in front.
	EventBytes int64            `json:"event_bytes"`
	TableBytes map[string]int64 `json:"table_bytes"`
	Partitions int              `json:"partitions"`
	// SlotBytes is the log that the slot furthest behind retains.
	SlotBytes int64 `json:"slot_bytes"`
	Audited
}

// Audited is how many orders and events an audit has read, and what it found.
type Audited struct {
	Orders     int64    `json:"orders_audited"`
	Events     int64    `json:"events_audited"`
	Violations []string `json:"violations,omitempty"`
}

// What a soak must keep to.
const (
	// SoakDays is the least number of days: after three, retention drops as much as comes.
	SoakDays = 7
	// memoryBar is the most resident memory of a service, in MiB.
	memoryBar = 60
	// soakGrowth is how much the last third of the days may exceed the second.
	soakGrowth = 1.3
)

// services whose memory is judged.
var services = []string{"order-service", "stock-service", "payment-service"}

// JudgeSoak returns what is wrong, in words; nothing is a pass. The rules:
//
//   - every order is accepted and settles, no audit finds anything, neither that of a day nor the one at the end over all
//     that is there (whole; nil: there was none), and no audit has read fewer orders than it should have judged;
//   - every service stays within 60 MiB at the end of every day, and the median of the last third of the days is at
//     most 1.3 times that of the second third (the first is warm-up);
//   - the median of p50 and of p99 of the last third is at most 1.3 times that of the second third;
//   - so do the outboxes and inboxes after retention, which has dropped some of both on every later day.
//
// The tables of orders, payments and reservations grow, as nobody deletes them, and are not judged.
func JudgeSoak(days []SoakDay, whole *Audited) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if len(days) < SoakDays {
		say("%d days are too few to see whether anything grows: %d or more", len(days), SoakDays)
		return wrong
	}
	judge := func(when string, a Audited, placed int) {
		for _, v := range a.Violations {
			say("%s: audit: %s", when, v)
		}
		if a.Orders < int64(placed) {
			say("%s: the audit has judged %d orders of %d", when, a.Orders, placed)
		}
	}
	placed := 0
	for i, d := range days {
		if n := d.Point.Rejected + d.Point.Unfinished; n > 0 {
			say("day %d: %d orders were not accepted or did not settle", d.Day, n)
		}
		accepted := d.Point.Sent - d.Point.Rejected
		placed += accepted
		judge(fmt.Sprintf("day %d", d.Day), d.Audited, accepted)
		for _, s := range services {
			if m := d.Point.most(s); m > memoryBar {
				say("day %d: %s has %.0f MiB resident, more than %d", d.Day, s, m, memoryBar)
			}
		}
		if i >= SoakDays/2 && d.Dropped < 2*len(services) {
			say("day %d: retention has dropped %d partitions, not one of each outbox and inbox", d.Day, d.Dropped)
		}
	}
	if whole == nil {
		say("there was no audit over everything at the end")
	} else {
		judge("at the end", *whole, placed)
	}
	third := len(days) / 3
	middle, last := days[third:2*third], days[len(days)-third:]
	compare := func(what, unit string, of func(SoakDay) float64) {
		if a, b := medianOf(middle, of), medianOf(last, of); b > soakGrowth*a {
			say("%s grew from %.1f to %.1f %s between the second and the last third", what, a, b, unit)
		}
	}
	for _, s := range services {
		compare("the memory of "+s, "MiB", func(d SoakDay) float64 { return d.Point.most(s) })
	}
	compare("p50", "ms", func(d SoakDay) float64 { return d.Point.P50 })
	compare("p99", "ms", func(d SoakDay) float64 { return d.Point.P99 })
	compare("outboxes and inboxes", "MiB", func(d SoakDay) float64 { return mib(d.EventBytes) })
	return wrong
}

// most is the memory of the largest instance of one of names.
func (p Point) most(names ...string) (mib float64) {
	for process, v := range p.Memory {
		if isOf(process, names) {
			mib = max(mib, v)
		}
	}
	return mib
}

func medianOf(days []SoakDay, of func(SoakDay) float64) float64 {
	values := make([]float64, len(days))
	for i, d := range days {
		values[i] = of(d)
	}
	return median(values)
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// SoakHeader and Row are a day for a terminal.
const SoakHeader = " day   orders  rate  lost   p50 ms   p99 ms  accept p99   MiB resident: order, stock, payment   events MiB  partitions (dropped)  others MiB  slot MiB  audited: orders, events, found"

// Row is a line below [SoakHeader].
func (d SoakDay) Row() string {
	p := d.Point
	return fmt.Sprintf("%4d  %7d  %4.0f  %4d  %7.1f  %7.1f  %10.1f  %22.0f, %5.0f, %7.0f  %11.0f  %10d (%7d)  %10.0f  %8.0f  %15d, %6d, %5d",
		d.Day, p.Sent, p.Achieved, p.Rejected+p.Unfinished, p.P50, p.P99, p.AcceptP99, p.most(services[0]), p.most(services[1]), p.most(services[2]),
		mib(d.EventBytes), d.Partitions, d.Dropped, mib(d.others()), mib(d.SlotBytes), d.Orders, d.Events, len(d.Violations))
}

// others are the tables that retention does not drop from.
func (d SoakDay) others() (sum int64) {
	for _, bytes := range d.TableBytes {
		sum += bytes
	}
	return sum - d.EventBytes
}

func (r Report) writeSoak(b *strings.Builder) {
	if len(r.Soak) == 0 {
		return
	}
	orders := 0
	for _, d := range r.Soak {
		orders += d.Point.Sent
	}
	fmt.Fprintf(b, "\n### Soak: %d orders in %d days\n\n", orders, len(r.Soak))
	b.WriteString(`| day | orders | orders/s | lost | p50 ms | p99 ms | accept p99 ms | MiB resident: order, stock, payment | outboxes and inboxes MiB | partitions (dropped) | other tables MiB | slot MiB | audit: orders, events, found |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
`)
	for _, d := range r.Soak {
		p := d.Point
		fmt.Fprintf(b, "| %d | %d | %.0f | %d | %.1f | %.1f | %.1f | %.0f, %.0f, %.0f | %.0f | %d (%d) | %.0f | %.0f | %d, %d, %d |\n",
			d.Day, p.Sent, p.Achieved, p.Rejected+p.Unfinished, p.P50, p.P99, p.AcceptP99, p.most(services[0]), p.most(services[1]), p.most(services[2]),
			mib(d.EventBytes), d.Partitions, d.Dropped, mib(d.others()), mib(d.SlotBytes), d.Orders, d.Events, len(d.Violations))
	}
	last := r.Soak[len(r.Soak)-1]
	b.WriteString("\nTables at the end, MiB:")
	for i, table := range slices.Sorted(maps.Keys(last.TableBytes)) {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(b, " %s %.1f", table, mib(last.TableBytes[table]))
	}
	b.WriteString(".\n")
	if r.SoakAudit != nil {
		fmt.Fprintf(b, "\nThe audit at the end, over all that was there: %d orders, %d events, %d found.\n", r.SoakAudit.Orders, r.SoakAudit.Events, len(r.SoakAudit.Violations))
	}
	wrong := JudgeSoak(r.Soak, r.SoakAudit)
	if len(wrong) == 0 {
		b.WriteString("\n**Nothing is wrong.**\n")
	}
	for _, w := range wrong {
		fmt.Fprintf(b, "\n* %s\n", w)
	}
}
