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
// Nothing is known so of what is older than its topic, or than the first look. Those rows are looked for in the inbox of
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
	walk    *walk // nil: not begun, or ended

	recalled bool      // what the database has is known
	saved    int64     // what it has: before
	unsaved  bool      // it has another since of a topic
	told     bool      // it may take that for true now ([Supervisor.tell])
	at       time.Time // when it was written last
}

// since is the oldest transaction of which something is known on a topic. id is the topic's: one that is made anew has another.
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

// learn takes in a look at the slot and at the topics, whose ids these are.
func (c *confirmation) learn(slot *Slot, topics map[string]string) {
	anew := slot.history != c.history || slot.mark.wal < c.last.wal || slot.mark.xid < c.last.xid ||
		// Another server, or the same one at an earlier time: its transactions will have numbers that others had.
		slot.Confirmed > slot.mark.wal || // of another log too
		!slot.published // what is written now is in no topic, and is confirmed nevertheless
	switch {
	case anew:
		c.forget()
	case slot.Snapshot != nil && slot.Exists && slot.WALStatus != "lost" && !c.told:
		// All of the outbox is sent again, because Kafka has lost something. It must be so to the end.
		c.forget()
	}
	if anew || c.topics == nil {
		c.topics = map[string]since{}
	}
	for name, id := range topics {
		switch known, ok := c.topics[name]; {
		case !ok || known.id != id: // it does not have what the one before had
			c.topics[name] = since{id, later}
			c.unsaved, c.walk = true, nil
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

// forget is for when what was known is so no more.
func (c *confirmation) forget() { c.marks, c.before = nil, 0 }

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
	if told, due := c.due(slot, time.Now()); due {
		var until time.Time
		if told {
			until = slot.at.Add(toldFor)
		}
		return c.save(ctx, p, until)
	}
	return nil
}

// due tells whether the database has to be written to, and whether it then takes what it has for true.
func (c *confirmation) due(slot *Slot, now time.Time) (told, due bool) {
	anew, since := !slot.Exists || slot.WALStatus == "lost", now.Sub(c.at)
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
	if c.recalled = true; history != c.history || c.saved == 0 || c.saved > c.last.xid {
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

// save writes what is known, to be taken for true until then; zero: not at all.
func (c *confirmation) save(ctx context.Context, p Pipeline, until time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var names, ids []string
	var xids []int64
	for _, name := range slices.Sorted(maps.Keys(c.topics)) {
		names, ids, xids = append(names, name), append(ids, c.topics[name].id), append(xids, c.topics[name].xid)
	}
	told := !until.IsZero()
	c.told = c.told || told // also if the answer is lost
	if _, err := p.DB.Exec(ctx, `SELECT outbox_confirm($1, $2, $3, $4::bigint[]::text[]::xid8[], nullif($5::bigint, 0)::text::xid8, $6, $7)`,
		p.Slot, names, ids, xids, c.before, c.history, pgtype.Timestamptz{Time: until, Valid: told}); err != nil {
		return advice(p, err)
	}
	c.saved, c.unsaved, c.told, c.at = c.before, false, told, time.Now()
	return nil
}

func advice(p Pipeline, err error) error {
	return fmt.Errorf("a new slot of %s may have to send the whole outbox: run the outbox's migrations, and GRANT SELECT ON outbox_confirmed and EXECUTE ON FUNCTION outbox_confirm TO the supervisor's role: %w", p.Name, err)
}

// walk goes through an outbox for what the inboxes of the topics' consumers have of the time of which nothing is known. When they have all
// of it, none of that has to be sent again.
type walk struct {
	since map[string]int64 // of each topic: older transactions are of that time
	// The ids that are to be looked at, without the first. All rows of that time are up to the last: their transactions had ended
	// before it was read.
	after, upto uuid.UUID
}

// row is a row of the outbox and its transaction, or an older one.
type row struct {
	ID    uuid.UUID
	Topic string
	XID   int64
}

// begin says which topics there is something to be looked for of. nil: none.
func (s *Supervisor) begin(c *confirmation) *walk {
	w := walk{since: map[string]int64{}}
	for name, known := range c.topics {
		if known.xid > always && s.cfg.Consumer(name) != "" {
			w.since[name] = known.xid
		}
		if known.xid > c.last.xid {
			return nil // a transaction of that time may be open
		}
	}
	if len(w.since) == 0 {
		return nil
	}
	return &w
}

// walkOn walks a part of the way, or waits at the first event that its inbox does not have.
func (s *Supervisor) walkOn(ctx context.Context, p Pipeline) error {
	c := s.confirmations[p.Name]
	if !c.recalled { // it may be known already
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if c.walk == nil {
		w := s.begin(c)
		if w == nil {
			return nil
		}
		err := p.DB.QueryRow(ctx, `SELECT id FROM outbox ORDER BY id DESC LIMIT 1`).Scan(&w.upto)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		c.walk = w
	}
	w := c.walk
	for range pages {
		rows, err := readAll[row](ctx, p, `SELECT id, topic, pg_snapshot_xmax(pg_current_snapshot())::text::bigint - age(xmin)
			FROM outbox WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3`, w.after, w.upto, pageIDs)
		if err != nil {
			return err
		}
		var old []event
		for _, r := range rows {
			if r.XID < w.since[r.Topic] {
				old = append(old, event{ID: r.ID, Topic: r.Topic})
			}
		}
		unseen, err := s.ask(ctx, old)
		if err != nil {
			return err
		}
		if len(unseen) > 0 {
			first := slices.IndexFunc(rows, func(r row) bool { return r.ID == slices.MinFunc(unseen, byID).ID })
			if first > 0 {
				w.after = rows[first-1].ID
			}
			return nil
		}
		if len(rows) < pageIDs {
			for name := range w.since {
				c.topics[name] = since{c.topics[name].id, always}
			}
			c.walk, c.unsaved = nil, true
			return nil
		}
		w.after = rows[len(rows)-1].ID
	}
	return nil
}
