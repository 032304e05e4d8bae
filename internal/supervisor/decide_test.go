package supervisor

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
)

// scene is a system that is well, for a test to break.
func scene(at time.Time) (Facts, Pipeflow) {
	silence := time.Second
	flow := Pipeflow{
		Connector: &Connector{State: "RUNNING"},
		Slot:      &Slot{Exists: true, Active: true, WALStatus: "reserved", WAL: 1000, Confirmed: 1000, Silence: &silence},
	}
	return Facts{At: at, Pipelines: map[string]Pipeflow{}, Groups: map[string]Group{
		"stock-service": {State: "Stable", Members: 1, Lag: map[string]int64{"stock": 0}, Read: map[string]time.Time{"stock": at}},
	}}, flow
}

// unseenFor is an event that was noticed d ago, in a log that ended at wal then and was confirmed since.
func unseenFor(now time.Time, d time.Duration, wal int64) Unseen {
	id := uuid.Must(uuid.NewV7()) // of about now
	ms := now.Add(-d - underWay).UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return Unseen{ID: id, Topic: "stock", Noticed: now.Add(-d), WAL: wal, Confirmed: now.Add(-d)}
}

func TestDecide(t *testing.T) {
	limit := int64(0)
	minute := time.Minute
	for name, c := range map[string]struct {
		break_ func(now time.Time, f *Facts, p *Pipeflow)
		within time.Duration // the first act comes no later
		after  time.Duration // and no sooner
		want   Kind
		reason string
	}{
		"well":             {func(time.Time, *Facts, *Pipeflow) {}, 0, 0, "", ""},
		"idle, heartbeats": {func(now time.Time, _ *Facts, p *Pipeflow) { p.Slot.Confirmed = now.Unix() / 12 }, 0, 0, "", ""},
		"failed": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Connector = &Connector{State: "FAILED", Cause: "too large"}
		}, 0, 0, Restart, "FAILED: too large"},
		"missing": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Connector.State = Missing }, 6 * time.Second, 4 * time.Second, Register, "does not know"},
		"no task": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Connector.State = Starting }, 22 * time.Second, 20 * time.Second, Restart, "no task"},
		"a start does not end": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Connector.State, p.Slot.Active = "RESTARTING", false
		}, 2 * time.Minute, 2 * time.Minute, Restart, "RESTARTING for 2m0s"},
		"a start does not end, they say, but the slot is read": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Connector.State = "UNASSIGNED" }, 0, 0, "", ""},
		"paused": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Connector.State, p.Slot.Active, p.Slot.Confirmed = "PAUSED", false, 5
		}, 0, 0, "", ""},
		"stopped, slot lost": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Connector.State, p.Slot.WALStatus = "STOPPED", "lost"
		}, 0, 0, "", ""},
		"lost": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Active, p.Slot.WALStatus, p.Slot.Safe = false, "lost", &limit
		}, 0, 0, DropSlot, "never be read again"},
		"nearly lost": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Slot.WALStatus = "unreserved" }, 0, 0, "", ""},
		"slot missing": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Slot = &Slot{WAL: 9} },
			8 * time.Second, 6 * time.Second, Restart, "its slot is missing"},
		"not active": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Slot.Active = false },
			8 * time.Second, 6 * time.Second, Restart, "not active"},
		"snapshot": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Active, p.Slot.Snapshot, p.Slot.Confirmed = false, &minute, 5
		}, 0, 0, "", ""},
		"stuck beside another's snapshot": {func(now time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.reader, p.Slot.Snapshot = "1 2026-01-01", &minute
			p.Slot.Confirmed, p.Slot.LagBytes, p.Unseen = 900, 100, []Unseen{unseenFor(now, 2*time.Second, 950)}
		}, 12 * time.Second, 10 * time.Second, Restart, "1 events wait that Kafka does not have"},
		"reader gone": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Slot.Silence = &minute }, 0, 0, EndSender, "said nothing for 1m0s"},
		"a long transaction is sent": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			silence := 31 * time.Second
			p.Slot.Silence, p.Slot.replies = &silence, 30*time.Second
		}, 0, 0, "", ""},
		"reader gone, wherever it is heard seldom": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Silence, p.Slot.replies = &minute, 30*time.Second
		}, 0, 0, EndSender, "said nothing for 1m0s"},
		"stuck with events": {func(now time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Slot.LagBytes, p.Unseen = 900, 100, []Unseen{unseenFor(now, 2*time.Second, 950)}
		}, 12 * time.Second, 10 * time.Second, Restart, "1 events wait that Kafka does not have"},
		"stuck without events": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Slot.Confirmed, p.Slot.LagBytes = 900, 100 },
			32 * time.Second, 30 * time.Second, Restart, "not even a heartbeat"},
		"the log was set back": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Slot.LagBytes, p.Connector.Offset, p.Connector.End = 900, 100, 1001, 1000
		}, 0, 0, Resend, "has read up to 0/3E9 of a log that ends at 0/3E8"},
		"stuck at the end of the log": {func(_ time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Slot.LagBytes, p.Connector.Offset, p.Connector.End = 900, 100, 1100, 1100 // the log has grown since the slot was looked at
		}, 32 * time.Second, 30 * time.Second, Restart, "not even a heartbeat"},
		"a slow consumer": {func(now time.Time, f *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Unseen = now.Unix(), []Unseen{unseenFor(now, time.Minute, 950)}
			f.Groups["stock-service"].Lag["stock"], f.Groups["stock-service"].Read["stock"] = 7, now.Add(-time.Hour)
		}, 0, 0, "", ""},
		"lag is not known": {func(now time.Time, f *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Unseen = now.Unix(), []Unseen{unseenFor(now, time.Minute, 950)}
			f.Groups["stock-service"].Lag["stock"], f.Groups["stock-service"].Read["stock"] = -1, time.Time{}
		}, 0, 0, "", ""},
		"nobody consumes": {func(now time.Time, f *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Unseen = now.Unix(), []Unseen{unseenFor(now, time.Minute, 950)}
			f.Groups["stock-service"] = Group{Lag: map[string]int64{"stock": 0}, Read: map[string]time.Time{"stock": now}}
		}, 0, 0, "", ""},
		"a long backlog": {func(now time.Time, _ *Facts, p *Pipeflow) { // it moves, and has not come to the event yet
			p.Slot.Confirmed, p.Slot.LagBytes = now.Unix()/4, 1<<40
			p.Unseen = []Unseen{unseenFor(now, time.Minute, 1<<40)}
			p.Unseen[0].Confirmed = time.Time{}
		}, 0, 0, "", ""},
		"Kafka has lost it": {func(now time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Unseen = now.Unix(), []Unseen{unseenFor(now, lostAfter, 950)}
		}, 0, 0, Resend, "Kafka has lost them"},
		"Kafka has lost it, and there is always something new": {func(now time.Time, f *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Unseen = now.Unix(), []Unseen{unseenFor(now, lostAfter, 950)}
			f.Groups["stock-service"].Lag["stock"] = 7
		}, 0, 0, Resend, "Kafka has lost them"},
		"no inbox could be asked since": {func(now time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Unseen, p.Stale = now.Unix(), []Unseen{unseenFor(now, lostAfter, 950)}, true
		}, 0, 0, "", ""},
		"no inbox could be asked, and nothing moves": {func(now time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Slot.LagBytes, p.Unseen, p.Stale = 900, 100, []Unseen{unseenFor(now, 2*time.Second, 950)}, true
		}, 32 * time.Second, 30 * time.Second, Restart, "not even a heartbeat"},
		"it may be on the way": {func(now time.Time, f *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Unseen = now.Unix(), []Unseen{unseenFor(now, time.Minute, 950)}
			f.Groups["stock-service"].Read["stock"] = now.Add(-time.Minute - time.Second)
		}, 0, 0, "", ""},
		"confirmed a moment ago": {func(now time.Time, _ *Facts, p *Pipeflow) {
			p.Slot.Confirmed, p.Unseen = now.Unix(), []Unseen{unseenFor(now, time.Second, 950)}
		}, 0, 0, "", ""},
		"Kafka is down":   {func(_ time.Time, f *Facts, p *Pipeflow) { f.Groups, p.Connector.State = nil, "FAILED" }, 0, 0, "", ""},
		"Connect is down": {func(_ time.Time, _ *Facts, p *Pipeflow) { p.Connector, p.Slot.Active = nil, false }, 0, 0, "", ""},
		"a topic is missing": {func(_ time.Time, f *Facts, _ *Pipeflow) { f.MissingTopics = []string{"stock"} },
			0, 0, MakeTopics, "stock"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{}
			begin := time.Now()
			for passed := time.Duration(0); passed <= 2*time.Minute; passed += 2 * time.Second {
				f, flow := scene(begin.Add(passed))
				c.break_(f.At, &f, &flow)
				f.Pipelines["x"] = flow
				acts := decide(f.At, "x", f, m)
				if len(acts) == 0 {
					if c.want != "" && passed >= c.within {
						t.Fatalf("nothing is done after %s, want %s", passed, c.want)
					}
					continue
				}
				if len(acts) != 1 || acts[0].Kind != c.want || !strings.Contains(acts[0].Reason, c.reason) || passed < c.after {
					t.Fatalf("after %s: %+v, want %s: %s", passed, acts, c.want, c.reason)
				}
				return
			}
		})
	}
}

