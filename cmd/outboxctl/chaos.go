package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"outboxsaga/internal/chaos"
	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
)

func newChaosCommand() *cobra.Command {
	var cfg chaos.Config
	var minutes float64
	var out string
	c := &cobra.Command{
		Use: "chaos", Short: "Shoot at the system under load, on a stack of its own, and audit it", Args: cobra.NoArgs,
		Long: `Start a stack of its own on free ports, put orders in at a fixed rate, inject faults by a schedule that the seed
decides, and measure after each how long it takes until orders flow normally again. Then let it come to rest and audit
it: no event lost, no effect twice, no order unsettled, goods and money conserved. The exit code is 1 if anything is
violated, if fewer faults than --min-faults happened, and with --strict if a bar was missed: a time to normal flow that
a kind of fault should not exceed. The services are taken from --bin.

The report is left in --out, with the logs if it is not clean.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("seed") {
				cfg.Seed = rand.Uint64N(1_000_000)
			}
			cfg.Duration = time.Duration(minutes * float64(time.Minute))
			return runChaos(cmd.Context(), cmd, cfg, out)
		},
	}
	f := c.Flags()
	f.Uint64Var(&cfg.Seed, "seed", 0, "decides the schedule of faults; default: chosen, and printed")
	f.Float64Var(&minutes, "minutes", 5, "how long faults are injected")
	f.IntVar(&cfg.Rate, "rate", 50, "orders/s")
	f.StringVar(&out, "out", "", "folder for chaos-SEED.json and chaos-SEED.txt, and for logs if the run is not clean (default chaos-results in the checkout, which git ignores)")
	f.BoolVar(&cfg.Strict, "strict", false, "a missed bar fails the run")
	f.IntVar(&cfg.MinFaults, "min-faults", 0, "fewer faults fail the run")
	f.StringVar(&cfg.Bin, "bin", "", "folder of the services' binaries (required)")
	f.IntVar(&cfg.Instances, "replicas", 2, "instances of each service")
	f.IntVar(&cfg.Brokers, "brokers", 3, "Kafka brokers")
	f.IntVar(&cfg.Workers, "workers", 2, "Kafka Connect workers")
	f.IntVar(&cfg.Overlap, "overlap", 75, "percent of the faults that may meet others; the rest have the system to themselves")
	f.IntVar(&cfg.AtOnce, "at-once", 2, "faults that may last at the same time")
	f.StringSliceVar(&cfg.Only, "only", nil, "kinds of faults, one after the other, in place of all by the seed")
	_ = c.MarkFlagRequired("bin") // the flag exists
	return c
}

func runChaos(ctx context.Context, cmd *cobra.Command, cfg chaos.Config, out string) (err error) {
	if cfg.Root, err = system.Root(); err != nil {
		return err
	}
	if cfg.Bin, err = filepath.Abs(cfg.Bin); err != nil {
		return err
	}
	if out == "" {
		if out, err = chaos.Results(cfg.Root); err != nil {
			return err
		}
	}
	if cfg.Dir, err = os.MkdirTemp("", "outboxsaga-chaos"); err != nil {
		return err
	}
	if err := os.Chmod(cfg.Dir, 0o755); err != nil { // PostgreSQL may run as another user
		return err
	}
	cfg.Out, cfg.Logs = cmd.OutOrStdout(), out
	cfg.Fast = true // or starting JVMs would be most of what is measured
	fmt.Fprintf(cfg.Out, "seed %d\n", cfg.Seed)
	report, err := chaos.Run(ctx, cfg)
	if err != nil {
		return err
	}
	report.Commit = commit(ctx, cfg.Root)
	fmt.Fprint(cfg.Out, report.Text())
	file, err := report.Write(out)
	if err != nil {
		return err
	}
	fmt.Fprintf(cfg.Out, "the report is in %s\n", file)
	if missed := report.Missed(); !report.Clean() || len(missed) > 0 {
		return fmt.Errorf("%d violations, %d things missed that were asked for; the same schedule again: --seed %d", len(report.Violations), len(missed), cfg.Seed)
	}
	return nil
}
