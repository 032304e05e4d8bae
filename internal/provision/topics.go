package provision

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TopicRetention is how long Kafka keeps the saga's records. It deletes whole segments, which take records for segmentTime: a record may stay
// for so much longer. The inbox remembers longer than both and the outbox's retention together.
const TopicRetention, segmentTime = 7 * 24 * time.Hour, 12 * time.Hour

// DefaultReplicas leaves the number of a topic's replicas to the brokers: their default.replication.factor.
const DefaultReplicas int16 = -1

// Topic is a topic to make.
type Topic struct {
	Name       string
	Partitions int32
	Retention  time.Duration // 0: TopicRetention
}

// HeartbeatRetention is for how long Kafka keeps heartbeats.
const HeartbeatRetention = time.Hour

// HeartbeatTopic is where a connector beats. It must exist: without it the connector's
// producer blocks, silently.
func HeartbeatTopic(database string) Topic {
	return Topic{Name: "__debezium-heartbeat." + database, Partitions: 1, Retention: HeartbeatRetention}
}

// Topics makes those topics that are missing, with as many replicas as asked for (or
// [DefaultReplicas]), and waits until every partition has a leader. A topic that exists with another number of partitions is an
// error: keys would not keep their order.
func Topics(ctx context.Context, brokers []string, replicas int16, topics ...Topic) error {
	// The leaders are asked for below; an answer from the client's cache would be up to 5 s old.
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	// One request for all topics of a kind: the controller takes long over each request.
	type kind struct {
		partitions int32
		retention  time.Duration
	}
	kinds := map[kind][]string{}
	for _, t := range topics {
		k := kind{t.Partitions, t.Retention}
		if k.retention == 0 {
			k.retention = TopicRetention
		}
		kinds[k] = append(kinds[k], t.Name)
	}
	for k, names := range kinds {
		ms := strconv.FormatInt(k.retention.Milliseconds(), 10)
		for {
			few, err := create(ctx, admin, k.partitions, replicas, ms, names)
			if err != nil {
				return err
			}
			if few == nil {
				break
			}
			// The brokers of a cluster come one after the other.
			select {
			case <-ctx.Done():
				return fmt.Errorf("%w: start more brokers, or ask for fewer replicas (the flag --replicas, or the brokers' default.replication.factor)", few)
			case <-time.After(200 * time.Millisecond):
			}
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
			if err := t.check(len(detail.Partitions)); err != nil {
				return err
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

// check refuses another number of partitions than the topic must have.
func (t Topic) check(partitions int) error {
	if partitions == int(t.Partitions) {
		return nil
	}
	return fmt.Errorf("topic %s has %d partitions, it must have %d: records of one key would change partition and lose their order; move it aside or restore it", t.Name, partitions, t.Partitions)
}

// CheckTopics says which topics are missing or have another number of partitions.
func CheckTopics(ctx context.Context, brokers []string, topics ...Topic) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	names := make([]string, len(topics))
	for i, t := range topics {
		names[i] = t.Name
	}
	found, err := kadm.NewClient(client).ListTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("no answer from Kafka at %v: %w", brokers, err)
	}
	var wrong []error
	for _, t := range topics {
		if !found.Has(t.Name) {
			wrong = append(wrong, fmt.Errorf("topic %s is missing: run outboxctl provision", t.Name))
			continue
		}
		wrong = append(wrong, t.check(len(found[t.Name].Partitions)))
	}
	return errors.Join(wrong...)
}

// create makes topics; few is why a topic could not be made because there are fewer brokers than replicas.
func create(ctx context.Context, admin *kadm.Client, partitions int32, replicas int16, retention string, names []string) (few, err error) {
	// A record's time is that of its row. By default a broker refuses those of more than an hour ahead, and after a moment in which the
	// database's clock was wrong the connector would fail at the same record until that time has come.
	anyTime, segment := strconv.FormatInt(math.MaxInt64, 10), strconv.FormatInt(segmentTime.Milliseconds(), 10)
	made, err := admin.CreateTopics(ctx, partitions, replicas, map[string]*string{
		"retention.ms": &retention, "segment.ms": &segment, "message.timestamp.after.max.ms": &anyTime,
	}, names...)
	if err != nil {
		return nil, fmt.Errorf("create topics: %w", err)
	}
	for _, t := range made {
		switch {
		case t.Err == nil || errors.Is(t.Err, kerr.TopicAlreadyExists):
		case errors.Is(t.Err, kerr.InvalidReplicationFactor):
			few = fmt.Errorf("topic %s: %w %s", t.Topic, t.Err, t.ErrMessage)
		default:
			return nil, fmt.Errorf("topic %s: %w %s", t.Topic, t.Err, t.ErrMessage)
		}
	}
	return few, nil
}
