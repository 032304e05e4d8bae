package systemtest

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// One system serves these tests; each uses customers, items and orders of its own.
func TestSaga(t *testing.T) {
	w := start(t, 1, "ORDER_TIMEOUT=4s")
	run := w.inTurn(t)
	run("every row of the matrix", matrix)
	run("timeout", timeout)
	run("cancel", cancel)
	run("a failing transaction leaves neither order nor event", atomicity)
	run("an event before its cause is visible", visibility)
	run("Prefer: wait answers when the order is settled", preferWait)
	run("one Idempotency-Key, one order", idempotencyKey)
	run("records that come again have no second effect", duplicates)
	run("a compensation before its command", barrier)
	run("a dead letter is redriven after the order has failed", redrive)
}

// commands are the compensations that order-service has sent for an order.
func (w *world) compensations(id string) string {
	return strings.Join(w.query("orderdb", `SELECT topic FROM outbox WHERE aggregate_id = $1 AND topic LIKE '%.compensation' ORDER BY topic`, id), " ")
}

func matrix(w *world) {
	const rich, poor, many, few = 1_000_000, 1, 100, 0
	for _, row := range []struct {
		name           string
		balance, stock int64
		late           string // the service that is stopped until the other step has failed
		want           string
		compensated    string
	}{
		{"1", poor, many, "", "FAILED payment FAILED, stock COMPENSATED", "stock.compensation"},
		{"2", poor, many, "stock-service", "FAILED payment FAILED, stock COMPENSATED", "stock.compensation"},
		{"3", poor, few, "stock-service", "FAILED payment FAILED, stock FAILED", ""},
		{"4", rich, few, "", "FAILED payment COMPENSATED, stock FAILED", "payment.compensation"},
		{"5", poor, few, "payment-service", "FAILED payment FAILED, stock FAILED", ""},
		{"6", rich, few, "payment-service", "FAILED payment COMPENSATED, stock FAILED", "payment.compensation"},
		{"7", poor, few, "", "FAILED payment FAILED, stock FAILED", ""},
		{"8", rich, many, "", "SUCCESS payment SUCCESS, stock SUCCESS", ""},
	} {
		customer, sku := w.customer(row.balance), w.item(1)
		if row.stock == many {
			sku = w.item(many)
		}
		if row.late != "" {
			w.signal(row.late, syscall.SIGSTOP)
		}
		o := w.place(customer, sku, 2, 50)
		if row.late != "" {
			o = w.until(o.ID, "failed", 5*time.Second, func(o order) bool { return o.Status == "FAILED" })
			if o.Settled {
				w.t.Errorf("row %s: settled while %s is stopped: %s", row.name, row.late, o)
			}
			w.signal(row.late, syscall.SIGCONT)
		}
		o = w.settled(o.ID, 10*time.Second)
		if o.String() != row.want {
			w.t.Errorf("row %s: %s, want %s", row.name, o, row.want)
		}
		if got := w.compensations(o.ID); got != row.compensated {
			w.t.Errorf("row %s: sent %q, want %q", row.name, got, row.compensated)
		}
	}
	w.drained(10 * time.Second)
	w.audit()
}

func (w *world) signal(name string, s syscall.Signal) {
	w.t.Helper()
	if err := w.Signal(name, s); err != nil {
		w.t.Fatal(err)
	}
}

func timeout(w *world) {
	customer, sku := w.customer(1000), w.item(10)
	w.signal("payment-service", syscall.SIGSTOP)
	o := w.place(customer, sku, 1, 10)
	o = w.until(o.ID, "timed out", 10*time.Second, func(o order) bool { return o.Status == "FAILED" })
	if !strings.Contains(o.FailureReason, "timeout") || o.Settled {
		w.t.Errorf("%s, reason %q, settled %t", o, o.FailureReason, o.Settled)
	}
	w.signal("payment-service", syscall.SIGCONT)
	if o = w.settled(o.ID, 10*time.Second); o.Payment.Status != "COMPENSATED" || o.Stock.Status != "COMPENSATED" {
		w.t.Errorf("after the timeout: %s", o)
	}
}

