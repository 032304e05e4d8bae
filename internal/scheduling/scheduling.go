// Package scheduling says how Linux is to schedule a Kafka Connect worker with Debezium's connectors, and starts one so.
//
// It sets two properties of a thread, which threads and processes inherit from the one that starts them, and which need no privilege:
//
//   - The policy SCHED_BATCH (sched(7); CPUSchedulingPolicy=batch of systemd). A thread that wakes up does then not displace
//     the one that runs. A record passes through several threads of the worker, beside those of the JVM's compilers: where the processors
//     are busy, each of them would else interrupt the services and PostgreSQL, to do little each time.
//   - A timer slack (PR_SET_TIMERSLACK(2const); TimerSlackNSec= of systemd): the kernel may end a timed wait that much later than asked,
//     while data ends it at once all the same. Debezium's reader listens to its connection five times, for a millisecond each. If nothing
//     came, it sleeps for poll.interval.ms, and hears nothing meanwhile; the task that takes its records waits for as long, and spins through the last
//     millisecond. With a slack the reader listens most of the time, nobody spins, and a short sleep costs less than a long
//     one without.
//
// Figures are in docs/benchmarks.md, "What Debezium waits for".
package scheduling

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What the environment may choose in place of the defaults.
const (
	// PolicyVariable is "batch" (the default) or "other", which leaves the policy as it is.
	PolicyVariable = "CDC_SCHEDULING_POLICY"
	// SlackVariable is the timer slack in milliseconds. The default is 8; 0 leaves it as it is.
	SlackVariable = "CDC_TIMER_SLACK_MS"
	// IntervalVariable is the connectors' poll.interval.ms in milliseconds; they read it from the worker's environment. The
	// default is 2, and 20 without a timer slack, where 2 would cost a core.
	IntervalVariable = "CDC_POLL_INTERVAL_MS"
)

// Worker is how a worker is scheduled. The zero value is how any process is.
type Worker struct {
	Batch bool
	Slack time.Duration
	// Interval is what [IntervalVariable] is to be in the worker's environment.
	Interval string
}

// ForWorker is what the environment asks for, as far as this system can do it. missing says what it cannot do: the worker works without, only
// slower. err says what the environment must have in place of what it has.
func ForWorker() (w Worker, missing, err error) {
	switch policy := os.Getenv(PolicyVariable); policy {
	case "", "batch":
		w.Batch = true
	case "other":
	default:
		return w, nil, fmt.Errorf("%s is %q: set it to batch or other", PolicyVariable, policy)
	}
	slack, err := milliseconds(SlackVariable, 8)
	if err != nil {
		return w, nil, err
	}
	w.Slack = time.Duration(slack) * time.Millisecond
	var cannot []string // some sandboxes know only one of them, or none
	for _, one := range []struct {
		only Worker
		off  func()
	}{
		{Worker{Batch: w.Batch}, func() { w.Batch = false }},
		{Worker{Slack: w.Slack}, func() { w.Slack = 0 }},
	} {
		if err := one.only.Start(func() error { return nil }); err != nil {
			one.off()
			cannot = append(cannot, err.Error())
		}
	}
	if len(cannot) > 0 {
		missing = errors.New(strings.Join(cannot, "; "))
	}
	usual := 2
	if w.Slack == 0 {
		usual = 20
	}
	interval, err := milliseconds(IntervalVariable, usual)
	if err == nil && interval == 0 {
		err = fmt.Errorf("%s is 0: set it to a millisecond at least", IntervalVariable)
	}
	w.Interval = strconv.Itoa(interval)
	return w, missing, err
}

// milliseconds reads a variable, def where it is not set.
func milliseconds(variable string, def int) (int, error) {
	text := os.Getenv(variable)
	if text == "" {
		return def, nil
	}
	ms, err := strconv.Atoi(text)
	if err != nil || ms < 0 || ms > 1000 {
		return 0, fmt.Errorf("%s is %q: set it to milliseconds, 0 to 1000, or leave it out", variable, text)
	}
	return ms, nil
}

// Env is what the worker's environment is to have.
func (w Worker) Env() string { return IntervalVariable + "=" + w.Interval }

// Start runs start in a thread that is scheduled so: a process that it starts inherits that. Afterwards the thread is as before.
func (w Worker) Start(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	undo, err := w.apply()
	defer undo()
	if err != nil {
		return err
	}
	return start()
}

// Exec makes this process another program, scheduled so. It returns only an error.
func (w Worker) Exec(args []string) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return w.Start(func() error {
		if err := syscall.Exec(program, args, append(os.Environ(), w.Env())); err != nil {
			return fmt.Errorf("run %s: %w", program, err)
		}
		return nil
	})
}
