package main

import (
	"fmt"
	"log/slog"
	"time"

	"outboxsaga/internal/bench/relay"
	"outboxsaga/internal/service"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// newBenchRelayCommand is the benchmark's rival as a process of its own, so that what it uses is counted
// apart: one relay for each database.
func newBenchRelayCommand() *cobra.Command {
	var databases, brokers []string
	var every time.Duration
	var batch int
	var design string
	c := &cobra.Command{
		Use: "bench-relay", Short: "Poll outboxes and produce to Kafka: the benchmark's rival", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			service.PaceGC() // as the services do
			relays, ctx := errgroup.WithContext(cmd.Context())
			for _, url := range databases {
				cfg, err := service.PoolConfig(url, "relay")
				if err != nil {
					return fmt.Errorf("--database %w", err)
				}
				pool, err := pgxpool.NewWithConfig(ctx, cfg)
				if err != nil {
					return err
				}
				defer pool.Close()
				relays.Go(func() error {
					return relay.Run(ctx, relay.Config{Pool: pool, Brokers: brokers, Every: every, Batch: batch, Design: relay.Design(design), Log: slog.Default()})
				})
			}
			return relays.Wait()
		},
	}
	f := c.Flags()
	f.StringSliceVar(&databases, "database", nil, "URLs of databases with an outbox")
	f.StringSliceVar(&brokers, "brokers", nil, "host:port")
	f.DurationVar(&every, "every", 5*time.Millisecond, "pause after a poll that found less than a batch; with notify, at most")
	f.IntVar(&batch, "batch", 1000, "rows of a poll")
	f.StringVar(&design, "design", string(relay.Delete), "delete, notify, flag, naive")
	return c
}
