package inbox_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/outbox"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

const day = 24 * time.Hour

// eventOf is an event that was made some time ago: the clock of its sender is moved, so
// that nobody has to wait for days.
func eventOf(ago time.Duration, key, payload string) *kgo.Record {
	rec := event(key, payload)
	id := outbox.NewID()
	ms := time.Now().Add(-ago).UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	rec.Headers[0].Value = []byte(id.String())
	return rec
}

func copyOf(rec *kgo.Record) *kgo.Record {
	return &kgo.Record{Key: rec.Key, Value: rec.Value, Headers: rec.Headers}
}

// An event that was handled, and whose id the inbox has dropped since, comes again: from an outbox
// that is sent anew, or because a group's offsets were lost. It must not have its effect again.
func TestAnEventOlderThanTheInboxRemembersHasNoEffect(t *testing.T) {
	const tooOld = `SELECT id || ' ' || event_id FROM dead_letters WHERE error LIKE '%older than the inbox remembers%' ORDER BY id`
	bothModes(t, func(t *testing.T, r *rig, cfg inbox.Config) {
		if _, err := inbox.PreparePartitions(t.Context(), r.look, 30, 7); err != nil {
			t.Fatal(err)
		}
		old, known := eventOf(13*day, "old", "handled 13 days ago"), eventOf(10*day, "known", "handled 10 days ago")
		cfg.MaxAttempts = 1
		r.send(copyOf(old), copyOf(known), eventOf(13*day, "aside", "fails twice"))
		consumer, stop := r.start(cfg)
		r.eventually(2, effects)
		r.eventually(1, `SELECT id::text FROM dead_letters`)

		r.exec(`INSERT INTO inbox (event_id) VALUES ('` + outbox.NewID().String() + `')`) // age counts back from the newest event
		dropped, kept, err := inbox.DropPartitions(t.Context(), r.look, 11*day)
		if err != nil || kept != nil || len(dropped) != 30-11 {
			t.Fatalf("dropped %q, kept %v, %v", dropped, kept, err)
		}
		since, _, err := inbox.Window(t.Context(), r.look)
		if ago := time.Since(since); err != nil || ago < 11*day || ago > 12*day {
			t.Fatalf("the inbox remembers %v (%v)", ago, err)
		}
		// The consumer runs on, and does not know that yet.
		never := eventOf(12*day+time.Hour, "never", "never seen, 12 days old")
		r.send(copyOf(old), copyOf(known), never, event("new", "of now"))
		r.eventually(3, effects)
		r.eventually(2, tooOld)

		// One that starts, with no offsets: all comes again, also after partitions were
		// prepared as far back as before.
		if made, err := inbox.PreparePartitions(t.Context(), r.look, 30, 7); err != nil || made != 0 {
			t.Fatalf("%d partitions were made again (%v)", made, err)
		}
		stop()
		r.loseOffsets(cfg)
		_, stop = r.start(cfg)
		r.send(event("new", "the end"))
		got := r.eventually(4, effects)
		if want := []string{"handled 13 days ago", "handled 10 days ago", "of now", "the end"}; !slices.Equal(sorted(got), sorted(want)) {
			t.Errorf("effects %q, want %q", got, want)
		}
		r.eventually(3, tooOld) // what has another key may come later than the end
		stop()
		// Each record once, though read twice: the old event was sent twice.
		letters := r.strings(tooOld)
		if want := []string{id(old), id(old), id(never)}; !slices.Equal(sorted(eventIDs(letters)), sorted(want)) {
			t.Errorf("dead letters %q, want %q", letters, want)
		}
		if announced := r.strings(`SELECT id::text FROM outbox WHERE topic = 'dlt'`); len(announced) != len(letters)+1 {
			t.Errorf("%d dead letters announced, want %d and the first", len(announced), len(letters))
		}
		for _, l := range letters {
			letter, _, _ := strings.Cut(l, " ")
			if err := consumer.Redrive(t.Context(), uuid.MustParse(letter), "test"); !errors.Is(err, inbox.ErrTooOld) {
				t.Errorf("redrive of %s: %v", l, err)
			}
		}
		if n := len(r.strings(effects)); n != 4 {
			t.Errorf("%d effects after the redrives, want 4", n)
		}
		// Of what was put aside in time it is known that it had no effect, however long ago that was.
		aside := uuid.MustParse(r.strings(`SELECT id::text FROM dead_letters WHERE recorded`)[0])
		if err := consumer.Redrive(t.Context(), aside, "test"); err == nil || !strings.Contains(err.Error(), "not today") {
			t.Errorf("first redrive: %v", err)
		}
		if err := consumer.Redrive(t.Context(), aside, "test"); err != nil {
			t.Errorf("second redrive: %v", err)
		}
		if n := len(r.strings(effects)); n != 5 {
			t.Errorf("%d effects, want 5", n)
		}
	})
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func id(rec *kgo.Record) string { return string(rec.Headers[0].Value) }

func eventIDs(letters []string) (ids []string) {
	for _, l := range letters {
		_, id, _ := strings.Cut(l, " ")
		ids = append(ids, id)
	}
	return ids
}

// A database that nobody has prepared for weeks, as its services were parked: the days since then had no partition, and an event of one
// of them is new.
func TestDaysThatNobodyPreparedAreNoGap(t *testing.T) {
	r := newRig(t)
	r.exec(`SELECT event_partitions_prepare('inbox', 20, 7)`)
	r.exec(`DO $$ BEGIN FOR d IN -14..7 LOOP EXECUTE 'DROP TABLE inbox_' || to_char((now() AT TIME ZONE 'UTC')::date + d, 'YYYYMMDD'); END LOOP; END $$`)
	if made, err := inbox.PreparePartitions(t.Context(), r.look, 11, 7); err != nil || made != 14+1+7 {
		t.Fatalf("%d partitions made (%v), want those of %d days", made, err, 14+1+7)
	}
	cfg := r.config()
	cfg.Batch = func([]inbox.Event) inbox.Batch { return &batch{rig: r} }
	r.start(cfg)
	r.send(eventOf(13*day, "parked", "of a day that nobody prepared"))
	r.eventually(1, effects)
}

// A partition is not dropped while a transaction that recorded an id in it is open; nor does
// dropping wait for it.
func TestInboxPartitionsAreDroppedWithTrafficOn(t *testing.T) {
	r := newRig(t)
	if _, err := inbox.PreparePartitions(t.Context(), r.look, 15, 7); err != nil {
		t.Fatal(err)
	}
	cfg := r.config()
	cfg.Batch = func([]inbox.Event) inbox.Batch { return &batch{rig: r} }
	r.start(cfg)
	open, err := r.look.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(t.Context())
	if _, err := open.Exec(t.Context(), `INSERT INTO inbox (event_id) VALUES ($1)`, id(eventOf(14*day, "", ""))); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	dropped, kept, err := inbox.DropPartitions(t.Context(), r.look, 11*day)
	if err != nil || len(dropped) != 0 || kept == nil || kept.Reason != outbox.Locked || time.Since(begin) > time.Second {
		t.Fatalf("dropped %q, kept %+v, %v, after %v", dropped, kept, err, time.Since(begin))
	}
	if err := open.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		r.send(event(fmt.Sprint(i%7), fmt.Sprint(i)))
		if i == 100 {
			for {
				more, kept, err := inbox.DropPartitions(t.Context(), r.look, 11*day)
				if err != nil {
					t.Fatal(err)
				}
				if dropped = append(dropped, more...); kept == nil {
					break
				}
			}
		}
	}
	r.eventually(200, effects)
	if len(dropped) != 15-11 {
		t.Errorf("dropped %q", dropped)
	}
	if _, _, err := inbox.DropPartitions(t.Context(), r.look, time.Hour); err == nil || !strings.Contains(err.Error(), "out of range") {
		t.Error(err)
	}
}
