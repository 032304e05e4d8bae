package service

import (
	"context"
	"errors"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5/pgxpool"
)

// partitionsAhead is how many days of partitions are kept ready.
const partitionsAhead = 7

// preparePartitions makes those that are missing: the inbox's as far back as it must remember.
func preparePartitions(ctx context.Context, pool *pgxpool.Pool, cfg config) error {
	_, outboxErr := outbox.PreparePartitions(ctx, pool, partitionsAhead)
	_, inboxErr := inbox.PreparePartitions(ctx, pool, int(cfg.inboxRetention/(24*time.Hour)), partitionsAhead)
	return errors.Join(outboxErr, inboxErr)
}

// keepPartitions prepares partitions often enough that a day without the database
// does no harm: they reach a week ahead.
func keepPartitions(ctx context.Context, pool *pgxpool.Pool, cfg config) error {
	return every(ctx, 6*time.Hour, time.Minute, cfg.log, "partitions not prepared", func(ctx context.Context) error {
		return preparePartitions(ctx, pool, cfg)
	})
}

// retire drops the partitions that are past their retention.
func retire(ctx context.Context, pool *pgxpool.Pool, cfg config, m *metrics) error {
	return every(ctx, 10*time.Minute, time.Minute, cfg.log, "old partitions not dropped", func(ctx context.Context) error {
		return dropPartitions(ctx, pool, cfg, m)
	})
}

// dropPartitions drops what may go. A partition of the outbox is sealed first, and goes once the slots have
// confirmed that, some seconds later.
func dropPartitions(ctx context.Context, pool *pgxpool.Pool, cfg config, m *metrics) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var failed error
	for table, drop := range map[string]func() ([]string, *outbox.Kept, error){
		"outbox": func() ([]string, *outbox.Kept, error) { return outbox.DropPartitions(ctx, pool, cfg.outboxRetention) },
		"inbox":  func() ([]string, *outbox.Kept, error) { return inbox.DropPartitions(ctx, pool, cfg.inboxRetention) },
	} {
		kept, err := m.drop(ctx, cfg, table, drop)
		failed = errors.Join(failed, err)
		for _, reason := range outbox.Reasons() {
			m.kept.WithLabelValues(table, string(reason)).Set(0)
		}
		if kept != nil {
			m.kept.WithLabelValues(table, string(kept.Reason)).Set(1)
			if kept.Reason != outbox.Busy {
				cfg.log.Warn("partition kept past its retention", "partition", kept.Partition, "reason", kept.Reason, "detail", kept.Detail)
			}
		}
	}
	return failed
}

// drop repeats a drop while what keeps the next partition passes by itself.
func (m *metrics) drop(ctx context.Context, cfg config, table string, drop func() ([]string, *outbox.Kept, error)) (kept *outbox.Kept, err error) {
	for range 20 {
		var dropped []string
		dropped, kept, err = drop()
		for _, name := range dropped {
			m.dropped.WithLabelValues(table).Inc()
			cfg.log.Info("partition dropped", "partition", name)
		}
		if err != nil || kept == nil || kept.Reason != outbox.Locked && kept.Reason != outbox.Unconfirmed {
			break
		}
		select {
		case <-ctx.Done():
			return kept, err
		case <-time.After(2 * time.Second):
		}
	}
	return kept, err
}
