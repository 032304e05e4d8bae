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
