package main

import (
	"strings"
	"testing"

	"outboxsaga/events"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/stacktest"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A group has offsets only where it has handled something. What came elsewhere since is skipped too.
func TestRewindToTheEnd(t *testing.T) {
	const group, topic = "payment-service", events.TopicPayment
	brokers := stacktest.Brokers(t)
	t.Setenv("KAFKA_BROKERS", strings.Join(brokers, ","))
	var topics []provision.Topic
	for _, name := range events.Topics() {
		topics = append(topics, provision.Topic{Name: name, Partitions: 6})
	}
	if err := provision.Topics(t.Context(), brokers, 1, topics...); err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, partition := range []int32{0, 0, 0, 1, 1} {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: partition, Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	admin := kadm.NewClient(client)
	ends, err := admin.ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	end := func(partition int32) int64 {
		at, _ := ends.Lookup(topic, partition)
		return at.Offset
	}
	check := func(when string) {
		t.Helper()
		committed, err := admin.FetchOffsets(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		for _, partition := range []int32{0, 1} {
			if o, ok := committed.Lookup(topic, partition); !ok || o.At != end(partition) {
				t.Errorf("%s: partition %d is at %d (%t), want %d", when, partition, o.At, ok, end(partition))
			}
		}
	}
	offsets := kadm.Offsets{}
	offsets.AddOffset(topic, 0, end(0)-2, -1)
	if err := admin.CommitAllOffsets(t.Context(), group, offsets); err != nil {
		t.Fatal(err)
	}
	forget := func() {
		if _, err := admin.DeleteGroups(t.Context(), group); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := ctl(t, "rewind", "--service", "payment", "--to", "end"); err != nil || !strings.Contains(out, "records skipped") {
		t.Fatal(out, err)
	}
	check("one partition has an offset")
	forget()
	if out, err := ctl(t, "rewind", "--service", "payment", "--to", "2h"); err == nil || !strings.Contains(err.Error(), "from their beginning anyway") {
		t.Error(out, err)
	}
	if out, err := ctl(t, "rewind", "--service", "payment", "--to", "end"); err != nil {
		t.Fatal(out, err)
	}
	check("none has")
	forget()
}
