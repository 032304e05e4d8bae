package inbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

func record(p int32, offset int64, key string) *item {
	r := &kgo.Record{Topic: "t", Partition: p, Offset: offset, Value: []byte("{}")}
	if key != "" {
		r.Key = []byte(key)
	}
	return &item{record: r, event: Event{Topic: "t", Partition: p, Offset: offset, Key: key}}
}

func offsets(items []*item) string {
	var b strings.Builder
	for _, it := range items {
		fmt.Fprintf(&b, "%d:%d ", it.event.Partition, it.event.Offset)
	}
	return strings.TrimSpace(b.String())
}

func TestReadyHoldsBackOnlyTheKeyThatWaits(t *testing.T) {
	now := time.Now()
	q := newQueue()
	for i, key := range []string{"a", "b", "a", "c", "", ""} {
		q.add(partition{"t", 0}, record(0, int64(i), key))
	}
	q.add(partition{"t", 1}, record(1, 0, "a"))
	items := *q.parts[partition{"t", 0}]
	items[0].failures, items[0].alone, items[0].retryAt = 1, true, now.Add(time.Second)
	items[4].failures, items[4].retryAt = 1, now.Add(2*time.Second)

	batch, _, wake := q.ready(now, 10)
	if got, want := offsets(batch), "0:1 0:3 0:5 1:0"; got != want {
		t.Errorf("ready: %s, want %s", got, want)
	}
	if !wake.Equal(now.Add(time.Second)) {
		t.Errorf("wake %v, want the earliest retry", wake.Sub(now))
	}
	batch, _, _ = q.ready(now.Add(time.Second), 10)
	if got, want := offsets(batch), "0:1 0:3 0:5 1:0"; got != want {
		t.Errorf("the culprit of a transaction goes before %s, want it after %s", got, want)
	}
	for _, it := range batch {
		q.finish(it)
	}
	batch, _, _ = q.ready(now.Add(time.Second), 10)
	if got, want := offsets(batch), "0:0"; got != want {
		t.Errorf("the culprit of a transaction runs with %s, want it alone: %s", got, want)
	}
}

func TestReadyBoundsABatch(t *testing.T) {
	q := newQueue()
	for i := range int64(5) {
		it := record(0, i, "k")
		it.record.Value = make([]byte, maxBytes/2)
		q.add(partition{"t", 0}, it)
	}
	if batch, full, _ := q.ready(time.Now(), 1); len(batch) != 1 || !full {
		t.Errorf("%d items, want the limit of 1", len(batch))
	}
	if batch, full, _ := q.ready(time.Now(), 10); len(batch) != 2 || !full {
		t.Errorf("%d items, want 2: they have maxBytes", len(batch))
	}
}

func TestDropForgetsPartitions(t *testing.T) {
	q := newQueue()
	for p := range int32(3) {
		q.add(partition{"t", p}, record(p, 7, "k"))
	}
	q.drop(map[string][]int32{"t": {1, 5}, "other": {0}})
	batch, _, _ := q.ready(time.Now(), 10)
	if got, want := offsets(batch), "0:7 2:7"; got != want || len(q.parts) != 2 {
		t.Errorf("left %s of %d partitions, want %s of 2", got, len(q.parts), want)
	}
}

// Whatever ends in whatever order: an offset is marked only when all before it are
// done, and at the end all are marked.
func TestSettleNeverPassesAnUnresolvedRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "n")
		q := newQueue()
		items := make([]*item, n)
		for i := range items {
			items[i] = record(0, int64(i), "k")
			q.add(partition{"t", 0}, items[i])
		}
		marked := int64(-1)
		for _, i := range rapid.Permutation(items).Draw(t, "order") {
			q.finish(i)
			q.settle(func(r *kgo.Record) { marked = r.Offset })
			for o := range marked + 1 {
				if !items[o].done {
					t.Fatalf("marked %d, but %d is not done", marked, o)
				}
			}
			if int(marked)+1 < n && items[marked+1].done {
				t.Fatalf("marked %d, but %d is done too", marked, marked+1)
			}
		}
		if left := *q.parts[partition{"t", 0}]; marked != int64(n-1) || len(left) != 0 {
			t.Fatalf("marked %d of %d, %d left", marked, n, len(left))
		}
	})
}

