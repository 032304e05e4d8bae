package scheduling

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// apply schedules this thread so, and says how to undo that. A policy that somebody has chosen for us, not the usual one, stays.
func (w Worker) apply() (undo func(), err error) {
	undo = func() {}
	if w.Batch {
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			return undo, fmt.Errorf("this system does not tell how it schedules: sched_getattr: %w", err)
		}
		if attr.Policy == unix.SCHED_NORMAL {
			if err := policy(attr.Nice, unix.SCHED_BATCH); err != nil {
				return undo, fmt.Errorf("this system does not let a worker be scheduled as a batch: sched_setattr: %w", err)
			}
			undo = func() { _ = policy(attr.Nice, unix.SCHED_NORMAL) }
		}
	}
	if w.Slack != 0 {
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(w.Slack.Nanoseconds()), 0, 0, 0); err != nil {
			return undo, fmt.Errorf("this system does not let timed waits end late: PR_SET_TIMERSLACK: %w", err)
		}
		policyToo := undo
		undo = func() {
			_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // the usual one again
			policyToo()
		}
	}
	return undo, nil
}

func policy(nice int32, to uint32) error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: to, Nice: nice}, 0)
}
