package campaign

import (
	"context"
	"fmt"
	"slices"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/bench/relay"
)

// Systems are all that can be measured.
func Systems() []System {
	all := []System{
		{Name: bench.CDC},
		{Name: bench.Poller, Relay: &Relay{relay.Delete, 5 * time.Millisecond, 1000}},
		{Name: "poller-10ms", Relay: &Relay{relay.Delete, 10 * time.Millisecond, 1000}},
		{Name: "poller-flag", Relay: &Relay{relay.Flag, 5 * time.Millisecond, 1000}},
		{Name: naive, Relay: &Relay{relay.Naive, time.Second, 100}},
		{Name: bench.Single, Env: []string{"MAX_BATCH=1"}},
	}
	for _, ms := range []string{"500", "50", "10", "5", "1"} {
		all = append(all, System{Name: intervalName(ms), Connector: map[string]string{"poll.interval.ms": ms, "max.batch.size": "2048"}})
	}
	return all
}

const naive = "naive"

// intervalName is the product with another poll.interval.ms, and Debezium's default batch.
func intervalName(ms string) string { return "cdc-" + ms + "ms" }

func find(name string) (System, error) {
	all := Systems()
	i := slices.IndexFunc(all, func(s System) bool { return s.Name == name })
	if i < 0 {
		return System{}, fmt.Errorf("there is no system %s", name)
	}
	return all[i], nil
}

// latency measures the systems in turn, each time freshly started, so that what the machine does meanwhile
// burdens all alike. The order turns round with every repeat.
func (c *Campaign) latency(ctx context.Context) error {
	names := slices.Clone(c.Systems)
	for range c.Repeats {
		for _, name := range names {
			sys, err := find(name)
			if err != nil {
				return err
			}
			if sys.Instances == 0 {
				sys.Instances = c.Instances
			}
			err = c.with(ctx, sys, c.Shape, func(s *session) error {
				s.part = bench.PartLatency
				if err := s.warmUp(ctx, 3000); err != nil {
					return err
				}
				if err := s.idle(ctx, c.idleRates()...); err != nil {
					return err
				}
				if err := s.points(ctx, c.Rates...); err != nil {
					return err
				}
				if !c.Maximum {
					return nil
				}
				return s.maximum(ctx, c.From)
			})
			if err != nil {
				return err
			}
		}
		slices.Reverse(names)
	}
	return nil
}

// idleRates: a short run asks only for an idle system.
func (c *Campaign) idleRates() []int {
	if c.Idle < 20*time.Second {
		return []int{0}
	}
	return []int{0, 1}
}
