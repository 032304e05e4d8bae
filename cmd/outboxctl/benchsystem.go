package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/bench/relay"
	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// benchSystem is a way to move the events, or to handle them. Everything else is the same: services, schema,
// broker, settings.
type benchSystem struct {
	what string
	// relay are the arguments of a polling relay in place of Debezium.
	relay []string
	// connector changes settings of the connectors.
	connector map[string]string
	// env is added to the services'.
	env []string
	// slow: its points and its search begin at a twentieth of the rates.
	slow bool
}

var benchSystems = map[string]benchSystem{
	"cdc":         {what: "the product: Debezium, as connectors/ has it"},
	"poller":      {what: "the best polling relay that we can write, 5 ms", relay: []string{"--every", "5ms", "--batch", "1000"}},
	"poller-10ms": {what: "the same, 10 ms", relay: []string{"--every", "10ms", "--batch", "1000"}},
	"naive":       {what: "a naive polling relay: 1 s, 100 rows, one after the other", relay: []string{"--every", "1s", "--batch", "100", "--naive"}, slow: true},
	"single":      {what: "the product with one transaction an event and a POST", env: []string{"MAX_BATCH=1"}, slow: true},
	"cdc-500ms":   polling("500", "Debezium with its defaults"),
	"cdc-50ms":    polling("50", "Debezium, poll.interval.ms=50, max.batch.size=2048"),
	"cdc-10ms":    polling("10", "Debezium, poll.interval.ms=10, max.batch.size=2048"),
	"cdc-5ms":     polling("5", "Debezium, poll.interval.ms=5, max.batch.size=2048"),
	"cdc-1ms":     polling("1", "Debezium, poll.interval.ms=1, max.batch.size=2048"),
}

// fullSystems are those of --full, in this order.
var fullSystems = []string{"cdc", "poller", "poller-10ms", "naive", "single", "cdc-500ms", "cdc-50ms", "cdc-10ms", "cdc-5ms", "cdc-1ms"}

func polling(ms, what string) benchSystem {
	return benchSystem{what: what, connector: map[string]string{"poll.interval.ms": ms, "max.batch.size": "2048"}}
}

func systemNames() string { return strings.Join(slices.Sorted(maps.Keys(benchSystems)), ", ") }

// start starts a system on a stack of its own. stop, where it is not nil, ends it, also after an error.
func (o benchOptions) start(ctx context.Context, out io.Writer, root, name string) (target bench.Target, stop func() error, err error) {
	kind := benchSystems[name]
	dir, err := os.MkdirTemp("", "outboxsaga-bench")
	if err != nil {
		return target, nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		return target, nil, err
	}
	cfg := devstack.Config{
		Dir: dir, Root: root, Ephemeral: true, Out: out,
		// When an order is final is told by PostgreSQL's own time of the commit.
		PostgresSettings: []string{"track_commit_timestamp=on"},
	}
	if err := cfg.UseFreePorts(); err != nil {
		return target, nil, err
	}
	stack, err := devstack.Open(cfg)
	if err != nil {
		return target, nil, err
	}
	stop = stack.Close
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return target, stop, err
	}
	ports, err := system.FreePorts(o.replicas)
	if err != nil {
		return target, stop, err
	}
	urls := func(service string) (all []string) {
		for _, port := range ports[service] {
			all = append(all, fmt.Sprintf("http://127.0.0.1:%d", port))
		}
		return all
	}
	target = bench.Target{
		Name: name, OrderURLs: urls("order-service"), StockURLs: urls("stock-service"), PaymentURLs: urls("payment-service"),
		Processes: map[string]int{},
	}
	env := append([]string{"LOG_LEVEL=warn"}, kind.env...)
	names := []string{devstack.Postgres, devstack.Kafka, devstack.Connect}
	var services []devstack.Process
	if kind.relay == nil {
		services, err = system.Run(ctx, stack, bin, ports, true, env...)
		if err == nil && kind.connector != nil {
			err = changeConnectors(ctx, stack, kind.connector)
		}
	} else {
		names = []string{devstack.Postgres, devstack.Kafka, relayName}
		services, err = runWithRelay(ctx, stack, bin, ports, kind, env)
	}
	if err != nil {
		return target, stop, err
	}
	for _, p := range services {
		names = append(names, p.Name)
	}
	for _, name := range names {
		pid, running := stack.PID(name)
		if !running {
			return target, stop, fmt.Errorf("%s has ended: see %s", name, stack.LogFile(name))
		}
		target.Processes[name] = pid
	}
	if target.DB, err = pgxpool.New(ctx, stack.PostgresURL("orderdb")); err != nil {
		return target, stop, err
	}
	return target, func() error {
		target.DB.Close()
		return stack.Close()
	}, nil
}

