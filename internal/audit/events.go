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

// readWindows reads how far back outboxes and inboxes reach: before, nothing can be told. Retention moves that on
// at any time.
func (r *round) readWindows(ctx context.Context) error {
	r.outboxes, r.inboxes = map[string]id{}, map[string]id{}
	for _, p := range r.participants() {
		var outbox, inbox *time.Time
		if err := read(ctx, p.pool, "the partitions of "+p.name+"-service", []any{&outbox, &inbox}, nothing,
			`SELECT o.since, i.since FROM event_partitions_window('outbox') o, event_partitions_window('inbox') i`); err != nil {
			return err
		}
		r.outboxes[p.name], r.inboxes[p.name] = reach(outbox), reach(inbox)
	}
	return nil
}

func reach(since *time.Time) id {
	if since == nil { // no partition, no ids
		return floor(time.UnixMilli(1<<48 - 1))
	}
	return floor(*since)
}

// reach is the lowest id that an outbox must have which an inbox has.
func (r *round) reach(p participant) (lowest id) {
	for _, sender := range p.from {
		if one := r.outboxes[sender]; lowest.before(one) {
			lowest = one
		}
	}
	return lowest
}

type row struct {
	id                id
	topic, typ, about string
}

// auditEvents: every outbox id is in the inbox of its consumer. The outbox is read first.
func (r *round) auditEvents(ctx context.Context) error {
	r.known = maps.Clone(r.lost)
	if _, err := r.lookForLost(ctx); err != nil {
		return err
	}
	for _, p := range r.participants() {
		if err := r.readOutbox(ctx, p); err != nil {
			return err
		}
	}
	if news(r.lost, r.known) > 0 {
		if err := r.settle(ctx, r.lookForLost); err != nil {
			return err
		}
	}
	for _, one := range slices.SortedFunc(maps.Keys(r.lost), order) {
		r.violate(EventLost, one.String(), "the inbox of %s-service does not have events that were sent to it more than %s ago", r.lost[one], r.o.Grace)
	}
	for _, what := range slices.SortedFunc(maps.Keys(r.twice), func(a, b repetition) int { return order(r.twice[a], r.twice[b]) }) {
		if r.twice[what].before(r.outboxes[what.sender]) {
			delete(r.twice, what) // retention took the proof
			continue
		}
		r.violate(EventTwice, what.order, "%s-service has sent %s twice for an order", what.sender, what.typ)
	}
	return nil
}

// news counts what an earlier round has not found.
func news(all, known map[id]string) (n int) {
	for one := range all {
		if known[one] == "" {
			n++
		}
	}
	return n
}

// readOutbox reads what is new in an outbox. It goes on from where it was stopped by an error.
func (r *round) readOutbox(ctx context.Context, p participant) error {
	at, end, next := r.from(r.events[p.name]), r.end(), r.mark()
	sent := r.sent[p.name]
	if sent == nil {
		sent = newHistory()
		r.sent[p.name] = sent
	}
	for {
		rows, err := outboxPage(ctx, p, at, end)
		if err != nil {
			return err
		}
		if err := r.arrived(ctx, rows); err != nil {
			return err
		}
		for _, one := range rows {
			sent.add(one, next)
		}
		full := len(r.lost) >= remembered
		if len(rows) == page && !full {
			at = rows[len(rows)-1].id
			r.events[p.name] = earlier(at, next)
		}
		if len(rows) < page || full || len(sent.suspects) >= remembered {
			if err := r.confirmTwice(ctx, p, sent); err != nil {
				return err
			}
		}
		if full {
			return nil
		}
		if len(rows) < page {
			break
		}
	}
	r.events[p.name] = next
	sent.forget(next)
	return nil
}

func earlier(a, b id) id {
	if a.before(b) {
		return a
	}
	return b
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
	missing := map[string]map[id]bool{}
	for _, one := range rows {
		to := events.Consumer(one.topic)
		if to == "" || one.id.before(r.inboxes[to]) {
			continue
		}
		if missing[to] == nil {
			missing[to] = map[id]bool{}
		}
		missing[to][one.id] = true
		r.report.Checked["events"]++
	}
	for to, ids := range missing {
		var seen id
		if err := read(ctx, r.pool(to), "the inbox of "+to+"-service", []any{(*[16]byte)(&seen)}, func() error {
			delete(ids, seen)
			return nil
		}, `SELECT event_id FROM inbox WHERE event_id BETWEEN $1 AND $2`, [16]byte(rows[0].id), [16]byte(rows[len(rows)-1].id)); err != nil {
			return err
		}
		for one := range ids {
			r.lost[one] = to
		}
	}
	return nil
}

