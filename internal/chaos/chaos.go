// Package chaos shoots at a running system and proves that it lost nothing.
//
// [Run] starts a stack of its own, puts orders in at a fixed rate, and injects faults by a
// schedule that a seed decides. After each fault it measures the time until orders flow again;
// at the end it lets the system come to rest and audits it. What it asks for is in [Report].
package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Config says what to shoot at, and for how long.
type Config struct {
	// Root is the checkout, Bin the folder with the services and outboxctl. Required.
	Root, Bin string
	// Dir holds the stack's state; it must not exist or be empty, and is removed. Required.
	Dir string
	// Seed decides the schedule: kinds, targets, times.
	Seed uint64
	// Duration is how long faults are injected. What runs then is healed and audited.
	Duration time.Duration
	// Rate is how many orders are placed a second.
	Rate int
	// Instances of each service, Brokers and Workers of Kafka. With one of a kind nobody can take
	// over: it is started again at once, as an init system would do.
	Instances, Brokers, Workers int
	// Fast trades speed of the JVMs for their start-up time.
	Fast bool
	// Only names the kinds of faults to inject, in this order, over and over; empty: all, as Seed decides.
	Only []string
	// Overlap is the percentage of faults that may begin while another, independent one lasts. The others begin when
	// everything works, and have the system to themselves until orders flow again.
	Overlap int
	// AtOnce is how many faults may last at the same time, default 2.
	AtOnce int
	// MaxFaults ends the injection earlier than Duration; 0: it does not. With fewer than MinFaults the report has
	// missed what it was asked for.
	MinFaults, MaxFaults int
	// Strict: a bar that is not met is missed too.
	Strict bool
	// Ahead is how far ahead a clock may jump, default 2 min. The audit waits for as long.
	Ahead time.Duration
	// Gap is the shortest time between the beginnings of two faults.
	Gap time.Duration
	// Limit is how long the flow of orders may take to come back after a fault; longer is a violation.
	Limit time.Duration
	// Quiet is how long everything may take to settle at the end.
	Quiet time.Duration
	// Logs, if set, is a folder for the logs of a run that was not clean or has missed something.
	Logs string
	// Out gets the timeline.
	Out io.Writer
}

func (c *Config) validate() error {
	switch {
	case c.Root == "" || c.Bin == "" || c.Dir == "":
		return errors.New("chaos: Config.Root, Bin and Dir are required")
	case c.Duration <= 0 || c.Rate <= 0:
		return errors.New("chaos: duration and rate must be more than 0")
	case c.Instances < 1 || c.Brokers < 1 || c.Workers < 1:
		return errors.New("chaos: there must be at least one instance, broker and worker")
	case c.Overlap < 0 || c.Overlap > 100:
		return errors.New("chaos: overlap is a percentage, 0 to 100")
	case c.AtOnce < 0:
		return errors.New("chaos: at least one fault must be allowed at once")
	case c.MinFaults < 0 || c.MaxFaults < 0 || c.MaxFaults > 0 && c.MaxFaults < c.MinFaults:
		return errors.New("chaos: the least and the most faults must not be negative, nor the most less than the least")
	}
	for _, p := range []struct{ value, byDefault *time.Duration }{
		{&c.Ahead, new(2 * time.Minute)}, {&c.Gap, new(time.Second)}, {&c.Limit, new(2 * time.Minute)}, {&c.Quiet, new(8 * time.Minute)},
	} {
		if *p.value == 0 {
			*p.value = *p.byDefault
		}
	}
	if c.AtOnce == 0 {
		c.AtOnce = 2
	}
	if c.Out == nil {
		c.Out = io.Discard
	}
	return nil
}

