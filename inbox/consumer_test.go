package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
)

// rig is a database with an effects table, a topic, and handlers whose effect is one
// row an event. What an event does is said by its payload.
type rig struct {
	t     testing.TB
	pool  *pgxpool.Pool // the consumer's
	look  *pgxpool.Pool // the test's own
	topic string
	kafka *kgo.Client

	before   func(payload string)       // is called before each is handled
	failWith func(payload string) error // the error of what fails; nil: some error
	clock    func() time.Time           // the consumers'; nil: time.Now

	mu    sync.Mutex
	tries map[string]int // payload → how often it was handled
}

func newRig(t testing.TB) *rig {
	t.Helper()
	url, brokers := database(t), brokers(t)
	var pools [2]*pgxpool.Pool
	for i, name := range []string{"consumer", "test"} {
		cfg, err := pgxpool.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		cfg.ConnConfig.RuntimeParams["application_name"] = name
		if pools[i], err = pgxpool.NewWithConfig(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pools[i].Close)
	}
	_, err := pools[1].Exec(t.Context(), `CREATE TABLE effects (n bigserial, event_id uuid NOT NULL, key text NOT NULL, payload text NOT NULL CHECK (payload <> 'sql breaks'))`)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &rig{t: t, pool: pools[0], look: pools[1], topic: topic(t, 3), kafka: client, tries: map[string]int{}}
}

// verdict is what the handlers make of a payload.
func (r *rig) verdict(payload string) error {
	if r.before != nil {
		r.before(payload)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries[payload]++
	switch {
	case strings.HasPrefix(payload, "fails twice") && r.tries[payload] <= 2, strings.HasPrefix(payload, "fails always"):
		if r.failWith != nil {
			return r.failWith(payload)
		}
		return errors.New("not today")
	case strings.HasPrefix(payload, "permanent"):
		return fmt.Errorf("handler: %w", inbox.Permanent(errors.New("never")))
	case strings.HasPrefix(payload, "panics twice") && r.tries[payload] <= 2:
		panic("boom")
	}
	return nil
}

func (r *rig) each(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
	if _, err := tx.Exec(ctx, `INSERT INTO effects (event_id, key, payload) VALUES ($1, $2, $3)`, ev.ID, ev.Key, string(ev.Payload)); err != nil {
		return err
	}
	if err := r.verdict(string(ev.Payload)); err != nil {
		return err
	}
	return outbox.Write(ctx, tx, answer(ev))
}

func answer(ev inbox.Event) outbox.Event {
	return outbox.Event{ID: outbox.NewID(), Topic: "answers", AggregateType: "test", AggregateID: ev.Key, Type: "answered", Payload: ev.Payload}
}

type batch struct {
	rig                 *rig
	ids, keys, payloads []string
}

func (b *batch) Load(q *pgx.Batch) { q.Queue(`SELECT 1`) }

func (b *batch) Decide(ev inbox.Event) ([]outbox.Event, error) {
	if err := b.rig.verdict(string(ev.Payload)); err != nil {
		return nil, err
	}
	b.ids, b.keys, b.payloads = append(b.ids, ev.ID.String()), append(b.keys, ev.Key), append(b.payloads, string(ev.Payload))
	return []outbox.Event{answer(ev)}, nil
}

func (b *batch) Save(q *pgx.Batch) {
	q.Queue(`INSERT INTO effects (event_id, key, payload) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])`, b.ids, b.keys, b.payloads)
}

// bothModes runs a test with the batch handler and with the one-event handler.
func bothModes(t *testing.T, test func(t *testing.T, r *rig, cfg inbox.Config)) {
	t.Run("batch", func(t *testing.T) {
		r := newRig(t)
		cfg := r.config()
		cfg.Batch = func([]inbox.Event) inbox.Batch { return &batch{rig: r} }
		test(t, r, cfg)
	})
	t.Run("each", func(t *testing.T) {
		r := newRig(t)
		cfg := r.config()
		cfg.Each = r.each
		test(t, r, cfg)
	})
}

func (r *rig) config() inbox.Config {
	return inbox.Config{
		Pool: r.pool, Brokers: brokers(r.t), Group: "group-" + r.topic, Topics: []string{r.topic},
		RetryBackoff: 2 * time.Millisecond, FaultBackoff: 200 * time.Millisecond, MaxBatch: 64,
		Logger: slog.New(slog.DiscardHandler),
		DeadLetter: func(d inbox.DeadLetter) (outbox.Event, error) {
			return outbox.Event{ID: d.ID, Topic: "dlt", AggregateType: "test", AggregateID: "k", Type: "dead", Payload: []byte(d.Error)}, nil
		},
	}
}

// start runs a consumer; the test's end stops it and checks how it ended.
func (r *rig) start(cfg inbox.Config) (c *inbox.Consumer, stop func()) {
	r.t.Helper()
	c, err := inbox.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.clock != nil {
		c.SetClock(r.clock)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				r.t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			r.t.Error("Run did not end")
		}
	})
	r.t.Cleanup(stop)
	return c, stop
}

