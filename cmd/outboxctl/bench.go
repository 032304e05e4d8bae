package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/bench/campaign"
	"outboxsaga/internal/scheduling"
	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
)

func newBenchCommand() *cobra.Command {
	o := campaign.Usual()
	var quick, full bool
	var only []string
	var out, bin string
	c := &cobra.Command{
		Use: "bench", Short: "Measure the system and its rivals under load, on stacks of their own", Args: cobra.NoArgs,
		Long: `Start stacks on free ports, one after the other, send orders at fixed rates, and print latency, CPU and WAL of each
point; then search the highest rate that holds (p99 within 1 s, nothing lost, no order failed, no growing backlog).
Binaries are taken from --bin. Nothing else should run on the machine; what other programs use is shown with each point.

--quick compares the product with the best polling relay in up to 8 minutes. --full measures everything, for hours; other
flags change either. --only runs some parts: ` + aboutParts() + `.

Latencies count from the moment at which an order was meant to be sent, to the answer of POST /orders (accept) and to
the commit that settled the order (final), by PostgreSQL's own clock.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			parts := only
			switch {
			case quick && full:
				return fmt.Errorf("choose --quick or --full")
			case quick:
				preset(&o, campaign.Quick(), cmd.Flags().Changed)
			case full:
				preset(&o, campaign.Full(), cmd.Flags().Changed)
				for _, p := range campaign.Parts() {
					if len(only) == 0 {
						parts = append(parts, p.Name)
					}
				}
			}
			if len(parts) == 0 {
				parts = []string{bench.PartLatency}
			}
			if err := validateBench(o); err != nil {
				return err
			}
			return runBench(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o, parts, out, bin)
		},
	}
	f := c.Flags()
	f.BoolVar(&quick, "quick", false, "the product and the best polling relay only, shortly")
	f.BoolVar(&full, "full", false, "everything")
	f.StringSliceVar(&only, "only", nil, "run these parts only")
	f.IntSliceVar(&o.Rates, "rates", o.Rates, "orders/s of the points of the parts latency, rivals and intervals")
	f.IntSliceVar(&o.CaseRates, "case-rates", o.CaseRates, "orders/s of the points of the parts shapes and growth")
	f.DurationVar(&o.Duration, "duration", o.Duration, "length of a point")
	f.DurationVar(&o.Warmup, "warmup", o.Warmup, "load before the first point of a system: the JVMs compile")
	f.DurationVar(&o.Idle, "idle", o.Idle, "length of a point with 0 or 1 order/s; 0: none")
	f.IntVar(&o.Repeats, "repeats", o.Repeats, "how often points are measured; tables show medians and ranges")
	f.BoolVar(&o.Maximum, "max", o.Maximum, "search the highest rate that holds")
	f.IntVar(&o.From, "max-from", o.From, "where that search begins; 0: above the highest of the rates that held")
	f.DurationVar(&o.Step, "max-step", o.Step, "length of a step of it")
	f.DurationVar(&o.Most, "max-time", o.Most, "when its steps end at the latest, and with half as much again its confirmations; 0: no bound")
	f.DurationVar(&o.Confirm, "confirm", o.Confirm, "how long the rate that was found must hold")
	f.IntVar(&o.Shape.Customers, "customers", o.Shape.Customers, "number of customers")
	f.IntVar(&o.Shape.Items, "items", o.Shape.Items, "number of items; 1: every order wants the same")
	f.Float64Var(&o.Shape.Zipf, "zipf", 0, "over 1: how uneven items are asked for (Zipf's exponent)")
	f.IntVar(&o.Shape.Lines, "lines", 1, "lines of an order")
	f.IntVar(&o.Shape.Refused, "refused", 0, "percent of the orders that have no money")
	f.IntVar(&o.Instances, "replicas", 1, "instances of each service")
	f.StringSliceVar(&o.Systems, "systems", o.Systems, "what the part latency measures: "+strings.Join(systemNames(), ", "))
	f.IntSliceVar(&o.SeededOrders, "seeded", o.SeededOrders, "orders already there in the part growth, ascending")
	f.DurationVar(&o.Down, "down", o.Down, "how long the worker is away in the part catch-up")
	f.IntVar(&o.Soak.Orders, "soak-orders", o.Soak.Orders, "orders of the part soak")
	f.IntVar(&o.Soak.Rate, "soak-rate", o.Soak.Rate, "orders/s of the part soak")
	f.IntVar(&o.Soak.Days, "soak-days", o.Soak.Days, "days of the part soak")
	f.StringVar(&out, "out", "", "folder for results.json, results.md and plots")
	f.StringVar(&bin, "bin", "", "folder of the services' binaries and of outboxctl (required)")
	_ = c.MarkFlagRequired("bin") // the flag exists
	return c
}

// preset makes options those of --quick or --full, where a flag has not said otherwise.
func preset(o *campaign.Options, to campaign.Options, given func(flag string) bool) {
	for flag, set := range map[string]func(){
		"rates": func() { o.Rates = to.Rates }, "repeats": func() { o.Repeats = to.Repeats }, "systems": func() { o.Systems = to.Systems },
		"duration": func() { o.Duration = to.Duration }, "warmup": func() { o.Warmup = to.Warmup }, "idle": func() { o.Idle = to.Idle },
		"max-from": func() { o.From = to.From }, "max-step": func() { o.Step = to.Step }, "max-time": func() { o.Most = to.Most }, "confirm": func() { o.Confirm = to.Confirm },
	} {
		if !given(flag) {
			set()
		}
	}
}

func aboutParts() string {
	var all []string
	for _, p := range campaign.Parts() {
		all = append(all, fmt.Sprintf("%s (%s)", p.Name, p.About))
	}
	return strings.Join(all, ", ")
}

func systemNames() (names []string) {
	for _, s := range campaign.Systems() {
		names = append(names, s.Name)
	}
	return names
}

func validateBench(o campaign.Options) error {
	for flag, rates := range map[string][]int{"--rates": o.Rates, "--case-rates": o.CaseRates} {
		for _, rate := range rates {
			if rate < 0 {
				return fmt.Errorf("%s has %d: a rate is 0 or more orders/s", flag, rate)
			}
		}
	}
	for _, name := range o.Systems {
		if !slices.Contains(systemNames(), name) {
			return fmt.Errorf("--systems has %s: choose of %s", name, strings.Join(systemNames(), ", "))
		}
	}
	switch s := o.Shape; {
	case o.Duration < time.Second || o.Confirm < time.Second || o.Step < time.Second:
		return fmt.Errorf("--duration, --max-step and --confirm must be 1s or more")
	case o.Repeats < 1 || o.Instances < 1 || o.From < 0:
		return fmt.Errorf("--repeats and --replicas must be 1 or more, --max-from 0 or more")
	case s.Customers < 1 || s.Items < 1 || s.Lines < 1 || s.Lines > 100:
		return fmt.Errorf("--customers and --items must be 1 or more, --lines 1 to 100")
	case s.Zipf != 0 && s.Zipf <= 1, s.Refused < 0, s.Refused > 100:
		return fmt.Errorf("--zipf must be over 1, --refused 0 to 100")
	case o.Soak.Rate < 1 || o.Soak.Days < bench.SoakDays || o.Soak.Days > 300 || o.Soak.Orders < o.Soak.Rate*o.Soak.Days:
		return fmt.Errorf("--soak-rate must be 1 or more, --soak-days %d to 300, --soak-orders at least a second's for each day", bench.SoakDays)
	case !slices.IsSorted(o.SeededOrders) || slices.ContainsFunc(o.SeededOrders, func(n int) bool { return n < 0 }):
		return fmt.Errorf("--seeded must ascend, from 0 or more")
	}
	return nil
}

func runBench(ctx context.Context, out, progress io.Writer, o campaign.Options, parts []string, dir, bin string) error {
	root, err := system.Root()
	if err != nil {
		return err
	}
	versions, err := campaign.Versions(ctx, root)
	if err != nil {
		return err
	}
	report := &bench.Report{
		Machine: bench.Machine(os.TempDir()), Versions: versions, Commit: commit(ctx, root), Max: map[string]int{},
		Command: "scripts/bench.sh " + strings.Join(withoutBin(os.Args[2:]), " "),
	}
	if report.Settings, report.Notes, err = settings(); err != nil {
		return err
	}
	c := &campaign.Campaign{
		Builder: campaign.Builder{Root: root, Bin: bin, Out: out}, Options: o, Report: report, Progress: showProgress(progress), Ceilings: ceilings,
	}
	if dir != "" {
		c.Save = func(r bench.Report) error { return r.Write(dir) }
	}
	fmt.Fprintln(out, bench.Header)
	err = c.Run(ctx, parts...)
	fmt.Fprintf(out, "\n%s", report.Markdown())
	return err
}

// settings are what the environment changes of the system, as it takes effect here, and what this machine cannot do.
func settings() (all map[string]string, notes []string, err error) {
	worker, missing, err := scheduling.ForWorker()
	if err != nil {
		return nil, nil, err
	}
	if missing != nil {
		notes = append(notes, missing.Error())
	}
	services, err := scheduling.ForGo()
	if err != nil {
		return nil, nil, err
	}
	policy := "other"
	if worker.Batch {
		policy = "batch"
	}
	all = map[string]string{
		scheduling.PolicyVariable: policy, scheduling.IntervalVariable: worker.Interval, scheduling.BatchVariable: worker.MaxBatch,
		scheduling.SlackVariable: strconv.FormatInt(worker.Slack.Milliseconds(), 10), scheduling.GoSlackVariable: strconv.FormatInt(services.Slack.Milliseconds(), 10),
	}
	for _, name := range []string{"MAX_BATCH", "PACE", "GOGC", "GOMAXPROCS", "GOMEMLIMIT"} {
		if value, set := os.LookupEnv(name); set {
			all[name] = value
		}
	}
	return all, notes, nil
}

// withoutBin are the arguments as they were given to scripts/bench.sh.
func withoutBin(args []string) []string {
	if i := slices.Index(args, "--bin"); i >= 0 && i+1 < len(args) {
		return slices.Delete(slices.Clone(args), i, i+2)
	}
	return args
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
