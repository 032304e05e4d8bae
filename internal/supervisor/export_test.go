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
func (s *Supervisor) Topics(pipeline string, since map[string]int64, ended int64) {
	c := s.confirmations[pipeline]
	c.recalled, c.walk, c.last.xid = true, nil, ended
	c.topics = sinceOf(since)
}

func sinceOf(xids map[string]int64) map[string]since {
	topics := map[string]since{}
	for name, xid := range xids {
		topics[name] = since{"id", xid}
	}
	return topics
}

// Walk looks on for the older events, and tells since when something is known.
func (s *Supervisor) Walk(ctx context.Context, pipeline string) (since map[string]int64, err error) {
	since = map[string]int64{}
	for _, p := range s.cfg.Pipelines {
		if p.Name == pipeline {
			err = s.walkOn(ctx, p)
		}
	}
	for name, known := range s.confirmations[pipeline].topics {
		since[name] = known.xid
	}
	return since, err
}
