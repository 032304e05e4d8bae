package service_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/service"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A bad setting is the operator's to mend: exit code 2, one line that says what to do. A fault is not.
func TestBadSettingsExitWith2(t *testing.T) {
	brokers := stacktest.Brokers(t)
	good := stacktest.Database(t, system.SharedMigrations()...)
	altered := func(statement string) string {
		url := stacktest.Database(t, system.SharedMigrations()...)
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
		return url
	}
	topic := func(key, value string) string {
		name := stacktest.Topic(t, 2)
		if key != "" {
			client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			set, err := kadm.NewClient(client).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: key, Value: &value}}, name)
			if err != nil || set[0].Err != nil {
				t.Fatal(err, set)
			}
		}
		return name
	}
	for name, c := range map[string]struct {
		url, topic, env string
		partitions      int
		want            string
		fault           bool
	}{
		"no publication":       {url: altered(`DROP PUBLICATION outbox_pub`), want: "CREATE PUBLICATION outbox_pub FOR TABLE outbox"},
		"not by its root":      {url: altered(`ALTER PUBLICATION outbox_pub SET (publish_via_partition_root = false)`), want: "ALTER PUBLICATION outbox_pub SET (publish = 'insert', publish_via_partition_root = true)"},
		"updates only":         {url: altered(`ALTER PUBLICATION outbox_pub SET (publish = 'update')`), want: "must publish inserts"},
		"another table":        {url: altered(`ALTER PUBLICATION outbox_pub SET TABLE inbox`), want: "ALTER PUBLICATION outbox_pub ADD TABLE outbox"},
		"another schema's":     {url: altered(`CREATE SCHEMA other; CREATE TABLE other.outbox (id int); ALTER PUBLICATION outbox_pub SET TABLE other.outbox`), want: "ALTER PUBLICATION outbox_pub ADD TABLE outbox"},
		"other partitions":     {partitions: 6, want: "has 2 partitions, it must have 6"},
		"records kept longer":  {topic: topic("retention.ms", "864000000"), want: "keeps records for 240h0m0s (retention.ms=864000000), longer than TOPIC_RETENTION, 168h0m0s"},
		"records kept forever": {topic: topic("retention.ms", "-1"), want: "keeps records for ever"},
		"compacted":            {topic: topic("cleanup.policy", "compact"), want: "cleanup.policy=compact"},
		"it is told less":      {env: "TOPIC_RETENTION=100h", want: "longer than TOPIC_RETENTION, 100h0m0s"},
		"the inbox forgets":    {env: "INBOX_RETENTION=240h", want: "INBOX_RETENTION is 240h0m0s: it must be longer than OUTBOX_RETENTION and TOPIC_RETENTION together (240h0m0s)"},
		"the database is down": {url: "postgres://u@127.0.0.1:1/db", want: "no connection to DATABASE_URL", fault: true},
	} {
		t.Run(name, func(t *testing.T) {
			set, value, _ := strings.Cut(c.env, "=")
			if c.topic == "" {
				c.topic = topic("", "")
			}
			env := map[string]string{"DATABASE_URL": or(c.url, good), "KAFKA_BROKERS": brokers[0], set: value}
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			err := service.Run(ctx, func(name string) string { return env[name] }, io.Discard, "group-"+c.topic, "127.0.0.1:0",
				func(service.Runtime) (service.Service, error) {
					return service.Service{Topics: []string{c.topic}, Partitions: c.partitions, Batch: (&counter{}).batch, DeadLetterTopic: "x", DeadLetterType: "x"}, nil
				})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") && !c.fault {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if service.ExitsWith2(err) == c.fault {
				t.Errorf("exit code 2 is %t: %v", !c.fault, err)
			}
			t.Logf("after %v: %v", time.Since(begin).Round(time.Millisecond), err)
		})
	}
}
