package inbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// startTimeout bounds the checks that Run makes before it consumes.
const startTimeout = 10 * time.Second

// rebalanceTimeout is how long the group waits for a member that has to join anew, and the client for the answer, which a
// broker that froze at that moment never gives. It is 60 s by default. A transaction in hand that takes
// longer costs the membership, no event: whoever takes over waits for it at the inbox.
const rebalanceTimeout = 10 * time.Second

// The client's own commits have no deadline: those that wait for a frozen coordinator, half a minute each, keep the member
// from joining again. Ours are made every commitInterval, one at a time, each within commitTimeout.
const (
	commitInterval = time.Second
	commitTimeout  = 3 * time.Second
	noAutoCommit   = 1000 * time.Hour
)

// probeTimeout is how long an empty commit may take in a database that can work.
const probeTimeout = 2 * time.Second

// windowAge is how old the consumer's knowledge of the inbox's partitions may be.
const windowAge = time.Minute

// maxSkew is how far ahead of both the database's clock and this machine's an event's id may be.
const maxSkew = 24 * time.Hour

// firstBackoff is the wait after a fault, which doubles. maxBackoff is the longest wait for an event's next attempt, where the first one
// is not longer.
const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 30 * time.Second
)

// Consumer consumes topics into the inbox. [New] makes one, [Consumer.Run] runs it.
type Consumer struct {
	cfg Config
	now func() time.Time
	// idleBound: the pool's connections have idle_in_transaction_session_timeout from their start, which spares a statement.
	idleBound bool
	ran       atomic.Bool

	// mu is held during each transaction and by the callbacks of a rebalance. It
	// guards what follows.
	mu     sync.Mutex
	client *kgo.Client
	queue  *queue
	since  time.Time
	until  time.Time
	clock  time.Time // the database's, or this machine's if that was later
	read   time.Time // when since, until and clock were read, and whose the inbox is

	next     map[partition]int64 // of partitions that brought records: the offset after the last one
	rejoined time.Time           // topics that were made anew
	began    time.Time           // the last transaction, unless it was full
	refused  error               // why the group will never have this member

	// limit is the size of the next batch. It halves when a batch fails for a reason
	// that is no fault, down to the culprit, and doubles with each success, up to most.
	limit int
	// most is below Config.MaxBatch after a batch that took longer than Config.Timeout, or lost its connection: the same one might again.
	// It halves then, and grows by a twentieth of MaxBatch with each success.
	most int

	// health is for Ready, which must not wait for the transaction in hand.
	health struct {
		sync.Mutex
		client *kgo.Client
		joined bool      // partitions were assigned, perhaps none, and not lost since
		fault  error     // why the database cannot work; nil while it can
		owned  time.Time // when the inbox was found to be this group's
		begun  time.Time // when the transaction in hand began; zero: there is none
	}
}

// New checks cfg and makes a consumer. It connects to nothing.
func New(cfg Config) (*Consumer, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	_, idleBound := cfg.Pool.Config().ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"]
	return &Consumer{cfg: cfg, now: time.Now, idleBound: idleBound, queue: newQueue(), next: map[partition]int64{}, limit: cfg.MaxBatch, most: cfg.MaxBatch}, nil
}

