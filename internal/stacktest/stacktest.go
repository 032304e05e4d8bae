// Package stacktest gives tests a real PostgreSQL, a real Kafka and a real Debezium.
//
// A test package calls [Main] from its TestMain. What a test asks for is started once
// for the package, on free ports, in a temporary folder, and is gone when the package
// ends, however it ends. Tests are isolated by databases and topics of their own.
//
// TEST_STACK=docker runs PostgreSQL, Kafka and Connect in containers, with the same files and
// for the same tests; services and all else are processes then too.
package stacktest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/dockerstack"
	"outboxsaga/internal/provision"

	"github.com/jackc/pgx/v5"
)

var shared struct {
	sync.Mutex
	stack *devstack.Stack
	up    map[string]bool
	names atomic.Int64

	copied    sync.Mutex
	templates map[string]string // databases to copy, by the migrations that they have
}

// Main runs the tests of a package and then ends what they started.
func Main(m *testing.M) {
	code := m.Run()
	if shared.stack != nil {
		if err := shared.stack.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the test stack:", err)
		}
	}
	if ownBinaries != "" {
		os.RemoveAll(ownBinaries)
	}
	os.Exit(code)
}

// Root is the folder of the checkout.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// use returns the package's stack with the named engines up.
func use(t testing.TB, names ...string) *devstack.Stack {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.stack == nil {
		s, err := New("")
		if err != nil {
			t.Fatal(err)
		}
		shared.stack, shared.up = s, map[string]bool{}
	}
	var missing []string
	for _, n := range names {
		if !shared.up[n] {
			missing = append(missing, n)
		}
	}
	if len(missing) == 0 {
		return shared.stack
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := shared.stack.UpOnly(ctx, missing...); err != nil {
		t.Fatal(err)
	}
	for _, n := range missing {
		shared.up[n] = true
	}
	return shared.stack
}

// New opens an ephemeral stack on free ports, in a temporary folder whose name holds
// hint. The caller closes it. Engines are started by the caller.
func New(hint string) (*devstack.Stack, error) { return NewShape(hint, devstack.Shape{}) }

// NewShape is [New] for more than one broker or worker: processes only, no containers.
func NewShape(hint string, shape devstack.Shape) (*devstack.Stack, error) {
	dir, err := os.MkdirTemp("", "outboxsaga-"+hint)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		return nil, err
	}
	cfg := devstack.Config{Dir: dir, Root: Root(), Fast: true, Ephemeral: true, Shape: shape}
	if dir := os.Getenv("TEST_BIN"); dir != "" {
		cfg.Templates = filepath.Join(dir, "templates")
	}
	if err := cfg.UseFreePorts(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if cfg.Engines, err = engines(cfg); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return devstack.Open(cfg)
}

// engines are what TEST_STACK asks for: containers, or nil, processes.
func engines(cfg devstack.Config) (devstack.Engines, error) {
	switch kind := os.Getenv("TEST_STACK"); kind {
	case "", "native":
		return nil, nil
	case "docker":
		return dockerstack.New(cfg)
	default:
		return nil, fmt.Errorf("TEST_STACK is %q: set it to native (PostgreSQL, Kafka and Connect as processes, the default) or docker (in containers)", kind)
	}
}

// Database makes a fresh database with the migrations applied and returns its URL, as
// superuser. It is dropped when the test ends.
func Database(t testing.TB, migrations ...provision.Migrations) (url string) {
	t.Helper()
	s := use(t, devstack.Postgres)
	name := fmt.Sprintf("test_%d", shared.names.Add(1))
	admin(t, s, "CREATE DATABASE "+name+" STRATEGY wal_log TEMPLATE "+template(t, s, migrations))
	t.Cleanup(func() { admin(t, s, "DROP DATABASE "+name+" WITH (FORCE)") })
	return s.PostgresURL(name)
}

// template is a database with migrations, made once for the package: to copy it is quicker than to migrate.
func template(t testing.TB, s *devstack.Stack, migrations []provision.Migrations) string {
	t.Helper()
	sum := sha256.New()
	for _, m := range migrations {
		fmt.Fprintln(sum, m.Table)
		err := fs.WalkDir(m.FS, m.Path, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := fs.ReadFile(m.FS, path)
			fmt.Fprintf(sum, "%s %d %s\n", path, len(text), text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	key := string(sum.Sum(nil))
	shared.copied.Lock()
	defer shared.copied.Unlock()
	if name, made := shared.templates[key]; made {
		return name
	}
	name := fmt.Sprintf("template_%d", shared.names.Add(1))
	admin(t, s, "CREATE DATABASE "+name+" STRATEGY wal_log")
	if _, err := provision.Migrate(context.Background(), s.PostgresURL(name), "", migrations...); err != nil {
		t.Fatal(err)
	}
	if shared.templates == nil {
		shared.templates = map[string]string{}
	}
	shared.templates[key] = name
	return name
}

func admin(t testing.TB, s *devstack.Stack, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.PostgresURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// Brokers are the addresses of the package's Kafka.
func Brokers(t testing.TB) []string {
	t.Helper()
	return use(t, devstack.Kafka).Brokers()
}

// Topic makes a topic with a name of its own.
func Topic(t testing.TB, partitions int32) string {
	t.Helper()
	brokers := Brokers(t)
	kind := strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, t.Name()))
	name := fmt.Sprintf("%.80s-%d", kind, shared.names.Add(1))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := provision.Topics(ctx, brokers, 1, provision.Topic{Name: name, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	return name
}
