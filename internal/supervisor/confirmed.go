package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// confirmation is what is known of the rows of one outbox that need not be sent again. A new slot needs only the others; without
// it a connector would send all that is retained, and new events would wait behind that.
//
// What Kafka has is known by marks: all transactions before a number have ended, and those that committed did so before a position of
// the log. If the reader that reads the slot at that time confirms the position, Kafka has their rows. It must be the same
// reader without a break: a slot that was made anew begins after the mark, while its connector still sends older rows.
//
// Nothing is known so of what is older than its topic, than the publication, or than the first look. Those rows are looked for in the inbox of
// their consumer ([walk]).
//
// The database keeps it for the supervisor that acts next (outbox_confirmed).
type confirmation struct {
	reader string
	marks  []mark // not confirmed yet, oldest first
	// Kafka has the rows of all transactions before this one, but for those before their topic's since; 0: not known.
	before  int64
	topics  map[string]since // by name
	history string           // of the log that this is known of
	last    mark
	walks   map[string]*walk // of topics, those that were begun

	recalled bool      // what the database has is known
	broken   bool      // before it was, something was seen that what it has may not know of
	saved    int64     // what it has: before
	unsaved  bool      // it has another since of a topic
	told     bool      // it may take that for true now ([Supervisor.tell])
	at       time.Time // by its clock, of the look that it was told or written last
}

// since is the oldest transaction of which something is known on a topic. id is what the topic is known by ([Supervisor.identities]).
type since struct {
	id  string
	xid int64
}

const (
	// always is the since of a topic of which everything is known: the oldest transaction that there can be.
	always = 3
	// later is that of one which was found anew. What was written before then may have gone to another topic; a look at the
	// database after that tells what it is.
	later = math.MaxInt64
)

// mark is a place in the log: all transactions before xid have ended before wal.
type mark struct {
	xid int64
	wal int64
}

const (
	maxMarks = 60
	// toldFor is how long the database takes what it is told for true, from the look that it is known by. Another supervisor acts
	// when this one has said nothing for [LockIdle]: what this one says when it is let go again must be old by then.
	toldFor = LockIdle - lookTimeout - 4*time.Second
	// saveEvery is how often what is known is written down at most.
	saveEvery = 10 * time.Second
)

// learn takes in a look at the slot and at the topics: what they are known by.
func (c *confirmation) learn(slot *Slot, topics map[string]string) {
	anew := slot.history != c.history || slot.mark.wal < c.last.wal || slot.mark.xid < c.last.xid ||
		// Another server, or the same one at an earlier time: its transactions will have numbers that others had.
		slot.Confirmed > slot.mark.wal || // of another log too
		!slot.published // what is written now is in no topic, and is confirmed nevertheless
	switch {
	case anew:
		c.forget()
	case slot.Snapshot != nil && slot.reader == "" && slot.Exists && slot.WALStatus != "lost" && !c.told:
		// All of the outbox is sent again, because Kafka has lost something. It must be so to the end.
		c.forget()
	}
	if anew {
		c.broken = c.broken || c.topics != nil || !slot.published
	}
	if anew || c.topics == nil {
		c.topics, c.walks = map[string]since{}, map[string]*walk{}
	}
	for name, id := range topics {
		switch known, ok := c.topics[name]; {
		case !ok || known.id != id: // it does not have what the one before had
			c.topics[name] = since{id, later}
			c.unsaved = true
			delete(c.walks, name)
		case known.xid == later:
			c.topics[name] = since{id, slot.next}
			c.unsaved = true
		}
	}
	c.history, c.last = slot.history, slot.mark
	if slot.reader != c.reader || slot.WALStatus == "lost" {
		c.reader, c.marks = slot.reader, nil
	}
	if slot.reader == "" || slot.WALStatus == "lost" {
		return
	}
	for len(c.marks) > 0 && c.marks[0].wal <= slot.Confirmed {
		c.before, c.marks = c.marks[0].xid, c.marks[1:]
	}
	if len(c.marks) < maxMarks {
		c.marks = append(c.marks, slot.mark)
	}
}

// forget is for when what was known is so no more. When Kafka has all again, that is known only of what comes after: what is older
// may be sent by a connector that does not come to its end.
func (c *confirmation) forget() {
	c.marks, c.before, c.walks = nil, 0, map[string]*walk{}
	for name, known := range c.topics {
		c.topics[name] = since{known.id, later}
	}
}

// tell keeps what is known in the database, and while the slot is lost or missing, until a reader reads it, tells the database to
// take it for true. Not at other times: a connector that reads the outbox again although its slot is there does so
// because Kafka has lost what it had.
func (s *Supervisor) tell(ctx context.Context, p Pipeline, slot *Slot) error {
	c := s.confirmations[p.Name]
	if s.cfg.DryRun {
		return nil
	}
	if !c.recalled {
		if err := c.recall(ctx, p); err != nil {
			return err
		}
	}
	if told, due := c.due(slot); due {
		return c.save(ctx, p, slot.at, told)
	}
	return nil
}

// due tells whether the database has to be written to, and whether it then takes what it has for true.
func (c *confirmation) due(slot *Slot) (told, due bool) {
	anew, since := !slot.Exists || slot.WALStatus == "lost", slot.at.Sub(c.at).Abs()
	switch {
	case c.before == 0: // nothing is known any more
		return false, c.told || c.saved != 0
	case !anew && slot.reader != "":
		return false, c.told || (c.unsaved || c.saved != c.before) && since >= saveEvery
	case c.told && c.unsaved: // what it takes for true may be so no more
		return true, true
	case anew && !c.told:
		return true, true
	default: // until it is read
		return true, c.told && since >= toldFor/3
	}
}

