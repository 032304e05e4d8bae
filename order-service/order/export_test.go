package order

import (
	"log/slog"
	"time"
)

// SetClock gives s another clock, before its background work begins.
func (s *Saga) SetClock(now func() time.Time) { s.now = now }

// SetLog gives s another log, before its background work begins.
func (s *Saga) SetLog(log *slog.Logger) { s.log = log }