func TestParse(t *testing.T) {
	v7, v4 := uuid.Must(uuid.NewV7()).String(), uuid.NewString()
	decode := func(ev Event) (any, error) {
		switch string(ev.Payload) {
		case "bad":
			return nil, errors.New("no JSON")
		case "panic":
			panic("boom")
		}
		return "body", nil
	}
	for name, c := range map[string]struct {
		id, payload, rejected string
		hasID                 bool
	}{
		"good":            {v7, "{}", "", true},
		"no id":           {"", "{}", `no header "id"`, false},
		"not a uuid":      {"x\x00", "{}", "not a UUIDv7", false},
		"another version": {v4, "{}", "not a UUIDv7", false},
		"other notation":  {"{" + v7 + "}", "{}", "not a UUIDv7", false},
		"payload":         {v7, "bad", "no JSON", true},
		"decoder panics":  {v7, "panic", "panicked: boom", true},
	} {
		r := &kgo.Record{Topic: "t", Value: []byte(c.payload), Headers: []kgo.RecordHeader{{Key: "type", Value: []byte("x")}}}
		if c.id != "" {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: "id", Value: []byte(c.id)})
		}
		it := parse(r, decode)
		if it.hasID != c.hasID {
			t.Errorf("%s: hasID %v", name, it.hasID)
		}
		if c.rejected == "" {
			if it.rejected != nil || it.event.Body != "body" || it.event.ID.String() != c.id {
				t.Errorf("%s: %v, %+v", name, it.rejected, it.event)
			}
		} else if it.rejected == nil || !strings.Contains(it.rejected.Error(), c.rejected) {
			t.Errorf("%s: rejected %v, want %q", name, it.rejected, c.rejected)
		}
	}
}

func TestFaultOrRefusal(t *testing.T) {
	pg := func(code string) error { return fmt.Errorf("x: %w", &pgconn.PgError{Code: code}) }
	for _, c := range []struct {
		err   error
		fault bool
	}{
		{pg("40001"), true}, {pg("40P01"), true}, {pg("57P01"), true}, {pg("57014"), true}, {pg("53300"), true},
		{pg("42P01"), true}, {pg("42501"), true}, {pg("25006"), true}, {pg("08006"), true}, {pg("55P03"), true},
		{pg("23505"), false}, {pg("23514"), false}, {pg("22003"), false}, {pg("22021"), false},
		{&pgconn.PgError{Code: "23514", Message: `no partition of relation "inbox" found for row`}, true},
		{&pgconn.PgError{Code: "23514", TableName: "inbox", Message: "keine Partition von Relation »inbox« für die Zeile gefunden"}, true},
		{&pgconn.PgError{Code: "23514", TableName: "inbox", ConstraintName: "named", Message: "no"}, false},
		{nil, false}, {refusal{fmt.Errorf("own: %w", io.EOF)}, false},
		{io.ErrUnexpectedEOF, true}, {context.DeadlineExceeded, true}, {pgconn.ErrConnClosed, true},
		{errNoPartition, true}, {errors.New("anything"), false}, {Permanent(errors.New("x")), false},
	} {
		if got := isFault(c.err); got != c.fault {
			t.Errorf("%v: fault %v, want %v", c.err, got, c.fault)
		}
	}
}

