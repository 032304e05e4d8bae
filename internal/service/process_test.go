package service_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/service"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
	"outboxsaga/outbox"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
)

// counter is the smallest batch: it counts events, and refuses some while broken.
type counter struct {
	mu     sync.Mutex
	counts map[string]int // by payload
	broken bool
}

func (c *counter) batch([]inbox.Event) inbox.Batch { return counterBatch{c} }

type counterBatch struct{ *counter }

func (counterBatch) Load(*pgx.Batch) {}
func (counterBatch) Save(*pgx.Batch) {}
func (c counterBatch) Decide(ev inbox.Event) ([]outbox.Event, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return nil, inbox.Permanent(errors.New("the handler is broken"))
	}
	c.counts[ev.Key]++
	return nil, nil
}

// of is how many events with a key were handled.
func (c *counter) of(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[key]
}

func (c *counter) set(broken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = broken
}

// process is a running service.
type process struct {
	t       *testing.T
	url     string
	log     *lockedBuffer
	stop    context.CancelFunc
	done    chan error
	pool    *pgxpool.Pool
	kafka   *kgo.Client
	topic   string
	handled *counter
	runtime service.Runtime // once it has started
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs a service on the real PostgreSQL and Kafka until it is ready.
func start(t *testing.T, routes func(*mux.Router), background ...func(context.Context) error) *process {
	t.Helper()
	return startWith(t, "0", routes, background...)
}

// startWith is start with a SHUTDOWN_DELAY.
func startWith(t *testing.T, delay string, routes func(*mux.Router), background ...func(context.Context) error) *process {
	t.Helper()
	url, brokers := stacktest.Database(t, system.SharedMigrations()...), stacktest.Brokers(t)
	p := &process{t: t, log: &lockedBuffer{}, done: make(chan error, 1), topic: stacktest.Topic(t, 1), handled: &counter{counts: map[string]int{}}}
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		goleak.VerifyNone(t, leaks)
	})
	var err error
	if p.pool, err = pgxpool.New(context.Background(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.pool.Close)
	if p.kafka, err = kgo.NewClient(kgo.SeedBrokers(brokers...)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kafka.Close)
	env := map[string]string{"DATABASE_URL": url, "KAFKA_BROKERS": brokers[0], "SHUTDOWN_DELAY": delay}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	go func() {
		p.done <- service.Run(ctx, func(name string) string { return env[name] }, p.log, p.topic+"-group", "127.0.0.1:0",
			func(rt service.Runtime) (service.Service, error) {
				p.runtime = rt
				return service.Service{
					Topics: []string{p.topic}, Batch: p.handled.batch, DeadLetterTopic: events.TopicStockDLT, DeadLetterType: events.TypeStockDeadLettered,
					Routes: routes, Background: background,
				}, nil
			})
	}()
	t.Cleanup(func() {
		stop()
		if err, open := <-p.done; open && err != nil {
			t.Errorf("%v\n%s", err, p.log)
		}
	})
	p.await("the address in the log", func() bool {
		found := regexp.MustCompile(`http=(127\S+)`).FindStringSubmatch(p.log.String())
		if found != nil {
			p.url = "http://" + found[1]
		}
		return found != nil
	})
	p.await("readiness", func() bool { status, _ := p.ask("GET", "/readyz", "", ""); return status == 200 })
	return p
}

// await asks until it holds, for a bounded time.
func (p *process) await(what string, holds func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("waited in vain for %s\n%s", what, p.log)
		}
	}
}

func (p *process) ask(method, path, body, operator string) (int, string) {
	p.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, p.url+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	if operator != "" {
		r.Header.Set("X-Operator", operator)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Error(err)
	}
	return res.StatusCode, string(text)
}

// produce sends a record; an empty id is left out.
func (p *process) produce(id, key, payload string) {
	p.t.Helper()
	if err := p.kafka.ProduceSync(p.t.Context(), p.record(id, key, payload)).FirstErr(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) record(id, key, payload string) *kgo.Record {
	r := &kgo.Record{Topic: p.topic, Key: []byte(key), Value: []byte(payload), Headers: []kgo.RecordHeader{{Key: "type", Value: []byte(events.TypeStockCompensationRequested)}}}
	if id != "" {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: "id", Value: []byte(id)})
	}
	return r
}

func (p *process) text(sql string, args ...any) string {
	p.t.Helper()
	var s string
	if err := p.pool.QueryRow(context.Background(), sql, args...).Scan(&s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

func compensation(order string) string { return `{"order_id":"` + order + `"}` }