func event(key, payload string) *kgo.Record {
	return &kgo.Record{Key: []byte(key), Value: []byte(payload), Headers: []kgo.RecordHeader{
		{Key: "id", Value: []byte(outbox.NewID().String())}, {Key: "type", Value: []byte("test")},
	}}
}

func (r *rig) send(records ...*kgo.Record) {
	r.t.Helper()
	for _, rec := range records {
		rec.Topic = r.topic
	}
	if err := r.kafka.ProduceSync(r.t.Context(), records...).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

// sendTo is [rig.send] to a partition.
func (r *rig) sendTo(p int32, records ...*kgo.Record) {
	r.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers(r.t)...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		r.t.Fatal(err)
	}
	defer client.Close()
	for _, rec := range records {
		rec.Topic, rec.Partition = r.topic, p
	}
	if err := client.ProduceSync(r.t.Context(), records...).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) strings(sql string) []string {
	r.t.Helper()
	rows, err := r.look.Query(r.t.Context(), sql)
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) exec(sql string) {
	r.t.Helper()
	if _, err := r.look.Exec(r.t.Context(), sql); err != nil {
		r.t.Fatal(err)
	}
}

// haveCommitsWait has every commit of the instance wait for a standby that there is not, until end, which the test's end calls too.
func (r *rig) haveCommitsWait() (end func()) {
	r.t.Helper()
	set := func(standbys string) {
		for _, sql := range []string{`ALTER SYSTEM SET synchronous_standby_names = '` + standbys + `'`, `SELECT pg_reload_conf()`} {
			if _, err := r.look.Exec(context.Background(), sql); err != nil {
				r.t.Error(err)
			}
		}
	}
	end = func() { set("") }
	r.t.Cleanup(end)
	set("nobody")
	for { // until PostgreSQL has read that
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
		_, err := r.look.Exec(ctx, `SELECT pg_logical_emit_message(true, '', '')`)
		cancel()
		if err != nil {
			return end
		}
	}
}

// loseOffsets has the group begin again, at the start of its topics. None of its members may run.
func (r *rig) loseOffsets(cfg inbox.Config) {
	r.t.Helper()
	if gone, err := kadm.NewClient(r.kafka).DeleteGroup(r.t.Context(), cfg.Group); err != nil || gone.Err != nil {
		r.t.Fatal(err, gone.Err)
	}
}

// eventually waits until sql returns want rows, of text.
func (r *rig) eventually(want int, sql string) []string {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got := r.strings(sql)
		if len(got) == want {
			return got
		}
		if len(got) > want || time.Now().After(deadline) {
			r.t.Fatalf("%s: %d rows, want %d: %.500v", sql, len(got), want, got)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

const effects = `SELECT payload FROM effects ORDER BY n`

func TestARecordDeliveredFiveTimesHasOneEffect(t *testing.T) {
	t.Parallel()
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		rec := event("k", "once")
		again := func() *kgo.Record {
			return &kgo.Record{Key: rec.Key, Value: rec.Value, Headers: rec.Headers}
		}
		r.send(again(), again(), event("k", "between"), again()) // within a batch
		_, stop := r.start(cfg)
		r.eventually(2, effects)
		r.send(again()) // in a later batch
		r.send(event("k", "last"))
		r.eventually(3, effects)
		stop()
		// And once more after offsets were lost.
		r.loseOffsets(cfg)
		r.start(cfg)
		r.send(event("k", "end"))
		got := r.eventually(4, effects)
		if want := []string{"once", "between", "last", "end"}; !slices.Equal(got, want) {
			t.Errorf("effects %q, want %q", got, want)
		}
		if answers := r.strings(`SELECT payload FROM outbox`); len(answers) != 4 {
			t.Errorf("answers %q, want one an effect", answers)
		}
	})
}

