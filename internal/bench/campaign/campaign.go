package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"outboxsaga/internal/bench"
	"outboxsaga/internal/devstack"
)

// Options say how much is measured.
type Options struct {
	Rates     []int         // orders/s of the points, where systems are compared
	CaseRates []int         // orders/s of the points, where the product is compared with itself
	Duration  time.Duration // of a point
	Warmup    time.Duration // of each system after its start
	Idle      time.Duration // of a point with next to no load; 0: none
	Repeats   int           // of each block
	// The search for the highest rate that holds.
	Maximum             bool
	From                int // where it begins; 0: above the highest fixed rate that held
	Step, Confirm, Most time.Duration
	SeededOrders        []int         // of the part growth, ascending
	Down                time.Duration // of the part catch-up
	Soak                Soak
	Shape               bench.Shape
	Instances           int
	Systems             []string // of the part latency
}

// Quick takes up to 8 minutes, on 2 slow cores too: a test adds it up.
func Quick() Options {
	o := Full()
	o.Rates, o.Repeats = []int{200, 500, 2000}, 1
	o.Duration, o.Warmup, o.Idle = 12*time.Second, 33*time.Second, 10*time.Second
	o.Step, o.Confirm, o.Most = 6*time.Second, 15*time.Second, 40*time.Second
	o.Systems = []string{bench.CDC, bench.Poller}
	return o
}

// Usual is for a look at the product alone.
func Usual() Options {
	o := Full()
	o.Rates, o.Repeats, o.Systems = []int{200, 500, 2000}, 1, []string{bench.CDC}
	o.Duration, o.Warmup, o.Idle, o.Step = 20*time.Second, 45*time.Second, 0, 20*time.Second
	return o
}

// Full takes hours.
func Full() Options {
	return Options{
		Rates: []int{200, 500, 1000, 2000, 4000}, CaseRates: []int{500, 2000}, Duration: 30 * time.Second, Warmup: time.Minute, Idle: 30 * time.Second, Repeats: 3,
		Maximum: true, Step: 10 * time.Second, Confirm: time.Minute,
		SeededOrders: []int{0, 1_000_000, 5_000_000}, Down: time.Minute, Soak: Soak{Orders: 1_000_000, Rate: 1000, Days: 10},
		Shape: bench.Shape{Customers: 1000, Items: 1000}, Instances: 1,
		Systems: []string{bench.CDC, bench.Gathering, bench.Poller},
	}
}

// Campaign is a benchmark under way.
type Campaign struct {
	Builder
	Options
	Report *bench.Report
	// Save is called when the report has grown, so that what was measured outlives an interruption. May be nil.
	Save func(bench.Report) error
	// Progress is called while a point is measured. May be nil.
	Progress func(bench.Progress)
	// Ceilings drives the pieces of the services alone, on a stack without them. Only commands may know the services.
	Ceilings func(ctx context.Context, stack *devstack.Stack, each time.Duration) ([]bench.Ceiling, error)

	begin time.Time
}

// Part is a piece of the benchmark that can be run alone.
type Part struct {
	Name, About string
	run         func(*Campaign, context.Context) error
}

// Parts are all, in the order in which they run.
func Parts() []Part {
	return []Part{
		{bench.PartLatency, "the product and its best rival at fixed rates, idle, and their maximum", (*Campaign).latency},
		{bench.PartRivals, "other polling relays", (*Campaign).rivals},
		{"intervals", "Debezium at other intervals", (*Campaign).intervals},
		{bench.Single, "the product with one transaction an event", (*Campaign).single},
		{"shapes", "hot items, many lines, refusals, many customers, two instances", (*Campaign).shapes},
		{bench.PartGrowth, "the product with orders already there", (*Campaign).growth},
		{"catch-up", "how fast events flow after the worker was down under load", (*Campaign).catchUp},
		{"ceilings", "the pieces alone", (*Campaign).ceilings},
		{bench.PartSoak, "a million orders over ten days with audits and retention, and whether anything grows", (*Campaign).soak},
	}
}

