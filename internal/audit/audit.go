// Package audit proves, on the three databases, that nothing was lost, invented or done twice.
//
// The rules ([Rules]) are about what is committed. They are read in an order that makes them
// true while the system works: an outbox row is read before the inbox that must have its id, an
// inbox row before the outbox that must have written it, a settled order before the payment and the
// reservation that it stands on. What is younger than [Options].Grace may be under way and is not judged; what
// looks wrong is looked at once more before it is reported.
//
// An audit reads in pages by id (UUIDv7, so in the order of time) and merges them here: its memory does
// not grow with the tables, it holds no lock and no long transaction. It sees what retention has
// left: events in the retained partitions, orders for ever.
package audit

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Databases are pools whose roles may read all tables.
type Databases struct{ Order, Stock, Payment *pgxpool.Pool }

// Options of an audit. The zero value is good.
type Options struct {
	// Grace is how old an event must be before it must have arrived. Default 10 s.
	Grace time.Duration
	// Since is how far back events and orders are read. 0: all that is there.
	Since time.Duration
	// OrderTimeout is that of order-service: after it an order is no longer in progress. Default 60 s.
	OrderTimeout time.Duration
	// MaxIDs is how many ids a violation names. Default 20.
	MaxIDs int
}

// The rules.
const (
	EventLost     = "event-lost"     // an event is in no inbox of its topic's consumer, and no dead letter
	EventInvented = "event-invented" // an inbox has an id that no outbox wrote
	EventTwice    = "event-twice"    // an order has two events of one type: a step was asked, answered or undone twice
	Conserved     = "conservation"   // goods or money are not conserved, or not what reservations and payments say
	OrderEffect   = "order-effect"   // an order's state and its payment or reservation contradict each other
	OrderLate     = "order-late"     // an order is not settled long after its time
)

// Rules are all rules, in the order in which they are shown.
func Rules() []string {
	return []string{EventLost, EventInvented, EventTwice, Conserved, OrderEffect, OrderLate}
}

// Violation is a rule that does not hold.
type Violation struct {
	Rule   string   `json:"rule"`
	Detail string   `json:"detail"`
	Count  int      `json:"count"`
	IDs    []string `json:"ids,omitempty"` // of events, orders, items or customers; the first ones
}

// Report is the result of an audit.
type Report struct {
	At       time.Time     `json:"at"`
	Duration time.Duration `json:"duration_ns"`
	// Checked counts what was judged: events, inbox_ids, orders, items, accounts.
	Checked map[string]int64 `json:"checked"`
	// Late counts events that an earlier round of the same [Auditor] missed and that have arrived since.
	Late int64 `json:"late"`
	// Open are the orders that are not settled and not yet late; Attention those that wait for a person, who
	// must redrive a dead letter.
	Open       int64       `json:"open_orders"`
	Attention  int64       `json:"orders_need_attention"`
	Violations []Violation `json:"violations"`
}

// Clean tells whether every rule holds.
func (r Report) Clean() bool { return len(r.Violations) == 0 }

// Once audits all that is there.
func Once(ctx context.Context, db Databases, o Options) (Report, error) {
	return New(db, o).Round(ctx)
}

// Auditor audits again and again, and each time only what is new or was not settled. [New] makes one.
type Auditor struct {
	db Databases
	o  Options

	events map[string]id // by outbox: all before were found in their inboxes
	inbox  map[string]id // by inbox
	orders id
	lost   map[id]string      // missing events → their consumer
	twice  map[string]*recent // by outbox
}

// New makes an auditor. It connects to nothing.
func New(db Databases, o Options) *Auditor {
	o.Grace = cmp.Or(o.Grace, 10*time.Second)
	o.OrderTimeout = cmp.Or(o.OrderTimeout, time.Minute)
	o.MaxIDs = cmp.Or(o.MaxIDs, 20)
	return &Auditor{db: db, o: o, events: map[string]id{}, inbox: map[string]id{}, lost: map[id]string{}, twice: map[string]*recent{}}
}

// Round audits what the last round has not, or could not yet. An error means that the databases
// could not be read; the next round goes on from where this one began.
func (a *Auditor) Round(ctx context.Context) (Report, error) {
	begin := time.Now()
	r := &round{Auditor: a, now: begin, report: Report{At: begin.UTC(), Checked: map[string]int64{}}, found: map[string]*Violation{}}
	for _, step := range []func(context.Context) error{r.auditEvents, r.auditInboxes, r.auditOrders, r.auditBalances} {
		if err := step(ctx); err != nil {
			return r.report, fmt.Errorf("audit: %w", err)
		}
	}
	r.report.Violations = []Violation{}
	for _, rule := range Rules() {
		for _, key := range slices.Sorted(maps.Keys(r.found)) {
			if v := r.found[key]; v.Rule == rule {
				r.report.Violations = append(r.report.Violations, *v)
			}
		}
	}
	r.report.Duration = time.Since(begin)
	return r.report, nil
}

// round is one audit.
type round struct {
	*Auditor
	now    time.Time
	report Report
	found  map[string]*Violation // by rule and detail
}

// violate notes that a rule does not hold for an id.
func (r *round) violate(rule, id, detail string, values ...any) {
	detail = fmt.Sprintf(detail, values...)
	v := r.found[rule+detail]
	if v == nil {
		v = &Violation{Rule: rule, Detail: detail}
		r.found[rule+detail] = v
	}
	v.Count++
	if len(v.IDs) < r.o.MaxIDs {
		v.IDs = append(v.IDs, id)
	}
}

// id is a UUIDv7, in PostgreSQL's order.
type id [16]byte

func (i id) String() string { return uuid.UUID(i).String() }

func (i id) before(j id) bool { return order(i, j) < 0 }

// order is that of PostgreSQL.
func order(i, j id) int { return bytes.Compare(i[:], j[:]) }

// pred is the id just before.
func (i id) pred() id {
	for k := 15; k >= 0; k-- {
		if i[k]--; i[k] != 255 {
			break
		}
	}
	return i
}

// floor is the lowest UUIDv7 of a millisecond.
func floor(t time.Time) (i id) {
	ms := t.UnixMilli()
	for k := range 6 {
		i[k] = byte(ms >> (8 * (5 - k)))
	}
	return i
}

// from is where reading begins when there is no mark yet.
func (r *round) from(mark id) id {
	if mark == (id{}) && r.o.Since > 0 {
		return floor(r.now.Add(-r.o.Since))
	}
	return mark
}

// page is how many rows are read at once.
const page = 20_000

// overlap is read again in the next round: a transaction may commit long after it made its ids.
const overlap = time.Minute

// mark is where the next round begins, when this one has read all ids before end.
func mark(end time.Time) id { return floor(end.Add(-overlap)) }

// read is a query whose rows are taken one by one.
func read(ctx context.Context, pool *pgxpool.Pool, what string, scan []any, take func() error, sql string, args ...any) error {
	rows, err := pool.Query(ctx, sql, args...)
	if err == nil {
		_, err = pgx.ForEachRow(rows, scan, take)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}
