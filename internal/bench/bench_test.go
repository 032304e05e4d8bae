package bench

import (
	"encoding/json"
	"math"
	"slices"
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
	const minute = time.Minute
	for _, c := range []struct {
		name    string
		d       time.Duration
		latency func(meant time.Duration) time.Duration
		holds   bool
	}{
		{"8 % too much", 10 * time.Second, func(meant time.Duration) time.Duration { return meant / 12 }, false}, // 0.83 s at the end
		{"5 % too much, for a short time", 6 * time.Second, func(meant time.Duration) time.Duration { return meant / 20 }, false},
		{"1 % too much", minute, func(meant time.Duration) time.Duration { return meant / 100 }, false},
		{"one of six partitions falls behind", minute, func(meant time.Duration) time.Duration {
			if meant/(10*time.Millisecond)%6 == 0 {
				return meant / 70
			}
			return 20 * time.Millisecond
		}, false},
		{"slow, but steady", 10 * time.Second, func(time.Duration) time.Duration { return 900 * time.Millisecond }, true},
		{"slow, but steady, for a short time", 6 * time.Second, func(time.Duration) time.Duration { return 300 * time.Millisecond }, true},
		{"slow, but steady, for a minute", minute, func(time.Duration) time.Duration { return 900 * time.Millisecond }, true},
		{"slower than a second", 10 * time.Second, func(time.Duration) time.Duration { return 1100 * time.Millisecond }, false},
		{"slow at the start only", 10 * time.Second, func(meant time.Duration) time.Duration {
			return max(900*time.Millisecond-meant/4, 20*time.Millisecond)
		}, true},
	} {
		p := point(steady(100, c.d, c.latency), 100, c.d)
		if p.Holds() != c.holds {
			t.Errorf("%s: %+v", c.name, p)
		}
		if p.P99 <= 1000 && p.Growing == c.holds {
			t.Errorf("%s: growing is %v", c.name, p.Growing)
		}
	}
	if p := point(nil, 0, 10*time.Second); p.P50 != 0 || !p.Holds() {
		t.Errorf("idle: %+v", p)
	}
}

func TestOrdersThatFailDoNotHold(t *testing.T) {
	if p := (Point{Rate: 100, P99: 10, Failed: 1}); p.Holds() {
		t.Errorf("%+v", p)
	}
	if p := (Point{Rate: 100, P99: 10, Failed: 7, Refused: 7}); !p.Holds() {
		t.Errorf("refusals were asked for: %+v", p)
	}
	if p := (Point{Rate: 100, P99: 10, Failed: 8, Refused: 7}); p.Holds() {
		t.Errorf("one more failed: %+v", p)
	}
}

// The gaps are those of a Poisson process, and no multiple of a poller's pause.
func TestArrivals(t *testing.T) {
	const n, d = 2000, 10 * time.Second // 200/s: evenly spaced, every 5 ms
	all := arrivals(n, d)
	if len(all) != n || !slices.IsSorted(all) || all[0] < 0 || all[n-1] >= d {
		t.Fatal(len(all), all[0], all[n-1])
	}
	if !slices.Equal(all, arrivals(n, d)) {
		t.Error("another system would get other arrivals")
	}
	var sum, squares float64
	phases := [5]int{} // by the millisecond of the pause
	for i, at := range all[1:] {
		gap := (at - all[i]).Seconds()
		sum, squares = sum+gap, squares+gap*gap
		phases[at%(5*time.Millisecond)/time.Millisecond]++
	}
	mean := sum / (n - 1)
	// The standard deviation of exponential gaps is their mean; that of even gaps is 0.
	if deviation := math.Sqrt(squares/(n-1) - mean*mean); math.Abs(mean-0.005) > 0.0001 || math.Abs(deviation/mean-1) > 0.1 {
		t.Errorf("gaps of %.5f ± %.5f s", mean, deviation)
	}
	for ms, orders := range phases {
		if orders < n/5*8/10 || orders > n/5*12/10 {
			t.Errorf("%d of %d orders come in millisecond %d of a pause", orders, n, ms)
		}
	}
	if len(arrivals(0, d)) != 0 {
		t.Error("orders without a rate")
	}
}

func TestShapes(t *testing.T) {
	count := func(s Shape, field func(orderBody) string) (n map[string]int, refused int) {
		n = map[string]int{}
		all, refused := s.bodies(10_000)
		for _, text := range all {
			var b orderBody
			if err := json.Unmarshal(text, &b); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if len(b.Items) != max(s.Lines, 1) {
				t.Fatalf("%s", text)
			}
			n[field(b)]++
		}
		return n, refused
	}
	sku := func(b orderBody) string { return b.Items[0].SKU }
	who := func(b orderBody) string { return b.Customer }
	even := Shape{Customers: 100, Items: 50, Lines: 20}
	skus, _ := count(even, sku)
	for name, n := range skus {
		if n < 140 || n > 260 {
			t.Errorf("%s: %d orders", name, n)
		}
	}
	if n, refused := count(even, who); len(n) != 100 || refused != 0 {
		t.Error(len(n), "customers")
	}
	if n, _ := count(Shape{Customers: 1, Items: 1}, sku); n["item-0"] != 10_000 {
		t.Error(n)
	}
	if n, _ := count(Shape{Customers: 9, Items: 1000, Zipf: 1.2}, sku); n["item-0"] < 1000 || n["item-0"] < 2*n["item-3"] {
		t.Error(n["item-0"], n["item-3"])
	}
	n, refused := count(Shape{Customers: 9, Items: 9, Refused: 10}, who)
	poorest := 0
	for i := range poorCustomers {
		poorest += n[poor(i)]
	}
	if poorest != refused || poorest < 900 || poorest > 1100 || n[poor(0)] > 50 {
		t.Error(poorest, n)
	}
}

type orderBody struct {
	Customer string `json:"customer_id"`
	Items    []struct {
		SKU string `json:"sku"`
	} `json:"items"`
}
