package bench

import (
	"context"
	"errors"
	"testing"
	"time"

	"outboxsaga/internal/stacktest"
)

func TestBestFindsTheFastestConcurrency(t *testing.T) {
	// Three at once are served in 1 ms; a fourth makes all wait.
	c, err := Best(t.Context(), "thing", 10, []int{1, 3, 6}, 200*time.Millisecond, func(_ context.Context, worker int) (int, error) {
		time.Sleep(2 * time.Millisecond)
		if worker > 2 {
			time.Sleep(time.Second)
			return 0, nil
		}
		return 10, nil
	})
	if err != nil || c.Concurrency != 3 || c.PerSecond < 3000 || c.PerSecond > 15_000 || c.Batch != 10 {
		t.Errorf("%+v, %v", c, err)
	}
	broken := errors.New("broken")
	if _, err := Best(t.Context(), "thing", 1, []int{2}, time.Second, func(context.Context, int) (int, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestProduceConsume(t *testing.T) {
	c, err := ProduceConsume(t.Context(), stacktest.Brokers(t), time.Second)
	if err != nil || c.PerSecond < 500 {
		t.Errorf("%+v, %v", c, err)
	}
}
