package systemtest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/internal/scheduling"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// order is what GET /orders/{id} answers, as far as tests look.
type order struct {
	ID            string `json:"id"`
	Status        string `json:"status"`
	FailureReason string `json:"failure_reason"`
	Amount        int64  `json:"amount"`
	Settled       bool   `json:"settled"`
	Payment       step   `json:"payment"`
	Stock         step   `json:"stock"`
	Timeline      []struct {
		At      time.Time `json:"at"`
		Event   string    `json:"event"`
		EventID string    `json:"event_id"`
	} `json:"timeline"`
}

type step struct {
	Status string `json:"status"`
}

func (o order) String() string {
	return fmt.Sprintf("%s payment %s, stock %s", o.Status, o.Payment.Status, o.Stock.Status)
}

// world is a system with helpers that speak its language.
type world struct {
	*stacktest.System
	t testing.TB
}

func start(t testing.TB, instances int, env ...string) *world {
	t.Helper()
	return &world{stacktest.NewSystem(t, instances, env...), t}
}

// inTurn gives a function that runs a test on the system, as one of t's.
func (w *world) inTurn(t *testing.T) func(name string, test func(*world)) {
	return func(name string, test func(*world)) {
		t.Run(name, func(t *testing.T) { test(&world{w.System, t}) })
	}
}

// One system serves these tests, in this order: each leaves no open orders and no open dead letters.
func TestSystem(t *testing.T) {
	w := start(t, 1, "ORDER_TIMEOUT=10m")
	run := w.inTurn(t)
	run("services are scheduled as programs in Go", scheduled)
	run("HTTP is as the OpenAPI documents say", http31)
	run("records are as the AsyncAPI document says", records)
	o := newOperator(w)
	operate := func(name string, test func(*operator)) {
		run(name, func(w *world) { test(&operator{w, o.program, o.env}) })
	}
	operate("dead letters", operateDeadLetters)
	operate("a compensated order", showCompensated)
	operate("stopped services", stuckBehindStopped)
	operate("a compensation that is a dead letter", stuckBehindDeadLetter)
	run("a partition stays until a new slot's snapshot is in Kafka", partitionStays)
	operate("restore", restore)
	run("messages of other programs in the log", messagesOfOthers)
}

// The timer slack of a service is what [scheduling.ForGo] says, in all its threads.
func scheduled(w *world) {
	want, err := scheduling.ForGo()
	if err != nil || want.Slack == 0 {
		w.t.Skip("this system has no timer slack: ", err)
	}
	read := 0
	for _, s := range system.Services() {
		pid, _ := w.PID(s.Name)
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil || len(threads) == 0 {
			w.t.Fatal(s.Name, err)
		}
		for _, thread := range threads {
			text, err := os.ReadFile(filepath.Join("/proc", filepath.Base(thread), "timerslack_ns"))
			if err != nil {
				continue // it has ended, or we may not see it
			}
			read++
			if got := strings.TrimSpace(string(text)); got != strconv.FormatInt(want.Slack.Nanoseconds(), 10) {
				w.t.Errorf("%s: a thread has a timer slack of %s ns", s.Name, got)
			}
		}
	}
	if read == 0 {
		w.t.Skip("only root may see another process's timer slack")
	}
}

// What other programs write into the log (pg_logical_emit_message) is no event: it has no topic to go to, and must not stop a connector.
func messagesOfOthers(w *world) {
	for _, db := range []string{"orderdb", "stockdb", "paymentdb"} {
		for _, prefix := range []string{"", "another", "Outbox-HB, or so"} {
			w.exec(db, `SELECT pg_logical_emit_message(true, $1, 'x'), pg_logical_emit_message(false, $1, 'x')`, prefix)
		}
	}
	o := w.place(w.customer(100), w.item(1), 1, 100)
	if o := w.settled(o.ID, 20*time.Second); o.Status != "SUCCESS" {
		w.t.Error(o)
	}
}

var serial atomic.Int64

// name makes a customer or item of the test's own.
func name(kind string) string { return fmt.Sprintf("%s-%d", kind, serial.Add(1)) }

// customer makes an account with a balance.
func (w *world) customer(balance int64) string {
	w.t.Helper()
	id := name("customer")
	w.post("payment-service", "/accounts/"+id+"/deposits", fmt.Sprintf(`{"amount":%d}`, balance))
	return id
}

// item makes an item with a stock.
func (w *world) item(quantity int64) string {
	w.t.Helper()
	sku := name("item")
	w.post("stock-service", "/items/"+sku+"/receipts", fmt.Sprintf(`{"quantity":%d}`, quantity))
	return sku
}

func (w *world) post(service, path, body string) {
	w.t.Helper()
	status, err := stacktest.Post(context.Background(), w.URL(service, 0)+path, nil, body, nil)
	if err != nil || status >= 300 {
		w.t.Fatalf("POST %s %s: %d, %v", path, body, status, err)
	}
}

func orderBody(customer, sku string, quantity, price int64) string {
	return fmt.Sprintf(`{"customer_id":%q,"items":[{"sku":%q,"quantity":%d,"unit_price":%d}]}`, customer, sku, quantity, price)
}

