package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"syscall"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/supervisor"
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
		{"supervisor", w.supervisors, supervisor.LockIdle},
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
				if g.name == "supervisor" && w.redundant(g) { // the other one does nothing that could be missed
					name := fmt.Sprintf("SIGSTOP the supervisor that acts for %.1f s", hold.Seconds())
					return &actingStopped{about: about{g.name + " stopped", name, touches, hold, c}, world: w}
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

// actingStopped holds the supervisor that acts until another one does, which PostgreSQL makes possible: it ends the
// session of the lock.
type actingStopped struct {
	about
	world   *world
	process string
}

// takeOver is how long another supervisor may take beyond the silence after which PostgreSQL ends the session of the lock.
const takeOver = 30 * time.Second

func (f *actingStopped) inject(ctx context.Context) error {
	acts, err := f.world.acting(ctx, f.world.supervisors, takeOver)
	if err != nil {
		return err
	}
	if err := f.world.signal(acts, syscall.SIGSTOP); err != nil {
		return err
	}
	f.process = acts
	others := slices.DeleteFunc(slices.Clone(f.world.supervisors), func(name string) bool { return name == acts })
	if _, err := f.world.acting(ctx, others, supervisor.LockIdle+takeOver); err != nil {
		return fmt.Errorf("in place of %s: %w", acts, err)
	}
	return nil
}

func (f *actingStopped) heal(context.Context) error {
	if f.process == "" {
		return nil
	}
	return f.world.signal(f.process, syscall.SIGCONT)
}

// acting waits until one of some supervisors says that it acts.
func (w *world) acting(ctx context.Context, among []string, most time.Duration) (string, error) {
	for end := time.Now().Add(most); ; pause(ctx, 200*time.Millisecond) {
		for _, name := range among {
			if leads(ctx, fmt.Sprintf("http://127.0.0.1:%d/metrics", w.services[name].Port)) {
				return name, nil
			}
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no supervisor acts, %v later", most)
		}
	}
}

// leads asks a supervisor, which may be gone or held.
func leads(ctx context.Context, metrics string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, metrics, nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return err == nil && bytes.Contains(text, []byte("\nsupervisor_leads 1\n"))
}

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
