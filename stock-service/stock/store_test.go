package stock_test

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
	"outboxsaga/stock-service/migrations"
	"outboxsaga/stock-service/stock"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// open starts a participant with its writers on a fresh database.
func open(t *testing.T) (*stock.Store, servicetest.Participant) {
	t.Helper()
	pool := servicetest.Pool(t, append(system.SharedMigrations(), provision.Migrations{FS: migrations.FS, Path: ".", Table: service.SchemaTable}))
	store := stock.NewStore(pool)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return store, servicetest.Participant{Pool: pool, Decode: stock.Decode, Batch: stock.NewBatch}
}

func receive(t *testing.T, s *stock.Store, sku string, quantity int64) {
	t.Helper()
	if _, err := s.Receive(t.Context(), stock.Receipt{SKU: sku, Quantity: quantity}); err != nil {
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

func item(t *testing.T, s *stock.Store, sku string) stock.Item {
	t.Helper()
	i, err := s.Item(t.Context(), sku)
	if err != nil || i == nil {
		t.Fatal(i, err)
	}
	return *i
}

func order() string { return outbox.NewID().String() }

func one(sku string, quantity int64) []events.Item {
	return []events.Item{{SKU: sku, Quantity: quantity}}
}

func TestACommandAndItsCompensation(t *testing.T) {
	store, p := open(t)
	receive(t, store, "book", 5)
	receive(t, store, "pen", 1)
	id := order()
	items := []events.Item{{SKU: "book", Quantity: 2}, {SKU: "pen", Quantity: 1}}
	success := []string{fmt.Sprintf(`stock.success {"order_id":"%s"}`, id)}
	released := []string{fmt.Sprintf(`stock.compensated {"order_id":"%s","outcome":"released"}`, id)}
	for range 2 { // the second time with a new event id
		if got := deliver(t, p, events.RequestStock(id, items)); !slices.Equal(got, success) {
			t.Fatal(got)
		}
		if i := item(t, store, "book"); i != (stock.Item{SKU: "book", Available: 3, Reserved: 2, Received: 5}) {
			t.Fatal(i)
		}
	}
	for range 2 {
		if got := deliver(t, p, events.CompensateStock(id)); !slices.Equal(got, released) {
			t.Fatal(got)
		}
		if i := item(t, store, "pen"); i != (stock.Item{SKU: "pen", Available: 1, Received: 1}) {
			t.Fatal(i)
		}
	}
	v, err := store.Reservation(t.Context(), uuid.MustParse(id))
	if err != nil || v == nil || v.Status != stock.Released || string(v.Items) != `[{"sku":"book","quantity":2},{"sku":"pen","quantity":1}]` {
		t.Fatal(v, err)
	}
}

func TestABatchActsInOrder(t *testing.T) {
	store, p := open(t)
	receive(t, store, "book", 3)
	a, b, c, d := order(), order(), order(), order()
	got := deliver(t, p,
		events.RequestStock(a, one("book", 2)),
		events.RequestStock(b, one("book", 2)), // refused: one is left
		events.CompensateStock(a),
		events.RequestStock(c, one("book", 3)),
		events.CompensateStock(d), // barred
		events.RequestStock(d, one("book", 1)),
	)
	want := []string{
		fmt.Sprintf(`stock.success {"order_id":"%s"}`, a),
		fmt.Sprintf(`stock.failed {"order_id":"%s","reason":"insufficient_stock"}`, b),
		fmt.Sprintf(`stock.compensated {"order_id":"%s","outcome":"released"}`, a),
		fmt.Sprintf(`stock.success {"order_id":"%s"}`, c),
		fmt.Sprintf(`stock.compensated {"order_id":"%s","outcome":"nothing_to_release"}`, d),
		fmt.Sprintf(`stock.failed {"order_id":"%s","reason":"compensated"}`, d),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if i := item(t, store, "book"); i != (stock.Item{SKU: "book", Reserved: 3, Received: 3}) {
		t.Error(i)
	}
	sent := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM outbox`)
	if sent != "6" {
		t.Error(sent, "outbox rows")
	}
}

// Two instances get a command and its compensation at the same time, many times: what
// stands is what the answers say.
func TestConcurrentInstances(t *testing.T) {
	store, p := open(t)
	const orders = 150
	receive(t, store, "a", 200)
	receive(t, store, "b", 200)
	var messages []events.Message
	for range orders {
		id := order()
		messages = append(messages, events.RequestStock(id, []events.Item{{SKU: "b", Quantity: 1}, {SKU: "a", Quantity: 2}}),
			events.RequestStock(id, one("a", 1)), events.CompensateStock(id), events.CompensateStock(id))
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
	for _, sku := range []string{"a", "b"} {
		if i := item(t, store, sku); i != (stock.Item{SKU: sku, Available: 200, Received: 200}) {
			t.Error(i)
		}
	}
	// Every command and every compensation was answered.
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM outbox`); n != fmt.Sprint(len(messages)) {
		t.Error(n, "answers")
	}
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM reservations WHERE status NOT IN ('RELEASED', 'BARRED', 'REFUSED')`); n != "0" {
		t.Error(n, "reservations are not settled")
	}
}

func TestDecodeRejectsWhatCanNeverWork(t *testing.T) {
	id := order()
	good := fmt.Sprintf(`{"order_id":%q,"items":[{"sku":"a","quantity":1}]}`, id)
	for name, ev := range map[string]inbox.Event{
		"another service's": {Type: events.TypePaymentCompensationRequested, Key: id, Payload: []byte(good)},
		"unknown type":      {Type: "stock.stolen", Key: id, Payload: []byte(good)},
		"key is no UUID":    {Type: events.TypeStockRequested, Key: "x", Payload: []byte(`{"order_id":"x","items":[{"sku":"a","quantity":1}]}`)},
		"key in upper case": {Type: events.TypeStockRequested, Key: strings.ToUpper(id), Payload: []byte(strings.ReplaceAll(good, id, strings.ToUpper(id)))},
		"key of another":    {Type: events.TypeStockRequested, Key: order(), Payload: []byte(good)},
		"no items":          {Type: events.TypeStockRequested, Key: id, Payload: []byte(strings.Replace(good, `{"sku":"a","quantity":1}`, "", 1))},
		"negative":          {Type: events.TypeStockRequested, Key: id, Payload: []byte(strings.Replace(good, ":1", ":-1", 1))},
		"fraction":          {Type: events.TypeStockRequested, Key: id, Payload: []byte(strings.Replace(good, ":1", ":1.5", 1))},
		"NUL in an SKU":     {Type: events.TypeStockRequested, Key: id, Payload: []byte(strings.Replace(good, `"a"`, `"a\u0000"`, 1))},
	} {
		if body, err := stock.Decode(ev); err == nil {
			t.Errorf("%s: %+v", name, body)
		}
	}
	if _, err := stock.Decode(inbox.Event{Type: events.TypeStockRequested, Key: id, Payload: []byte(good)}); err != nil {
		t.Error(err)
	}
}

// The database refuses what the decisions never make.
func TestTheRulesAreConstraints(t *testing.T) {
	store, p := open(t)
	receive(t, store, "book", 5)
	for name, sql := range map[string]string{
		"goods lost":            `UPDATE items SET available = available - 1`,
		"below zero":            `UPDATE items SET available = -1, reserved = 6`,
		"reserved below zero":   `UPDATE items SET available = 6, reserved = -1`,
		"too much":              `UPDATE items SET available = 1000000000000001, received = 1000000000000001`,
		"unknown status":        `INSERT INTO reservations (order_id, status, reason, items) VALUES (gen_random_uuid(), 'MAYBE', '', '[{}]')`,
		"refused, no reason":    `INSERT INTO reservations (order_id, status, reason, items) VALUES (gen_random_uuid(), 'REFUSED', '', '[{}]')`,
		"reserved with reason":  `INSERT INTO reservations (order_id, status, reason, items) VALUES (gen_random_uuid(), 'RESERVED', 'unknown_item', '[{}]')`,
		"unknown reason":        `INSERT INTO reservations (order_id, status, reason, items) VALUES (gen_random_uuid(), 'REFUSED', 'mood', '[{}]')`,
		"reserved, no items":    `INSERT INTO reservations (order_id, status, reason, items) VALUES (gen_random_uuid(), 'RESERVED', '', '[]')`,
		"another service topic": `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES (uuidv7(), 'payment.success', 'order', 'x', 'x', '{}')`,
	} {
		_, err := p.Pool.Exec(t.Context(), sql)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "23514" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, want := servicetest.OutboxTopics(t, p.Pool), events.StockTopics(); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("the constraint has %q, the contract %q", got, want)
	}
}
