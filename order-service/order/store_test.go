package order_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/order-service/order"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"
)

// row is one of the matrix: the answers that come and what is left at the end.
type row struct {
	name    string
	answers func(id string) []events.Message // in the order in which they come
	want    string
	sent    []string // compensations
	settled bool
}

func matrix() []row {
	paid := func(id string) events.Message { return events.PaymentSuccess(id, 3000) }
	poor := func(id string) events.Message { return events.PaymentRefusal(id, "insufficient_funds") }
	refunded := func(id string) events.Message { return events.PaymentCompensation(id, "refunded") }
	reserved := func(id string) events.Message { return events.StockSuccess(id) }
	empty := func(id string) events.Message { return events.StockRefusal(id, "insufficient_stock") }
	released := func(id string) events.Message { return events.StockCompensation(id, "released") }
	answers := func(of ...func(string) events.Message) func(string) []events.Message {
		return func(id string) (all []events.Message) {
			for _, f := range of {
				all = append(all, f(id))
			}
			return all
		}
	}
	const poorText, emptyText = ", insufficient_funds", ", insufficient_stock"
	stock, payment := []string{"stock.compensation"}, []string{"payment.compensation"}
	return []row{
		{"1", answers(reserved, poor, released), "FAILED payment FAILED, stock COMPENSATED" + poorText, stock, true},
		{"1, not acknowledged", answers(reserved, poor), "FAILED payment FAILED, stock COMPENSATING" + poorText, stock, false},
		{"2", answers(poor, reserved, released), "FAILED payment FAILED, stock COMPENSATED" + poorText, stock, true},
		{"2, waiting", answers(poor), "FAILED payment FAILED, stock IN_PROGRESS" + poorText, nil, false},
		{"3", answers(poor, empty), "FAILED payment FAILED, stock FAILED" + poorText, nil, true},
		{"4", answers(paid, empty, refunded), "FAILED payment COMPENSATED, stock FAILED" + emptyText, payment, true},
		{"5", answers(empty, poor), "FAILED payment FAILED, stock FAILED" + emptyText, nil, true},
		{"6", answers(empty, paid, refunded), "FAILED payment COMPENSATED, stock FAILED" + emptyText, payment, true},
		{"8", answers(paid, reserved), "SUCCESS payment SUCCESS, stock SUCCESS", nil, true},
		{"8, the other way round", answers(reserved, paid), "SUCCESS payment SUCCESS, stock SUCCESS", nil, true},
		{"8, half", answers(paid), "IN_PROGRESS payment SUCCESS, stock IN_PROGRESS", nil, false},
	}
}

func TestMatrixOnPostgres(t *testing.T) {
	o := open(t, time.Hour)
	for _, r := range matrix() {
		for _, together := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, together %t", r.name, together), func(t *testing.T) {
				id := o.place(t)
				answers := r.answers(id.String())
				if together {
					o.deliver(t, answers...)
				} else {
					for _, m := range answers {
						o.deliver(t, m)
					}
				}
				check := func(when string) {
					t.Helper()
					if got := o.state(t, id); got != r.want {
						t.Errorf("%s: %s, want %s", when, got, r.want)
					}
					if got, want := o.sent(t, id), append([]string{"payment", "stock"}, r.sent...); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
						t.Errorf("%s: sent %q, want %q", when, got, want)
					}
					if v := o.view(t, id); v.Settled != r.settled {
						t.Errorf("%s: settled %t", when, v.Settled)
					}
				}
				check("at first")
				o.deliver(t, answers...) // again, with new ids
				check("again")
			})
		}
	}
}

