package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Kept says why a partition that is past its retention is still there.
type Kept struct {
	Partition string
	Reason    Reason
	// Detail is the reason in words, with what to do.
	Detail string
}

// Reason is why a partition is kept, in one word.
type Reason string

// The reasons. The first three pass by themselves within moments; the others need an operator if
// they last.
const (
	Busy         Reason = "busy"          // another process drops or prepares partitions
	Locked       Reason = "locked"        // transactions use the table for too long
	Unconfirmed  Reason = "unconfirmed"   // a slot has not confirmed it yet
	NoSlot       Reason = "no_slot"       // no replication slot of the database has read it
	SlotLost     Reason = "slot_lost"     // PostgreSQL has given a slot up
	SlotInactive Reason = "slot_inactive" // a slot has no reader now
)

// Reasons are all reasons.
func Reasons() []Reason {
	return []Reason{Busy, Locked, Unconfirmed, NoSlot, SlotLost, SlotInactive}
}

// DropPartitions drops the partitions of the outbox that are past retention (1 to 400 days), oldest
// first, and returns their names. kept, if not nil, is why the next one has to stay: call again later,
// after some seconds if it is [Unconfirmed]. A day's partition is past retention when its last id is. Retention
// counts back from now, by the database's clock, or from the end of the day of the newest event if that is earlier: a database whose clock is
// days ahead drops nothing too soon, and while nothing is written nothing grows old.
//
// A partition goes only if all its events are in Kafka, by these rules:
//
//   - It is sealed first: an INSERT of an id of that day fails from then on, as it will when the
//     partition is gone. To seal waits for the transactions that wrote into it. So also an event whose
//     transaction was open for days, or that comes from a service with a slow clock, is either
//     committed before the seal and counted, or refused, loudly. It is never dropped unsent.
//   - The position of the log is marked after the seal: every event of the partition was committed
//     below it. Each logical slot of the database must confirm a position beyond the mark. Debezium
//     confirms what Kafka has acknowledged.
//   - It must be the same reader, without a break, that reads a slot at the mark and confirms it.
//     A slot that was lost and made anew begins *after* the mark and would seem to have confirmed it, while
//     its connector still sends the retained outbox again (a snapshot). A new reader therefore gets a new
//     mark, and the new slot confirms nothing before the whole snapshot is in Kafka. A reader is known by its
//     process id and the server's start, and a mark is forgotten after half an hour, before such a number could be
//     another's.
//   - A slot that is lost, that nobody reads, or that has confirmed nothing keeps every partition,
//     and so does a database without a slot. A slot that is not needed any more must be dropped.
//
// Retention is thus a minimum. What is kept for long is sent again after a lost slot, but for what is known to be in
// Kafka or in an inbox (the table outbox_confirmed); an inbox that remembers less takes such an event for a dead letter, never for
// a new one.
//
// It is meant to run with traffic on, in several processes at once: one acts, the others are told
// [Busy]. DROP TABLE locks the whole outbox until its commit, some milliseconds. (DETACH … CONCURRENTLY would
// not, but cannot run in a function, and a service has no right to drop its tables by itself.) It
// waits 75 ms for that lock at most, which is also how long a writer may have to wait behind it, and then
// tries again at the next call. Do not pass a transaction: each partition goes in one of its own.
func DropPartitions(ctx context.Context, db Querier, retention time.Duration) (dropped []string, kept *Kept, err error) {
	for {
		var partition, state, detail string
		err := db.QueryRow(ctx, dropOldest, retention.Seconds()).Scan(&partition, &state, &detail)
		switch {
		case err != nil:
			return dropped, nil, fmt.Errorf("outbox: drop partitions: %w", err)
		case state == "none":
			return dropped, nil, nil
		case state != "dropped":
			return dropped, &Kept{partition, Reason(state), detail}, nil
		}
		dropped = append(dropped, partition)
	}
}

const dropOldest = `SELECT coalesce(partition, ''), state, coalesce(detail, '') FROM event_partitions_drop('outbox', make_interval(secs => $1))`

// Window is the time whose ids have a partition, from since (included) to until (excluded).
func Window(ctx context.Context, db Querier) (since, until time.Time, err error) {
	var s, u *time.Time
	if err := db.QueryRow(ctx, `SELECT since, until FROM event_partitions_window('outbox')`).Scan(&s, &u); err != nil {
		return since, until, fmt.Errorf("outbox: partitions: %w", err)
	}
	if s == nil || u == nil {
		return since, until, errors.New("outbox: there is no partition: call PreparePartitions")
	}
	return *s, *u, nil
}
