package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"outboxsaga/internal/clockshift"
	"outboxsaga/internal/system"
)

// clockFaults: the wall clock of a service jumps, ahead and back.
func (w *world) clockFaults() ([]kind, error) {
	// Whether it can be done here is tried on a process of this kind: this one.
	if err := clockshift.Shift(os.Getpid(), 0); err != nil {
		return nil, err
	}
	services := system.Services()
	return []kind{{"clock jump", 2, func(dice *rand.Rand) fault {
		s := pick(dice, services)
		by := pick(dice, jumps(w.cfg.Ahead))
		hold := between(dice, 2*time.Second, 5*time.Second)
		p := pick(dice, w.instances[s.Name])
		return clockJump{about{"clock jump", fmt.Sprintf("the clock of %s jumps by %v for %.1f s", p, by, hold.Seconds()), []string{"service"}, hold, fromHeal}, w, p, by}
	}}}, nil
}

// jumps are by how much a clock jumps, no further ahead than most: the audit at the end waits for the time that it has shown.
func jumps(most time.Duration) []time.Duration {
	return slices.DeleteFunc([]time.Duration{-time.Hour, -30 * time.Second, 10 * time.Second, 2 * time.Minute}, func(by time.Duration) bool { return by > most })
}

// clockJump changes what one process reads as the time of day, and changes it back.
type clockJump struct {
	about
	world   *world
	process string
	by      time.Duration
}

func (f clockJump) inject(context.Context) error { return f.shift(f.by) }
func (f clockJump) heal(context.Context) error {
	f.world.jumped(time.Now().Add(f.by)) // which it has come to meanwhile
	return f.shift(0)
}

func (f clockJump) shift(by time.Duration) error {
	pid, running := f.world.stack.PID(f.process)
	if !running {
		return fmt.Errorf("%s does not run", f.process)
	}
	f.world.jumped(time.Now().Add(by))
	return clockshift.Shift(pid, by)
}

// jumped notes to what time a clock was moved, ahead that of others.
func (w *world) jumped(to time.Time) {
	w.clocks.Lock()
	defer w.clocks.Unlock()
	if to.After(w.latest) {
		w.latest = to
	}
}

// ahead is the latest time at which an event's id may have been made, by a clock that was moved.
func (w *world) ahead() time.Time {
	w.clocks.Lock()
	defer w.clocks.Unlock()
	return w.latest
}