func TestPlacingIsOneTransaction(t *testing.T) {
	o := open(t, time.Hour)
	p := placement()
	p.Lines = append(p.Lines, order.Line{SKU: "pen", Quantity: 1, UnitPrice: 5})
	p.Amount += 5
	p.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	placed, err := o.Place(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	id := placed.ID.String()
	got := servicetest.Text(t, o.Pool, `SELECT string_agg(topic || ' ' || type || ' ' || aggregate_type || ' ' || payload || ' ' || traceparent, e'\n' ORDER BY id) FROM outbox
		WHERE aggregate_id = $1 AND id IN ($2, $3)`, id, [16]byte(placed.Commands[0]), [16]byte(placed.Commands[1]))
	want := strings.Join([]string{
		`payment payment.requested order {"order_id":"` + id + `","customer_id":"alice","amount":3005} ` + p.Traceparent,
		`stock stock.requested order {"order_id":"` + id + `","items":[{"sku":"book","quantity":2},{"sku":"pen","quantity":1}]} ` + p.Traceparent,
	}, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if payment, stock := o.commands(t, placed.ID); payment != placed.Commands[0].String() || stock != placed.Commands[1].String() {
		t.Error(payment, stock, placed.Commands)
	}
}

// An order that PostgreSQL refuses takes none of the others with it, and leaves no event.
func TestOneBadPlacementDoesNotFailTheOthers(t *testing.T) {
	o := open(t, time.Hour)
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			p := placement()
			if i%20 == 0 {
				p.Amount = 0 // the CHECK refuses it
			}
			if _, err := o.Place(t.Context(), p); (err != nil) != (i%20 == 0) {
				t.Error(i, err)
			}
		})
	}
	all.Wait()
	if got := servicetest.Text(t, o.Pool, `SELECT (SELECT count(*) FROM orders) || ' ' || (SELECT count(*) FROM outbox)`); got != "57 114" {
		t.Error(got, "orders and events")
	}
}

// An event may come before its order is visible: that is an error to try again, and changes nothing.
func TestAnswerForAnUnknownOrder(t *testing.T) {
	o := open(t, time.Hour)
	id := outbox.NewID()
	letter := events.DeadLettered{OrderID: id.String(), EventID: outbox.NewID().String(), EventType: events.TypeStockRequested, Topic: "stock"}
	for _, m := range []events.Message{
		events.PaymentSuccess(id.String(), 1), events.StockRefusal(id.String(), "x"), events.PaymentCompensation(id.String(), "refunded"),
		{Topic: events.TopicStockDLT, Type: events.TypeStockDeadLettered, OrderID: id.String(), Payload: letter},
	} {
		_, err := o.Deliver(t.Context(), m)
		if err == nil || inbox.IsPermanent(err) || !strings.Contains(err.Error(), id.String()) {
			t.Errorf("%s: %v", m.Type, err)
		}
	}
	if n := servicetest.Text(t, o.Pool, `SELECT count(*)::text FROM orders`); n != "0" {
		t.Error(n)
	}
}

func letter(topic, eventType string, d events.DeadLettered) events.Message {
	return events.Message{Topic: topic, Type: eventType, OrderID: d.OrderID, Payload: d}
}

func TestDeadLetterOfACommandAndItsRedrive(t *testing.T) {
	o := open(t, time.Hour)
	id := o.place(t)
	payment, _ := o.commands(t, id)
	o.deliver(t, events.StockSuccess(id.String()))
	d := events.DeadLettered{OrderID: id.String(), EventType: events.TypePaymentRequested, Error: strings.Repeat("ä\n\x00\"", 1000)}
	d.EventID = outbox.NewID().String() // of a copy
	o.deliver(t, letter(events.TopicPaymentDLT, events.TypePaymentDeadLettered, d))
	if got := o.state(t, id); got != "IN_PROGRESS payment IN_PROGRESS, stock SUCCESS" {
		t.Fatal(got)
	}
	d.EventID = payment
	o.deliver(t, letter(events.TopicPaymentDLT, events.TypePaymentDeadLettered, d))
	if got := o.state(t, id); got != "FAILED payment FAILED, stock COMPENSATING, payment_dead_lettered" {
		t.Fatal(got)
	}
	for _, text := range o.view(t, id).Timeline {
		if e := decodeEntry(t, text); len(e.Reason) > 510 || e.Event == events.TypePaymentDeadLettered && !strings.HasPrefix(e.Reason, "ä\n\x00\"ä") {
			t.Errorf("reason %q", e.Reason)
		}
	}
	// Someone redrives the command: the money is charged, and must be given back.
	o.deliver(t, events.StockCompensation(id.String(), "released"))
	o.deliver(t, events.PaymentSuccess(id.String(), 3000))
	if got := o.state(t, id); got != "FAILED payment COMPENSATING, stock COMPENSATED, payment_dead_lettered" {
		t.Fatal(got)
	}
	o.deliver(t, events.PaymentCompensation(id.String(), "refunded"))
	if v := o.view(t, id); !v.Settled || v.Payment.Status != order.StepCompensated {
		t.Error(o.state(t, id))
	}
}

