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
//     makes a new one and sends what is not known to be in Kafka or in an inbox of the retained outbox;
//   - have a connector send its whole retained outbox again where events are proven to be neither under
//     way nor in their inbox (Kafka has lost them), and where Connect has read further than the log goes: the
//     database was restored.
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
	"slices"
	"strings"
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
	// Topics are those that its outbox writes. Those that are made anew do not have what they had.
	Topics []string
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
	// Topics that must exist, made with so many Replicas (or provision.DefaultReplicas) where they are missing.
	Topics   []provision.Topic
	Replicas int16
	// Consumer names the pipeline whose inbox takes a topic's events; empty: none does.
	Consumer func(topic string) string
	// Every is the time from one look to the next. Default 2 s, at most [MaxEvery].
	Every time.Duration
	// DryRun only says what would be done, whoever acts beside it.
	DryRun bool
	// Instance is how acts name this supervisor.
	Instance string
	// Log gets a line for each act. Default: none.
	Log *slog.Logger
}

// MaxEvery is the longest time from one look to the next: the session that holds the lock must not idle.
const MaxEvery = 10 * time.Second

// Supervisor looks after a system. [New] makes one, [Supervisor.Run] runs it.
type Supervisor struct {
	cfg      Config
	kafka    *kgo.Client
	admin    *kadm.Client
	metrics  *metrics
	watches  map[string]*watch  // by pipeline
	memories map[string]*memory // by pipeline
	heard    map[string]*heard  // by pipeline
	readings readings
	workers  []string // in the order in which they are asked

	confirmations map[string]*confirmation // by pipeline

	// Of the rounds, which come one after the other.
	newest                        Facts
	complete                      bool // everything has answered at least once
	recalled                      bool // what the one that acted before has begun is known
	lock, unknown, unkept, unread trouble

	actTimeout, resumeTimeout time.Duration

	mu     sync.Mutex
	looked time.Time // the last round that succeeded, whether it acted or stood by
	why    string    // the last one did not
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
	if cfg.Every < 0 || cfg.Every > MaxEvery {
		return nil, fmt.Errorf("supervisor: every is %s: give %s at most", cfg.Every, MaxEvery)
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
		cfg: cfg, kafka: kafka, admin: kadm.NewClient(kafka), metrics: newMetrics(), workers: slices.Clone(cfg.Workers),
		actTimeout: actTimeout, resumeTimeout: resumeTimeout,
	}
	s.forget()
	return s, nil
}

// forget begins anew: what is remembered may be of long ago.
func (s *Supervisor) forget() {
	s.watches, s.memories, s.heard, s.recalled = map[string]*watch{}, map[string]*memory{}, map[string]*heard{}, false
	s.confirmations, s.readings = map[string]*confirmation{}, readings{}
	for _, p := range s.cfg.Pipelines {
		s.watches[p.Name], s.memories[p.Name], s.heard[p.Name] = &watch{}, &memory{}, &heard{}
		s.confirmations[p.Name] = &confirmation{}
	}
}

// Close frees what [New] made.
func (s *Supervisor) Close() { s.kafka.Close() }

// Registry holds the metrics.
func (s *Supervisor) Registry() *prometheus.Registry { return s.metrics.registry }

// Ready is nil if the last look has ended lately, and everything has answered it that this supervisor needs: the
// lock's database, and of the one that acts also the others, Kafka and Connect.
func (s *Supervisor) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.why != "":
		return fmt.Errorf("the last look at the system did not succeed: %s", s.why)
	case time.Since(s.looked) > 30*time.Second+3*s.cfg.Every:
		return errors.New("no look at the system has ended lately")
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
	lock := &lock{pool: s.cfg.Pipelines[0].DB, idle: LockIdle, dry: s.cfg.DryRun}
	defer lock.release()
	tick := time.NewTicker(s.cfg.Every)
	defer tick.Stop()
	for {
		s.round(ctx, lock)
		if s.wait(ctx, tick.C); ctx.Err() != nil {
			return nil
		}
	}
}

// slotsEvery is the time between two looks at the slots alone.
const slotsEvery = 500 * time.Millisecond

// wait ends with the next look: when its time has come, or when a slot is gone. A connector makes it anew within a second or two, and
// must find then what needs not be sent.
func (s *Supervisor) wait(ctx context.Context, tick <-chan time.Time) {
	slots := time.NewTicker(slotsEvery)
	defer slots.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			return
		case <-slots.C:
			if s.Leads() && s.slotGone(ctx) {
				return
			}
		}
	}
}