// Topics that cannot be made for long do not hold up what else is to be done.
func TestTopicsAreMadeLast(t *testing.T) {
	m := &memory{}
	begin := time.Now()
	for passed := time.Duration(0); passed < 2*time.Minute; passed += 2 * time.Second {
		f, flow := scene(begin.Add(passed))
		f.MissingTopics, flow.Connector.State = []string{"stock"}, "FAILED"
		f.Pipelines["x"] = flow
		acts := decide(f.At, "x", f, m)
		if i := slices.IndexFunc(acts, func(a Act) bool { return a.Kind == MakeTopics }); i >= 0 && i < len(acts)-1 || passed == 0 && len(acts) != 2 {
			t.Fatalf("after %s: %+v", passed, acts)
		}
	}
}

// What does not help is done ever more seldom, and at once again after it has helped for long.
func TestPauses(t *testing.T) {
	m := &memory{}
	begin := time.Now()
	acts := func(from, to time.Duration, failed bool) (n int) {
		for passed := from; passed < to; passed += time.Second {
			f, flow := scene(begin.Add(passed))
			if failed {
				flow.Connector.State = "FAILED"
			}
			f.Pipelines["x"] = flow
			n += len(decide(f.At, "x", f, m))
		}
		return n
	}
	if n := acts(0, 10*time.Minute, true); n < 10 || n > 15 {
		t.Errorf("%d restarts in 10 minutes", n)
	}
	acts(10*time.Minute, 15*time.Minute, false)
	if n := acts(15*time.Minute, 15*time.Minute+6*time.Second, true); n != 2 {
		t.Errorf("%d restarts in the first 6 s of a new fault", n)
	}
}