// Run consumes until ctx is done, then finishes the transaction in hand, commits the
// offsets, leaves the group and returns nil. It returns an error at once if the
// brokers cannot be reached within 10 s, a topic does not exist or the group refuses the settings. Later faults
// of Kafka or the database are waited out. It may be called once: a second call is an error.
func (c *Consumer) Run(ctx context.Context) error {
	if c.ran.Swap(true) {
		return errors.New("inbox: Run was called before: make another Consumer with New")
	}
	opts := append([]kgo.Opt{
		kgo.SeedBrokers(c.cfg.Brokers...),
		kgo.ConsumerGroup(c.cfg.Group),
		kgo.ConsumeTopics(c.cfg.Topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(c.cfg.SessionTimeout),
		kgo.HeartbeatInterval(c.cfg.SessionTimeout / 6),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.AutoCommitMarks(),
		kgo.AutoCommitInterval(noAutoCommit), // see commit
		kgo.BlockRebalanceOnPoll(),
		kgo.FetchMaxBytes(16 << 20),
		// A broker that is frozen says nothing, and is found out after this time and that of a fetch.
		kgo.RequestTimeoutOverhead(3 * time.Second),
		// A broker that came back, or a new topic, is found at once, not after 5 s.
		kgo.MetadataMinAge(250 * time.Millisecond),
		// Partitions whose leader has moved wait for the end of the request that their new broker holds
		// for want of records: 5 s by default.
		kgo.FetchMaxWait(500 * time.Millisecond),
		// Not up to 5 s: a group whose coordinator has moved should not stand still for longer than that takes.
		kgo.RetryBackoffFn(func(fails int) time.Duration {
			return jitter(min(time.Second, 125*time.Millisecond<<min(fails, 4)))
		}),
		// Else the client keeps to itself for 12 s that a topic was made anew.
		kgo.KeepRetryableFetchErrors(),
		kgo.OnPartitionsAssigned(c.assigned),
		kgo.OnPartitionsRevoked(c.revoked),
		kgo.OnPartitionsLost(c.lost),
	}, c.cfg.ClientOptions...)
	if c.cfg.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(c.cfg.InstanceID))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return errorf("kafka client", err)
	}
	defer client.CloseAllowingRebalance()
	if err := c.checkTopics(ctx, client); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	c.mu.Lock()
	c.client = client
	c.mu.Unlock()
	c.health.Lock()
	c.health.client = client
	c.health.Unlock()
	defer func() {
		c.health.Lock()
		c.health.client, c.health.joined = nil, false
		c.health.Unlock()
	}()

	regular, stop := context.WithCancel(ctx)
	var committing sync.WaitGroup
	committing.Go(func() { c.commitRegularly(regular, client) })
	defer committing.Wait()
	defer stop()
	for ctx.Err() == nil {
		wake := c.work(ctx)
		c.poll(ctx, wake)
		c.gather(ctx)
		if c.refused != nil {
			return c.refused
		}
	}
	c.commit(context.WithoutCancel(ctx), client, "inbox: last offsets not committed; their records come again and are skipped")
	return nil
}

// commitRegularly commits the offsets of what is handled until ctx is done.
func (c *Consumer) commitRegularly(ctx context.Context, client *kgo.Client) {
	for tick := time.NewTicker(commitInterval); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
			c.commit(ctx, client, "inbox: offsets not committed; trying again")
		}
	}
}

// commit commits the offsets of what is handled, or logs why it could not.
func (c *Consumer) commit(ctx context.Context, client *kgo.Client, failed string) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	if err := client.CommitMarkedOffsets(ctx); err != nil && !errors.Is(err, context.Canceled) {
		c.cfg.Logger.Warn(failed, "error", err)
	}
}

func (c *Consumer) checkTopics(ctx context.Context, client *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	topics, err := kadm.NewClient(client).ListTopics(ctx, c.cfg.Topics...)
	if err != nil {
		return fmt.Errorf("inbox: no answer from Kafka at %v: check the address and that a broker runs there: %w", c.cfg.Brokers, err)
	}
	for _, t := range c.cfg.Topics {
		if err := topics[t].Err; err != nil {
			return fmt.Errorf("inbox: topic %q: create it first: %w", t, err)
		}
		if n := len(topics[t].Partitions); c.cfg.Partitions > 0 && n != c.cfg.Partitions {
			return fmt.Errorf("inbox: topic %q has %d partitions, it must have %d: %w; move it aside or restore it", t, n, c.cfg.Partitions, ErrPartitions)
		}
	}
	return nil
}

// Ready is nil when the consumer can work: it runs, is a member of its group, a
// broker answers, the inbox is not another group's, the last transaction did not meet a fault, and the one in hand does not take
// longer than twice Config.Timeout and 2 s. It waits for the broker, and without events for the database, until ctx is done.
func (c *Consumer) Ready(ctx context.Context) error {
	c.health.Lock()
	client, joined, fault, owned, begun := c.health.client, c.health.joined, c.health.fault, c.health.owned, c.health.begun
	c.health.Unlock()
	switch {
	case client == nil:
		return errors.New("inbox: the consumer does not run")
	case !begun.IsZero() && time.Since(begun) > c.hung():
		return fmt.Errorf("inbox: a transaction that began %s ago does not end: its handler must return when its context is done", time.Since(begun).Round(time.Second))
	case fault != nil:
		return errorf("waiting for the database", fault)
	case !joined:
		return errors.New("inbox: not yet a member of the consumer group")
	}
	if c.now().Sub(owned) > windowAge+probeTimeout { // it has had no event
		if err := c.checkOwner(ctx, c.cfg.Pool); err != nil {
			return err
		}
	}
	if err := client.Ping(ctx); err != nil {
		return errorf("no broker answers", err)
	}
	return nil
}

