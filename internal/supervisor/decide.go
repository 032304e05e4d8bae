package supervisor

import (
	"fmt"
	"slices"
	"time"
)

// Act is something to do about a pipeline.
type Act struct {
	Kind   Kind
	Reason string
}

// Kind is what an act does.
type Kind string

// The acts.
const (
	// Restart starts the failed parts of a connector again, or all of one that is stuck.
	Restart Kind = "restart"
	// Register registers a connector that is missing.
	Register Kind = "register"
	// MakeTopics makes the topics that are missing.
	MakeTopics Kind = "make_topics"
	// EndSender ends the walsender of a reader that is gone: it holds the slot until then.
	EndSender Kind = "end_sender"
	// DropSlot drops a slot that PostgreSQL has invalidated, and starts its connector again, which makes
	// a new one and sends what is not known to be in Kafka or in an inbox of the retained outbox.
	DropSlot Kind = "drop_slot"
	// Resend has the connector send the whole retained outbox again.
	Resend Kind = "resend"
	// Resume starts a connector again that a resend has stopped, where its supervisor could not.
	Resume Kind = "resume"
)

// How long a state may last before it counts. A healthy connector confirms at least every 12 s: a
// heartbeat each 5 s, offsets flushed each 2 s, a status to PostgreSQL each 5 s.
const (
	missingAfter  = 4 * time.Second  // a connector that is being changed is missing for a moment
	inactiveAfter = 6 * time.Second  // a restart takes 2 s
	silentAfter   = 12 * time.Second // the reader says something each 5 s; see also Slot.replies
	silentLonger  = 2 * time.Second  // than the reader is heard at least
	stalledAfter  = 6 * time.Second  // with nothing confirmed: Connect is asked for its offset then
	stuckAfter    = 10 * time.Second // with events waiting that Kafka does not have
	deadAfter     = 30 * time.Second // with nothing waiting but heartbeats
	lostAfter     = 8 * time.Second
	startingAfter = 20 * time.Second
	lingersAfter  = 2 * time.Minute // a start may make its slot meanwhile
	snapshotLimit = 6 * time.Hour
)

// judged are the states of a connector that have rules of their own. What is left passes: RESTARTING, UNASSIGNED.
var judged = []string{"RUNNING", "PAUSED", "STOPPED", "FAILED", Missing, Starting}

// Pauses between two acts of a kind on one connector: they double from the first to the last.
const firstPause, lastPause = 5 * time.Second, time.Minute

// patientPause is the last one where a start anew may be what hinders: a walsender that has begun to send a transaction of gigabytes begins
// again. It must have the time to come to its end.
const patientPause = 30 * time.Minute

// stuck counts the restarts of a connector that runs.
const stuck Kind = "restart, stuck"

// patient are the acts whose pauses grow up to that.
var patient = []Kind{stuck, EndSender}

// resendPause keeps a fault that a resend does not mend from sending the outbox for ever. One that failed has sent nothing.
const resendPause, resendFailedPause = 5 * time.Minute, time.Minute

// restored counts the pauses of resends for that reason apart.
const restored Kind = "resend, restored"

// memory is what was seen of a pipeline before.
type memory struct {
	since     map[string]time.Time // when a condition began to hold
	confirmed int64
	moved     time.Time // when confirmed last moved, or could not be expected to
	acts      map[Kind]past
	// unfinished is since when a resend is known that was begun and not finished; zero: none.
	unfinished time.Time
}

type past struct {
	last  time.Time
	pause time.Duration // before the next
}

// lasts tells whether a condition holds for d now.
func (m *memory) lasts(now time.Time, condition string, holds bool, d time.Duration) bool {
	if !holds {
		delete(m.since, condition)
		return false
	}
	if _, ok := m.since[condition]; !ok {
		m.since[condition] = now
	}
	return now.Sub(m.since[condition]) >= d
}

