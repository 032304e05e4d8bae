package inbox

import "time"

// SetClock has c take the time of this machine from now.
func (c *Consumer) SetClock(now func() time.Time) { c.now = now }