// hung is a time that a transaction and what comes with it never take, unless a handler ignores its context.
func (c *Consumer) hung() time.Duration { return 2*c.cfg.Timeout + probeTimeout }

// setFault notes why the database cannot work, or that it can.
func (c *Consumer) setFault(err error) {
	c.health.Lock()
	c.health.fault = err
	c.health.Unlock()
}

func (c *Consumer) setBegun(at time.Time) {
	c.health.Lock()
	c.health.begun = at
	c.health.Unlock()
}

func (c *Consumer) setJoined(joined bool) {
	c.health.Lock()
	c.health.joined = joined
	c.health.Unlock()
}

// poll waits for records, until wake if that is set, and queues them.
func (c *Consumer) poll(ctx context.Context, wake time.Time) {
	if !wake.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wake.Sub(c.now()))
		defer cancel()
	}
	c.pause()
	fetches := c.client.PollRecords(ctx, c.cfg.MaxBatch)
	remade := c.take(fetches)
	c.client.AllowRebalance()
	if len(remade) > 0 {
		c.rejoin(ctx, remade)
	}
}

// gather queues what comes until the next transaction may begin, or is full.
func (c *Consumer) gather(ctx context.Context) {
	if c.cfg.Pace == nil {
		return
	}
	for until := c.began.Add(c.cfg.Pace()); c.now().Before(until) && ctx.Err() == nil && c.refused == nil && !c.isFull(); {
		c.poll(ctx, until)
	}
}

// isFull tells whether a batch is in hand that could not be larger.
func (c *Consumer) isFull() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, full, _ := c.queue.ready(c.now(), c.limit)
	return full
}

// take queues the records of a poll, and returns the topics that were deleted and made anew.
func (c *Consumer) take(fetches kgo.Fetches) (remade []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fetches.EachError(func(topic string, p int32, err error) {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kgo.ErrClientClosed) {
			return
		}
		if errors.Is(err, kerr.UnknownTopicID) {
			if !slices.Contains(remade, topic) {
				remade = append(remade, topic)
			}
			return
		}
		if kerr.IsRetriable(err) { // a leader moves: the client sees to it
			return
		}
		if errors.Is(err, kerr.InvalidSessionTimeout) {
			c.refused = fmt.Errorf("inbox: the broker refuses a session timeout of %s: it must lie between the broker's group.min.session.timeout.ms (6 s where nobody has lowered it) and group.max.session.timeout.ms: %w", c.cfg.SessionTimeout, err)
			return
		}
		c.cfg.Logger.Error("inbox: fetch failed", "topic", topic, "partition", p, "error", err)
	})
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		p := partition{f.Topic, f.Partition}
		c.missed(p, f)
		for _, r := range f.Records {
			c.queue.add(p, parse(r, c.cfg.Decode))
		}
	})
	return remade
}

// missed tells of records before those of a fetch that the group has not handled and Kafka no longer has. The client goes on behind them.
func (c *Consumer) missed(p partition, f kgo.FetchTopicPartition) {
	if len(f.Records) == 0 {
		return
	}
	first := f.Records[0].Offset
	next, known := c.next[p]
	if !known {
		if next = c.client.CommittedOffsets()[p.topic][p.number].Offset; next <= 0 { // the group begins, as far as anybody knows
			next = first
		}
	}
	c.next[p] = f.Records[len(f.Records)-1].Offset + 1
	// Other gaps are Kafka's own: of transactions, or of a compacted topic.
	upto := min(first, f.LogStartOffset)
	if next >= upto {
		return
	}
	c.cfg.Logger.Error("inbox: Kafka has removed records before they were handled: their events have no effect, unless the outbox that sent them sends them again",
		"topic", p.topic, "partition", p.number, "offset", next, "records", upto-next)
	if c.cfg.Hooks.Lost != nil {
		c.cfg.Hooks.Lost(p.topic, p.number, upto-next)
	}
}

