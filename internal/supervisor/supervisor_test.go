package supervisor_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/supervisor"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// rig is a running system with a supervisor.
type rig struct {
	*stacktest.System
	t       *testing.T
	connect connect.Client
	admin   *kadm.Client
	first   supervisor.Pipeline
	config  supervisor.Config
}

// One system serves the tests, one after the other: they break it, and the supervisor mends it.
func TestSupervisor(t *testing.T) {
	s := stacktest.NewSystem(t, 1)
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	files, err := connect.Files(filepath.Join(stacktest.Root(), "connectors"))
	if err != nil {
		t.Fatal(err)
	}
	pools := map[string]*pgxpool.Pool{}
	for _, d := range system.Databases() {
		pools[d.Name] = s.DB(d.Name)
	}
	pipelines, err := system.Pipelines(pools, files)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{System: s, t: t, connect: connect.Client{URL: s.ConnectURL()}, admin: kadm.NewClient(client), first: pipelines[0], config: supervisor.Config{
		Pipelines: pipelines, Workers: []string{"http://127.0.0.1:1", s.ConnectURL()}, Brokers: s.Brokers(),
		Topics: system.Topics(), Replicas: 1, Consumer: system.Consumer, Every: time.Second, Instance: "test",
	}}
	for path, body := range map[string]string{"payment-service/accounts/alice/deposits": `{"amount":1000000}`, "stock-service/items/book/receipts": `{"quantity":1000}`} {
		service, path, _ := strings.Cut(path, "/")
		if code, err := stacktest.Post(t.Context(), s.URL(service, 0)+"/"+path, nil, body, nil); code != 200 {
			t.Fatal(code, err)
		}
	}
	r.settles("before anything is broken", 20*time.Second)

	r.run("a dry run changes nothing", func(t *testing.T) {
		dry := r.config
		dry.DryRun = true
		stop := r.start(dry)
		defer stop()
		if err := r.connect.Delete(t.Context(), "orderdb"); err != nil {
			t.Fatal(err)
		}
		if act := r.act(supervisor.Register, 20*time.Second); act.Outcome != "would" {
			t.Errorf("%+v", act)
		}
		if _, err := r.connect.Status(t.Context(), "orderdb"); err == nil {
			t.Error("it was registered")
		}
	})
	stop := r.start(r.config)
	t.Cleanup(func() { stop() })
	r.run("a missing connector is registered", func(*testing.T) {
		r.act(supervisor.Register, 20*time.Second)
		r.settles("with its connector again", 30*time.Second)
	})
	r.run("only one acts", func(t *testing.T) {
		second, err := supervisor.New(r.config)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- second.Run(ctx) }()
		time.Sleep(2500 * time.Millisecond)
		if second.Leads() || second.Ready() != nil {
			t.Errorf("leads %t, ready %v", second.Leads(), second.Ready())
		}
		stop() // the first one: the second takes over
		r.until("the second supervisor acts", 10*time.Second, second.Leads)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		stop = r.start(r.config)
	})
	r.run("a dropped slot is made anew", func(t *testing.T) {
		for _, sql := range []string{
			`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'outbox_orderdb'`,
			`SELECT pg_sleep(0.05), pg_drop_replication_slot('outbox_orderdb')`,
		} {
			if _, err := r.DB("orderdb").Exec(t.Context(), sql); err != nil {
				t.Skip("the connector was faster: ", err)
			}
		}
		r.settles("without its slot", 30*time.Second)
		var failover bool // as provision makes it: standbys get a copy
		if err := r.DB("orderdb").QueryRow(t.Context(), `SELECT failover FROM pg_replication_slots WHERE slot_name = 'outbox_orderdb'`).Scan(&failover); err != nil || !failover {
			t.Errorf("failover %t, %v", failover, err)
		}
	})
	r.run("a lost slot is dropped and the outbox sent again", r.lostSlot)
	r.run("a failed task is started again", r.failedTask)
	r.run("events that Kafka has lost are sent again", r.lostByKafka)
	r.run("a paused connector is left alone", func(t *testing.T) {
		before := r.acts()
		if err := r.connect.Pause(t.Context(), "stockdb"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(12 * time.Second)
		st, err := r.connect.Status(t.Context(), "stockdb")
		if err != nil || st.Connector.State != "PAUSED" || len(r.acts()) != len(before) {
			t.Errorf("%+v, %v, %+v", st, err, r.acts())
		}
		if err := r.connect.Resume(t.Context(), "stockdb"); err != nil {
			t.Fatal(err)
		}
		r.settles("resumed", 30*time.Second)
	})
	r.run("facts", r.facts)
}

func (r *rig) run(name string, test func(t *testing.T)) {
	if r.t.Failed() {
		return // what was not mended breaks the next one
	}
	r.t.Run(name, func(t *testing.T) {
		outer := r.t
		r.t = t
		defer func() { r.t = outer }()
		test(t)
	})
}

// start runs a supervisor until stop is called.
func (r *rig) start(cfg supervisor.Config) (stop func()) {
	r.t.Helper()
	s, err := supervisor.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	return func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		s.Close()
	}
}

// settles places an order and waits for its end.
func (r *rig) settles(when string, within time.Duration) {
	r.t.Helper()
	begin := time.Now()
	id := r.place()
	r.until("an order settles "+when, within, func() bool { return r.settled(id) })
	r.t.Logf("%s: settled after %s", when, time.Since(begin).Round(10*time.Millisecond))
}

