package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// confirmation is what is known of the rows that Kafka has of one outbox. A new slot needs only the others; without
// it a connector would send all that is retained, and new events would wait behind that.
//
// It is known by marks: all transactions before a number have ended, and those that committed did so before a position of
// the log. If the reader that reads the slot at that time confirms the position, Kafka has their rows. It must be the same
// reader without a break: a slot that was made anew begins after the mark, while its connector still sends older rows.
//
// The database keeps it for the supervisor that acts next (outbox_confirmed).
type confirmation struct {
	reader string
	marks  []mark // not confirmed yet, oldest first
	// Kafka has the rows of all transactions from since to before another; before is 0: not known. Nothing is known of
	// those that are older than the topics, or than the first look.
	since, before int64
	history       string // of the log that this is known of
	topics        string // and the topics
	last          mark

	recalled bool      // what the database has is known
	saved    int64     // what it has: before
	told     bool      // it may take that for true now ([Supervisor.tell])
	at       time.Time // when it was written last
}

// mark is a place in the log: all transactions before xid have ended before wal.
type mark struct {
	xid int64
	wal int64
}

const (
	maxMarks = 60
	// toldFor is how long the database takes what it is told for true.
	toldFor = time.Minute
	// saveEvery is how often what is known is written down at most.
	saveEvery = 10 * time.Second
)

// learn takes in a look at the slot and at the topics.
func (c *confirmation) learn(slot *Slot, topics string) {
	switch {
	case slot.history != c.history || slot.mark.wal < c.last.wal || slot.mark.xid < c.last.xid,
		// Another server, or the same one at an earlier time: its transactions will have numbers that others had.
		slot.Confirmed > slot.mark.wal, // of another log too
		topics != c.topics,             // one was made anew, and does not have what it had
		!slot.published:                // what is written now is in no topic, and is confirmed nevertheless
		c.forget()
		c.since = slot.next
	case slot.Snapshot != nil && slot.Exists && slot.WALStatus != "lost" && !c.told:
		// All of the outbox is sent again, because Kafka has lost something. It must be so to the end.
		c.forget()
	}
	c.history, c.topics, c.last = slot.history, topics, slot.mark
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
	if moments, due := c.due(slot, time.Now()); due {
		return c.save(ctx, p, moments)
	}
	return nil
}

// due tells whether the database has to be written to, and for how long it then takes what it has for true.
func (c *confirmation) due(slot *Slot, now time.Time) (moments time.Duration, due bool) {
	anew, since := !slot.Exists || slot.WALStatus == "lost", now.Sub(c.at)
	switch {
	case c.before == 0: // nothing is known any more
		return 0, c.told || c.saved != 0
	case !anew && slot.reader != "":
		return 0, c.told || c.saved != c.before && since >= saveEvery
	case anew && !c.told:
		return toldFor, true
	default: // until it is read
		return toldFor, c.told && since >= toldFor/3
	}
}

// recall reads what the supervisor that acted before knew.
func (c *confirmation) recall(ctx context.Context, p Pipeline) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var since int64
	var history, topics string
	err := p.DB.QueryRow(ctx, `SELECT since::text::bigint, before::text::bigint, history, topics, until > clock_timestamp() FROM outbox_confirmed WHERE slot = $1`,
		p.Slot).Scan(&since, &c.saved, &history, &topics, &c.told)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	if err != nil {
		return advice(p, err)
	}
	if c.recalled = true; history == c.history && topics == c.topics && c.saved != 0 && c.saved <= c.last.xid {
		c.since, c.before = since, max(c.before, c.saved)
	}
	return nil
}

// save writes what is known, to be taken for true for some time from now on; 0: not.
func (c *confirmation) save(ctx context.Context, p Pipeline, moments time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c.told = c.told || moments > 0 // also if the answer is lost
	if _, err := p.DB.Exec(ctx, `SELECT outbox_confirm($1, $2::bigint::text::xid8, nullif($3::bigint, 0)::text::xid8, $4, $5, $6)`,
		p.Slot, c.since, c.before, c.history, c.topics, moments); err != nil {
		return advice(p, err)
	}
	c.saved, c.told, c.at = c.before, moments > 0, time.Now()
	return nil
}

func advice(p Pipeline, err error) error {
	return fmt.Errorf("a new slot of %s may have to send the whole outbox: run the outbox's migrations, and GRANT SELECT ON outbox_confirmed and EXECUTE ON FUNCTION outbox_confirm TO the supervisor's role: %w", p.Name, err)
}