// slotGone tells whether a slot that the last look has found whole is missing or lost now.
func (s *Supervisor) slotGone(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, slotsEvery)
	defer cancel()
	for _, p := range s.cfg.Pipelines {
		if slot := s.newest.Pipelines[p.Name].Slot; slot == nil || !slot.Exists || slot.WALStatus == "lost" {
			continue
		}
		var whole bool
		err := p.DB.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND wal_status IS DISTINCT FROM 'lost')`, p.Slot).Scan(&whole)
		if err == nil && !whole {
			return true
		}
	}
	return false
}

// staleAfter is how old a look may be that a pipeline's acts are decided from: a new one is better, when the acts on
// another pipeline have taken so long.
const staleAfter = 10 * time.Second

// round is one look, and the acts that it leads to.
func (s *Supervisor) round(ctx context.Context, lock *lock) {
	held, anew, err := lock.hold(ctx)
	if ctx.Err() != nil {
		return
	}
	was := s.Leads()
	switch {
	case anew:
		s.cfg.Log.Info("this supervisor acts", "instance", s.cfg.Instance, "dry_run", s.cfg.DryRun)
		s.forget()
	case was && !held && err == nil:
		s.cfg.Log.Info("another supervisor acts", "instance", s.cfg.Instance)
	}
	s.setLeads(held)
	s.lock.tell(s.cfg.Log, of("the lock's database", err))
	if err != nil {
		s.metrics.unknown.Set(1)
		s.ended("the lock's database: " + err.Error())
		return
	}
	if !held && s.complete {
		s.ended("")
		return
	}
	facts := s.Look(ctx)
	s.newest = facts
	if held && !s.recalled {
		err := s.recall(ctx)
		s.recalled = err == nil
		facts.Unknown = append(facts.Unknown, of("the table supervisor_acts", err)...)
	}
	if ctx.Err() != nil {
		return
	}
	s.unknown.tell(s.cfg.Log, facts.Unknown)
	s.ended(strings.Join(facts.Unknown, "; "))
	s.complete = s.complete || len(facts.Unknown) == 0
	if held {
		s.act(ctx, lock, facts)
		s.walkAll(ctx, facts)
	}
	if s.Leads() { // still
		s.metrics.show(facts, s.confirmations)
	}
}

// act does what the facts lead to, as long as the lock is held.
func (s *Supervisor) act(ctx context.Context, lock *lock, facts Facts) {
	if !lock.held(ctx) { // it may have been lost during the look
		s.setLeads(false)
		return
	}
	var unkept []string
	defer func() { s.unkept.tell(s.cfg.Log, unkept) }()
	for i, p := range s.cfg.Pipelines {
		if i == 1 {
			facts.MissingTopics = nil // one makes them all
		}
		if time.Since(facts.At) > staleAfter {
			return
		}
		s.settle(ctx, facts, p)
		if slot := facts.Pipelines[p.Name].Slot; slot != nil && facts.topics != nil {
			s.confirmations[p.Name].learn(slot, s.identities(p, facts))
			unkept = append(unkept, of("the table outbox_confirmed of "+p.Name, s.tell(ctx, p, slot))...)
		}
		for _, act := range decide(facts.At, p.Name, facts, s.memories[p.Name]) {
			if ctx.Err() != nil {
				return
			}
			if !lock.held(ctx) {
				s.cfg.Log.Warn("the lock is lost: not done", "act", act.Kind, "connector", p.Name, "instance", s.cfg.Instance)
				s.setLeads(false)
				return
			}
			lock.during(func() { s.perform(ctx, facts, p, act) })
			s.ended(strings.Join(facts.Unknown, "; ")) // an act may take long
		}
	}
}

// identities are what the topics of a pipeline are known by: one that was made anew is another, and so is one whose publication was changed,
// or whose consumer's database is another one or was set back. One of which that cannot be told is left out.
func (s *Supervisor) identities(p Pipeline, f Facts) map[string]string {
	ids := map[string]string{}
	for _, name := range p.Topics {
		id := f.topics[name] + " " + f.Pipelines[p.Name].Slot.publication
		if to := s.cfg.Consumer(name); to != "" {
			slot := f.Pipelines[to].Slot
			if slot == nil {
				continue
			}
			id += " " + slot.history
		}
		ids[name] = id
	}
	return ids
}

// walkTimeout bounds what a round looks for the older events: the next look is not to wait for them.
const walkTimeout = 2 * time.Second

// walkAll looks on for what needs not be sent again.
func (s *Supervisor) walkAll(ctx context.Context, f Facts) {
	limited, cancel := context.WithTimeout(ctx, walkTimeout)
	defer cancel()
	var unread []string
	for _, p := range s.cfg.Pipelines {
		unread = append(unread, of("the older events of "+p.Name, s.walkOn(limited, p, f))...)
	}
	if ctx.Err() == nil {
		s.unread.tell(s.cfg.Log, unread)
	}
}

func (s *Supervisor) setLeads(is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leads = is
	s.metrics.leads(is)
}

// ended remembers why the round did not succeed; "": it did.
func (s *Supervisor) ended(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why = why; why == "" {
		s.looked = time.Now()
	}
}

// trouble is what does not answer.
type trouble map[string]bool

// tell logs what does not answer when that begins and when it ends, not each time. unknown are lines as in [Facts].
func (t *trouble) tell(log *slog.Logger, unknown []string) {
	now := trouble{}
	for _, line := range unknown {
		what, err, _ := strings.Cut(line, ": ")
		if now[what] = true; !(*t)[what] {
			log.Warn("no answer", "from", what, "error", err)
		}
	}
	for what := range *t {
		if !now[what] {
			log.Info("it answers again", "from", what)
		}
	}
	*t = now
}

// of is the line of an error; none if it is nil.
func of(what string, err error) []string {
	if err == nil {
		return nil
	}
	return []string{what + ": " + err.Error()}
}
