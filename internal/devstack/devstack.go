// Package devstack starts PostgreSQL, Kafka and Kafka Connect with Debezium as plain
// processes, without containers: for trying the system, for tests, for benchmarks.
//
// A [Stack] lives in a folder: data, logs/NAME.log, NAME.pid. Processes are
// detached and outlive the program that started them (unless [Config].Ephemeral);
// starting a stack again finds what runs and starts what does not. Readiness is
// asked for, never slept for. Everything listens on loopback.
//
// What it runs is resolved once by Maven from debezium/pom.xml, into a cache that
// all stacks of a user share.
package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// The names of the processes, as in NAME.pid and logs/NAME.log; those of several are NAME, NAME-2, NAME-3.
const (
	Postgres = "postgres"
	Kafka    = "kafka"
	Connect  = "connect"

	controller = "controller" // of Kafka; a port, not a process
)

// Config says where a stack lives and where it listens.
type Config struct {
	// Dir holds the state: data, logs, pid files. Required.
	Dir string
	// Root is the checkout with the folder debezium. Required.
	Root string
	// Cache holds what was resolved. Default: STACK_CACHE, else the user's cache folder.
	Cache string
	// Shape says of what there are several.
	Shape
	// The ports on 127.0.0.1. Required; [Config.UseFreePorts] finds some. Further brokers and workers
	// listen 10 above the one before, unless Ports has another for kafka-2, controller-2, connect-2, ….
	PostgresPort, KafkaPort, ControllerPort, ConnectPort int
	Ports                                                map[string]int
	// Fast trades speed for start-up time and memory, for tests: the JVMs compile little.
	Fast bool
	// Ephemeral ties the stack to this process: when it ends, however it ends, the
	// processes are killed and Dir is removed. For tests.
	Ephemeral bool
	// Templates, if set, is a folder in which the first stack leaves a copy of its new PostgreSQL and of its new broker, and from
	// which others have theirs: to copy is quicker than to make. All have one system identifier then. For tests.
	Templates string
	// PostgresSettings are added to debezium/postgresql.conf, as name=value.
	PostgresSettings []string
	// Detours are ways to the engines by way of something else. For tests of a failing network.
	Detours Detours
	// archives is the folder in which the JVMs leave their archives of classes when they end.
	archives string
	// Engines, if set, run the three in place of processes; this stack's ports lead to them.
	// For tests in containers.
	Engines Engines
	// Out gets a line for each thing done. Default: none.
	Out io.Writer
}

// Engines run PostgreSQL, Kafka and Connect elsewhere than as processes of a [Stack]: in containers.
// What a stack says of a process holds for each of them.
type Engines interface {
	// Up starts an engine that does not run and returns when it answers.
	Up(ctx context.Context, name string) error
	Stop(ctx context.Context, name string) error
	Signal(name string, signal syscall.Signal) error
	PID(name string) (pid int, running bool)
	// Close removes all of them with their data.
	Close() error
}

// PortVariables names the environment variable behind each port, for error messages.
var portVariables = map[string]string{
	Postgres: "POSTGRES_PORT", Kafka: "KAFKA_PORT", controller: "KAFKA_CONTROLLER_PORT", Connect: "CONNECT_PORT",
}

// Stack is a folder with processes.
type Stack struct {
	cfg      Config
	watchdog io.Closer

	mu      sync.Mutex
	started []string // by this value, in order: what a failed start must stop again
}

// Open checks cfg and prepares the folder. It starts nothing but, for an ephemeral
// stack, the watchdog that will end it.
func Open(cfg Config) (*Stack, error) {
	if cfg.Dir == "" || cfg.Root == "" {
		return nil, errors.New("devstack: Config.Dir and Config.Root are required")
	}
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	if cfg.Root, err = filepath.Abs(cfg.Root); err != nil {
		return nil, err
	}
	if cfg.Cache == "" {
		if cfg.Cache, err = cacheDir(); err != nil {
			return nil, err
		}
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	cfg.Out = &lines{out: cfg.Out}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "logs"), 0o755); err != nil {
		return nil, fmt.Errorf("cannot write in %s: choose another folder with STACK_DIR: %w", cfg.Dir, err)
	}
	probe := filepath.Join(cfg.Dir, "logs", ".write")
	if err := os.WriteFile(probe, nil, 0o644); err != nil {
		return nil, fmt.Errorf("cannot write in %s: choose another folder with STACK_DIR: %w", cfg.Dir, err)
	}
	os.Remove(probe)
	if err := cfg.settle(); err != nil {
		return nil, err
	}
	s := &Stack{cfg: cfg}
	if cfg.Ephemeral {
		if s.watchdog, err = watch(cfg.Dir); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Dir is the stack's folder.
func (s *Stack) Dir() string { return s.cfg.Dir }

// Root is the checkout that the stack was opened from.
func (s *Stack) Root() string { return s.cfg.Root }

// PostgresURL is the superuser's URL of a database. Only the local stack has such a
// superuser: it trusts whoever reaches its loopback port.
func (s *Stack) PostgresURL(database string) string { return s.UserURL("postgres", database) }

// UserURL is the URL of a database for a role.
func (s *Stack) UserURL(user, database string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", user, s.cfg.PostgresPort, database)
}

func hostPort(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (s *Stack) kit(ctx context.Context) (Kit, error) {
	return resolve(ctx, s.cfg.Root, s.cfg.Cache, s.cfg.Out)
}

// Resolve fetches what the stacks of a checkout run, into STACK_CACHE or the user's cache folder, where it is not there yet.
func Resolve(ctx context.Context, root string, out io.Writer) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	return (&Stack{cfg: Config{Root: root, Cache: cache, Out: &lines{out: out}}}).Resolve(ctx)
}

// Resolve fetches what the stack runs, where it is not there yet; the other methods do so too.
func (s *Stack) Resolve(ctx context.Context) error {
	if s.cfg.Engines != nil {
		return nil
	}
	kit, err := s.kit(ctx)
	if err != nil {
		return err
	}
	return s.java(ctx, &kit)
}

// Up starts PostgreSQL, Kafka and Kafka Connect, those of their processes that do not run, and
// returns when all answer. On an error it stops what it has started.
func (s *Stack) Up(ctx context.Context) error {
	err := s.UpOnly(ctx, slices.Concat([]string{Postgres}, s.BrokerNames(), s.WorkerNames())...)
	if err != nil {
		s.Abort()
	}
	return err
}

// UpOnly starts some of them, and stops none on an error. Connect needs Kafka, and a broker of several the most of
// them; they may come up at the same time.
func (s *Stack) UpOnly(ctx context.Context, names ...string) error {
	if s.cfg.Engines != nil {
		return s.upElsewhere(ctx, names)
	}
	kit, err := s.kit(ctx)
	if err != nil {
		return err
	}
	if err := s.remember(); err != nil {
		return err
	}
	if len(names) > 1 || names[0] != Postgres {
		if err := s.java(ctx, &kit); err != nil {
			return err
		}
	}
	// All at once: the worker waits for its broker.
	all, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		all.Go(func() error {
			p, err := s.engine(ctx, kit, name)
			if err != nil {
				return err
			}
			return s.Start(ctx, p)
		})
	}
	return all.Wait()
}