func TestMayBeOfOne(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("x: %w", &pgconn.PgError{Code: "55P03"}), true}, {&pgconn.PgError{Code: "XX000"}, true}, {&pgconn.PgError{Code: "XX001"}, false},
		{&pgconn.PgError{Code: "23514", TableName: "days"}, true}, {&pgconn.PgError{Code: "23514", TableName: "inbox"}, false},
		{&pgconn.PgError{Code: "23514", Message: `no partition of relation "outbox" takes the id`}, false},
		{&pgconn.PgError{Code: "42P01"}, false}, {&pgconn.PgError{Code: "57P01"}, false}, {io.EOF, false},
	} {
		if got := mayBeOfOne(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

// What waits behind a failing event is in memory, and counts until it is marked.
func TestAFullPartition(t *testing.T) {
	q := newQueue()
	for i := range int64(4) {
		q.add(partition{"t", 0}, record(0, i, ""))
	}
	q.add(partition{"t", 1}, record(1, 0, ""))
	items := *q.parts[partition{"t", 0}]
	full := func(want ...int32) {
		t.Helper()
		q.settle(func(*kgo.Record) {})
		if got := q.full(4)["t"]; !slices.Equal(got, want) {
			t.Errorf("full %v, want %v", got, want)
		}
	}
	for _, it := range items[1:] {
		q.finish(it)
	}
	full(0)
	q.finish(items[0])
	full()
	for i := range int64(4) {
		q.add(partition{"t", 1}, record(1, i+1, ""))
	}
	full(1)
	q.drop(map[string][]int32{"t": {1}})
	full()

	waits, large := record(2, 0, "k"), record(2, 1, "")
	large.record.Value = make([]byte, 4*maxBytes)
	q.add(partition{"t", 2}, waits)
	q.add(partition{"t", 2}, large)
	full(2)
	q.finish(large) // what is done holds nothing
	full()

	for p := range int32(5) { // below the bound each, and not together
		for i := range int64(3) {
			q.add(partition{"t", 3 + p}, record(3+p, i, ""))
		}
	}
	q.settle(func(*kgo.Record) {})
	if got := slices.Sorted(slices.Values(q.full(4)["t"])); !slices.Equal(got, []int32{2, 3, 4, 5, 6, 7}) {
		t.Errorf("full %v", got)
	}
}

// One record that waits does not keep the whole answer to a fetch in memory.
func TestWhatWaitsIsDetached(t *testing.T) {
	fetched := []byte("valuekeyheader")
	it := record(0, 0, "")
	it.record.Value, it.record.Key = fetched[:5], fetched[5:8]
	it.record.Headers = []kgo.RecordHeader{{Key: "id", Value: fetched[8:]}}
	q := newQueue()
	q.add(partition{"t", 0}, it)
	q.detach()
	clear(fetched)
	if r := it.record; string(r.Value) != "value" || string(it.event.Payload) != "value" || string(r.Key) != "key" || string(r.Headers[0].Value) != "header" {
		t.Errorf("%q %q %q %q", r.Value, it.event.Payload, r.Key, r.Headers[0].Value)
	}
}

// The same id comes twice in one batch, from two partitions, and the first waits behind another event: the second is a repetition.
func TestAnEventThatWaitsIsNotHandledFromElsewhere(t *testing.T) {
	fails, waits, again := record(0, 0, "k"), record(0, 1, "k"), record(1, 0, "k")
	fails.event.ID, waits.event.ID = uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())
	again.event.ID = waits.event.ID
	for _, it := range []*item{fails, waits, again} {
		it.hasID = true
	}
	a := &attempt{c: &Consumer{}, items: []*item{fails, waits, again}, fresh: map[uuid.UUID]bool{fails.event.ID: true, waits.event.ID: true}}
	err := a.decide(func(ev Event) ([]outbox.Event, error) {
		if ev.ID == fails.event.ID {
			return nil, errors.New("not today")
		}
		return nil, nil
	}, isFault)
	if err != nil || a.done != 0 || a.repeated != 1 || len(a.kept) != 2 {
		t.Errorf("%v, %d done, %d repeated, %d kept; want 0, 1, 2", err, a.done, a.repeated, len(a.kept))
	}
}

// The database failed, and then this instance lost its partitions: what it is waiting for is another's affair.
func TestAFaultEndsWithWhatItKeptWaiting(t *testing.T) {
	c := &Consumer{now: time.Now, queue: newQueue()}
	c.setFault(errNoPartition)
	if ran, _, err := c.step(t.Context()); ran || err != nil || c.health.fault != nil {
		t.Error(ran, err, c.health.fault)
	}
}

func TestBackoffIsBounded(t *testing.T) {
	now := time.Now()
	c := &Consumer{now: func() time.Time { return now }, cfg: Config{MaxAttempts: 100, RetryBackoff: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}}
	it := record(0, 0, "k")
	for it.failures < 90 {
		c.fail(it, errors.New("x"))
	}
	if wait := it.retryAt.Sub(now); wait > maxBackoff || wait < maxBackoff/2 {
		t.Errorf("waits %s", wait)
	}
}

func TestJudgeByTheIDsTime(t *testing.T) {
	now := time.Now()
	since, until := now.Add(-10*24*time.Hour), now.Add(2*time.Hour)
	id := func(at time.Time) uuid.UUID {
		u := uuid.Must(uuid.NewV7())
		ms := at.UnixMilli()
		for i := range 6 {
			u[i] = byte(ms >> (40 - 8*i))
		}
		return u
	}
	for name, c := range map[string]struct {
		at              time.Time
		rejected, fault bool
	}{
		"now":                  {now, false, false},
		"oldest that is known": {since.Add(time.Second), false, false},
		"too old":              {since.Add(-time.Second), true, false},
		"no partition yet":     {until.Add(time.Second), false, true},
		"from the future":      {now.Add(maxSkew + time.Minute), true, false},
	} {
		rejected, fault := judge(id(c.at), since, until, now)
		if (rejected != nil) != c.rejected || (fault != nil) != c.fault {
			t.Errorf("%s: rejected %v, fault %v", name, rejected, fault)
		}
	}
	if rejected, _ := judge(id(since.Add(-time.Hour)), since, until, now); !errors.Is(rejected, ErrTooOld) {
		t.Errorf("%v is not ErrTooOld", rejected)
	}
}
