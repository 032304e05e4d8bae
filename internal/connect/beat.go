package connect

import (
	"context"
	"fmt"
	"time"

	"outboxsaga/internal/provision"

	"github.com/twmb/franz-go/pkg/kadm"
)

// MaxSilence is how old the newest heartbeat of a connector may be. Debezium beats every 5 s
// (heartbeat.interval.ms), also under load, and the beats take the events' way: through its queue and its producer.
const MaxSilence = 15 * time.Second

// CheckBeats is nil if the newest heartbeat of each connector in Kafka is younger than [MaxSilence]. It finds
// the connector that is RUNNING and reads its slot while nothing flows: its producer waits, say, for a topic that
// does not exist. Heartbeats carry the clock of the worker: call it on the worker's machine, or on one with the same time.
func CheckBeats(ctx context.Context, kafka *kadm.Client, names ...string) error {
	topics := make([]string, len(names))
	for i, name := range names {
		topics[i] = provision.HeartbeatTopic(name).Name
	}
	newest, err := kafka.ListMaxTimestampOffsets(ctx, topics...)
	if err != nil {
		return fmt.Errorf("read the heartbeats of the connectors: %w", err)
	}
	for i, name := range names {
		last, err := lastBeat(newest[topics[i]])
		switch silence := time.Since(last); {
		case err != nil:
			return fmt.Errorf("connector %s: topic %s: %w", name, topics[i], err)
		case last.IsZero():
			return fmt.Errorf("connector %s has sent no heartbeat yet", name)
		case silence > MaxSilence:
			return fmt.Errorf("connector %s has sent no heartbeat for %s: nothing flows", name, silence.Round(time.Second))
		}
	}
	return nil
}

// lastBeat is zero where there is no beat.
func lastBeat(partitions map[int32]kadm.ListedOffset) (last time.Time, err error) {
	for _, p := range partitions {
		if p.Err != nil {
			return last, p.Err
		}
		if at := time.UnixMilli(p.Timestamp); p.Timestamp > 0 && at.After(last) {
			last = at
		}
	}
	return last, nil
}