func (r *rig) place() (id string) {
	r.t.Helper()
	var placed struct{ ID string }
	code, err := stacktest.Post(r.t.Context(), r.URL("order-service", 0)+"/orders", nil,
		`{"customer_id":"alice","items":[{"sku":"book","quantity":1,"unit_price":10}]}`, &placed)
	if code != 202 {
		r.t.Fatal(code, err)
	}
	return placed.ID
}

func (r *rig) settled(id string) bool {
	var o struct{ Settled bool }
	_, err := stacktest.Get(r.t.Context(), r.URL("order-service", 0)+"/orders/"+id, &o)
	return err == nil && o.Settled
}

func (r *rig) until(what string, within time.Duration, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not within %s: %s; acts: %+v", within, what, r.acts())
		}
	}
}

func (r *rig) acts() []supervisor.Done {
	r.t.Helper()
	acts, err := supervisor.Acts(r.t.Context(), r.first, 100)
	if err != nil {
		r.t.Fatal(err)
	}
	return acts
}

// act waits for a new act of a kind on orderdb, and returns it.
func (r *rig) act(kind supervisor.Kind, within time.Duration) (found supervisor.Done) {
	r.t.Helper()
	before := len(r.acts())
	r.until(fmt.Sprint("the act ", kind), within, func() bool {
		acts := r.acts()
		for _, a := range acts[:len(acts)-before] {
			if a.Act == kind && a.Connector == "orderdb" {
				found = a
				return true
			}
		}
		return false
	})
	return found
}

func (r *rig) exec(sql string) {
	r.t.Helper()
	if _, err := r.DB("orderdb").Exec(r.t.Context(), sql); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
}

// lostSlot writes more log than the slots may keep, while the connectors are stopped.
func (r *rig) lostSlot(t *testing.T) {
	for _, d := range system.Databases() {
		if err := r.connect.Stop(t.Context(), d.Name); err != nil {
			t.Fatal(err)
		}
	}
	waiting := r.place() // its events are only in the log that goes, and in the outbox
	r.exec(`ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`)
	r.exec(`SELECT pg_reload_conf()`)
	r.until("the slots are lost", 60*time.Second, func() bool {
		r.exec(`SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 20)`)
		r.exec(`SELECT pg_switch_wal()`)
		r.exec(`CHECKPOINT`)
		var lost int
		return r.DB("orderdb").QueryRow(t.Context(), `SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'`).Scan(&lost) == nil && lost == 3
	})
	r.exec(`ALTER SYSTEM RESET max_slot_wal_keep_size`)
	r.exec(`SELECT pg_reload_conf()`)
	for _, d := range system.Databases() {
		if err := r.connect.Resume(t.Context(), d.Name); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	r.until("the order of then settles", 30*time.Second, func() bool { return r.settled(waiting) })
	t.Logf("lost slots: the order settled after %s", time.Since(begin).Round(10*time.Millisecond))
}

// failedTask: a record that the broker refuses fails the task; Connect never starts it again.
func (r *rig) failedTask(t *testing.T) {
	limit := func(bytes string) {
		done, err := r.admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &bytes}}, "payment")
		if err != nil || done[0].Err != nil {
			t.Fatal(err, done)
		}
	}
	limit("100")
	waiting := r.place()
	r.until("the task fails", 20*time.Second, func() bool {
		st, err := r.connect.Status(t.Context(), "orderdb")
		return err == nil && len(st.Tasks) == 1 && st.Tasks[0].State == "FAILED"
	})
	limit("1048588")
	begin := time.Now()
	r.until("the order settles", 40*time.Second, func() bool { return r.settled(waiting) })
	t.Logf("failed task: the order settled after %s", time.Since(begin).Round(10*time.Millisecond))
}

// lostByKafka: nobody consumes while a topic is deleted with what it holds, and made again.
func (r *rig) lostByKafka(t *testing.T) {
	r.Kill("stock-service")
	waiting := r.place()
	r.until("the command is in Kafka", 20*time.Second, func() bool {
		for _, rec := range r.Records("stock") {
			if string(rec.Key) == waiting {
				return true
			}
		}
		return false
	})
	if _, err := r.admin.DeleteTopic(t.Context(), "stock"); err != nil {
		t.Fatal(err)
	}
	// The supervisor makes the topic, with the partitions that it must have.
	r.act(supervisor.MakeTopics, 20*time.Second)
	r.Restart("stock-service")
	begin := time.Now()
	r.until("the order settles", 60*time.Second, func() bool { return r.settled(waiting) })
	t.Logf("lost by Kafka: the order settled after %s", time.Since(begin).Round(10*time.Millisecond))
	if a := r.acts()[0]; a.Act != supervisor.Resend || a.Outcome != "done" {
		t.Errorf("the last act is %+v", a)
	}
}

func (r *rig) facts(t *testing.T) {
	s, err := supervisor.New(r.config)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f := s.Look(t.Context())
	for name, flow := range f.Pipelines {
		if flow.Connector == nil || flow.Connector.State != "RUNNING" || flow.Slot == nil || !flow.Slot.Active || flow.Slot.Confirmed == 0 ||
			flow.Slot.Silence == nil || time.Since(flow.Heartbeat) > time.Minute || len(flow.Unseen) != 0 {
			t.Errorf("%s: %+v, %+v, %+v", name, flow, flow.Connector, flow.Slot)
		}
	}
	if g := f.Groups["order-service"]; g.Members != 1 || len(g.Lag) != 8 || len(f.MissingTopics)+len(f.Unknown) != 0 {
		t.Errorf("%+v", f)
	}
}