// allow tells whether an act may be done, and remembers it as done.
func (m *memory) allow(now time.Time, kind Kind) bool {
	p := m.acts[kind]
	if now.Sub(p.last) < p.pause {
		return false
	}
	switch {
	case kind == Resend || kind == restored:
		p.pause = resendPause
	case now.Sub(p.last) > p.pause+3*lastPause: // it was well in between
		p.pause = firstPause
	default:
		longest := lastPause
		if slices.Contains(patient, kind) {
			longest = patientPause
		}
		p.pause = min(max(2*p.pause, firstPause), longest)
	}
	p.last = now
	m.acts[kind] = p
	return true
}

// stalled tells whether a slot is read, and nothing has moved for so long, up to the look before, that a reason is looked for.
func (m *memory) stalled(slot *Slot, now time.Time) bool {
	return slot != nil && slot.Active && slot.Confirmed == m.confirmed && !m.moved.IsZero() && now.Sub(m.moved) >= stalledAfter
}

// failed is for a resend that was allowed and has sent nothing.
func (m *memory) failed() { m.shorten(resendFailedPause, Resend, restored) }

// made is for topics that were made: the next time they are others.
func (m *memory) made() { m.shorten(firstPause, MakeTopics) }

// shorten bounds the pauses before the next acts of some kinds.
func (m *memory) shorten(most time.Duration, kinds ...Kind) {
	for _, kind := range kinds {
		p := m.acts[kind]
		p.pause = min(p.pause, most)
		m.acts[kind] = p
	}
}

// decide says what to do about a pipeline. It has no effect but on m, and does no I/O.
func decide(now time.Time, name string, f Facts, m *memory) (acts []Act) {
	if m.since == nil {
		m.since, m.acts, m.moved = map[string]time.Time{}, map[Kind]past{}, now
	}
	flow := f.Pipelines[name]
	doAs := func(pauses, kind Kind, reason string, values ...any) {
		if m.allow(now, pauses) {
			acts = append(acts, Act{kind, fmt.Sprintf(reason, values...)})
			if kind == Restart || kind == DropSlot || kind == EndSender || kind == Resend || kind == Resume {
				m.since, m.moved = map[string]time.Time{}, now // what comes next is a new story
			}
		}
	}
	do := func(kind Kind, reason string, values ...any) { doAs(kind, kind, reason, values...) }
	if len(f.MissingTopics) > 0 {
		defer func() { do(MakeTopics, "Kafka does not have %v", f.MissingTopics) }() // last: it may take long
	}
	slot, connector := flow.Slot, flow.Connector
	if slot == nil || connector == nil || f.Groups == nil {
		// Without PostgreSQL, Connect or Kafka nothing can flow, and no restart would help.
		m.since, m.moved = map[string]time.Time{}, now
		return acts
	}
	if slot.Confirmed > m.confirmed { // it was not hindered by the last start
		m.shorten(lastPause, patient...)
	}
	if slot.Confirmed != m.confirmed || slot.LagBytes == 0 {
		m.confirmed, m.moved = slot.Confirmed, now
	}

	missing := m.lasts(now, "missing", connector.State == Missing, missingAfter)
	starting := m.lasts(now, "starting", connector.State == Starting, startingAfter)
	inactive := m.lasts(now, "inactive", connector.State == "RUNNING" && !slot.Active, inactiveAfter)
	silent := m.lasts(now, "silent", slot.Silence != nil && *slot.Silence >= max(silentAfter, slot.replies+silentLonger), 0)
	lost := m.lasts(now, "lost", slot.Exists && slot.WALStatus == "lost", 0)
	// Another transaction of a Debezium is no snapshot of ours while our slot is read.
	snapshot := slot.reader == "" && slot.Snapshot != nil && *slot.Snapshot < snapshotLimit
	lingers := m.lasts(now, "lingers", !slot.Active && !slices.Contains(judged, connector.State), lingersAfter)
	gone := proven(flow, f.Groups, now)
	switch waits := waiting(flow, f.Groups, now); {
	case missing:
		do(Register, "Kafka Connect does not know the connector")
	case connector.State == Missing:
	case connector.State == "STOPPED" && !m.unfinished.IsZero():
		do(Resume, "it was stopped to send its outbox again, and that was not finished")
	case connector.State == "PAUSED" || connector.State == "STOPPED":
		m.moved = now // somebody wants it so
	case lost:
		do(DropSlot, "PostgreSQL has invalidated the slot (%s): it can never be read again", slot.Reason)
	case connector.State == "FAILED":
		do(Restart, "FAILED: %s", connector.Cause)
	case starting:
		do(Restart, "it has no task for %s", startingAfter)
	case silent:
		do(EndSender, "the slot's reader has said nothing for %s", slot.Silence.Round(time.Second))
	case snapshot:
		m.since, m.moved = map[string]time.Time{}, now // the slot is read only after it
	case inactive && !slot.Exists:
		do(Restart, "RUNNING, but its slot is missing: a start makes it and sends what Kafka does not have")
	case inactive:
		do(Restart, "RUNNING, but its slot is not active for %s", inactiveAfter)
	case lingers:
		doAs(stuck, Restart, "%s for %s, and its slot is not active", connector.State, lingersAfter)
	case connector.State != "RUNNING":
	case connector.Offset > connector.End:
		doAs(restored, Resend, "Kafka Connect has read up to %s of a log that ends at %s: the database was restored, and all up to there would be passed over",
			position(connector.Offset), position(connector.End))
	case waits > 0 && now.Sub(m.moved) >= stuckAfter:
		doAs(stuck, Restart, "RUNNING, but %d events wait that Kafka does not have, and for %s nothing was confirmed", waits, now.Sub(m.moved).Round(time.Second))
	case now.Sub(m.moved) >= deadAfter:
		doAs(stuck, Restart, "RUNNING, but for %s nothing was confirmed, not even a heartbeat", now.Sub(m.moved).Round(time.Second))
	case len(gone) > 0:
		do(Resend, "%d events were confirmed, are in no inbox, and what was on their topics then is read: Kafka has lost them; the first is %s on %s",
			len(gone), gone[0].ID, gone[0].Topic)
	}
	return acts
}

