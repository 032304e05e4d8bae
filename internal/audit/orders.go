package audit

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// orderRow is what is compared of an order and its two effects.
type orderRow struct {
	id                     id
	status, payment, stock string
	customer               string
	amount                 int64
	items                  string
	attention              bool
	updated                time.Time
	charge, chargedTo      string // the payment's status and customer; empty: there is none
	charged                int64
	reservation, reserved  string // the reservation's status and items
}

func (o orderRow) settled() bool { return !open(o.payment) && !open(o.stock) }

func open(step string) bool { return step == "IN_PROGRESS" || step == "COMPENSATING" }

// contradiction says what does not fit between an order and its effects; empty: all fits.
func (o orderRow) contradiction() string {
	// What was asked for never changes. A barred effect was not asked for: its compensation came first.
	switch {
	case o.charge != "" && o.charge != "BARRED" && (o.charged != o.amount || o.chargedTo != o.customer):
		return "payments are not of their order's amount and customer"
	case o.reservation != "" && o.reservation != "BARRED" && !sameItems(o.items, o.reserved):
		return "reservations are not of their order's items"
	}
	if wrong := o.misfit(o.payment, o.charge, "CHARGED", "REFUNDED"); wrong != "" {
		return "payments of orders that are " + o.status + " with payment " + o.payment + " are " + wrong
	}
	if wrong := o.misfit(o.stock, o.reservation, "RESERVED", "RELEASED"); wrong != "" {
		return "reservations of orders that are " + o.status + " with stock " + o.stock + " are " + wrong
	}
	return ""
}

// misfit is the status of an effect that its step cannot have; empty: it fits. The effect was read after the
// order, so it may be a move ahead.
func (o orderRow) misfit(step, effect, stands, undone string) string {
	fits := true
	switch step {
	case "SUCCESS":
		fits = effect == stands || effect == undone && o.status == "IN_PROGRESS" // it has failed since
	case "COMPENSATING":
		fits = effect == stands || effect == undone
	case "COMPENSATED":
		fits = effect != "" && effect != stands
	case "FAILED":
		fits = effect != stands || !o.settled()
	}
	if fits {
		return ""
	}
	return cmp.Or(effect, "missing")
}

// sameItems compares quantities by SKU.
func sameItems(a, b string) bool {
	x, okX := quantities(a)
	y, okY := quantities(b)
	return okX && okY && maps.Equal(x, y)
}

func quantities(text string) (map[string]int64, bool) {
	var lines []struct {
		SKU      string `json:"sku"`
		Quantity int64  `json:"quantity"`
	}
	if json.Unmarshal([]byte(text), &lines) != nil {
		return nil, false
	}
	sum := map[string]int64{}
	for _, l := range lines {
		sum[l.SKU] += l.Quantity
	}
	return sum, true
}

// auditOrders: every order has the effects of its state, no effect is without an
// order, and no order is late. Orders are read before their effects.
func (r *round) auditOrders(ctx context.Context) error {
	at, end, next := r.from(r.orders), r.end(), r.mark()
	doubts := map[id]string{}
	keep := map[id]bool{} // to be read again in the next round
	judge := func(orders []orderRow, strangers []id) {
		for _, s := range strangers {
			doubts[s] = noOrder
		}
		for _, o := range orders {
			r.report.Checked["orders"]++
			wrong := o.contradiction()
			if wrong != "" {
				doubts[o.id] = wrong
			}
			if !o.settled() {
				r.unsettled(o)
			}
			if (wrong != "" || !o.settled()) && o.id.before(next) {
				if len(keep) >= remembered {
					next = o.id.pred()
				} else {
					keep[o.id] = true
				}
			}
		}
	}
	for some := range slices.Chunk(slices.SortedFunc(maps.Keys(r.pending), order), page) {
		orders, strangers, err := r.inspect(ctx, some)
		if err != nil {
			return err
		}
		judge(orders, strangers)
	}
	for {
		orders, err := r.orderPage(ctx, at, end)
		if err != nil {
			return err
		}
		last := end.pred()
		if len(orders) == page {
			last = orders[len(orders)-1].id
		}
		strangers, err := r.effects(ctx, orders, `order_id > $1 AND order_id <= $2`, [16]byte(at), [16]byte(last))
		if err != nil {
			return err
		}
		n := len(orders)
		judge(slices.DeleteFunc(orders, func(o orderRow) bool { return r.pending[o.id] }), strangers) // those were judged above
		if n < page {
			break
		}
		at = last
	}
	if err := r.confirm(ctx, doubts); err != nil {
		return err
	}
	for _, one := range slices.SortedFunc(maps.Keys(doubts), order) {
		r.violate(OrderEffect, one.String(), "%s", doubts[one])
		if one.before(next) && len(keep) < remembered {
			keep[one] = true
		}
	}
	r.orders, r.pending = next, keep
	return nil
}

