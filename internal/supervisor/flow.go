package supervisor

import (
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Unseen is an event whose outbox row is committed and whose id is not in its consumer's inbox.
type Unseen struct {
	ID    uuid.UUID `json:"id"`
	Topic string    `json:"topic"`
	// Noticed is when it was first found so, and WAL the end of the log then: its row is before it.
	Noticed time.Time `json:"noticed"`
	WAL     int64     `json:"wal"`
	// Confirmed is when it was first found that Kafka has, or had, it; zero: not yet.
	Confirmed time.Time `json:"confirmed,omitzero"`
}

// At is when the event was made: the time in its UUIDv7.
func (u Unseen) At() time.Time {
	sec, nsec := u.ID.Time().UnixTime()
	return time.Unix(sec, nsec)
}

const (
	// underWay is how old an event may be that is not looked for yet.
	underWay = 3 * time.Second
	// lookBack is where a supervisor begins to look. What could not be looked at for so long is left out:
	// the auditor reads every id.
	lookBack = time.Hour
	// A look reads so many ids, in pages: the newest ones first, then what earlier looks have left out.
	pageIDs, pages = 5000, 4
	// kept bounds what is kept of the unseen events: about so many; no more is looked at then.
	kept = 10_000
)

// watch follows one outbox by its ids, which are in the order of time.
type watch struct {
	upto   uuid.UUID // all up to here was looked at, but for the gaps
	gaps   []gap     // oldest first
	unseen map[uuid.UUID]Unseen
	reader string // of the slot
}

// gap are the ids between two, without them.
type gap struct{ after, before uuid.UUID }

// event is a row of the outbox, in a log that ends at WAL: it is before that.
type event struct {
	ID    uuid.UUID
	Topic string
	WAL   int64
}

// follow looks on in an outbox, and returns the events that no inbox has, oldest first; also where it fails, as far as
// they are known.
func (s *Supervisor) follow(ctx context.Context, p Pipeline, w *watch) ([]Unseen, error) {
	err := s.look(ctx, p, w)
	unseen := slices.Collect(maps.Values(w.unseen))
	slices.SortFunc(unseen, func(a, b Unseen) int { return compare(a.ID, b.ID) })
	return unseen, err
}

// confirm notes of which unseen events the slot says that Kafka has them. A new reader sends some anew, and a slot that was made anew
// begins after them: only what it confirms beyond the end of the log, as it was when that reader was first seen, counts.
func (w *watch) confirm(flow Pipeflow, at time.Time) {
	if flow.Slot == nil {
		return
	}
	anew := flow.Slot.reader != "" && flow.Slot.reader != w.reader
	if anew {
		w.reader = flow.Slot.reader
	}
	for i, u := range flow.Unseen {
		switch {
		case anew:
			u.WAL, u.Confirmed = max(u.WAL, flow.Slot.WAL), time.Time{}
		case u.Confirmed.IsZero() && flow.Slot.Confirmed > u.WAL:
			u.Confirmed = at
		}
		flow.Unseen[i], w.unseen[u.ID] = u, u
	}
}

// look asks the inboxes for what was unseen, and for so many of the ids that were not looked at.
func (s *Supervisor) look(ctx context.Context, p Pipeline, w *watch) error {
	var begin, end uuid.UUID
	if err := p.DB.QueryRow(ctx, `SELECT uuidv7_floor(clock_timestamp() - $1::interval), uuidv7_floor(clock_timestamp() - $2::interval)`,
		lookBack, underWay).Scan(&begin, &end); err != nil {
		return err
	}
	first := w.unseen == nil
	if first {
		w.unseen, w.upto = map[uuid.UUID]Unseen{}, begin
	}
	if err := s.askAgain(ctx, p, w); err != nil {
		return err
	}
	w.gaps = slices.DeleteFunc(w.gaps, func(g gap) bool { return compare(g.before, begin) <= 0 })
	if compare(w.upto, end) < 0 { // the clock may have been set back
		if last := len(w.gaps) - 1; last >= 0 && w.gaps[last].before == w.upto {
			w.gaps[last].before = end
		} else {
			w.gaps = append(w.gaps, gap{w.upto, end})
		}
		w.upto = end
	}
	for page := 0; page < pages && len(w.gaps) > 0 && len(w.unseen) < kept; page++ {
		var err error
		switch last := len(w.gaps) - 1; {
		case page == 0:
			err = s.read(ctx, p, w, last, true)
		case first: // what stands still does so from some time until now
			err = s.read(ctx, p, w, last, false)
		default:
			err = s.read(ctx, p, w, 0, false)
		}
		if err == nil && page == 0 && first && len(w.unseen) > 0 && len(w.gaps) > 0 {
			err = s.split(ctx, p, w)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read looks at a page of a gap, from its end or from its beginning, and makes the gap smaller by it.
func (s *Supervisor) read(ctx context.Context, p Pipeline, w *watch, i int, newest bool) error {
	g := &w.gaps[i]
	order := ""
	if newest {
		order = "DESC"
	}
	// The position is read after the rows.
	found, err := readAll[event](ctx, p, `SELECT id, topic, (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint
		FROM outbox WHERE id > $1 AND id < $2 ORDER BY id `+order+` LIMIT $3`, g.after, g.before, pageIDs)
	if err != nil {
		return err
	}
	unseen, err := s.ask(ctx, found)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, ev := range unseen {
		w.unseen[ev.ID] = Unseen{ID: ev.ID, Topic: ev.Topic, Noticed: now, WAL: ev.WAL}
	}
	switch {
	case len(found) < pageIDs:
		w.gaps = slices.Delete(w.gaps, i, i+1)
	case newest:
		g.before = found[len(found)-1].ID
	default:
		g.after = found[len(found)-1].ID
	}
	return nil
}

// split divides the last gap about where its unseen events begin, found with some samples. A single look
// thus knows how long a flow has stood still, however many events wait.
func (s *Supervisor) split(ctx context.Context, p Pipeline, w *watch) error {
	g := &w.gaps[len(w.gaps)-1]
	low, high := millis(g.after), millis(g.before)
	for high-low > 1000 {
		middle := low + (high-low)/2
		sample, err := readAll[event](ctx, p, `SELECT id, topic, 0::bigint FROM outbox WHERE id > $1 AND id < $2 ORDER BY id LIMIT 100`,
			floor(middle), g.before)
		if err != nil {
			return err
		}
		unseen, err := s.ask(ctx, sample)
		if err != nil {
			return err
		}
		if len(unseen) > 0 || len(sample) == 0 {
			high = middle
		} else {
			low = middle
		}
	}
	if at := floor(low); compare(at, g.after) > 0 {
		rest := gap{at, g.before}
		g.before = at
		w.gaps = append(w.gaps, rest)
	}
	return nil
}

// millis is the time in an UUIDv7, in milliseconds since 1970, and floor the lowest id of such a time.
func millis(id uuid.UUID) int64 {
	return int64(binary.BigEndian.Uint64(id[:8]) >> 16)
}

func floor(millis int64) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:8], uint64(millis)<<16)
	return id
}

// askAgain forgets the unseen events that were seen since, and those whose rows are gone: nothing can send them again, and the auditor
// tells of them.
func (s *Supervisor) askAgain(ctx context.Context, p Pipeline, w *watch) error {
	known := make([]event, 0, len(w.unseen))
	for _, u := range w.unseen {
		known = append(known, event{u.ID, u.Topic, u.WAL})
	}
	still, err := s.ask(ctx, known)
	if err != nil {
		return err
	}
	kept, err := which(ctx, p.DB, still, `SELECT id FROM outbox WHERE id = ANY($1) AND id BETWEEN $2 AND $3`)
	if err != nil {
		return err
	}
	unseen := make(map[uuid.UUID]Unseen, len(still))
	for _, ev := range still {
		if kept[ev.ID] {
			unseen[ev.ID] = w.unseen[ev.ID]
		}
	}
	w.unseen = unseen
	return nil
}

// ask returns the events that their consumers' inboxes do not have.
func (s *Supervisor) ask(ctx context.Context, events []event) (unseen []event, err error) {
	by := map[string][]event{} // by consumer
	for _, ev := range events {
		to := s.cfg.Consumer(ev.Topic)
		by[to] = append(by[to], ev)
	}
	for _, consumer := range s.cfg.Pipelines {
		of := by[consumer.Name]
		if len(of) == 0 {
			continue
		}
		seen, err := which(ctx, consumer.DB, of, `SELECT event_id FROM inbox WHERE event_id = ANY($1) AND event_id BETWEEN $2 AND $3`)
		if err != nil {
			return nil, err
		}
		for _, ev := range of {
			if !seen[ev.ID] {
				unseen = append(unseen, ev)
			}
		}
	}
	return unseen, nil
}

// which returns the ids of the events that sql finds: it is given all of them, and the lowest and the highest.
func which(ctx context.Context, db *pgxpool.Pool, events []event, sql string) (map[uuid.UUID]bool, error) {
	if len(events) == 0 {
		return nil, nil
	}
	ids := make([][16]byte, len(events))
	for i, ev := range events {
		ids[i] = ev.ID
	}
	low, high := slices.MinFunc(events, byID).ID, slices.MaxFunc(events, byID).ID
	// The bounds let PostgreSQL leave out the partitions of other days.
	rows, err := db.Query(ctx, sql, ids, low, high)
	if err != nil {
		return nil, err
	}
	found := map[uuid.UUID]bool{}
	var id uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
		found[id] = true
		return nil
	})
	return found, err
}

func compare(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }

func byID(a, b event) int { return compare(a.ID, b.ID) }