func (w *world) place(customer, sku string, quantity, price int64) order {
	w.t.Helper()
	var o order
	status, err := stacktest.Post(context.Background(), w.URL("order-service", 0)+"/orders", nil, orderBody(customer, sku, quantity, price), &o)
	if err != nil || status != http.StatusAccepted {
		w.t.Fatalf("POST /orders: %d, %v", status, err)
	}
	return o
}

func (w *world) get(id string) order {
	w.t.Helper()
	var o order
	if status, err := stacktest.Get(context.Background(), w.URL("order-service", 0)+"/orders/"+id, &o); err != nil || status != http.StatusOK {
		w.t.Fatalf("GET /orders/%s: %d, %v", id, status, err)
	}
	return o
}

// until waits until an order satisfies a condition.
func (w *world) until(id, what string, within time.Duration, ok func(order) bool) order {
	w.t.Helper()
	deadline := time.Now().Add(within)
	for {
		o := w.get(id)
		if ok(o) {
			return o
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("order %s is not %s after %v: %s %+v", id, what, within, o, o.Timeline)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (w *world) settled(id string, within time.Duration) order {
	w.t.Helper()
	return w.until(id, "settled", within, func(o order) bool { return o.Settled })
}

// query returns rows of one text column.
func (w *world) query(database, sql string, args ...any) []string {
	w.t.Helper()
	rows, err := w.DB(database).Query(context.Background(), sql, args...)
	if err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return out
}

func (w *world) exec(database, sql string, args ...any) {
	w.t.Helper()
	if _, err := w.DB(database).Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// audit checks what must hold at any time, and once everything is settled.
func (w *world) audit() {
	w.t.Helper()
	if bad := w.query("stockdb", `SELECT sku FROM items WHERE received <> available + reserved OR available < 0 OR reserved < 0`); len(bad) != 0 {
		w.t.Errorf("items not conserved: %v", bad)
	}
	if bad := w.query("paymentdb", `SELECT customer_id FROM accounts WHERE deposited <> balance + charged OR balance < 0 OR charged < 0`); len(bad) != 0 {
		w.t.Errorf("accounts not conserved: %v", bad)
	}
	if bad := w.query("paymentdb", `
		SELECT a.customer_id FROM accounts a LEFT JOIN payments p ON p.customer_id = a.customer_id AND p.status = 'CHARGED'
		GROUP BY a.customer_id, a.charged HAVING a.charged <> coalesce(sum(p.amount), 0)`); len(bad) != 0 {
		w.t.Errorf("accounts whose charges are not those of their payments: %v", bad)
	}
	charged := set(w.query("paymentdb", `SELECT order_id::text FROM payments WHERE status = 'CHARGED'`))
	reserved := set(w.query("stockdb", `SELECT order_id::text FROM reservations WHERE status = 'RESERVED'`))
	for _, row := range w.query("orderdb", `SELECT id::text || ' ' || status FROM orders`) {
		var id, status string
		fmt.Sscan(row, &id, &status)
		if want := status == "SUCCESS"; charged[id] != want || reserved[id] != want {
			w.t.Errorf("order %s is %s, but charged %t, reserved %t", id, status, charged[id], reserved[id])
		}
		delete(charged, id)
		delete(reserved, id)
	}
	if len(charged)+len(reserved) != 0 {
		w.t.Errorf("effects without an order: charged %v, reserved %v", charged, reserved)
	}
	for _, lost := range w.unhandled(forever) {
		w.t.Errorf("lost: %s", lost)
	}
}

// drained waits until every event has been handled: audit is meant for then.
func (w *world) drained(within time.Duration) {
	w.t.Helper()
	w.drainedUntil(forever, within)
}

// drainedUntil waits until the events written until then have been handled: under load there are always younger ones.
func (w *world) drainedUntil(until time.Time, within time.Duration) {
	w.t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		left := w.unhandled(until)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d events are not handled after %v, the first: %s", len(left), within, left[0])
		}
	}
}

// forever is after every event.
var forever = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// unhandled are the events that the outboxes have of the time until then and that are not in the inbox of their consumer.
func (w *world) unhandled(until time.Time) (all []string) {
	w.t.Helper()
	for _, route := range []struct{ from, to, topics string }{
		{"orderdb", "paymentdb", `'payment', 'payment.compensation'`},
		{"orderdb", "stockdb", `'stock', 'stock.compensation'`},
		{"paymentdb", "orderdb", `'payment.success', 'payment.failed', 'payment.compensated', 'payment.dlt'`},
		{"stockdb", "orderdb", `'stock.success', 'stock.failed', 'stock.compensated', 'stock.dlt'`},
	} {
		sent := w.query(route.from, `SELECT id::text FROM outbox WHERE topic IN (`+route.topics+`) AND created_at AT TIME ZONE 'UTC' <= $1`, until)
		seen := set(w.query(route.to, `SELECT event_id::text FROM inbox`))
		for _, id := range sent {
			if !seen[id] {
				all = append(all, fmt.Sprintf("event %s of %s is not in the inbox of %s", id, route.from, route.to))
			}
		}
	}
	return all
}

func set(list []string) map[string]bool {
	m := make(map[string]bool, len(list))
	for _, s := range list {
		m[s] = true
	}
	return m
}

// record is one that no outbox has sent.
func record(topic, value string) *kgo.Record {
	return &kgo.Record{Topic: topic, Value: []byte(value)}
}
