package connect_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// One worker serves the tests, one after the other: they break connectors and mend them.
func TestWorker(t *testing.T) {
	s, err := stacktest.New("connect")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if err := system.Provision(ctx, s.PostgresURL("postgres"), nil, s.Brokers(), 1); err != nil {
		t.Fatal(err)
	}
	client := connect.Client{URL: s.ConnectURL()}
	t.Run("a connector that is not there", func(t *testing.T) { notThere(t, client) })
	t.Run("settings that are wrong", func(t *testing.T) { wrongSettings(t, client) })
	t.Run("a worker without the plugin", func(t *testing.T) { withoutPlugin(t, s) })
	t.Run("the script", func(t *testing.T) { script(t, s, client) })
	t.Run("nothing flows", func(t *testing.T) { nothingFlows(t, s, client) })
	t.Run("a slot that is gone", func(t *testing.T) { slotGone(t, s, client) })
	t.Run("delete", func(t *testing.T) {
		if err := client.Delete(t.Context(), "orderdb"); err != nil {
			t.Fatal(err)
		}
		until(t, "it is gone", func() bool {
			_, err := client.Status(t.Context(), "orderdb")
			return errors.Is(err, connect.ErrNotFound)
		})
	})
}

func notThere(t *testing.T, client connect.Client) {
	if _, err := client.Status(t.Context(), "orderdb"); !errors.Is(err, connect.ErrNotFound) {
		t.Error(err)
	}
	if err := client.Delete(t.Context(), "orderdb"); !errors.Is(err, connect.ErrNotFound) {
		t.Error(err)
	}
	if err := client.Restart(t.Context(), "orderdb", true); !errors.Is(err, connect.ErrNotFound) {
		t.Error(err)
	}
}

// file is connectors/orderdb.json with one setting changed.
func file(t *testing.T, key, value string) connect.File {
	t.Helper()
	files, err := connect.Files(filepath.Join(stacktest.Root(), "connectors"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name != "orderdb" {
			continue
		}
		settings := map[string]string{}
		if err := json.Unmarshal(f.Config, &settings); err != nil {
			t.Fatal(err)
		}
		if key != "" {
			settings[key] = value
		}
		if f.Config, err = json.Marshal(settings); err != nil {
			t.Fatal(err)
		}
		return f
	}
	t.Fatal("connectors/orderdb.json is gone")
	return connect.File{}
}

// Connect checks the settings of a connector before it takes them: a database that
// cannot be reached is refused at once.
func wrongSettings(t *testing.T, client connect.Client) {
	for _, c := range []struct{ key, value, want string }{
		{"database.user", "nobody_knows", "nobody_knows"},
		{"slot.name", "Not-A-Slot", "slot.name"},
	} {
		err := client.Put(t.Context(), file(t, c.key, c.value))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "400") {
			t.Errorf("%s=%s: %v, want %q in it", c.key, c.value, err, c.want)
		}
	}
	// As on a worker without the plugin.
	err := client.Put(t.Context(), file(t, "connector.class", "io.debezium.connector.nosql.NoConnector"))
	if err == nil || !strings.Contains(err.Error(), "does not have the Debezium plugin") {
		t.Error(err)
	}
}

// script runs scripts/register-connectors.sh as up.sh does: it must be idempotent, and
// say what is wrong with a connector in the connector's own words.
func script(t *testing.T, s *devstack.Stack, client connect.Client) {
	ports := strings.Split(s.Brokers()[0], ":")
	pg, err := pgx.ParseConfig(s.PostgresURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	// Another program, as an older one would be: the script builds that of the checkout.
	build := exec.Command("go", "build", "-o", filepath.Join(s.Dir(), "bin", "outboxctl"), "./order-service")
	build.Dir = stacktest.Root()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	register := func(env ...string) (string, error) {
		cmd := exec.Command(filepath.Join(stacktest.Root(), "scripts", "register-connectors.sh"))
		cmd.Env = append(os.Environ(), "STACK_DIR="+s.Dir(), "CONNECT_URL="+s.ConnectURL(), "KAFKA_PORT="+ports[1],
			fmt.Sprintf("POSTGRES_PORT=%d", pg.Port))
		cmd.Env = append(cmd.Env, env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for range 2 {
		out, err := register()
		if err != nil || strings.Count(out, "streams") != 3 {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, name := range []string{"orderdb", "stockdb", "paymentdb"} {
		if err := client.WaitStreaming(t.Context(), name, s.PostgresURL(name), "outbox_"+name); err != nil {
			t.Error(err)
		}
	}

	// A record that the broker refuses fails the task. Once the reason is gone the task
	// is FAILED all the same, with settings that do not change: it must be restarted.
	limit(t, s, "payment", "100")
	admin(t, s, "orderdb", `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload)
		VALUES (uuidv7(), 'payment', 'order', 'o1', 'test', repeat('x', 1000))`)
	until(t, "the task fails", func() bool {
		st, err := client.Status(t.Context(), "orderdb")
		return err == nil && len(st.Tasks) == 1 && st.Tasks[0].State == "FAILED"
	})
	err = client.WaitStreaming(t.Context(), "orderdb", s.PostgresURL("orderdb"), "outbox_orderdb")
	if err == nil || !strings.Contains(err.Error(), "RecordTooLargeException") {
		t.Errorf("wait: %v", err)
	}
	if out, err := register(); err == nil || !strings.Contains(out, "connector orderdb failed: ") || !strings.Contains(out, "RecordTooLargeException") {
		t.Errorf("with a record too large: %v: %s", err, out)
	}
	if err := registerWithoutAnswer(t, s, "orderdb"); err == nil || !strings.Contains(err.Error(), "RecordTooLargeException") {
		t.Errorf("with a record too large, and no answer to the restart: %v", err)
	}
	limit(t, s, "payment", "1048588")
	if out, err := register(); err != nil || strings.Count(out, "streams") != 3 {
		t.Errorf("after that: %v: %s", err, out)
	}
	if !arrived(t, s, "payment", "o1") {
		t.Error("the record that was too large has not arrived")
	}
	// A slot that was dropped, and nobody but the script to mend it: the connector says RUNNING.
	admin(t, s, "orderdb", `DO $$ BEGIN
		PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'outbox_orderdb';
		WHILE EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'outbox_orderdb' AND active) LOOP PERFORM pg_sleep(0.01); END LOOP;
		PERFORM pg_drop_replication_slot('outbox_orderdb');
	END $$`)
	if out, err := register(); err != nil || strings.Count(out, "streams") != 3 {
		t.Errorf("without its slot: %v: %s", err, out)
	}

	// A role without its right: the connector tries for ever, and its status says RUNNING. Connect
	// itself tries the settings when they are put.
	admin(t, s, "orderdb", `REVOKE CONNECT ON DATABASE orderdb FROM cdc`)
	if err := client.Restart(t.Context(), "orderdb", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the slot is left", func() bool { return !active(t, s) })
	if out, err := register(); err == nil || !strings.Contains(out, "permission denied for database") {
		t.Errorf("without its right: %v: %s", err, out)
	}
	admin(t, s, "orderdb", `GRANT CONNECT ON DATABASE orderdb TO cdc`)
	if out, err := register(); err != nil || strings.Count(out, "streams") != 3 {
		t.Errorf("with its right again: %v: %s", err, out)
	}
	for _, c := range []struct{ break_, mend, want string }{
		{`ALTER ROLE cdc NOREPLICATION`, `ALTER ROLE cdc REPLICATION`, "role cdc may not log in and replicate"},
		{`ALTER PUBLICATION outbox_pub SET (publish_via_partition_root = false)`, `ALTER PUBLICATION outbox_pub SET (publish_via_partition_root = true)`, "database orderdb: the publication outbox_pub must publish"},
		{`ALTER PUBLICATION outbox_pub RENAME TO other`, `ALTER PUBLICATION other RENAME TO outbox_pub`, "database orderdb: the publication outbox_pub is missing"},
	} {
		admin(t, s, "orderdb", c.break_)
		if out, err := register(); err == nil || !strings.Contains(out, c.want) || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: %v: %s", c.break_, err, out)
		}
		admin(t, s, "orderdb", c.mend)
	}
	if err := client.CheckPlugin(t.Context()); err != nil {
		t.Error(err)
	}
	if out, err := register("CONNECT_URL=http://127.0.0.1:1"); err == nil || !strings.Contains(out, "does not answer") || strings.Count(out, "\n") != 1 {
		t.Errorf("without a worker: %v: %s", err, out)
	}
}

// registerWithoutAnswer registers a connector by way of a proxy that loses the worker's first answer to a restart.
func registerWithoutAnswer(t *testing.T, s *devstack.Stack, name string) error {
	t.Helper()
	worker, err := url.Parse(s.ConnectURL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(worker)
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	var lost atomic.Bool
	proxy.ModifyResponse = func(r *http.Response) error {
		if strings.HasSuffix(r.Request.URL.Path, "/restart") && !lost.Swap(true) {
			return errors.New("lost")
		}
		return nil
	}
	lossy := httptest.NewServer(proxy)
	defer lossy.Close()
	files, err := connect.Files(filepath.Join(stacktest.Root(), "connectors"))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(files, func(f connect.File) bool { return f.Name == name })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = connect.Client{URL: lossy.URL}.Register(ctx, files[i], s.PostgresURL(name), "outbox_"+name)
	if !lost.Load() {
		t.Error("nothing was restarted")
	}
	return err
}

// nothingFlows: the connector is RUNNING and reads its slot, and its producer waits for a topic that is not
// there. The health check of the worker's container must see that, by the heartbeats.
func nothingFlows(t *testing.T, s *devstack.Stack, client connect.Client) {
	check := func(databases ...string) error {
		cmd := exec.CommandContext(t.Context(), filepath.Join(s.Dir(), "bin", "outboxctl"), "connectors", "check", "--timeout", "3s",
			"--dir", filepath.Join(stacktest.Root(), "connectors"))
		cmd.Env = append(os.Environ(), "CONNECT_URL="+s.ConnectURL(), "CONNECTOR_DATABASE_URL="+s.PostgresURL("postgres"), "KAFKA_BROKERS="+strings.Join(s.Brokers(), ","))
		cmd.Env = append(cmd.Env, databases...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	until(t, "all flows", func() bool { return check() == nil })
	// Each service has a PostgreSQL of its own.
	own := []string{"CONNECTOR_DATABASE_URL=", "ORDER_DATABASE_URL=" + s.PostgresURL("orderdb"), "STOCK_DATABASE_URL=" + s.PostgresURL("stockdb")}
	if err := check(append(own, "PAYMENT_DATABASE_URL="+s.PostgresURL("paymentdb"))...); err != nil {
		t.Error(err)
	}
	if err := check(own...); err == nil || !strings.Contains(err.Error(), "PAYMENT_DATABASE_URL: it is not set") {
		t.Error("without one of them:", err)
	}
	kafka, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	if gone, err := kadm.NewClient(kafka).DeleteTopics(t.Context(), "stock"); err != nil || gone.Error() != nil {
		t.Fatal(err, gone)
	}
	begin := time.Now()
	admin(t, s, "orderdb", `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES (uuidv7(), 'stock', 'order', 'o2', 'test', '{}')`)
	until(t, "the check says what does not flow", func() bool {
		time.Sleep(300 * time.Millisecond) // each check is a process
		err = check()
		return err != nil && strings.Contains(err.Error(), "connector orderdb has sent no heartbeat for ")
	})
	t.Logf("found %.1f s after the event: %v", time.Since(begin).Seconds(), err)
	if err := client.WaitStreaming(t.Context(), "orderdb", s.PostgresURL("orderdb"), "outbox_orderdb"); err != nil {
		t.Error("Connect and the slot do not say that all is well:", err)
	}
	if err := provision.Topics(t.Context(), s.Brokers(), 1, system.Topics()...); err != nil {
		t.Fatal(err)
	}
	if !arrived(t, s, "stock", "o2") {
		t.Error("the event has not arrived")
	}
	until(t, "all flows again", func() bool { err = check(); return err == nil })
}

// slotGone: Connect says RUNNING; the slot tells the truth.
func slotGone(t *testing.T, s *devstack.Stack, client connect.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := client.WaitStreaming(ctx, "orderdb", s.PostgresURL("orderdb"), "no_such_slot")
	if err == nil || !strings.Contains(err.Error(), "no_such_slot is not active") || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	var asked atomic.Bool
	hangs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Swap(true) {
			<-r.Context().Done() // when the time is over
			return
		}
		_, _ = w.Write([]byte(`{"connector": {"state": "RUNNING"}, "tasks": [{"state": "RUNNING"}]}`))
	}))
	defer hangs.Close()
	ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err = connect.Client{URL: hangs.URL}.WaitStreaming(ctx, "orderdb", s.PostgresURL("orderdb"), "no_such_slot")
	if err == nil || !strings.Contains(err.Error(), "no_such_slot is not active") {
		t.Error("what is missing is not said after the time was over during a question:", err)
	}
}

// limit bounds the size of a topic's records.
func limit(t *testing.T, s *devstack.Stack, topic, bytes string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	done, err := kadm.NewClient(client).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &bytes}}, topic)
	if err != nil || done[0].Err != nil {
		t.Fatal(err, done)
	}
}

// arrived waits for a record with a key.
func arrived(t *testing.T, s *devstack.Stack, topic, key string) bool {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		for _, r := range client.PollFetches(ctx).Records() {
			if string(r.Key) == key {
				return true
			}
		}
	}
	return false
}

func active(t *testing.T, s *devstack.Stack) (is bool) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.PostgresURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), `SELECT active FROM pg_replication_slots WHERE slot_name = 'outbox_orderdb'`).Scan(&is); err != nil {
		t.Fatal(err)
	}
	return is
}

