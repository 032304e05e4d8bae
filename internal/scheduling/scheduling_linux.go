package scheduling

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// apply schedules this thread so, and says how to undo that. A policy that somebody has chosen for us, not the usual one, stays.
func (s Schedule) apply() (undo func(), err error) {
	undo = func() {}
	if s.Batch {
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			return undo, fmt.Errorf("this system does not tell how it schedules: sched_getattr: %w", err)
		}
		if attr.Policy == unix.SCHED_NORMAL {
			if err := setPolicy(attr.Nice, unix.SCHED_BATCH); err != nil {
				return undo, fmt.Errorf("this system schedules nothing as a batch: sched_setattr: %w", err)
			}
			undo = func() { _ = setPolicy(attr.Nice, unix.SCHED_NORMAL) }
		}
	}
	if s.Slack != 0 {
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(s.Slack.Nanoseconds()), 0, 0, 0); err != nil {
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

func setPolicy(nice int32, to uint32) error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: to, Nice: nice}, 0)
}
