package modelcheck

import (
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
	"outboxsaga/order-service/order"
	"outboxsaga/outbox"
	"outboxsaga/payment-service/payment"
	"outboxsaga/stock-service/stock"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// The real handlers on real PostgreSQL, against the pure decisions in memory: whatever is
// placed, delivered in batches of any cut, again, with new ids, cancelled, put aside, redriven or
// replayed, after every step the tables hold what the decisions give, and the outbox what they send.
func TestHandlersDoWhatTheDecisionsSay(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("60"); err != nil { // of some dozen steps each
			t.Fatal(err)
		}
	}
	h := openHandlers(t)
	rapid.Check(t, func(t *rapid.T) {
		r := h.fresh(t)
		t.Repeat(map[string]func(*rapid.T){
			"place":   r.place,
			"deliver": r.deliverSome,
			"cancel":  r.cancel,
			"bury":    r.bury,
			"redrive": r.redrive,
			"replay":  r.replay,
			"":        r.compare,
		})
		r.drain(t)
	})
}

// handlers are the three services' sides that consume, on databases of their own.
type handlers struct {
	saga    *order.Saga
	stock   *stock.Store
	payment *payment.Store
	sides   map[kind]servicetest.Participant
}

func openHandlers(t *testing.T) *handlers {
	var migrations [][]provision.Migrations
	for _, svc := range system.Services() {
		migrations = append(migrations, svc.Database.Migrations)
	}
	pools := servicetest.Pools(t, migrations...)
	orders, stocks, payments := pools[0], pools[1], pools[2]
	saga := order.NewSaga(service.Runtime{Pool: orders, Log: slog.New(slog.DiscardHandler), Draining: make(chan struct{})}, time.Hour)
	h := &handlers{saga: saga, stock: stock.NewStore(stocks), payment: payment.NewStore(payments), sides: map[kind]servicetest.Participant{
		byOrder:   {Pool: orders, Decode: order.Decode, Batch: saga.NewBatch},
		byStock:   {Pool: stocks, Decode: stock.Decode, Batch: stock.NewBatch},
		byPayment: {Pool: payments, Decode: payment.Decode, Batch: payment.NewBatch},
	}}
	ctx, stop := context.WithCancel(context.Background())
	work := append(saga.Background(), h.stock.Run, h.payment.Run)
	done := make(chan error, len(work))
	for _, f := range work {
		go func() { done <- f(ctx) }()
	}
	t.Cleanup(func() {
		stop()
		for range work {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return h
}

// run is one schedule: what should be in the databases, and all that was ever sent.
type run struct {
	*handlers
	ctx     context.Context
	network []event
	known   map[uuid.UUID]bool // ids in network
	handled map[uuid.UUID]bool
	dead    map[uuid.UUID]event

	orders       map[string]order.Order
	payments     map[string]payment.Payment
	reservations map[string]stock.Reservation
	accounts     map[string]payment.Account
	items        map[string]stock.Item
}

// event is one of the network, with who handles it.
type event struct {
	inbox.Event
	by kind
}

var customers, skus = []string{"rich", "poor"}, []string{"plenty", "scarce"}

func (h *handlers) fresh(t *rapid.T) *run {
	r := &run{
		handlers: h, ctx: context.Background(), known: map[uuid.UUID]bool{}, handled: map[uuid.UUID]bool{}, dead: map[uuid.UUID]event{},
		orders: map[string]order.Order{}, payments: map[string]payment.Payment{}, reservations: map[string]stock.Reservation{},
		accounts: map[string]payment.Account{}, items: map[string]stock.Item{},
	}
	for by, tables := range map[kind]string{byOrder: "orders", byStock: "items, reservations", byPayment: "accounts, payments"} {
		if _, err := h.sides[by].Pool.Exec(r.ctx, "TRUNCATE outbox, inbox, "+tables); err != nil {
			t.Fatal(err)
		}
	}
	for i, amount := range []int64{10_000, 40} {
		a, err := h.payment.Deposit(r.ctx, payment.DepositRequest{CustomerID: customers[i], Amount: amount})
		if err != nil {
			t.Fatal(err)
		}
		r.accounts[a.CustomerID] = a
	}
	for i, quantity := range []int64{1_000, 4} {
		item, err := h.stock.Receive(r.ctx, stock.Receipt{SKU: skus[i], Quantity: quantity})
		if err != nil {
			t.Fatal(err)
		}
		r.items[item.SKU] = item
	}
	return r
}

func (r *run) place(t *rapid.T) {
	if len(r.orders) == 6 {
		t.Skip("enough orders")
	}
	line := order.Line{SKU: rapid.SampledFrom(skus).Draw(t, "sku"), Quantity: rapid.Int64Range(1, 3).Draw(t, "quantity"), UnitPrice: 10}
	placed, err := r.saga.Place(r.ctx, order.Placement{CustomerID: rapid.SampledFrom(customers).Draw(t, "customer"), Lines: []order.Line{line}, Amount: line.Quantity * line.UnitPrice})
	if err != nil {
		t.Fatal(err)
	}
	command := map[string]uuid.UUID{}
	for _, e := range r.collect(t, byOrder) {
		command[e.Topic] = e.ID
	}
	if len(command) != 2 {
		t.Fatalf("a new order has sent %v", command)
	}
	id := placed.ID.String()
	r.orders[id] = order.New(id, command[events.TopicPayment], command[events.TopicStock])
}

// collect reads what a service has sent since the last call, into the network.
func (r *run) collect(t *rapid.T, by kind) []event {
	rows, err := r.sides[by].Pool.Query(r.ctx, `SELECT id, topic, aggregate_id, type, payload FROM outbox ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	var found []event
	var e inbox.Event
	var payload string
	if _, err = pgx.ForEachRow(rows, []any{&e.ID, &e.Topic, &e.Key, &e.Type, &payload}, func() error {
		if !r.known[e.ID] {
			r.known[e.ID] = true
			e.Payload = []byte(payload)
			found = append(found, event{e, handlerOf(e.Topic)})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.network = append(r.network, found...)
	return found
}

// deliverSome delivers a batch of any events of one service: some handled before, some
// twice in the batch, some with a new id.
func (r *run) deliverSome(t *rapid.T) {
	by := rapid.SampledFrom([]kind{byOrder, byPayment, byStock}).Draw(t, "service")
	var theirs []event
	for _, e := range r.network {
		if _, dead := r.dead[e.ID]; e.by == by && !dead {
			theirs = append(theirs, e)
		}
	}
	if len(theirs) == 0 {
		t.Skip("nothing for it")
	}
	var batch []event
	for range rapid.IntRange(1, 8).Draw(t, "size") {
		e := theirs[rapid.IntRange(0, len(theirs)-1).Draw(t, "event")]
		if rapid.IntRange(0, 9).Draw(t, "new id") == 0 {
			e.ID = outbox.NewID()
		}
		batch = append(batch, e)
	}
	r.deliver(t, by, false, batch...)
}

// deliver brings a batch to its handler, as the consumer does: ids, effect and answers in
// one transaction. A redriven event's id is in the inbox already.
func (r *run) deliver(t *rapid.T, by kind, redriven bool, batch ...event) {
	side := r.sides[by]
	received := make([]inbox.Event, len(batch))
	ids := make([]uuid.UUID, len(batch))
	for i, e := range batch {
		var err error
		received[i], ids[i] = e.Event, e.ID
		if received[i].Body, err = side.Decode(e.Event); err != nil {
			t.Fatal(err)
		}
	}
	work := side.Batch(received)
	fresh := map[uuid.UUID]bool{}
	err := service.Transact(r.ctx, side.Pool, func(b *pgx.Batch) {
		b.Queue(`INSERT INTO inbox (event_id) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING RETURNING event_id`, ids).Query(func(rows pgx.Rows) error {
			found, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
			for _, id := range found {
				fresh[id] = true
			}
			return err
		})
		work.Load(b)
	}, func(b *pgx.Batch) error {
		var send []outbox.Event
		for _, ev := range received {
			if !fresh[ev.ID] && !redriven {
				continue
			}
			delete(fresh, ev.ID)
			out, err := work.Decide(ev)
			if err != nil {
				return err
			}
			send = append(send, out...)
		}
		work.Save(b)
		return outbox.Queue(b, send...)
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, ev := range received {
		if r.handled[ev.ID] && !redriven {
			continue
		}
		r.handled[ev.ID] = true
		for _, m := range r.decide(t, by, ev) {
			payload, err := json.Marshal(m.Payload)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, m.Topic+" "+string(payload))
		}
	}
	var got []string
	for _, e := range r.collect(t, by) {
		got = append(got, e.Topic+" "+string(e.Payload))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("sent\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// decide applies an event to the model and returns what it sends.
func (r *run) decide(t *rapid.T, by kind, ev inbox.Event) []events.Message {
	switch by {
	case byPayment:
		account := func(id string) payment.Account { return r.accounts[id] }
		var d payment.Decision
		var err error
		if cmd, ok := ev.Body.(events.PaymentRequested); ok {
			d, err = payment.Charge(r.payments[ev.Key], account, cmd)
		} else {
			d, err = payment.Refund(r.payments[ev.Key], account, ev.Key)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.payments[ev.Key] = d.Payment
		for _, a := range d.Accounts {
			r.accounts[a.CustomerID] = a
		}
		return d.Send
	case byStock:
		shelf := func(sku string) stock.Item { return r.items[sku] }
		var d stock.Decision
		var err error
		if cmd, ok := ev.Body.(events.StockRequested); ok {
			d, err = stock.Reserve(r.reservations[ev.Key], shelf, cmd)
		} else {
			d, err = stock.Release(r.reservations[ev.Key], shelf, ev.Key)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.reservations[ev.Key] = d.Reservation
		for _, item := range d.Items {
			r.items[item.SKU] = item
		}
		return d.Send
	}
	w := world{rules: services()}
	d := w.answered(r.orders[ev.Key], message{Message: events.Message{Topic: ev.Topic, Type: ev.Type, Payload: ev.Body}})
	r.orders[ev.Key] = d.Order
	return d.Send
}

// anOrder draws one of the orders that ok accepts.
func (r *run) anOrder(t *rapid.T, ok func(order.Order) bool) order.Order {
	var some []string
	for _, id := range slices.Sorted(maps.Keys(r.orders)) {
		if ok(r.orders[id]) {
			some = append(some, id)
		}
	}
	if len(some) == 0 {
		t.Skip("no such order")
	}
	return r.orders[some[rapid.IntRange(0, len(some)-1).Draw(t, "order")]]
}

func (r *run) cancel(t *rapid.T) {
	o := r.anOrder(t, func(order.Order) bool { return true })
	got, err := r.saga.Cancel(r.ctx, uuid.MustParse(o.ID), "")
	if err != nil {
		t.Fatal(err)
	}
	d := order.Cancel(o)
	r.orders[o.ID] = d.Order
	if sent := r.collect(t, byOrder); got != d.Order || len(sent) != len(d.Send) {
		t.Fatalf("cancel gives %+v and %d events, want %+v and %d", got, len(sent), d.Order, len(d.Send))
	}
}

// bury puts an event aside that was not handled yet, and tells order-service.
func (r *run) bury(t *rapid.T) {
	var open []event
	for _, e := range r.network {
		if !r.handled[e.ID] && (e.by == byPayment || e.by == byStock) {
			open = append(open, e)
		}
	}
	if len(open) == 0 || len(r.dead) == 3 {
		t.Skip("nothing to put aside")
	}
	e := open[rapid.IntRange(0, len(open)-1).Draw(t, "event")]
	letter := events.DeadLettered{OrderID: e.Key, EventID: e.ID.String(), EventType: e.Type, Topic: e.Topic, Error: "poison", Attempts: 1, FailedAt: time.Now().UTC()}
	m := events.Message{Topic: events.TopicPaymentDLT, Type: events.TypePaymentDeadLettered, OrderID: e.Key, Payload: letter}
	if e.by == byStock {
		m.Topic, m.Type = events.TopicStockDLT, events.TypeStockDeadLettered
	}
	row, err := service.Outbox(uuid.Nil, m, "")
	if err != nil {
		t.Fatal(err)
	}
	err = pgx.BeginFunc(r.ctx, r.sides[e.by].Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(r.ctx, `INSERT INTO inbox (event_id) VALUES ($1)`, e.ID); err != nil {
			return err
		}
		return outbox.Write(r.ctx, tx, row)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.handled[e.ID], r.dead[e.ID] = true, e
	r.collect(t, e.by)
}

func (r *run) redrive(t *rapid.T) {
	var dead []event
	for _, e := range r.network {
		if _, ok := r.dead[e.ID]; ok {
			dead = append(dead, e)
		}
	}
	if len(dead) == 0 {
		t.Skip("no dead letter")
	}
	e := dead[rapid.IntRange(0, len(dead)-1).Draw(t, "dead letter")]
	delete(r.dead, e.ID)
	r.deliver(t, e.by, true, e)
}

// replay sends a compensation of a failed order that nobody has asked for.
func (r *run) replay(t *rapid.T) {
	o := r.anOrder(t, func(o order.Order) bool { return o.Status == order.Failed })
	m := events.CompensatePayment(o.ID)
	if rapid.Bool().Draw(t, "stock") {
		m = events.CompensateStock(o.ID)
	}
	row, err := service.Outbox(uuid.Nil, m, "")
	if err != nil {
		t.Fatal(err)
	}
	r.network = append(r.network, event{inbox.Event{ID: row.ID, Type: row.Type, Topic: row.Topic, Key: row.AggregateID, Payload: row.Payload}, handlerOf(row.Topic)})
}

// compare holds the tables against the model.
func (r *run) compare(t *rapid.T) {
	same(t, "orders", rows(t, r, byOrder, func(o order.Order) string { return o.ID }, func(row pgx.CollectableRow) (o order.Order, err error) {
		err = row.Scan(&o.ID, &o.Status, &o.Payment.Status, &o.Payment.Command, &o.Stock.Status, &o.Stock.Command, &o.FailureReason, &o.NeedsAttention)
		return o, err
	}, `SELECT id::text, status, payment_status, payment_command, stock_status, stock_command, failure_reason, needs_attention FROM orders`), r.orders)
	same(t, "payments", rows(t, r, byPayment, func(p payment.Payment) string { return p.OrderID }, pgx.RowToStructByPos[payment.Payment],
		`SELECT order_id::text, customer_id, amount, status, reason FROM payments`), r.payments)
	same(t, "accounts", rows(t, r, byPayment, func(a payment.Account) string { return a.CustomerID }, pgx.RowToStructByPos[payment.Account],
		`SELECT customer_id, balance, charged, deposited FROM accounts`), r.accounts)
	same(t, "reservations", rows(t, r, byStock, func(v stock.Reservation) string { return v.OrderID }, pgx.RowToStructByPos[stock.Reservation],
		`SELECT order_id::text, status, reason, items::text FROM reservations`), r.reservations)
	same(t, "items", rows(t, r, byStock, func(i stock.Item) string { return i.SKU }, pgx.RowToStructByPos[stock.Item],
		`SELECT sku, available, reserved, received FROM items`), r.items)
}

func rows[V any](t *rapid.T, r *run, by kind, key func(V) string, scan pgx.RowToFunc[V], sql string) map[string]V {
	found, err := r.sides[by].Pool.Query(r.ctx, sql)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(found, scan)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]V{}
	for _, v := range all {
		m[key(v)] = v
	}
	return m
}

func same[V comparable](t *rapid.T, what string, got, want map[string]V) {
	if !maps.Equal(got, want) {
		t.Fatalf("%s are\n  %+v\nwant\n  %+v", what, got, want)
	}
}

// drain redrives and delivers all that is left, and looks at how the orders end.
func (r *run) drain(t *rapid.T) {
	for _, e := range r.network {
		if _, ok := r.dead[e.ID]; ok {
			delete(r.dead, e.ID)
			r.deliver(t, e.by, true, e)
		}
	}
	for i := 0; i < len(r.network); i++ { // it grows meanwhile
		if e := r.network[i]; !r.handled[e.ID] {
			r.deliver(t, e.by, false, e)
		}
	}
	r.compare(t)
	for id, o := range r.orders {
		charged, reserved := r.payments[id].Status == payment.Charged, r.reservations[id].Status == stock.Reserved
		if !o.Settled() || charged != (o.Status == order.Success) || reserved != (o.Status == order.Success) {
			t.Fatalf("everything is delivered, but order %s is %s, payment %s (charged %t), stock %s (reserved %t)",
				id, o.Status, o.Payment.Status, charged, o.Stock.Status, reserved)
		}
	}
}
