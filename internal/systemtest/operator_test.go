package systemtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/stacktest"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// operator runs the built command against a system, as an operator does.
type operator struct {
	*world
	program string
	env     []string
}

func newOperator(w *world) *operator {
	w.t.Helper()
	o := &operator{world: w, program: filepath.Join(stacktest.Programs(w.t), "outboxctl")}
	o.env = append(o.env, "USER=anna", "KAFKA_BROKERS="+w.Brokers()[0])
	for _, s := range []string{"order", "stock", "payment"} {
		name := strings.ToUpper(s)
		o.env = append(o.env, name+"_URL="+w.URL(s+"-service", 0), name+"_DATABASE_URL="+w.PostgresURL(s+"db"))
	}
	return o
}

// run returns what the command printed and its exit code.
func (o *operator) run(args ...string) (out, errs string, code int) {
	o.t.Helper()
	return o.runIn(o.env, args...)
}

func (o *operator) runIn(env []string, args ...string) (out, errs string, code int) {
	o.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(o.program, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = stacktest.Root(), append(os.Environ(), env...), &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		o.t.Fatal(err)
	}
	if !slices.Contains(args, "--json") {
		o.t.Logf("$ outboxctl %s\n%s%s(exit code %d)", strings.Join(args, " "), stdout.String(), stderr.String(), cmd.ProcessState.ExitCode())
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// ok runs a command that must succeed and print all of want.
func (o *operator) ok(args []string, want ...string) string {
	o.t.Helper()
	out, errs, code := o.run(args...)
	if code != 0 {
		o.t.Errorf("%v: exit code %d: %s%s", args, code, out, errs)
	}
	contains(o.t, args, out, want...)
	return out
}

// fails runs a command that must fail and print all of want.
func (o *operator) fails(args []string, want ...string) {
	o.t.Helper()
	out, errs, code := o.run(args...)
	if code == 0 {
		o.t.Errorf("%v: exit code 0: %s%s", args, out, errs)
	}
	contains(o.t, args, out+errs, want...)
}

func contains(t testing.TB, args []string, out string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("%v: no %q in\n%s", args, w, out)
		}
	}
}

// decoded runs a command that must succeed and decodes its JSON.
func decoded[T any](o *operator, args ...string) (v T) {
	o.t.Helper()
	out := o.ok(append(args, "--json"))
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		o.t.Fatalf("%v: %v: %s", args, err, out)
	}
	return v
}

type lettersPrinted struct {
	DeadLetters []struct {
		ID, Service, Status, EventType, Topic string
	} `json:"dead_letters"`
	More bool
}

type sagaPrinted struct {
	OrderID string `json:"order_id"`
	Order   struct {
		Status  string
		Settled bool
	}
	Payment, Reservation *struct{ Status string }
	Events               []struct {
		Event, From, To string
		EventID         string     `json:"event_id"`
		ReceivedAt      *time.Time `json:"received_at"`
	}
	DeadLetters []struct{ Service, Status string } `json:"dead_letters"`
	Waits       []struct {
		Step, Cause, Event, Service string
		DeadLetter                  string `json:"dead_letter"`
		Around                      []string
	}
}

type stuckPrinted struct {
	Orders []sagaPrinted
	More   bool
}

