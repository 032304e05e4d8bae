package provision

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TopicRetention is how long Kafka keeps the saga's records. The inbox remembers
// longer than this and the outbox's retention together.
const TopicRetention = 7 * 24 * time.Hour

// Topic is a topic to make.
type Topic struct {
	Name       string
	Partitions int32
	Retention  time.Duration // 0: TopicRetention
}

// HeartbeatTopic is where a connector beats. It must exist: without it the connector's
// producer blocks, silently.
func HeartbeatTopic(database string) Topic {
	return Topic{Name: "__debezium-heartbeat." + database, Partitions: 1, Retention: time.Hour}
}

// Topics makes those topics that are missing, with as many replicas as asked for, and
// waits until every partition has a leader. A topic that exists with another number of partitions is an
// error: keys would not keep their order.
func Topics(ctx context.Context, brokers []string, replicas int16, topics ...Topic) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	for _, t := range topics {
		retention := t.Retention
		if retention == 0 {
			retention = TopicRetention
		}
		ms := strconv.FormatInt(retention.Milliseconds(), 10)
		_, err := admin.CreateTopic(ctx, t.Partitions, replicas, map[string]*string{"retention.ms": &ms}, t.Name)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("topic %s: %w", t.Name, err)
		}
	}
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.Name
	}
	for {
		found, err := admin.ListTopics(ctx, names...)
		if err != nil {
			return fmt.Errorf("list topics: %w", err)
		}
		ready := true
		for _, t := range topics {
			detail := found[t.Name]
			if detail.Err != nil || len(detail.Partitions) == 0 {
				ready = false
				continue
			}
			if n := len(detail.Partitions); n != int(t.Partitions) {
				return fmt.Errorf("topic %s has %d partitions, it must have %d: records of one key would change partition and lose their order; move it aside or restore it", t.Name, n, t.Partitions)
			}
			for _, p := range detail.Partitions {
				ready = ready && p.Err == nil && p.Leader >= 0
			}
		}
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("topics have no leaders: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
