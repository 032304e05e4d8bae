package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// world is the system that is shot at.
type world struct {
	cfg         Config
	stack       *devstack.Stack
	stackCfg    devstack.Config
	services    map[string]devstack.Process // by process name
	instances   map[string][]string         // by service: its processes
	brokers     []string                    // processes
	workers     []string
	supervisors []string
	urls        map[string][]string // by service, one an instance
	databases   map[string]*pgxpool.Pool

	network *network
	disk    string // the small file system of PostgreSQL's log; "" if there is none,
	noDisk  error  // for this reason
	unmount func() error

	clocks sync.Mutex
	latest time.Time // that a moved clock has shown

	poisoned atomic.Int64 // records that must be dead letters
}

// open starts the system. The world is returned also with an error, to be closed.
func open(ctx context.Context, cfg Config) (*world, error) {
	w := &world{
		cfg: cfg, services: map[string]devstack.Process{}, instances: map[string][]string{}, urls: map[string][]string{},
		databases: map[string]*pgxpool.Pool{}, network: newNetwork(),
	}
	w.stackCfg = devstack.Config{
		Dir: cfg.Dir, Root: cfg.Root, Fast: cfg.Fast, Ephemeral: true, Out: cfg.Out,
		Shape: devstack.Shape{Brokers: cfg.Brokers, Workers: cfg.Workers, Replicas: cfg.Instances},
		// Smaller than the disk that can be made full.
		PostgresSettings: []string{"max_wal_size=256MB", "min_wal_size=64MB"},
	}
	if err := w.stackCfg.UseFreePorts(); err != nil {
		return nil, err
	}
	var err error
	if w.stackCfg.Detours, err = w.network.detours(w.stackCfg); err != nil {
		w.network.close()
		return nil, err
	}
	if w.stack, err = devstack.Open(w.stackCfg); err != nil {
		w.network.close()
		return nil, err
	}
	// What restarts a process must not be the watchdog's value again, nor end everything when it fails.
	w.stackCfg.Ephemeral, w.stackCfg.Out = false, nil
	w.brokers, w.workers = w.stack.BrokerNames(), w.stack.WorkerNames()
	w.noDisk = w.smallDisk(ctx)
	if _, err := system.Run(ctx, w.stack, cfg.Bin, nil, false); err != nil {
		return w, err
	}
	for _, name := range []string{"postgres", "orderdb", "stockdb", "paymentdb"} {
		// The watchers' own connections: few, straight to PostgreSQL, and quick to find a dead one.
		pool, err := pgxpool.ParseConfig(w.stack.PostgresURL(name))
		if err != nil {
			return w, err
		}
		pool.MaxConns, pool.ConnConfig.ConnectTimeout = 4, time.Second
		if w.databases[name], err = pgxpool.NewWithConfig(ctx, pool); err != nil {
			return w, err
		}
	}
	if err := w.setting(ctx, keepWAL); err != nil {
		return w, err
	}
	if err := w.serve(ctx); err != nil {
		return w, err
	}
	if err := system.Register(ctx, w.stack); err != nil {
		return w, err
	}
	return w, w.supervise(ctx)
}

// keepWAL is how much log a slot may hold back, on a disk of [diskSize].
const keepWAL = "max_slot_wal_keep_size = '512MB'"

// serve starts the services, each behind the network's proxies.
func (w *world) serve(ctx context.Context) error {
	ports, err := system.FreePorts(w.cfg.Instances)
	if err != nil {
		return err
	}
	all, ctx := errgroup.WithContext(ctx)
	for _, s := range system.Services() {
		for i, port := range ports[s.Name] {
			p := s.Process(w.stack, w.cfg.Bin, i+1, port, "LOG_LEVEL=warn", "SHUTDOWN_DELAY=500ms", fmt.Sprint("DATABASE_POOL_SIZE=", poolSize),
				"DATABASE_URL="+w.network.databaseURL(s.Name, s.Database), "KAFKA_BROKERS="+strings.Join(w.network.services.Addresses(), ","))
			w.services[p.Name] = p
			w.instances[s.Name] = append(w.instances[s.Name], p.Name)
			w.urls[s.Name] = append(w.urls[s.Name], fmt.Sprintf("http://127.0.0.1:%d", port))
			all.Go(func() error { return w.stack.Start(ctx, p) })
		}
	}
	return all.Wait()
}

// supervise starts two supervisors, as in production: one acts.
func (w *world) supervise(ctx context.Context) error {
	ports, err := devstack.FreePorts(2)
	if err != nil {
		return err
	}
	for i, port := range ports {
		p := system.Supervisor(w.stack, filepath.Join(w.cfg.Bin, "outboxctl"), port)
		p.Name = devstack.Instance(p.Name, i+1)
		w.services[p.Name] = p
		w.supervisors = append(w.supervisors, p.Name)
		if err := w.stack.Start(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) close() {
	if w.network != nil {
		defer w.network.close()
	}
	for _, pool := range w.databases {
		pool.Close()
	}
	if w.unmount != nil {
		_ = w.unmount() // before the folder is removed, in which it is
	}
	_ = w.stack.Close()
}

// texts is the one column of a query.
func (w *world) texts(ctx context.Context, database, sql string, args ...any) ([]string, error) {
	rows, err := w.databases[database].Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// exec runs a statement as superuser.
func (w *world) exec(ctx context.Context, database, sql string, args ...any) error {
	_, err := w.databases[database].Exec(ctx, sql, args...)
	return err
}

// start starts a process that has ended and returns when it is ready.
func (w *world) start(ctx context.Context, name string) error {
	again, err := devstack.Open(w.stackCfg)
	if err != nil {
		return err
	}
	start := func() error { return again.UpOnly(ctx, name) }
	if p, ok := w.services[name]; ok {
		start = func() error { return again.Start(ctx, p) }
	}
	// What finds its database or brokers gone may end while it starts; an init system would try again.
	for {
		if err = start(); err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx, 300*time.Millisecond)
	}
}

// signal sends a signal to a process; to PostgreSQL as a whole, where it is to be stopped: the
// postmaster's children would go on.
func (w *world) signal(name string, signal syscall.Signal) error {
	if name == devstack.Postgres && (signal == syscall.SIGSTOP || signal == syscall.SIGCONT) {
		pid, running := w.stack.PID(name)
		if !running {
			return fmt.Errorf("%s does not run", name)
		}
		for _, child := range children(pid) {
			_ = syscall.Kill(child, signal) // it may have ended since
		}
	}
	return w.stack.Signal(name, signal)
}

// children are the processes that a process has started.
func children(pid int) (all []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range tasks {
		text, _ := os.ReadFile(file)
		for rest := string(text); rest != ""; {
			var child int
			if n, _ := fmt.Sscan(rest, &child); n == 0 {
				break
			}
			all = append(all, child)
			if i := slices.Index([]byte(rest), ' '); i >= 0 {
				rest = rest[i+1:]
			} else {
				rest = ""
			}
		}
	}
	return all
}

// everything lists all processes of services and engines.
func (w *world) everything() (all []string) {
	for _, s := range system.Services() {
		all = append(all, w.instances[s.Name]...)
	}
	return slices.Concat(all, w.supervisors, w.workers, w.brokers, []string{devstack.Postgres})
}
