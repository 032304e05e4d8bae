package order_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
	"outboxsaga/order-service/migrations"
	"outboxsaga/order-service/order"

	"github.com/google/uuid"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// office is an instance of order-service's saga with its background work, on a database
// that several may share.
type office struct {
	*order.Saga
	servicetest.Participant
	ctx   context.Context
	drain func() // as at the beginning of a shutdown
}

// open starts an instance on a fresh database.
func open(t testing.TB, timeout time.Duration) office {
	t.Helper()
	return join(t, database(t), timeout)
}

func database(t testing.TB) *service.Pool {
	t.Helper()
	return servicetest.Pool(t, append(system.SharedMigrations(), provision.Migrations{FS: migrations.FS, Path: ".", Table: service.SchemaTable}))
}

// join starts one more instance.
func join(t testing.TB, pool *service.Pool, timeout time.Duration, change ...func(*order.Saga)) office {
	t.Helper()
	draining := make(chan struct{})
	saga := order.NewSaga(service.Runtime{Pool: pool, Log: slog.New(slog.DiscardHandler), Draining: draining}, timeout)
	for _, f := range change {
		f(saga)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	work := saga.Background()
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
	return office{
		Saga:        saga,
		Participant: servicetest.Participant{Pool: pool, Decode: order.Decode, Batch: saga.NewBatch},
		ctx:         ctx,
		drain:       func() { close(draining) },
	}
}

func placement() order.Placement {
	return order.Placement{CustomerID: "alice", Lines: []order.Line{{SKU: "book", Quantity: 2, UnitPrice: 1500}}, Amount: 3000}
}

// place places an order and returns its id.
func (o office) place(t testing.TB) uuid.UUID {
	t.Helper()
	placed, err := o.Place(t.Context(), placement())
	if err != nil {
		t.Fatal(err)
	}
	return placed.ID
}

// deliver handles messages in one transaction and returns what was sent, as "topic payload".
func (o office) deliver(t testing.TB, messages ...events.Message) []string {
	t.Helper()
	sent, err := o.Deliver(t.Context(), messages...)
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

// state is an order as "STATUS payment STATUS, stock STATUS".
func (o office) state(t testing.TB, id uuid.UUID) string {
	t.Helper()
	v := o.view(t, id)
	text := fmt.Sprintf("%s payment %s, stock %s", v.Status, v.Payment.Status, v.Stock.Status)
	if v.FailureReason != nil {
		text += ", " + *v.FailureReason
	}
	if v.NeedsAttention {
		text += ", needs attention"
	}
	return text
}

func (o office) view(t testing.TB, id uuid.UUID) order.View {
	t.Helper()
	v, err := o.Get(t.Context(), id)
	if err != nil || v == nil {
		t.Fatal(v, err)
	}
	return *v
}

// commands are the event ids of the two commands that an order has sent.
func (o office) commands(t testing.TB, id uuid.UUID) (payment, stock string) {
	t.Helper()
	err := o.Pool.QueryRow(t.Context(), `SELECT payment_command::text, stock_command::text FROM orders WHERE id = $1`, id).Scan(&payment, &stock)
	if err != nil {
		t.Fatal(err)
	}
	return payment, stock
}

// timelineEntry is a line of a timeline.
type timelineEntry struct {
	At                     time.Time
	Event, EventID, Reason string
}

func decodeEntry(t testing.TB, text json.RawMessage) timelineEntry {
	t.Helper()
	var e struct {
		At      time.Time `json:"at"`
		Event   string    `json:"event"`
		EventID string    `json:"event_id"`
		Reason  string    `json:"reason"`
	}
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return timelineEntry(e)
}

// sent are the topics of an order's outbox rows, sorted.
func (o office) sent(t testing.TB, id uuid.UUID) []string {
	t.Helper()
	topics, err := service.Select[string](t.Context(), o.Pool, "outbox", `SELECT topic FROM outbox WHERE aggregate_id = $1`, id.String())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(topics)
	return topics
}
