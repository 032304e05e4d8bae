// Package service is what the three services have in common: the process (environment,
// start, shutdown), the consumer's wiring, the HTTP layer, and the helpers that their
// domains share (problems, idempotency keys, group commit).
//
// A service is started by [Main] with a function that wires its domain. What the
// process guarantees:
//
//   - A wrong setting, also one of the database or of a topic, is one clear line and exit code 2 within
//     some seconds of the start. A database, migration, broker or topic that is not there is one
//     clear line and exit code 1. The same fault later is waited out.
//   - Shutdown loses nothing: readyz goes red, connections are closed with their next answer, requests are
//     taken until a balancer has noticed (SHUTDOWN_DELAY), and finished; the batch in hand
//     is committed, offsets are committed, the group is left, the pool closed.
//   - A request is answered within [requestTimeout], or [slowRequestTimeout], also when the database hangs.
//   - No goroutine survives [Run].
package service

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/sync/errgroup"
)

// Service is what a domain hands to the process.
type Service struct {
	// Topics are consumed by the group that has the service's name. Required.
	Topics []string
	// Partitions is how many each topic must have; 0: any number.
	Partitions int
	// Batch handles what comes from them. Required.
	Batch func([]inbox.Event) inbox.Batch
	// Decode turns a payload into Event.Body and rejects what can never work. Default:
	// events.Decode.
	Decode func(inbox.Event) (any, error)
	// Committed is called after each transaction of the consumer that had an effect; it
	// must not block. Default: none.
	Committed func()
	// DeadLetterTopic and DeadLetterType are those of the event that announces a dead
	// letter. Required.
	DeadLetterTopic, DeadLetterType string
	// Routes adds the domain's HTTP routes; wrap handlers in [Handle].
	Routes func(*mux.Router)
	// OpenAPI describes the domain's routes: an OpenAPI 3.1 document of its paths and
	// schemas, which joins that of the routes all services have. Default: those alone.
	OpenAPI []byte
	// Background functions run until their context is done, which is after the last
	// request was answered. One that returns an error ends the service.
	Background []func(context.Context) error
	// Migrations are the service's own, at the root of the file system: the database must have
	// them all, in the version table [SchemaTable]. Nil: not checked.
	Migrations fs.FS
}

// Runtime is what the process hands to a domain. Nothing is connected yet: open checks
// and wires, and starts nothing.
type Runtime struct {
	Pool *Pool
	Log  *slog.Logger
	// Draining is closed when shutdown begins: requests that wait for something should
	// answer now.
	Draining <-chan struct{}
	// MaxBatch is the most requests that may share a transaction.
	MaxBatch int
	// Backpressure is what new work waits for that brings the consumer more to do ([Gather.Backpressure]).
	Backpressure *Backpressure
	// Pace is what spaces transactions ([Gather.Pace]).
	Pace *Pace

	getenv func(string) string
}

// Duration reads a time like 60s or 1m30s, and no less than least, from the environment variable name. An error is one
// of configuration.
func (rt Runtime) Duration(name string, def, least time.Duration) (time.Duration, error) {
	d, err := duration(rt.getenv, name, def)
	if err == nil && d < least {
		err = badConfig("%s is %s: it must be %s or more", name, d, least)
	}
	return d, err
}

const (
	// startTimeout bounds each step of the start that asks the database.
	startTimeout = 8 * time.Second
	// drainTimeout is how long requests may take to end once shutdown has begun.
	drainTimeout = 15 * time.Second
)

// Main runs a service until SIGTERM or SIGINT, then ends the process: 0 after a clean
// shutdown, 2 after bad configuration, 1 after any other failure, each with one line on
// stderr. A second signal ends it at once. name is also the consumer group, addr the default
// of HTTP_ADDR.
func Main(name, addr string, open func(Runtime) (Service, error)) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	if len(os.Args) > 1 {
		os.Exit(command(ctx, os.Args[1:], name, addr))
	}
	PaceGC()
	err := Run(ctx, os.Getenv, os.Stderr, name, addr, open)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, oneLine(err))
	if errors.As(err, new(configError)) {
		os.Exit(2)
	}
	os.Exit(1)
}

// command runs what was asked for instead of the service: "healthcheck" asks the instance
// that runs in the same container whether it is ready. There is no other.
func command(ctx context.Context, args []string, name, addr string) (exit int) {
	if len(args) != 1 || args[0] != "healthcheck" {
		fmt.Fprintf(os.Stderr, "%s: usage: %s [healthcheck]; it is configured by its environment\n", name, name)
		return 2
	}
	if err := healthcheck(ctx, cmp.Or(os.Getenv("HTTP_ADDR"), addr)); err != nil {
		fmt.Fprintf(os.Stderr, "%s: not ready: %s\n", name, oneLine(err))
		return 1
	}
	return 0
}

// healthcheck is nil when all checks of the service's /readyz are ok: also that of its consumer, which requests
// do not need.
func healthcheck(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 10_000))
	var readiness struct{ Checks map[string]string }
	if res.StatusCode != http.StatusOK || json.Unmarshal(text, &readiness) != nil {
		return fmt.Errorf("%s: %s", res.Status, text)
	}
	for _, check := range readiness.Checks {
		if check != "ok" {
			return fmt.Errorf("%s: %s", res.Status, text)
		}
	}
	return nil
}