// Run runs some parts. The report has what was measured before an error too.
func (c *Campaign) Run(ctx context.Context, names ...string) error {
	c.begin = time.Now()
	for _, name := range names {
		found := false
		for _, p := range Parts() {
			if p.Name != name {
				continue
			}
			found = true
			c.say("part %s: %s", p.Name, p.About)
			if err := p.run(c, ctx); err != nil {
				return fmt.Errorf("part %s: %w", p.Name, err)
			}
		}
		if !found {
			return fmt.Errorf("there is no part %s: the parts are %s", name, partNames())
		}
	}
	return nil
}

func partNames() (names []string) {
	for _, p := range Parts() {
		names = append(names, p.Name)
	}
	return names
}

func (c *Campaign) say(format string, args ...any) {
	fmt.Fprintf(c.Out, "[%4.0f s] %s\n", time.Since(c.begin).Seconds(), fmt.Sprintf(format, args...))
}

// with starts a system, warms it up, and runs do on it.
func (c *Campaign) with(ctx context.Context, sys System, shape bench.Shape, do func(*session) error) (err error) {
	c.say("%s: starting", sys.Name)
	r, err := c.start(ctx, sys, shape)
	if err != nil {
		return err
	}
	defer func() {
		if closing := r.close(); err == nil {
			err = closing
		}
	}()
	s := &session{c: c, running: r, shape: shape, begin: time.Now()}
	if err := s.flows(ctx); err != nil {
		return err
	}
	return do(s)
}

// session is a system while it is measured.
type session struct {
	*running
	c          *Campaign
	shape      bench.Shape
	part, name string // of the points
	confirms   bool   // they are confirmations
	begin      time.Time
	filled     string // where the log was after [session.fillLog]
}

// flows waits until orders settle: all parts of the system have found each other.
func (s *session) flows(ctx context.Context) error {
	for end := time.Now().Add(time.Minute); ; {
		p, err := bench.Run(ctx, s.Target, bench.Shape{Customers: s.shape.Customers, Items: s.shape.Items}, 2, time.Second, nil)
		if err != nil {
			return err
		}
		if p.Unfinished+p.Rejected == 0 && p.P50 < 10_000 {
			return nil
		}
		if time.Now().After(end) {
			return errors.New("no order settles within a minute of the start")
		}
	}
}

// warmUp loads the system until its JVMs have compiled, with rates up to top and to what it can do: a backlog warms no more than
// the load that makes it, and takes time to go.
func (s *session) warmUp(ctx context.Context, top int) error {
	if s.c.Warmup == 0 {
		return nil
	}
	s.c.say("%s: warming up for %s", s.Name, s.c.Warmup)
	if err := s.fillLog(ctx); err != nil {
		return err
	}
	for i, rate := range []int{200, 1000, 3000} {
		if i == 1 {
			if err := s.recycleLog(ctx); err != nil {
				return err
			}
		}
		rate = min(rate, top)
		p, err := s.run(ctx, rate, s.c.Warmup/3)
		if err != nil {
			return err
		}
		if p.P50 > 1000 {
			top = rate
		}
	}
	return nil
}

// logSegments is how many files of 16 MiB the log gets: a minute or two of the highest rates, made in some 5 s.
const logSegments = 64

// fillLog goes through files of PostgreSQL's log, which the next checkpoint makes future ones. A server that has run for some hours has
// them, and a new one would make one every few seconds under load: whoever commits then waits until 16 MiB are written.
func (s *session) fillLog(ctx context.Context) error {
	for range logSegments {
		if _, err := s.DB.Exec(ctx, `SELECT pg_logical_emit_message(false, 'outbox-hb', '')`); err != nil {
			return err
		}
		if _, err := s.DB.Exec(ctx, `SELECT pg_switch_wal()`); err != nil {
			return err
		}
	}
	// Slots can begin at such a snapshot, which is behind those files.
	if err := s.DB.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&s.filled); err != nil {
		return err
	}
	_, err := s.DB.Exec(ctx, `SELECT pg_log_standby_snapshot()`)
	return err
}