// confirm drops the doubts that pass: a redriven command has its effect a moment before it is compensated.
func (r *round) confirm(ctx context.Context, doubts map[id]string) error {
	fresh := map[id]bool{} // those of earlier rounds need no patience
	for one := range doubts {
		if !r.pending[one] {
			fresh[one] = true
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	return r.settle(ctx, func(ctx context.Context) (int, error) {
		for some := range slices.Chunk(slices.SortedFunc(maps.Keys(fresh), order), page) {
			orders, strangers, err := r.inspect(ctx, some)
			if err != nil {
				return 0, err
			}
			still := map[id]string{}
			for _, s := range strangers {
				still[s] = noOrder
			}
			for _, o := range orders {
				still[o.id] = o.contradiction()
			}
			for _, one := range some {
				if doubts[one] = still[one]; still[one] == "" {
					delete(doubts, one)
					delete(fresh, one)
				}
			}
		}
		return len(fresh), nil
	})
}

const noOrder = "payments or reservations stand for orders that do not exist"

// inspect reads orders and their effects by id.
func (r *round) inspect(ctx context.Context, ids []id) (orders []orderRow, strangers []id, err error) {
	if orders, err = r.ordersBy(ctx, orderColumns+`WHERE id = ANY($1)`, uuids(ids)); err != nil {
		return nil, nil, err
	}
	strangers, err = r.effects(ctx, orders, `order_id = ANY($1)`, uuids(ids))
	return orders, strangers, err
}

// unsettled judges an order that waits.
func (r *round) unsettled(o orderRow) {
	limit := r.o.OrderTimeout + r.o.Grace
	switch {
	case o.attention:
		r.report.Attention++
	case o.status == "IN_PROGRESS" && r.now.Sub(o.id.time()) > limit:
		r.violate(OrderLate, o.id.String(), "orders are IN_PROGRESS longer than their %s", r.o.OrderTimeout)
	case o.status != "IN_PROGRESS" && r.now.Sub(o.updated) > limit:
		r.violate(OrderLate, o.id.String(), "orders are FAILED, and an answer or a compensation is missing for more than %s", limit)
	default:
		r.report.Open++
	}
}

const orderColumns = `SELECT id, status, payment_status, stock_status, customer_id, amount, items, needs_attention, updated_at FROM orders `

func (r *round) orderPage(ctx context.Context, after, end id) (orders []orderRow, err error) {
	return r.ordersBy(ctx, orderColumns+`WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3`, [16]byte(after), [16]byte(end), page)
}

func (r *round) ordersBy(ctx context.Context, sql string, args ...any) (orders []orderRow, err error) {
	var o orderRow
	err = read(ctx, r.db.Order, "the orders", []any{(*[16]byte)(&o.id), &o.status, &o.payment, &o.stock, &o.customer, &o.amount, &o.items, &o.attention, &o.updated},
		func() error {
			orders = append(orders, o)
			return nil
		}, sql, args...)
	return orders, err
}

// effects fills in the payments and reservations that a condition selects; it returns the
// ids of effects that stand for no order.
func (r *round) effects(ctx context.Context, orders []orderRow, where string, args ...any) (strangers []id, err error) {
	at := make(map[id]*orderRow, len(orders))
	for i := range orders {
		at[orders[i].id] = &orders[i]
	}
	var one id
	var status, text string
	var amount int64
	if err := read(ctx, r.db.Payment, "the payments", []any{(*[16]byte)(&one), &status, &text, &amount}, func() error {
		if o := at[one]; o != nil {
			o.charge, o.chargedTo, o.charged = status, text, amount
		} else if status == "CHARGED" {
			strangers = append(strangers, one)
		}
		return nil
	}, `SELECT order_id, status, customer_id, amount FROM payments WHERE `+where, args...); err != nil {
		return nil, err
	}
	err = read(ctx, r.db.Stock, "the reservations", []any{(*[16]byte)(&one), &status, &text}, func() error {
		if o := at[one]; o != nil {
			o.reservation, o.reserved = status, text
		} else if status == "RESERVED" {
			strangers = append(strangers, one)
		}
		return nil
	}, `SELECT order_id, status, items::text FROM reservations WHERE `+where, args...)
	return strangers, err
}