func TestAFailingEventNeitherLosesNorRepeatsTheOthers(t *testing.T) {
	t.Parallel()
	for _, bad := range []struct {
		payload string
		effect  bool // in the end
		tries   int  // of the handler at least; 0: not counted
	}{
		{"fails twice", true, 3},
		{"panics twice", true, 3},
		{"fails always", false, 8},
		{"permanent", false, 1},
		{"sql breaks", false, 8},
		{"payload with NUL \x00", false, 0},
	} {
		t.Run(strings.ReplaceAll(bad.payload, "\x00", ""), func(t *testing.T) {
			bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
				var want []string
				for i := range 40 {
					payload := fmt.Sprint("good ", i)
					if i == 20 {
						r.send(event("culprit", bad.payload))
						if bad.effect {
							want = append(want, bad.payload)
						}
					}
					key := fmt.Sprint("key ", i%5)
					if i == 21 {
						key = "culprit" // waits behind the bad one
					}
					r.send(event(key, payload))
					want = append(want, payload)
				}
				r.start(cfg)
				got := r.eventually(len(want), effects)
				if !bad.effect {
					letters := r.eventually(1, `SELECT encode(payload, 'escape') || '|' || attempts FROM dead_letters`)
					if bad.tries > 0 && letters[0] != fmt.Sprintf("%s|%d", bad.payload, bad.tries) {
						t.Errorf("dead letter %q, want %d attempts", letters[0], bad.tries)
					}
					if announced := r.strings(`SELECT id::text FROM outbox WHERE topic = 'dlt'`); len(announced) != 1 {
						t.Errorf("announced %v, want one", announced)
					}
				}
				// Each key in its own order.
				if culprit := r.strings(`SELECT payload FROM effects WHERE key = 'culprit' ORDER BY n`); bad.effect && !slices.Equal(culprit, []string{bad.payload, "good 21"}) {
					t.Errorf("the culprit's key was handled as %q", culprit)
				}
				slices.Sort(want)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("effects %q\nwant %q", got, want)
				}
				if ids := r.strings(`SELECT event_id::text FROM inbox`); len(ids) != 41 {
					t.Errorf("%d ids in the inbox, want 41", len(ids))
				}
			})
		})
	}
}

// An event that is retried holds back its key, and nothing else of its partition.
func TestOthersOfThePartitionDoNotWait(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		cfg.RetryBackoff, cfg.MaxAttempts = time.Second, 3
		r.start(cfg)
		r.send(event("first", "runs"))
		r.eventually(1, effects) // from here the group's first rebalance is over
		r.sendTo(1, event("slow", "fails always"), event("slow", "behind"), event("quick", "passes"))
		start := time.Now()
		r.eventually(2, effects)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("another key waited %v for one that fails", took)
		}
		if got, want := r.eventually(3, effects), []string{"runs", "passes", "behind"}; !slices.Equal(got, want) {
			t.Errorf("effects %q, want %q", got, want)
		}
	})
}

// behind is an event that fails, and n of other keys that pass it.
func behind(n int) []*kgo.Record {
	records := []*kgo.Record{event("slow", "fails always")}
	for i := range n {
		records = append(records, event(fmt.Sprint("key ", i), "passes"))
	}
	return records
}

// What has passed an event that waits is kept up to a bound. Then its partition stands still, and no other.
func TestAPartitionThatStandsStillStopsNoOther(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.RetryBackoff, cfg.MaxBatch, cfg.Each = time.Hour, 4, r.each
	r.sendTo(1, behind(200)...)
	r.start(cfg)
	r.eventually(20*4-1, effects+` LIMIT 79`)
	r.sendTo(2, event("k", "another partition's"))
	r.eventually(1, `SELECT payload FROM effects WHERE key = 'k'`)
	if n := len(r.strings(`SELECT payload FROM effects WHERE key <> 'k'`)); n > 20*4+4 {
		t.Errorf("%d events passed one that waits, more than the bound", n)
	}
}

// An instance that had stopped to read a partition reads it on when it gets it back.
func TestAPartitionThatStoodStillComesBack(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.RetryBackoff, cfg.MaxBatch, cfg.Each = time.Hour, 4, r.each
	var mended atomic.Bool
	r.failWith = func(string) error {
		if mended.Load() {
			return nil
		}
		return errors.New("not today")
	}
	for p := range int32(3) {
		r.sendTo(p, behind(200)...)
	}
	r.start(cfg)
	r.eventually(3*(20*4-1), effects+` LIMIT 237`)
	taken := make(chan struct{}, 3)
	cfg.Hooks.Retry = func(inbox.Event, int, error) { taken <- struct{}{} }
	_, stop := r.start(cfg)
	<-taken
	mended.Store(true)
	stop()
	r.eventually(1, `SELECT key FROM effects WHERE payload = 'fails always' LIMIT 1`)
	r.eventually(1, `SELECT key FROM effects WHERE key = 'key 199' LIMIT 1`)
}

