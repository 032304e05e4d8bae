package modelcheck

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"outboxsaga/events"
	"outboxsaga/order-service/order"
	"outboxsaga/payment-service/payment"
	"outboxsaga/stock-service/stock"

	"github.com/google/uuid"
)

// The model: one order of one item by one customer. Its state is what the three
// databases hold and which events exist, were handled, or are dead letters. The network is a
// set: any event that exists may be delivered at any time, in any order, any number
// of times. That covers delay, reordering, repetition by Kafka, Connect or Debezium, and a
// crash of a service between its commit and the commit of its offset (the event comes again); a
// crash before the commit leaves no trace at all. Besides, within budgets:
//
//   - a record may come again with a new event id (a copy);
//   - any delivery may end as a dead letter instead, to be redriven at any later time, or never;
//   - a compensation of a failed order may be sent that nobody has asked for, so also before
//     the command it belongs to (a replay);
//   - the order may time out or be cancelled at any time;
//   - at first the order is not visible to other transactions, although its events are on
//     their way already.
//
// The decisions are those of the services. What the consumer does around them (dedup by
// event id, effect and answers in one step, retry of an unknown order) is that of package
// inbox, in [world.handle].

const (
	orderID  = "00000000-0000-7000-8000-000000000001"
	customer = "alice"
	sku      = "book"
	amount   = 30
	quantity = 3
)

// kind is who handles an event: the index of a service.
type kind uint8

const (
	byOrder kind = iota
	byPayment
	byStock
	byNobody // order.dlt
)

// message is an event that may exist. Equal messages are told apart by their ordinal.
type message struct {
	events.Message
	ordinal int
	by      kind
}

// id is the event id of the i-th message.
func id(i int) uuid.UUID {
	return uuid.UUID{0, 0, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 1, byte(i)}
}

// state is one state of the whole system. Parts are indices of tables that hold each value once:
// states are compared and hashed many million times.
type state struct {
	order, payment, account, reservation, item uint16

	exists, handled, dead uint64 // messages, by bit
	twice                 bool   // a handler ran twice for one event id, without a redrive
	visible               bool
	copies, deaths        uint8 // budgets left
	redrives, replays     uint8
}

// table holds each value of one kind once.
type table[V comparable] struct {
	values []V
	index  map[V]uint16
}

func (t *table[V]) of(v V) uint16 {
	if t.index == nil {
		t.index = map[V]uint16{}
	}
	i, ok := t.index[v]
	if !ok {
		i = uint16(len(t.values))
		t.values, t.index[v] = append(t.values, v), i
	}
	return i
}

// rules are the decisions, so that a mutation can replace one.
type rules struct {
	succeeded   func(order.Order, order.Participant) order.Decision
	charge      func(payment.Payment, func(string) payment.Account, events.PaymentRequested) (payment.Decision, error)
	refund      func(payment.Payment, func(string) payment.Account, string) (payment.Decision, error)
	reserve     func(stock.Reservation, func(string) stock.Item, events.StockRequested) (stock.Decision, error)
	release     func(stock.Reservation, func(string) stock.Item, string) (stock.Decision, error)
	dedup       bool // an event id has its effect once
	retryUnseen bool // an event for an order that is not visible is tried again
}

func services() rules {
	return rules{order.Succeeded, payment.Charge, payment.Refund, stock.Reserve, stock.Release, true, true}
}

// world is a model with its tables.
type world struct {
	rules
	orders       table[order.Order]
	payments     table[payment.Payment]
	accounts     table[payment.Account]
	reservations table[stock.Reservation]
	items        table[stock.Item]

	messages []message
	numbers  map[string]int // kind of message and ordinal → index
}

// budgets bound what may go wrong in one run.
type budgets struct{ copies, deaths, redrives, replays uint8 }