// lookForLost asks for the missing events once more, and for dead letters, which may have no
// inbox row: an event older than the inbox remembers. It returns how many are missing that were not in the last round.
func (r *round) lookForLost(ctx context.Context) (left int, err error) {
	if len(r.lost) == 0 {
		return 0, nil
	}
	if err := r.readWindows(ctx); err != nil {
		return 0, err
	}
	for _, p := range r.participants() {
		var ids []id
		var texts []string
		for missing, consumer := range r.lost {
			switch {
			case consumer != p.name:
			case missing.before(r.inboxes[consumer]):
				delete(r.lost, missing) // it cannot be told any more
			default:
				ids, texts = append(ids, missing), append(texts, missing.String())
			}
		}
		if len(ids) == 0 {
			continue
		}
		var seen id
		if err := read(ctx, p.pool, "the inbox of "+p.name+"-service", []any{(*[16]byte)(&seen)}, func() error {
			if r.lost[seen] != "" && r.known[seen] != "" {
				r.report.Late++
			}
			delete(r.lost, seen)
			return nil
		}, `SELECT event_id FROM inbox WHERE event_id = ANY($1)
			UNION ALL SELECT event_id::uuid FROM dead_letters WHERE event_id = ANY($2)`, uuids(ids), texts); err != nil {
			return 0, err
		}
	}
	return news(r.lost, r.known), nil
}

// auditInboxes: every inbox id was written by an outbox, as far back as all the senders' outboxes reach. The
// inbox is read first.
func (r *round) auditInboxes(ctx context.Context) error {
	r.known = maps.Clone(r.invented)
	if _, err := r.lookForInvented(ctx); err != nil {
		return err
	}
	for _, p := range r.participants() {
		if err := r.readInbox(ctx, p); err != nil {
			return err
		}
	}
	if news(r.invented, r.known) > 0 {
		if err := r.settle(ctx, r.lookForInvented); err != nil {
			return err
		}
	}
	for _, one := range slices.SortedFunc(maps.Keys(r.invented), order) {
		r.violate(EventInvented, one.String(), "the inbox of %s-service has events that no outbox has written", r.invented[one])
	}
	return nil
}

// readInbox reads what is new in an inbox.
func (r *round) readInbox(ctx context.Context, p participant) error {
	at, end, next := r.from(r.inbox[p.name]), r.end(), r.mark()
	if lowest := r.reach(p).pred(); at.before(lowest) {
		at = lowest
	}
	for {
		strangers, last, n, err := r.inboxPage(ctx, p, at, end)
		if err != nil {
			return err
		}
		for one := range strangers {
			r.invented[one] = p.name
		}
		r.report.Checked["inbox_ids"] += int64(n)
		if n < page {
			break
		}
		at = last
		r.inbox[p.name] = earlier(at, next)
		if len(r.invented) >= remembered {
			return nil
		}
	}
	r.inbox[p.name] = next
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

// lookForInvented asks the outboxes once more: with CDC an event can be handled before its sender's transaction is
// visible. It returns how many ids of no outbox there are that were not in the last round.
func (r *round) lookForInvented(ctx context.Context) (left int, err error) {
	if len(r.invented) == 0 {
		return 0, nil
	}
	for _, p := range r.participants() {
		var ids []id
		for one, in := range r.invented {
			if in == p.name {
				ids = append(ids, one)
			}
		}
		if len(ids) == 0 {
			continue
		}
		for _, sender := range p.from {
			var seen id
			if err := read(ctx, r.pool(sender), "the outbox of "+sender+"-service", []any{(*[16]byte)(&seen)}, func() error {
				delete(r.invented, seen)
				return nil
			}, `SELECT id FROM outbox WHERE id = ANY($1)`, uuids(ids)); err != nil {
				return 0, err
			}
		}
	}
	// Retention may have dropped the partition between the two readings.
	if err := r.readWindows(ctx); err != nil {
		return 0, err
	}
	for _, p := range r.participants() {
		lowest := r.reach(p)
		maps.DeleteFunc(r.invented, func(one id, in string) bool { return in == p.name && one.before(lowest) })
	}
	return news(r.invented, r.known), nil
}
