package stacktest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// System is the whole system for a test: stack, connectors that stream, and services
// as processes of their own.
type System struct {
	*devstack.Stack
	t         testing.TB
	bin       string
	processes map[string]devstack.Process // by process name
	urls      map[string][]string         // by service, one an instance
	pools     sync.Map                    // database → *pgxpool.Pool
}

// Programs is the folder of outboxctl and the services as a user builds them, without the race detector.
func Programs(t testing.TB) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var programs = sync.OnceValues(func() (string, error) { return build("plain", "./cmd/outboxctl") })

// binaries are the services of the systems under test.
var binaries = sync.OnceValues(func() (string, error) {
	if Race {
		return build("race", "-race")
	}
	return programs()
})

// built is the folder of what is built. The packages that one run tests share TEST_BIN (scripts/test.sh), in which go build leaves
// what is up to date: to link it takes longer than to start the stack.
var built = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("TEST_BIN"); dir != "" {
		return dir, nil
	}
	own, err := os.MkdirTemp("", "outboxsaga-bin")
	ownBinaries = own
	return own, err
})

// ownBinaries is the folder of what is built for this package alone.
var ownBinaries string

func build(name string, flags ...string) (string, error) {
	parent, err := built()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(parent, name)
	if os.MkdirAll(dir, 0o755) != nil {
		return "", fmt.Errorf("TEST_BIN must be a folder that can be written: %s cannot be made", dir)
	}
	ctx := context.Background()
	unlock, err := devstack.LockFile(ctx, dir+".lock", func() {})
	if err != nil {
		return "", err
	}
	defer unlock()
	return dir, system.Build(ctx, Root(), dir, os.Stderr, flags...)
}

// NewSystem starts a system with a number of instances of each service. env is added to
// the services' environment. It ends with the test.
func NewSystem(t testing.TB, instances int, env ...string) *System {
	t.Helper()
	return NewSystemShape(t, devstack.Shape{Replicas: instances}, env...)
}

// NewSystemShape is [NewSystem] with several brokers or workers too. Where tests run in containers, which
// have one of each, it skips the test.
func NewSystemShape(t testing.TB, shape devstack.Shape, env ...string) *System {
	t.Helper()
	if os.Getenv("TEST_STACK") == "docker" && (shape.Brokers > 1 || shape.Workers > 1) {
		t.Skip("containers have one broker and one worker; scripts/compose-test.sh tests more")
	}
	stack, err := NewShape("system", shape)
	if err != nil {
		t.Fatal(err)
	}
	instances := stack.Shape().Replicas
	s := &System{Stack: stack, t: t, processes: map[string]devstack.Process{}, urls: map[string][]string{}}
	t.Cleanup(s.end)
	if s.bin, err = binaries(); err != nil { // on a new machine that compiles for minutes
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	ports, err := system.FreePorts(instances)
	if err != nil {
		t.Fatal(err)
	}
	processes, err := system.Run(ctx, stack, s.bin, ports, true, env...)
	for _, p := range processes {
		s.processes[p.Name] = p
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, of := range ports {
		for _, port := range of {
			s.urls[name] = append(s.urls[name], fmt.Sprintf("http://127.0.0.1:%d", port))
		}
	}
	return s
}

func (s *System) end() {
	if s.t.Failed() {
		logs, err := filepath.Glob(s.LogFile("*"))
		for _, file := range logs {
			if text, err := os.ReadFile(file); err == nil && len(text) > 0 {
				s.t.Logf("the end of %s:\n%s", filepath.Base(file), text[max(0, len(text)-3000):])
			}
		}
		if err != nil {
			s.t.Error(err)
		}
	}
	s.pools.Range(func(_, pool any) bool {
		pool.(*pgxpool.Pool).Close()
		return true
	})
	if err := s.Close(); err != nil {
		s.t.Error(err)
	}
}

// URL is the address of an instance (0 is the first) of a service.
func (s *System) URL(service string, instance int) string { return s.urls[service][instance] }

// DB is a pool on a database, as superuser.
func (s *System) DB(name string) *pgxpool.Pool {
	s.t.Helper()
	if pool, ok := s.pools.Load(name); ok {
		return pool.(*pgxpool.Pool)
	}
	pool, err := pgxpool.New(context.Background(), s.PostgresURL(name))
	if err != nil {
		s.t.Fatal(err)
	}
	if other, loaded := s.pools.LoadOrStore(name, pool); loaded {
		pool.Close()
		pool = other.(*pgxpool.Pool)
	}
	return pool
}

// Kill ends a process with kill -9. [System.Restart] starts it again.
func (s *System) Kill(name string) {
	s.t.Helper()
	if err := s.Signal(name, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
}

// Restart starts a process that has ended: an engine or an instance of a service.
func (s *System) Restart(name string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if p, ok := s.processes[name]; ok {
		err = s.Start(ctx, p)
	} else {
		err = s.UpOnly(ctx, name)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Post sends JSON and decodes the answer into out (not if nil). It returns the status;
// 0 and an error if there was no answer.
func Post(ctx context.Context, url string, header http.Header, body string, out any) (int, error) {
	return send(ctx, http.MethodPost, url, header, body, out)
}

// Get is [Post] without a body.
func Get(ctx context.Context, url string, out any) (int, error) {
	return send(ctx, http.MethodGet, url, nil, "", out)
}

func send(ctx context.Context, method, url string, header http.Header, body string, out any) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	for key, values := range header {
		req.Header[key] = values
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return res.StatusCode, err
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			return res.StatusCode, fmt.Errorf("%s %s: %s: %.200s: %w", method, url, res.Status, text, err)
		}
	}
	return res.StatusCode, nil
}

// Produce puts records into Kafka that no outbox has sent: duplicates, poison.
func (s *System) Produce(records ...*kgo.Record) {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
		s.t.Fatal(err)
	}
}

// Records reads what a topic holds now.
func (s *System) Records(topic string) []*kgo.Record {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ends, err := endOffsets(ctx, client, topic)
	if err != nil {
		s.t.Fatal(err)
	}
	var got []*kgo.Record
	for left := ends; left > 0; {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			s.t.Fatalf("%s: read %d records of %d", topic, len(got), ends)
		}
		got = append(got, fetches.Records()...)
		left = ends - int64(len(got))
	}
	return got
}

// endOffsets counts the records of a topic from which nothing was removed yet.
func endOffsets(ctx context.Context, client *kgo.Client, topic string) (int64, error) {
	offsets, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, err
	}
	var n int64
	offsets.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n, offsets.Error()
}