// Run runs the whole show. An error means that it could not be run; what the system did wrong is in
// the report's violations.
func Run(ctx context.Context, cfg Config) (Report, error) {
	report := Report{
		Seed: cfg.Seed, Rate: cfg.Rate, Instances: cfg.Instances, Brokers: cfg.Brokers, Workers: cfg.Workers,
		MinFaults: cfg.MinFaults, Strict: cfg.Strict,
	}
	if err := cfg.validate(); err != nil {
		return report, err
	}
	w, err := open(ctx, cfg)
	if w != nil {
		defer w.close()
	}
	if err != nil {
		return report, err
	}
	r := &run{cfg: cfg, world: w, report: &report, begin: time.Now()}
	err = r.run(ctx)
	if cfg.Logs != "" && (err != nil || !report.Clean() || len(report.Missed()) > 0) {
		to := filepath.Join(cfg.Logs, fmt.Sprintf("chaos-%d-logs-%d", cfg.Seed, time.Now().Unix()))
		err = errors.Join(err, os.CopyFS(to, os.DirFS(filepath.Join(cfg.Dir, "logs"))))
		r.say("the logs are in %s", to)
	}
	return report, err
}

// run is a run in progress.
type run struct {
	cfg    Config
	world  *world
	report *Report
	load   *load
	begin  time.Time

	mu     sync.Mutex // guards what follows and report
	active map[*Event]fault
}

// say prints a line of the timeline.
func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.cfg.Out, "%7.1fs  %s\n", time.Since(r.begin).Seconds(), fmt.Sprintf(format, args...))
}

func (r *run) violate(format string, args ...any) {
	r.mu.Lock()
	r.report.Violations = append(r.report.Violations, fmt.Sprintf(format, args...))
	r.mu.Unlock()
	r.say("VIOLATION: "+format, args...)
}

func (r *run) run(ctx context.Context) error {
	r.active = map[*Event]fault{}
	kinds, skipped := r.world.catalogue()
	r.report.Skipped = skipped
	next, err := plan(r.cfg.Seed, kinds, skipped, r.cfg.Only)
	if err != nil {
		return err
	}
	for _, s := range skipped {
		r.say("left out: %s: %s", s.Kind, s.Reason)
	}
	if r.load, err = startLoad(ctx, r.world, r.cfg.Rate, r.cfg.Seed); err != nil {
		return err
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	var watchers sync.WaitGroup
	watchers.Go(func() { r.load.watch(watching) })
	watchers.Go(func() { r.sample(watching) })
	defer watchers.Wait()
	defer stopWatching()

	// Faults count from a system that works.
	if _, err := r.load.flowing(ctx, time.Now(), r.cfg.Limit); err != nil {
		r.load.stop()
		return fmt.Errorf("orders do not flow even before the first fault: %w", err)
	}
	r.say("seed %d: orders flow at %d/s, faults begin", r.cfg.Seed, r.cfg.Rate)
	begin := time.Now()
	r.shoot(ctx, next)
	r.report.Seconds = time.Since(begin).Seconds()
	r.say("faults end after %d; waiting for quiet", len(r.report.Faults))
	r.load.stop()
	r.settle(ctx)
	stopWatching()
	watchers.Wait()
	r.finish(ctx)
	return ctx.Err()
}

// A fault of the schedule that has to wait until another one is over lets up to lookAhead later
// ones pass, for at most maxWait.
const (
	lookAhead = 4
	maxWait   = 15 * time.Second
)

// shoot injects faults until the time is over or there were enough, and waits for the last ones.
func (r *run) shoot(ctx context.Context, next func() fault) {
	open, cancel := context.WithTimeout(ctx, r.cfg.Duration)
	defer cancel()
	type planned struct {
		fault
		overlap bool
	}
	dice := rand.New(rand.NewPCG(r.cfg.Seed, 2))
	var waiting []planned
	since := time.Now() // the first of them waits
	var running sync.WaitGroup
	defer running.Wait()
	for begun := 0; open.Err() == nil && (r.cfg.MaxFaults == 0 || begun < r.cfg.MaxFaults); {
		ahead := lookAhead
		if len(r.cfg.Only) > 0 { // in this order
			ahead = 0
		}
		for len(waiting) <= ahead {
			waiting = append(waiting, planned{next(), dice.IntN(100) < r.cfg.Overlap})
		}
		candidates := waiting
		if time.Since(since) > maxWait {
			candidates = waiting[:1]
		}
		var e *Event
		i := slices.IndexFunc(candidates, func(p planned) bool {
			e = r.begun(p.fault, p.overlap)
			return e != nil
		})
		if i < 0 {
			pause(open, 50*time.Millisecond)
			continue
		}
		if i == 0 {
			since = time.Now()
		}
		f := waiting[i].fault
		waiting = slices.Delete(waiting, i, i+1)
		begun++
		running.Go(func() { r.inject(ctx, f, e) })
		pause(open, r.cfg.Gap)
	}
}

// begun is nil while f has to wait for faults that last.
func (r *run) begun(f fault, overlap bool) *Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	lasting := 0
	for other := range r.active {
		lasting += bit(!other.mending)
		if !other.mending && !other.overlap {
			return nil
		}
	}
	if lasting >= r.cfg.AtOnce || len(r.active) >= r.cfg.AtOnce+2 || !overlap && len(r.active) > 0 {
		return nil
	}
	for _, other := range r.active {
		for _, touched := range other.description().touches {
			if slices.Contains(f.description().touches, touched) {
				return nil
			}
		}
	}
	e := &Event{At: time.Since(r.begin).Seconds(), Kind: f.description().kind, Name: f.description().name, Alone: true, overlap: overlap}
	for other := range r.active {
		e.Alone = false
		other.Alone = other.Alone && other.mending // its time is known already
	}
	r.active[e] = f
	r.report.Faults = append(r.report.Faults, e)
	return e
}