// rejoin consumes topics anew that have another identity than before: someone has deleted them,
// and perhaps made them again. The client would go on asking for the old ones. The group's
// offsets went with the topic, so the new one is read from its start.
func (c *Consumer) rejoin(ctx context.Context, topics []string) {
	if wait := time.Second - c.now().Sub(c.rejoined); wait > 0 { // a topic may be missing for long
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
	c.rejoined = c.now()
	c.cfg.Logger.Warn("inbox: topics were deleted; consuming those of the same name", "topics", topics)
	c.client.PurgeTopicsFromConsuming(topics...)
	c.mu.Lock()
	c.queue.dropTopics(topics)
	maps.DeleteFunc(c.next, func(p partition, _ int64) bool { return slices.Contains(topics, p.topic) })
	c.mu.Unlock()
	c.client.AddConsumeTopics(topics...)
}

// pause has nothing more fetched of the partitions of which enough waits behind an event's retry, and all others fetched again.
func (c *Consumer) pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue.detach()
	full := c.queue.full(20 * c.cfg.MaxBatch)
	free := map[string][]int32{}
	for topic, numbers := range c.client.PauseFetchPartitions(full) { // returns those of before too
		for _, n := range numbers {
			if !slices.Contains(full[topic], n) {
				free[topic] = append(free[topic], n)
			}
		}
	}
	if len(free) > 0 {
		c.client.ResumeFetchPartitions(free)
	}
}

// work runs transactions until nothing is ready, and returns when something will be.
// A fault of the database is waited out here, with c.mu free, so that a rebalance
// can take partitions away meanwhile.
func (c *Consumer) work(ctx context.Context) time.Time {
	backoff := firstBackoff
	for ctx.Err() == nil {
		ran, wake, fault := c.step(ctx)
		if fault == nil {
			backoff = firstBackoff
			if !ran {
				return wake
			}
			continue
		}
		c.cfg.Logger.Warn("inbox: the database cannot work; trying again", "in", backoff, "error", fault)
		if c.cfg.Hooks.Fault != nil {
			c.cfg.Hooks.Fault(fault)
		}
		select {
		case <-ctx.Done():
		case <-time.After(jitter(backoff)):
		}
		backoff = min(2*backoff, c.cfg.FaultBackoff)
	}
	return time.Time{}
}

// step runs one transaction on what is ready; if nothing is, wake is when something will be. It outlives ctx: once begun, it ends
// by its own timeout only.
func (c *Consumer) step(ctx context.Context) (ran bool, wake time.Time, fault error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch, full, wake := c.queue.ready(c.now(), c.limit)
	if len(batch) == 0 {
		if wake.IsZero() { // whatever could not be done is not this instance's any more
			c.setFault(nil)
		}
		return false, wake, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Timeout)
	defer cancel()

	if h := c.cfg.Hooks.Begun; h != nil {
		h(len(batch))
	}
	start := time.Now()
	c.setBegun(start)
	if c.began = c.now(); full { // more may wait
		c.began = time.Time{}
	}
	defer c.setBegun(time.Time{})
	told := time.AfterFunc(c.hung(), func() {
		c.cfg.Logger.Error("inbox: a transaction does not end, and nothing is consumed meanwhile: its handler must return when its context is done", "events", len(batch), "since", start)
	})
	defer told.Stop()
	a := &attempt{c: c, items: batch}
	err := c.remember(ctx, batch)
	unable := err != nil // what the inbox remembers says nothing about the events
	if err == nil {
		err = a.run(ctx)
		unable = err != nil && (!a.began || a.unable || isFault(err))
	}
	switch {
	case err == nil:
		c.setFault(nil)
		a.settle()
		c.most = min(c.most+max(1, c.cfg.MaxBatch/20), c.cfg.MaxBatch)
		c.limit = min(2*c.limit, c.most)
		c.queue.settle(func(r *kgo.Record) { c.client.MarkCommitRecords(r) })
		if h := c.cfg.Hooks.Committed; h != nil {
			h(a.done, a.repeated, len(a.letters), time.Since(start))
		}
	case unable:
		c.setFault(err)
		one := mayBeOfOne(err) && (a.unable || c.cfg.Batch != nil) // what Each has not done says nothing about an event
		if told := one || isTimeout(err) || ctx.Err() != nil; a.began && (told || a.lost) {
			c.lighten(batch, told)
		}
		c.read = time.Time{}
		return true, wake, err
	case len(batch) > 1:
		c.limit = len(batch) / 2
	case len(a.letters) == 0 && batch[0].rejected == nil:
		batch[0].alone = true
		c.fail(batch[0], err)
	case c.cfg.DeadLetter != nil && !batch[0].silent:
		// The event that announces it cannot be made or written. The dead letter itself is what must not be lost.
		batch[0].silent = true
		c.cfg.Logger.Error("inbox: a dead letter cannot be announced; it is kept without that event", "event", batch[0].event.ID, "type", batch[0].event.Type,
			"topic", batch[0].event.Topic, "partition", batch[0].event.Partition, "offset", batch[0].event.Offset, "error", err)
	default: // not even the row can be written: nothing may be passed over, so all waits until someone has seen to it
		err = errorf("keep a dead letter", err)
		c.setFault(err)
		return true, wake, err
	}
	return true, wake, nil
}

