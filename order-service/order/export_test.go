package order

import "time"

// SetClock gives s another clock, before its background work begins.
func (s *Saga) SetClock(now func() time.Time) { s.now = now }
