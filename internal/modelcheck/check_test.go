package modelcheck

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/order-service/order"
	"outboxsaga/payment-service/payment"
	"outboxsaga/stock-service/stock"
)

// invariant says what is wrong with a state, whatever comes next; "" if nothing.
func (w *world) invariant(s state) string {
	o, p, a := w.orders.values[s.order], w.payments.values[s.payment], w.accounts.values[s.account]
	r, item := w.reservations.values[s.reservation], w.items.values[s.item]
	charged, reserved := p.Status == payment.Charged, r.Status == stock.Reserved
	switch {
	case s.twice:
		return "an event id was handled twice"
	case a.Balance < 0 || a.Charged < 0 || a.Deposited != a.Balance+a.Charged:
		return fmt.Sprintf("money is not conserved: %+v", a)
	case item.Available < 0 || item.Reserved < 0 || item.Received != item.Available+item.Reserved:
		return fmt.Sprintf("stock is not conserved: %+v", item)
	case a.Charged != effect(charged, amount):
		return fmt.Sprintf("%d are charged, the payment is %s", a.Charged, p.Status)
	case item.Reserved != effect(reserved, quantity):
		return fmt.Sprintf("%d are reserved, the reservation is %s", item.Reserved, r.Status)
	case o.Status == order.Success && (o.Payment.Status != order.StepSuccess || o.Stock.Status != order.StepSuccess):
		return fmt.Sprintf("SUCCESS with payment %s and stock %s", o.Payment.Status, o.Stock.Status)
	case o.Status == order.Failed && (o.Payment.Status == order.StepSuccess || o.Stock.Status == order.StepSuccess):
		return fmt.Sprintf("FAILED with payment %s and stock %s", o.Payment.Status, o.Stock.Status)
	case o.Status == order.Success && !(charged && reserved):
		return fmt.Sprintf("SUCCESS, but charged %t and reserved %t", charged, reserved)
	case charged && w.answeredWith(s, events.TypePaymentCompensated):
		return "money is charged although the compensation was acknowledged"
	case reserved && w.answeredWith(s, events.TypeStockCompensated):
		return "goods are reserved although the compensation was acknowledged"
	}
	return ""
}

func effect(stands bool, n int64) int64 {
	if stands {
		return n
	}
	return 0
}

func (w *world) answeredWith(s state, eventType string) bool {
	for i, m := range w.messages {
		if s.exists&(1<<i) != 0 && m.Type == eventType {
			return true
		}
	}
	return false
}

// transition says what is wrong with a step; "" if nothing: final states are final.
func (w *world) transition(from, to state) string {
	a, b := w.orders.values[from.order], w.orders.values[to.order]
	if a.Status != order.InProgress && a.Status != b.Status {
		return fmt.Sprintf("the order went from %s to %s", a.Status, b.Status)
	}
	for _, steps := range [][2]order.StepStatus{{a.Payment.Status, b.Payment.Status}, {a.Stock.Status, b.Stock.Status}} {
		if steps[0] == order.StepCompensated && steps[1] != steps[0] {
			return fmt.Sprintf("a step went from %s to %s", steps[0], steps[1])
		}
	}
	switch p, q := w.payments.values[from.payment].Status, w.payments.values[to.payment].Status; p {
	case payment.Refused, payment.Refunded, payment.Barred:
		if p != q {
			return fmt.Sprintf("the payment went from %s to %s", p, q)
		}
	}
	switch p, q := w.reservations.values[from.reservation].Status, w.reservations.values[to.reservation].Status; p {
	case stock.Refused, stock.Released, stock.Barred:
		if p != q {
			return fmt.Sprintf("the reservation went from %s to %s", p, q)
		}
	}
	return ""
}

// quiescent: every event was handled, and nobody has to act. A dead command needs nobody
// (the order has failed); a dead answer or compensation needs to be redriven.
func (w *world) quiescent(s state) bool {
	if !s.visible {
		return false
	}
	for i, m := range w.messages {
		bit := uint64(1) << i
		if s.exists&bit == 0 || m.by == byNobody {
			continue
		}
		command := m.Type == events.TypePaymentRequested || m.Type == events.TypeStockRequested
		if s.handled&bit == 0 || s.dead&bit != 0 && !command {
			return false
		}
	}
	return true
}

// outcome says what is wrong with a quiescent state; "" if nothing.
func (w *world) outcome(s state) string {
	o := w.orders.values[s.order]
	charged := w.payments.values[s.payment].Status == payment.Charged
	reserved := w.reservations.values[s.reservation].Status == stock.Reserved
	switch {
	case !o.Settled() || o.Status == order.InProgress:
		return fmt.Sprintf("nothing is on its way, but the order is %s with payment %s and stock %s", o.Status, o.Payment.Status, o.Stock.Status)
	case o.Status == order.Success && !(charged && reserved), o.Status == order.Failed && (charged || reserved):
		return fmt.Sprintf("the order is %s, charged %t, reserved %t", o.Status, charged, reserved)
	}
	return ""
}

// result of a search.
type result struct {
	states, transitions, quiescent int
	violation                      string // with the way to it; "" if there is none
}

