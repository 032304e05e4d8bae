package service

import (
	"context"
	"sync"
	"time"
)

const (
	// backlog is how many events of one transaction tell that more of them wait: half of what the consumer takes at most by default.
	// A burst may bring as many at once; then little is held back, and not for long.
	backlog = 250
	// betweenTransactions is how long the consumer may take to begin its next transaction.
	betweenTransactions = 100 * time.Millisecond
	// longestHold is how long a transaction that does not end holds anything back.
	longestHold = time.Second
)

// Backpressure holds new work back while the consumer of this instance has a backlog: for each transaction that
// the consumer commits, one of new work goes ahead. To take work in is cheap, and makes more of it later: an instance that is asked for
// more than it can do would take in ever more and finish ever less. Nothing is held back for
// longer than a second by a consumer that does not go on, nor by one whose MAX_BATCH is below [backlog].
//
// A nil Backpressure holds nothing back. [NewBackpressure] makes one.
type Backpressure struct {
	turn chan struct{} // holds an element if the consumer has committed since new work went ahead

	mu    sync.Mutex
	until time.Time // new work waits for its turn
	open  bool      // a transaction of a backlog has begun, and none was committed since
	held  time.Duration
}

// NewBackpressure makes one that holds nothing back until its consumer begins a transaction.
func NewBackpressure() *Backpressure {
	return &Backpressure{turn: make(chan struct{}, 1)}
}

// begun says that the consumer begins a transaction.
func (b *Backpressure) begun(events int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case events < backlog:
		b.until = time.Time{}
	case !b.open: // one that fails begins again and again, and holds back no longer for that
		b.open, b.until = true, time.Now().Add(longestHold)
	}
}

// committed says that the consumer has committed one.
func (b *Backpressure) committed() {
	b.mu.Lock()
	b.open = false
	if !b.until.IsZero() {
		b.until = time.Now().Add(betweenTransactions)
	}
	b.mu.Unlock()
	select {
	case b.turn <- struct{}{}:
	default:
	}
}

// wait returns when a transaction of new work may go ahead, or ctx is done.
func (b *Backpressure) wait(ctx context.Context) {
	if b == nil || b.left() <= 0 {
		return
	}
	begin := time.Now()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.held += time.Since(begin)
	}()
	for left := b.left(); left > 0; left = b.left() {
		select {
		case <-b.turn:
			return
		case <-time.After(min(left, betweenTransactions)): // the consumer may have come to the end of its backlog
		case <-ctx.Done():
			return
		}
	}
}

func (b *Backpressure) left() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Until(b.until)
}

// waits is how long new work was held back so far.
func (b *Backpressure) waits() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}