func cancel(w *world) {
	customer, sku := w.customer(1000), w.item(10)
	done := w.place(customer, sku, 1, 10)
	w.settled(done.ID, 5*time.Second)
	post := func(id string, out any) int {
		w.t.Helper()
		status, err := stacktest.Post(context.Background(), w.URL("order-service", 0)+"/orders/"+id+"/cancel", nil, "", out)
		if err != nil {
			w.t.Fatal(err)
		}
		return status
	}
	var problem struct{ Type, Detail string }
	if status := post(done.ID, &problem); status != http.StatusConflict || problem.Type == "" {
		w.t.Errorf("cancel of a SUCCESS order: %d %+v", status, problem)
	}
	w.signal("stock-service", syscall.SIGSTOP)
	o := w.place(customer, sku, 1, 10)
	status := post(o.ID, nil)
	w.signal("stock-service", syscall.SIGCONT)
	if status >= 300 {
		w.t.Errorf("cancel: %d", status)
	}
	if o = w.settled(o.ID, 10*time.Second); o.Status != "FAILED" || o.Payment.Status != "COMPENSATED" || o.Stock.Status != "COMPENSATED" {
		w.t.Errorf("after the cancel: %s", o)
	}
}

func atomicity(w *world) {
	customer, sku := w.customer(1000), w.item(10)
	before := w.query("orderdb", `SELECT id::text FROM orders UNION ALL SELECT id::text FROM outbox`)
	w.exec("orderdb", `ALTER TABLE outbox ADD CONSTRAINT broken CHECK (topic <> 'stock') NOT VALID`)
	var problem struct{ Type string }
	status, err := stacktest.Post(context.Background(), w.URL("order-service", 0)+"/orders", nil, orderBody(customer, sku, 1, 10), &problem)
	w.exec("orderdb", `ALTER TABLE outbox DROP CONSTRAINT broken`)
	if err != nil || status < 500 || problem.Type == "" {
		w.t.Errorf("POST /orders whose outbox rows are refused: %d %+v %v", status, problem, err)
	}
	if after := w.query("orderdb", `SELECT id::text FROM orders UNION ALL SELECT id::text FROM outbox`); len(after) != len(before) {
		w.t.Errorf("%d rows of orders and outbox, %d before: half an order was written", len(after), len(before))
	}
	w.settled(w.place(customer, sku, 1, 10).ID, 5*time.Second)
}