func operateDeadLetters(o *operator) {
	o.ok([]string{"dead-letters", "list"}, "no dead letters")
	closed := len(decoded[lettersPrinted](o, "dead-letters", "list", "--status=any").DeadLetters)
	customer, sku := o.customer(1_000_000), o.item(10)
	o.exec("paymentdb", `ALTER TABLE payments ADD CONSTRAINT broken CHECK (amount <> 777) NOT VALID`)
	var orders []order
	for range 3 {
		orders = append(orders, o.place(customer, sku, 1, 777))
	}
	for range 5 {
		o.Produce(&kgo.Record{Topic: events.TopicStock, Key: []byte(uuid.NewString()), Value: []byte("no\x1b[31m JSON")})
	}
	for _, placed := range orders {
		o.settled(placed.ID, 30*time.Second)
	}
	o.await("5 dead letters of stock-service", func() bool { return len(o.query("stockdb", `SELECT 'x' FROM dead_letters WHERE status = 'open'`)) == 5 })

	// What is listed, and what is not.
	o.ok([]string{"dead-letters", "list"}, "ID ", "payment.requested", "stock/", "open")
	for filter, want := range map[string]int{
		"": 8, "--service=payment": 3, "--service=stock": 5, "--service=order": 0, "--type=payment.requested": 3,
		"--type=stock.requested": 0, "--topic=stock": 5, "--topic=payment.compensation": 0, "--status=redriven": 0, "--status=any": closed + 8,
	} {
		args := []string{"dead-letters", "list"}
		if filter != "" {
			args = append(args, filter)
		}
		if got := decoded[lettersPrinted](o, args...); len(got.DeadLetters) != want || got.More {
			o.t.Errorf("%s: %d dead letters, want %d", filter, len(got.DeadLetters), want)
		}
	}
	if got := decoded[lettersPrinted](o, "dead-letters", "list", "--limit=3"); len(got.DeadLetters) != 3 || !got.More {
		o.t.Errorf("a limit of 3: %d, more: %t", len(got.DeadLetters), got.More)
	}
	o.fails([]string{"dead-letters", "list", "--service=nobody"}, "use order, stock, payment or all")
	o.fails([]string{"dead-letters", "list", "--status=closed"}, "use open, redriven, discarded or any")

	// One, in full.
	paid := decoded[lettersPrinted](o, "dead-letters", "list", "--service=payment").DeadLetters
	bad := decoded[lettersPrinted](o, "dead-letters", "list", "--service=stock").DeadLetters
	o.ok([]string{"dead-letters", "show", paid[0].ID}, paid[0].ID, "payment-service", "broken", `"amount": 777`, "partition", "open")
	if out := o.ok([]string{"dead-letters", "show", bad[0].ID}, "no JSON", `\x1b`); strings.Contains(out, "\x1b") {
		o.t.Error("a control character reaches the terminal")
	}
	if one := decoded[map[string]any](o, "dead-letters", "show", paid[0].ID); one["service"] != "payment" || one["payload"] == nil {
		o.t.Errorf("%v", one)
	}
	o.fails([]string{"dead-letters", "show", uuid.NewString()}, "there is no dead letter", "list --status any")
	o.fails([]string{"dead-letters", "show", "x"}, "is not the id of a dead letter")

	// Redrive: refused while the cause stands, done once it is mended, and once only.
	o.fails([]string{"dead-letters", "redrive"}, "--all")
	o.fails([]string{"dead-letters", "redrive", "--all", paid[0].ID}, "--all")
	o.fails([]string{"dead-letters", "redrive", "--all", "--rate=0"}, "--rate")
	o.fails([]string{"dead-letters", "redrive", paid[0].ID}, "broken", "0 of 1 dead letters redriven, 1 failed")
	o.exec("paymentdb", `ALTER TABLE payments DROP CONSTRAINT broken`)
	o.fails([]string{"dead-letters", "redrive", paid[0].ID, bad[0].ID}, "1 of 2 dead letters redriven, 1 failed")
	o.fails([]string{"dead-letters", "redrive", paid[0].ID}, "redriven by anna", "1 failed")
	o.ok([]string{"dead-letters", "redrive", "--all", "--type=payment.requested", "--rate=10"}, "2 of 2 dead letters redriven, 0 failed")
	o.fails([]string{"dead-letters", "redrive", "--all", "--rate=1000"}, "0 of 5 dead letters redriven, 5 failed", "discard it")
	for _, placed := range orders {
		got := o.until(placed.ID, "refunded", 10*time.Second, func(o order) bool { return o.Payment.Status == "COMPENSATED" })
		if got.Status != "FAILED" || !got.Settled {
			o.t.Errorf("after the redrive: %s", got)
		}
	}
	o.ok([]string{"saga", "show", orders[0].ID}, "redriven by anna", "payment.dead_lettered", "REFUNDED", ", settled")

	// Discard: with a reason, at a rate.
	o.fails([]string{"dead-letters", "discard", bad[0].ID}, "--reason is required")
	o.fails([]string{"dead-letters", "discard", "--all"}, "--reason is required")
	o.ok([]string{"dead-letters", "discard", bad[0].ID, "--reason=a test", "--by=bert"}, "1 of 1 dead letters discarded, 0 failed")
	begin := time.Now()
	o.ok([]string{"dead-letters", "discard", "--all", "--topic=stock", "--reason=no events", "--rate=5"}, "4 of 4 dead letters discarded, 0 failed")
	if took := time.Since(begin); took < 600*time.Millisecond {
		o.t.Errorf("4 at 5 a second took only %v", took)
	}
	o.ok([]string{"dead-letters", "list"}, "no dead letters")
	got := o.query("stockdb", `SELECT status || ' ' || resolved_by || ' ' || reason FROM dead_letters WHERE reason <> 'no event' ORDER BY id`)
	slices.Sort(got)
	want := []string{"discarded anna no events", "discarded anna no events", "discarded anna no events", "discarded anna no events", "discarded bert a test"}
	if !slices.Equal(got, want) {
		o.t.Errorf("kept as %q", got)
	}

	// A service that is not there.
	_, errs, code := o.runIn(append(slices.Clone(o.env), "STOCK_URL=http://127.0.0.1:1"), "dead-letters", "list")
	if code == 0 || !strings.Contains(errs, "stock-service does not answer") || !strings.Contains(errs, "STOCK_URL") {
		o.t.Errorf("%d %s", code, errs)
	}
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("no %s after 20 s", what)
		}
	}
}

