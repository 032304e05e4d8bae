package campaign

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/bench/relay"
	"outboxsaga/internal/scheduling"
)

// Systems are all that can be measured.
func Systems() []System {
	all := []System{
		{Name: bench.CDC},
		{Name: bench.Gathering, Connector: connector(strconv.Itoa(scheduling.GatherMillis))},
		{Name: bench.Poller, Relay: &Relay{relay.Delete, 5 * time.Millisecond, 1000}},
		{Name: bench.Poller10, Relay: &Relay{relay.Delete, 10 * time.Millisecond, 1000}},
		{Name: notified, Relay: &Relay{relay.Notify, time.Second, 1000}},
		{Name: bench.PollerFlag, Relay: &Relay{relay.Flag, 5 * time.Millisecond, 1000}},
		{Name: naive, Relay: &Relay{relay.Naive, time.Second, 100}},
		{Name: bench.Single, Env: []string{"MAX_BATCH=1"}},
	}
	for _, ms := range intervals {
		all = append(all, System{Name: intervalName(ms), Connector: connector(ms)})
	}
	return all
}

// connector are the settings of one that gathers for so many milliseconds.
func connector(ms string) map[string]string {
	return map[string]string{"poll.interval.ms": ms, "max.batch.size": "2048"}
}

const (
	naive    = "naive"
	notified = "relay-notify"
)

var intervals = []string{"500", "50", "10", "5", "1"} // ms

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
				top := slices.Max(append([]int{200}, c.Rates...))
				if err := s.warmUp(ctx, top); err != nil {
					return err
				}
				if err := s.idle(ctx, top, c.idleRates()...); err != nil {
					return err
				}
				return s.pointsAndMaximum(ctx, c.Rates...)
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

// block measures a system in a part: idle, at some rates, and its maximum if asked for.
func (c *Campaign) block(ctx context.Context, part, name string, top int, maximum bool, rates ...int) error {
	sys, err := find(name)
	if err != nil {
		return err
	}
	sys.Instances = c.Instances
	return c.with(ctx, sys, c.Shape, func(s *session) error {
		s.part = part
		if err := s.warmUp(ctx, top); err != nil {
			return err
		}
		if err := s.idle(ctx, top, c.idleRates()...); err != nil {
			return err
		}
		held := 0
		for range c.Repeats {
			var err error
			if held, err = s.points(ctx, rates...); err != nil {
				return err
			}
		}
		if !maximum || !c.Maximum {
			return nil
		}
		return s.maximum(ctx, rates, held)
	})
}

func (c *Campaign) rivals(ctx context.Context) error {
	for _, name := range []string{bench.Poller10, bench.PollerFlag, notified} {
		if err := c.block(ctx, bench.PartRivals, name, 3000, true, c.Rates...); err != nil {
			return err
		}
	}
	// It never is below a second: there is no rate that holds. What it achieves shows what it can do.
	return c.block(ctx, bench.PartRivals, naive, 20, false, 20, 40, 80)
}

func (c *Campaign) intervals(ctx context.Context) error {
	for _, ms := range intervals {
		if err := c.block(ctx, "intervals", intervalName(ms), 3000, false, c.Rates...); err != nil {
			return err
		}
	}
	return nil
}

func (c *Campaign) single(ctx context.Context) error {
	return c.block(ctx, bench.Single, bench.Single, 100, true, 50, 100, 200)
}

// shapes measures the product under other loads, one after the other on the same stack, and with two instances.
func (c *Campaign) shapes(ctx context.Context) error {
	usual := c.Shape
	with := func(change func(*bench.Shape)) bench.Shape {
		s := usual
		change(&s)
		return s
	}
	cases := []struct {
		name  string
		shape bench.Shape
	}{
		{"uniform", usual},
		{"one item", with(func(s *bench.Shape) { s.Items = 1 })},
		{"Zipf 1.2", with(func(s *bench.Shape) { s.Zipf = 1.2 })},
		{"20 lines", with(func(s *bench.Shape) { s.Lines = 20 })},
		{"10 % refused", with(func(s *bench.Shape) { s.Refused = 10 })},
		{"50 % refused", with(func(s *bench.Shape) { s.Refused = 50 })},
		{"100,000 customers", with(func(s *bench.Shape) { s.Customers = 100_000 })},
	}
	err := c.with(ctx, System{Name: bench.CDC}, usual, func(s *session) error {
		s.part = "shapes"
		if err := s.warmUp(ctx, 3000); err != nil {
			return err
		}
		for repeat := range c.Repeats {
			for _, one := range cases {
				s.name, s.shape = one.name, one.shape
				if repeat == 0 {
					if err := bench.Prepare(ctx, s.Target, one.shape); err != nil {
						return err
					}
				}
				if err := s.pointsAndMaximum(ctx, c.CaseRates...); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.with(ctx, System{Name: bench.CDC, Instances: 2}, usual, func(s *session) error {
		s.part, s.name = "shapes", "two instances"
		if err := s.warmUp(ctx, 3000); err != nil {
			return err
		}
		for range c.Repeats {
			if err := s.pointsAndMaximum(ctx, c.CaseRates...); err != nil {
				return err
			}
		}
		return nil
	})
}

// pointsAndMaximum measures some rates, and searches the highest one above them.
func (s *session) pointsAndMaximum(ctx context.Context, rates ...int) error {
	held, err := s.points(ctx, rates...)
	if err != nil || !s.c.Maximum {
		return err
	}
	return s.maximum(ctx, rates, held)
}
