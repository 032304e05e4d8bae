package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const day = 24 * time.Hour

// at is an event as it was made some time ago.
func at(ago time.Duration) outbox.Event {
	e := some(1)[0]
	ms := time.Now().Add(-ago).UnixMilli()
	for i := range 6 {
		e.ID[i] = byte(ms >> (40 - 8*i))
	}
	return e
}

// aged is an outbox that has run for 10 days, with an event of each.
func aged(t *testing.T) *pgxpool.Pool {
	t.Helper()
	p := pool(t)
	exec(t, p, `SELECT event_partitions_prepare('outbox', 10, 7)`)
	var events []outbox.Event
	for d := range 11 {
		events = append(events, at(time.Duration(d)*day))
	}
	write(t, p, events...)
	return p
}

func write(t *testing.T, p *pgxpool.Pool, events ...outbox.Event) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error { return outbox.Write(t.Context(), tx, events...) }); err != nil {
		t.Fatal(err)
	}
}

func partition(ago time.Duration) string {
	return time.Now().UTC().Add(-ago).Format("outbox_20060102")
}

func partitions(t *testing.T, p *pgxpool.Pool) []string {
	return rows(t, p, `SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'outbox'::regclass ORDER BY 1`)
}

// drop expects what DropPartitions does; no reason means that nothing is kept.
func drop(t *testing.T, p *pgxpool.Pool, retention time.Duration, wantDropped int, reason outbox.Reason, detail string) {
	t.Helper()
	dropped, kept, err := outbox.DropPartitions(t.Context(), p, retention)
	if err != nil {
		t.Fatal(err)
	}
	if kept == nil {
		kept = &outbox.Kept{}
	}
	if len(dropped) != wantDropped || kept.Reason != reason || !strings.Contains(kept.Detail, detail) || (reason != "") != (kept.Partition != "") {
		t.Fatalf("dropped %q, kept %+v, want %d dropped and %q (%s)", dropped, *kept, wantDropped, reason, detail)
	}
}

// Days 10 to 4 ago are past a retention of 3 days; in the first hours of a day, so is no other.
const past = 7

func TestAPartitionGoesOnceEverySlotHasConfirmedIt(t *testing.T) {
	p := aged(t)
	drop(t, p, 3*day, 0, outbox.NoSlot, "make the slot")
	newSlot(t, p, "one")
	newSlot(t, p, "two")
	drop(t, p, 3*day, 0, outbox.SlotInactive, "nobody reads slot one")
	one := read(t, p, "one")
	drop(t, p, 3*day, 0, outbox.SlotInactive, "nobody reads slot two")
	two := read(t, p, "two")
	one.confirm() // what was confirmed before the seal does not count
	two.confirm()
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "slot one has not confirmed")
	one.confirm()
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "slot two has not confirmed")
	two.stop()
	drop(t, p, 3*day, 0, outbox.SlotInactive, "slot two")
	if n := len(rows(t, p, `SELECT 'x' FROM outbox`)); n != 11 {
		t.Fatalf("%d rows, want all 11", n)
	}
	two = read(t, p, "two")
	two.confirm() // another reader: a mark of its own
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	one.confirm()
	two.confirm()
	// Another instance goes on, with settings of its own.
	other := p.Config().Copy()
	other.ConnConfig.RuntimeParams["timezone"], other.ConnConfig.RuntimeParams["datestyle"] = "Asia/Tokyo", "German"
	q, err := pgxpool.NewWithConfig(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	drop(t, q, 3*day, past, "", "")
	left := rows(t, p, `SELECT 'x' FROM outbox`)
	if got := partitions(t, p); len(left) != 11-past || got[0] != partition(3*day) || len(got) != 4+7 {
		t.Errorf("%d rows, partitions %q", len(left), got)
	}
	if left := rows(t, p, `SELECT partition FROM event_partitions_sealed`); len(left) != 0 {
		t.Errorf("marks are left: %q", left)
	}
	drop(t, p, 3*day, 0, "", "")
	// What is gone is not made again: an inbox would take its events for new.
	exec(t, p, `SELECT event_partitions_prepare('outbox', 10, 7)`)
	if got := partitions(t, p); got[0] != partition(3*day) {
		t.Errorf("partitions were made again: %q", got)
	}
	write(t, p, some(1)...)
}