func TestDeadLetterOfACompensation(t *testing.T) {
	o := open(t, time.Hour)
	id := o.place(t)
	o.deliver(t, events.PaymentSuccess(id.String(), 3000), events.StockRefusal(id.String(), "unknown_item"))
	const want = "FAILED payment COMPENSATING, stock FAILED, unknown_item"
	o.deliver(t, letter(events.TopicPaymentDLT, events.TypePaymentDeadLettered, events.DeadLettered{
		OrderID: id.String(), EventType: events.TypePaymentCompensationRequested, EventID: outbox.NewID().String(), Error: "no such account",
	}))
	if got := o.state(t, id); got != want+", needs attention" {
		t.Fatal(got)
	}
	if v := o.view(t, id); v.Settled {
		t.Error("it is settled")
	}
	o.deliver(t, events.PaymentCompensation(id.String(), "refunded")) // redriven
	if got := o.state(t, id); got != "FAILED payment COMPENSATED, stock FAILED, unknown_item" {
		t.Error(got)
	}
}

// A dead letter of a record that no order has sent there is no order's concern, whatever it holds.
func TestDeadLettersOfPoison(t *testing.T) {
	o := open(t, time.Hour)
	id := o.place(t)
	_, stock := o.commands(t, id)
	for _, d := range []events.DeadLettered{
		{}, {OrderID: "x"}, {OrderID: id.String()},
		{OrderID: id.String(), EventType: "payment.stolen", EventID: outbox.NewID().String()},
		{OrderID: id.String(), EventType: events.TypePaymentRequested},
		{OrderID: id.String(), EventType: events.TypePaymentRequested, EventID: "1"},
		{OrderID: outbox.NewID().String(), EventType: events.TypePaymentRequested, EventID: uuid.NewString()}, // no UUIDv7
		{OrderID: id.String(), EventType: events.TypeStockRequested, EventID: stock},                          // sent to payment-service by hand
	} {
		d.Error, d.Payload = "poison", []byte(`{"a":1}`)
		if sent := o.deliver(t, letter(events.TopicPaymentDLT, events.TypePaymentDeadLettered, d)); len(sent) != 0 {
			t.Error(d, sent)
		}
	}
	if got := o.state(t, id); got != "IN_PROGRESS payment IN_PROGRESS, stock IN_PROGRESS" {
		t.Error(got)
	}
}

