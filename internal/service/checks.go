package service

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// checkCapture refuses a database out of which no event would leave: orders would be taken and stay
// in progress, with no error anywhere.
func checkCapture(ctx context.Context, pool *pgxpool.Pool) error {
	var level string
	if err := pool.QueryRow(ctx, `SELECT current_setting('wal_level')`).Scan(&level); err != nil {
		return fmt.Errorf("read the settings of change data capture: %w", err)
	}
	if level != "logical" {
		return badConfig("PostgreSQL has wal_level=%s, so no event would leave the outbox: set wal_level=logical and restart it", level)
	}
	err := outbox.CheckPublication(ctx, pool)
	if errors.As(err, new(outbox.SettingError)) {
		return configError{err}
	}
	return err
}

// CheckTopics finds topics that keep records for longer than keep, which is TOPIC_RETENTION: the inbox would
// forget an event before Kafka does. It finds those too that lose records by compaction. A topic that is missing is
// the consumer's matter, and so is the number of partitions. wrong has a line for each topic, of bad configuration;
// err is Kafka's.
func CheckTopics(ctx context.Context, brokers []string, keep time.Duration, topics ...string) (wrong []error, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	found, err := kadm.NewClient(client).DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("no answer from Kafka at %v: check the address and that a broker runs there: %w", brokers, err)
	}
	for _, name := range topics {
		topic, err := found.On(name, nil)
		if err != nil || topic.Err != nil { // it is missing, or we may not read its settings
			continue
		}
		settings := map[string]string{}
		for _, s := range topic.Configs {
			settings[s.Key] = s.MaybeValue()
		}
		if err := checkTopicRetention(name, settings, keep); err != nil {
			wrong = append(wrong, err)
		}
	}
	return wrong, nil
}

func checkTopicRetention(topic string, settings map[string]string, keep time.Duration) error {
	if policy := settings["cleanup.policy"]; strings.Contains(policy, "compact") {
		return badConfig("topic %q has cleanup.policy=%s, which loses events of an order: set it to delete", topic, policy)
	}
	ms, err := strconv.ParseInt(settings["retention.ms"], 10, 64)
	switch {
	case err != nil: // not told
		return nil
	case ms < 0:
		return badConfig("topic %q keeps records for ever (retention.ms=%d), an inbox cannot: set its retention.ms to that of TOPIC_RETENTION, %d", topic, ms, keep.Milliseconds())
	case ms > keep.Milliseconds():
		return badConfig("topic %q keeps records for %s (retention.ms=%d), longer than TOPIC_RETENTION, %s: raise TOPIC_RETENTION and INBOX_RETENTION, or lower retention.ms", topic, time.Duration(ms)*time.Millisecond, ms, keep)
	}
	return nil
}
