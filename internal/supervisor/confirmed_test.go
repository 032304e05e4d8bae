package supervisor

import "testing"

// look is a look at a slot that somebody reads; every look finds the log 100 bytes and a transaction further on.
type look struct {
	reader    string
	confirmed int64 // the number of the look up to whose log it has confirmed; 0: none
	status    string
	history   string
	topics    string
	back      int // so many looks back in time is the log
}

func TestLearn(t *testing.T) {
	for name, c := range map[string]struct {
		looks []look
		want  int64 // the number of the look whose transactions are known to be in Kafka; 0: none
	}{
		"nothing is confirmed":                    {[]look{{reader: "a"}, {reader: "a"}}, 0},
		"the newest mark that is confirmed":       {[]look{{reader: "a"}, {reader: "a"}, {reader: "a", confirmed: 1}, {reader: "a", confirmed: 2}}, 2},
		"several at once":                         {[]look{{reader: "a"}, {reader: "a"}, {reader: "a"}, {reader: "a", confirmed: 3}}, 3},
		"never that of the same look":             {[]look{{reader: "a", confirmed: 1}}, 0},
		"nobody reads":                            {[]look{{}, {}, {confirmed: 2}, {confirmed: 3}}, 0},
		"another reader is no proof":              {[]look{{reader: "a"}, {reader: "b", confirmed: 1}}, 0},
		"nor is one that came after a break":      {[]look{{reader: "a"}, {}, {reader: "a", confirmed: 1}}, 0},
		"nor a new slot, which begins later":      {[]look{{reader: "a"}, {status: "lost"}, {reader: "b", confirmed: 2}}, 0},
		"but the new reader's own marks":          {[]look{{reader: "a"}, {reader: "b"}, {reader: "b", confirmed: 2}}, 2},
		"what was proven stays so":                {[]look{{reader: "a"}, {reader: "a", confirmed: 1}, {}, {status: "lost"}, {reader: "b"}}, 1},
		"a lost slot confirms nothing":            {[]look{{reader: "a"}, {reader: "a", status: "lost", confirmed: 1}}, 0},
		"not on a standby that was promoted":      {[]look{{reader: "a"}, {reader: "a", confirmed: 1}, {history: "2"}}, 0},
		"not when the server is restored earlier": {[]look{{reader: "a"}, {reader: "a", confirmed: 1}, {back: 2}}, 0},
		"not when a topic is made anew":           {[]look{{reader: "a"}, {reader: "a", confirmed: 1}, {reader: "a", confirmed: 2, topics: "2"}}, 0},
	} {
		var got confirmation
		for i, l := range c.looks {
			n := int64(i + 1 - l.back)
			got.learn(&Slot{reader: l.reader, WALStatus: l.status, history: l.history, Confirmed: 100 * l.confirmed, mark: mark{xid: n, wal: 100 * n}}, l.topics)
		}
		if got.before != c.want {
			t.Errorf("%s: %d, want %d", name, got.before, c.want)
		}
	}
	// A connector that confirms nothing for long has its first marks left.
	var c confirmation
	for n := range int64(10 * maxMarks) {
		c.learn(&Slot{reader: "a", mark: mark{xid: n + 1, wal: n + 1}}, "")
	}
	if len(c.marks) != maxMarks {
		t.Errorf("%d marks", len(c.marks))
	}
	if c.learn(&Slot{reader: "a", Confirmed: 10, mark: mark{xid: 1e6, wal: 1e6}}, ""); c.before != 10 {
		t.Errorf("%d", c.before)
	}
}
