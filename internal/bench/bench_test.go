package bench

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// steady makes the orders of a run whose latencies are given by the moment meant for sending.
func steady(rate int, d time.Duration, latency func(meant time.Duration) time.Duration) []order {
	orders := make([]order, rate*int(d/time.Second))
	for i := range orders {
		o := &orders[i]
		o.meant = time.Duration(i) * time.Second / time.Duration(rate)
		o.ok, o.settled = true, true
		o.accepted, o.final = o.meant+time.Millisecond, o.meant+latency(o.meant)
	}
	return orders
}

func point(orders []order, rate int, d time.Duration) Point {
	p := Point{Rate: rate, Seconds: d.Seconds(), Sent: len(orders)}
	p.latencies(orders, d)
	return p
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > want/100+0.01 {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func TestLatencies(t *testing.T) {
	const d = 10 * time.Second
	p := point(steady(100, d, func(meant time.Duration) time.Duration {
		if meant%(100*time.Millisecond) == 0 { // every tenth
			return 200 * time.Millisecond
		}
		return 20 * time.Millisecond
	}), 100, d)
	near(t, "p50", p.P50, 20)
	near(t, "p99", p.P99, 200)
	near(t, "accept p50", p.AcceptP50, 1)
	near(t, "achieved", p.Achieved, 99.8)
	if p.BacklogHalf != 2 || p.BacklogEnd != 2 || !p.Holds() {
		t.Errorf("%+v", p)
	}
}

// What did not happen is slower than all that did, and a rate with it does not hold.
func TestLostOrdersAreInfinitelySlow(t *testing.T) {
	const d = 10 * time.Second
	for name, lose := range map[string]func(*order){
		"not accepted": func(o *order) { o.ok, o.settled = false, false },
		"not settled":  func(o *order) { o.settled = false },
	} {
		orders := steady(100, d, func(time.Duration) time.Duration { return time.Millisecond })
		for i := range 20 {
			lose(&orders[50*i])
		}
		p := point(orders, 100, d)
		near(t, name+": p99", p.P99, float64(Infinite.Milliseconds()))
		near(t, name+": p50", p.P50, 1)
		if p.Rejected+p.Unfinished != 20 || p.BacklogEnd != 20 || p.Holds() {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestAGrowingBacklogDoesNotHold(t *testing.T) {
	const d = 10 * time.Second
	p := point(steady(100, d, func(meant time.Duration) time.Duration { return meant / 12 }), 100, d) // 0.83 s at the end
	if !p.Growing || p.P99 > 1000 || p.Holds() {
		t.Errorf("%+v", p)
	}
	p = point(steady(100, d, func(time.Duration) time.Duration { return 900 * time.Millisecond }), 100, d)
	if p.Growing || p.Achieved > 97 || p.Holds() { // a tenth of the load was not settled when it ended
		t.Errorf("%+v", p)
	}
	if p = point(steady(100, 60*time.Second, func(time.Duration) time.Duration { return 900 * time.Millisecond }), 100, 60*time.Second); !p.Holds() {
		t.Errorf("slow, but steady: %+v", p)
	}
	if p = point(nil, 0, d); p.P50 != 0 || !p.Holds() {
		t.Errorf("idle: %+v", p)
	}
}

func TestSearch(t *testing.T) {
	for _, c := range []struct{ limit, start, low, high int }{
		{8000, 4000, 7600, 8000}, {8000, 8000, 7600, 8000}, {8000, 20_000, 7600, 8000}, {8000, 100, 7600, 8000},
		{1, 4000, 0, 1}, {0, 4000, 0, 0},
	} {
		points := 0
		got, err := Search(c.start, time.Second, time.Minute, func(rate int, d time.Duration) (Point, error) {
			points++
			limit := c.limit
			if d == time.Minute {
				limit = limit * 97 / 100 // what holds for a second may not hold for a minute
			}
			p := Point{Rate: rate, Achieved: float64(rate)}
			if rate > limit {
				p.P99 = 1001
			}
			return p, nil
		})
		if err != nil || got < c.low*94/100 || got > c.high || points > 60 {
			t.Errorf("from %d: found %d after %d points, want %d to %d: %v", c.start, got, points, c.low, c.high, err)
		}
	}
	if _, err := Search(10, 1, 1, func(int, time.Duration) (Point, error) { return Point{}, os.ErrClosed }); err != os.ErrClosed {
		t.Error(err)
	}
}

func TestShapes(t *testing.T) {
	count := func(s Shape, field func(orderBody) string) map[string]int {
		n := map[string]int{}
		for _, text := range s.bodies(10_000) {
			var b orderBody
			if err := json.Unmarshal(text, &b); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if len(b.Items) != max(s.Lines, 1) {
				t.Fatalf("%s", text)
			}
			n[field(b)]++
		}
		return n
	}
	sku := func(b orderBody) string { return b.Items[0].SKU }
	who := func(b orderBody) string { return b.Customer }
	even := Shape{Customers: 100, Items: 50, Lines: 20}
	for name, n := range count(even, sku) {
		if n != 200 {
			t.Errorf("%s: %d orders", name, n)
		}
	}
	if n := count(even, who); len(n) != 100 {
		t.Error(len(n), "customers")
	}
	if n := count(Shape{Customers: 1, Items: 1}, sku); n["item-0"] != 10_000 {
		t.Error(n)
	}
	if n := count(Shape{Customers: 9, Items: 1000, Zipf: 1.2}, sku); n["item-0"] < 1000 || n["item-0"] < 2*n["item-3"] {
		t.Error(n["item-0"], n["item-3"])
	}
	if n := count(Shape{Customers: 9, Items: 9, Refused: 10}, who); n[poor] < 900 || n[poor] > 1100 {
		t.Error(n[poor])
	}
}

type orderBody struct {
	Customer string `json:"customer_id"`
	Items    []struct {
		SKU string `json:"sku"`
	} `json:"items"`
}

func TestReport(t *testing.T) {
	r := Report{Machine: Machine(), Commit: "abc", Shape: Shape{Customers: 1, Items: 1}, Max: map[string]int{"cdc": 8000, "poller": 7000}}
	for i, p50 := range []float64{5, 7, 6} {
		r.Runs = append(r.Runs, Point{System: "cdc", Rate: 500, Sent: 5000, Seconds: 10, Achieved: 500, P50: p50, P99: 20,
			CPU: map[string]float64{"order-service": 10, "order-service-2": 20, "stock-service": 1, "postgres": float64(100 + i), "kafka": 3}})
	}
	r.Runs = append(r.Runs, Point{System: "poller", Rate: 200, Achieved: 200, P50: 30, P99: 1500},
		Point{System: "cdc", Rate: 0, Cores: map[string]float64{"connect": 0.16, "postgres": 0.01}})
	text := r.Markdown()
	for _, want := range []string{
		"| cdc | 500 | 500 | 6.0 (5.0–7.0) | 20.0 (20.0–20.0) |", "| 101, 0, 31, 0, 3 |", "| poller | 200 (does not hold) | 200 | 30.0 | 1500.0 |",
		"cdc: **8000 orders/s**", "poller: **7000 orders/s**", "connect 0.16, postgres 0.01",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Index(text, "| poller | 200") > strings.Index(text, "| cdc | 500") {
		t.Error("rates are not in order")
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Machine map[string]any
		Commit  string
		Runs    []map[string]any
		Max     map[string]int `json:"max_orders_per_s"`
	}
	written, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil || json.Unmarshal(written, &back) != nil {
		t.Fatal(err)
	}
	var missing []string
	for _, field := range []string{"system", "rate", "achieved", "p50_ms", "p99_ms", "cpu_us_per_order", "wal_bytes_per_order"} {
		if _, ok := back.Runs[0][field]; !ok {
			missing = append(missing, field)
		}
	}
	if slices.Sort(missing); len(missing) > 0 || back.Commit != "abc" || back.Max["cdc"] != 8000 || fmt.Sprint(back.Machine["cpus"]) == "<nil>" {
		t.Error(missing, string(written))
	}
}

func TestRatiosAndPlots(t *testing.T) {
	point := func(system string, rate int, p50 float64) Point {
		return Point{System: system, Rate: rate, Achieved: float64(rate), P50: p50, P99: 3 * p50, WALPerOrder: 100 * p50,
			CPU: map[string]float64{"postgres": 100, "kafka": 10, loadGenerator: 7}, Cores: map[string]float64{"postgres": 0.01 * p50, "walsenders": 0.01}}
	}
	r := Report{Runs: []Point{
		point(Product, 0, 1), point(Rival, 0, 9), point(Product, 200, 5), point(Rival, 200, 10), point(Product, 500, 6), point("<naive>", 200, 2000),
	}, Max: map[string]int{Product: 9000, Rival: 10_000}}
	text := r.Markdown()
	for _, want := range []string{
		"| cores of PostgreSQL without load | 0.020 | 0.100 | 0.20 |", "| p50 ms at 200 | 5.0 | 10.0 | 0.50 |", "| p99 ms at 200 | 15.0 | 30.0 | 0.50 |",
		"| WAL bytes/order at 200 | 500 | 1000 | 0.50 |", "| highest rate that holds | 9000 | 10000 | 0.90 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "at 500 |") {
		t.Error("a rate that the rival has not")
	}
	for name, plot := range map[string]string{"latency": r.LatencyPlot(), "CPU": r.CPUPlot(), "empty": Report{}.LatencyPlot(), "empty CPU": Report{}.CPUPlot()} {
		var any struct{}
		if err := xml.Unmarshal([]byte(plot), &any); err != nil || strings.Contains(plot, "NaN") || strings.Contains(plot, "Inf") {
			t.Errorf("%s: %v\n%s", name, err, plot)
		}
	}
	if plot := r.LatencyPlot(); strings.Count(plot, "<polyline") != 6 || !strings.Contains(plot, "&lt;naive&gt;") {
		t.Error(plot)
	}
	if plot := r.CPUPlot(); strings.Contains(plot, loadGenerator) || strings.Count(plot, "<rect") != 1+2*4+2 {
		t.Error(plot)
	}
}