// To start a connector that runs may be what hinders it: in the end it is left alone for long.
func TestPatience(t *testing.T) {
	m := &memory{}
	begin := time.Now()
	var last, longest time.Duration
	n := 0
	for passed := time.Duration(0); passed < 4*time.Hour; passed += 2 * time.Second {
		f, flow := scene(begin.Add(passed))
		flow.Slot.Confirmed, flow.Slot.LagBytes, flow.Unseen = 900, 100, []Unseen{unseenFor(f.At, time.Minute, 950)}
		flow.Unseen[0].Confirmed = time.Time{}
		f.Pipelines["x"] = flow
		if acts := decide(f.At, "x", f, m); len(acts) > 0 {
			n, longest, last = n+1, max(longest, passed-last), passed
		}
	}
	f, flow := scene(begin.Add(last + time.Minute)) // it is well for a moment: the next time it is no longer a long transaction
	f.Pipelines["x"] = flow
	decide(f.At, "x", f, m)
	for passed := last + 2*time.Minute; passed < last+10*time.Minute; passed += 2 * time.Second {
		f, flow := scene(begin.Add(passed))
		flow.Slot.Confirmed, flow.Slot.LagBytes, flow.Unseen = 1000, 100, []Unseen{unseenFor(f.At, time.Minute, 950)}
		flow.Unseen[0].Confirmed = time.Time{}
		f.Pipelines["x"] = flow
		if acts := decide(f.At, "x", f, m); len(acts) > 0 {
			break
		} else if passed > last+3*time.Minute {
			t.Fatal("after it was well it is left alone for as long")
		}
	}
	if n < 12 || n > 20 || longest < patientPause || longest > patientPause+time.Minute {
		t.Errorf("%d restarts in 4 hours, %s between two at most", n, longest)
	}
}

// An event is confirmed by the reader that sends it: another one sends some anew, and a new slot begins after them.
func TestConfirmedByTheReaderThatSendsIt(t *testing.T) {
	u := unseenFor(time.Now(), time.Minute, 950)
	u.Confirmed = time.Time{}
	w := &watch{unseen: map[uuid.UUID]Unseen{u.ID: u}}
	for i, c := range []struct {
		reader         string
		wal, confirmed int64
		want           bool
	}{
		{"a", 1000, 990, false}, // of an earlier reader, perhaps
		{"a", 1100, 1000, false},
		{"a", 1100, 1001, true},
		{"", 1200, 1001, true}, // nobody reads, nothing changes
		{"b", 1300, 1200, false},
		{"b", 1400, 1300, false},
		{"b", 1400, 1400, true},
	} {
		at := time.Unix(int64(i), 0)
		w.confirm(Pipeflow{Slot: &Slot{reader: c.reader, WAL: c.wal, Confirmed: c.confirmed}, Unseen: []Unseen{w.unseen[u.ID]}}, at)
		if got := w.unseen[u.ID].Confirmed; got.IsZero() == c.want {
			t.Errorf("look %d: confirmed at %s, want %t", i, got, c.want)
		}
	}
}

