package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/system"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaFaults: topics that vanish, members that come and go, records that are none of ours.
func (w *world) kafkaFaults() []kind {
	return []kind{
		{"topic deleted", 1, func(dice *rand.Rand) fault {
			topic := pick(dice, system.Topics()).Name
			return topicDeleted{about{"topic deleted", "topic " + topic + " deleted", []string{"broker", "worker"}, 0, fromFaultHealed}, w, topic}
		}},
		{"rebalance storm", 1, func(dice *rand.Rand) fault {
			group := pick(dice, system.Services())
			return rebalanceStorm{about{"rebalance storm", "members join and leave the group " + group.Name, []string{"broker", "service"}, 0, fromHeal}, w, group.Name, 4 + dice.IntN(5)}
		}},
		{"poison burst", 1, func(dice *rand.Rand) fault {
			return poison{about{"poison burst", "poison and duplicates on every topic", []string{"broker"}, 0, fromFaultHealed}, w, dice.Uint64()}
		}},
	}
}

func (w *world) kafka(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(w.stack.Brokers()...), kgo.MetadataMinAge(250 * time.Millisecond)}, opts...)...)
}

// topicDeleted: what no consumer had read is lost with it. The supervisor makes the topic anew and has
// the outbox sent again.
type topicDeleted struct {
	about
	world *world
	topic string
}

func (f topicDeleted) inject(ctx context.Context) error {
	client, err := f.world.kafka()
	if err != nil {
		return err
	}
	defer client.Close()
	deleted, err := kadm.NewClient(client).DeleteTopics(ctx, f.topic)
	if err != nil {
		return err
	}
	if err := deleted.Error(); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return err
	}
	return nil
}

func (f topicDeleted) heal(context.Context) error { return nil }

// rebalanceStorm: strangers join a service's group, get partitions, do nothing with them, and leave,
// some without a farewell.
type rebalanceStorm struct {
	about
	world *world
	group string
	times int
}

func (f rebalanceStorm) inject(ctx context.Context) error {
	topics, err := f.topics(ctx)
	if err != nil {
		return err
	}
	for i := range f.times {
		client, err := f.world.kafka(kgo.ConsumerGroup(f.group), kgo.ConsumeTopics(topics...), kgo.DisableAutoCommit(),
			kgo.SessionTimeout(2*time.Second), kgo.HeartbeatInterval(300*time.Millisecond))
		if err != nil {
			return err
		}
		try, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
		client.PollFetches(try)
		cancel()
		if i%2 == 1 {
			// A member that dies says nothing: its partitions wait for the end of its session.
			_ = client.LeaveGroupContext(canceled())
		}
		client.CloseAllowingRebalance()
	}
	return nil
}

func (f rebalanceStorm) heal(context.Context) error { return nil }

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// topics are those of the group.
func (f rebalanceStorm) topics(ctx context.Context) ([]string, error) {
	client, err := f.world.kafka()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	offsets, err := kadm.NewClient(client).FetchOffsets(ctx, f.group)
	if err != nil {
		return nil, err
	}
	var all []string
	for topic := range offsets {
		all = append(all, topic)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the group %s has no offsets", f.group)
	}
	return all, nil
}

// poison puts records on every topic that no outbox has sent, and repeats some that one has.
type poison struct {
	about
	world *world
	seed  uint64
}

func (f poison) inject(ctx context.Context) error {
	client, err := f.world.kafka(kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	if err != nil {
		return err
	}
	defer client.Close()
	dice := rand.New(rand.NewPCG(f.seed, 4))
	var records []*kgo.Record
	for _, topic := range events.Topics() {
		if events.Consumer(topic) == "" {
			continue
		}
		for range 1 + dice.IntN(5) {
			key := []byte(uuid.Must(uuid.NewV7()).String())
			r := &kgo.Record{Topic: topic, Key: key, Value: []byte(`{"order_id":"` + string(key) + `"}`)}
			switch dice.IntN(4) {
			case 0: // no id
			case 1:
				r.Headers = []kgo.RecordHeader{{Key: "id", Value: []byte("no uuid")}}
			case 2:
				r.Headers = []kgo.RecordHeader{{Key: "id", Value: []byte(uuid.NewString())}} // version 4: tells no time
			case 3:
				r.Value = []byte{0xff, 0, 1, 2}
			}
			records = append(records, r)
		}
	}
	f.world.poisoned.Add(int64(len(records)))
	again, err := f.repeat(ctx, dice)
	if err != nil {
		return err
	}
	return client.ProduceSync(ctx, append(records, again...)...).FirstErr()
}

func (f poison) heal(context.Context) error { return nil }

// repeat reads some true records, to be sent a second time.
func (f poison) repeat(ctx context.Context, dice *rand.Rand) (again []*kgo.Record, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	topic := pick(dice, []string{events.TopicPayment, events.TopicStock, events.TopicPaymentSuccess, events.TopicStockSuccess})
	client, err := f.world.kafka(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd().Relative(-20)))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	for len(again) < 20 && ctx.Err() == nil {
		for _, r := range client.PollFetches(ctx).Records() {
			for _, h := range r.Headers {
				if h.Key == "id" && uuid.Validate(string(h.Value)) == nil && len(r.Value) > 0 && r.Value[0] == '{' {
					if id := uuid.MustParse(string(h.Value)); id.Version() == 7 {
						again = append(again, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp})
					}
				}
			}
		}
	}
	return again, nil
}