// position is one in the log as PostgreSQL writes it.
func position(lsn int64) string { return fmt.Sprintf("%X/%X", lsn>>32, uint32(lsn)) }

// waiting counts the unseen events that do not wait in Kafka for their consumer: those on
// topics that are read to their end.
func waiting(flow Pipeflow, groups map[string]Group, now time.Time) (n int) {
	if flow.Stale {
		return 0
	}
	for _, u := range flow.Unseen {
		if now.Sub(u.At()) >= underWay && read(u.Topic, groups) {
			n++
		}
	}
	return n
}

// proven are the unseen events that were confirmed to PostgreSQL, and whose consumer has read since then what was on their topic: they are not in
// Kafka for it: Kafka had them and has lost them, or their topic was made anew.
func proven(flow Pipeflow, groups map[string]Group, now time.Time) []Unseen {
	if flow.Stale || flow.Slot == nil || flow.Connector == nil || flow.Connector.State != "RUNNING" || !flow.Slot.Active {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(flow.Unseen), func(u Unseen) bool {
		return u.Confirmed.IsZero() || now.Sub(u.Noticed) < lostAfter || !readUpTo(u.Topic, groups, u.Confirmed)
	})
}

// readUpTo tells whether a consumer has read all that was on a topic at a time.
func readUpTo(topic string, groups map[string]Group, at time.Time) bool {
	for _, g := range groups {
		if upto, consumes := g.Read[topic]; consumes {
			return g.Members > 0 && !upto.Before(at)
		}
	}
	return false
}

// read tells whether a consumer has members and has read a topic to its end.
func read(topic string, groups map[string]Group) bool {
	for _, g := range groups {
		if lag, consumes := g.Lag[topic]; consumes {
			return lag == 0 && g.Members > 0
		}
	}
	return false
}
