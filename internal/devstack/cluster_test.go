package devstack_test

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Three brokers and two workers go through their life: start, start again without being told how many, some
// killed and repaired, stop, start at other ports with their data.
func TestSeveralOfEach(t *testing.T) {
	cfg := config(folder(t), func(c *devstack.Config) {
		c.Shape = devstack.Shape{Brokers: 3, Workers: 2, Replicas: 2}
		if err := c.UseFreePorts(); err != nil {
			t.Fatal(err)
		}
	})
	s := open(t, cfg)
	ctx := t.Context()
	begin := time.Now()
	if err := s.Up(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("first start: %.1f s", time.Since(begin).Seconds())
	all := slices.Concat([]string{devstack.Postgres}, s.BrokerNames(), s.WorkerNames())
	if got := strings.Join(all, " "); got != "postgres kafka kafka-2 kafka-3 connect connect-2" {
		t.Errorf("processes: %s", got)
	}
	if err := provision.Topics(ctx, s.Brokers(), provision.DefaultReplicas, provision.Topic{Name: "ours", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	topics(t, s, 3)

	first := pids(s, all...)
	later := cfg
	later.Shape = devstack.Shape{}
	other, err := devstack.Open(later)
	if err != nil {
		t.Fatal(err)
	}
	if other.Shape() != cfg.Shape {
		t.Errorf("it remembers %+v", other.Shape())
	}
	if err := other.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if again := pids(other, all...); again != first {
		t.Errorf("%s, then %s", first, again)
	}

	killed := []string{"kafka", "kafka-3", "connect"} // not even a majority is left
	for _, name := range killed {
		if err := s.Signal(name, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	begin = time.Now()
	if err := other.Up(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("two brokers and a worker again: %.1f s", time.Since(begin).Seconds())
	if now := pids(s, all...); strings.Contains(now, "false") {
		t.Error(now)
	}
	topics(t, s, 3)

	wrong := cfg
	wrong.Brokers = 1
	one, err := devstack.Open(wrong)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Up(ctx); err == nil || !strings.Contains(err.Error(), "made with --brokers 3, not 1") || !strings.Contains(err.Error(), "--wipe") {
		t.Error(err)
	}

	begin = time.Now()
	if err := s.Down(ctx, false); err != nil {
		t.Fatal(err)
	}
	t.Logf("stop: %.1f s", time.Since(begin).Seconds())
	later.Shape = cfg.Shape
	if err := later.UseFreePorts(); err != nil {
		t.Fatal(err)
	}
	moved := open(t, later)
	if err := moved.UpOnly(ctx, moved.BrokerNames()...); err != nil {
		t.Fatal(err)
	}
	topics(t, moved, 3)
}

// topics checks that all topics (there are Kafka's own and Connect's) have as many copies, and that one less
// must be there for a write.
func topics(t *testing.T, s *devstack.Stack, copies int) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	want := []string{"__consumer_offsets", "connect-configs", "connect-offsets", "connect-status"}
	var found kadm.TopicDetails
	// The broker that is asked may hear of them later than the one that made them.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if found, err = admin.ListTopicsWithInternal(t.Context()); err != nil {
			t.Fatal(err)
		}
		missing := slices.DeleteFunc(slices.Clone(want), found.Has)
		if len(missing) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("there are no topics %v", missing)
		}
	}
	configs, err := admin.DescribeTopicConfigs(t.Context(), found.Names()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range found.Sorted() {
		for _, p := range d.Partitions {
			if len(p.Replicas) != copies {
				t.Errorf("%s/%d has %d copies", d.Topic, p.Partition, len(p.Replicas))
			}
		}
		c, err := configs.On(d.Topic, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range c.Configs {
			if v.Key == "min.insync.replicas" && v.MaybeValue() != fmt.Sprint(copies-1) {
				t.Errorf("%s has min.insync.replicas=%s", d.Topic, v.MaybeValue())
			}
		}
	}
}

func TestShape(t *testing.T) {
	for want, shape := range map[string]devstack.Shape{
		"2 brokers: give 1, 3 or 5":       {Brokers: 2},
		"-1 workers: give 1 to 9":         {Workers: -1},
		"10 replicas of the services: gi": {Replicas: 10},
	} {
		_, err := devstack.Open(config(folder(t), func(c *devstack.Config) { c.Shape = shape }))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for name, want := range map[string]string{"kafka": "kafka 1", "kafka-2": "kafka 2", "order-service": "order-service 1", "order-service-3": "order-service 3", "a-0": "a-0 1"} {
		kind, i := devstack.Kind(name)
		if got := fmt.Sprint(kind, " ", i); got != want || want != "a-0 1" && devstack.Instance(kind, i) != name {
			t.Errorf("%s is %s", name, got)
		}
	}
	for i, want := range []string{"KAFKA_PORT", "KAFKA_2_PORT", "KAFKA_3_PORT"} {
		if got := devstack.PortVariable("KAFKA_PORT", i+1); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