// start is the order just placed: two commands on their way, the order not yet visible.
func (w *world) start(money, goods int64, b budgets) state {
	w.numbers = map[string]int{}
	s := state{copies: b.copies, deaths: b.deaths, redrives: b.redrives, replays: b.replays}
	pay := w.send(&s, events.RequestPayment(orderID, customer, amount))
	get := w.send(&s, events.RequestStock(orderID, []events.Item{{SKU: sku, Quantity: quantity}}))
	s.order = w.orders.of(order.New(orderID, id(pay), id(get)))
	s.payment = w.payments.of(payment.Payment{})
	s.reservation = w.reservations.of(stock.Reservation{})
	s.account = w.accounts.of(payment.Account{CustomerID: customer, Balance: money, Deposited: money})
	s.item = w.items.of(stock.Item{SKU: sku, Available: goods, Received: goods})
	return s
}

// send makes a message exist, a further one if an equal one does. It returns its index.
func (w *world) send(s *state, m events.Message) int {
	for ordinal := 0; ; ordinal++ {
		name := fmt.Sprintf("%s %+v %d", m.Type, m.Payload, ordinal)
		i, known := w.numbers[name]
		if !known {
			i = len(w.messages)
			if i == 64 {
				panic("more than 64 messages: something sends without end")
			}
			w.numbers[name] = i
			w.messages = append(w.messages, message{m, ordinal, handlerOf(m.Topic)})
		}
		if s.exists&(1<<i) == 0 {
			s.exists |= 1 << i
			return i
		}
	}
}

func handlerOf(topic string) kind {
	switch topic {
	case events.TopicPayment, events.TopicPaymentCompensation:
		return byPayment
	case events.TopicStock, events.TopicStockCompensation:
		return byStock
	case events.TopicOrderDLT:
		return byNobody
	}
	return byOrder
}

// errUnseen: the order is not visible (yet).
var errUnseen = errors.New("unseen")

// deliver brings message i to its handler, as the inbox does. changed is false where that
// leaves everything as it was.
func (w *world) deliver(s state, i int) (next state, changed bool, err error) {
	bit := uint64(1) << i
	if s.handled&bit != 0 {
		if w.dedup {
			return s, false, nil
		}
		s.twice = true
	}
	err = w.handle(&s, i)
	if errors.Is(err, errUnseen) {
		if w.retryUnseen {
			return s, false, nil // it is tried again
		}
		err = nil
	}
	s.handled |= bit
	return s, true, err
}

// handle runs the decision for message i and applies it in one step.
func (w *world) handle(s *state, i int) error {
	m := w.messages[i]
	switch m.by {
	case byPayment:
		account := func(string) payment.Account { return w.accounts.values[s.account] }
		var d payment.Decision
		var err error
		switch body := m.Payload.(type) {
		case events.PaymentRequested:
			d, err = w.charge(w.payments.values[s.payment], account, body)
		case events.CompensationRequested:
			d, err = w.refund(w.payments.values[s.payment], account, body.OrderID)
		}
		if err != nil {
			return err
		}
		s.payment = w.payments.of(d.Payment)
		for _, a := range d.Accounts {
			s.account = w.accounts.of(a)
		}
		w.sendAll(s, d.Send)
	case byStock:
		shelf := func(string) stock.Item { return w.items.values[s.item] }
		var d stock.Decision
		var err error
		switch body := m.Payload.(type) {
		case events.StockRequested:
			d, err = w.reserve(w.reservations.values[s.reservation], shelf, body)
		case events.CompensationRequested:
			d, err = w.release(w.reservations.values[s.reservation], shelf, body.OrderID)
		}
		if err != nil {
			return err
		}
		s.reservation = w.reservations.of(d.Reservation)
		for _, item := range d.Items {
			s.item = w.items.of(item)
		}
		w.sendAll(s, d.Send)
	case byOrder:
		if !s.visible {
			return errUnseen
		}
		w.decide(s, w.answered(w.orders.values[s.order], m))
	}
	return nil
}

