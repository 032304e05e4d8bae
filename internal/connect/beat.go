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

// Beat is the newest heartbeat of a connector: when it was sent, by the worker's clock; zero if there is none. Err is
// why Kafka does not tell.
type Beat struct {
	At  time.Time
	Err error
}

// Beats reads the newest heartbeats of some connectors.
func Beats(ctx context.Context, kafka *kadm.Client, names ...string) (map[string]Beat, error) {
	beats := map[string]Beat{}
	if len(names) == 0 { // for Kafka that would be all topics
		return beats, nil
	}
	topics := make([]string, len(names))
	for i, name := range names {
		topics[i] = provision.HeartbeatTopic(name).Name
	}
	newest, err := kafka.ListMaxTimestampOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("read the heartbeats of the connectors: %w", err)
	}
	for i, name := range names {
		var beat Beat
		for _, p := range newest[topics[i]] {
			if p.Err != nil {
				beat.Err = fmt.Errorf("topic %s: %w", topics[i], p.Err)
			} else if at := time.UnixMilli(p.Timestamp); p.Timestamp > 0 && at.After(beat.At) {
				beat.At = at
			}
		}
		beats[name] = beat
	}
	return beats, nil
}

// CheckBeats is nil if the newest heartbeat of each connector in Kafka is younger than [MaxSilence]. It finds
// the connector that is RUNNING and reads its slot while nothing flows: its producer waits, say, for a topic that
// does not exist. Heartbeats carry the clock of the worker: call it on the worker's machine, or on one with the same time.
func CheckBeats(ctx context.Context, kafka *kadm.Client, names ...string) error {
	beats, err := Beats(ctx, kafka, names...)
	if err != nil {
		return err
	}
	for _, name := range names {
		beat := beats[name]
		switch silence := time.Since(beat.At); {
		case beat.Err != nil:
			return fmt.Errorf("connector %s: %w", name, beat.Err)
		case beat.At.IsZero():
			return fmt.Errorf("connector %s has sent no heartbeat yet", name)
		case silence > MaxSilence:
			return fmt.Errorf("connector %s has sent no heartbeat for %s: nothing flows", name, silence.Round(time.Second))
		}
	}
	return nil
}