// A slot that was lost and made anew begins after the mark. It must not count as having
// confirmed what its connector may still be sending from a snapshot.
func TestANewSlotHasConfirmedNothing(t *testing.T) {
	p := aged(t)
	newSlot(t, p, "renewed")
	first := read(t, p, "renewed")
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	first.stop()
	dropSlot(t, p, "renewed")
	drop(t, p, 3*day, 0, outbox.NoSlot, "")
	write(t, p, some(3)...)
	newSlot(t, p, "renewed")
	drop(t, p, 3*day, 0, outbox.SlotInactive, "") // the connector reads its snapshot
	second := read(t, p, "renewed")
	if beyond := rows(t, p, `SELECT 'x' FROM pg_replication_slots, event_partitions_sealed WHERE slot_name = 'renewed' AND confirmed_flush_lsn > lsn`); len(beyond) == 0 {
		t.Fatal("the new slot is not beyond the mark: the test shows nothing")
	}
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "slot renewed has not confirmed")
	second.confirm()
	drop(t, p, 3*day, past, "", "")
}

// While a slot is being made, which lasts as long as the transactions of the whole server, its maker has it. It becomes the reader
// afterwards, and must not count as one that has confirmed what it will send from a snapshot.
func TestASlotInTheMakingHasConfirmedNothing(t *testing.T) {
	p := aged(t)
	open, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(context.Background())
	if err := outbox.Write(t.Context(), open, some(1)...); err != nil {
		t.Fatal(err)
	}
	maker := replication(t, p)
	t.Cleanup(func() { dropSlot(t, p, "making") })
	made := make(chan error, 1)
	go func() {
		made <- maker.Exec(context.Background(), `CREATE_REPLICATION_SLOT making LOGICAL pgoutput`).Close()
	}()
	for deadline := time.Now().Add(10 * time.Second); len(rows(t, p, `SELECT 'x' FROM pg_replication_slots WHERE slot_name = 'making' AND active`)) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the slot is not being made")
		}
	}
	drop(t, p, 3*day, 0, outbox.SlotInactive, "nobody reads slot making")
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	drop(t, p, 3*day, 0, outbox.SlotInactive, "nobody reads slot making") // the connector reads its snapshot
	r := readOn(t, p, maker, "making")
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "slot making has not confirmed")
	r.confirm()
	drop(t, p, 3*day, past, "", "")
}

// To a server whose clock is four days ahead the newest event is four days old. What is within retention of it stays, and takes events.
func TestAServersClockThatIsAheadDropsNothingTooSoon(t *testing.T) {
	p := pool(t)
	exec(t, p, `SELECT event_partitions_prepare('outbox', 10, 7)`)
	for d := 10; d >= 4; d-- {
		write(t, p, at(time.Duration(d)*day))
	}
	newSlot(t, p, "clock")
	r := read(t, p, "clock")
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	r.confirm()
	drop(t, p, 3*day, 4, "", "") // days 10 to 7 ago
	write(t, p, at(6*day))
	write(t, p, at(0))
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	r.confirm()
	drop(t, p, 3*day, past-4, "", "")
}

func TestALostSlotKeepsEverything(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes much log")
	}
	p := aged(t)
	newSlot(t, p, "loser")
	exec(t, p, `ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`)
	defer func() {
		exec(t, p, `ALTER SYSTEM RESET max_slot_wal_keep_size`)
		exec(t, p, `SELECT pg_reload_conf()`)
	}()
	exec(t, p, `SELECT pg_reload_conf()`)
	deadline := time.Now().Add(30 * time.Second)
	for len(rows(t, p, `SELECT 'x' FROM pg_replication_slots WHERE slot_name = 'loser' AND wal_status = 'lost'`)) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the slot is not lost")
		}
		exec(t, p, `SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 4)`)
		exec(t, p, `SELECT pg_switch_wal()`)
		exec(t, p, `CHECKPOINT`)
	}
	drop(t, p, 3*day, 0, outbox.SlotLost, "slot loser is lost: drop it")
}