// answered leads an answer to the decision of order-service, as order/saga.go does.
func (w *world) answered(o order.Order, m message) order.Decision {
	who := order.Payment
	if strings.HasPrefix(m.Topic, "stock") {
		who = order.Stock
	}
	switch body := m.Payload.(type) {
	case events.PaymentSucceeded, events.StockSucceeded:
		return w.succeeded(o, who)
	case events.Refused:
		return order.Refused(o, who, body.Reason)
	case events.Compensated:
		return order.Compensated(o, who)
	case events.DeadLettered:
		return order.DeadLettered(o, who, body)
	}
	panic(fmt.Sprintf("no decision for %T", m.Payload))
}

func (w *world) decide(s *state, d order.Decision) {
	s.order = w.orders.of(d.Order)
	w.sendAll(s, d.Send)
}

func (w *world) sendAll(s *state, messages []events.Message) {
	for _, m := range messages {
		w.send(s, m)
	}
}

// bury makes message i a dead letter: its service puts it aside and says so.
func (w *world) bury(s state, i int) state {
	m := w.messages[i]
	s.deaths--
	s.handled |= 1 << i
	s.dead |= 1 << i
	letter := events.DeadLettered{OrderID: orderID, EventID: id(i).String(), EventType: m.Type, Topic: m.Topic}
	switch m.by {
	case byPayment:
		w.send(&s, events.Message{Topic: events.TopicPaymentDLT, Type: events.TypePaymentDeadLettered, OrderID: orderID, Payload: events.DeadLettered(letter)})
	case byStock:
		w.send(&s, events.Message{Topic: events.TopicStockDLT, Type: events.TypeStockDeadLettered, OrderID: orderID, Payload: events.DeadLettered(letter)})
	}
	return s
}

// action is a step from one state to another.
type action struct {
	what string
	i    int // message; -1: none
}

// each calls visit for every step that leads from s to another state, and reports an
// error that a decision has returned.
func (w *world) each(s state, visit func(action, state)) error {
	for rest := s.exists; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest)
		bit := uint64(1) << i
		if w.messages[i].by == byNobody {
			continue
		}
		if s.dead&bit == 0 {
			next, changed, err := w.deliver(s, i)
			if err != nil {
				return fmt.Errorf("deliver %s: %w", w.name(i), err)
			}
			if changed {
				visit(action{"deliver", i}, next)
			}
		}
		if s.handled&bit == 0 && s.deaths > 0 {
			visit(action{"dead letter", i}, w.bury(s, i))
		}
		if s.dead&bit != 0 && s.redrives > 0 {
			next := s
			if err := w.handle(&next, i); err == nil {
				next.dead &^= bit
				next.redrives--
				visit(action{"redrive", i}, next)
			} else if !errors.Is(err, errUnseen) {
				return fmt.Errorf("redrive %s: %w", w.name(i), err)
			}
		}
		if s.copies > 0 {
			next := s
			next.copies--
			w.send(&next, w.messages[i].Message)
			visit(action{"copy with a new id", i}, next)
		}
	}
	if !s.visible {
		next := s
		next.visible = true
		visit(action{"becomes visible", -1}, next)
		return nil
	}
	o := w.orders.values[s.order]
	if o.Status == order.InProgress {
		for what, decide := range map[string]func(order.Order) order.Decision{"timeout": order.Expire, "cancel": order.Cancel} {
			next := s
			w.decide(&next, decide(o))
			visit(action{what, -1}, next)
		}
	}
	if o.Status == order.Failed && s.replays > 0 {
		for _, m := range []events.Message{events.CompensatePayment(orderID), events.CompensateStock(orderID)} {
			next := s
			next.replays--
			visit(action{"replay of a compensation", w.send(&next, m)}, next)
		}
	}
	return nil
}

func (w *world) name(i int) string {
	m := w.messages[i]
	return fmt.Sprintf("%s #%d %+v", m.Type, m.ordinal, m.Payload)
}
