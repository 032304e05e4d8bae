package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// world is the system that is shot at.
type world struct {
	cfg       Config
	stack     *devstack.Stack
	stackCfg  devstack.Config
	services  map[string]devstack.Process // by process name
	instances map[string][]string         // by service: its processes
	brokers   []string                    // processes
	workers   []string
	urls      map[string][]string // by service, one an instance
	databases map[string]*pgxpool.Pool
}

// open starts the system. The world is returned also with an error, to be closed.
func open(ctx context.Context, cfg Config) (*world, error) {
	ports, err := devstack.FreePorts(4)
	if err != nil {
		return nil, err
	}
	w := &world{cfg: cfg, services: map[string]devstack.Process{}, instances: map[string][]string{}, urls: map[string][]string{}, databases: map[string]*pgxpool.Pool{}}
	w.stackCfg = devstack.Config{
		Dir: cfg.Dir, Root: cfg.Root, Fast: cfg.Fast, Ephemeral: true, Out: cfg.Out,
		PostgresPort: ports[0], KafkaPort: ports[1], ControllerPort: ports[2], ConnectPort: ports[3],
	}
	if w.stack, err = devstack.Open(w.stackCfg); err != nil {
		return nil, err
	}
	// What restarts a process must not be the watchdog's value again, nor end everything when it fails.
	w.stackCfg.Ephemeral, w.stackCfg.Out = false, nil
	w.brokers, w.workers = []string{devstack.Kafka}, []string{devstack.Connect}
	of, err := system.FreePorts(cfg.Instances)
	if err != nil {
		return w, err
	}
	processes, err := system.Run(ctx, w.stack, cfg.Bin, of, true, "LOG_LEVEL=warn", "SHUTDOWN_DELAY=500ms")
	if err != nil {
		return w, err
	}
	for _, p := range processes {
		w.services[p.Name] = p
	}
	for _, s := range system.Services() {
		for i, port := range of[s.Name] {
			name := s.Name
			if i > 0 {
				name += fmt.Sprint("-", i+1)
			}
			w.instances[s.Name] = append(w.instances[s.Name], name)
			w.urls[s.Name] = append(w.urls[s.Name], fmt.Sprintf("http://127.0.0.1:%d", port))
		}
		// The watchers' own connections: few, straight to PostgreSQL, and quick to find a dead one.
		pool, err := pgxpool.ParseConfig(w.stack.PostgresURL(s.Database.Name))
		if err != nil {
			return w, err
		}
		pool.MaxConns, pool.ConnConfig.ConnectTimeout = 4, time.Second
		if w.databases[s.Database.Name], err = pgxpool.NewWithConfig(ctx, pool); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (w *world) close() {
	for _, pool := range w.databases {
		pool.Close()
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
	if p, ok := w.services[name]; ok {
		// A service that finds its database or broker gone ends at the start; an init system would try again.
		var err error
		for ctx.Err() == nil {
			if err = w.stack.Start(ctx, p); err == nil {
				return nil
			}
			pause(ctx, 300*time.Millisecond)
		}
		return err
	}
	again, err := devstack.Open(w.stackCfg)
	if err != nil {
		return err
	}
	return again.UpOnly(ctx, name)
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
	return slices.Concat(all, w.workers, w.brokers, []string{devstack.Postgres})
}
