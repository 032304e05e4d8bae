package outbox_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

func pool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func rows(t *testing.T, p *pgxpool.Pool, sql string, args ...any) []string {
	t.Helper()
	r, err := p.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(r, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func some(n int) []outbox.Event {
	events := make([]outbox.Event, n)
	for i := range events {
		events[i] = outbox.Event{ID: outbox.NewID(), Topic: "t", AggregateType: "thing", AggregateID: "a", Type: "made", Payload: fmt.Appendf(nil, `{"n":%d}`, i)}
	}
	return events
}

func TestEventsLeaveWithTheTransactionOrNotAtAll(t *testing.T) {
	p := pool(t)
	broken := errors.New("broken")
	err := pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error {
		if err := outbox.Write(t.Context(), tx, some(3)...); err != nil {
			t.Fatal(err)
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if left := rows(t, p, `SELECT id::text FROM outbox`); len(left) != 0 {
		t.Errorf("a rolled back transaction left %v", left)
	}
	events := some(3)
	events[1].Traceparent = "00-aa-bb-01"
	err = pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error { return outbox.Write(t.Context(), tx, events...) })
	if err != nil {
		t.Fatal(err)
	}
	got := rows(t, p, `SELECT concat_ws(' ', id, topic, aggregate_type, aggregate_id, type, payload, coalesce(traceparent, '-')) FROM outbox ORDER BY ctid`)
	var want []string
	for i, e := range events {
		trace := "-"
		if i == 1 {
			trace = "00-aa-bb-01"
		}
		want = append(want, fmt.Sprintf(`%s t thing a made {"n":%d} %s`, e.ID, i, trace))
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows %q\nwant %q", got, want)
	}
	if now := rows(t, p, `SELECT 'x' FROM outbox WHERE abs(extract(epoch FROM created_at - (now() AT TIME ZONE 'UTC'))) < 60`); len(now) != 3 {
		t.Error("created_at is not the time in UTC")
	}
}

func TestWriteRefusesWhatCannotBeSent(t *testing.T) {
	p := pool(t)
	for want, change := range map[string]func(*outbox.Event){
		"must be a UUIDv7":             func(e *outbox.Event) { e.ID = uuid.New() },
		"the topic is empty":           func(e *outbox.Event) { e.Topic = "" },
		"it has 0":                     func(e *outbox.Event) { e.AggregateID = "" },
		"it has 1001":                  func(e *outbox.Event) { e.AggregateID = strings.Repeat("k", 1001) },
		"type must have 1 to 1000":     func(e *outbox.Event) { e.Type = "" },
		"it has 1002":                  func(e *outbox.Event) { e.Type = strings.Repeat("t", 1002) },
		"the traceparent has 1001":     func(e *outbox.Event) { e.Traceparent = strings.Repeat("0", 1001) },
		"1000001 bytes":                func(e *outbox.Event) { e.Payload = []byte(strings.Repeat("x", outbox.MaxPayload+1)) },
		"not UTF-8":                    func(e *outbox.Event) { e.Payload = []byte{0xff} },
		"NUL byte":                     func(e *outbox.Event) { e.Payload = []byte{0} },
		`"a\x00" is not text without`:  func(e *outbox.Event) { e.Topic = "a\x00" },
		`"\xff" is not text without N`: func(e *outbox.Event) { e.AggregateID = "\xff" },
	} {
		events := some(2)
		change(&events[1])
		err := pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error {
			err := outbox.Write(t.Context(), tx, events...)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "event 1") {
				t.Errorf("%v, want %q", err, want)
			}
			return outbox.Write(t.Context(), tx, some(1)...) // the transaction is still usable
		})
		if err != nil {
			t.Error(err)
		}
	}
	for column, most := range map[string]int{"type": 1000, "traceparent": 1000, "aggregate_id": 1000, "payload": outbox.MaxPayload} {
		row := map[string]string{"type": "'x'", "traceparent": "NULL", "aggregate_id": "'x'", "payload": "'{}'"}
		row[column] = fmt.Sprintf("repeat('x', %d)", most+1)
		_, err := p.Exec(t.Context(), fmt.Sprintf(`INSERT INTO outbox (id, topic, aggregate_type, aggregate_id, type, payload, traceparent)
			VALUES (uuidv7(), 'stock', 'order', %s, %s, %s, %s)`, row["aggregate_id"], row["type"], row["payload"], row["traceparent"]))
		if code := new(pgconn.PgError); !errors.As(err, &code) || code.Code != "23514" {
			t.Errorf("SQL alone, a %s of %d bytes: %v", column, most+1, err)
		}
	}
	largest := some(1)
	largest[0].Type, largest[0].Traceparent, largest[0].AggregateID = strings.Repeat("x", 1000), strings.Repeat("x", 1000), strings.Repeat("x", 1000)
	largest[0].Payload = []byte(strings.Repeat("x", outbox.MaxPayload))
	if err := pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error { return outbox.Write(t.Context(), tx, largest...) }); err != nil {
		t.Errorf("a payload of MaxPayload: %v", err)
	}
}

