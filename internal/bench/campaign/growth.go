package campaign

import (
	"context"
	"fmt"
	"math"
	"os"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/system"
)

// growth measures the product with more and more orders already there, each time on a stack of its own.
func (c *Campaign) growth(ctx context.Context) error {
	for _, n := range c.SeededOrders {
		err := c.with(ctx, System{Name: bench.CDC, Instances: c.Instances, Seeded: n}, c.Shape, func(s *session) error {
			s.part, s.name = bench.PartGrowth, fmt.Sprintf("%g million orders", float64(n)/1e6)
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
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	// catchUpRate is the load while the worker is down, in orders/s.
	catchUpRate = 2000
	// eventsPerOrder: two commands, two answers. Orders that fail have more.
	eventsPerOrder = 4
	// patience: by default orders time out and are compensated when the worker is away for a minute, which would be other and
	// more events than those counted.
	patience = "ORDER_TIMEOUT=1h"
)

// catchUp stops what moves the events while orders go on, and measures how fast all is settled when it is back.
// Half of the events wait in the outbox then, the other half follow from them.
func (c *Campaign) catchUp(ctx context.Context) error {
	for _, name := range []string{bench.CDC, bench.Gathering, bench.Poller} {
		sys, err := find(name)
		if err != nil {
			return err
		}
		sys.Env = append(sys.Env, patience)
		shape := c.Shape
		shape.Refused = 0
		err = c.with(ctx, sys, shape, func(s *session) error {
			if err := s.warmUp(ctx, 3000); err != nil {
				return err
			}
			for range c.Repeats {
				if err := s.catchUp(ctx, sys); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *session) catchUp(ctx context.Context, sys System) error {
	mover := devstack.Connect
	if sys.Relay != nil {
		mover = relayName
	}
	if err := s.stack.Stop(ctx, mover); err != nil {
		return err
	}
	s.c.say("%s: %s is down, %d orders/s for %s", s.Name, mover, catchUpRate, s.c.Down)
	from := time.Now()
	placed, err := bench.Place(ctx, s.Target, s.shape, catchUpRate, s.c.Down, s.c.Progress)
	if err != nil {
		return err
	}
	back := time.Now()
	if sys.Relay != nil {
		err = s.stack.Start(ctx, s.mover)
	} else {
		err = s.resume(ctx)
	}
	if err != nil {
		return err
	}
	flowing := time.Now()
	if err := bench.Drain(ctx, s.Target, from); err != nil {
		return err
	}
	seconds := time.Since(back).Seconds() // some events flow before all connectors do: the start counts
	failed, err := bench.Failed(ctx, s.Target, from)
	if err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%s: %d of %d orders failed: they had other events than those that are counted", s.Name, failed, placed)
	}
	got := bench.CatchUp{
		System: s.Name, DownSeconds: math.Round(s.c.Down.Seconds()), Rate: catchUpRate, Waiting: placed * eventsPerOrder / 2,
		StartSeconds: math.Round(flowing.Sub(back).Seconds()*10) / 10, Seconds: math.Round(seconds*10) / 10,
		EventsPerSecond: math.Round(float64(placed*eventsPerOrder) / seconds), EventsPerOrder: eventsPerOrder,
	}
	s.c.say("%s: %d orders caught up within %.1f s, %.0f events/s", s.Name, placed, got.Seconds, got.EventsPerSecond)
	s.c.Report.CatchUps = append(s.c.Report.CatchUps, got)
	return s.c.save()
}

// resume starts the worker again, which has its connectors.
func (s *session) resume(ctx context.Context) error {
	if err := s.stack.UpOnly(ctx, devstack.Connect); err != nil {
		return err
	}
	client := connect.Client{URL: s.stack.ConnectURL()}
	for _, d := range system.Databases() {
		if err := client.WaitStreaming(ctx, d.Name, s.stack.PostgresURL(d.Name), provision.Database{Name: d.Name}.Slot()); err != nil {
			return err
		}
	}
	return nil
}

// ceilings has PostgreSQL and Kafka alone.
func (c *Campaign) ceilings(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "outboxsaga-bench")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		return err
	}
	cfg := devstack.Config{Dir: dir, Root: c.Root, Ephemeral: true}
	if err := cfg.UseFreePorts(); err != nil {
		return err
	}
	stack, err := devstack.Open(cfg)
	if err != nil {
		return err
	}
	defer func() {
		if closing := stack.Close(); err == nil {
			err = closing
		}
	}()
	if err := stack.UpOnly(ctx, devstack.Postgres, devstack.Kafka); err != nil {
		return err
	}
	if err := system.Provision(ctx, stack.PostgresURL("postgres"), nil, stack.Brokers(), stack.ReplicationFactor()); err != nil {
		return err
	}
	found, err := c.Ceilings(ctx, stack, c.Step)
	if err != nil {
		return err
	}
	records, err := bench.ProduceConsume(ctx, stack.Brokers(), c.Step)
	if err != nil {
		return err
	}
	c.Report.Ceilings = append(found, records)
	for _, f := range c.Report.Ceilings {
		c.say("%s: %.0f/s", f.Name, f.PerSecond)
	}
	return c.save()
}
