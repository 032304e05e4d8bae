//go:build !linux

package bench

import "time"

// cpuClock reads the CPU clock of a process; here it cannot.
func cpuClock(int) (time.Duration, bool) { return 0, false }