// engine prepares a process and says how to run it.
func (s *Stack) engine(ctx context.Context, kit Kit, name string) (Process, error) {
	switch kind, i := Kind(name); {
	case name == Postgres:
		return s.postgres(ctx, kit)
	case kind == Kafka && i <= s.cfg.Brokers:
		return s.kafka(ctx, kit, i)
	case kind == Connect && i <= s.cfg.Workers:
		return s.connect(kit, i)
	}
	return Process{}, fmt.Errorf("there is no %s in this stack", name)
}

func (s *Stack) upElsewhere(ctx context.Context, names []string) error {
	var all errgroup.Group
	for _, name := range names {
		all.Go(func() error {
			begin := time.Now()
			if err := s.cfg.Engines.Up(ctx, name); err != nil {
				return err
			}
			s.Say("  %-18s ready after %.1f s", name, time.Since(begin).Seconds())
			return nil
		})
	}
	return all.Wait()
}

// elsewhere tells whether name is an engine that is no process of this stack.
func (s *Stack) elsewhere(name string) bool {
	return s.cfg.Engines != nil && (name == Postgres || name == Kafka || name == Connect)
}

// Abort stops what this value has started: for a start that failed.
func (s *Stack) Abort() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s.mu.Lock()
	started := s.started
	s.started = nil
	s.mu.Unlock()
	_ = s.stopAll(ctx, started, func(string) {})
}

// Lock keeps other programs that call it from working on the same folder, until unlock
// is called or this program ends.
func (s *Stack) Lock(ctx context.Context) (unlock func(), err error) {
	return LockFile(ctx, filepath.Join(s.cfg.Dir, ".lock"), func() {
		s.Say("another program starts or stops the stack in %s; waiting for it", s.cfg.Dir)
	})
}

// Close stops an ephemeral stack and removes its folder. Other stacks go on.
func (s *Stack) Close() error {
	var elsewhere, here error
	if s.cfg.Engines != nil {
		elsewhere = s.cfg.Engines.Close()
	}
	if s.watchdog != nil {
		here = s.watchdog.Close()
	}
	return errors.Join(elsewhere, here)
}

// lines lets several processes tell of their start at once.
type lines struct {
	mu  sync.Mutex
	out io.Writer
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(line)
}

// Say prints a line of progress to Config.Out.
func (s *Stack) Say(format string, args ...any) { fmt.Fprintf(s.cfg.Out, format+"\n", args...) }

// The ports that FreePorts gives out, in blocks. They lie below those that systems give to
// outgoing connections, any of which could take a port between its choice and its use.
const firstPort, lastPort, portBlock = 10000, 32000, 100

var ports struct {
	sync.Mutex
	next, end int            // what is left of this program's block
	owned     []net.Listener // the first port of every block that is this program's
}

// FreePorts finds n ports that nobody listens on right now. They come from blocks of which a
// program holds the first port as long as it runs, so that no other program is given one of
// them while its process is down, or not up yet.
func FreePorts(n int) ([]int, error) {
	ports.Lock()
	defer ports.Unlock()
	var free []int
	for len(free) < n {
		if ports.next == ports.end {
			if err := ownBlock(); err != nil {
				return nil, err
			}
		}
		port := ports.next
		ports.next++
		if listenable(port) == nil {
			free = append(free, port)
		}
	}
	return free, nil
}

// ownBlock takes a block of ports that no other program has.
func ownBlock() error {
	const blocks = (lastPort - firstPort) / portBlock
	begin := rand.IntN(blocks) // where others probably do not look at the same time
	for i := range blocks {
		first := firstPort + (begin+i)%blocks*portBlock
		if l, err := net.Listen("tcp", hostPort(first)); err == nil {
			ports.owned = append(ports.owned, l)
			ports.next, ports.end = first+1, first+portBlock
			return nil
		}
	}
	return fmt.Errorf("other programs have all ports from %d to %d: stop some", firstPort, lastPort)
}
