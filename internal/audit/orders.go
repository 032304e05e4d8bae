package audit

import (
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
	charge, chargedTo      string // the payment's status and customer
	charged                int64
	reservation, reserved  string // the reservation's status and items
}

func (o orderRow) settled() bool { return !open(o.payment) && !open(o.stock) }

func open(step string) bool { return step == "IN_PROGRESS" || step == "COMPENSATING" }

// contradiction says what does not fit between a settled order and its effects; empty: all fits.
func (o orderRow) contradiction() string {
	if o.status == "SUCCESS" {
		switch {
		case o.charge != "CHARGED" || o.charged != o.amount || o.chargedTo != o.customer:
			return "orders are SUCCESS and their payment is not CHARGED with their amount to their customer"
		case o.reservation != "RESERVED" || !sameItems(o.items, o.reserved):
			return "orders are SUCCESS and their items are not RESERVED"
		}
		return ""
	}
	switch {
	case o.charge == "CHARGED":
		return "orders are FAILED and settled, and their payment is CHARGED"
	case o.reservation == "RESERVED":
		return "orders are FAILED and settled, and their items are RESERVED"
	}
	return ""
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

// auditOrders: every settled order has exactly the effects of its state, no effect is without an
// order, and no order is late. Orders are read before their effects.
func (r *round) auditOrders(ctx context.Context) error {
	end := r.now.Add(-r.o.Grace)
	at := r.from(r.orders)
	next := mark(end)
	doubtful := map[id]string{}
	for {
		orders, err := r.orderPage(ctx, at, floor(end))
		if err != nil {
			return err
		}
		last := floor(end)
		if len(orders) == page {
			last = orders[len(orders)-1].id
		}
		strangers, err := r.effects(ctx, orders, at, last)
		if err != nil {
			return err
		}
		for _, s := range strangers {
			doubtful[s] = "payments or reservations stand for orders that do not exist"
		}
		for _, o := range orders {
			r.report.Checked["orders"]++
			if o.settled() {
				if wrong := o.contradiction(); wrong != "" {
					doubtful[o.id] = wrong
				}
				continue
			}
			if o.id.before(next) {
				next = o.id.pred() // it is read again in the next round
			}
			r.unsettled(o)
		}
		if len(orders) < page {
			break
		}
		at = last
	}
	if err := r.confirm(ctx, doubtful); err != nil {
		return err
	}
	r.orders = next
	return nil
}

// unsettled judges an order that waits.
func (r *round) unsettled(o orderRow) {
	limit := r.o.OrderTimeout + r.o.Grace
	age := r.now.Sub(time.UnixMilli(int64(o.id[0])<<40 | int64(o.id[1])<<32 | int64(o.id[2])<<24 | int64(o.id[3])<<16 | int64(o.id[4])<<8 | int64(o.id[5])))
	switch {
	case o.attention:
		r.report.Attention++
	case o.status == "IN_PROGRESS" && age > limit:
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

// effects fills in payments and reservations of orders after one id and up to another; it returns the
// ids of effects that stand for no order.
func (r *round) effects(ctx context.Context, orders []orderRow, after, last id) (strangers []id, err error) {
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
	}, `SELECT order_id, status, customer_id, amount FROM payments WHERE order_id > $1 AND order_id <= $2`, [16]byte(after), [16]byte(last)); err != nil {
		return nil, err
	}
	err = read(ctx, r.db.Stock, "the reservations", []any{(*[16]byte)(&one), &status, &text}, func() error {
		if o := at[one]; o != nil {
			o.reservation, o.reserved = status, text
		} else if status == "RESERVED" {
			strangers = append(strangers, one)
		}
		return nil
	}, `SELECT order_id, status, items::text FROM reservations WHERE order_id > $1 AND order_id <= $2`, [16]byte(after), [16]byte(last))
	return strangers, err
}

// confirmed bounds what is looked at one by one.
const confirmed = 1000

// confirm looks once more at what did not fit: a redriven command has its effect a moment before it is compensated.
func (r *round) confirm(ctx context.Context, doubtful map[id]string) error {
	if len(doubtful) == 0 {
		return nil
	}
	if err := wait(ctx); err != nil {
		return err
	}
	for i, one := range slices.SortedFunc(maps.Keys(doubtful), order) {
		if i >= confirmed { // so many are not all under way
			r.violate(OrderEffect, one.String(), "%s", doubtful[one])
			continue
		}
		orders, err := r.ordersBy(ctx, orderColumns+`WHERE id = $1`, [16]byte(one))
		if err != nil {
			return err
		}
		strangers, err := r.effects(ctx, orders, one.pred(), one)
		if err != nil {
			return err
		}
		switch {
		case len(strangers) > 0:
			r.violate(OrderEffect, one.String(), "%s", doubtful[one])
		case len(orders) == 1 && orders[0].settled() && orders[0].contradiction() != "":
			r.violate(OrderEffect, one.String(), "%s", orders[0].contradiction())
		}
	}
	return nil
}