// lighten has less tried at once after a batch that was late, lost its connection, or failed as one event can have it fail. If it was one
// event alone, perhaps that is to blame: it waits, and others may pass. The waits grow far beyond what an attempt takes, or such events
// would be all that is ever tried. Unless the connection was lost, it is not to blame where nothing can be committed; else nothing but
// this event waits for the database.
func (c *Consumer) lighten(batch []*item, connected bool) {
	if len(batch) > 1 {
		c.most = len(batch) / 2
		c.limit = c.most
		return
	}
	it := batch[0]
	it.alone = true
	if connected {
		if !c.canCommit() {
			return
		}
		c.setFault(nil)
	}
	it.retryAt = c.now().Add(doubled(firstBackoff, max(maxBackoff, 64*c.cfg.Timeout), it.stalls))
	it.stalls++
}

// canCommit tells whether the database commits what is no event's.
func (c *Consumer) canCommit() bool {
	ctx, cancel := context.WithTimeout(context.Background(), min(probeTimeout, c.cfg.Timeout))
	defer cancel()
	_, err := c.cfg.Pool.Exec(ctx, awaitStandby)
	return err == nil
}

// own has the inbox belong to this group, unless it is another one's: that would never handle what this one has.
func (c *Consumer) own(ctx context.Context) error {
	if _, err := c.cfg.Pool.Exec(ctx, `INSERT INTO inbox_group (name) VALUES ($1) ON CONFLICT DO NOTHING`, c.cfg.Group); err != nil {
		return errorf("whose the inbox is", err)
	}
	if err := c.checkOwner(ctx, c.cfg.Pool); err != nil {
		return err
	}
	c.health.Lock()
	c.health.owned = c.now()
	c.health.Unlock()
	return nil
}

// checkOwner is nil if the inbox belongs to this group, or to none yet.
func (c *Consumer) checkOwner(ctx context.Context, db outbox.Querier) error {
	var name string
	if err := db.QueryRow(ctx, `SELECT name FROM inbox_group`).Scan(&name); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return errorf("whose the inbox is", err)
	}
	if name != "" && name != c.cfg.Group {
		return fmt.Errorf("%w: it belongs to the consumer group %q, and %q would skip what that one has handled: give it a database of its own; or, if it takes that one's place, stop that one's members and UPDATE inbox_group SET name = '%[3]s'", ErrGroup, name, c.cfg.Group)
	}
	return nil
}

// remember reads which ids the inbox can judge, and rejects events that it cannot.
func (c *Consumer) remember(ctx context.Context, batch []*item) error {
	asked := false
	ask := func() error {
		asked = true
		if err := c.own(ctx); err != nil {
			return err
		}
		since, until, clock, err := window(ctx, c.cfg.Pool)
		if err == nil {
			c.since, c.until, c.read = since, until, c.now()
			c.clock = later(clock, c.read)
		}
		return err
	}
	if c.read.IsZero() || c.now().Sub(c.read) > windowAge {
		if err := ask(); err != nil {
			return err
		}
	}
	for _, it := range batch {
		if !it.hasID {
			continue
		}
		rejected, fault := c.judge(it.event.ID)
		if (rejected != nil || fault != nil) && !asked { // this machine's clock may have stood still
			if err := ask(); err != nil {
				return err
			}
			rejected, fault = c.judge(it.event.ID)
		}
		if fault != nil {
			return fault
		}
		if rejected != nil {
			it.hasID, it.rejected = false, rejected
		}
	}
	return nil
}

