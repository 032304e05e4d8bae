// Package supervisor keeps change data capture flowing.
//
// Kafka Connect says RUNNING while nothing flows, and never starts a failed task again. A
// [Supervisor] therefore looks at facts (slots, positions in the log, heartbeats, lag, ids that
// no inbox has) and acts on them. What it may do:
//
//   - start failed and stuck connectors again, with growing pauses;
//   - register a connector that is missing, make a topic that is missing;
//   - end a walsender whose reader is gone, so that the slot is free for the next one;
//   - drop a slot that PostgreSQL has invalidated (lost): it can never be read again. The connector
//     makes a new one and sends the retained outbox again;
//   - have a connector send its retained outbox again where events are proven to be neither under
//     way nor in their inbox: Kafka has lost them.
//
// None of this can lose an event: a slot that can still be read is never dropped, the outbox
// keeps its rows until every slot has confirmed them, and what is sent twice meets the inbox. It leaves a
// connector alone that somebody has paused or stopped.
//
// Any number of supervisors may run; an advisory lock lets one of them act. Each act is a line in
// the log, a metric, and a row in the table supervisor_acts.
package supervisor

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Migrations make the table of acts, in the database of the first pipeline.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// MigrationsTable is the version table of [Migrations].
const MigrationsTable = "supervisor_schema_migrations"

// Pipeline is a database whose outbox a connector empties, and whose inbox a service fills.
type Pipeline struct {
	Name  string // the database's and the connector's
	Slot  string
	Group string // the consumer group of the service
	// DB is a pool whose role may read outbox and inbox and see pg_stat_replication, end
	// walsenders and drop slots.
	DB *pgxpool.Pool
	// Connector is registered where it is missing.
	Connector connect.File
}

// Config says what to look after.
type Config struct {
	// Pipelines; the lock and the acts are in the database of the first. Required.
	Pipelines []Pipeline
	// Workers are the URLs of Kafka Connect; the first that answers is asked. Required.
	Workers []string
	// Brokers of Kafka. Required.
	Brokers []string
	// Topics that must exist, made with so many Replicas where they are missing.
	Topics   []provision.Topic
	Replicas int16
	// Consumer names the pipeline whose inbox takes a topic's events; empty: none does.
	Consumer func(topic string) string
	// Every is the time from one look to the next. Default 2 s.
	Every time.Duration
	// DryRun only says what would be done.
	DryRun bool
	// Instance is how acts name this supervisor.
	Instance string
	// Log gets a line for each act. Default: none.
	Log *slog.Logger
}

// Supervisor looks after a system. [New] makes one, [Supervisor.Run] runs it.
type Supervisor struct {
	cfg      Config
	kafka    *kgo.Client
	admin    *kadm.Client
	metrics  *metrics
	watches  map[string]*watch  // by pipeline
	memories map[string]*memory // by pipeline

	mu     sync.Mutex
	looked time.Time // the last round, whether it acted or stood by
	leads  bool
}

// New checks cfg. It connects to nothing.
func New(cfg Config) (*Supervisor, error) {
	if len(cfg.Pipelines) == 0 || len(cfg.Workers) == 0 || len(cfg.Brokers) == 0 {
		return nil, errors.New("supervisor: pipelines, workers and brokers are required")
	}
	if cfg.Every == 0 {
		cfg.Every = 2 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Consumer == nil {
		cfg.Consumer = func(string) string { return "" }
	}
	// An answer from the client's cache would be up to 5 s old.
	kafka, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.MetadataMinAge(250*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("supervisor: kafka client: %w", err)
	}
	s := &Supervisor{
		cfg: cfg, kafka: kafka, admin: kadm.NewClient(kafka), metrics: newMetrics(),
		watches: map[string]*watch{}, memories: map[string]*memory{},
	}
	for _, p := range cfg.Pipelines {
		s.watches[p.Name], s.memories[p.Name] = &watch{}, &memory{}
	}
	return s, nil
}

// Close frees what [New] made.
func (s *Supervisor) Close() { s.kafka.Close() }

// Registry holds the metrics.
func (s *Supervisor) Registry() *prometheus.Registry { return s.metrics.registry }

// Ready is nil if the last round is not long ago.
func (s *Supervisor) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if age := time.Since(s.looked); age > 30*time.Second+3*s.cfg.Every {
		return errors.New("the last look at the system is too long ago: the log says why")
	}
	return nil
}

// Leads tells whether this supervisor is the one that acts.
func (s *Supervisor) Leads() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leads
}

// Run looks and acts until ctx is done; then it returns nil. What cannot be reached is waited for.
func (s *Supervisor) Run(ctx context.Context) error {
	lock := &lock{pool: s.cfg.Pipelines[0].DB}
	defer lock.release()
	tick := time.NewTicker(s.cfg.Every)
	defer tick.Stop()
	for {
		s.round(ctx, lock)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round is one look, and the acts that it leads to.
func (s *Supervisor) round(ctx context.Context, lock *lock) {
	leads, err := lock.hold(ctx)
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	was := s.leads
	s.leads, s.looked = leads, time.Now()
	s.mu.Unlock()
	switch {
	case err != nil && was:
		s.cfg.Log.Warn("the database of the lock does not answer", "error", err)
	case leads && !was:
		s.cfg.Log.Info("this supervisor acts", "instance", s.cfg.Instance, "dry_run", s.cfg.DryRun)
		for _, p := range s.cfg.Pipelines { // what was remembered may be of long ago
			s.watches[p.Name], s.memories[p.Name] = &watch{}, &memory{}
		}
	case was && !leads:
		s.cfg.Log.Info("another supervisor acts", "instance", s.cfg.Instance)
	}
	s.metrics.leads(leads)
	if !leads {
		return
	}
	facts := s.Look(ctx)
	if ctx.Err() != nil {
		return
	}
	s.metrics.show(facts)
	for i, p := range s.cfg.Pipelines {
		if i == 1 {
			facts.MissingTopics = nil // one makes them all
		}
		for _, act := range decide(facts.At, p.Name, facts, s.memories[p.Name]) {
			s.perform(ctx, facts, p, act)
		}
	}
}

// lock is the advisory lock of the one that acts. It lives as long as its session.
type lock struct {
	pool *pgxpool.Pool
	conn *pgxpool.Conn
}

// lockKey is any number that nobody else uses in this database.
const lockKey = 0x6f7574626f78 // "outbox"

// hold takes the lock, or makes sure that it is still held.
func (l *lock) hold(ctx context.Context) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if l.conn != nil {
		if err = l.conn.Ping(ctx); err == nil {
			return true, nil
		}
		l.release()
	}
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return false, err
	}
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(lockKey)).Scan(&held); err != nil || !held {
		conn.Release()
		return false, err
	}
	// A leader that is frozen, or whose host is gone, must not keep the others from acting for as long as its
	// connection seems to live. A round takes no longer than this.
	if _, err := conn.Exec(ctx, `SET idle_session_timeout = '30s'`); err != nil {
		_ = conn.Conn().Close(ctx)
		conn.Release()
		return false, err
	}
	l.conn = conn
	return true, nil
}

// release ends the session, and the lock with it.
func (l *lock) release() {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.conn.Conn().Close(ctx)
	l.conn.Release()
	l.conn = nil
}