// search visits every reachable state, breadth first, so that the way to a violation is
// a shortest one.
func search(r rules, money, goods int64, b budgets) (res result) {
	w := &world{rules: r}
	first := w.start(money, goods, b)
	type came struct {
		from int32
		by   action
	}
	seen := map[state]int32{first: 0}
	queue, ways := []state{first}, []came{{-1, action{}}}
	explain := func(what string, at int32, last ...action) string {
		var steps []string
		for ; ways[at].from >= 0; at = ways[at].from {
			steps = append([]string{w.say(ways[at].by)}, steps...)
		}
		for _, a := range last {
			steps = append(steps, w.say(a))
		}
		return fmt.Sprintf("%s, with money %d and goods %d, after\n  %s", what, money, goods, strings.Join(steps, "\n  "))
	}
	for at := int32(0); int(at) < len(queue); at++ {
		s := queue[at]
		res.states++
		if wrong := w.invariant(s); wrong != "" {
			res.violation = explain(wrong, at)
			return res
		}
		if w.quiescent(s) {
			res.quiescent++
			if wrong := w.outcome(s); wrong != "" {
				res.violation = explain(wrong, at)
				return res
			}
		}
		err := w.each(s, func(a action, next state) {
			res.transitions++
			if wrong := w.transition(s, next); wrong != "" && res.violation == "" {
				res.violation = explain(wrong, at, a)
			}
			if _, known := seen[next]; !known {
				seen[next] = int32(len(queue))
				queue, ways = append(queue, next), append(ways, came{at, a})
			}
		})
		if err != nil {
			res.violation = explain(err.Error(), at)
		}
		if res.violation != "" {
			return res
		}
	}
	return res
}

func (w *world) say(a action) string {
	if a.i < 0 {
		return a.what
	}
	return a.what + ": " + w.name(a.i)
}

// Enough and too little of both: the four courses of an order without faults.
var worlds = []struct{ money, goods int64 }{{100, 10}, {100, 1}, {10, 10}, {10, 1}}

func TestEveryReachableStateIsRight(t *testing.T) {
	budget := budgets{copies: 1, deaths: 2, redrives: 2, replays: 1}
	if small || testing.Short() {
		budget.deaths, budget.redrives = 1, 1
	}
	begin := time.Now()
	var all result
	for _, c := range worlds {
		res := search(services(), c.money, c.goods, budget)
		if res.violation != "" {
			t.Fatal(res.violation)
		}
		if res.quiescent == 0 {
			t.Error("no quiescent state was reached: nothing was checked there")
		}
		all.states += res.states
		all.transitions += res.transitions
		all.quiescent += res.quiescent
	}
	t.Logf("%d states, %d transitions, %d of the states quiescent, 0 violations, %.1f s", all.states, all.transitions, all.quiescent, time.Since(begin).Seconds())
}

// The checker must find what is wrong: each mutation breaks one rule of the design.
func TestTheCheckFindsEachMutation(t *testing.T) {
	for name, c := range map[string]struct {
		mutate func(*rules)
		want   string // part of the violation
	}{
		"no self compensation": {func(r *rules) {
			r.succeeded = func(o order.Order, p order.Participant) order.Decision {
				if o.Status != order.Failed {
					return order.Succeeded(o, p)
				}
				d := order.Succeeded(o, p)
				return order.Decision{Order: d.Order} // as if it had been sent
			}
		}, "nothing is on its way"},
		"late success ignored": {func(r *rules) {
			r.succeeded = func(o order.Order, p order.Participant) order.Decision {
				if o.Status == order.Failed {
					return order.Decision{Order: o}
				}
				return order.Succeeded(o, p)
			}
		}, "nothing is on its way"},
		"no barrier in payment": {func(r *rules) {
			r.refund = func(was payment.Payment, account func(string) payment.Account, id string) (payment.Decision, error) {
				d, err := payment.Refund(was, account, id)
				if was.Status == "" {
					d.Payment = was // acknowledged, but nothing remembers it
				}
				return d, err
			}
		}, "although the compensation was acknowledged"},
		"no barrier in stock": {func(r *rules) {
			r.release = func(was stock.Reservation, shelf func(string) stock.Item, id string) (stock.Decision, error) {
				d, err := stock.Release(was, shelf, id)
				if was.Status == "" {
					d.Reservation = was
				}
				return d, err
			}
		}, "although the compensation was acknowledged"},
		"no dedup by event id": {func(r *rules) { r.dedup = false }, "handled twice"},
		"no dedup by order id in payment": {func(r *rules) {
			r.charge = func(_ payment.Payment, account func(string) payment.Account, cmd events.PaymentRequested) (payment.Decision, error) {
				return payment.Charge(payment.Payment{}, account, cmd)
			}
		}, "charged"},
		"no dedup by order id in stock": {func(r *rules) {
			r.reserve = func(_ stock.Reservation, shelf func(string) stock.Item, cmd events.StockRequested) (stock.Decision, error) {
				return stock.Reserve(stock.Reservation{}, shelf, cmd)
			}
		}, "reserved"},
		"no retry of an order that is not visible": {func(r *rules) { r.retryUnseen = false }, "nothing is on its way"},
		"compensation without effect": {func(r *rules) {
			r.refund = func(was payment.Payment, account func(string) payment.Account, id string) (payment.Decision, error) {
				d, err := payment.Refund(was, account, id)
				d.Payment, d.Accounts = was, nil
				return d, err
			}
		}, "although the compensation was acknowledged"},
	} {
		t.Run(name, func(t *testing.T) {
			r := services()
			c.mutate(&r)
			for _, world := range worlds {
				res := search(r, world.money, world.goods, budgets{copies: 1, deaths: 1, redrives: 1, replays: 1})
				if strings.Contains(res.violation, c.want) {
					t.Logf("found after %d states: %s", res.states, res.violation)
					return
				}
				if res.violation != "" {
					t.Fatalf("found something else than %q: %s", c.want, res.violation)
				}
			}
			t.Error("not found")
		})
	}
}
