package main

import (
	"context"
	"fmt"
	"io"
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
	rates                     []int
	duration, warmup, confirm time.Duration
	repeats, start, replicas  int
	maximum                   bool
	shape                     bench.Shape
	out, bin                  string
}

func newBenchCommand() *cobra.Command {
	var o benchOptions
	c := &cobra.Command{
		Use: "bench", Short: "Measure the system under load, on a stack of its own", Args: cobra.NoArgs,
		Long: `Start a stack of its own on free ports, send orders at fixed rates, and print latency, CPU and WAL of each point; then
search the highest rate that holds (p99 within 1 s, nothing lost, no growing backlog). The services are taken from
--bin. Nothing else should run on the machine; what other programs use is shown with each point.

Latencies count from the moment at which an order was meant to be sent, to the answer of POST /orders (accept) and to
the commit that settled the order (final), by PostgreSQL's own clock.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runBench(cmd.Context(), cmd, o) },
	}
	f := c.Flags()
	f.IntSliceVar(&o.rates, "rates", []int{200, 500, 2000}, "orders/s of the points; 0 measures an idle system")
	f.DurationVar(&o.duration, "duration", 20*time.Second, "length of a point")
	f.DurationVar(&o.warmup, "warmup", 45*time.Second, "load before the first point: the JVMs compile")
	f.IntVar(&o.repeats, "repeats", 1, "how often the points are measured; the table shows medians and ranges")
	f.BoolVar(&o.maximum, "max", true, "search the highest rate that holds")
	f.IntVar(&o.start, "max-from", 4000, "where that search begins")
	f.DurationVar(&o.confirm, "confirm", time.Minute, "how long the rate that was found must hold")
	f.IntVar(&o.shape.Customers, "customers", 1000, "number of customers")
	f.IntVar(&o.shape.Items, "items", 1000, "number of items; 1: every order wants the same")
	f.Float64Var(&o.shape.Zipf, "zipf", 0, "over 1: how uneven items are asked for (Zipf's exponent)")
	f.IntVar(&o.shape.Lines, "lines", 1, "lines of an order")
	f.IntVar(&o.shape.Refused, "refused", 0, "percent of the orders that have no money")
	f.IntVar(&o.replicas, "replicas", 1, "instances of each service")
	f.StringVar(&o.out, "out", "", "folder for results.json and results.md")
	f.StringVar(&o.bin, "bin", "", "folder of the services' binaries (required)")
	_ = c.MarkFlagRequired("bin") // the flag exists
	return c
}

func (o benchOptions) validate() error {
	for _, rate := range o.rates {
		if rate < 0 {
			return fmt.Errorf("--rates has %d: a rate is 0 or more orders/s", rate)
		}
	}
	switch {
	case o.duration < time.Second || o.confirm < time.Second:
		return fmt.Errorf("--duration and --confirm must be 1s or more")
	case o.repeats < 1 || o.replicas < 1 || o.start < 1:
		return fmt.Errorf("--repeats, --replicas and --max-from must be 1 or more")
	case o.shape.Customers < 1 || o.shape.Items < 1 || o.shape.Lines < 1 || o.shape.Lines > 100:
		return fmt.Errorf("--customers and --items must be 1 or more, --lines 1 to 100")
	case o.shape.Zipf != 0 && o.shape.Zipf <= 1, o.shape.Refused < 0, o.shape.Refused > 100:
		return fmt.Errorf("--zipf must be over 1, --refused 0 to 100")
	}
	return nil
}

func runBench(ctx context.Context, cmd *cobra.Command, o benchOptions) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	target, root, stop, err := startBench(ctx, out, o)
	if stop != nil {
		defer func() {
			if stopping := stop(); err == nil {
				err = stopping
			}
		}()
	}
	if err != nil {
		return err
	}
	report := bench.Report{Machine: bench.Machine(), Commit: commit(ctx, root), Shape: o.shape, Max: map[string]int{}}
	begin := time.Now()
	fmt.Fprintf(out, "warming up for %v\n", o.warmup)
	if err := bench.Prepare(ctx, target, o.shape); err != nil {
		return err
	}
	measure := func(rate int, d time.Duration) (bench.Point, error) {
		p, err := bench.Run(ctx, target, o.shape, rate, d, showProgress(cmd.ErrOrStderr()))
		if err != nil || p.Holds() {
			return p, err
		}
		return p, bench.Drain(ctx, target, begin)
	}
	for _, rate := range []int{200, 1000, 3000} {
		if _, err := measure(rate, max(o.warmup/3, time.Second)); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, bench.Header)
	keep := func(rate int, d time.Duration) (bench.Point, error) {
		p, err := measure(rate, d)
		if err == nil {
			report.Runs = append(report.Runs, p)
			fmt.Fprintln(out, p.Row())
		}
		return p, err
	}
	for range o.repeats {
		for _, rate := range o.rates {
			if _, err := keep(rate, o.duration); err != nil {
				return err
			}
		}
	}
	if o.maximum {
		fmt.Fprintln(out, "searching the highest rate that holds")
		if report.Max[target.Name], err = bench.Search(o.start, o.duration, o.confirm, keep); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "\n%s", report.Markdown())
	if o.out == "" {
		return nil
	}
	return report.Write(o.out)
}

// startBench starts a system on a stack of its own. stop, where it is not nil, ends it, also after
// an error.
func startBench(ctx context.Context, out io.Writer, o benchOptions) (target bench.Target, root string, stop func() error, err error) {
	if root, err = system.Root(); err != nil {
		return target, root, nil, err
	}
	dir, err := os.MkdirTemp("", "outboxsaga-bench")
	if err != nil {
		return target, root, nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		return target, root, nil, err
	}
	cfg := devstack.Config{
		Dir: dir, Root: root, Ephemeral: true, Out: out,
		// When an order is final is told by PostgreSQL's own time of the commit.
		PostgresSettings: []string{"track_commit_timestamp=on"},
	}
	if err := cfg.UseFreePorts(); err != nil {
		return target, root, nil, err
	}
	stack, err := devstack.Open(cfg)
	if err != nil {
		return target, root, nil, err
	}
	stop = stack.Close
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return target, root, stop, err
	}
	ports, err := system.FreePorts(o.replicas)
	if err != nil {
		return target, root, stop, err
	}
	processes, err := system.Run(ctx, stack, bin, ports, true, "LOG_LEVEL=warn")
	if err != nil {
		return target, root, stop, err
	}
	urls := func(service string) (all []string) {
		for _, port := range ports[service] {
			all = append(all, fmt.Sprintf("http://127.0.0.1:%d", port))
		}
		return all
	}
	target = bench.Target{
		Name: "cdc", OrderURLs: urls("order-service"), StockURLs: urls("stock-service"), PaymentURLs: urls("payment-service"),
		Processes: map[string]int{},
	}
	names := []string{devstack.Postgres, devstack.Kafka, devstack.Connect}
	for _, p := range processes {
		names = append(names, p.Name)
	}
	for _, name := range names {
		pid, running := stack.PID(name)
		if !running {
			return target, root, stop, fmt.Errorf("%s has ended: see %s", name, stack.LogFile(name))
		}
		target.Processes[name] = pid
	}
	if target.DB, err = pgxpool.New(ctx, stack.PostgresURL("orderdb")); err != nil {
		return target, root, stop, err
	}
	stop = func() error {
		target.DB.Close()
		return stack.Close()
	}
	return target, root, stop, nil
}

// showProgress shows how a point comes on: on a terminal in one line, else every ten seconds.
func showProgress(w io.Writer) func(bench.Progress) {
	f, ok := w.(*os.File)
	if ok {
		info, err := f.Stat()
		ok = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	var last time.Time
	return func(p bench.Progress) {
		switch {
		case ok:
			fmt.Fprintf(w, "\r\033[K%s\r", p)
		case time.Since(last) > 10*time.Second:
			last = time.Now()
			fmt.Fprintln(w, p)
		}
	}
}

// commit is the checkout's commit, with a mark if there are changes.
func commit(ctx context.Context, root string) string {
	text, err := exec.CommandContext(ctx, "git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}
