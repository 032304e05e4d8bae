package bench

import (
	"encoding/json"
	"math"
	"os"
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
		got, err := Search(c.start, time.Second, time.Minute, 0, func(rate int, d time.Duration) (Point, error) {
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
	if _, err := Search(10, 1, 1, 0, func(int, time.Duration) (Point, error) { return Point{}, os.ErrClosed }); err != os.ErrClosed {
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
