package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/system"
	"outboxsaga/order-service/order"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
)

// saga is what the three databases know of an order.
type saga struct {
	OrderID     uuid.UUID    `json:"order_id"`
	Order       *orderRow    `json:"order"`       // null: order-service does not know it
	Payment     *paymentRow  `json:"payment"`     // null: payment-service has not acted
	Reservation *reservation `json:"reservation"` // null: stock-service has not acted
	Events      []sagaEvent  `json:"events"`      // in order of time
	DeadLetters []sagaLetter `json:"dead_letters"`
	Waits       []wait       `json:"waits"` // why it is not settled; none if it is
}

type orderRow struct {
	ID             uuid.UUID        `json:"-"`
	CustomerID     string           `json:"customer_id"`
	Status         order.Status     `json:"status"`
	FailureReason  string           `json:"failure_reason,omitempty"`
	NeedsAttention bool             `json:"needs_attention,omitempty"`
	Amount         int64            `json:"amount"` // minor units
	PaymentStatus  order.StepStatus `json:"payment_status"`
	StockStatus    order.StepStatus `json:"stock_status"`
	PaymentCommand uuid.UUID        `json:"-"`
	StockCommand   uuid.UUID        `json:"-"`
	Timeline       string           `json:"-"`
	CreatedAt      time.Time        `json:"created_at"`
	UpdatedAt      time.Time        `json:"updated_at"`
	Settled        bool             `json:"settled" db:"-"`
}

type paymentRow struct {
	OrderID    uuid.UUID `json:"-"`
	CustomerID string    `json:"customer_id,omitempty"`
	Amount     int64     `json:"amount"`
	Status     string    `json:"status"`
	Reason     string    `json:"reason,omitempty"`
	UpdatedAt  time.Time `json:"updated_at"`
}

