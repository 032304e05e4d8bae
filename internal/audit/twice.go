package audit

import (
	"context"
	"hash/maphash"
	"time"

	"outboxsaga/events"
)

// repetition is what an outbox has more than one of.
type repetition struct{ sender, order, typ string }

// history remembers which orders an outbox has sent which types of events about, in little memory: it may be wrong when it
// says yes (about one in a million), never when it says no. So a yes is a suspicion, which the outbox itself confirms.
// It remembers at least the newest 8 million events.
type history struct {
	seed     maphash.Seed
	bits     []bitset    // the newest last
	fed      map[id]bool // events that are read again in the next round
	suspects map[[2]string]bool
}

// bitset is a Bloom filter.
type bitset struct {
	words []uint64
	room  int // keys to come
}

const (
	bitsPerKey  = 32
	probes      = 10
	smallestLog = 20 // bits, as a power of two: 128 KiB
	largestLog  = 28 // 32 MiB
	largest     = 2  // how many of the largest are kept
)

func newHistory() *history {
	return &history{seed: maphash.MakeSeed(), bits: []bitset{newBitset(smallestLog)}, fed: map[id]bool{}, suspects: map[[2]string]bool{}}
}

func newBitset(log int) bitset {
	return bitset{make([]uint64, 1<<(log-6)), 1 << log / bitsPerKey}
}

// add suspects an event whose order has had one of its type. Dead letters may repeat. after is
// where the next round begins to read.
func (h *history) add(one row, after id) {
	switch one.typ {
	case events.TypeOrderDeadLettered, events.TypeStockDeadLettered, events.TypePaymentDeadLettered:
		return
	}
	if h.fed[one.id] {
		return
	}
	if !one.id.before(after) {
		h.fed[one.id] = true
	}
	key := [2]string{one.about, one.typ}
	hash := maphash.Comparable(h.seed, key)
	for _, b := range h.bits {
		if b.has(hash) {
			h.suspects[key] = true
			return
		}
	}
	newest := &h.bits[len(h.bits)-1]
	if newest.room == 0 {
		h.grow()
		newest = &h.bits[len(h.bits)-1]
	}
	newest.put(hash)
}

// grow goes on with a larger set, or forgets the oldest.
func (h *history) grow() {
	log, full := smallestLog, 0
	for _, b := range h.bits {
		size := 6
		for 1<<(size-6) < len(b.words) {
			size++
		}
		log = min(largestLog, max(log, size+3))
		if size == largestLog {
			full++
		}
	}
	if full == largest {
		h.bits = append(h.bits[:0:0], h.bits[len(h.bits)-largest+1:]...)
	}
	h.bits = append(h.bits, newBitset(log))
}

// forget drops the ids that will not be read again.
func (h *history) forget(before id) {
	for one := range h.fed {
		if one.before(before) {
			delete(h.fed, one)
		}
	}
}

func (b bitset) has(hash uint64) bool {
	for i := range uint64(probes) {
		at := b.at(hash, i)
		if b.words[at/64]&(1<<(at%64)) == 0 {
			return false
		}
	}
	return true
}

func (b *bitset) put(hash uint64) {
	for i := range uint64(probes) {
		at := b.at(hash, i)
		b.words[at/64] |= 1 << (at % 64)
	}
	b.room--
}

// at is the i-th bit of a key (double hashing).
func (b bitset) at(hash, i uint64) uint64 {
	return (hash + i*(hash>>32|1)) % uint64(64*len(b.words))
}

// confirmTwice counts the suspects' events in the outbox, an hour of it at a time.
func (r *round) confirmTwice(ctx context.Context, p participant, h *history) error {
	if len(h.suspects) == 0 {
		return nil
	}
	orders := map[string]bool{}
	for key := range h.suspects {
		orders[key[0]] = true
	}
	list := make([]string, 0, len(orders))
	for one := range orders {
		list = append(list, one)
	}
	at, end := r.outboxes[p.name], r.end()
	if from := r.from(id{}); at.before(from) {
		at = from
	}
	first := map[[2]string]id{}
	for at.before(end) {
		next := earlier(floor(at.time().Add(time.Hour)), end)
		var one row
		if err := read(ctx, p.pool, "the outbox of "+p.name+"-service", []any{(*[16]byte)(&one.id), &one.typ, &one.about}, func() error {
			key := [2]string{one.about, one.typ}
			if !h.suspects[key] {
				return nil
			}
			if _, known := first[key]; !known {
				first[key] = one.id
			} else if len(r.twice) < remembered {
				r.twice[repetition{p.name, one.about, one.typ}] = one.id
			}
			return nil
		}, `SELECT id, type, aggregate_id FROM outbox WHERE id >= $1 AND id < $2 AND aggregate_id = ANY($3)`, [16]byte(at), [16]byte(next), list); err != nil {
			return err
		}
		at = next
	}
	clear(h.suspects)
	return nil
}
