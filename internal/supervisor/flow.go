package supervisor

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Unseen is an event whose outbox row is committed and whose id is not in its consumer's inbox.
type Unseen struct {
	ID    uuid.UUID `json:"id"`
	Topic string    `json:"topic"`
	// Noticed is when it was first found so, and WAL the end of the log then: its row is before it.
	Noticed time.Time `json:"noticed"`
	WAL     int64     `json:"wal"`
}

// At is when the event was made: the time in its UUIDv7.
func (u Unseen) At() time.Time {
	sec, nsec := u.ID.Time().UnixTime()
	return time.Unix(sec, nsec)
}

const (
	// underWay is how old an event may be that is not looked for yet.
	underWay = 3 * time.Second
	// lookBack is where a supervisor begins to look.
	lookBack = time.Hour
	// A look reads so many ids, in pages. An outbox that grows faster is followed in jumps: the auditor
	// reads every id.
	pageIDs, pages = 5000, 4
	// kept bounds what is kept of the unseen events.
	kept = 10_000
)

// watch follows one outbox by its ids, which are in the order of time.
type watch struct {
	upto   uuid.UUID // all up to here were looked at
	unseen map[uuid.UUID]Unseen
}

// follow fills in the events that no inbox has.
func (s *Supervisor) follow(ctx context.Context, f *Facts, unknown func(string, error)) {
	for _, p := range s.cfg.Pipelines {
		flow := f.Pipelines[p.Name]
		if flow.Slot == nil {
			continue
		}
		w := s.watches[p.Name]
		if err := s.look(ctx, p, w); err != nil {
			unknown("the events of "+p.Name, err)
		}
		for _, u := range w.unseen {
			flow.Unseen = append(flow.Unseen, u)
		}
		slices.SortFunc(flow.Unseen, func(a, b Unseen) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		f.Pipelines[p.Name] = flow
	}
}

type eventID struct {
	ID    uuid.UUID
	Topic string
}

// look reads on in an outbox, and asks the inboxes for what is new and for what was unseen.
func (s *Supervisor) look(ctx context.Context, p Pipeline, w *watch) error {
	if w.unseen == nil {
		w.unseen = map[uuid.UUID]Unseen{}
		if err := p.DB.QueryRow(ctx, `SELECT uuidv7_floor(clock_timestamp() - $1::interval)`, lookBack).Scan(&w.upto); err != nil {
			return err
		}
	}
	now := time.Now()
	ask := map[string][]eventID{} // by consumer
	for _, u := range w.unseen {
		to := s.cfg.Consumer(u.Topic)
		ask[to] = append(ask[to], eventID{u.ID, u.Topic})
	}
	for page := 0; len(w.unseen) < kept; page++ {
		if page == pages { // too far behind: go on with the newest
			if err := p.DB.QueryRow(ctx, `SELECT greatest($2, uuidv7_floor(clock_timestamp() - $1::interval))`, underWay+s.cfg.Every, w.upto).Scan(&w.upto); err != nil {
				return err
			}
			break
		}
		found, err := readAll[eventID](ctx, p, `SELECT id, topic FROM outbox
			WHERE id > $1 AND id < uuidv7_floor(clock_timestamp() - $2::interval) ORDER BY id LIMIT $3`, w.upto, underWay, pageIDs)
		if err != nil {
			return err
		}
		for _, ev := range found {
			if to := s.cfg.Consumer(ev.Topic); to != "" {
				ask[to] = append(ask[to], ev)
			}
			w.upto = ev.ID
		}
		if len(found) < pageIDs {
			break
		}
	}
	// A position after all that was read.
	var wal int64
	if err := p.DB.QueryRow(ctx, `SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint`).Scan(&wal); err != nil {
		return err
	}
	for _, consumer := range s.cfg.Pipelines {
		if err := s.askInbox(ctx, consumer, ask[consumer.Name], func(ev eventID, seen bool) {
			if seen {
				delete(w.unseen, ev.ID)
			} else if _, known := w.unseen[ev.ID]; !known {
				w.unseen[ev.ID] = Unseen{ev.ID, ev.Topic, now, wal}
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// askInbox tells of each event whether its id is in the inbox.
func (s *Supervisor) askInbox(ctx context.Context, consumer Pipeline, events []eventID, tell func(ev eventID, seen bool)) error {
	if len(events) == 0 {
		return nil
	}
	ids := make([][16]byte, len(events))
	for i, ev := range events {
		ids[i] = ev.ID
	}
	low, high := slices.MinFunc(ids, compare), slices.MaxFunc(ids, compare)
	// The bounds let PostgreSQL leave out the partitions of other days.
	rows, err := consumer.DB.Query(ctx, `SELECT event_id FROM inbox WHERE event_id = ANY($1) AND event_id BETWEEN $2 AND $3`, ids, low, high)
	if err != nil {
		return err
	}
	seen := map[[16]byte]bool{}
	var id [16]byte
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error {
		seen[id] = true
		return nil
	}); err != nil {
		return err
	}
	for _, ev := range events {
		tell(ev, seen[ev.ID])
	}
	return nil
}

func compare(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }
