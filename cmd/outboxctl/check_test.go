package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/stacktest"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ctl runs outboxctl, and returns what it prints.
func ctl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// setTopic changes a setting of a topic; an empty value is the brokers' default.
func setTopic(t *testing.T, topic, key, value string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(stacktest.Brokers(t)...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	change := kadm.AlterConfig{Op: kadm.SetConfig, Name: key, Value: &value}
	if value == "" {
		change.Op = kadm.DeleteConfig
	}
	set, err := kadm.NewClient(client).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{change}, topic)
	if err != nil || set[0].Err != nil {
		t.Fatal(err, set)
	}
}

// portOf is that of a URL of PostgreSQL.
func portOf(t *testing.T, url string) string {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(int(config.Port))
}

// order-service has a PostgreSQL of its own, with a single slot; the other two share one. The
// commands know all three by their variables, or one server by ADMIN_DATABASE_URL, or the local stack.
func TestWhereTheDatabasesAre(t *testing.T) {
	servers := map[string]*devstack.Stack{}
	for _, name := range []string{"own", "shared"} {
		s, err := stacktest.New(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if err := s.UpOnly(t.Context(), devstack.Postgres); err != nil {
			t.Fatal(err)
		}
		servers[name] = s
	}
	own, shared := servers["own"], servers["shared"]
	execute(t, own.PostgresURL("postgres"), `ALTER SYSTEM SET max_replication_slots = 1`)
	if err := own.Stop(t.Context(), devstack.Postgres); err != nil {
		t.Fatal(err)
	}
	if err := own.UpOnly(t.Context(), devstack.Postgres); err != nil {
		t.Fatal(err)
	}
	plugin := "io.debezium.connector.postgresql.PostgresConnector"
	worker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`[{"class":"` + plugin + `"}]`))
	}))
	defer worker.Close()

	for _, name := range []string{"ADMIN_DATABASE_URL", "ORDER_DATABASE_URL", "STOCK_DATABASE_URL", "PAYMENT_DATABASE_URL", "KAFKA_BROKERS", "TOPIC_RETENTION"} {
		t.Setenv(name, "")
	}
	t.Setenv("CONNECT_URL", worker.URL)

	// The local stack: all three on one server, found by its ports.
	_, kafka, _ := strings.Cut(stacktest.Brokers(t)[0], ":")
	t.Setenv("STACK_DIR", t.TempDir())
	t.Setenv("POSTGRES_PORT", portOf(t, shared.PostgresURL("postgres")))
	t.Setenv("KAFKA_PORT", kafka)
	if _, err := ctl(t, "check"); err == nil || !strings.Contains(err.Error(), "database stockdb: run outboxctl provision") || !strings.Contains(err.Error(), "topic stock is missing") {
		t.Errorf("before it is provisioned: %v", err)
	}
	if _, err := ctl(t, "provision"); err != nil {
		t.Fatal(err)
	}
	if _, err := ctl(t, "check"); err != nil {
		t.Errorf("provisioned: %v", err)
	}

	// From here on the local stack is not there.
	t.Setenv("POSTGRES_PORT", "1")
	t.Setenv("KAFKA_PORT", "1")
	t.Setenv("KAFKA_BROKERS", stacktest.Brokers(t)[0])
	all := func() {
		t.Helper()
		for _, c := range [][2]string{{"check", ""}, {"slots", "outbox_paymentdb"}, {"saga stuck", "no order"}} {
			if out, err := ctl(t, strings.Fields(c[0])...); err != nil || !strings.Contains(out, c[1]) {
				t.Errorf("%s: %v: %s", c[0], err, out)
			}
		}
	}
	t.Setenv("ADMIN_DATABASE_URL", shared.PostgresURL("postgres"))
	all()

	t.Setenv("ADMIN_DATABASE_URL", own.PostgresURL("postgres"))
	if _, err := ctl(t, "provision", "--only", "orderdb"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ADMIN_DATABASE_URL", "postgres://127.0.0.1:1/postgres")
	t.Setenv("ORDER_DATABASE_URL", own.PostgresURL("orderdb"))
	t.Setenv("STOCK_DATABASE_URL", shared.PostgresURL("stockdb"))
	t.Setenv("PAYMENT_DATABASE_URL", shared.PostgresURL("paymentdb"))
	all()

	// Only the databases that are named count, where they are.
	execute(t, own.PostgresURL("orderdb"), `REVOKE SELECT ON outbox FROM cdc; SELECT pg_drop_replication_slot('outbox_orderdb')`)
	execute(t, shared.PostgresURL("orderdb"), `DROP PUBLICATION outbox_pub`)
	setTopic(t, "stock", "retention.ms", "864000000")
	setTopic(t, "payment", "cleanup.policy", "compact")
	setTopic(t, "order.dlt", "retention.ms", "-1") // no inbox has to remember it
	plugin = "another"
	_, err := ctl(t, "check")
	want := []string{
		"127.0.0.1:" + portOf(t, own.PostgresURL("postgres")) + ": database orderdb: the connectors' role cdc may not read the outbox",
		`topic "stock" keeps records for 240h0m0s (retention.ms=864000000), longer than TOPIC_RETENTION, 168h0m0s`,
		`topic "payment" has cleanup.policy=compact`,
		"does not have the Debezium plugin",
	}
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) || strings.Count(err.Error(), "\n") != len(want)-1 {
			t.Errorf("no %q, or more lines than %d:\n%v", w, len(want), err)
		}
	}
	if out, err := ctl(t, "slots"); err != nil || !strings.Contains(out, "missing") || strings.Count(out, "reserved") != 2 {
		t.Errorf("%v: %s", err, out)
	}

	execute(t, own.PostgresURL("orderdb"), `GRANT SELECT ON outbox TO cdc`)
	setTopic(t, "payment", "cleanup.policy", "")
	plugin = "io.debezium.connector.postgresql.PostgresConnector"
	t.Setenv("TOPIC_RETENTION", "240h")
	if _, err := ctl(t, "check"); err != nil {
		t.Errorf("mended: %v", err)
	}
	t.Setenv("TOPIC_RETENTION", "a week")
	if _, err := ctl(t, "check"); err == nil || !strings.Contains(err.Error(), `TOPIC_RETENTION is "a week"`) {
		t.Error(err)
	}
	t.Setenv("STOCK_DATABASE_URL", "postgres://x:secret@[/stockdb")
	if _, err := ctl(t, "check"); err == nil || !strings.Contains(err.Error(), "database stockdb: its URL cannot be read") || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}