func (c *Consumer) judge(id uuid.UUID) (rejected, fault error) {
	return judge(id, c.since, c.until, c.clock.Add(c.now().Sub(c.read)))
}

// later is the time by the clock that is ahead of the other. One that is days behind would make every event one of the future.
func later(x, y time.Time) time.Time {
	if y.After(x) {
		return y
	}
	return x
}

// judge tells whether an inbox that remembers from since until until can tell an id new
// from seen: rejected if it never can, fault if it could once partitions are prepared.
func judge(id uuid.UUID, since, until, now time.Time) (rejected, fault error) {
	t := idTime(id)
	at := t.UTC().Format(time.RFC3339)
	switch {
	case t.Before(since):
		return fmt.Errorf("%w: its id is of %s, the inbox begins at %s", ErrTooOld, at, since.UTC().Format(time.RFC3339)), nil
	case t.After(now.Add(maxSkew)):
		return fmt.Errorf("the event id is of %s, in the future: check the sender's clock", at), nil
	case !t.Before(until):
		return nil, fmt.Errorf("%w for %s", errNoPartition, at)
	}
	return nil, nil
}

// fail counts a failed attempt of an event and sets the next one, or gives up.
func (c *Consumer) fail(it *item, err error) {
	it.failures++
	if it.failures >= c.cfg.MaxAttempts || IsPermanent(err) {
		it.rejected, it.retryAt = err, time.Time{}
		return
	}
	it.retryAt = c.now().Add(doubled(c.cfg.RetryBackoff, max(maxBackoff, c.cfg.RetryBackoff), it.failures-1))
	c.cfg.Logger.Debug("inbox: event failed; trying again", "event", it.event.ID, "type", it.event.Type, "attempts", it.failures, "error", err)
	if c.cfg.Hooks.Retry != nil {
		c.cfg.Hooks.Retry(it.event, it.failures, err)
	}
}

// doubled is first, doubled n times, and most at the most, with [jitter].
func doubled(first, most time.Duration, n int) time.Duration {
	for ; n > 0 && first < most; n-- {
		first = min(2*first, most)
	}
	return jitter(first)
}

// jitter spreads a wait over its last quarter, so that instances do not march in step.
func jitter(d time.Duration) time.Duration {
	return d - rand.N(d/4+1)
}

func (c *Consumer) assigned(_ context.Context, _ *kgo.Client, gained map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setJoined(true)
	c.logMove("inbox: partitions taken", gained)
}

// logMove tells of a rebalance: seldom, and the first thing to look for when something stood still.
func (c *Consumer) logMove(what string, moved map[string][]int32) {
	n := 0
	for _, numbers := range moved {
		n += len(numbers)
	}
	if n > 0 {
		c.cfg.Logger.Info(what, "partitions", n)
	}
}

// revoked waits for the transaction in hand (c.mu), so that the offsets of all that
// was handled are committed before another instance starts from them.
func (c *Consumer) revoked(ctx context.Context, client *kgo.Client, lost map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(client, lost)
	c.logMove("inbox: partitions given up", lost)
	c.commit(ctx, client, "inbox: offsets not committed before a rebalance; their records come again and are skipped")
}

func (c *Consumer) lost(_ context.Context, client *kgo.Client, lost map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setJoined(false)
	c.drop(client, lost)
	c.logMove("inbox: partitions lost: the group holds this member for dead", lost)
}

// drop forgets partitions, also that they were paused: they may come back during a poll.
func (c *Consumer) drop(client *kgo.Client, lost map[string][]int32) {
	c.queue.drop(lost)
	for topic, numbers := range lost {
		for _, n := range numbers {
			delete(c.next, partition{topic, n})
		}
	}
	client.ResumeFetchPartitions(lost)
}