// Run is [Main] without the process: it returns when ctx is done and all work is
// finished (nil), or when the service cannot start or go on.
func Run(ctx context.Context, getenv func(string) string, stderr io.Writer, name, addr string, open func(Runtime) (Service, error)) error {
	cfg, err := readConfig(getenv, stderr, name, addr)
	if err != nil {
		return err
	}
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), cfg.pool)
	if err != nil {
		return fmt.Errorf("database pool: %w", err)
	}
	defer pool.Close()
	draining := make(chan struct{})
	shared, pressure, pace := NewPool(pool), NewBackpressure(), NewPace(cfg.pace)
	svc, err := open(Runtime{Pool: shared, Log: cfg.log, Draining: draining, MaxBatch: cfg.maxBatch, Backpressure: pressure, Pace: pace, getenv: getenv})
	if err != nil {
		return err
	}
	api, err := describe(svc.OpenAPI)
	if err != nil {
		return err
	}
	metrics := newMetrics(shared, pressure)
	consumer, err := newConsumer(cfg, pool, name, svc, metrics, pressure, pace)
	if err != nil {
		return err
	}
	if err := prepare(ctx, cfg, pool, svc.Migrations); err != nil {
		return err
	}
	wrong, err := CheckTopics(ctx, cfg.brokers, cfg.topicRetention, svc.Topics...)
	if len(wrong) > 0 {
		err = wrong[0] // one line; outboxctl check tells of all topics
	}
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return fmt.Errorf("cannot listen on HTTP_ADDR %s: free the port or choose another: %w", cfg.addr, err)
	}
	server := newServer(handler(svc, api, &health{pool: pool, consumer: consumer, draining: draining, now: time.Now}, deadLetters{consumer, shared}, metrics), cfg.log)

	// Work goes on while requests drain; hence a context of its own.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	running, failed := errgroup.WithContext(work)
	running.Go(func() error { return consumer.Run(failed) })
	running.Go(func() error { return keepPartitions(failed, pool, cfg) })
	running.Go(func() error { return retire(failed, pool, cfg, metrics) })
	running.Go(func() error { return expireKeys(failed, pool, cfg.log) })
	for _, background := range svc.Background {
		running.Go(func() error { return background(failed) })
	}
	running.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("http server: %w", err)
		}
		return nil
	})
	cfg.log.Info("started", "http", listener.Addr().String())

	select {
	case <-ctx.Done():
	case <-failed.Done():
	}
	close(draining)
	if ctx.Err() != nil {
		cfg.log.Info("stopping")
		select {
		case <-time.After(cfg.shutdownDelay):
		case <-failed.Done():
		}
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := server.Shutdown(end); err != nil {
		cfg.log.Warn("requests cut off: they did not end in time", "after", drainTimeout, "error", err)
		_ = server.Close() // the listener is closed already
	}
	stopWork()
	if err := running.Wait(); err != nil {
		if errors.Is(err, inbox.ErrPartitions) || errors.Is(err, kerr.InvalidSessionTimeout) {
			return configError{err}
		}
		return err
	}
	cfg.log.Info("stopped")
	return nil
}

// prepare checks at the start what would otherwise show at the first request.
func prepare(ctx context.Context, cfg config, pool *pgxpool.Pool, own fs.FS) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := pool.Ping(ctx); err != nil {
		return fmt.Errorf("no connection to DATABASE_URL: check address, user, password and database: %w", err)
	}
	if err := checkMigrations(ctx, pool, own); err != nil {
		return err
	}
	if err := checkCapture(ctx, pool); err != nil {
		return err
	}
	return preparePartitions(ctx, pool, cfg)
}

func expireKeys(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	return every(ctx, 10*time.Minute, time.Minute, log, "idempotency keys not expired", func(ctx context.Context) error {
		_, err := deleteExpiredKeys(ctx, pool, time.Now())
		return err
	})
}

// every runs do at intervals until ctx is done, and sooner again after a failure.
func every(ctx context.Context, interval, retry time.Duration, log *slog.Logger, failure string, do func(context.Context) error) error {
	wait := interval
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = interval
		if err := do(ctx); err != nil && ctx.Err() == nil {
			log.Warn(failure+"; trying again", "in", retry, "error", err)
			wait = retry
		}
	}
}

func newConsumer(cfg config, pool *pgxpool.Pool, name string, svc Service, m *metrics, pressure *Backpressure, pace *Pace) (*inbox.Consumer, error) {
	decode := svc.Decode
	if decode == nil {
		decode = func(ev inbox.Event) (any, error) { return events.Decode(ev.Type, ev.Key, ev.Payload) }
	}
	hooks := m.hooks()
	hooks.Begun = pressure.begun
	count := hooks.Committed
	hooks.Committed = func(fresh, repeated, dead int, took time.Duration) {
		count(fresh, repeated, dead, took)
		pressure.committed()
		if fresh > 0 && svc.Committed != nil {
			svc.Committed()
		}
	}
	return inbox.New(inbox.Config{
		Pool: pool, Brokers: cfg.brokers, Group: name, Topics: svc.Topics, Partitions: svc.Partitions,
		Batch: svc.Batch, Decode: decode, MaxBatch: cfg.maxBatch, Pace: pace.Between,
		DeadLetter: func(d inbox.DeadLetter) (outbox.Event, error) {
			return announce(svc.DeadLetterTopic, svc.DeadLetterType, d)
		},
		InstanceID: cfg.instance, SessionTimeout: cfg.session, Logger: cfg.log, Hooks: hooks,
	})
}
