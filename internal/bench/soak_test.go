package bench

import (
	"fmt"
	"strings"
	"testing"
)

// goodSoak is a soak without fault, in which memory, latency and tables move a little.
func goodSoak() []SoakDay {
	var days []SoakDay
	for n := range 9 {
		d := SoakDay{Day: n + 1, EventBytes: 200 << 20, TableBytes: map[string]int64{"orderdb.outbox": 200 << 20, "orderdb.orders": int64(n) << 30}}
		d.Point = Point{Sent: 1000, P50: 10 + float64(n%3), P99: 50 + float64(n%4), Memory: map[string]float64{
			"order-service": 40 + float64(n), "order-service-2": 30, "stock-service": 30, "payment-service": 30, "connect": 600,
		}}
		if n > 1 {
			d.Dropped = 6
		}
		d.Orders = 1000
		days = append(days, d)
	}
	return days
}

func TestJudgeSoak(t *testing.T) {
	whole := &Audited{Orders: 9100} // those of the warm-up too
	if wrong := JudgeSoak(goodSoak(), whole); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	for _, c := range []struct {
		spoil func([]SoakDay)
		want  string
	}{
		{func(d []SoakDay) { d[4].Point.Unfinished = 2 }, "day 5: 2 orders were not accepted or did not settle"},
		{func(d []SoakDay) { d[4].Point.Rejected = 1 }, "day 5: 1 orders"},
		{func(d []SoakDay) { d[8].Violations = []string{"event-lost: 1"} }, "day 9: audit: event-lost: 1"},
		{func(d []SoakDay) { d[2].Point.Memory["order-service-2"] = 61 }, "day 3: order-service has 61 MiB"},
		{func(d []SoakDay) {
			for i := range d {
				d[i].Point.Memory["stock-service"] = 10 + 5*float64(i)
			}
		}, "the memory of stock-service grew from 30.0 to 45.0 MiB"},
		{func(d []SoakDay) {
			for i := range d {
				d[i].Point.P99 = 50 + 10*float64(i)*float64(i)
			}
		}, "p99 grew"},
		{func(d []SoakDay) { d[6].Point.P50, d[7].Point.P50 = 20, 20 }, "p50 grew"},
		{func(d []SoakDay) { d[7].EventBytes, d[8].EventBytes = 300<<20, 300<<20 }, "outboxes and inboxes grew from 200.0 to 300.0 MiB"},
		{func(d []SoakDay) { d[5].Dropped = 5 }, "day 6: retention has dropped 5 partitions"},
		{func(d []SoakDay) { d[8].Orders = 990 }, "day 9: the audit has judged 990 orders of 1000"},
	} {
		days := goodSoak()
		c.spoil(days)
		if wrong := JudgeSoak(days, whole); len(wrong) == 0 || !strings.Contains(wrong[0], c.want) {
			t.Errorf("%q, want %q", wrong, c.want)
		}
	}
	for want, last := range map[string]*Audited{
		"there was no audit over everything at the end":        nil,
		"at the end: the audit has judged 8999 orders of 9000": {Orders: 8999},
		"at the end: audit: order-effect: 1":                   {Orders: 9000, Violations: []string{"order-effect: 1"}},
	} {
		if wrong := JudgeSoak(goodSoak(), last); len(wrong) != 1 || wrong[0] != want {
			t.Errorf("%q, want %q", wrong, want)
		}
	}
	if wrong := JudgeSoak(goodSoak()[:6], whole); len(wrong) != 1 {
		t.Error(wrong)
	}
	report := Report{Soak: goodSoak(), SoakAudit: whole}.Markdown()
	for _, want := range []string{"over all that was there: 9100 orders", "Soak: 9000 orders in 9 days", "orderdb.orders 8192.0", "Nothing is wrong"} {
		if !strings.Contains(report, want) {
			t.Error(fmt.Sprint(want, " is not in: ", report))
		}
	}
}