func showCompensated(o *operator) {
	placed := o.settled(o.place(o.customer(1), o.item(10), 2, 50).ID, 10*time.Second)
	o.drained(10 * time.Second)
	o.ok([]string{"saga", "show", placed.ID}, placed.ID, "FAILED (insufficient_funds), settled", "payment-service: REFUSED (insufficient_funds), 100 of ",
		"stock-service: RELEASED, 2 ", "order > stock", "stock > order", "released", "order.placed")
	s := decoded[sagaPrinted](o, "saga", "show", placed.ID)
	if s.OrderID != placed.ID || s.Order.Status != "FAILED" || !s.Order.Settled || s.Payment.Status != "REFUSED" || s.Reservation.Status != "RELEASED" ||
		len(s.Waits) != 0 || len(s.DeadLetters) != 0 {
		o.t.Errorf("%+v", s)
	}
	at := map[string]int{}
	for i, e := range s.Events {
		if at[e.Event] = i; e.EventID != "" && e.ReceivedAt == nil {
			o.t.Errorf("%s was handled, but is not shown so", e.Event)
		}
	}
	for _, pair := range [][2]string{
		{"order.placed", "payment.requested"}, {"payment.requested", "payment.refused"}, {"stock.requested", "stock.succeeded"},
		{"payment.refused", "stock.compensation_requested"}, {"stock.compensation_requested", "stock.compensated"},
	} {
		first, ok1 := at[pair[0]]
		then, ok2 := at[pair[1]]
		if !ok1 || !ok2 || first >= then {
			o.t.Errorf("%s is not before %s: %v", pair[0], pair[1], s.Events)
		}
	}
	if len(s.Events) != 7 {
		o.t.Errorf("%d events: %v", len(s.Events), s.Events)
	}
	// A participant knows of an order that order-service does not.
	alone := uuid.Must(uuid.NewV7()).String()
	o.exec("paymentdb", `INSERT INTO payments (order_id, customer_id, amount, status, reason) VALUES ($1, '', 0, 'BARRED', '')`, alone)
	o.ok([]string{"saga", "show", alone}, "is not known to order-service", "BARRED")
	o.exec("paymentdb", `DELETE FROM payments WHERE order_id = $1`, alone)
	o.fails([]string{"saga", "show", alone}, "nothing is known")
	o.fails([]string{"saga", "show", "x"}, "is not the id of an order")
}