func TestIDsAscend(t *testing.T) {
	last := outbox.NewID()
	for range 10_000 {
		id := outbox.NewID()
		if id.String() <= last.String() || id.Version() != 7 {
			t.Fatalf("%s after %s", id, last)
		}
		last = id
	}
}

func TestPartitionsArePreparedBySeveralAtOnceUnderLoad(t *testing.T) {
	p := pool(t)
	before, err := outbox.PreparedUntil(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if ahead := time.Until(before); ahead < 6*24*time.Hour {
		t.Errorf("the migration prepares %v ahead, want about a week", ahead)
	}
	// A writer whose transaction stays open must not be waited for, nor wait.
	open, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(t.Context())
	if err := outbox.Write(t.Context(), open, some(1)...); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	made := make([]int, 4)
	for i := range made {
		wg.Go(func() {
			var err error
			if made[i], err = outbox.PreparePartitions(t.Context(), p, 20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := outbox.Write(t.Context(), open, some(1)...); err != nil {
		t.Fatal(err)
	}
	if sum := made[0] + made[1] + made[2] + made[3]; sum != 13 {
		t.Errorf("made %v, 13 in all were missing", made)
	}
	after, err := outbox.PreparedUntil(t.Context(), p)
	if err != nil || after.Sub(before) != 13*24*time.Hour {
		t.Errorf("prepared until %v, before %v (%v)", after, before, err)
	}
	if _, err := outbox.PreparePartitions(t.Context(), p, 0); err == nil || !strings.Contains(err.Error(), "out of range") {
		t.Errorf("0 days ahead: %v", err)
	}
}

// The boundaries of a day: its first and last id are in its partition.
func TestAnIDGoesToThePartitionOfItsDay(t *testing.T) {
	p := pool(t)
	day := time.Now().UTC().Truncate(24 * time.Hour)
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{day, day.Format("outbox_20060102")},
		{day.Add(24*time.Hour - time.Millisecond), day.Format("outbox_20060102")},
		{day.Add(24 * time.Hour), day.Add(24 * time.Hour).Format("outbox_20060102")},
	} {
		e := some(1)
		ms := c.at.UnixMilli()
		for i := range 6 {
			e[0].ID[i] = byte(ms >> (40 - 8*i))
		}
		if err := pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error { return outbox.Write(t.Context(), tx, e...) }); err != nil {
			t.Fatal(err)
		}
		if got := rows(t, p, `SELECT tableoid::regclass::text FROM outbox WHERE id = $1`, e[0].ID); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%v is in %v, want %s", c.at, got, c.want)
		}
	}
}

func TestThePublicationSpeaksForTheWholeTable(t *testing.T) {
	p := pool(t)
	got := rows(t, p, `SELECT concat_ws(' ', pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot) FROM pg_publication WHERE pubname = 'outbox_pub'`)
	if !slices.Equal(got, []string{"t f f f t"}) {
		t.Errorf("outbox_pub: %v, want inserts only, via the root", got)
	}
}