// A transaction that was open for days may hold an event of an old day.
func TestOpenTransactionsAreWaitedForAndLateOnesRefused(t *testing.T) {
	p := aged(t)
	newSlot(t, p, "late")
	r := read(t, p, "late")
	open, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(context.Background())
	late := at(10 * day)
	if err := outbox.Write(t.Context(), open, late); err != nil {
		t.Fatal(err)
	}
	drop(t, p, 3*day, 0, outbox.Locked, "still open")
	r.confirm()
	drop(t, p, 3*day, 0, outbox.Locked, "still open")
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	if n := len(rows(t, p, `SELECT 'x' FROM outbox WHERE id = $1`, late.ID)); n != 1 {
		t.Fatal("the late event is gone before anyone has read it")
	}
	// The error is the one that consumers know as a fault: they wait, and put nothing aside.
	refused := func() {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error { return outbox.Write(t.Context(), tx, at(10*day)) })
		if err == nil || !strings.Contains(err.Error(), `ERROR: no partition of relation "outbox"`) || !strings.Contains(err.Error(), "23514") {
			t.Errorf("a write into an old day: %v", err)
		}
	}
	refused()
	r.confirm()
	// Who reads the table for long keeps it from being dropped, and nobody waits for him.
	if open, err = p.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Exec(t.Context(), `SELECT count(*) FROM outbox`); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	drop(t, p, 3*day, 0, outbox.Locked, "use the table")
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it waited for %v", took)
	}
	if err := open.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	drop(t, p, 3*day, past, "", "")
	refused()
}

func TestPartitionsAreDroppedBySeveralAtOnceUnderLoad(t *testing.T) {
	p := aged(t)
	newSlot(t, p, "loaded")
	r := read(t, p, "loaded")
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	r.confirm()

	var running sync.WaitGroup
	var stop atomic.Bool
	var written atomic.Int64
	var slowest atomic.Int64
	for range 3 {
		running.Go(func() {
			for !stop.Load() {
				begin := time.Now()
				if err := pgx.BeginFunc(context.Background(), p, func(tx pgx.Tx) error { return outbox.Write(context.Background(), tx, some(2)...) }); err != nil {
					t.Error(err)
					return
				}
				written.Add(2)
				if took := int64(time.Since(begin)); took > slowest.Load() {
					slowest.Store(took)
				}
			}
		})
	}
	var mu sync.Mutex
	var all []string
	var droppers sync.WaitGroup
	for range 4 {
		droppers.Go(func() {
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				dropped, kept, err := outbox.DropPartitions(t.Context(), p, 3*day)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, dropped...)
				mu.Unlock()
				if kept == nil {
					return
				}
			}
			t.Error("not dropped in time")
		})
	}
	droppers.Wait()
	stop.Store(true)
	running.Wait()
	slices.Sort(all)
	var want []string
	for d := 10; d > 3; d-- {
		want = append(want, partition(time.Duration(d)*day))
	}
	if !slices.Equal(all, want) {
		t.Errorf("dropped %q, want %q, each once", all, want)
	}
	if n := rows(t, p, `SELECT count(*)::text FROM outbox`)[0]; n != fmt.Sprint(written.Load()+11-past) {
		t.Errorf("%s rows, written %d", n, written.Load())
	}
	t.Logf("%d events written meanwhile, the slowest transaction took %v", written.Load(), time.Duration(slowest.Load()))
}

func TestDropRefusesWhatIsNotItsOwn(t *testing.T) {
	p := aged(t)
	for call, want := range map[string]string{
		`event_partitions_drop('pg_class', interval '3 days')`: "no event table",
		`event_partitions_drop(NULL, interval '3 days')`:       "no event table",
		`event_partitions_drop('outbox', interval '23 hours')`: "out of range",
		`event_partitions_drop('outbox', NULL)`:                "out of range",
		`event_partitions_drop('inbox', interval '-3 days')`:   "out of range",
		`event_partitions_drop('outbox', interval '401 days')`: "out of range",
	} {
		if _, err := p.Exec(t.Context(), `SELECT `+call); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", call, err, want)
		}
	}
	newSlot(t, p, "strict")
	r := read(t, p, "strict")
	// A default partition, and one of somebody else, stay.
	exec(t, p, `CREATE TABLE outbox_00000001x PARTITION OF outbox FOR VALUES FROM ('00000000-0000-0000-0000-000000000000') TO ('00000001-0000-0000-0000-000000000000')`)
	drop(t, p, 3*day, 0, outbox.Unconfirmed, "sealed now")
	r.confirm()
	drop(t, p, 3*day, past, "", "")
	exec(t, p, `ALTER TABLE outbox_00000001x RENAME TO outbox_20200101`)
	if _, _, err := outbox.DropPartitions(t.Context(), p, 3*day); err == nil || !strings.Contains(err.Error(), "holds other ids than its name says") {
		t.Error(err)
	}
}
