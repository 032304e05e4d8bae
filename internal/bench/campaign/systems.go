// Package campaign measures systems beside each other: change data capture, as the product has it, and
// what people would pick instead. Each system has a stack of its own, with the same services,
// schema, topics, broker and settings, and only one runs at a time.
package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/bench/relay"
	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/scheduling"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgxpool"
)

// System is a way to move events from the databases to Kafka.
type System struct {
	Name string
	// Relay polls in place of Debezium; nil: Debezium.
	Relay *Relay
	// Connector overrides settings of connectors/*.json.
	Connector map[string]string
	// Env is added to the services' environment.
	Env []string
	// Instances of each service; 0 is 1.
	Instances int
	// Seeded is how many settled orders are there before the connectors start.
	Seeded int
}

// Relay says how a relay polls.
type Relay struct {
	Design relay.Design
	Every  time.Duration
	Batch  int
}

// relayName is the relay's process.
const relayName = "relay"

// running is a system that runs.
type running struct {
	bench.Target
	stack *devstack.Stack
	pools []*pgxpool.Pool
	mover devstack.Process // the relay, if there is one
}

// Builder starts systems.
type Builder struct {
	// Root is the checkout, Bin a folder with the binaries of the services and of outboxctl.
	Root, Bin string
	Out       io.Writer
}

// start starts a system with the goods and the money of a shape. What was started is ended by close, also after an error.
func (b Builder) start(ctx context.Context, sys System, shape bench.Shape) (_ *running, err error) {
	dir, err := os.MkdirTemp("", "outboxsaga-bench")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		return nil, err
	}
	cfg := devstack.Config{
		Dir: dir, Root: b.Root, Ephemeral: true,
		// When an order is final is told by PostgreSQL's own time of the commit.
		PostgresSettings: []string{"track_commit_timestamp=on"},
	}
	if err := cfg.UseFreePorts(); err != nil {
		return nil, err
	}
	stack, err := devstack.Open(cfg)
	if err != nil {
		return nil, err
	}
	r := &running{Target: bench.Target{Name: sys.Name, Processes: map[string]int{}}, stack: stack}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start %s: %w", sys.Name, err), r.close())
		}
	}()
	bin, err := filepath.Abs(b.Bin)
	if err != nil {
		return nil, err
	}
	ports, err := system.FreePorts(max(sys.Instances, 1))
	if err != nil {
		return nil, err
	}
	processes, err := system.Run(ctx, stack, bin, ports, false, append([]string{"LOG_LEVEL=warn"}, sys.Env...)...)
	if err != nil {
		return nil, err
	}
	for service, into := range map[string]*[]string{"order-service": &r.OrderURLs, "stock-service": &r.StockURLs, "payment-service": &r.PaymentURLs} {
		for _, port := range ports[service] {
			*into = append(*into, fmt.Sprintf("http://127.0.0.1:%d", port))
		}
	}
	for _, s := range system.Services() {
		pool, err := pgxpool.New(ctx, stack.PostgresURL(s.Database.Name))
		if err != nil {
			return nil, err
		}
		r.pools = append(r.pools, pool)
	}
	r.DB = r.pools[0]
	if err := bench.Prepare(ctx, r.Target, shape); err != nil {
		return nil, err
	}
	if err := b.seed(ctx, r, shape, sys.Seeded); err != nil {
		return nil, err
	}
	engines := []string{devstack.Postgres, devstack.Kafka, devstack.Connect}
	switch {
	case sys.Relay != nil:
		engines[2] = relayName
		if err := r.poll(ctx, bin, *sys.Relay); err != nil {
			return nil, err
		}
	case sys.Connector == nil && sys.Seeded == 0:
		if err := system.Register(ctx, stack); err != nil {
			return nil, err
		}
	default:
		overrides := maps.Clone(sys.Connector)
		if sys.Seeded > 0 { // what was seeded is not sent
			if overrides == nil {
				overrides = map[string]string{}
			}
			overrides["snapshot.mode"] = "no_data"
		}
		if err := r.register(ctx, overrides); err != nil {
			return nil, err
		}
	}
	names := engines
	for _, p := range processes {
		names = append(names, p.Name)
	}
	for _, name := range names {
		pid, runs := stack.PID(name)
		if !runs {
			return nil, fmt.Errorf("%s has ended: see %s", name, stack.LogFile(name))
		}
		r.Processes[name] = pid
	}
	return r, nil
}

