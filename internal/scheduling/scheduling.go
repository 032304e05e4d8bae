// Package scheduling says how Linux is to schedule the processes of a system that share its processors, and starts them so.
//
// It sets two properties of a thread, which threads and processes inherit from the one that starts them, and which need no privilege:
//
//   - The policy SCHED_BATCH (sched(7); CPUSchedulingPolicy=batch of systemd), for all. A thread that wakes up does then not displace
//     the one that runs. An event passes through many threads, beside those of the JVMs' compilers: where the processors
//     are busy, each of them would else interrupt another one, to do little each time.
//   - A timer slack (PR_SET_TIMERSLACK(2const); TimerSlackNSec= of systemd), for a Kafka Connect worker with Debezium's connectors: the kernel may
//     end a timed wait that much later than asked, while data ends it at once all the same. Debezium's reader listens to its connection
//     five times, for a millisecond each. If nothing came, it sleeps for poll.interval.ms, and hears nothing meanwhile; the task that takes its
//     records waits for as long, and spins through the last millisecond. With a slack the reader listens most of the time, nobody spins, and
//     a short sleep costs less than a long one without.
//   - A smaller one for programs in Go. The monitor of Go's runtime (sysmon) sleeps for 20 µs at a time while there is anything to do, and
//     each time a system call has lasted for longer it has another thread go on with the other goroutines. In a service that
//     waits for sockets most of the time both cost more than they bring.
//
// Figures are in docs/tuning.md, "What Debezium waits for", "Who interrupts whom" and "The monitor of Go's runtime".
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
	PolicyVariable = "SCHEDULING_POLICY"
	// SlackVariable is the timer slack of a worker in milliseconds. The default is 8; 0 leaves it as it is.
	SlackVariable = "CDC_TIMER_SLACK_MS"
	// GoSlackVariable is that of programs in Go. The default is 2.
	GoSlackVariable = "GO_TIMER_SLACK_MS"
	// BatchVariable is the connectors' max.batch.size, 1 to 8000; they read it from the worker's environment. With 1, the default,
	// an event goes on at once. With more, events are gathered until there are so many or the interval is over: that costs some
	// milliseconds and spares processors, so that a machine that is short of them carries more.
	BatchVariable = "CDC_MAX_BATCH_SIZE"
	// IntervalVariable is the connectors' poll.interval.ms in milliseconds; they read it from the worker's environment. The
	// default is 2, and 20 without a timer slack, where 2 would cost a core; 4 where events are gathered.
	IntervalVariable = "CDC_POLL_INTERVAL_MS"
	// GatherMillis is its default where events are gathered.
	GatherMillis = 4
)

// WorkerVariables are those that [ForWorker] reads.
func WorkerVariables() []string {
	return []string{PolicyVariable, SlackVariable, BatchVariable, IntervalVariable}
}

// GoVariables are those that [ForGo] reads.
func GoVariables() []string { return []string{PolicyVariable, GoSlackVariable} }

// Schedule is how a process is scheduled. The zero value is the usual one.
type Schedule struct {
	Batch bool
	Slack time.Duration
	// Interval and MaxBatch are what [IntervalVariable] and [BatchVariable] are to be in the environment of a worker; empty: as they are.
	Interval, MaxBatch string
}

// ForProcess is how any process is to be scheduled, as far as this system can do it: it works without, only slower. err says what the
// environment must have in place of what it has.
func ForProcess() (s Schedule, err error) {
	asked, err := policy()
	s, _ = asked.able()
	return s, err
}

// ForGo is [ForProcess] for a service in Go.
func ForGo() (s Schedule, err error) {
	asked, err := policyAndSlack(GoSlackVariable, 2)
	s, _ = asked.able()
	return s, err
}

// ForWorker is [ForProcess] for a Connect worker. missing says what this system cannot do, for people.
func ForWorker() (s Schedule, missing, err error) {
	asked, err := policyAndSlack(SlackVariable, 8)
	if err != nil {
		return s, nil, err
	}
	s, cannot := asked.able()
	if len(cannot) > 0 {
		missing = errors.New("the worker takes more CPU time than it could: " + strings.Join(cannot, "; "))
	}
	most, err := number(BatchVariable, "a number of events", 1, 1, 8000) // less than max.queue.size
	if err != nil {
		return s, nil, err
	}
	usual := 2
	switch {
	case most > 1:
		usual = GatherMillis
	case s.Slack == 0:
		usual = 20
	}
	interval, err := number(IntervalVariable, "milliseconds", usual, 1, 1000)
	s.Interval, s.MaxBatch = strconv.Itoa(interval), strconv.Itoa(most)
	return s, missing, err
}

func policy() (Schedule, error) {
	switch text := os.Getenv(PolicyVariable); text {
	case "", "batch":
		return Schedule{Batch: true}, nil
	case "other":
		return Schedule{}, nil
	default:
		return Schedule{}, fmt.Errorf("%s is %q: set it to batch or other", PolicyVariable, text)
	}
}

func policyAndSlack(variable string, usual int) (Schedule, error) {
	s, err := policy()
	if err != nil {
		return s, err
	}
	slack, err := number(variable, "milliseconds", usual, 0, 1000)
	s.Slack = time.Duration(slack) * time.Millisecond
	return s, err
}

// able is what of it this system can do, and why it cannot do the rest: some sandboxes know only a part of it, or nothing.
func (s Schedule) able() (able Schedule, cannot []string) {
	for _, part := range []Schedule{{Batch: s.Batch}, {Slack: s.Slack}} {
		if err := part.Start(func() error { return nil }); err != nil {
			cannot = append(cannot, err.Error())
			continue
		}
		able.Batch, able.Slack = able.Batch || part.Batch, able.Slack+part.Slack
	}
	return able, cannot
}

// number reads a variable, def where it is not set.
func number(variable, what string, def, least, most int) (int, error) {
	text := os.Getenv(variable)
	if text == "" {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s is %q: set it to %s, %d to %d, or leave it out", variable, text, what, least, most)
	}
	return n, nil
}

// Env is what the environment of a worker is to have, by name.
func (s Schedule) Env() map[string]string {
	return map[string]string{IntervalVariable: s.Interval, BatchVariable: s.MaxBatch}
}

// Start runs start in a thread that is scheduled so: a process that it starts inherits that. Afterwards the thread is as before.
func (s Schedule) Start(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	undo, err := s.apply()
	defer undo()
	if err != nil {
		return err
	}
	return start()
}

// Exec makes this process another program, scheduled so. It returns only an error.
func (s Schedule) Exec(args []string) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("give the path of a program: %w", err)
	}
	return s.Start(func() error {
		for name, value := range s.Env() {
			if value == "" {
				continue
			}
			if err := os.Setenv(name, value); err != nil { // not a second one, of which programs take the first or the last
				return err
			}
		}
		if err := syscall.Exec(program, args, os.Environ()); err != nil {
			return fmt.Errorf("run %s: %w", program, err)
		}
		return nil
	})
}
