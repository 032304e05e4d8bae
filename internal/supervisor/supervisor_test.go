package supervisor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"
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
	worker  *worker
	started int
	now     *supervisor.Supervisor // the one that was started last, and its log
	log     *logged
	older   string // an order whose event has been on a topic that was made anew since
}

// worker lets the supervisor's calls through to Kafka Connect, and a test see them before.
type worker struct {
	mu  sync.Mutex
	see func(method, path string)
}

func (w *worker) watch(see func(method, path string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.see = see
}

func (w *worker) serve(t *testing.T, to string) (address string) {
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorLog = log.New(io.Discard, "", 0) // a call that is given up is none
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		see := w.see
		w.mu.Unlock()
		if see != nil {
			see(r.Method, r.URL.Path)
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// logged is a supervisor's log.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

// line is what a test wants of a line.
type line struct{ Msg, From, Act, Connector, Outcome string }

func (l *logged) lines() (all []line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for text := range bytes.Lines(l.text.Bytes()) {
		var one line
		if err := json.Unmarshal(text, &one); err != nil {
			panic(err)
		}
		all = append(all, one)
	}
	return all
}

// count counts the lines with a message about something.
func (l *logged) count(msg, from string) (n int) {
	for _, one := range l.lines() {
		if one.Msg == msg && one.From == from {
			n++
		}
	}
	return n
}

// One system serves the tests, one after the other: they break it, and the supervisor mends it.
func TestSupervisor(t *testing.T) {
	t.Parallel()
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
		pools[d.Name] = poolOf(t, s.UserURL(provision.Supervisor, d.Name))
	}
	pipelines, err := system.Pipelines(pools, files)
	if err != nil {
		t.Fatal(err)
	}
	through := &worker{}
	r := &rig{System: s, t: t, worker: through, connect: connect.Client{URL: s.ConnectURL()}, admin: kadm.NewClient(client), first: pipelines[0], config: supervisor.Config{
		Pipelines: pipelines, Workers: []string{"http://127.0.0.1:1", through.serve(t, s.ConnectURL())}, Brokers: s.Brokers(),
		Topics: system.Topics(), Replicas: 1, Consumer: system.Consumer, Every: time.Second,
	}}
	for path, body := range map[string]string{"payment-service/accounts/alice/deposits": `{"amount":1000000}`, "stock-service/items/book/receipts": `{"quantity":1000}`} {
		service, path, _ := strings.Cut(path, "/")
		if code, err := stacktest.Post(t.Context(), s.URL(service, 0)+"/"+path, nil, body, nil); code != 200 {
			t.Fatal(code, err)
		}
	}
	r.settles("before anything is broken", 20*time.Second)

	r.run("a set-up that is wrong in part is not ready", func(t *testing.T) {
		wrong := r.config
		wrong.Pipelines = slices.Clone(wrong.Pipelines)
		wrong.Pipelines[1].DB = poolOf(t, r.PostgresURL("nowhere"))
		stop := r.start(wrong)
		defer stop()
		r.until("it acts", 20*time.Second, r.now.Leads)
		r.until("it says what does not answer", 20*time.Second, func() bool { return r.log.count("no answer", "PostgreSQL, stockdb") > 0 })
		time.Sleep(4 * time.Second) // some rounds
		if n := r.log.count("no answer", "PostgreSQL, stockdb"); n != 1 {
			t.Errorf("it is said %d times", n)
		}
		if err := r.now.Ready(); err == nil || !strings.Contains(err.Error(), "stockdb") {
			t.Error(err)
		}
	})
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
		var free bool
		if err := r.DB("orderdb").QueryRow(t.Context(), `SELECT pg_try_advisory_xact_lock($1)`, int64(supervisor.LockKey)).Scan(&free); err != nil || !free {
			t.Errorf("it has the lock of the one that acts: %v", err)
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
		r.until("the second supervisor is ready", 20*time.Second, func() bool { return second.Ready() == nil })
		if second.Leads() {
			t.Error("both act")
		}
		stop() // the first one: the second takes over
		r.until("the second supervisor acts", 10*time.Second, second.Leads)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		stop = r.start(r.config)
	})
	r.run("who loses the lock in the middle of a round acts no more", r.losesTheLock)
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
	r.run("a failed task is started again", r.failedTask)
	r.run("a task that is RUNNING but stuck is freed", r.stuckTask)
	r.run("events that Kafka has lost are sent again", r.lostByKafka)
	r.run("each act is a line, a metric and a row", r.told)
	r.run("a lost slot is dropped and what Kafka does not have sent again", func(t *testing.T) {
		r.lostSlot(t, func() {
			stop()
			stop = r.start(r.config)
		})
	})
	r.run("a resend that was not finished is", func(*testing.T) {
		stop()
		stop = r.unfinishedResend()
	})
	r.run("a paused connector is left alone", func(t *testing.T) {
		before := r.acts()
		pause, err := http.NewRequestWithContext(t.Context(), http.MethodPut, r.connect.URL+"/connectors/stockdb/pause", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(pause)
		if err != nil || res.Body.Close() != nil || res.StatusCode != http.StatusAccepted {
			t.Fatal(res, err)
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
	r.started++
	r.log = &logged{}
	cfg.Log, cfg.Instance = r.log.logger(), fmt.Sprint("test ", r.started)
	s, err := supervisor.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.now = s
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
			if a.Act == kind && a.Connector == "orderdb" && a.Outcome != "begun" {
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

// sent counts the commands to reserve an order's goods in Kafka.
func (r *rig) sent(order string) (n int) {
	r.t.Helper()
	for _, rec := range r.Records("stock") {
		if string(rec.Key) == order {
			n++
		}
	}
	return n
}

// knows waits until the supervisor knows that Kafka has all that is written so far.
func (r *rig) knows() {
	r.t.Helper()
	var newest float64
	if err := r.DB("orderdb").QueryRow(r.t.Context(), `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::float8`).Scan(&newest); err != nil {
		r.t.Fatal(err)
	}
	r.until("the supervisor knows what Kafka has", 40*time.Second, func() bool {
		families, err := r.now.Registry().Gather()
		if err != nil {
			r.t.Fatal(err)
		}
		known := 0
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "cdc_confirmed_transaction" && m.GetGauge().GetValue() >= newest {
					known++
				}
			}
		}
		return known == len(r.config.Pipelines)
	})
}

// kept tells whether all databases have it for the next supervisor that Kafka has the events of an order.
func (r *rig) kept(order string) bool {
	for _, d := range system.Databases() {
		var kept bool
		err := r.DB(d.Name).QueryRow(r.t.Context(), `SELECT count(*) > 0 AND bool_and(coalesce(k.xid < k.before AND age(o.xmin) > age(k.before::xid) AND age(o.xmin) <= age(k.xid::xid), false))
			FROM outbox o LEFT JOIN (SELECT before, topic, xid FROM outbox_confirmed, unnest(topics, since) k (topic, xid)) k ON k.topic = o.topic WHERE o.aggregate_id = $1`, order).Scan(&kept)
		if err != nil || !kept {
			return false
		}
	}
	return true
}

// lostSlot writes more log than the slots may keep, while the connectors are stopped. Another supervisor finds them lost.
func (r *rig) lostSlot(t *testing.T, another func()) {
	old := r.place()
	r.until("an order settles before", 30*time.Second, func() bool { return r.settled(old) })
	r.knows()
	sent := map[string]int{old: 0, r.older: 0} // the older one was there before its topic was made anew
	for order := range sent {
		r.until("it is kept", 30*time.Second, func() bool { return r.kept(order) })
		sent[order] = r.sent(order)
	}
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
	another()
	for _, d := range system.Databases() {
		if err := r.connect.Resume(t.Context(), d.Name); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	r.until("the order of then settles", 30*time.Second, func() bool { return r.settled(waiting) })
	t.Logf("lost slots: the order settled after %s", time.Since(begin).Round(10*time.Millisecond))
	// What was known to be in Kafka was left out, and that is taken back.
	for order, before := range sent {
		if n := r.sent(order); n != before {
			t.Errorf("the event of an order that had settled is %d times in Kafka, before the slot was lost %d times; the supervisor:\n%s", n, before, r.log)
		}
	}
	r.until("the databases are told so no more", 30*time.Second, func() bool {
		for _, d := range system.Databases() {
			var told bool
			if err := r.DB(d.Name).QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM outbox_confirmed WHERE until > clock_timestamp())`).Scan(&told); err != nil || told {
				return false
			}
		}
		return true
	})
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
	old := r.place()
	r.older = old
	r.until("an order settles before", 30*time.Second, func() bool { return r.settled(old) })
	r.Kill("stock-service")
	waiting := r.place()
	r.until("the command is in Kafka", 20*time.Second, func() bool { return r.sent(waiting) > 0 })
	r.knows()
	if _, err := r.admin.DeleteTopic(t.Context(), "stock"); err != nil {
		t.Fatal(err)
	}
	var before string // what the table says when the connector is stopped
	r.worker.watch(func(_, path string) {
		if path == "/connectors/orderdb/stop" {
			_ = r.DB("orderdb").QueryRow(context.Background(), `SELECT act || ' ' || outcome FROM supervisor_acts ORDER BY id DESC LIMIT 1`).Scan(&before)
		}
	})
	defer r.worker.watch(nil)
	// The supervisor makes the topic, with the partitions that it must have.
	r.act(supervisor.MakeTopics, 20*time.Second)
	r.Restart("stock-service")
	begin := time.Now()
	r.until("the order settles", 60*time.Second, func() bool { return r.settled(waiting) })
	t.Logf("lost by Kafka: the order settled after %s", time.Since(begin).Round(10*time.Millisecond))
	r.until("the resend is done", 20*time.Second, func() bool { a := r.acts()[0]; return a.Act == supervisor.Resend && a.Outcome == "done" })
	r.worker.watch(nil)
	if r.sent(old) == 0 { // others than our services may not have read it
		t.Error("what the inboxes know was not sent again")
	}
	if before != "resend begun" {
		t.Errorf("before the connector was stopped, the last row was %q", before)
	}
}

// losesTheLock: two connectors are missing, and the lock is taken away while the first is registered.
func (r *rig) losesTheLock(t *testing.T) {
	thief, err := r.DB("orderdb").Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Release()
	var mu sync.Mutex
	var registered []string
	var failed error
	r.worker.watch(func(method, path string) {
		mu.Lock()
		defer mu.Unlock()
		if method != http.MethodPut {
			return
		}
		registered = append(registered, path)
		if len(registered) > 1 {
			return
		}
		if _, failed = thief.Exec(context.Background(), `SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
			WHERE locktype = 'advisory' AND granted AND classid = ($1::bigint >> 32)::int4::oid AND objid = ($1::bigint & 4294967295)::oid`, supervisor.LockKey); failed == nil {
			_, failed = thief.Exec(context.Background(), `SELECT pg_advisory_lock($1)`, supervisor.LockKey)
		}
	})
	defer r.worker.watch(nil)
	for _, name := range []string{"orderdb", "stockdb"} {
		if err := r.connect.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	r.until("it acts no more", 30*time.Second, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return failed != nil || len(registered) > 0 && !r.now.Leads()
	})
	time.Sleep(3 * time.Second) // some rounds
	mu.Lock()
	if failed != nil || len(registered) != 1 {
		t.Errorf("%v, %v", failed, registered)
	}
	mu.Unlock()
	if _, err := thief.Exec(t.Context(), `SELECT pg_advisory_unlock($1)`, supervisor.LockKey); err != nil {
		t.Fatal(err)
	}
	r.settles("after the lock is free again", 40*time.Second)
}

// stuckTask: a reader that never says anything takes the slot. Connect says RUNNING.
func (r *rig) stuckTask(t *testing.T) {
	var silent *reader
	r.until("the silent reader has the slot", 20*time.Second, func() bool { // the connector comes back at once, and is faster at times
		r.exec(`SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = 'outbox_orderdb' AND active_pid IS NOT NULL`)
		var err error
		silent, err = newReader(t.Context(), r.UserURL(provision.CDC, "orderdb"), "outbox_orderdb")
		return err == nil
	})
	defer silent.close()
	waiting := r.place()
	if act := r.act(supervisor.EndSender, 40*time.Second); act.Outcome != "done" || !strings.Contains(act.Reason, "said nothing") {
		t.Errorf("%+v", act)
	}
	begin := time.Now()
	r.until("the order settles", 30*time.Second, func() bool { return r.settled(waiting) })
	t.Logf("stuck task: the order settled %s after its reader was ended", time.Since(begin).Round(10*time.Millisecond))
	if st, err := r.connect.Status(t.Context(), "orderdb"); err != nil || st.Connector.State != "RUNNING" {
		t.Errorf("%+v, %v", st, err)
	}
}

// unfinishedResend: a supervisor that ended in the middle of a resend has left a row, and a stopped connector. The next one
// resumes it; it resumes none that somebody else has stopped.
func (r *rig) unfinishedResend() (stop func()) {
	t := r.t
	for _, name := range []string{"orderdb", "stockdb"} {
		if err := r.connect.Stop(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	r.exec(`INSERT INTO supervisor_acts (instance, connector, act, reason, outcome) VALUES ('killed', 'orderdb', 'resend', 'x', 'begun')`)
	stop = r.start(r.config)
	if act := r.act(supervisor.Resume, 20*time.Second); act.Outcome != "done" {
		t.Errorf("%+v", act)
	}
	r.until("its row is settled", 10*time.Second, func() bool {
		return slices.ContainsFunc(r.acts(), func(a supervisor.Done) bool {
			return a.Instance == "killed" && a.Outcome == "not finished: the connector was resumed"
		})
	})
	r.until("the connector runs", 20*time.Second, func() bool {
		st, err := r.connect.Status(t.Context(), "orderdb")
		return err == nil && st.Connector.State == "RUNNING"
	})
	if err := r.connect.Stop(t.Context(), "orderdb"); err != nil { // by somebody
		t.Fatal(err)
	}
	before := len(r.acts())
	time.Sleep(8 * time.Second) // some rounds, and longer than the pause between two acts
	for _, name := range []string{"orderdb", "stockdb"} {
		if st, err := r.connect.Status(t.Context(), name); err != nil || st.Connector.State != "STOPPED" {
			t.Errorf("%+v, %v", st, err)
		}
		if err := r.connect.Resume(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if acts := r.acts(); len(acts) != before {
		t.Errorf("%+v", acts[:len(acts)-before])
	}
	r.settles("resumed", 30*time.Second)
	return stop
}

// told compares the acts of the supervisor that runs: in its log, in its metrics, in its rows.
func (r *rig) told(t *testing.T) {
	type act struct{ connector, kind, outcome string }
	count := func(all map[act]int, connector, kind, outcome string, n int) {
		if outcome != "done" {
			outcome = "failed"
		}
		all[act{connector, kind, outcome}] += n
	}
	var lines, metrics, rows map[act]int
	same := func() bool {
		lines, metrics, rows = map[act]int{}, map[act]int{}, map[act]int{}
		for _, l := range r.log.lines() {
			if l.Act != "" && l.Outcome != "" {
				count(lines, l.Connector, l.Act, l.Outcome, 1)
			}
		}
		for _, a := range r.acts() {
			if a.Instance == fmt.Sprint("test ", r.started) {
				count(rows, a.Connector, string(a.Act), a.Outcome, 1)
			}
		}
		families, err := r.now.Registry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() != "supervisor_acts_total" {
					continue
				}
				label := map[string]string{}
				for _, l := range m.GetLabel() {
					label[l.GetName()] = l.GetValue()
				}
				count(metrics, label["connector"], label["act"], label["outcome"], int(m.GetCounter().GetValue()))
			}
		}
		return maps.Equal(lines, metrics) && maps.Equal(lines, rows)
	}
	for end := time.Now().Add(10 * time.Second); !same() && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		continue
	}
	if !same() || lines[act{"orderdb", "resend", "done"}] == 0 || lines[act{"orderdb", "end_sender", "done"}] == 0 {
		t.Errorf("lines   %v\nmetrics %v\nrows    %v", lines, metrics, rows)
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
