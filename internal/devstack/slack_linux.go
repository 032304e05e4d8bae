package devstack

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// withSlack runs start, of which a new process inherits the timer slack. 0: the usual one.
func withSlack(slack time.Duration, start func() error) error {
	if slack == 0 {
		return start()
	}
	runtime.LockOSThread() // it belongs to the thread
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack.Nanoseconds()), 0, 0, 0); err != nil {
		return fmt.Errorf("timer slack of %s: %w", slack, err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // the usual one again
	return start()
}