type reservation struct {
	OrderID   uuid.UUID       `json:"-"`
	Status    string          `json:"status"`
	Reason    string          `json:"reason,omitempty"`
	Items     json.RawMessage `json:"items"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// sagaEvent is an event of an order, or a decision of order-service that no event has asked for.
type sagaEvent struct {
	At      time.Time  `json:"at"`
	Event   string     `json:"event"`
	EventID *uuid.UUID `json:"event_id,omitempty"`
	Topic   string     `json:"topic,omitempty"`
	From    string     `json:"from"`         // the service that wrote it
	To      string     `json:"to,omitempty"` // the service that consumes it
	// ReceivedAt is when the consumer's transaction began; null: not handled yet.
	ReceivedAt *time.Time      `json:"received_at,omitempty"`
	Payload    json.RawMessage `json:"payload,omitempty"`
	// OutboxGone: only order-service's timeline knows the event; its outbox row is past its retention.
	OutboxGone bool `json:"outbox_gone,omitempty"`
}

// sagaLetter is a dead letter of an order's event.
type sagaLetter struct {
	Service    string       `json:"service"`
	ID         uuid.UUID    `json:"id"`
	EventID    string       `json:"event_id"`
	EventType  string       `json:"event_type"`
	Topic      string       `json:"topic"`
	Key        string       `json:"key"`
	Error      string       `json:"error"`
	Attempts   int          `json:"attempts"`
	FailedAt   time.Time    `json:"failed_at"`
	Status     inbox.Status `json:"status"`
	ResolvedAt *time.Time   `json:"resolved_at"`
	ResolvedBy *string      `json:"resolved_by"`
	Reason     *string      `json:"reason"`
}

// databases are connections to the three databases, and what else is known of the system.
type databases struct {
	conns   map[string]*pgx.Conn // by service: order, stock, payment
	brokers []string             // of Kafka; none: not known
	local   bool                 // the local stack: services are on this machine
}

// openDatabases connects to the databases of the local stack, or to those that the environment
// names. The sessions can only read.
func openDatabases(ctx context.Context, cmd *cobra.Command) (_ *databases, err error) {
	d := &databases{conns: map[string]*pgx.Conn{}}
	defer func() {
		if err != nil {
			d.close(ctx)
		}
	}()
	if os.Getenv("KAFKA_BROKERS") != "" {
		if d.brokers, err = kafkaBrokers(cmd); err != nil {
			return nil, err
		}
	}
	for _, s := range system.Services() {
		short := strings.TrimSuffix(s.Name, "-service")
		address, variable, err := databaseURL(cmd, s.Database.Name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", variable, err)
		}
		if os.Getenv(variable) == "" && !d.local {
			d.local = true
			if d.brokers, err = kafkaBrokers(cmd); err != nil {
				return nil, err
			}
		}
		cfg, err := pgx.ParseConfig(address)
		if err != nil {
			return nil, fmt.Errorf("%s is not the URL of a database (postgres://user@host:port/%s): %w", variable, s.Database.Name, err)
		}
		cfg.RuntimeParams["default_transaction_read_only"] = "on"
		cfg.RuntimeParams["application_name"] = "outboxctl"
		if d.conns[short], err = pgx.ConnectConfig(ctx, cfg); err != nil {
			delete(d.conns, short)
			return nil, fmt.Errorf("the database of %s does not answer: start the system with scripts/up.sh, or set %s: %w", s.Name, variable, err)
		}
	}
	return d, nil
}

func (d *databases) close(ctx context.Context) {
	for _, c := range d.conns {
		c.Close(context.WithoutCancel(ctx))
	}
}

// query reads rows from a service's database.
func query[T any](ctx context.Context, d *databases, service, what, sql string, args ...any) ([]T, error) {
	rows, err := d.conns[service].Query(ctx, sql, args...)
	var found []T
	if err == nil {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	}
	if err != nil {
		return nil, fmt.Errorf("read %s from the database of %s-service: %w", what, service, err)
	}
	return found, nil
}

const orderColumns = `id, customer_id, status, failure_reason, needs_attention, amount, payment_status, stock_status,
       payment_command, stock_command, timeline, created_at, updated_at`

func (d *databases) orders(ctx context.Context, ids []uuid.UUID) ([]orderRow, error) {
	return ordersOf(query[orderRow](ctx, d, "order", "orders", `SELECT `+orderColumns+` FROM orders WHERE id = ANY($1) ORDER BY id`, ids))
}

// unsettled are orders placed longer ago than older that wait for something, oldest first. There is no
// index for those that have failed already: it would cost every order.
func (d *databases) unsettled(ctx context.Context, older time.Duration, limit int) ([]orderRow, error) {
	return ordersOf(query[orderRow](ctx, d, "order", "orders", `SELECT `+orderColumns+` FROM orders
		WHERE id < uuidv7_floor(clock_timestamp() - make_interval(secs => $1))
		  AND (payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING'))
		ORDER BY id LIMIT $2`, older.Seconds(), limit))
}

func ordersOf(rows []orderRow, err error) ([]orderRow, error) {
	for i := range rows {
		o := &rows[i]
		o.Settled = order.Order{Payment: order.Step{Status: o.PaymentStatus}, Stock: order.Step{Status: o.StockStatus}}.Settled()
		o.CreatedAt, o.UpdatedAt = o.CreatedAt.UTC(), o.UpdatedAt.UTC()
	}
	return rows, err
}

// outboxRow is an event as its outbox has it.
type outboxRow struct {
	ID          uuid.UUID
	Topic, Type string
	OrderID     string
	Payload     string
	At          time.Time
}

// sagas reads all that the databases know of orders. rows are those of order-service; an id
// without a row may be known to the others.
func (d *databases) sagas(ctx context.Context, ids []uuid.UUID, rows []orderRow) ([]*saga, error) {
	all := make([]*saga, len(ids))
	of := map[string]*saga{}
	for i, id := range ids {
		all[i] = &saga{OrderID: id, Events: []sagaEvent{}, DeadLetters: []sagaLetter{}, Waits: []wait{}}
		of[id.String()] = all[i]
	}
	for i := range rows {
		of[rows[i].ID.String()].Order = &rows[i]
	}
	payments, err := query[paymentRow](ctx, d, "payment", "payments", `SELECT order_id, customer_id, amount, status, reason, updated_at FROM payments WHERE order_id = ANY($1)`, ids)
	if err != nil {
		return nil, err
	}
	for i := range payments {
		of[payments[i].OrderID.String()].Payment = &payments[i]
	}
	reservations, err := query[reservation](ctx, d, "stock", "reservations", `SELECT order_id, status, reason, items, updated_at FROM reservations WHERE order_id = ANY($1)`, ids)
	if err != nil {
		return nil, err
	}
	for i := range reservations {
		of[reservations[i].OrderID.String()].Reservation = &reservations[i]
	}
	if err := d.readEvents(ctx, of); err != nil {
		return nil, err
	}
	if err := d.readReceived(ctx, all); err != nil {
		return nil, err
	}
	return all, d.readLetters(ctx, of)
}

// readEvents reads the events of the outboxes and of the timelines.
func (d *databases) readEvents(ctx context.Context, of map[string]*saga) error {
	var keys []string
	var since uuid.UUID
	for key, s := range of {
		keys = append(keys, key)
		if from := around(s.OrderID); since == (uuid.UUID{}) || slices.Compare(from[:], since[:]) < 0 {
			since = from
		}
	}
	for _, s := range system.Services() {
		service := strings.TrimSuffix(s.Name, "-service")
		// Not indexed by order, which would cost every event: the bound on the id leaves out older partitions.
		rows, err := query[outboxRow](ctx, d, service, "events", `SELECT id, topic, type, aggregate_id, payload, created_at FROM outbox WHERE id >= $1 AND aggregate_id = ANY($2)`, since, keys)
		if err != nil {
			return err
		}
		for _, r := range rows {
			e := sagaEvent{At: r.At, Event: r.Type, EventID: &r.ID, Topic: r.Topic, From: service, To: events.Consumer(r.Topic)}
			if json.Valid([]byte(r.Payload)) {
				e.Payload = json.RawMessage(r.Payload)
			}
			of[r.OrderID].Events = append(of[r.OrderID].Events, e)
		}
	}
	for _, s := range of {
		if s.Order != nil {
			s.addTimeline()
		}
		slices.SortStableFunc(s.Events, func(a, b sagaEvent) int { return a.At.Compare(b.At) })
	}
	return nil
}

// around is a bound below the ids of all events of an order: the time of its own id, less what clocks of
// several machines may differ. An id that holds no time gives the lowest bound.
func around(id uuid.UUID) uuid.UUID {
	if id.Version() != 7 {
		return uuid.UUID{}
	}
	var at int64
	for _, b := range id[:6] {
		at = at<<8 | int64(b)
	}
	at = max(0, at-(10*time.Minute).Milliseconds())
	var bound uuid.UUID
	for i := 5; i >= 0; i, at = i-1, at>>8 {
		bound[i] = byte(at)
	}
	return bound
}

// timelineEntry is a line of an order's timeline.
type timelineEntry struct {
	At      time.Time `json:"at"`
	Event   string    `json:"event"`
	EventID string    `json:"event_id"`
}

// addTimeline adds what only order-service has: its decisions, and events whose outbox rows are gone. The placing
// is in the order's columns, what came after it in the timeline.
func (s *saga) addTimeline() {
	known := map[string]bool{}
	for _, e := range s.Events {
		known[e.EventID.String()] = true
	}
	entries := []timelineEntry{
		{s.Order.CreatedAt, "order.placed", ""},
		{s.Order.CreatedAt, events.TypePaymentRequested, s.Order.PaymentCommand.String()},
		{s.Order.CreatedAt, events.TypeStockRequested, s.Order.StockCommand.String()},
	}
	for line := range strings.Lines(s.Order.Timeline) {
		var entry timelineEntry
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Event != "order.placed" {
			entries = append(entries, entry)
		}
	}
	var added []sagaEvent
	for _, entry := range entries {
		if known[entry.EventID] {
			continue
		}
		e := sagaEvent{At: entry.At, Event: entry.Event, From: "order"}
		if id, err := uuid.Parse(entry.EventID); err == nil {
			known[entry.EventID] = true
			e.EventID, e.OutboxGone = &id, true
			e.From, e.To = ends(entry.Event)
		}
		added = append(added, e)
	}
	s.Events = append(added, s.Events...) // at the same time the decision comes first
}

// ends are the writer and the consumer of an event type.
func ends(eventType string) (from, to string) {
	participant, what, _ := strings.Cut(eventType, ".")
	if strings.HasSuffix(what, "requested") {
		return "order", participant
	}
	return participant, "order"
}

// readReceived finds when the consumers handled the events.
func (d *databases) readReceived(ctx context.Context, all []*saga) error {
	wanted := map[string][]uuid.UUID{}
	for _, s := range all {
		for _, e := range s.Events {
			if e.EventID != nil && e.To != "" {
				wanted[e.To] = append(wanted[e.To], *e.EventID)
			}
		}
	}
	type seen struct {
		ID uuid.UUID
		At time.Time
	}
	at := map[string]time.Time{}
	for service, ids := range wanted {
		rows, err := query[seen](ctx, d, service, "the inbox", `SELECT event_id, received_at FROM inbox WHERE event_id = ANY($1)`, ids)
		if err != nil {
			return err
		}
		for _, r := range rows {
			at[service+r.ID.String()] = r.At.UTC()
		}
	}
	for _, s := range all {
		for i := range s.Events {
			e := &s.Events[i]
			if e.EventID == nil {
				continue
			}
			if t, ok := at[e.To+e.EventID.String()]; ok {
				e.ReceivedAt = &t
			}
		}
	}
	return nil
}

// readLetters finds the dead letters of the orders: by key, and by event id.
func (d *databases) readLetters(ctx context.Context, of map[string]*saga) error {
	var keys [][]byte
	var ids []string
	byEvent := map[string]*saga{}
	for key, s := range of {
		keys = append(keys, []byte(key))
		for _, e := range s.Events {
			if e.EventID != nil {
				ids = append(ids, e.EventID.String())
				byEvent[e.EventID.String()] = s
			}
		}
	}
	for _, s := range system.Services() {
		service := strings.TrimSuffix(s.Name, "-service")
		letters, err := query[sagaLetter](ctx, d, service, "dead letters", `SELECT $3::text, id, event_id, event_type, topic, encode(key, 'escape'), error, attempts, failed_at, status,
		       resolved_at, resolved_by, reason FROM dead_letters WHERE key = ANY($1::bytea[]) OR event_id = ANY($2::text[]) ORDER BY id`, keys, ids, service)
		if err != nil {
			return err
		}
		for _, l := range letters {
			owner := of[l.Key]
			if owner == nil {
				owner = byEvent[l.EventID]
			}
			l.FailedAt = l.FailedAt.UTC()
			owner.DeadLetters = append(owner.DeadLetters, l)
		}
	}
	return nil
}

// readSlot is what PostgreSQL knows of the slot of a database's connector.
func readSlot(ctx context.Context, conn *pgx.Conn, database string) (slot, error) {
	s := slot{Connector: database, Slot: provision.Database{Name: database}.Slot()}
	err := conn.QueryRow(ctx, `SELECT coalesce(s.active, false), CASE WHEN s.slot_name IS NULL THEN 'missing' ELSE coalesce(s.wal_status, '') END,
			coalesce(s.confirmed_flush_lsn - '0/0', 0)::bigint, (pg_current_wal_lsn() - '0/0')::bigint
		FROM (VALUES ($1::name)) wanted (name) LEFT JOIN pg_replication_slots s ON s.slot_name = wanted.name`, s.Slot).Scan(&s.Active, &s.WALStatus, &s.Confirmed, &s.WAL)
	if err != nil {
		return s, fmt.Errorf("read the slot %s: %w", s.Slot, err)
	}
	if s.WALStatus != "missing" {
		s.LagBytes = s.WAL - s.Confirmed
	}
	return s, nil
}
