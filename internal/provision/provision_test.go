package provision_test

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

func databases() []provision.Database {
	own := fstest.MapFS{"000001_things.up.sql": {Data: []byte(`CREATE TABLE things (id bigserial PRIMARY KEY)`)}}
	var all []provision.Database
	for _, name := range []string{"orderdb", "stockdb", "paymentdb"} {
		all = append(all, provision.Database{Name: name, Role: "service_of_" + name, Password: "it's secret", Migrations: []provision.Migrations{
			{FS: outbox.Migrations, Path: "migrations", Table: outbox.MigrationsTable},
			{FS: inbox.Migrations, Path: "migrations", Table: inbox.MigrationsTable},
			{FS: fs.FS(own), Path: ".", Table: "schema_migrations"},
		}})
	}
	return all
}

// nobody has a password: the local stack trusts loopback.
func nobody(string) string { return "" }

// stack starts everything and registers the connectors that production uses.
func stack(t *testing.T) *devstack.Stack {
	t.Helper()
	s, err := stacktest.New("provision")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.Up(ctx); err != nil {
		t.Fatal(err)
	}
	topics := []provision.Topic{{Name: "made", Partitions: 6}, {Name: "other", Partitions: 6}}
	for _, d := range databases() {
		topics = append(topics, provision.HeartbeatTopic(d.Name))
	}
	for range 2 { // a second time changes nothing
		if err := provision.Postgres(ctx, s.PostgresURL("postgres"), nobody, databases()); err != nil {
			t.Fatal(err)
		}
		if err := provision.Topics(ctx, s.Brokers(), 1, topics...); err != nil {
			t.Fatal(err)
		}
	}
	files, err := connect.Files(filepath.Join(stacktest.Root(), "connectors"))
	if err != nil {
		t.Fatal(err)
	}
	client := connect.Client{URL: s.ConnectURL()}
	for _, f := range files {
		if err := client.Put(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		if err := client.WaitStreaming(ctx, f.Name, s.PostgresURL(f.Name), "outbox_"+f.Name); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestProvision(t *testing.T) {
	begin := time.Now()
	s := stack(t)
	t.Logf("stack with three streaming connectors: %.1f s", time.Since(begin).Seconds())
	t.Run("standbys get copies of the slots", func(t *testing.T) {
		conn, err := pgx.Connect(t.Context(), s.PostgresURL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		var all, copied int
		if err := conn.QueryRow(t.Context(), `SELECT count(*), count(*) FILTER (WHERE failover) FROM pg_replication_slots`).Scan(&all, &copied); err != nil || all == 0 || copied != all {
			t.Errorf("%d slots, %d for failover, %v", all, copied, err)
		}
	})
	t.Run("a row of the outbox becomes a record", func(t *testing.T) { recordOfARow(t, s) })
	t.Run("events of one aggregate keep the order of their commits", func(t *testing.T) { commitOrder(t, s) })
	t.Run("roles have no more than they need", func(t *testing.T) { rights(t, s) })
	t.Run("an older version leaves a later one's rights alone", func(t *testing.T) { laterRights(t, s) })
	t.Run("topics wait for their brokers", func(t *testing.T) { fewBrokers(t, s) })
	t.Run("a topic with other partitions is refused", func(t *testing.T) {
		err := provision.Topics(t.Context(), s.Brokers(), 1, provision.Topic{Name: "made", Partitions: 3})
		if err == nil || !strings.Contains(err.Error(), "has 6 partitions, it must have 3") {
			t.Error(err)
		}
	})
}

func consume(t *testing.T, s *devstack.Stack, topic string, n int) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var got []*kgo.Record
	for len(got) < n {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%s: %d records, want %d", topic, len(got), n)
		}
		got = append(got, fetches.Records()...)
	}
	return got
}

func recordOfARow(t *testing.T, s *devstack.Stack) {
	conn, err := pgx.Connect(t.Context(), s.PostgresURL("orderdb"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	ev := outbox.Event{ID: outbox.NewID(), Topic: "made", AggregateType: "thing", AggregateID: "thing-1", Type: "thing.made",
		Payload: []byte(`{"text":"ünï \"quoted\" \\ ","n":12345678901234567890}`), Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
	rolledBack := ev
	rolledBack.ID = outbox.NewID()
	_ = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if err := outbox.Write(t.Context(), tx, rolledBack); err != nil {
			t.Fatal(err)
		}
		return fmt.Errorf("never mind")
	})
	if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return outbox.Write(t.Context(), tx, ev) }); err != nil {
		t.Fatal(err)
	}
	var created time.Time
	if err := conn.QueryRow(t.Context(), `SELECT created_at FROM outbox WHERE id = $1`, ev.ID).Scan(&created); err != nil {
		t.Fatal(err)
	}
	got := consume(t, s, "made", 1)[0]
	headers := map[string]string{}
	for _, h := range got.Headers {
		headers[h.Key] = string(h.Value)
	}
	want := map[string]string{"id": ev.ID.String(), "type": ev.Type, "traceparent": ev.Traceparent}
	if string(got.Key) != ev.AggregateID || string(got.Value) != string(ev.Payload) || fmt.Sprint(headers) != fmt.Sprint(want) {
		t.Errorf("record %s %s %v\nwant %s %s %v", got.Key, got.Value, headers, ev.AggregateID, ev.Payload, want)
	}
	if got.Timestamp.UnixMilli() != created.UnixMilli() {
		t.Errorf("timestamp %v, the row's created_at is %v", got.Timestamp.UTC(), created)
	}
}

// Writers of one aggregate take turns by a row lock, in transactions of different
// length: the records come in the order of the commits, which is that of the counter.
func commitOrder(t *testing.T, s *devstack.Stack) {
	const writers, each = 8, 40
	setup, err := pgx.Connect(t.Context(), s.PostgresURL("stockdb"))
	if err != nil {
		t.Fatal(err)
	}
	defer setup.Close(t.Context())
	if _, err := setup.Exec(t.Context(), `CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, writers)
	for w := range writers {
		go func() {
			conn, err := pgx.Connect(t.Context(), s.PostgresURL("stockdb"))
			if err != nil {
				done <- err
				return
			}
			defer conn.Close(t.Context())
			for i := range each {
				id := outbox.NewID() // made before the lock: ids do not follow the commits
				err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
					var n int
					if err := tx.QueryRow(t.Context(), `UPDATE counter SET n = n + 1 RETURNING n`).Scan(&n); err != nil {
						return err
					}
					if (w+i)%5 == 0 {
						time.Sleep(2 * time.Millisecond)
					}
					return outbox.Write(t.Context(), tx, outbox.Event{ID: id, Topic: "other", AggregateType: "thing", AggregateID: "one", Type: "x", Payload: fmt.Append(nil, n)})
				})
				if err != nil {
					break
				}
			}
			done <- err
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range consume(t, s, "other", writers*each) {
		if string(r.Value) != fmt.Sprint(i+1) {
			t.Fatalf("record %d is %s: not the order of the commits", i+1, r.Value)
		}
	}
}

// execAs runs a statement as a role.
func execAs(t *testing.T, s *devstack.Stack, role, database, statement string) error {
	conn, err := pgx.Connect(t.Context(), s.UserURL(role, database))
	if err != nil {
		return err
	}
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), statement)
	return err
}

func laterRights(t *testing.T, s *devstack.Stack) {
	if err := execAs(t, s, "postgres", "stockdb", `UPDATE `+outbox.MigrationsTable+` SET version = 999; CREATE TABLE later (); GRANT SELECT ON later TO supervisor`); err != nil {
		t.Fatal(err)
	}
	all := databases()
	for _, d := range all { // what is not the later version's goes on
		d.Migrations[2].FS.(fstest.MapFS)["000002_more.up.sql"] = &fstest.MapFile{Data: []byte(`CREATE TABLE more (id bigserial PRIMARY KEY)`)}
	}
	if err := provision.Postgres(t.Context(), s.PostgresURL("postgres"), nobody, all); err != nil {
		t.Fatal(err)
	}
	if err := execAs(t, s, "service_of_stockdb", "stockdb", `INSERT INTO more DEFAULT VALUES`); err != nil {
		t.Error(err)
	}
	if err := execAs(t, s, "supervisor", "stockdb", `SELECT FROM later`); err != nil {
		t.Error(err)
	}
	if err := execAs(t, s, "service_of_stockdb", "stockdb", `INSERT INTO later DEFAULT VALUES`); err == nil {
		t.Error("the service may write what the later version has not let it write")
	}
}

func rights(t *testing.T, s *devstack.Stack) {
	for _, role := range []string{"service_of_orderdb", "cdc"} { // what anybody may ask
		conn, err := pgx.Connect(t.Context(), s.UserURL(role, "orderdb"))
		if err != nil {
			t.Fatal(err)
		}
		if err := outbox.CheckPublication(t.Context(), conn); err != nil {
			t.Errorf("%s: %v", role, err)
		}
		conn.Close(t.Context())
	}
	const insert = `INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload) VALUES ('ffffffff-ffff-7fff-bfff-ffffffffffff', 't', 'a', 'a', 'a', '')`
	for _, c := range []struct {
		role, database, statement string
		refused                   bool
	}{
		{"service_of_orderdb", "orderdb", `INSERT INTO things DEFAULT VALUES`, false},
		{"service_of_orderdb", "orderdb", `SELECT event_partitions_prepare('outbox', 1, 8)`, false},
		{"service_of_orderdb", "orderdb", `SELECT event_partitions_drop('outbox', interval '3 days')`, false},
		{"service_of_orderdb", "orderdb", `CREATE TEMP TABLE event_partitions_sealed (partition text); SELECT event_partitions_drop('outbox', interval '3 days')`, false},
		{"service_of_orderdb", "orderdb", `DROP TABLE outbox_` + time.Now().UTC().Format("20060102"), true},
		{"service_of_orderdb", "orderdb", `INSERT INTO event_partitions_sealed VALUES ('outbox_20200101', '0/0', '', now())`, true},
		{"service_of_orderdb", "orderdb", `UPDATE event_partitions_dropped SET until = '-infinity'`, true},
		{"service_of_orderdb", "orderdb", `INSERT INTO outbox_confirmed (slot, topics, topic_ids, since, before, history, looked, until) VALUES ('outbox_orderdb', '{}', '{}', '{}', '9', 'x', now(), 'infinity')`, true},
		{"service_of_orderdb", "orderdb", `SELECT outbox_confirm('outbox_orderdb', '{}', '{}', '{}', '9', 'x', now(), '1 h')`, true},
		{"service_of_orderdb", "orderdb", `SELECT * FROM outbox`, false},
		{"service_of_orderdb", "orderdb", `UPDATE outbox SET topic = 'x'`, true},
		{"service_of_orderdb", "orderdb", `DELETE FROM outbox`, true},
		{"service_of_orderdb", "orderdb", `DELETE FROM outbox_` + time.Now().UTC().Format("20060102"), true},
		{"service_of_orderdb", "orderdb", `INSERT INTO inbox (event_id) VALUES (uuidv7())`, false},
		{"service_of_orderdb", "orderdb", `DELETE FROM inbox`, false},
		{"service_of_orderdb", "orderdb", `UPDATE inbox SET received_at = now()`, true},
		{"service_of_orderdb", "orderdb", `TRUNCATE outbox`, true},
		{"service_of_orderdb", "orderdb", `SELECT pg_drop_replication_slot('outbox_orderdb')`, true},
		{"service_of_orderdb", "orderdb", `CREATE TABLE mine ()`, true},
		{"service_of_orderdb", "orderdb", `UPDATE schema_migrations SET version = 0`, true},
		{"service_of_orderdb", "stockdb", `SELECT 1`, true},
		{"cdc", "orderdb", `SELECT * FROM outbox`, false},
		{"cdc", "orderdb", `SELECT outbox_confirmed_topics('outbox_orderdb')`, false},
		{"cdc", "orderdb", `SELECT outbox_confirm('outbox_orderdb', '{}', '{}', '{}', '9', 'x', now(), '1 h')`, true},
		{"cdc", "orderdb", `SELECT * FROM things`, true},
		{"cdc", "orderdb", insert, true},
		{"cdc", "orderdb", `SELECT * FROM inbox`, true},
		{"cdc", "postgres", `CREATE TABLE x ()`, true},
		{"supervisor", "orderdb", `SELECT FROM outbox, inbox, outbox_confirmed`, false},
		{"supervisor", "orderdb", `SELECT outbox_confirm('outbox_orderdb', '{}', '{}', '{}', '9', 'x', now(), '1 h')`, false},
		{"supervisor", "orderdb", `SELECT backend_start FROM pg_stat_activity WHERE pid <> pg_backend_pid()`, false},
		{"supervisor", "orderdb", `INSERT INTO outbox_confirmed (slot, topics, topic_ids, since, before, history, looked, until) VALUES ('outbox_orderdb', '{}', '{}', '{}', '9', 'x', now(), 'infinity')`, true},
		{"supervisor", "orderdb", insert, true},
		{"supervisor", "orderdb", `INSERT INTO inbox (event_id) VALUES (uuidv7())`, true},
		{"supervisor", "orderdb", `SELECT * FROM things`, true},
	} {
		err := execAs(t, s, c.role, c.database, c.statement)
		if refused := err != nil && slices.ContainsFunc([]string{"42501", "permission denied"}, func(w string) bool { return strings.Contains(err.Error(), w) }); refused != c.refused || err != nil && !refused {
			t.Errorf("%s in %s: %s: %v, want refused %t", c.role, c.database, c.statement, err, c.refused)
		}
	}
}
