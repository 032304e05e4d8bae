package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"
)

// group are processes of which one can do the work of another.
type group struct {
	name      string // as in the kinds of faults
	processes []string
	session   time.Duration // after which the others hold a silent one for dead
}

func (w *world) groups() []group {
	var all []string
	for _, s := range system.Services() {
		all = append(all, w.instances[s.Name]...)
	}
	return []group{
		{"service", all, 6 * time.Second},
		{"supervisor", w.supervisors, 5 * time.Second},
		{"worker", w.workers, 10 * time.Second},
		{"broker", w.brokers, 3 * time.Second},
		{"Postgres", []string{devstack.Postgres}, 5 * time.Second},
	}
}

// redundant tells whether others can take over from a process of the group.
func (w *world) redundant(g group) bool {
	return g.name == "service" && w.cfg.Instances > 1 || g.name != "service" && len(g.processes) > 1
}

// processFaults: every process is killed, asked to end, and stopped for longer than its session.
func (w *world) processFaults() (all []kind) {
	for _, g := range w.groups() {
		healed := fromFaultHealed
		if w.redundant(g) {
			healed = fromFaultUnhealed
		}
		touches := []string{g.name}
		all = append(all,
			kind{g.name + " killed", 2, func(dice *rand.Rand) fault {
				p := pick(dice, g.processes)
				return killed{about{g.name + " killed", "kill -9 " + p, touches, between(dice, 0, time.Second), healed}, w, p}
			}},
			kind{g.name + " terminated", 1, func(dice *rand.Rand) fault {
				p := pick(dice, g.processes)
				return terminated{about{g.name + " terminated", "SIGTERM " + p, touches, between(dice, 0, time.Second), healed}, w, p}
			}},
			kind{g.name + " stopped", 1, func(dice *rand.Rand) fault {
				p := pick(dice, g.processes)
				hold := between(dice, g.session+time.Second, g.session+3*time.Second)
				c := fromHeal
				if w.redundant(g) {
					c = fromFaultUnhealed
				}
				return stopped{about{g.name + " stopped", fmt.Sprintf("SIGSTOP %s for %.1f s", p, hold.Seconds()), touches, hold, c}, w, p}
			}})
	}
	services := w.groups()[0].processes
	return append(all,
		kind{"services rolled", 1, func(*rand.Rand) fault {
			return rolling{about{"services rolled", "rolling restart of the services", []string{"service"}, 0, fromFaultHealed}, w, services}
		}},
		kind{"everything rolled", 1, func(*rand.Rand) fault {
			return rolling{about{"everything rolled", "rolling restart of everything", []string{"service", "supervisor", "worker", "broker", "Postgres"}, 0, fromHeal}, w, w.everything()}
		}})
}

// killed is kill -9.
type killed struct {
	about
	world   *world
	process string
}

func (f killed) inject(context.Context) error   { return f.world.signal(f.process, syscall.SIGKILL) }
func (f killed) heal(ctx context.Context) error { return f.world.start(ctx, f.process) }

// terminated is what an operator or a scheduler does: the process ends by itself.
type terminated struct {
	about
	world   *world
	process string
}

func (f terminated) inject(ctx context.Context) error { return f.world.stack.Stop(ctx, f.process) }
func (f terminated) heal(ctx context.Context) error   { return f.world.start(ctx, f.process) }

// stopped holds a process: its connections stay, and nobody answers.
type stopped struct {
	about
	world   *world
	process string
}

func (f stopped) inject(context.Context) error { return f.world.signal(f.process, syscall.SIGSTOP) }
func (f stopped) heal(context.Context) error   { return f.world.signal(f.process, syscall.SIGCONT) }

// rolling restarts processes one after the other, under load.
type rolling struct {
	about
	world     *world
	processes []string
}

func (f rolling) inject(ctx context.Context) error {
	for _, name := range f.processes {
		if err := f.world.stack.Stop(ctx, name); err != nil {
			return err
		}
		if err := f.world.start(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (f rolling) heal(context.Context) error { return nil }
