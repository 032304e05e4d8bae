package supervisor

import (
	"context"
	"fmt"
	"time"
)

// confirmation is what is known of the rows that Kafka has of one outbox. A new slot needs only the others; without
// it a connector would send all that is retained, and new events would wait behind that.
//
// It is known by marks: all transactions before a number have ended, and those that committed did so before a position of
// the log. If the reader that reads the slot at that time confirms the position, Kafka has their rows. It must be the same
// reader without a break: a slot that was made anew begins after the mark, while its connector still sends older rows.
type confirmation struct {
	reader  string
	marks   []mark // not confirmed yet, oldest first
	before  int64  // Kafka has the rows of all transactions before this one; 0: not known
	history string // of the log that this is known of
	last    mark
	// told is whether the database may say something now ([Supervisor.tell]), and when it was told that.
	told bool
	at   time.Time
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
)

// learn takes in a look at the slot.
func (c *confirmation) learn(slot *Slot) {
	if slot.history != c.history || slot.mark.wal < c.last.wal || slot.mark.xid < c.last.xid {
		// Another server, or the same one at an earlier time: its transactions will have numbers that others had.
		c.forget()
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

// tell says to the database of a slot that is lost or missing which rows the next one may leave out, until a reader reads it.
// Not at other times: a connector that reads the outbox again although its slot is there does so because Kafka has
// lost what it had.
func (s *Supervisor) tell(ctx context.Context, p Pipeline, slot *Slot) error {
	c := s.confirmations[p.Name]
	anew := !slot.Exists || slot.WALStatus == "lost"
	switch {
	case s.cfg.DryRun:
		return nil
	case slot.Active && slot.WALStatus != "lost":
		return s.untell(ctx, p)
	case c.before != 0 && (anew || c.told) && time.Since(c.at) > toldFor/3:
		c.told = true // also if the answer is lost
		if err := confirm(ctx, p, c.before, c.history); err != nil {
			return err
		}
		c.at = time.Now()
	}
	return nil
}

// untell takes back what the database was told.
func (s *Supervisor) untell(ctx context.Context, p Pipeline) error {
	c := s.confirmations[p.Name]
	if !c.told {
		return nil
	}
	err := confirm(ctx, p, 0, "")
	if err == nil {
		c.told, c.at = false, time.Time{}
	}
	return err
}

// confirm: before is a transaction; 0: nothing is known.
func confirm(ctx context.Context, p Pipeline, before int64, history string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := p.DB.Exec(ctx, `SELECT outbox_confirm($1, nullif($2::bigint, 0)::text::xid8, $3, $4)`, p.Slot, before, history, toldFor); err != nil {
		return fmt.Errorf("tell %s what Kafka has of its outbox: run its migrations, and GRANT EXECUTE ON FUNCTION outbox_confirm TO the supervisor's role: %w", p.Name, err)
	}
	return nil
}
