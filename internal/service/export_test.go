package service

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// DeleteExpiredKeys is deleteExpiredKeys, for the tests on a database.
var DeleteExpiredKeys = deleteExpiredKeys

// ExitsWith2 tells whether [Main] calls err bad configuration.
func ExitsWith2(err error) bool { return errors.As(err, new(configError)) }

// PartitionsReady is what readyz says of the partitions at another time than now.
func PartitionsReady(ctx context.Context, pool *pgxpool.Pool, now time.Time) error {
	h := health{pool: pool, now: func() time.Time { return now }}
	return h.partitions(ctx)
}

// Retire is one round of retention, with its metrics.
func Retire(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, outbox, inbox time.Duration) (http.Handler, error) {
	m := newMetrics(NewPool(pool), NewBackpressure())
	return m.handler(), dropPartitions(ctx, pool, config{log: log, outboxRetention: outbox, inboxRetention: inbox}, m)
}

// CheckTopicRetention is checkTopicRetention.
var CheckTopicRetention = checkTopicRetention

// Waits is what backpressure_wait_seconds_total says.
func (b *Backpressure) Waits() time.Duration { return b.waits() }

// Waits is what db_pool_wait_seconds_total says.
func (p *Pool) Waits() time.Duration { return p.waits() }