func TestPoisonGoesAsideAndThePartitionMovesOn(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		cfg.Decode = func(ev inbox.Event) (any, error) {
			if !strings.HasPrefix(string(ev.Payload), "good") {
				return nil, errors.New("not good")
			}
			return nil, nil
		}
		id := func(value string) *kgo.Record {
			rec := event("k", "good but its id")
			rec.Headers[0].Value = []byte(value)
			return rec
		}
		old := outbox.NewID()
		copy(old[:6], []byte{0x01, 0x6f, 0, 0, 0, 0}) // December 2019
		future := outbox.NewID()
		future[0]++
		poison := []*kgo.Record{
			{Value: []byte("no headers")}, {}, id(""), id("17"), id("\xff\x00"), id(uuid.NewString()), id(old.String()), id(future.String()),
			event("k", "not JSON"), event("\xff\x00", "bad key"), event("k", strings.Repeat("x", 900_000)),
			{Key: []byte("k"), Value: []byte("good type"), Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(outbox.NewID().String())}, {Key: "type", Value: []byte("a\x00b")}}},
		}
		for i, p := range poison {
			r.send(p, event("k", fmt.Sprint("good ", i)))
		}
		_, stop := r.start(cfg)
		r.eventually(len(poison), effects)
		r.eventually(len(poison), `SELECT error FROM dead_letters`)
		stop()
		// Read again from the start: nothing is put aside twice.
		r.loseOffsets(cfg)
		r.start(cfg)
		r.send(event("k", "good end"))
		r.eventually(len(poison)+1, effects)
		if announced := r.strings(`SELECT id::text FROM outbox WHERE topic = 'dlt'`); len(announced) != len(poison) {
			t.Errorf("%d dead letters announced, want %d", len(announced), len(poison))
		}
		if big := r.strings(`SELECT 'x' FROM dead_letters WHERE octet_length(payload) = 900000`); len(big) != 1 {
			t.Error("the large payload is not kept whole")
		}
	})
}

// The database's clock tells what is of the future.
func TestAMachinesClockMayBeWrong(t *testing.T) {
	r := newRig(t)
	r.clock = func() time.Time { return time.Now().Add(-48 * time.Hour) }
	cfg := r.config()
	cfg.Each, cfg.MaxAttempts = r.each, 1
	r.send(event("k", "now"), event("k", "fails twice"))
	c, _ := r.start(cfg)
	r.eventually(1, effects)
	r.eventually(1, `SELECT id::text FROM dead_letters`)
	letters, err := c.DeadLetters(t.Context(), inbox.DeadLetterFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err = c.Redrive(t.Context(), letters[0].ID, "me")
	}
	if err != nil {
		t.Error(err)
	}
}