func admin(t *testing.T, s *devstack.Stack, database, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.PostgresURL(database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 60 s: %s", what)
		}
	}
}

func TestNoWorker(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := connect.Client{URL: "http://127.0.0.1:1"}.Status(ctx, "orderdb")
	if err == nil || !strings.Contains(err.Error(), "no answer of Kafka Connect: start it, or set CONNECT_URL") {
		t.Error(err)
	}
}

// A worker answers 409 while it rebalances. That passes, or the context ends.
func TestRebalance(t *testing.T) {
	answers := 0
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if answers++; answers < 3 {
			w.WriteHeader(http.StatusConflict)
			return
		}
		fmt.Fprint(w, `{"name":"orderdb","connector":{"state":"RUNNING"},"tasks":[{"id":0,"state":"RUNNING"}]}`)
	})
	st, err := connect.Client{URL: url}.Status(t.Context(), "orderdb")
	if err != nil || len(st.Tasks) != 1 || answers != 3 {
		t.Errorf("%+v, %v after %d answers", st, err, answers)
	}
	busy := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) })
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	if _, err := (connect.Client{URL: busy}).Status(ctx, "orderdb"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestAVariableThatTheWorkerLacksIsNamed(t *testing.T) {
	for setting, kind := range map[string]string{"poll.interval.ms": "A long", "max.batch.size": "An integer"} {
		url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprintf(w, `{"message": "The '%s' value is invalid: %s value is expected"}`, setting, kind)
		})
		_, err := (connect.Client{URL: url}).Status(t.Context(), "orderdb")
		if err == nil || !strings.Contains(err.Error(), kind+" value is expected; set CDC_POLL_INTERVAL_MS=20 and CDC_MAX_BATCH_SIZE=1 in the environment of every Connect worker, or start them by outboxctl connectors worker") {
			t.Error(err)
		}
	}
}

func serve(t *testing.T, handler http.HandlerFunc) (url string) {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestCause(t *testing.T) {
	trace := "org.apache.kafka.connect.errors.ConnectException: outer\n\tat a.b.C.d(C.java:1)\nCaused by: java.lang.X: middle\n\tat e.f(G.java:2)\nCaused by: java.lang.Y: the reason\n\tat h.i(J.java:3)\n"
	if got := (connect.State{Trace: trace}).Cause(); got != "java.lang.Y: the reason" {
		t.Errorf("%q", got)
	}
	if got := (connect.State{Trace: "java.lang.X: alone\n\tat a"}).Cause(); got != "java.lang.X: alone" {
		t.Errorf("%q", got)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := connect.Files(dir); err == nil {
		t.Error("an empty folder is fine?")
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := connect.Files(dir); err == nil || !strings.Contains(err.Error(), "bad.json is not JSON") {
		t.Error(err)
	}
}
