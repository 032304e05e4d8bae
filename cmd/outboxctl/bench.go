package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
)

type benchOptions struct {
	rates                     []int
	duration, warmup, confirm time.Duration
	repeats, from, replicas   int
	maximum, quick, full      bool
	systems                   []string
	shape                     bench.Shape
	out, bin                  string
}

func newBenchCommand() *cobra.Command {
	var o benchOptions
	c := &cobra.Command{
		Use: "bench", Short: "Measure the system under load, and its rivals, on a stack of their own", Args: cobra.NoArgs,
		Long: `Start each system on a stack of its own on free ports, send orders at fixed rates, and print latency, CPU and WAL of each point;
then search the highest rate that holds (p99 within 1 s, nothing lost, no growing backlog). The programs are taken from
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
	f.IntVar(&o.from, "max-from", 4000, "where that search begins")
	f.DurationVar(&o.confirm, "confirm", time.Minute, "how long the rate that was found must hold")
	f.IntVar(&o.shape.Customers, "customers", 1000, "number of customers")
	f.IntVar(&o.shape.Items, "items", 1000, "number of items; 1: every order wants the same")
	f.Float64Var(&o.shape.Zipf, "zipf", 0, "over 1: how uneven items are asked for (Zipf's exponent)")
	f.IntVar(&o.shape.Lines, "lines", 1, "lines of an order")
	f.IntVar(&o.shape.Refused, "refused", 0, "percent of the orders that have no money")
	f.IntVar(&o.replicas, "replicas", 1, "instances of each service")
	f.StringSliceVar(&o.systems, "systems", []string{"cdc"}, "what to measure, in turn: "+systemNames())
	f.BoolVar(&o.quick, "quick", false, "cdc and poller, idle, 200, 500 and 2,000 orders/s and the maximum, in about 8 minutes")
	f.BoolVar(&o.full, "full", false, "all systems, 30 s a point, three times: some hours")
	f.StringVar(&o.out, "out", "", "folder for results.json, results.md and the plots")
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
	for _, name := range o.systems {
		if _, known := benchSystems[name]; !known {
			return fmt.Errorf("--systems has %q: choose from %s", name, systemNames())
		}
	}
	switch {
	case o.quick && o.full:
		return fmt.Errorf("choose --quick or --full")
	case o.duration < time.Second || o.confirm < time.Second:
		return fmt.Errorf("--duration and --confirm must be 1s or more")
	case o.repeats < 1 || o.replicas < 1 || o.from < 1:
		return fmt.Errorf("--repeats, --replicas and --max-from must be 1 or more")
	case o.shape.Customers < 1 || o.shape.Items < 1 || o.shape.Lines < 1 || o.shape.Lines > 100:
		return fmt.Errorf("--customers and --items must be 1 or more, --lines 1 to 100")
	case o.shape.Zipf != 0 && o.shape.Zipf <= 1, o.shape.Refused < 0, o.shape.Refused > 100:
		return fmt.Errorf("--zipf must be over 1, --refused 0 to 100")
	}
	return nil
}

func runBench(ctx context.Context, cmd *cobra.Command, o benchOptions) (err error) {
	if o.quick {
		o.systems, o.rates, o.duration, o.warmup, o.repeats, o.confirm = []string{"cdc", "poller"}, []int{0, 200, 500, 2000}, 15*time.Second, 30*time.Second, 1, 20*time.Second
	}
	if o.full {
		o.systems, o.rates, o.duration, o.repeats = fullSystems, []int{0, 1, 200, 500, 1000, 2000, 4000}, 30*time.Second, 3
	}
	if err := o.validate(); err != nil {
		return err
	}
	root, err := system.Root()
	if err != nil {
		return err
	}
	report := bench.Report{Machine: bench.Machine(), Commit: commit(ctx, root), Shape: o.shape, Max: map[string]int{}}
	// In turn, so that what the machine does meanwhile burdens all alike.
	for repeat := range o.repeats {
		for _, name := range o.systems {
			if err := o.measure(ctx, cmd, root, name, repeat == o.repeats-1, &report); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if o.out != "" { // what was measured is kept if a later system fails
				if err := report.Write(o.out); err != nil {
					return err
				}
			}
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\n%s", report.Markdown())
	return nil
}

// measure starts a system, measures its points once and, the last time, its maximum, and stops it.
func (o benchOptions) measure(ctx context.Context, cmd *cobra.Command, root, name string, last bool, report *bench.Report) (err error) {
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s: %s\n", name, benchSystems[name].what)
	target, stop, err := o.start(ctx, out, root, name)
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
	begin := time.Now()
	fmt.Fprintf(out, "warming up for %v\n", o.warmup)
	if err := bench.Prepare(ctx, target, o.shape); err != nil {
		return err
	}
	run := func(rate int, d time.Duration) (bench.Point, error) {
		p, err := bench.Run(ctx, target, o.shape, rate, d, showProgress(cmd.ErrOrStderr()))
		if err != nil || p.Holds() {
			return p, err
		}
		return p, bench.Drain(ctx, target, begin)
	}
	slow := benchSystems[name].slow
	for _, rate := range []int{200, 1000, 3000} {
		if slow {
			rate /= 20
		}
		if _, err := run(rate, max(o.warmup/3, time.Second)); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, bench.Header)
	keep := func(rate int, d time.Duration) (bench.Point, error) {
		p, err := run(rate, d)
		if err == nil {
			report.Runs = append(report.Runs, p)
			fmt.Fprintln(out, p.Row())
		}
		return p, err
	}
	for _, rate := range o.rates {
		p, err := keep(rate, o.duration)
		if err != nil {
			return err
		}
		if rate > 0 && !p.Holds() && slow {
			break // higher rates would only take long
		}
	}
	if !o.maximum || !last {
		return nil
	}
	fmt.Fprintln(out, "searching the highest rate that holds")
	start := o.from
	if slow {
		start /= 20
	}
	report.Max[target.Name], err = bench.Search(start, o.duration, o.confirm, keep)
	return err
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