// visibility holds commits of orderdb back between the flush of their WAL, from when
// Debezium sends them, and the moment other sessions see them: that is where a
// synchronous standby is waited for, here one that does not exist. The answers of
// payment and stock then come before the order is visible.
func visibility(w *world) {
	customer, sku := w.customer(1000), w.item(10)
	for _, sql := range []string{
		`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`,
		`ALTER SYSTEM SET synchronous_commit = 'local'`,
		`ALTER DATABASE orderdb SET synchronous_commit = 'on'`,
	} {
		w.exec("postgres", sql)
	}
	reset := func() {
		for _, sql := range []string{`ALTER SYSTEM RESET synchronous_standby_names`, `ALTER SYSTEM RESET synchronous_commit`, `ALTER DATABASE orderdb RESET synchronous_commit`, `SELECT pg_reload_conf()`} {
			w.exec("postgres", sql)
		}
	}
	defer reset()
	w.exec("orderdb", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'order_service'`) // new sessions take the database's setting
	w.exec("postgres", `SELECT pg_reload_conf()`)
	time.Sleep(200 * time.Millisecond) // the checkpointer takes synchronous_standby_names over
	placed := make(chan order, 1)
	go func() {
		var o order
		for status := 0; status != http.StatusAccepted; { // its connections were just ended
			status, _ = stacktest.Post(context.Background(), w.URL("order-service", 0)+"/orders", nil, orderBody(customer, sku, 1, 10), &o)
		}
		placed <- o
	}()
	// Both answers are on their way although nobody can see the order.
	deadline := time.Now().Add(10 * time.Second)
	for len(w.query("paymentdb", `SELECT 'x' FROM payments WHERE customer_id = $1`, customer)) == 0 {
		if time.Now().After(deadline) {
			w.t.Fatal("the command of an invisible order did not arrive: the race is not forced")
		}
		time.Sleep(2 * time.Millisecond)
	}
	if n := w.query("orderdb", `SELECT id::text FROM orders WHERE customer_id = $1`, customer); len(n) != 0 {
		w.t.Fatal("the order is visible already: the race is not forced")
	}
	time.Sleep(300 * time.Millisecond)
	reset()
	o := <-placed
	if o = w.settled(o.ID, 10*time.Second); o.Status != "SUCCESS" {
		w.t.Errorf("%s", o)
	}
	if letters := w.query("orderdb", `SELECT error FROM dead_letters WHERE key = convert_to($1, 'UTF8')`, o.ID); len(letters) != 0 {
		w.t.Errorf("the race made dead letters: %q", letters)
	}
}

func preferWait(w *world) {
	customer, sku := w.customer(1000), w.item(10)
	url := w.URL("order-service", 0) + "/orders"
	var o order
	status, err := stacktest.Post(context.Background(), url, http.Header{"Prefer": {"wait=10"}}, orderBody(customer, sku, 1, 10), &o)
	if err != nil || status != http.StatusOK || !o.Settled || o.Status != "SUCCESS" {
		w.t.Errorf("%d %s %v", status, o, err)
	}
	w.signal("stock-service", syscall.SIGSTOP)
	begin := time.Now()
	status, err = stacktest.Post(context.Background(), url, http.Header{"Prefer": {"wait=1"}}, orderBody(customer, sku, 1, 10), &o)
	took := time.Since(begin)
	w.signal("stock-service", syscall.SIGCONT)
	if err != nil || status != http.StatusAccepted || took < 900*time.Millisecond {
		w.t.Errorf("with stock stopped: %d after %v, %v", status, took, err)
	}
	w.settled(o.ID, 10*time.Second)
}

func idempotencyKey(w *world) {
	customer, sku := w.customer(1000), w.item(10)
	url := w.URL("order-service", 0) + "/orders"
	header := http.Header{"Idempotency-Key": {name("key")}}
	ids := make(chan string, 8)
	for range cap(ids) {
		go func() {
			var o order
			_, _ = stacktest.Post(context.Background(), url, header, orderBody(customer, sku, 1, 10), &o)
			ids <- o.ID
		}()
	}
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first || id == "" {
			w.t.Errorf("one key, two orders: %q and %q", first, id)
		}
	}
	if status, err := stacktest.Post(context.Background(), url, header, orderBody(customer, sku, 2, 10), nil); err != nil || status != http.StatusUnprocessableEntity {
		w.t.Errorf("same key, other body: %d %v", status, err)
	}
	w.settled(first, 5*time.Second)
	if n := w.query("orderdb", `SELECT id::text FROM orders WHERE customer_id = $1`, customer); len(n) != 1 {
		w.t.Errorf("%d orders", len(n))
	}
}

func duplicates(w *world) {
	const rich, poor = 1000, 1
	var ids []string
	sku := w.item(1000)
	for _, balance := range []int64{rich, poor, rich} {
		ids = append(ids, w.settled(w.place(w.customer(balance), sku, 1, 100).ID, 5*time.Second).ID)
	}
	state := func() []string {
		var all []string
		for _, id := range ids {
			all = append(all, w.get(id).String())
		}
		all = append(all, w.query("paymentdb", `SELECT concat_ws(' ', customer_id, balance, charged) FROM accounts ORDER BY 1`)...)
		return append(all, w.query("stockdb", `SELECT concat_ws(' ', sku, available, reserved) FROM items ORDER BY 1`)...)
	}
	before := state()
	for _, fresh := range []bool{false, true} {
		for _, topic := range events.Topics() {
			for _, r := range w.Records(topic) {
				if !slices.Contains(ids, string(r.Key)) {
					continue
				}
				again := &kgo.Record{Topic: topic, Key: r.Key, Value: r.Value}
				for _, h := range r.Headers {
					if fresh && h.Key == "id" {
						h.Value = []byte(outbox.NewID().String())
					}
					again.Headers = append(again.Headers, h)
				}
				w.Produce(again)
			}
		}
		marker := w.settled(w.place(w.customer(rich), sku, 1, 1).ID, 5*time.Second) // behind them
		_ = marker
		w.drained(10 * time.Second)
		time.Sleep(300 * time.Millisecond)
		var after []string
		for _, line := range state() {
			if slices.Contains(before, line) {
				after = append(after, line)
			}
		}
		// The marker has changed the item and added an account; nothing else may have.
		if missing := len(before) - len(after); missing != 1 {
			w.t.Errorf("repeated records (new ids: %t) changed %d lines of state:\n%s\nwas\n%s", fresh, missing, strings.Join(state(), "\n"), strings.Join(before, "\n"))
		}
		before = state()
	}
}

func barrier(w *world) {
	customer, sku := w.customer(1000), w.item(10)
	send := func(m events.Message) {
		ev, err := outbox.New(m.Topic, "order", m.OrderID, m.Type, m.Payload)
		if err != nil {
			w.t.Fatal(err)
		}
		w.Produce(&kgo.Record{Topic: m.Topic, Key: []byte(m.OrderID), Value: ev.Payload, Headers: []kgo.RecordHeader{
			{Key: "id", Value: []byte(ev.ID.String())}, {Key: "type", Value: []byte(m.Type)}}})
	}
	id := uuid.Must(uuid.NewV7()).String()
	send(events.CompensatePayment(id))
	send(events.CompensateStock(id))
	answers := func(db string) string {
		return strings.Join(w.query(db, `SELECT topic || ' ' || payload FROM outbox WHERE aggregate_id = $1 ORDER BY id`, id), "\n")
	}
	wait := func(db string, n int) string {
		deadline := time.Now().Add(10 * time.Second)
		for strings.Count(answers(db), "\n") < n-1 || answers(db) == "" {
			if time.Now().After(deadline) {
				w.t.Fatalf("%s has answered: %s", db, answers(db))
			}
			time.Sleep(5 * time.Millisecond)
		}
		return answers(db)
	}
	wait("paymentdb", 1)
	wait("stockdb", 1)
	send(events.RequestPayment(id, customer, 10))
	send(events.RequestStock(id, []events.Item{{SKU: sku, Quantity: 1}}))
	for db, want := range map[string][]string{
		"paymentdb": {"payment.compensated", events.OutcomeNothingToRefund, "payment.failed", events.ReasonCompensated},
		"stockdb":   {"stock.compensated", events.OutcomeNothingToRelease, "stock.failed", events.ReasonCompensated},
	} {
		got := wait(db, 2)
		for _, part := range want {
			if !strings.Contains(got, part) {
				w.t.Errorf("%s answered\n%s\nwant %q in it", db, got, part)
			}
		}
	}
	if got := w.query("paymentdb", `SELECT balance::text FROM accounts WHERE customer_id = $1`, customer); got[0] != "1000" {
		w.t.Errorf("the late command had an effect: balance %v", got)
	}
	if got := w.query("stockdb", `SELECT available::text FROM items WHERE sku = $1`, sku); got[0] != "10" {
		w.t.Errorf("the late command had an effect: available %v", got)
	}
}

// redrive: payment-service cannot handle a command (its table refuses the amount), the
// order fails, the table is mended, the dead letter is redriven: the money is taken and,
// as the order has failed, given back.
func redrive(w *world) {
	customer, sku := w.customer(1_000_000), w.item(10)
	w.exec("paymentdb", `ALTER TABLE payments ADD CONSTRAINT broken CHECK (amount <> 777) NOT VALID`)
	o := w.place(customer, sku, 1, 777)
	o = w.settled(o.ID, 20*time.Second)
	if o.String() != "FAILED payment FAILED, stock COMPENSATED" {
		w.t.Fatalf("after the dead letter: %s", o)
	}
	w.exec("paymentdb", `ALTER TABLE payments DROP CONSTRAINT broken`)
	letters := w.query("paymentdb", `SELECT id::text FROM dead_letters WHERE key = convert_to($1, 'UTF8')`, o.ID)
	if len(letters) != 1 {
		w.t.Fatalf("dead letters %v", letters)
	}
	url := w.URL("payment-service", 0) + "/dead-letters/" + letters[0] + "/redrive"
	if status, err := stacktest.Post(context.Background(), url, http.Header{"X-Operator": {"tester"}}, "", nil); err != nil || status >= 300 {
		w.t.Fatalf("redrive: %d %v", status, err)
	}
	o = w.until(o.ID, "compensated", 10*time.Second, func(o order) bool { return o.Payment.Status == "COMPENSATED" })
	if got := w.query("paymentdb", `SELECT balance::text FROM accounts WHERE customer_id = $1`, customer); got[0] != "1000000" {
		w.t.Errorf("balance %v", got)
	}
	if status, err := stacktest.Post(context.Background(), url, nil, "", nil); err != nil || status != http.StatusConflict {
		w.t.Errorf("redriven again: %d %v", status, err)
	}
	if got := w.query("paymentdb", `SELECT status || ' ' || resolved_by FROM dead_letters WHERE id = $1`, letters[0]); got[0] != "redriven tester" {
		w.t.Errorf("recorded as %q", got)
	}
}
