package supervisor

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// HoldDuring takes the lock in a session that idles out after idle, works, and tells whether it is still held.
func HoldDuring(ctx context.Context, pool *pgxpool.Pool, idle time.Duration, work func()) (bool, error) {
	l := &lock{pool: pool, idle: idle}
	defer l.release()
	if held, _, err := l.hold(ctx); err != nil || !held {
		return false, err
	}
	l.during(work)
	return l.held(ctx), nil
}

// Always is the oldest transaction that there can be.
const Always = always

// Topics are since when something is known of a pipeline's topics, where all transactions before ended have.
func (s *Supervisor) Topics(pipeline string, xids map[string]int64, ended int64) {
	c := s.confirmations[pipeline]
	c.recalled, c.walks, c.last.xid, c.topics = true, map[string]*walk{}, ended, map[string]since{}
	for name, xid := range xids {
		c.topics[name] = since{"id", xid}
	}
}

// Walk looks on for the older events, and tells since when something is known.
func (s *Supervisor) Walk(ctx context.Context, pipeline string) (since map[string]int64, err error) {
	f := Facts{Pipelines: map[string]Pipeflow{}}
	for _, p := range s.cfg.Pipelines {
		f.Pipelines[p.Name] = Pipeflow{Slot: &Slot{}}
	}
	since = map[string]int64{}
	for _, p := range s.cfg.Pipelines {
		if p.Name == pipeline {
			err = s.walkOn(ctx, p, f)
		}
	}
	for name, known := range s.confirmations[pipeline].topics {
		since[name] = known.xid
	}
	return since, err
}

// Next is the number of the transaction that begins next, as a look finds it.
func Next(ctx context.Context, p Pipeline) (int64, error) {
	slot, err := readSlot(ctx, p, &heard{})
	if err != nil {
		return 0, err
	}
	return slot.next, nil
}

// Known is what a supervisor that begins knows of a pipeline, after two looks that find a topic: before which transaction,
// and since which. id is the topic's, first whether it is published at the first look.
func Known(ctx context.Context, s *Supervisor, p Pipeline, first bool, id string) (before, since int64, err error) {
	c := s.confirmations[p.Name]
	for _, published := range []bool{first, true} {
		slot, err := readSlot(ctx, p, s.heard[p.Name])
		if err != nil {
			return 0, 0, err
		}
		slot.published = published
		c.learn(slot, map[string]string{"t": id})
		if err := s.tell(ctx, p, slot); err != nil {
			return 0, 0, err
		}
	}
	return c.before, c.topics["t"].xid, nil
}

// Tell has a supervisor keep what Kafka has.
func Tell(ctx context.Context, s *Supervisor, p Pipeline, before, xid int64, id string) error {
	c := s.confirmations[p.Name]
	slot, err := readSlot(ctx, p, s.heard[p.Name])
	if err != nil {
		return err
	}
	c.before, c.history, c.topics = before, slot.history, map[string]since{"t": {id, xid}}
	return c.save(ctx, p, slot.at, false)
}

// Later is the since of which nothing is known.
const Later = later

// SlotGone tells whether a slot is gone that a look had found.
func (s *Supervisor) SlotGone(ctx context.Context, f Facts) bool {
	s.newest = f
	return s.slotGone(ctx)
}