// stuckBehindStopped stops a participant, and order-service, and asks what is in the way.
func stuckBehindStopped(o *operator) {
	o.ok([]string{"saga", "stuck", "--older=0s"}, "no order that is older than 0s waits")
	customer, sku := o.customer(1_000_000), o.item(100)
	o.signal("stock-service", syscall.SIGSTOP)
	placed := o.place(customer, sku, 1, 10)
	o.until(placed.ID, "paid", 10*time.Second, func(o order) bool { return o.Payment.Status == "SUCCESS" })
	o.ok([]string{"saga", "stuck", "--older=1h"}, "no order")
	got := decoded[stuckPrinted](o, "saga", "stuck", "--older=0s")
	if len(got.Orders) != 1 || got.Orders[0].OrderID != placed.ID || len(got.Orders[0].Waits) != 1 {
		o.t.Fatalf("%+v", got)
	}
	if w := got.Orders[0].Waits[0]; w.Step != "stock" || w.Cause != "command_not_handled" || w.Event != "stock.requested" || w.Service != "stock" ||
		!strings.Contains(strings.Join(w.Around, "\n"), "stock-service is not ready") || !strings.Contains(strings.Join(w.Around, "\n"), "behind on topic stock") {
		o.t.Errorf("%+v", w)
	}
	// The same, of the local stack by its ports.
	port := func(address string) string {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			o.t.Fatal(err)
		}
		return port
	}
	database, err := url.Parse(o.PostgresURL("orderdb"))
	if err != nil {
		o.t.Fatal(err)
	}
	local := []string{"STACK_DIR=" + o.Dir(), "POSTGRES_PORT=" + database.Port(), "KAFKA_PORT=" + port(o.Brokers()[0])}
	for _, s := range []string{"order", "stock", "payment"} {
		address, err := url.Parse(o.URL(s+"-service", 0))
		if err != nil {
			o.t.Fatal(err)
		}
		local = append(local, strings.ToUpper(s)+"_PORT="+address.Port())
	}
	out, _, code := o.runIn(local, "saga", "stuck", "--older=0s")
	contains(o.t, local, out, placed.ID, "IN_PROGRESS", "payment SUCCESS, stock IN_PROGRESS", "stock-service has not handled stock.requested", "stock-service is not ready", "1 order not settled")
	if code != 0 {
		o.t.Errorf("exit code %d", code)
	}

	// Now the answer is there, and order-service is stopped.
	o.signal("order-service", syscall.SIGSTOP)
	o.signal("stock-service", syscall.SIGCONT)
	o.await("answer of stock-service", func() bool {
		return len(o.query("stockdb", `SELECT 'x' FROM outbox WHERE aggregate_id = $1`, placed.ID)) == 1
	})
	o.await("answer in Kafka", func() bool {
		got := decoded[stuckPrinted](o, "saga", "stuck", "--older=0s")
		return len(got.Orders) == 1 && strings.Contains(strings.Join(got.Orders[0].Waits[0].Around, "\n"), "behind on topic stock.success")
	})
	o.ok([]string{"saga", "show", placed.ID}, "not settled", "stock-service has answered with stock.succeeded, order-service has not handled it", "order-service is not ready", "not yet")
	o.signal("order-service", syscall.SIGCONT)
	if end := o.settled(placed.ID, 30*time.Second); end.Status != "SUCCESS" {
		o.t.Errorf("%s", end)
	}
	o.ok([]string{"saga", "stuck", "--older=0s"}, "no order that is older than 0s waits")
}

// stuckBehindDeadLetter breaks a compensation, finds its dead letter by the order, and redrives it.
func stuckBehindDeadLetter(o *operator) {
	o.exec("stockdb", `ALTER TABLE reservations ADD CONSTRAINT broken CHECK (status <> 'RELEASED') NOT VALID`)
	placed := o.place(o.customer(1), o.item(10), 1, 50)
	o.until(placed.ID, "failed", 10*time.Second, func(o order) bool { return o.Stock.Status == "COMPENSATING" })
	o.await("attention", func() bool {
		return len(o.query("orderdb", `SELECT 'x' FROM orders WHERE id = $1 AND needs_attention`, placed.ID)) == 1
	})
	got := decoded[stuckPrinted](o, "saga", "stuck", "--older=0s")
	if len(got.Orders) != 1 || len(got.Orders[0].Waits) != 1 {
		o.t.Fatalf("%+v", got)
	}
	w := got.Orders[0].Waits[0]
	if w.Step != "stock" || w.Cause != "dead_letter_open" || w.Event != "stock.compensation_requested" || w.Service != "stock" || w.DeadLetter == "" {
		o.t.Errorf("%+v", w)
	}
	o.ok([]string{"saga", "stuck", "--older=0s"}, placed.ID, "needs attention", "outboxctl dead-letters redrive "+w.DeadLetter)
	o.ok([]string{"saga", "show", placed.ID}, "dead letter, open", "dead letters", "broken")
	o.exec("stockdb", `ALTER TABLE reservations DROP CONSTRAINT broken`)
	o.ok([]string{"dead-letters", "redrive", w.DeadLetter}, "1 of 1")
	o.settled(placed.ID, 10*time.Second)
	o.ok([]string{"saga", "stuck", "--older=0s"}, "no order")
	o.ok([]string{"saga", "show", placed.ID}, "redriven by anna", "RELEASED", ", settled")
}