func TestTimeline(t *testing.T) {
	o := open(t, time.Hour)
	id := o.place(t)
	payment, stock := o.commands(t, id)
	o.deliver(t, events.StockSuccess(id.String()))
	o.deliver(t, events.PaymentRefusal(id.String(), "insufficient_funds"))
	o.deliver(t, events.StockSuccess(id.String())) // nothing: no entry
	o.deliver(t, events.StockCompensation(id.String(), "released"))
	v := o.view(t, id)
	var got []string
	last := v.CreatedAt
	for _, text := range v.Timeline {
		e := decodeEntry(t, text)
		if e.At.Before(last) {
			t.Errorf("%s comes after %s", text, last)
		}
		last = e.At
		if _, err := uuid.Parse(e.EventID); (err != nil) != (e.Event == "order.placed") {
			t.Errorf("event id of %s", text)
		}
		got = append(got, strings.TrimSpace(e.Event+" "+e.Reason))
	}
	want := []string{
		"order.placed", "payment.requested", "stock.requested", "stock.succeeded", "payment.refused insufficient_funds",
		"stock.compensation_requested", "stock.compensated released",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if p, s := decodeEntry(t, v.Timeline[1]).EventID, decodeEntry(t, v.Timeline[2]).EventID; p != payment || s != stock {
		t.Error(p, s)
	}
	if v.UpdatedAt.Before(last) || time.Since(v.UpdatedAt) > time.Minute {
		t.Error(v.UpdatedAt, last)
	}
}

func TestCancel(t *testing.T) {
	o := open(t, time.Hour)
	id := o.place(t)
	o.deliver(t, events.PaymentSuccess(id.String(), 3000))
	for range 2 {
		if got, err := o.Cancel(t.Context(), id, ""); err != nil || got.Status != order.Failed {
			t.Fatal(got, err)
		}
		if got := o.state(t, id); got != "FAILED payment COMPENSATING, stock IN_PROGRESS, cancelled" {
			t.Fatal(got)
		}
	}
	if got := o.sent(t, id); !slices.Equal(got, []string{"payment", "payment.compensation", "stock"}) {
		t.Error(got)
	}
	done := o.place(t)
	o.deliver(t, events.PaymentSuccess(done.String(), 3000), events.StockSuccess(done.String()))
	if got, err := o.Cancel(t.Context(), done, ""); err != nil || got.Status != order.Success {
		t.Error(got, err)
	}
	if got, err := o.Cancel(t.Context(), outbox.NewID(), ""); err != nil || got.ID != "" {
		t.Error(got, err)
	}
}

// Answers, cancels and timeouts of many orders meet in several instances at once: what is
// left is one of the ends, and what was sent fits it.
func TestConcurrentInstances(t *testing.T) {
	pool := database(t)
	offices := []office{join(t, pool, 200*time.Millisecond), join(t, pool, 200*time.Millisecond), join(t, pool, 200*time.Millisecond)}
	const orders = 120
	var messages []events.Message
	var cancels []uuid.UUID
	for i := range orders {
		id := offices[i%3].place(t)
		paid, reserved := events.PaymentSuccess(id.String(), 3000), events.StockSuccess(id.String())
		if i%4 == 0 {
			reserved = events.StockRefusal(id.String(), "unknown_item")
		}
		messages = append(messages, paid, reserved, paid, reserved, events.PaymentCompensation(id.String(), "refunded"), events.StockCompensation(id.String(), "released"))
		if i%2 == 0 {
			cancels = append(cancels, id)
		}
	}
	rand.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
	work := make(chan []events.Message)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for batch := range work {
				if _, err := offices[i%3].Deliver(t.Context(), batch...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, id := range cancels {
		all.Go(func() {
			if _, err := offices[0].Cancel(t.Context(), id, ""); err != nil {
				t.Error(err)
			}
		})
	}
	for batch := range slices.Chunk(messages, 9) {
		work <- batch
	}
	close(work)
	all.Wait()
	rows, err := pool.Query(t.Context(), `
SELECT status, payment_status, stock_status, (SELECT count(*) FROM outbox WHERE aggregate_id = o.id::text AND topic = 'payment.compensation'),
       (SELECT count(*) FROM outbox WHERE aggregate_id = o.id::text AND topic = 'stock.compensation') FROM orders o`)
	if err != nil {
		t.Fatal(err)
	}
	ends := map[string]int{}
	var status, payment, stock string
	var refunds, releases int
	_, err = pgx.ForEachRow(rows, []any{&status, &payment, &stock, &refunds, &releases}, func() error {
		ends[status+" "+payment+" "+stock]++
		compensated := func(s string) bool { return s == "COMPENSATING" || s == "COMPENSATED" }
		if status == "IN_PROGRESS" || compensated(payment) != (refunds == 1) || compensated(stock) != (releases == 1) || refunds > 1 || releases > 1 {
			t.Errorf("%s, payment %s with %d refunds, stock %s with %d releases", status, payment, refunds, stock, releases)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(ends)
}

// Random answers in batches of random cuts lead the rows to what the pure decisions say.
func TestBatchesFollowTheDecisions(t *testing.T) {
	o := open(t, time.Hour)
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "orders")
		model := make(map[string]order.Order, n)
		ids := make([]uuid.UUID, n)
		for i := range ids {
			placed, err := o.Place(o.ctx, placement())
			if err != nil {
				t.Fatal(err)
			}
			ids[i] = placed.ID
			model[placed.ID.String()] = order.New(placed.ID.String(), placed.Commands[0], placed.Commands[1])
		}
		var batch []events.Message
		var want, got []string
		flush := func() {
			sent, err := o.Deliver(o.ctx, batch...)
			if err != nil {
				t.Fatal(err)
			}
			got, batch = append(got, sent...), nil
		}
		for range rapid.IntRange(0, 25).Draw(t, "answers") {
			id := ids[rapid.IntRange(0, n-1).Draw(t, "order")].String()
			was := model[id]
			m, d := answer(was, rapid.IntRange(0, 9).Draw(t, "answer"))
			batch, model[id] = append(batch, m), d.Order
			for _, m := range d.Send {
				want = append(want, m.Topic+` {"order_id":"`+id+`"}`)
			}
			if rapid.Bool().Draw(t, "cut") {
				flush()
			}
		}
		flush()
		if !slices.Equal(got, want) {
			t.Fatalf("sent %q, want %q", got, want)
		}
		for _, id := range ids {
			v, err := o.Get(o.ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			m := model[id.String()]
			reason := ""
			if v.FailureReason != nil {
				reason = *v.FailureReason
			}
			if v.Status != m.Status || v.Payment.Status != m.Payment.Status || v.Stock.Status != m.Stock.Status ||
				reason != m.FailureReason || v.NeedsAttention != m.NeedsAttention || v.Settled != m.Settled() {
				t.Fatalf("%+v, want %+v", v, m)
			}
		}
	})
}

// answer is the i-th of ten answers, with the decision on it.
func answer(o order.Order, i int) (events.Message, order.Decision) {
	dlt := func(p order.Participant, eventType string, id uuid.UUID) (events.Message, order.Decision) {
		d := events.DeadLettered{OrderID: o.ID, EventType: eventType, EventID: id.String(), Error: "poison"}
		if p == order.Payment {
			return letter(events.TopicPaymentDLT, events.TypePaymentDeadLettered, d), order.DeadLettered(o, p, d)
		}
		return letter(events.TopicStockDLT, events.TypeStockDeadLettered, d), order.DeadLettered(o, p, d)
	}
	switch i {
	case 0:
		return events.PaymentSuccess(o.ID, 3000), order.Succeeded(o, order.Payment)
	case 1:
		return events.StockSuccess(o.ID), order.Succeeded(o, order.Stock)
	case 2:
		return events.PaymentRefusal(o.ID, "unknown_customer"), order.Refused(o, order.Payment, "unknown_customer")
	case 3:
		return events.StockRefusal(o.ID, "unknown_item"), order.Refused(o, order.Stock, "unknown_item")
	case 4:
		return events.PaymentCompensation(o.ID, "refunded"), order.Compensated(o, order.Payment)
	case 5:
		return events.StockCompensation(o.ID, "released"), order.Compensated(o, order.Stock)
	case 6:
		return dlt(order.Payment, events.TypePaymentRequested, o.Payment.Command)
	case 7:
		return dlt(order.Stock, events.TypeStockRequested, o.Stock.Command)
	case 8:
		return dlt(order.Payment, events.TypePaymentCompensationRequested, outbox.NewID())
	default:
		return dlt(order.Stock, events.TypeStockCompensationRequested, outbox.NewID())
	}
}

func TestDecodeRejectsWhatCanNeverWork(t *testing.T) {
	id := outbox.NewID().String()
	body := func(fields string) []byte { return []byte(`{"order_id":"` + id + `"` + fields + `}`) }
	good := map[string]inbox.Event{
		"success":            {Type: events.TypePaymentSucceeded, Key: id, Payload: body(`,"amount":1`)},
		"newer reason":       {Type: events.TypeStockRefused, Key: id, Payload: body(`,"reason":"strike_2","since":1`)},
		"outcome":            {Type: events.TypeStockCompensated, Key: id, Payload: body(`,"outcome":"released"`)},
		"dead letter of any": {Type: events.TypeStockDeadLettered, Key: "\x00", Payload: []byte(`{"topic":"stock"}`)},
	}
	for name, ev := range good {
		if _, err := order.Decode(ev); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, ev := range map[string]inbox.Event{
		"another service's": {Type: events.TypePaymentRequested, Key: id, Payload: body(`,"customer_id":"a","amount":1`)},
		"unknown type":      {Type: "payment.stolen", Key: id, Payload: body("")},
		"no type":           {Key: id, Payload: body("")},
		"not JSON":          {Type: events.TypeStockSucceeded, Key: id, Payload: []byte("oops")},
		"key is no UUID":    {Type: events.TypeStockSucceeded, Key: "x", Payload: []byte(`{"order_id":"x"}`)},
		"key of another":    {Type: events.TypeStockSucceeded, Key: outbox.NewID().String(), Payload: body("")},
		"no reason":         {Type: events.TypeStockRefused, Key: id, Payload: body("")},
		"NUL in the reason": {Type: events.TypeStockRefused, Key: id, Payload: body(`,"reason":"a\u0000b"`)},
		"long reason":       {Type: events.TypePaymentRefused, Key: id, Payload: body(`,"reason":"` + strings.Repeat("x", 900_000) + `"`)},
		"no outcome":        {Type: events.TypePaymentCompensated, Key: id, Payload: body(`,"outcome":""`)},
		"amount 0":          {Type: events.TypePaymentSucceeded, Key: id, Payload: body(`,"amount":0`)},
		"fraction":          {Type: events.TypePaymentSucceeded, Key: id, Payload: body(`,"amount":1.5`)},
		"dead letter, text": {Type: events.TypeStockDeadLettered, Key: id, Payload: []byte(`"x"`)},
	} {
		if body, err := order.Decode(ev); err == nil {
			t.Errorf("%s: %+v", name, body)
		}
	}
}

// The database accepts exactly the states that the decisions can make.
func TestTheRulesAreConstraints(t *testing.T) {
	o := open(t, time.Hour)
	id := o.place(t)
	known := valid()
	for s, status := range statuses {
		for p, payment := range steps {
			for k, stock := range steps {
				for _, attention := range []bool{false, true} {
					state := string([]byte{s, p, k})
					if attention {
						state += "*"
					}
					reason := ""
					if s == 'F' {
						reason = "why"
					}
					const update = `UPDATE orders SET status = $2, payment_status = $3, stock_status = $4, needs_attention = $5, failure_reason = $6 WHERE id = $1`
					_, err := o.Pool.Exec(t.Context(), update, id, status, payment, stock, attention, reason)
					wantCheck(t, state, err, !slices.Contains(known, state))
				}
			}
		}
	}
	for name, set := range map[string]string{
		"unknown status":          `status = 'MAYBE'`,
		"unknown step":            `payment_status = 'MAYBE'`,
		"failed without a reason": `status = 'FAILED', payment_status = 'FAILED', stock_status = 'FAILED', failure_reason = ''`,
		"reason without failure":  `status = 'SUCCESS', payment_status = 'SUCCESS', stock_status = 'SUCCESS', failure_reason = 'why'`,
		"nothing to pay":          `amount = 0`,
		"negative amount":         `amount = -1`,
	} {
		_, err := o.Pool.Exec(t.Context(), `UPDATE orders SET `+set)
		wantCheck(t, name, err, true)
	}
	_, err := o.Pool.Exec(t.Context(), `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES (uuidv7(), 'stock.success', 'order', 'x', 'x', '{}')`)
	wantCheck(t, "another service's topic", err, true)
	if got, want := servicetest.OutboxTopics(t, o.Pool), slices.Sorted(slices.Values(events.OrderTopics())); !slices.Equal(got, want) {
		t.Errorf("the constraint has %q, the contract %q", got, want)
	}
}

func wantCheck(t *testing.T, name string, err error, refused bool) {
	t.Helper()
	var pg *pgconn.PgError
	if refused != (errors.As(err, &pg) && pg.Code == "23514") || !refused && err != nil {
		t.Errorf("%s: %v, want refused %t", name, err, refused)
	}
}

// What changes while the saga runs is in no index, so that the updates are HOT.
func TestNoIndexOnWhatChanges(t *testing.T) {
	o := open(t, time.Hour)
	got := servicetest.Text(t, o.Pool, `SELECT string_agg(pg_get_indexdef(indexrelid), e'\n' ORDER BY indexrelid) FROM pg_index WHERE indrelid = 'orders'::regclass`)
	for _, column := range []string{"status", "attention", "reason", "timeline", "updated_at"} {
		if strings.Contains(got, column) {
			t.Errorf("an index has %s:\n%s", column, got)
		}
	}
}
