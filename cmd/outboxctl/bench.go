package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
)

type benchOptions struct {
	rates            []int
	duration, warmup time.Duration
	repeats, start   int
	maximum          bool
	customers, items int
	lines, replicas  int
	out, bin         string
}

func newBenchCommand() *cobra.Command {
	var o benchOptions
	c := &cobra.Command{
		Use: "bench", Short: "Measure the system under load, on a stack of its own", Args: cobra.NoArgs,
		Long: `Start a stack of its own on free ports, send orders at fixed rates, and print latency, CPU and WAL of each point; then
search the highest rate that holds. The services are taken from --bin. Nothing else should run on the machine.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBench(cmd.Context(), cmd, o) },
	}
	f := c.Flags()
	f.IntSliceVar(&o.rates, "rates", []int{200, 500, 2000}, "orders/s of the points")
	f.DurationVar(&o.duration, "duration", 20*time.Second, "length of a point")
	f.DurationVar(&o.warmup, "warmup", 20*time.Second, "load before the first point: the JVMs compile")
	f.IntVar(&o.repeats, "repeats", 1, "how often the points are measured; the table shows medians")
	f.BoolVar(&o.maximum, "max", true, "search the highest rate that holds")
	f.IntVar(&o.start, "max-from", 3000, "where that search begins")
	f.IntVar(&o.customers, "customers", 1000, "number of customers")
	f.IntVar(&o.items, "items", 1000, "number of items")
	f.IntVar(&o.lines, "lines", 1, "lines of an order")
	f.IntVar(&o.replicas, "replicas", 1, "instances of each service")
	f.StringVar(&o.out, "out", "", "folder for results.json and results.md")
	f.StringVar(&o.bin, "bin", "", "folder of the services' binaries (required)")
	_ = c.MarkFlagRequired("bin")
	return c
}

func runBench(ctx context.Context, cmd *cobra.Command, o benchOptions) (err error) {
	out := cmd.OutOrStdout()
	root, err := system.Root()
	if err != nil {
		return err
	}
	free, err := devstack.FreePorts(4)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "outboxsaga-bench")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	stack, err := devstack.Open(devstack.Config{
		Dir: dir, Root: root, Ephemeral: true, Out: out,
		PostgresPort: free[0], KafkaPort: free[1], ControllerPort: free[2], ConnectPort: free[3],
		// When an order is final is told by PostgreSQL's own time of the commit.
		PostgresSettings: []string{"track_commit_timestamp=on"},
	})
	if err != nil {
		return err
	}
	defer func() {
		if closing := stack.Close(); err == nil {
			err = closing
		}
	}()
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	ports, err := system.FreePorts(o.replicas)
	if err != nil {
		return err
	}
	processes, err := system.Run(ctx, stack, o.bin, ports, true, "LOG_LEVEL=warn")
	if err != nil {
		return err
	}
	db, err := pgxpool.New(ctx, stack.PostgresURL("orderdb"))
	if err != nil {
		return err
	}
	defer db.Close()
	url := func(service string) string { return fmt.Sprintf("http://127.0.0.1:%d", ports[service][0]) }
	target := bench.Target{OrderURL: url("order-service"), StockURL: url("stock-service"), PaymentURL: url("payment-service"), DB: db, Processes: map[string]int{}}
	for _, p := range processes {
		target.Processes[p.Name], _ = stack.PID(p.Name)
	}
	for _, name := range []string{devstack.Postgres, devstack.Kafka, devstack.Connect} {
		target.Processes[name], _ = stack.PID(name)
	}
	shape := bench.Shape{Customers: o.customers, Items: o.items, Lines: o.lines}
	if err := bench.Prepare(ctx, target, shape); err != nil {
		return err
	}
	report := bench.Report{Machine: bench.Machine(), Commit: commit(ctx, root), Max: map[string]int{}}
	keep := func(p bench.Point) {
		p.System = "cdc"
		report.Runs = append(report.Runs, p)
		fmt.Fprintln(out, p.Row())
	}
	fmt.Fprintf(out, "warming up for %v\n", o.warmup)
	for _, rate := range []int{200, 1000, 2000} {
		if _, err := bench.Run(ctx, target, shape, rate, o.warmup/3); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, bench.Header)
	for range o.repeats {
		for _, rate := range o.rates {
			p, err := bench.Run(ctx, target, shape, rate, o.duration)
			if err != nil {
				return err
			}
			keep(p)
		}
	}
	if o.maximum {
		fmt.Fprintln(out, "searching the highest rate that holds")
		best, _, err := bench.Maximum(ctx, target, shape, o.start, o.duration, keep)
		if err != nil {
			return err
		}
		report.Max["cdc"] = best
	}
	fmt.Fprintf(out, "\n%s", report.Markdown())
	if o.out == "" {
		return nil
	}
	return report.Write(o.out)
}

// commit is the checkout's commit, with a mark if there are changes.
func commit(ctx context.Context, root string) string {
	text, err := exec.CommandContext(ctx, "git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}
