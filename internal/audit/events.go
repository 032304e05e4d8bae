package audit

import (
	"context"
	"maps"
	"slices"
	"time"

	"outboxsaga/events"

	"github.com/jackc/pgx/v5/pgxpool"
)

// participant is a service's database.
type participant struct {
	name string // as in events.Consumer
	pool *pgxpool.Pool
	from []string // whose events its inbox takes
}

func (a *Auditor) participants() []participant {
	return []participant{
		{"order", a.db.Order, []string{"stock", "payment"}},
		{"stock", a.db.Stock, []string{"order"}},
		{"payment", a.db.Payment, []string{"order"}},
	}
}

func (a *Auditor) pool(name string) *pgxpool.Pool {
	return map[string]*pgxpool.Pool{"order": a.db.Order, "stock": a.db.Stock, "payment": a.db.Payment}[name]
}

type row struct {
	id                id
	topic, typ, about string
}

// auditEvents: every outbox id is in the inbox of its consumer. The outbox is read first.
func (r *round) auditEvents(ctx context.Context) error {
	if err := r.lookAgain(ctx, true); err != nil { // those of earlier rounds
		return err
	}
	end := r.now.Add(-r.o.Grace)
	for _, p := range r.participants() {
		at := r.from(r.events[p.name])
		for {
			rows, err := outboxPage(ctx, p, at, floor(end))
			if err != nil {
				return err
			}
			if err := r.arrived(ctx, rows); err != nil {
				return err
			}
			r.countEvents(p, rows)
			if len(rows) < page {
				break
			}
			at = rows[len(rows)-1].id
		}
	}
	if err := r.lookAgain(ctx, false); err != nil {
		return err
	}
	for _, p := range r.participants() {
		r.events[p.name] = mark(end)
	}
	for _, one := range slices.SortedFunc(maps.Keys(r.lost), order) {
		r.missing(one, r.lost[one])
	}
	return nil
}

// remembered bounds the missing events that are looked for again. It takes a catastrophe to miss more.
const remembered = 100_000

func (r *round) missing(event id, consumer string) {
	r.violate(EventLost, event.String(), "the inbox of %s-service does not have events that were sent to it more than %s ago", consumer, r.o.Grace)
}

func outboxPage(ctx context.Context, p participant, after, end id) (rows []row, err error) {
	var one row
	err = read(ctx, p.pool, "the outbox of "+p.name+"-service", []any{(*[16]byte)(&one.id), &one.topic, &one.typ, &one.about}, func() error {
		rows = append(rows, one)
		return nil
	}, `SELECT id, topic, type, aggregate_id FROM outbox WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3`, [16]byte(after), [16]byte(end), page)
	return rows, err
}

// arrived notes the events that their consumers' inboxes lack.
func (r *round) arrived(ctx context.Context, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	missing := map[string]map[id]bool{}
	for _, one := range rows {
		to := events.Consumer(one.topic)
		if to == "" {
			continue
		}
		if missing[to] == nil {
			missing[to] = map[id]bool{}
		}
		missing[to][one.id] = true
		r.report.Checked["events"]++
	}
	for to, ids := range missing {
		if err := inboxIDs(ctx, r.pool(to), to, rows[0].id, rows[len(rows)-1].id, func(seen id) { delete(ids, seen) }); err != nil {
			return err
		}
		for one := range ids {
			if len(r.lost) < remembered {
				r.lost[one] = to
			} else {
				r.missing(one, to)
			}
		}
	}
	return nil
}

func inboxIDs(ctx context.Context, pool *pgxpool.Pool, name string, first, last id, take func(id)) error {
	var seen id
	return read(ctx, pool, "the inbox of "+name+"-service", []any{(*[16]byte)(&seen)}, func() error {
		take(seen)
		return nil
	}, `SELECT event_id FROM inbox WHERE event_id BETWEEN $1 AND $2`, [16]byte(first), [16]byte(last))
}