// inject lets a fault happen, end, and waits for the flow of orders.
func (r *run) inject(ctx context.Context, f fault, e *Event) {
	a := f.description()
	if f, ok := f.(interface{ end(context.Context) }); ok {
		defer f.end(context.WithoutCancel(ctx))
	}
	defer func() {
		r.mu.Lock()
		delete(r.active, e)
		r.mu.Unlock()
	}()
	r.say("%s", a.name)
	from := time.Now()
	failedBefore := r.load.failures()
	defer func() {
		n := r.load.failures() - failedBefore
		r.mu.Lock()
		e.FailedRequests = n
		r.mu.Unlock()
	}()
	failed := func(what string, err error) {
		r.mu.Lock()
		e.Error = fmt.Sprintf("%s: %v", what, err)
		r.mu.Unlock()
		if ctx.Err() == nil {
			r.violate("%s: %s: %v", a.name, what, err)
		}
	}
	injected := f.inject(ctx)
	if injected != nil {
		failed("inject", injected)
	}
	recovered := func() bool {
		took, err := r.load.flowing(ctx, from, r.cfg.Limit)
		if err != nil {
			failed("no normal flow", err)
			return false
		}
		r.mu.Lock()
		e.Recovery = took.Seconds()
		r.mu.Unlock()
		r.say("%s: orders flow again after %.1f s", a.name, took.Seconds())
		return true
	}
	if a.clock == fromFaultUnhealed && injected == nil {
		recovered()
	}
	if a.clock != fromFaultHealed {
		pause(ctx, a.hold-time.Since(from))
	}
	if a.clock == fromHeal {
		from = time.Now()
	}
	if a.clock == fromFaultUnhealed {
		// The flow is back; while a process starts again, the next fault may come.
		r.mu.Lock()
		e.mending = true
		r.mu.Unlock()
	}
	// What was broken is mended also when the run is ended early.
	heal, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Limit)
	defer cancel()
	if err := f.heal(heal); err != nil {
		failed("heal", err)
		return
	}
	if injected != nil {
		return
	}
	if a.clock != fromFaultUnhealed {
		recovered()
	} else if _, err := r.load.flowing(ctx, time.Now(), r.cfg.Limit); err != nil { // the heal disturbs too
		failed("no normal flow after the heal", err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