// recall reads what the supervisor that acted before knew.
func (c *confirmation) recall(ctx context.Context, p Pipeline) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var names, ids []string
	var xids []int64
	var history string
	err := p.DB.QueryRow(ctx, `SELECT topics, topic_ids, since::text[]::bigint[], before::text::bigint, history, until > clock_timestamp() FROM outbox_confirmed WHERE slot = $1`,
		p.Slot).Scan(&names, &ids, &xids, &c.saved, &history, &c.told)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	if err != nil {
		return advice(p, err)
	}
	if c.recalled = true; c.broken || history != c.history || c.saved == 0 || c.saved > c.last.xid {
		return nil
	}
	for i, name := range names {
		if known, ok := c.topics[name]; ok && known.id == ids[i] {
			c.topics[name] = since{known.id, xids[i]}
		}
	}
	c.before = max(c.before, c.saved)
	return nil
}

// save writes what was known at a look, and whether it is to be taken for true for some time from then on.
func (c *confirmation) save(ctx context.Context, p Pipeline, looked time.Time, told bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	names, ids, xids := []string{}, []string{}, []int64{}
	for _, name := range slices.Sorted(maps.Keys(c.topics)) {
		names, ids, xids = append(names, name), append(ids, c.topics[name].id), append(xids, c.topics[name].xid)
	}
	c.told = c.told || told // also if the answer is lost
	var taken bool
	err := p.DB.QueryRow(ctx, `SELECT outbox_confirm($1, $2, $3, $4::bigint[]::text[]::xid8[], $5::bigint::text::xid8, $6, $7, $8)`,
		p.Slot, names, ids, xids, c.before, c.history, looked, pgtype.Interval{Microseconds: toldFor.Microseconds(), Valid: told}).Scan(&taken)
	switch {
	case err != nil:
		return advice(p, err)
	case !taken:
		return fmt.Errorf("another supervisor has written what a later look than ours has found, or %s has no row for the slot %s any more, or all is to be sent", p.Name, p.Slot)
	}
	c.saved, c.unsaved, c.told, c.at = c.before, false, told, looked
	return nil
}

func advice(p Pipeline, err error) error {
	return fmt.Errorf("a new slot of %s may have to send the whole outbox: run the outbox's migrations, and GRANT SELECT ON outbox_confirmed and EXECUTE ON FUNCTION outbox_confirm TO the supervisor's role: %w", p.Name, err)
}

// walk goes through an outbox for what the inbox of a topic's consumer has of the time of which nothing is known. When it has all
// of it, none of that has to be sent again.
type walk struct {
	// The ids that are to be looked at, without the first. All rows of that time are up to the last: their transactions had ended
	// before it was read.
	after, upto uuid.UUID
	waits       *event // the inbox does not have it: no further before it does
}

// row is a row of the outbox and its transaction, or an older one.
type row struct {
	ID    uuid.UUID
	Topic string
	XID   int64
}

// walkOn walks a part of the way, for one topic after the other. A topic that no pipeline's inbox takes stays as it is.
func (s *Supervisor) walkOn(ctx context.Context, p Pipeline, f Facts) error {
	c := s.confirmations[p.Name]
	if !c.recalled || c.told || f.Pipelines[p.Name].Slot == nil { // it may be known already; there is something better to do; it does not answer
		return nil
	}
	budget := pages
	for _, name := range slices.Sorted(maps.Keys(c.topics)) {
		known := c.topics[name]
		if known.xid == always || known.xid > c.last.xid || f.Pipelines[s.cfg.Consumer(name)].Slot == nil {
			continue // nothing is to be found, or a transaction of that time may be open
		}
		w := c.walks[name]
		if w == nil {
			w = &walk{}
			if err := p.DB.QueryRow(ctx, `SELECT id FROM outbox ORDER BY id DESC LIMIT 1`).Scan(&w.upto); err != nil && !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			c.walks[name] = w
		}
		for ; budget > 0; budget-- {
			ended, err := s.step(ctx, p, w, name, known.xid)
			if err != nil {
				return err
			}
			if ended {
				c.topics[name], c.unsaved = since{known.id, always}, true
				delete(c.walks, name)
			}
			if ended || w.waits != nil {
				break
			}
		}
	}
	return nil
}

// step looks at a page of the events on a topic that are of an older transaction.
func (s *Supervisor) step(ctx context.Context, p Pipeline, w *walk, topic string, before int64) (ended bool, err error) {
	if w.waits != nil {
		unseen, err := s.ask(ctx, []event{*w.waits})
		if err != nil || len(unseen) > 0 {
			return false, err
		}
		w.waits = nil
	}
	rows, err := readAll[row](ctx, p, `SELECT id, topic, pg_snapshot_xmax(pg_current_snapshot())::text::bigint - age(xmin)
		FROM outbox WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3`, w.after, w.upto, pageIDs)
	if err != nil || len(rows) == 0 {
		return err == nil, err
	}
	var old []event
	for _, r := range rows {
		if r.Topic == topic && r.XID < before {
			old = append(old, event{ID: r.ID, Topic: r.Topic})
		}
	}
	unseen, err := s.ask(ctx, old)
	if err != nil {
		return false, err
	}
	if len(unseen) > 0 {
		first := slices.MinFunc(unseen, byID)
		if i := slices.IndexFunc(rows, func(r row) bool { return r.ID == first.ID }); i > 0 {
			w.after = rows[i-1].ID
		}
		w.waits = &first
		return false, nil
	}
	w.after = rows[len(rows)-1].ID
	return len(rows) < pageIDs, nil
}
