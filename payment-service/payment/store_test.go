package payment_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
	"outboxsaga/outbox"
	"outboxsaga/payment-service/migrations"
	"outboxsaga/payment-service/payment"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// open starts a participant with its writers on a fresh database.
func open(t *testing.T) (*payment.Store, servicetest.Participant) {
	t.Helper()
	pool := servicetest.Pool(t, append(system.SharedMigrations(), provision.Migrations{FS: migrations.FS, Path: ".", Table: service.SchemaTable}))
	store := payment.NewStore(pool)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return store, servicetest.Participant{Pool: pool, Decode: payment.Decode, Batch: payment.NewBatch}
}

func deposit(t *testing.T, s *payment.Store, customerID string, amount int64) {
	t.Helper()
	if _, err := s.Deposit(t.Context(), payment.DepositRequest{CustomerID: customerID, Amount: amount}); err != nil {
		t.Fatal(err)
	}
}

func deliver(t *testing.T, p servicetest.Participant, messages ...events.Message) []string {
	t.Helper()
	sent, err := p.Deliver(t.Context(), messages...)
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

func account(t *testing.T, s *payment.Store, customerID string) payment.Account {
	t.Helper()
	a, err := s.Account(t.Context(), customerID)
	if err != nil || a == nil {
		t.Fatal(a, err)
	}
	return *a
}

func order() string { return outbox.NewID().String() }

func TestACommandAndItsCompensation(t *testing.T) {
	store, p := open(t)
	deposit(t, store, "alice", 100)
	id := order()
	success := []string{fmt.Sprintf(`payment.success {"order_id":"%s","amount":70}`, id)}
	refunded := []string{fmt.Sprintf(`payment.compensated {"order_id":"%s","outcome":"refunded"}`, id)}
	for range 2 { // the second time with a new event id
		if got := deliver(t, p, events.RequestPayment(id, "alice", 70)); !slices.Equal(got, success) {
			t.Fatal(got)
		}
		if a := account(t, store, "alice"); a != (payment.Account{CustomerID: "alice", Balance: 30, Charged: 70, Deposited: 100}) {
			t.Fatal(a)
		}
	}
	for range 2 {
		if got := deliver(t, p, events.CompensatePayment(id)); !slices.Equal(got, refunded) {
			t.Fatal(got)
		}
		if a := account(t, store, "alice"); a != (payment.Account{CustomerID: "alice", Balance: 100, Deposited: 100}) {
			t.Fatal(a)
		}
	}
	v, err := store.Payment(t.Context(), uuid.MustParse(id))
	if err != nil || v == nil || v.Status != payment.Refunded || v.Amount != 70 || v.CustomerID != "alice" {
		t.Fatal(v, err)
	}
}

func TestABatchActsInOrder(t *testing.T) {
	store, p := open(t)
	deposit(t, store, "alice", 3)
	a, b, c, d := order(), order(), order(), order()
	got := deliver(t, p,
		events.RequestPayment(a, "alice", 2),
		events.RequestPayment(b, "alice", 2), // refused: one is left
		events.CompensatePayment(a),
		events.RequestPayment(c, "alice", 3),
		events.CompensatePayment(d), // barred
		events.RequestPayment(d, "alice", 1),
	)
	want := []string{
		fmt.Sprintf(`payment.success {"order_id":"%s","amount":2}`, a),
		fmt.Sprintf(`payment.failed {"order_id":"%s","reason":"insufficient_funds"}`, b),
		fmt.Sprintf(`payment.compensated {"order_id":"%s","outcome":"refunded"}`, a),
		fmt.Sprintf(`payment.success {"order_id":"%s","amount":3}`, c),
		fmt.Sprintf(`payment.compensated {"order_id":"%s","outcome":"nothing_to_refund"}`, d),
		fmt.Sprintf(`payment.failed {"order_id":"%s","reason":"compensated"}`, d),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if a := account(t, store, "alice"); a != (payment.Account{CustomerID: "alice", Charged: 3, Deposited: 3}) {
		t.Error(a)
	}
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM outbox`); n != "6" {
		t.Error(n, "outbox rows")
	}
}

// Two instances get a command and its compensation at the same time, many times: what
// stands is what the answers say.
func TestConcurrentInstances(t *testing.T) {
	store, p := open(t)
	const orders = 150
	deposit(t, store, "alice", 200)
	deposit(t, store, "bob", 200)
	var messages []events.Message
	for i := range orders {
		id, customer := order(), []string{"alice", "bob"}[i%2]
		messages = append(messages, events.RequestPayment(id, customer, 2), events.RequestPayment(id, customer, 2),
			events.CompensatePayment(id), events.CompensatePayment(id))
	}
	rand.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
	var all sync.WaitGroup
	work := make(chan []events.Message)
	for range 4 {
		all.Go(func() {
			for batch := range work {
				if _, err := p.Deliver(t.Context(), batch...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for batch := range slices.Chunk(messages, 7) {
		work <- batch
	}
	close(work)
	all.Wait()
	for _, customer := range []string{"alice", "bob"} {
		if a := account(t, store, customer); a != (payment.Account{CustomerID: customer, Balance: 200, Deposited: 200}) {
			t.Error(a)
		}
	}
	// Every command and every compensation was answered.
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM outbox`); n != fmt.Sprint(len(messages)) {
		t.Error(n, "answers")
	}
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM payments WHERE status NOT IN ('REFUNDED', 'BARRED', 'REFUSED')`); n != "0" {
		t.Error(n, "payments are not settled")
	}
}

func TestDecodeRejectsWhatCanNeverWork(t *testing.T) {
	id := order()
	good := fmt.Sprintf(`{"order_id":%q,"customer_id":"alice","amount":1}`, id)
	for name, ev := range map[string]inbox.Event{
		"another service's": {Type: events.TypeStockCompensationRequested, Key: id, Payload: []byte(good)},
		"unknown type":      {Type: "payment.stolen", Key: id, Payload: []byte(good)},
		"key is no UUID":    {Type: events.TypePaymentRequested, Key: "x", Payload: []byte(`{"order_id":"x","customer_id":"alice","amount":1}`)},
		"key in upper case": {Type: events.TypePaymentRequested, Key: strings.ToUpper(id), Payload: []byte(strings.ReplaceAll(good, id, strings.ToUpper(id)))},
		"key of another":    {Type: events.TypePaymentRequested, Key: order(), Payload: []byte(good)},
		"no customer":       {Type: events.TypePaymentRequested, Key: id, Payload: []byte(strings.Replace(good, "alice", "", 1))},
		"negative":          {Type: events.TypePaymentRequested, Key: id, Payload: []byte(strings.Replace(good, ":1}", ":-1}", 1))},
		"fraction":          {Type: events.TypePaymentRequested, Key: id, Payload: []byte(strings.Replace(good, ":1}", ":1.5}", 1))},
		"NUL in a customer": {Type: events.TypePaymentRequested, Key: id, Payload: []byte(strings.Replace(good, "alice", `a\u0000`, 1))},
	} {
		if body, err := payment.Decode(ev); err == nil {
			t.Errorf("%s: %+v", name, body)
		}
	}
	if _, err := payment.Decode(inbox.Event{Type: events.TypePaymentRequested, Key: id, Payload: []byte(good)}); err != nil {
		t.Error(err)
	}
}

// The database refuses what the decisions never make.
func TestTheRulesAreConstraints(t *testing.T) {
	store, p := open(t)
	deposit(t, store, "alice", 5)
	const insert = `INSERT INTO payments (order_id, customer_id, amount, status, reason) VALUES (gen_random_uuid(), `
	for name, sql := range map[string]string{
		"money lost":            `UPDATE accounts SET balance = balance - 1`,
		"below zero":            `UPDATE accounts SET balance = -1, charged = 6`,
		"charged below zero":    `UPDATE accounts SET balance = 6, charged = -1`,
		"too much":              `UPDATE accounts SET balance = 1000000000000001, deposited = 1000000000000001`,
		"unknown status":        insert + `'alice', 1, 'MAYBE', '')`,
		"refused, no reason":    insert + `'alice', 1, 'REFUSED', '')`,
		"charged with reason":   insert + `'alice', 1, 'CHARGED', 'unknown_customer')`,
		"unknown reason":        insert + `'alice', 1, 'REFUSED', 'mood')`,
		"charged nothing":       insert + `'alice', 0, 'CHARGED', '')`,
		"charged less":          insert + `'alice', -1, 'CHARGED', '')`,
		"charged nobody":        insert + `'', 1, 'CHARGED', '')`,
		"barred with an amount": insert + `'', 1, 'BARRED', '')`,
		"another service topic": `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES (uuidv7(), 'stock.success', 'order', 'x', 'x', '{}')`,
	} {
		_, err := p.Pool.Exec(t.Context(), sql)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "23514" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, want := servicetest.OutboxTopics(t, p.Pool), events.PaymentTopics(); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("the constraint has %q, the contract %q", got, want)
	}
}