// recycleLog has a checkpoint make those files future ones, when all slots have moved on from them: connectors confirm every few seconds.
func (s *session) recycleLog(ctx context.Context) error {
	for end := time.Now().Add(15 * time.Second); ; {
		var behind bool
		if err := s.DB.QueryRow(ctx, `SELECT coalesce(min(restart_lsn) >= $1::text::pg_lsn, true) FROM pg_replication_slots`, s.filled).Scan(&behind); err != nil {
			return err
		}
		if behind {
			break
		}
		if time.Now().After(end) {
			s.c.say("%s: a replication slot has not moved on: PostgreSQL makes new files of its log under load", s.Name)
			break
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	_, err := s.DB.Exec(ctx, `CHECKPOINT`)
	return err
}

// run measures without keeping, and lets the system come to rest.
func (s *session) run(ctx context.Context, rate int, d time.Duration) (bench.Point, error) {
	p, err := bench.Run(ctx, s.Target, s.shape, rate, max(d, time.Second), s.c.Progress)
	if err != nil {
		return p, err
	}
	p.Part, p.Case, p.Confirms = s.part, s.name, s.confirms
	if p.Holds() {
		return p, nil
	}
	return p, bench.Drain(ctx, s.Target, s.begin)
}

// point measures and keeps.
func (s *session) point(ctx context.Context, rate int, d time.Duration) (bench.Point, error) {
	p, err := s.run(ctx, rate, d)
	if err != nil {
		return p, err
	}
	fmt.Fprintln(s.c.Out, p.Row())
	s.c.Report.Runs = append(s.c.Report.Runs, p)
	return p, s.c.save()
}

func (c *Campaign) save() error {
	if c.Save == nil {
		return nil
	}
	return c.Save(*c.Report)
}

// points measures some rates, and returns the highest of them that held.
func (s *session) points(ctx context.Context, rates ...int) (held int, err error) {
	for _, rate := range rates {
		p, err := s.point(ctx, rate, s.c.Duration)
		if err != nil {
			return held, err
		}
		if p.Holds() {
			held = max(held, rate)
		}
	}
	return held, nil
}

// idle measures next to no load, after what the load before has left to do is done. It leaves the system as it is a while after a
// checkpoint, by a load of top at most: the first change of a page after one has the whole page in the WAL.
func (s *session) idle(ctx context.Context, top int, rates ...int) error {
	if s.c.Idle == 0 {
		return nil
	}
	for _, pool := range s.pools {
		if _, err := pool.Exec(ctx, `VACUUM (ANALYZE)`); err != nil {
			return err
		}
	}
	if _, err := s.DB.Exec(ctx, `CHECKPOINT`); err != nil {
		return err
	}
	if err := wait(ctx, 2*time.Second); err != nil {
		return err
	}
	for _, rate := range rates {
		if _, err := s.point(ctx, rate, s.c.Idle); err != nil {
			return err
		}
	}
	_, err := s.run(ctx, min(200, top), 5*time.Second)
	return err
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// search is one for the highest rate that holds, after points of which the highest that held is given.
func (o Options) search(rates []int, held int) bench.Search {
	s := bench.Search{Held: held, Start: o.From, Step: o.Step, Confirm: o.Confirm, Most: o.Most}
	switch {
	case o.From > 0 && held >= o.From:
		s.Held = 0
	case o.From == 0 && held == 0: // the lowest rate has another try
		s.Start = 1000
		for _, rate := range rates {
			if rate > 0 {
				s.Start = min(s.Start, rate)
			}
		}
	}
	return s
}

// maximum searches the highest rate that holds, after points at some rates.
func (s *session) maximum(ctx context.Context, rates []int, held int) error {
	s.c.say("%s: searching the highest rate that holds", bench.Keyed(s.Name, s.name))
	part := s.part
	defer func() { s.part, s.confirms = part, false }()
	s.part = bench.PartMaximum
	search := s.c.search(rates, held)
	search.Run = func(rate int, d time.Duration, confirms bool) (bench.Point, error) {
		s.confirms = confirms
		return s.point(ctx, rate, d)
	}
	found, err := search.Find()
	if err != nil {
		return err
	}
	s.c.say("%s: orders/s that hold: %s", bench.Keyed(s.Name, s.name), found)
	s.c.Report.Found(bench.Keyed(s.Name, s.name), found)
	return s.c.save()
}