// A connector that a resend has left stopped is resumed; no other one that is stopped.
func TestUnfinishedResend(t *testing.T) {
	begin := time.Now()
	f, flow := scene(begin)
	flow.Connector.State, flow.Slot.Active = "STOPPED", false
	f.Pipelines["x"] = flow
	m := &memory{unfinished: begin}
	if acts := decide(begin, "x", f, m); len(acts) != 1 || acts[0].Kind != Resume {
		t.Errorf("%+v", acts)
	}
	if acts := decide(begin.Add(time.Second), "x", f, m); len(acts) != 0 {
		t.Errorf("without a pause: %+v", acts)
	}
	m.unfinished = time.Time{}
	if acts := decide(begin.Add(time.Hour), "x", f, m); len(acts) != 0 {
		t.Errorf("somebody has stopped it: %+v", acts)
	}
}

// A topic to which something new always comes is read up to a time nevertheless.
func TestReadings(t *testing.T) {
	type partition struct{ committed, start, end int64 }
	all, begin := readings{}, time.Now()
	at := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Second) }
	for i, c := range []struct {
		topic      string
		partitions []partition
		upto       int // the second up to which all was read, as the look before has found; 0: not known
	}{
		1:  {"a", []partition{{10, 0, 15}, {-1, 0, 0}}, 0},
		2:  {"a", []partition{{14, 0, 25}, {-1, 0, 9}}, 0},
		3:  {"a", []partition{{15, 0, 35}, {0, 0, 9}}, 0}, // what was there in the first second is read
		4:  {"a", []partition{{35, 0, 45}, {8, 0, 9}}, 1},
		5:  {"a", []partition{{44, 0, 55}, {9, 0, 9}}, 1}, // and in the third
		6:  {"a", []partition{{44, 44, 55}, {9, 9, 9}}, 3},
		7:  {"a", []partition{{44, 55, 55}, {-1, 9, 9}}, 3}, // and what expired since the fifth was read or is gone
		8:  {"a", nil, 5},
		9:  {"b", []partition{{0, 0, 5}, {-1, 0, 0}}, 0}, // it was made anew
		10: {"b", []partition{{5, 0, 5}, {-1, 0, 0}}, 0},
		11: {"b", []partition{{5, 0, 5}, {-1, 0, 0}}, 9},
	} {
		if i == 0 {
			continue
		}
		partitions := map[int32]kadm.GroupMemberLag{}
		for n, p := range c.partitions {
			partitions[int32(n)] = kadm.GroupMemberLag{Commit: kadm.Offset{At: p.committed}, Start: kadm.ListedOffset{Offset: p.start}, End: kadm.ListedOffset{Offset: p.end}}
		}
		if c.partitions == nil {
			partitions[0] = kadm.GroupMemberLag{Lag: -1}
		}
		upto := all.of("group", "topic", c.topic, partitions, at(i))
		if want := at(c.upto); c.upto == 0 && !upto.IsZero() || c.upto != 0 && upto != want {
			t.Errorf("look %d: read up to %s, want %s", i, upto, want)
		}
	}
}

// A resend stops the connector and starts it: that nothing was confirmed meanwhile is no reason to start it again. One that failed comes
// again after a minute, and one for another reason does not wait for it.
func TestDecideAfterAResend(t *testing.T) {
	m, begin := &memory{}, time.Now()
	at := func(passed time.Duration, offset, end int64, lost ...Unseen) []Act {
		f, flow := scene(begin.Add(passed))
		flow.Slot.Confirmed, flow.Slot.LagBytes, flow.Connector.Offset, flow.Connector.End = 900, 100, offset, end
		flow.Unseen = append([]Unseen{{ID: uuid.Must(uuid.NewV7()), Topic: "stock", Noticed: begin}}, lost...)
		for i := range 6 { // it waits since long ago
			flow.Unseen[0].ID[i] = 0
		}
		f.Pipelines["x"] = flow
		return decide(f.At, "x", f, m)
	}
	want := func(passed time.Duration, got []Act, want Kind) {
		t.Helper()
		if len(got) > 1 || (len(got) == 1) != (want != "") || want != "" && got[0].Kind != want {
			t.Fatalf("after %s: %+v, want %q", passed, got, want)
		}
	}
	at(0, 0, 0)
	want(8*time.Second, at(8*time.Second, 1001, 1000), Resend)
	for passed := 10 * time.Second; passed < 18*time.Second; passed += 2 * time.Second {
		want(passed, at(passed, 0, 0), "")
	}
	want(20*time.Second, at(20*time.Second, 0, 0), Restart)
	want(22*time.Second, at(22*time.Second, 1001, 1000), "")
	m.failed()
	want(70*time.Second, at(70*time.Second, 1001, 1000), Resend)
	want(72*time.Second, at(72*time.Second, 0, 0, unseenFor(begin.Add(72*time.Second), lostAfter, 950)), Resend)
}