// An id is of the future if both clocks say so: a database whose clock is days behind puts nothing aside.
func TestADatabasesClockMayBeBehind(t *testing.T) {
	r := newRig(t)
	const behind = 60 * time.Hour
	r.clock = func() time.Time { return time.Now().Add(behind) }
	cfg := r.config()
	cfg.Each, cfg.MaxAttempts = r.each, 1
	r.send(eventOf(-behind, "k", "now"), eventOf(-behind, "k", "fails twice"), eventOf(-behind-25*time.Hour, "k", "of the future"))
	c, _ := r.start(cfg)
	r.eventually(1, effects)
	r.eventually(2, `SELECT id::text FROM dead_letters`)
	letters, err := c.DeadLetters(t.Context(), inbox.DeadLetterFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range letters {
		future := string(d.Payload) == "of the future"
		if got := strings.Contains(d.Error, "in the future"); got != future {
			t.Errorf("%s: %s", d.Payload, d.Error)
		}
		for range 2 {
			err = c.Redrive(t.Context(), d.ID, "me")
		}
		if (err != nil) != future {
			t.Errorf("%s: %v", d.Payload, err)
		}
	}
}

// What came while this machine was suspended is not of the future.
func TestAMachinesClockMayStandStill(t *testing.T) {
	r := newRig(t)
	var stood atomic.Int64
	r.clock = func() time.Time { return time.Now().Add(-time.Duration(stood.Load())) }
	cfg := r.config()
	cfg.Each = r.each
	r.start(cfg)
	r.send(event("k", "before"))
	r.eventually(1, effects)
	stood.Store(int64(25 * time.Hour))
	r.send(event("k", "after"))
	r.eventually(2, effects)
}

// A handler that does not return when its time is over leaves the consumer unable to work, for whoever asks.
func TestAHandlerThatDoesNotReturnIsNotReady(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Timeout = 100 * time.Millisecond
	entered, leave := make(chan bool, 100), make(chan bool)
	first := true
	cfg.Each = func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
		if first { // a fault that is over does not hide what hangs
			first = false
			return &pgconn.PgError{Code: "40001"}
		}
		entered <- true
		<-leave
		return r.each(ctx, tx, ev)
	}
	c, _ := r.start(cfg)
	end := sync.OnceFunc(func() { close(leave) })
	t.Cleanup(end)
	r.send(event("k", "v"))
	<-entered
	ready := func(want bool, says string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			err := c.Ready(t.Context())
			if want && err == nil || !want && err != nil && strings.Contains(err.Error(), says) {
				return
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	ready(false, "does not end: its handler must return")
	end()
	r.eventually(1, effects)
	ready(true, "")
}

func TestAFaultIsWaitedOut(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		faults := make(chan error, 1000)
		cfg.Hooks.Fault = func(err error) { faults <- err }
		c, _ := r.start(cfg)
		r.send(event("k", "first"))
		r.eventually(1, effects)
		if err := c.Ready(t.Context()); err != nil {
			t.Errorf("ready: %v", err)
		}
		r.exec(`ALTER TABLE effects RENAME TO hidden`) // no event is to blame for that
		for i := range 10 {
			r.send(event("k", fmt.Sprint("later ", i)))
		}
		for range 4 {
			<-faults
		}
		if err := c.Ready(t.Context()); err == nil {
			t.Error("ready while the database cannot work")
		}
		r.exec(`ALTER TABLE hidden RENAME TO effects`)
		r.eventually(11, effects)
		r.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'consumer'`)
		r.send(event("k", "last"))
		got := r.eventually(12, effects)
		if got[11] != "last" {
			t.Errorf("effects %q", got)
		}
		if letters := r.strings(`SELECT error FROM dead_letters`); len(letters) != 0 {
			t.Errorf("a fault made dead letters: %q", letters)
		}
	})
}

// Another group would take what the first has handled for repetitions: it handles nothing, and no event is lost for it.
func TestAnInboxBelongsToOneGroup(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cfg := r.config()
	cfg.Each = r.each
	_, stop := r.start(cfg)
	r.send(event("k", "first"), event("k", "permanent"))
	r.eventually(1, effects)
	letter := uuid.MustParse(r.eventually(1, `SELECT id::text FROM dead_letters`)[0])
	stop()

	faults := make(chan error, 1000)
	other := cfg
	other.Group += "-other"
	other.Hooks.Fault = func(err error) { faults <- err }
	admin := kadm.NewClient(r.kafka) // it begins where nothing waits
	ends, err := admin.ListEndOffsets(t.Context(), cfg.Topics...)
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.CommitAllOffsets(t.Context(), other.Group, ends.Offsets()); err != nil {
		t.Fatal(err)
	}
	c, _ := r.start(other)
	belongs := func(err error) bool {
		return errors.Is(err, inbox.ErrGroup) && strings.Contains(err.Error(), fmt.Sprintf("belongs to the consumer group %q", cfg.Group))
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // first it joins
		if err := c.Ready(t.Context()); belongs(err) {
			break
		} else if time.Now().After(end) {
			t.Fatalf("ready without an event: %v", err)
		}
	}
	if err := c.Redrive(t.Context(), letter, "me"); !belongs(err) {
		t.Errorf("redrive: %v", err)
	}
	r.send(event("k", "second"))
	for range 2 {
		if err := <-faults; !belongs(err) {
			t.Fatal(err)
		}
	}
	if err := c.Ready(t.Context()); !belongs(err) {
		t.Errorf("ready: %v", err)
	}
	if n := len(r.strings(effects)); n != 1 {
		t.Errorf("%d effects, want that of the group that the inbox belongs to", n)
	}
	r.exec(fmt.Sprintf(`UPDATE inbox_group SET name = '%s'`, other.Group)) // as the error says
	if got := r.eventually(2, effects); got[1] != "second" {
		t.Errorf("effects %q", got)
	}
}

// What comes until the next transaction may begin goes into it; the first waits for nothing.
func TestSpacedTransactionsShare(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cfg := r.config()
	cfg.Each = r.each
	cfg.Pace = func() time.Duration { return time.Second }
	var mu sync.Mutex
	var sizes []int
	cfg.Hooks.Begun = func(events int) {
		mu.Lock()
		defer mu.Unlock()
		sizes = append(sizes, events)
	}
	_, stop := r.start(cfg)
	r.send(event("k", "0"))
	r.eventually(1, effects)
	for i := range 8 {
		r.send(event("k", fmt.Sprint(i+1)))
		time.Sleep(20 * time.Millisecond) // a transaction takes less
	}
	if got := r.eventually(9, effects); !slices.IsSorted(got) {
		t.Errorf("effects %q", got)
	}
	stop()
	if len(sizes) > 3 || sizes[0] != 1 { // 8 in one, or in two if sending took long
		t.Errorf("transactions of %v events", sizes)
	}
}

// No event is to blame for a connection that cannot be had, whatever the pool's own code says of it.
func TestAConnectionThatCannotBeHadIsWaitedOut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var refuses atomic.Bool
	asked := make(chan struct{}, 1000)
	config := r.pool.Config().Copy()
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		if refuses.Load() {
			asked <- struct{}{}
			return errors.New("the vault gives no token")
		}
		return nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	cfg := r.config()
	cfg.Pool, cfg.Each, cfg.MaxAttempts = pool, r.each, 2
	c, _ := r.start(cfg)
	r.send(event("k", "first"))
	r.eventually(1, effects)
	refuses.Store(true)
	pool.Reset()
	r.send(event("k", "second"))
	for range 2 * cfg.MaxAttempts {
		<-asked
	}
	if err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no token") {
		t.Errorf("ready: %v", err)
	}
	refuses.Store(false)
	r.eventually(2, effects)
	if letters := r.strings(`SELECT error FROM dead_letters`); len(letters) != 0 {
		t.Errorf("dead letters: %q", letters)
	}
}

// A commit that was interrupted while it waited for a standby has its effect on the primary. That this is repeated
// marks no offset before the standby has it too.
func TestARepetitionWaitsForTheStandby(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		type outcome struct{ fresh, repeated, faults int }
		outcomes := make(chan outcome, 1000)
		cfg.Timeout = 2 * time.Second
		cfg.Hooks.Committed = func(fresh, repeated, _ int, _ time.Duration) { outcomes <- outcome{fresh: fresh, repeated: repeated} }
		cfg.Hooks.Fault = func(error) { outcomes <- outcome{faults: 1} }
		r.start(cfg)
		r.send(event("k", "x"))
		<-outcomes // from here the group's first rebalance is over
		end := r.haveCommitsWait()
		r.send(event("k", "x"))
		for range 3 {
			if o := <-outcomes; o.faults == 0 {
				t.Fatalf("%d fresh and %d repeated events were taken for done, which no standby has", o.fresh, o.repeated)
			}
		}
		end()
		for (<-outcomes).repeated == 0 {
		}
	})
}

// A database in which no commit ends is no event's fault: it is asked again and again, however long that lasts.
func TestCommitsThatHangAreWaitedOut(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		faults := make(chan error, 1000)
		cfg.Timeout, cfg.FaultBackoff = 300*time.Millisecond, 50*time.Millisecond
		cfg.Hooks.Fault = func(err error) { faults <- err }
		end := r.haveCommitsWait()
		r.send(event("k", "x"))
		r.start(cfg)
		tooLong := time.After(30 * time.Second) // waits that doubled from 50 ms would add up to more than a minute
		for range 12 {
			select {
			case <-faults:
			case <-tooLong:
				t.Fatal("what was tried in vain waits longer and longer")
			}
		}
		end()
	})
}

// A process that freezes in a transaction holds its locks for as long as that may take, and no longer.
func TestPostgreSQLEndsWhatAFrozenProcessHolds(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		cfg.Timeout = 2 * time.Second
		frozen, thaw := make(chan struct{}, 100), make(chan struct{})
		r.before = func(string) {
			frozen <- struct{}{}
			<-thaw
		}
		r.send(event("k", "x"))
		r.start(cfg)
		goOn := sync.OnceFunc(func() { close(thaw) })
		t.Cleanup(goOn)
		<-frozen
		r.eventually(1, `SELECT 'gone' WHERE NOT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'consumer' AND state LIKE 'idle in transaction%')`)
		goOn()
		r.eventually(1, effects)
	})
}

func TestInstancesShareTheWorkAndHandOver(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		const n = 3000
		cfg.MaxBatch = 20
		_, stopFirst := r.start(cfg)
		go func() {
			for i := range n {
				rec := event(fmt.Sprint("key ", i%30), fmt.Sprint(i))
				rec.Topic = r.topic
				r.kafka.Produce(context.Background(), rec, nil)
				if i%100 == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
		}()
		r.start(cfg)
		deadline := time.Now().Add(20 * time.Second)
		for len(r.strings(effects)) < n/3 && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		stopFirst()
		r.start(cfg)
		got := r.eventually(n, effects)
		slices.Sort(got)
		if len(slices.Compact(got)) != n {
			t.Errorf("%d different effects, want %d", len(slices.Compact(got)), n)
		}
		if bad := r.strings(`SELECT key FROM (SELECT key, payload::int AS seq, lag(payload::int) OVER (PARTITION BY key ORDER BY n) AS before FROM effects) x WHERE before > seq`); len(bad) != 0 {
			t.Errorf("keys out of order: %q", bad)
		}
	})
}

// Heartbeats do not wait for a transaction: one that takes longer than the session costs no partition.
func TestALongTransactionKeepsItsMembership(t *testing.T) {
	r := newRig(t)
	var log strings.Builder
	var mu sync.Mutex
	cfg := r.config()
	cfg.SessionTimeout = time.Second
	cfg.Logger = slog.New(slog.NewTextHandler(writer(func(line []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(line)
	}), nil))
	cfg.Each = func(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(3)`); err != nil {
			return err
		}
		return r.each(ctx, tx, ev)
	}
	r.start(cfg)
	r.send(event("k", "slow"))
	r.eventually(1, effects)
	mu.Lock()
	defer mu.Unlock()
	if text := log.String(); strings.Count(text, "partitions taken") != 1 || strings.Contains(text, "partitions lost") {
		t.Error(text)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// A topic that someone deletes and makes again is consumed on, from its start.
func TestATopicMadeAnewIsConsumed(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Each = r.each
	_, stop := r.start(cfg)
	defer stop()
	for i := range 5 {
		r.send(event(fmt.Sprint(i), fmt.Sprint("before ", i)))
	}
	r.eventually(5, `SELECT payload FROM effects`)
	admin := kadm.NewClient(r.kafka)
	if _, err := admin.DeleteTopic(t.Context(), r.topic); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := admin.CreateTopic(t.Context(), 3, 1, nil, r.topic); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	r.kafka.PurgeTopicsFromClient(r.topic)
	for i := range 3 { // fewer than before: the old offsets lie behind the new end
		r.send(event(fmt.Sprint(i), fmt.Sprint("after ", i)))
	}
	r.eventually(8, `SELECT payload FROM effects`)
}

// A group learns that Kafka has removed what it has not handled. One that begins has missed nothing, nor one that had handled it.
func TestRecordsThatKafkaRemovedAreTold(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	cfg.Each = r.each
	cfg.MaxBatch = 2 // as many are fetched at a time
	lost := make(chan int64, 10)
	cfg.Hooks.Lost = func(topic string, partition int32, records int64) {
		if topic != r.topic || partition != 1 {
			t.Errorf("of %s, %d", topic, partition)
		}
		lost <- records
	}
	send := func(n int, payload string) {
		t.Helper()
		for range n {
			r.sendTo(1, event("k", payload))
		}
	}
	remove := func(before int64) {
		t.Helper()
		offsets := kadm.Offsets{}
		offsets.AddOffset(r.topic, 1, before, -1)
		if _, err := kadm.NewClient(r.kafka).DeleteRecords(t.Context(), offsets); err != nil {
			t.Fatal(err)
		}
	}
	send(3, "removed before the group begins")
	remove(2)
	_, stop := r.start(cfg)
	r.eventually(1, `SELECT payload FROM effects`)
	stop()
	send(5, "removed while nobody consumes") // 3 to 7
	remove(7)
	_, stop = r.start(cfg)
	defer stop()
	r.eventually(2, `SELECT payload FROM effects`)
	select {
	case got := <-lost:
		if got != 4 {
			t.Errorf("%d records are lost, want 4", got)
		}
	default:
		t.Error("nobody is told of four records")
	}
	send(3, "kept")
	r.eventually(5, `SELECT payload FROM effects`)
	remove(11)
	send(1, "kept")
	r.eventually(6, `SELECT payload FROM effects`)
	if len(lost) != 0 {
		t.Errorf("%d records more are lost", <-lost)
	}
}

func TestRedriveAndDiscard(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		cfg.MaxAttempts = 1
		c, _ := r.start(cfg)
		r.send(event("k", "fails twice"), event("k", "fails always"), &kgo.Record{Value: []byte("no event")})
		r.eventually(3, `SELECT id::text FROM dead_letters`)
		letters, err := c.DeadLetters(t.Context(), inbox.DeadLetterFilter{Status: inbox.Open})
		if err != nil || len(letters) != 3 {
			t.Fatalf("%v, %v", letters, err)
		}
		byPayload := map[string]uuid.UUID{}
		for _, d := range letters {
			byPayload[string(d.Payload)] = d.ID
		}
		twice, always, none := byPayload["fails twice"], byPayload["fails always"], byPayload["no event"]
		if err := c.Redrive(t.Context(), twice, "me"); err == nil || !strings.Contains(err.Error(), "not today") {
			t.Errorf("first redrive: %v", err)
		}
		if err := c.Redrive(t.Context(), twice, "me"); err != nil {
			t.Errorf("second redrive: %v", err)
		}
		if err := c.Redrive(t.Context(), twice, "me"); !errors.Is(err, inbox.ErrResolved) {
			t.Errorf("redriven again: %v", err)
		}
		if got := r.strings(effects); !slices.Equal(got, []string{"fails twice"}) {
			t.Errorf("effects %q", got)
		}
		if err := c.Redrive(t.Context(), none, "me"); !errors.Is(err, inbox.ErrNoEvent) {
			t.Errorf("no event: %v", err)
		}
		if err := c.Redrive(t.Context(), outbox.NewID(), "me"); !errors.Is(err, inbox.ErrNoDeadLetter) {
			t.Errorf("unknown: %v", err)
		}
		if err := c.Discard(t.Context(), always, "me", ""); err == nil {
			t.Error("discarded without a reason")
		}
		if err := c.Discard(t.Context(), always, "me", "a test"); err != nil {
			t.Error(err)
		}
		if err := c.Redrive(t.Context(), always, "me"); !errors.Is(err, inbox.ErrResolved) {
			t.Errorf("redriven after discard: %v", err)
		}
		got := r.strings(`SELECT encode(payload, 'escape') || ' ' || status || ' ' || attempts || ' ' || coalesce(resolved_by, '-') || ' ' || coalesce(reason, '-') FROM dead_letters ORDER BY 1`)
		want := []string{"fails always discarded 1 me a test", "fails twice redriven 2 me -", "no event open 1 - -"}
		if !slices.Equal(got, want) {
			t.Errorf("dead letters %q\nwant %q", got, want)
		}
		if ids := r.strings(`SELECT event_id::text FROM inbox`); len(ids) != 2 {
			t.Errorf("%d ids in the inbox, want 2", len(ids))
		}
	})
}