// lookAgain asks for the missing events once more, and for dead letters, which may have no
// inbox row: an event older than the inbox remembers.
func (r *round) lookAgain(ctx context.Context, late bool) error {
	if len(r.lost) == 0 {
		return nil
	}
	if !late {
		if err := wait(ctx); err != nil {
			return err
		}
	}
	for _, p := range r.participants() {
		var ids [][16]byte
		var texts []string
		for missing, consumer := range r.lost {
			if consumer == p.name {
				ids, texts = append(ids, missing), append(texts, missing.String())
			}
		}
		if len(ids) == 0 {
			continue
		}
		var seen id
		found := func() error {
			delete(r.lost, seen)
			if late {
				r.report.Late++
			}
			return nil
		}
		if err := read(ctx, p.pool, "the inbox of "+p.name+"-service", []any{(*[16]byte)(&seen)}, found,
			`SELECT event_id FROM inbox WHERE event_id = ANY($1)
			 UNION SELECT event_id::uuid FROM dead_letters WHERE event_id = ANY($2)`, ids, texts); err != nil {
			return err
		}
	}
	return nil
}

// wait gives what was just being committed the time to be so.
func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Second):
		return nil
	}
}

// auditInboxes: every inbox id was written by an outbox, as far back as all the senders' outboxes reach. The
// inbox is read first.
func (r *round) auditInboxes(ctx context.Context) error {
	end := r.now.Add(-r.o.Grace)
	for _, p := range r.participants() {
		at := r.from(r.inbox[p.name])
		for _, sender := range p.from {
			var since time.Time
			err := r.pool(sender).QueryRow(ctx, `SELECT coalesce(since, '-infinity') FROM event_partitions_window('outbox')`).Scan(&since)
			if err != nil {
				return err
			}
			if reach := floor(since); at.before(reach) {
				at = reach
			}
		}
		for {
			strangers, last, n, err := r.inboxPage(ctx, p, at, floor(end))
			if err != nil {
				return err
			}
			for _, one := range slices.SortedFunc(maps.Keys(strangers), order) {
				r.violate(EventInvented, one.String(), "the inbox of %s-service has events that no outbox has written", p.name)
			}
			r.report.Checked["inbox_ids"] += int64(n)
			if n < page {
				break
			}
			at = last
		}
		r.inbox[p.name] = mark(end)
	}
	return nil
}

// inboxPage reads ids of an inbox, and returns those that no sender's outbox has.
func (r *round) inboxPage(ctx context.Context, p participant, after, end id) (strangers map[id]bool, last id, n int, err error) {
	strangers = map[id]bool{}
	var one, first id
	err = read(ctx, p.pool, "the inbox of "+p.name+"-service", []any{(*[16]byte)(&one)}, func() error {
		if n == 0 {
			first = one
		}
		n++
		last = one
		strangers[one] = true
		return nil
	}, `SELECT event_id FROM inbox WHERE event_id > $1 AND event_id < $2 ORDER BY event_id LIMIT $3`, [16]byte(after), [16]byte(end), page)
	if err != nil || n == 0 {
		return nil, last, n, err
	}
	for _, sender := range p.from {
		if err := read(ctx, r.pool(sender), "the outbox of "+sender+"-service", []any{(*[16]byte)(&one)}, func() error {
			delete(strangers, one)
			return nil
		}, `SELECT id FROM outbox WHERE id BETWEEN $1 AND $2`, [16]byte(first), [16]byte(last)); err != nil {
			return nil, last, n, err
		}
	}
	return strangers, last, n, nil
}

// recent remembers the newest events of an outbox by order and type: an order's events are close to
// each other. Two generations bound its size.
type recent struct{ now, before map[[2]string]id }

const generation = 200_000

// countEvents: no order has two events of one type in one outbox. Dead letters may repeat.
func (r *round) countEvents(p participant, rows []row) {
	seen := r.twice[p.name]
	if seen == nil {
		seen = &recent{now: map[[2]string]id{}}
		r.twice[p.name] = seen
	}
	for _, one := range rows {
		switch one.typ {
		case events.TypeOrderDeadLettered, events.TypeStockDeadLettered, events.TypePaymentDeadLettered:
			continue
		}
		key := [2]string{one.about, one.typ}
		first, known := seen.now[key]
		if !known {
			first, known = seen.before[key]
		}
		if known && first != one.id { // the overlap of two rounds brings the same row again
			r.violate(EventTwice, one.about, "%s-service has sent %s twice for an order", p.name, one.typ)
			continue
		}
		seen.now[key] = one.id
		if len(seen.now) >= generation {
			seen.before, seen.now = seen.now, map[[2]string]id{}
		}
	}
}