// seed puts settled orders in while nothing reads the slots, which are made anew after it.
func (b Builder) seed(ctx context.Context, r *running, shape bench.Shape, n int) error {
	if n == 0 {
		return nil
	}
	fmt.Fprintf(b.Out, "seeding %d orders\n", n)
	if _, err := r.DB.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`); err != nil {
		return err
	}
	told := time.Now()
	err := bench.Seed(ctx, r.pools[0], r.pools[1], r.pools[2], shape, n, func(done int) {
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			fmt.Fprintf(b.Out, "seeded %d of %d orders\n", done, n)
		}
	})
	if err != nil {
		return err
	}
	return system.Provision(ctx, r.stack.PostgresURL("postgres"), nil, r.stack.Brokers(), r.stack.ReplicationFactor())
}

func (r *running) close() error {
	for _, pool := range r.pools {
		pool.Close()
	}
	return r.stack.Close()
}

// poll puts a relay in the place of Debezium: no worker, no slots, no logical decoding.
func (r *running) poll(ctx context.Context, bin string, cfg Relay) error {
	if err := r.stack.Stop(ctx, devstack.Connect); err != nil {
		return err
	}
	var urls []string
	for _, s := range system.Services() {
		url := r.stack.PostgresURL(s.Database.Name)
		urls = append(urls, url)
		if err := prepare(ctx, url, cfg.Design); err != nil {
			return err
		}
	}
	// Services do not start without wal_level=logical, and go on without it: a relay needs no
	// more than replica, which writes less.
	if err := r.stack.Stop(ctx, devstack.Postgres); err != nil {
		return err
	}
	if err := r.stack.UpOnly(ctx, devstack.Postgres); err != nil {
		return err
	}
	args := []string{filepath.Join(bin, "outboxctl"), "bench-relay", "--database", strings.Join(urls, ","), "--brokers", strings.Join(r.stack.Brokers(), ","),
		"--every", cfg.Every.String(), "--batch", fmt.Sprint(cfg.Batch), "--design", string(cfg.Design)}
	r.mover = devstack.Process{Name: relayName, Args: args, Schedule: scheduling.ForGo}
	return r.stack.Start(ctx, r.mover)
}

func prepare(ctx context.Context, url string, design relay.Design) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := relay.Prepare(ctx, pool, design); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `ALTER SYSTEM SET wal_level = replica`)
	return err
}

// register registers the checkout's connectors with some settings changed.
func (r *running) register(ctx context.Context, overrides map[string]string) error {
	files, err := connect.Files(filepath.Join(r.stack.Root(), "connectors"))
	if err != nil {
		return err
	}
	client := connect.Client{URL: r.stack.ConnectURL()}
	for _, f := range files {
		if f.Config, err = override(f.Config, overrides); err != nil {
			return fmt.Errorf("connector %s: %w", f.Name, err)
		}
		if err := client.Put(ctx, f); err != nil {
			return err
		}
	}
	for _, f := range files {
		// It runs for a moment still as it was, if it ran.
		if err := client.WaitStreaming(ctx, f.Name, r.stack.PostgresURL(f.Name), provision.Database{Name: f.Name}.Slot()); err != nil {
			return err
		}
	}
	return nil
}

func override(config json.RawMessage, overrides map[string]string) (json.RawMessage, error) {
	settings := map[string]string{}
	if err := json.Unmarshal(config, &settings); err != nil {
		return nil, err
	}
	for name, value := range overrides {
		settings[name] = value
	}
	return json.Marshal(settings)
}