const relayName = "relay"

// runWithRelay is system.Run with a polling relay: no worker runs, no slot keeps the log.
func runWithRelay(ctx context.Context, stack *devstack.Stack, bin string, ports map[string][]int, kind benchSystem, env []string) (services []devstack.Process, err error) {
	if err := stack.UpOnly(ctx, devstack.Postgres, devstack.Kafka); err != nil {
		return nil, err
	}
	if err := system.Provision(ctx, stack.PostgresURL("postgres"), nil, stack.Brokers(), 1); err != nil {
		return nil, err
	}
	args := append([]string{filepath.Join(bin, "outboxctl"), "bench-relay", "--brokers", strings.Join(stack.Brokers(), ",")}, kind.relay...)
	for _, d := range system.Databases() {
		url := stack.PostgresURL(d.Name)
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return nil, err
		}
		err = relay.Prepare(ctx, pool)
		pool.Close()
		if err != nil {
			return nil, err
		}
		args = append(args, "--database", url)
	}
	if err := stack.Launch(devstack.Process{Name: relayName, Args: args}); err != nil {
		return nil, err
	}
	var all errgroup.Group
	for _, svc := range system.Services() {
		for i, port := range ports[svc.Name] {
			p := svc.Process(stack, bin, i+1, port, env...)
			if err := stack.Launch(p); err != nil {
				return services, err
			}
			services = append(services, p)
			all.Go(func() error { return stack.Await(ctx, p) })
		}
	}
	return services, all.Wait()
}

// changeConnectors registers the connectors with other settings.
func changeConnectors(ctx context.Context, stack *devstack.Stack, changes map[string]string) error {
	files, err := connect.Files(filepath.Join(stack.Root(), "connectors"))
	if err != nil {
		return err
	}
	client := connect.Client{URL: stack.ConnectURL()}
	for _, f := range files {
		settings := map[string]string{}
		if err := json.Unmarshal(f.Config, &settings); err != nil {
			return err
		}
		maps.Copy(settings, changes)
		if f.Config, err = json.Marshal(settings); err != nil {
			return err
		}
		if err := client.Put(ctx, f); err != nil {
			return err
		}
	}
	time.Sleep(2 * time.Second) // the tasks start again; until then the old ones are RUNNING
	for _, d := range system.Databases() {
		if err := client.WaitStreaming(ctx, d.Name, stack.PostgresURL(d.Name), d.Slot()); err != nil {
			return err
		}
	}
	return nil
}

// newBenchRelayCommand is the process of a polling relay: its CPU time is its own.
func newBenchRelayCommand() *cobra.Command {
	var databases, brokers []string
	var cfg relay.Config
	c := &cobra.Command{
		Use: "bench-relay", Short: "A polling relay, for bench", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Brokers, cfg.Log = brokers, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			all, ctx := errgroup.WithContext(cmd.Context())
			for _, url := range databases {
				pool, err := pgxpool.New(ctx, url)
				if err != nil {
					return err
				}
				defer pool.Close()
				one := cfg
				one.Pool = pool
				all.Go(func() error { return relay.Run(ctx, one) })
			}
			return all.Wait()
		},
	}
	f := c.Flags()
	f.StringSliceVar(&databases, "database", nil, "URL of a database, for each")
	f.StringSliceVar(&brokers, "brokers", nil, "brokers of Kafka")
	f.DurationVar(&cfg.Every, "every", 5*time.Millisecond, "pause between polls")
	f.IntVar(&cfg.Batch, "batch", 1000, "rows a poll")
	f.BoolVar(&cfg.Naive, "naive", false, "one row after the other")
	return c
}
