package service

import (
	"context"
	"errors"
	"sync"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
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

// retire drops the partitions that are past their retention, from the start on.
func retire(ctx context.Context, pool *pgxpool.Pool, cfg config, m *metrics) error {
	if err := dropPartitions(ctx, pool, cfg, m); err != nil && ctx.Err() == nil {
		cfg.log.Warn("old partitions not dropped; trying again in some minutes", "error", err)
	}
	return every(ctx, 10*time.Minute, time.Minute, cfg.log, "old partitions not dropped", func(ctx context.Context) error {
		return dropPartitions(ctx, pool, cfg, m)
	})
}

// dropPartitions drops what may go. A partition of the outbox is sealed first, and goes once the slots have
// confirmed that, some seconds later.
func dropPartitions(ctx context.Context, pool *pgxpool.Pool, cfg config, m *metrics) error {
	bounded, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var failed error
	for table, drop := range map[string]func() ([]string, *outbox.Kept, error){
		"outbox": func() ([]string, *outbox.Kept, error) {
			return outbox.DropPartitions(bounded, pool, cfg.outboxRetention)
		},
		"inbox": func() ([]string, *outbox.Kept, error) { return inbox.DropPartitions(bounded, pool, cfg.inboxRetention) },
	} {
		kept, err := m.drop(bounded, cfg, table, drop)
		if err != nil { // what is kept is as it was, as far as is known
			failed = errors.Join(failed, err)
			continue
		}
		for _, reason := range outbox.Reasons() {
			is := 0.0
			if kept != nil && kept.Reason == reason {
				is = 1
			}
			m.kept.WithLabelValues(table, string(reason)).Set(is)
		}
		if kept != nil {
			if kept.Reason != outbox.Busy {
				cfg.log.Warn("partition kept past its retention", "table", table, "partition", kept.Partition, "reason", kept.Reason, "detail", kept.Detail)
			}
		}
	}
	return errors.Join(failed, m.windows.read(ctx, pool))
}

// drop repeats a drop while what keeps the next partition passes by itself.
func (m *metrics) drop(ctx context.Context, cfg config, table string, drop func() ([]string, *outbox.Kept, error)) (kept *outbox.Kept, err error) {
	for range 20 {
		var dropped []string
		dropped, kept, err = drop()
		for _, name := range dropped {
			m.dropped.WithLabelValues(table).Inc()
			cfg.log.Info("partition dropped", "table", table, "partition", name)
		}
		if err != nil || kept == nil || kept.Reason != outbox.Locked && kept.Reason != outbox.Unconfirmed {
			break
		}
		wait := 2 * time.Second
		if kept.Reason == outbox.Locked { // each try may hold up writers for a moment
			wait = 15 * time.Second
		}
		select {
		case <-ctx.Done():
			return kept, err
		case <-time.After(wait):
		}
	}
	return kept, err
}

// windows is the time for which there are partitions, by table, as of the last look.
type windows struct {
	mu    sync.Mutex
	known map[string]window
}

type window struct{ since, until time.Time }

func (w *windows) read(ctx context.Context, pool *pgxpool.Pool) error {
	known := map[string]window{}
	for table, ask := range map[string]func(context.Context, outbox.Querier) (since, until time.Time, err error){
		"outbox": outbox.Window, "inbox": inbox.Window,
	} {
		since, until, err := ask(ctx, pool)
		if err != nil {
			return err
		}
		known[table] = window{since, until}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known = known
	return nil
}

var (
	oldestAge = prometheus.NewDesc("partitions_oldest_age_seconds", "Age of the oldest id that has a partition.", []string{"table"}, nil)
	timeLeft  = prometheus.NewDesc("partitions_prepared_seconds", "Time until the first id that has no partition.", []string{"table"}, nil)
)

// Describe serves [prometheus.Collector].
func (w *windows) Describe(to chan<- *prometheus.Desc) {
	to <- oldestAge
	to <- timeLeft
}

// Collect serves [prometheus.Collector].
func (w *windows) Collect(to chan<- prometheus.Metric) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for table, known := range w.known {
		to <- prometheus.MustNewConstMetric(oldestAge, prometheus.GaugeValue, time.Since(known.since).Seconds(), table)
		to <- prometheus.MustNewConstMetric(timeLeft, prometheus.GaugeValue, time.Until(known.until).Seconds(), table)
	}
}
