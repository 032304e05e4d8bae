// Package audit proves, on the three databases, that nothing was lost, invented or done twice.
//
// The rules ([Rules]) are about what is committed. They are read in an order that makes them
// true while the system works: an outbox row is read before the inbox that must have its id, an
// inbox row before the outbox that must have written it, an order before the payment and the
// reservation that it stands on. What is younger than [Options].Grace may be under way and is not judged. What
// looks wrong is looked at again for as long as Grace before it is reported, because an old id may have been
// committed only now: a transaction may have waited for a lock, a clock may be wrong.
//
// An order is compared with its own payment and reservation, not sum with sum: so what SUCCESS orders cost is
// what is charged, for each customer, and an order that is not settled may have its effect or not.
//
// An audit reads in pages by id (UUIDv7, so in the order of time), each in a short read-only transaction, and merges them
// here: its memory is bounded whatever the tables' size, and no writer waits for it. It sees what retention has
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
	// Full is how often an [Auditor] reads everything anew. Between, it goes on from the newest ids, and does not see
	// what a service wrote whose clock was more than a minute behind. Default 1 h.
	Full time.Duration
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

// String is the violation in one line.
func (v Violation) String() string {
	return fmt.Sprintf("%s: %d: %s %v", v.Rule, v.Count, v.Detail, v.IDs)
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

// Auditor audits again and again, and each time only what is new or was not settled; what it found stays reported
// until it is mended. [New] makes one. It is for one goroutine.
type Auditor struct {
	db Databases
	o  Options

	full time.Time // when everything was read anew

	// Where reading goes on, by participant: all before was judged or is remembered below.
	events, inbox map[string]id
	orders        id

	lost     map[id]string       // missing events → their consumer
	invented map[id]string       // ids that no outbox wrote → whose inbox has them
	sent     map[string]*history // by outbox: what was sent, and about which order
	twice    map[repetition]id   // what was sent twice → the newest
	pending  map[id]bool         // orders before the mark that are open or wrong
	sums     sums
}

// remembered bounds each of the sets above. It takes a catastrophe to exceed it; reading then stops, and goes on in the
// next round from there.
const remembered = 100_000

// New makes an auditor. It connects to nothing.
func New(db Databases, o Options) *Auditor {
	o.Grace = cmp.Or(o.Grace, 10*time.Second)
	o.OrderTimeout = cmp.Or(o.OrderTimeout, time.Minute)
	o.MaxIDs = cmp.Or(o.MaxIDs, 20)
	o.Full = cmp.Or(o.Full, time.Hour)
	a := &Auditor{db: db, o: o, lost: map[id]string{}, invented: map[id]string{}, twice: map[repetition]id{}, pending: map[id]bool{}}
	a.startAnew()
	return a
}

// startAnew forgets how far everything was read, and not what was found.
func (a *Auditor) startAnew() {
	a.events, a.inbox, a.orders, a.sent = map[string]id{}, map[string]id{}, id{}, map[string]*history{}
}

// Round audits what the last round has not, or could not yet. An error means that the databases
// could not be read; the report is not to be used then. What was found before the error is in the next report.
func (a *Auditor) Round(ctx context.Context) (Report, error) {
	begin := time.Now()
	if begin.Sub(a.full) >= a.o.Full {
		a.startAnew()
		a.full = begin
	}
	r := &round{Auditor: a, now: begin, report: Report{At: begin.UTC(), Checked: map[string]int64{}}, found: map[string]*Violation{}}
	for _, step := range []func(context.Context) error{r.readWindows, r.auditEvents, r.auditInboxes, r.auditOrders, r.auditBalances} {
		if err := step(ctx); err != nil {
			return r.report, fmt.Errorf("audit: %w", err)
		}
	}
	r.report.Violations = r.violations()
	r.report.Duration = time.Since(begin)
	return r.report, nil
}

// violations are in the order of the rules.
func (r *round) violations() []Violation {
	all := []Violation{}
	for _, rule := range Rules() {
		for _, key := range slices.Sorted(maps.Keys(r.found)) {
			if v := r.found[key]; v.Rule == rule {
				all = append(all, *v)
			}
		}
	}
	return all
}

// round is one audit.
type round struct {
	*Auditor
	now    time.Time
	report Report
	found  map[string]*Violation // by rule and detail

	outboxes, inboxes map[string]id // by participant: the lowest id that its partitions can hold
	known             map[id]string // what the round before has reported of the rule at hand
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

// time is when an id was made, by the clock of who made it.
func (i id) time() time.Time {
	var ms int64
	for k := range 6 {
		ms = ms<<8 | int64(i[k])
	}
	return time.UnixMilli(ms)
}

// from is where reading begins when there is no mark yet.
func (r *round) from(mark id) id {
	if mark == (id{}) && r.o.Since > 0 {
		return floor(r.now.Add(-r.o.Since))
	}
	return mark
}

// end is the first id that is too young to be judged.
func (r *round) end() id { return floor(r.now.Add(-r.o.Grace)) }

// mark is where the next round begins. What is behind it is read again: a transaction may commit
// some time after it has made its ids.
func (r *round) mark() id { return floor(r.now.Add(-r.o.Grace - overlap)) }

const (
	overlap = time.Minute
	page    = 20_000 // rows read at once
)

// settle looks again and again, until nothing is left that is wrong or Grace is over.
func (r *round) settle(ctx context.Context, look func(context.Context) (left int, err error)) error {
	for end := time.Now().Add(r.o.Grace); ; {
		left, err := look(ctx)
		if err != nil || left == 0 || !time.Now().Before(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(time.Second, time.Until(end))):
		}
	}
}

// read is a query in a transaction of its own, whose rows are taken one by one. It is planned
// for its arguments: a plan for any range of ids would not know how many partitions and rows are in it.
func read(ctx context.Context, pool *pgxpool.Pool, what string, scan []any, take func() error, sql string, args ...any) error {
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, sql, append([]any{pgx.QueryExecModeCacheDescribe}, args...)...)
		if err == nil {
			_, err = pgx.ForEachRow(rows, scan, take)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

// uuids are ids as pgx sends them.
func uuids(ids []id) [][16]byte {
	out := make([][16]byte, len(ids))
	for i, one := range ids {
		out[i] = one
	}
	return out
}

// nothing is for rows of which all is in the variables.
func nothing() error { return nil }