func TestRunRefusesWhatCannotWork(t *testing.T) {
	r := newRig(t)
	for name, c := range map[string]struct {
		change func(*inbox.Config)
		want   string
	}{
		"no broker":                          {func(c *inbox.Config) { c.Brokers = []string{"127.0.0.1:1"} }, "check the address"},
		"no topic":                           {func(c *inbox.Config) { c.Topics = append(c.Topics, "missing-topic") }, `topic "missing-topic": create it first`},
		"other partitions":                   {func(c *inbox.Config) { c.Partitions = 4 }, "has 3 partitions, it must have 4"},
		"a session too short for the broker": {func(c *inbox.Config) { c.SessionTimeout = 500 * time.Millisecond }, "group.min.session.timeout.ms"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := r.config()
			cfg.Each = r.each
			c.change(&cfg)
			consumer, err := inbox.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := consumer.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run: %v, want %q", err, c.want)
			}
			if err := consumer.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "make another Consumer") {
				t.Errorf("a second Run: %v", err)
			}
		})
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/x")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	good := inbox.Config{Pool: pool, Brokers: []string{"x:1"}, Group: "g", Topics: []string{"t"},
		Each: func(context.Context, pgx.Tx, inbox.Event) error { return nil }}
	if _, err := inbox.New(good); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*inbox.Config){
		"Pool":                func(c *inbox.Config) { c.Pool = nil },
		"Brokers":             func(c *inbox.Config) { c.Brokers = nil },
		"Group":               func(c *inbox.Config) { c.Group = "" },
		"Topics":              func(c *inbox.Config) { c.Topics = nil },
		"exactly one of":      func(c *inbox.Config) { c.Each = nil },
		"MaxBatch is neg":     func(c *inbox.Config) { c.MaxBatch = -1 },
		"RetryBackoff is neg": func(c *inbox.Config) { c.RetryBackoff = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := inbox.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestRunLeavesNoGoroutine(t *testing.T) {
	r := newRig(t)
	before := goleak.IgnoreCurrent()
	cfg := r.config()
	cfg.Each = r.each
	r.send(event("k", "x"))
	_, stop := r.start(cfg)
	r.eventually(1, effects)
	stop()
	r.pool.Close() // pgx may leave a goroutine in the read of an open connection whose write was slow
	r.look.Close()
	goleak.VerifyNone(t, before)
}
