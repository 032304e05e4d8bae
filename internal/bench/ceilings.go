package bench

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"outboxsaga/internal/provision"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Best drives work with each concurrency in turn and tells which was fastest. work does one
// transaction on behalf of a worker and returns how many items that were.
func Best(ctx context.Context, name string, batch int, concurrencies []int, each time.Duration, work func(ctx context.Context, worker int) (int, error)) (Ceiling, error) {
	best := Ceiling{Name: name, Batch: batch}
	for _, n := range concurrencies {
		var done atomic.Int64
		var failed sync.Once
		var err error
		var all sync.WaitGroup
		begin := time.Now()
		for worker := range n {
			all.Go(func() {
				for time.Since(begin) < each && ctx.Err() == nil {
					items, failure := work(ctx, worker)
					if failure != nil {
						failed.Do(func() { err = failure })
						return
					}
					done.Add(int64(items))
				}
			})
		}
		all.Wait()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return best, fmt.Errorf("%s with %d at once: %w", name, n, err)
		}
		if rate := math.Round(float64(done.Load()) / time.Since(begin).Seconds()); rate > best.PerSecond {
			best.PerSecond, best.Concurrency = rate, n
		}
	}
	return best, nil
}

// ProduceConsume produces records like those of the saga for a time, as fast as they are acknowledged, and consumes them
// meanwhile. The rate counts to the last one consumed.
func ProduceConsume(ctx context.Context, brokers []string, d time.Duration) (Ceiling, error) {
	c := Ceiling{Name: "produce → consume, records", Concurrency: 1, Batch: 1000}
	const topic, partitions = "bench-ceiling", 6
	if err := provision.Topics(ctx, brokers, 1, provision.Topic{Name: topic, Partitions: partitions}); err != nil {
		return c, err
	}
	producer, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(0))
	if err != nil {
		return c, err
	}
	defer producer.Close()
	consumer, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return c, err
	}
	defer consumer.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*d+time.Minute)
	defer cancel()
	begin := time.Now()
	sent := 0
	var unsent atomic.Pointer[error]
	produced := make(chan int, 1)
	go func() {
		for time.Since(begin) < d && ctx.Err() == nil && unsent.Load() == nil {
			key := uuid.NewString()
			producer.Produce(ctx, &kgo.Record{
				Key: []byte(key), Value: []byte(`{"order_id":"` + key + `","customer_id":"customer-123","amount":5}`),
				Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(key)}, {Key: "type", Value: []byte("payment.requested")}},
			}, func(_ *kgo.Record, err error) {
				if err != nil {
					unsent.Store(&err)
				}
			})
			sent++
		}
		_ = producer.Flush(ctx) // what it leaves does not arrive
		produced <- sent
	}()
	got, want := 0, -1
	for got != want {
		select {
		case want = <-produced:
		default:
		}
		if got == want {
			break
		}
		poll, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		got += consumer.PollFetches(poll).NumRecords()
		stop()
		if err := unsent.Load(); err != nil {
			return c, fmt.Errorf("produce: %w", *err)
		}
		if ctx.Err() != nil {
			return c, fmt.Errorf("consumed %d records only: %w", got, ctx.Err())
		}
	}
	c.PerSecond = math.Round(float64(got) / time.Since(begin).Seconds())
	return c, nil
}
