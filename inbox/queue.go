package inbox

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// item is a record that the consumer holds, from the poll until its offset is marked.
type item struct {
	record *kgo.Record
	event  Event
	// rejected, if set, is why the record can never work: it becomes a dead letter.
	rejected error
	hasID    bool // event.ID is usable: it goes into the inbox

	done     bool
	detached bool
	silent   bool      // its dead letter cannot be announced
	stalls   int       // attempts that took too long, or lost the connection, in a batch of its own
	failures int       // attempts that failed by an error of unknown kind
	alone    bool      // it made a whole transaction fail: it runs in one of its own
	retryAt  time.Time // not before; zero: at once
}

// maxBytes bounds the payloads of one transaction. A partition holds four times as much at most, all together eight times, and the rest of the
// last fetch.
const maxBytes = 8 << 20

// queue holds the records in hand, by partition, in the order of their offsets.
type queue struct {
	parts map[partition]*[]*item
	order []partition // in which partitions were first seen: fair and stable
}

type partition struct {
	topic  string
	number int32
}

func newQueue() *queue { return &queue{parts: map[partition]*[]*item{}} }

func (q *queue) add(p partition, it *item) {
	items, ok := q.parts[p]
	if !ok {
		items = new([]*item)
		q.parts[p] = items
		q.order = append(q.order, p)
	}
	*items = append(*items, it)
}

// drop forgets partitions that now belong to another instance.
func (q *queue) drop(lost map[string][]int32) {
	for topic, numbers := range lost {
		for _, n := range numbers {
			p := partition{topic, n}
			if _, ok := q.parts[p]; !ok {
				continue
			}
			delete(q.parts, p)
			for i, o := range q.order {
				if o == p {
					q.order = append(q.order[:i:i], q.order[i+1:]...)
					break
				}
			}
		}
	}
}

// dropTopics forgets all partitions of topics.
func (q *queue) dropTopics(topics []string) {
	lost := map[string][]int32{}
	for p := range q.parts {
		if slices.Contains(topics, p.topic) {
			lost[p.topic] = append(lost[p.topic], p.number)
		}
	}
	q.drop(lost)
}

// ready takes up to limit items that may run now, in order. An item that waits for
// its retry holds back the later ones with its key in its partition. A batch also ends at maxBytes of payload; full tells that a limit has ended it.
// If nothing is ready, wake is when something will be;
// zero if nothing waits.
func (q *queue) ready(now time.Time, limit int) (batch []*item, full bool, wake time.Time) {
	bytes := 0
	var alone *item // after what can run together: it may take its time
	for _, p := range q.order {
		var held map[string]bool
		hold := func(it *item) {
			if held == nil {
				held = map[string]bool{}
			}
			held[it.event.Key] = true
		}
		for _, it := range *q.parts[p] {
			switch {
			case it.done:
			case held[it.event.Key] && it.record.Key != nil:
			case it.retryAt.After(now):
				hold(it)
				if wake.IsZero() || it.retryAt.Before(wake) {
					wake = it.retryAt
				}
			case it.alone && it.rejected == nil:
				if alone == nil {
					alone = it
				}
				hold(it)
			default:
				bytes += len(it.record.Value)
				if batch = append(batch, it); len(batch) == limit || bytes >= maxBytes {
					return batch, true, time.Time{}
				}
			}
		}
	}
	if len(batch) == 0 && alone != nil {
		return []*item{alone}, false, time.Time{}
	}
	return batch, false, wake
}

// full returns the partitions that hold most items or more, done ones too, until their offset is marked, or too many bytes. If all
// together hold four times as many, or twice the bytes, those are full that hold anything: an event that waits, and what is behind it.
func (q *queue) full(most int) map[string][]int32 {
	full, some := map[string][]int32{}, map[string][]int32{}
	items, size := 0, 0
	for p, held := range q.parts {
		bytes := 0
		for _, it := range *held {
			bytes += len(it.record.Value) // of done ones 0
		}
		items, size = items+len(*held), size+bytes
		if len(*held) > 0 {
			some[p.topic] = append(some[p.topic], p.number)
		}
		if len(*held) >= most || bytes >= 4*maxBytes {
			full[p.topic] = append(full[p.topic], p.number)
		}
	}
	if items >= 4*most || size >= 8*maxBytes {
		return some
	}
	return full
}

// settle removes the handled items at the head of each partition, calls mark with
// the last of them, and so never passes an item that is not done.
func (q *queue) settle(mark func(*kgo.Record)) {
	for _, items := range q.parts {
		n := 0
		for n < len(*items) && (*items)[n].done {
			n++
		}
		if n == 0 {
			continue
		}
		mark((*items)[n-1].record)
		rest := (*items)[n:]
		if len(rest) == 0 {
			rest = nil
		}
		*items = rest
	}
}

// detach copies what is not done out of the answer to a fetch, which lies in memory as long as one of its records does.
func (q *queue) detach() {
	for _, items := range q.parts {
		for _, it := range *items {
			if it.done || it.detached {
				continue
			}
			r := it.record
			r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
			for i := range r.Headers {
				r.Headers[i].Value = bytes.Clone(r.Headers[i].Value)
			}
			it.event.Payload, it.detached = r.Value, true
		}
	}
}

// finish lets go of what the item holds. Its record still has what a commit needs.
func (q *queue) finish(it *item) {
	it.done, it.event = true, Event{}
	it.record.Key, it.record.Value, it.record.Headers = nil, nil, nil
}

// parse reads a record's envelope. What it rejects can never become right.
func parse(r *kgo.Record, decode func(Event) (any, error)) *item {
	it := &item{record: r, event: Event{
		Key: string(r.Key), Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		Timestamp: r.Timestamp, Payload: r.Value,
	}}
	rawID := ""
	for _, h := range r.Headers {
		switch h.Key {
		case "id":
			rawID = string(h.Value)
		case "type":
			it.event.Type = string(h.Value)
		case "traceparent":
			it.event.Traceparent = string(h.Value)
		}
	}
	id, err := uuid.Parse(rawID)
	switch {
	case rawID == "":
		it.rejected = errors.New(`the record has no header "id": it was not sent through an outbox`)
	case err != nil || id.Version() != 7 || len(rawID) != 36:
		it.rejected = fmt.Errorf("the event id %.100q is not a UUIDv7", rawID)
	case strings.IndexByte(it.event.Type, 0) >= 0:
		it.rejected = errors.New(`the header "type" has a NUL byte`)
	default:
		it.event.ID, it.hasID = id, true
		if it.event.Body, err = decodeSafely(decode, it.event); err != nil {
			it.rejected = err
		}
	}
	return it
}

// decodeSafely turns a panic of the caller's decoder into a rejection: the record
// would panic every time it is read.
func decodeSafely(decode func(Event) (any, error), ev Event) (body any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decoding the payload panicked: %v", p)
		}
	}()
	return decode(ev)
}

// header returns a header's value as text that PostgreSQL can hold: of several the last, as [parse] does.
func header(r *kgo.Record, key string) (value string) {
	for _, h := range r.Headers {
		if h.Key == key {
			value = string(h.Value)
		}
	}
	return clean(value)
}

// clean makes text that PostgreSQL can hold: UTF-8 without NUL, of bounded length.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > 2000 {
		s = strings.ToValidUTF8(s[:2000], "") + "…"
	}
	return s
}

// idTime is the time in a UUIDv7, to the millisecond.
func idTime(id uuid.UUID) time.Time {
	ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	return time.UnixMilli(ms)
}
