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

// checkTopics refuses topics that keep records for longer than TOPIC_RETENTION says: the inbox would
// forget an event before Kafka does. A topic that is missing is the consumer's matter, and so is the number
// of partitions.
func checkTopics(ctx context.Context, cfg config, topics []string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.brokers...))
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	found, err := kadm.NewClient(client).DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return fmt.Errorf("no answer from Kafka at %v: check the address and that a broker runs there: %w", cfg.brokers, err)
	}
	for _, topic := range found {
		if topic.Err != nil { // it is missing, or we may not read its settings
			continue
		}
		settings := map[string]string{}
		for _, s := range topic.Configs {
			settings[s.Key] = s.MaybeValue()
		}
		if err := checkTopicRetention(topic.Name, settings, cfg.topicRetention); err != nil {
			return err
		}
	}
	return nil
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
