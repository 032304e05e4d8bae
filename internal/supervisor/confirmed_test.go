package supervisor

import (
	"testing"
	"time"
)

// look is a look at a slot that somebody reads; every look finds the log 100 bytes and a transaction further on.
type look struct {
	reader    string
	confirmed int64 // the number of the look up to whose log it has confirmed; 0: none
	status    string
	history   string
	topics    string
	snapshot  bool
	broken    bool // the publication
	told      bool
	back      int // so many looks back in time is the log
}

func TestLearn(t *testing.T) {
	known := []look{{reader: "a"}, {reader: "a", confirmed: 1}} // up to the first look
	after := func(looks ...look) []look { return append(known[:2:2], looks...) }
	for name, c := range map[string]struct {
		looks  []look
		before int64 // the number of the look whose transactions are known to be in Kafka; 0: none
		since  int64 // the number of the look from which on; 0: not known yet
	}{
		"nothing is confirmed":                    {[]look{{reader: "a"}, {reader: "a"}}, 0, 2},
		"the newest mark that is confirmed":       {after(look{reader: "a"}, look{reader: "a", confirmed: 2}), 2, 2},
		"several at once":                         {[]look{{reader: "a"}, {reader: "a"}, {reader: "a"}, {reader: "a", confirmed: 3}}, 3, 2},
		"never that of the same look":             {[]look{{reader: "a", confirmed: 1}}, 0, 0},
		"nobody reads":                            {[]look{{}, {}, {confirmed: 2}, {confirmed: 3}}, 0, 2},
		"another reader is no proof":              {[]look{{reader: "a"}, {reader: "b", confirmed: 1}}, 0, 2},
		"nor is one that came after a break":      {[]look{{reader: "a"}, {}, {reader: "a", confirmed: 1}}, 0, 2},
		"nor a new slot, which begins later":      {[]look{{reader: "a"}, {status: "lost"}, {reader: "b", confirmed: 2}}, 0, 2},
		"but the new reader's own marks":          {[]look{{reader: "a"}, {reader: "b"}, {reader: "b", confirmed: 2}}, 2, 2},
		"what was proven stays so":                {after(look{}, look{status: "lost"}, look{reader: "b"}), 1, 2},
		"a lost slot confirms nothing":            {[]look{{reader: "a"}, {reader: "a", status: "lost", confirmed: 1}}, 0, 2},
		"not on a standby that was promoted":      {after(look{history: "2"}), 0, 0},
		"not when the server is restored earlier": {after(look{back: 2}), 0, 0},
		"not beyond the end of the log":           {after(look{reader: "a", confirmed: 9}), 0, 0},
		"of no row on a topic that is made anew":  {after(look{reader: "a", confirmed: 2, topics: "2"}), 2, 0},
		"but of what came after":                  {after(look{reader: "a", topics: "2"}, look{reader: "a", topics: "2", confirmed: 3}), 3, 4},
		"and from a look that is whole":           {after(look{reader: "a", confirmed: 2, broken: true}, look{reader: "a"}, look{reader: "a", confirmed: 4}), 4, 4},
		"not while it is not published":           {after(look{reader: "a", confirmed: 2, broken: true}, look{reader: "a", confirmed: 3, broken: true}), 0, 0},
		"not when all is sent again":              {after(look{snapshot: true}), 0, 3},
		"but beside another's transaction":        {after(look{reader: "a", snapshot: true}), 1, 2},
		"but when what is missing is sent":        {after(look{snapshot: true, told: true}), 1, 2},
	} {
		var got confirmation
		for i, l := range c.looks {
			n := int64(i + 1 - l.back)
			slot := &Slot{
				Exists: true, reader: l.reader, WALStatus: l.status, history: l.history, Confirmed: 100 * l.confirmed,
				mark: mark{xid: n, wal: 100 * n}, next: int64(i + 1), published: !l.broken,
			}
			if l.snapshot {
				slot.Snapshot = new(time.Minute)
			}
			got.told = l.told
			got.learn(slot, map[string]string{"other": "1", "topic": "1" + l.topics})
		}
		since := got.topics["topic"].xid
		if since == later {
			since = 0
		}
		if got.before != c.before || since != c.since {
			t.Errorf("%s: %d to %d, want %d to %d", name, since, got.before, c.since, c.before)
		}
		if name == "but of what came after" && got.topics["other"].xid != 2 {
			t.Errorf("%s: of another topic since %d", name, got.topics["other"].xid)
		}
	}
	// A connector that confirms nothing for long has its first marks left.
	var c confirmation
	for n := range int64(10 * maxMarks) {
		c.learn(&Slot{reader: "a", published: true, mark: mark{xid: n + 1, wal: n + 1}}, nil)
	}
	if len(c.marks) != maxMarks {
		t.Errorf("%d marks", len(c.marks))
	}
	if c.learn(&Slot{reader: "a", published: true, Confirmed: 10, mark: mark{xid: 1e6, wal: 1e6}}, nil); c.before != 10 {
		t.Errorf("%d", c.before)
	}
}

func TestDue(t *testing.T) {
	now := time.Now()
	read, lost, unread, missing := &Slot{Exists: true, reader: "a", at: now}, &Slot{Exists: true, WALStatus: "lost", at: now}, &Slot{Exists: true, at: now}, &Slot{at: now}
	for name, c := range map[string]struct {
		known confirmation
		slot  *Slot
		told  bool
		due   bool
	}{
		"nothing is known":                             {confirmation{}, lost, false, false},
		"nothing any more, and it is kept":             {confirmation{saved: 5, at: now}, unread, false, true},
		"nothing any more, and it was told":            {confirmation{saved: 5, told: true, at: now}, lost, false, true},
		"more is known":                                {confirmation{saved: 5, before: 6, at: now.Add(-saveEvery)}, read, false, true},
		"more is known, and was written just now":      {confirmation{saved: 5, before: 6, at: now.Add(-time.Second)}, read, false, false},
		"all is written":                               {confirmation{saved: 6, before: 6, at: now.Add(-time.Hour)}, read, false, false},
		"the slot is lost, at once":                    {confirmation{saved: 6, before: 6, at: now.Add(-time.Second)}, lost, true, true},
		"the slot is missing, at once":                 {confirmation{saved: 5, before: 6, at: now.Add(-time.Second)}, missing, true, true},
		"a topic was made anew":                        {confirmation{saved: 6, before: 6, unsaved: true, at: now.Add(-saveEvery)}, read, false, true},
		"a topic was made anew just now":               {confirmation{saved: 6, before: 6, unsaved: true, at: now.Add(-time.Second)}, read, false, false},
		"told, and a topic was made anew":              {confirmation{saved: 6, before: 6, unsaved: true, told: true, at: now}, lost, true, true},
		"nobody reads the slot":                        {confirmation{saved: 5, before: 6, at: now.Add(-time.Hour)}, unread, false, false},
		"told just now":                                {confirmation{saved: 6, before: 6, told: true, at: now.Add(-time.Second)}, lost, false, false},
		"told some time ago, and still lost":           {confirmation{saved: 6, before: 6, told: true, at: now.Add(-toldFor / 3)}, lost, true, true},
		"told some time ago, the new slot is not read": {confirmation{saved: 6, before: 6, told: true, at: now.Add(-toldFor / 3)}, unread, true, true},
		"told, and the new slot is read":               {confirmation{saved: 6, before: 6, told: true, at: now}, read, false, true},
	} {
		if told, due := c.known.due(c.slot); due != c.due || due && told != c.told {
			t.Errorf("%s: %t, %t, want %t, %t", name, told, due, c.told, c.due)
		}
	}
}
