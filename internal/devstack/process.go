package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"outboxsaga/internal/scheduling"

	"golang.org/x/sync/errgroup"
)

// Process is a program that a stack runs.
type Process struct {
	// Name is unique in the stack: NAME.pid, logs/NAME.log.
	Name string
	// Args is the command line.
	Args []string
	// Env is added to the environment of this program.
	Env []string
	// Variables of this program's environment are those that the process reads.
	Variables []string
	// Port is the port on 127.0.0.1 it will listen on, PortVariable what sets it.
	Port         int
	PortVariable string
	// Ready asks the process whether it can work; nil means yes.
	Ready func(ctx context.Context) error
	// Timeout bounds the wait for Ready. Default 60 s.
	Timeout time.Duration
	// Again tells by what the process has written to its log since its start whether it ended for a reason
	// that passes by itself: it is started again, until Timeout. nil: never.
	Again func(log []byte) bool
	// Temp is its folder for temporary files, if it has one: made anew at each start, because a killed process leaves
	// them behind.
	Temp string
	// Schedule says how the system is to schedule it. Default: [scheduling.ForProcess].
	Schedule func() (scheduling.Schedule, error)

	user *user // nil: the user of this program
}

// Start starts p unless it runs, and returns when it is ready. If it is not ready in
// time or ends, the error has the last lines of its log.
func (s *Stack) Start(ctx context.Context, p Process) error {
	p = p.withDefaults()
	for end := time.Now().Add(p.Timeout); ; {
		begin := LogSize(s.LogFile(p.Name))
		if err := s.Launch(p); err != nil {
			return err
		}
		err := s.Await(ctx, p)
		if err == nil || p.Again == nil || !p.Again(LogSince(s.LogFile(p.Name), begin)) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (p Process) withDefaults() Process {
	if p.Timeout == 0 {
		p.Timeout = 60 * time.Second
	}
	if p.Schedule == nil {
		p.Schedule = scheduling.ForProcess
	}
	return p
}

// Launch starts p unless it runs, and does not wait for it. Use it to start several
// processes at once, and [Stack.Await] each.
func (s *Stack) Launch(p Process) error {
	p = p.withDefaults()
	if pid, running := s.running(p.Name); running {
		if _, port := s.born(p.Name); port != p.Port {
			return fmt.Errorf("%s runs already, on port %d: set %s=%d, or stop it first (scripts/down.sh)", p.Name, port, p.PortVariable, port)
		}
		if other := p.differs(pid); other != "" {
			s.Say("  %-18s runs already, %s; for what is there now: scripts/down.sh, then scripts/up.sh", p.Name, other)
		}
		return nil
	}
	if p.Port != 0 {
		if err := CheckPort(p); err != nil {
			return err
		}
	}
	if p.Temp != "" {
		if err := emptied(p.Temp); err != nil {
			return fmt.Errorf("folder for the temporary files of %s: %w", p.Name, err)
		}
	}
	logFile := s.LogFile(p.Name)
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("log of %s: %w", p.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Dir = s.cfg.Dir
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.user != nil {
		cmd.Dir = "/"
		cmd.SysProcAttr.Credential = p.user.credential()
	}
	schedule, err := p.Schedule()
	if err != nil {
		return err
	}
	if err := schedule.Start(cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	pid := cmd.Process.Pid
	err = errors.Join(
		os.WriteFile(s.birthFile(p.Name), fmt.Appendf(nil, "%s\n%d", birth(pid), p.Port), 0o644),
		os.WriteFile(s.pidFile(p.Name), fmt.Appendf(nil, "%d\n", pid), 0o644))
	go func() { _ = cmd.Wait() }() // no zombie
	if err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("pid file of %s: %w", p.Name, err)
	}
	s.mu.Lock()
	s.started = append(s.started, p.Name)
	s.mu.Unlock()
	return nil
}

// differs says what a process that runs has otherwise than p now would; empty if nothing, or if the system (other than Linux) does not tell.
func (p Process) differs(pid int) string {
	var others []string
	if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasSuffix(program, " (deleted)") {
		others = append(others, "with an older program")
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return strings.Join(others, ", ")
	}
	has := map[string]string{}
	for entry := range strings.SplitSeq(string(text), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		has[name] = value
	}
	for _, variable := range p.Variables {
		value, asked := os.LookupEnv(variable)
		for _, own := range p.Env {
			if name, text, _ := strings.Cut(own, "="); name == variable {
				value = text
			}
		}
		// What nobody asks for may be otherwise, but not missing: a worker of an older version.
		if was, set := has[variable]; value != was && (asked || !set) {
			others = append(others, fmt.Sprintf("without %s=%s", variable, value))
		}
	}
	return strings.Join(others, ", ")
}

// CheckPort explains a port that somebody else has.
func CheckPort(p Process) error {
	err := listenable(p.Port)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("port %d, for %s, is taken by another program: stop that, or choose another port with %s", p.Port, p.Name, p.PortVariable)
	case err != nil:
		return fmt.Errorf("port %d, for %s (%s): %w", p.Port, p.Name, p.PortVariable, err)
	}
	return nil
}

// listenable is nil if one can listen on a port. A child that is forked meanwhile would have the listener too until it
// becomes another program, and keep the port taken after it is closed here: so none is (see [syscall.ForkLock]). Elsewhere than
// on Linux package net takes that lock itself, for a shorter time; to take it twice could wait for ever.
func listenable(port int) error {
	if runtime.GOOS == "linux" {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	l, err := net.Listen("tcp", hostPort(port))
	if err != nil {
		return err
	}
	return l.Close()
}

// Await returns when p is ready.
func (s *Stack) Await(ctx context.Context, p Process) error {
	if p.Ready == nil {
		return nil
	}
	p = p.withDefaults()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, 2*time.Second)
		err := p.Ready(try)
		stop()
		_, running := s.running(p.Name)
		if err == nil && running {
			s.Say("  %-18s ready after %.1f s", p.Name, time.Since(begin).Seconds())
			return nil
		}
		if !running { // whoever answered, it was not this process
			return fmt.Errorf("%s ended while it started; the end of %s says:\n%s", p.Name, s.LogFile(p.Name), tail(s.LogFile(p.Name)))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %.0f s (%v); the end of %s says:\n%s", p.Name, time.Since(begin).Seconds(), err, s.LogFile(p.Name), tail(s.LogFile(p.Name)))
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// Stop ends a process: first gently, after 10 s, or a minute where it has its archive of classes to write, by force. A process
// that does not run is fine.
func (s *Stack) Stop(ctx context.Context, name string) error {
	if s.elsewhere(name) {
		return s.cfg.Engines.Stop(ctx, name)
	}
	pid, running := s.running(name)
	if running {
		signal := syscall.SIGTERM
		if name == Postgres {
			signal = syscall.SIGINT // fast shutdown: SIGTERM would wait for every client
		}
		_ = syscall.Kill(pid, signal)
		_ = syscall.Kill(pid, syscall.SIGCONT) // it may be stopped by a test
		grace := 10 * time.Second
		if s.cfg.archives != "" {
			grace = time.Minute
		}
		force := time.After(grace)
		for running {
			select {
			case <-force:
				_ = syscall.Kill(pid, syscall.SIGKILL)
			case <-ctx.Done():
				return fmt.Errorf("stop %s: %w", name, ctx.Err())
			case <-time.After(20 * time.Millisecond):
			}
			_, running = s.running(name)
		}
	}
	for _, f := range []string{s.pidFile(name), s.birthFile(name)} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Signal sends a signal to a running process. One that SIGKILL ends or SIGSTOP stops has ended or stopped when it returns.
func (s *Stack) Signal(name string, signal syscall.Signal) error {
	if s.elsewhere(name) {
		return s.cfg.Engines.Signal(name, signal)
	}
	pid, running := s.running(name)
	if !running {
		return fmt.Errorf("%s does not run", name)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	if signal == syscall.SIGKILL {
		for running {
			time.Sleep(5 * time.Millisecond)
			_, running = s.running(name)
		}
	}
	// A thread that waits for a processor has to get the signal first; the others go on until then.
	if signal == syscall.SIGSTOP {
		for end := time.Now().Add(5 * time.Second); !stopped(pid); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				return fmt.Errorf("%s does not stop", name)
			}
		}
	}
	return nil
}

// stopped tells whether all threads of a process are stopped, or it is gone. Other systems than Linux do not tell.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern is right
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if i := bytes.LastIndex(text, []byte(") ")); err == nil && !bytes.ContainsAny(text[i+2:i+3], "TZX") { // proc_pid_stat(5)
			return false
		}
	}
	return true
}

// Down stops every process of the folder: services first, then Connect, Kafka and
// PostgreSQL. With wipe it removes all data, and the folder unless it holds anything else.
func (s *Stack) Down(ctx context.Context, wipe bool) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	if err := s.stopAll(ctx, names, func(name string) { s.Say("  %-18s stopped", name) }); err != nil {
		return err
	}
	if !wipe {
		return nil
	}
	if !stackIn(s.cfg.Dir) { // it may be anybody's
		s.Say("  nothing is removed: %s is not the folder of a stack", s.cfg.Dir)
		return nil
	}
	// What tells that it is a stack goes last: who is interrupted may begin again.
	ours := []string{s.postgresDir(), s.postgresDir() + ".new"}
	for _, pattern := range []string{"postgres", "postgres.new", "kafka", "kafka-[2-9]", "*.properties", ".*.birth", ".*-tmp", ".kafka*-unformatted", ".lock", "logs", "bin/outboxctl", "bin/*-service", ".goods", ".demo", ".new", ".shape*"} {
		found, err := filepath.Glob(filepath.Join(s.cfg.Dir, pattern))
		if err != nil {
			return err
		}
		ours = append(ours, found...)
	}
	for _, name := range ours {
		if err := os.RemoveAll(name); err != nil {
			return fmt.Errorf("remove the data of the stack: %w", err)
		}
	}
	_ = os.Remove(filepath.Join(s.cfg.Dir, "bin")) // unless it holds something else too
	if err := os.Remove(s.cfg.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Say("  %s is kept: it holds something else too", s.cfg.Dir)
	}
	return nil
}

// stopAll stops processes, those that others need last. Those of a kind end together: the last of several
// brokers would wait for the others, to hand its partitions over.
func (s *Stack) stopAll(ctx context.Context, names []string, stopped func(name string)) error {
	last := map[string]int{Connect: 1, Kafka: 2, Postgres: 3}
	var stages [4][]string
	for _, name := range names {
		kind, _ := Kind(name)
		stages[last[kind]] = append(stages[last[kind]], name)
	}
	for _, stage := range stages {
		var all errgroup.Group
		for _, name := range stage {
			all.Go(func() error {
				err := s.Stop(ctx, name)
				if err == nil {
					stopped(name)
				}
				return err
			})
		}
		if err := all.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// Status is what is known of a process.
type Status struct {
	Name    string
	PID     int
	Running bool
}

// Statuses lists the processes that were started and not stopped since.
func (s *Stack) Statuses() ([]Status, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var all []Status
	for _, name := range names {
		pid, running := s.running(name)
		all = append(all, Status{name, pid, running})
	}
	return all, nil
}

func (s *Stack) names() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*.pid"))
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".pid")
	}
	sort.Strings(files)
	return files, nil
}

// PID is the process id of a running process.
func (s *Stack) PID(name string) (pid int, running bool) { return s.running(name) }

// running tells whether the pid file names a living process that is ours: a pid
// alone may belong to another program since.
func (s *Stack) running(name string) (pid int, ok bool) {
	if s.elsewhere(name) {
		return s.cfg.Engines.PID(name)
	}
	text, err := os.ReadFile(s.pidFile(name))
	if err != nil {
		return 0, false
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil || pid <= 1 {
		return 0, false
	}
	born, _ := s.born(name)
	return pid, born != "" && born == birth(pid)
}

// Port is the port that a process was started with; 0 if it was never started.
func (s *Stack) Port(name string) int {
	_, port := s.born(name)
	return port
}

// born is what Launch wrote down about a process: its birth and its port.
func (s *Stack) born(name string) (birth string, port int) {
	text, _ := os.ReadFile(s.birthFile(name))
	birth, last, _ := strings.Cut(string(text), "\n")
	port, _ = strconv.Atoi(last)
	return birth, port
}

// birth tells a process from all others: its pid, and the boot and the moment at which it
// started. It is empty for a process that does not live, or is a zombie.
func birth(pid int) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil { // not Linux
		text, _ := exec.Command("ps", "-o", "stat=,lstart=", "-p", strconv.Itoa(pid)).Output()
		state, started, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
		if strings.HasPrefix(state, "Z") {
			return ""
		}
		if started == "" {
			return ""
		}
		return fmt.Sprintf("%d %s", pid, strings.TrimSpace(started))
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// proc_pid_stat(5): after the name in parentheses come the state, field 3, as field 20 the number of
	// threads, and as field 22 the start, in clock ticks since boot. The first thread of a process that was
	// killed is a zombie already while others still end, and until the last has, the port is taken.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" && (fields[17] == "1" || fields[17] == "0") || fields[0] == "X" {
		return ""
	}
	return fmt.Sprintf("%d %s %s", pid, bytes.TrimSpace(boot), fields[19])
}

func (s *Stack) pidFile(name string) string   { return filepath.Join(s.cfg.Dir, name+".pid") }
func (s *Stack) birthFile(name string) string { return filepath.Join(s.cfg.Dir, "."+name+".birth") }

// LogFile is where a process writes.
func (s *Stack) LogFile(name string) string {
	return filepath.Join(s.cfg.Dir, "logs", name+".log")
}

// LogSize is how many bytes a log has; 0 if it is not there.
func LogSize(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

// LogSince is what a log has after its first bytes; nil if it has none.
func LogSince(file string, begin int64) []byte {
	text, err := os.ReadFile(file)
	if err != nil || int64(len(text)) < begin {
		return nil
	}
	return text[begin:]
}

// tail is the end of a log, indented.
func tail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil || len(bytes.TrimSpace(text)) == 0 {
		return "    (nothing)"
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > 12 {
		lines = lines[len(lines)-12:]
	}
	return "    " + strings.Join(lines, "\n    ")
}

// watchdog is a shell script that ends the stack in folder $1 when its standard input
// closes. PostgreSQL is not killed but asked to stop at once, so that it frees its shared
// memory; after 2 s it is killed too.
const watchdog = `cat >/dev/null
cd / && [ -d "$1" ] || exit 0
for f in "$1"/*.pid; do
  [ -f "$f" ] || continue
  pid=$(cat "$f")
  case $f in
    */postgres.pid) postgres=$pid; kill -QUIT "$pid"; kill -CONT "$pid" ;;
    *) kill -9 "$pid" ;;
  esac
done 2>/dev/null
i=0
while [ -n "$postgres" ] && [ $i -lt 100 ] && kill -0 "$postgres" 2>/dev/null; do sleep 0.02; i=$((i + 1)); done
[ -z "$postgres" ] || kill -9 "$postgres" 2>/dev/null
outside=$(readlink "$1/postgres")
[ -z "$outside" ] || rm -rf "$outside"
for i in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" 2>/dev/null && break; sleep 0.1; done
`

// watch starts the watchdog: it acts at Close, and when this process dies in whatever way.
func watch(dir string) (io.Closer, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdog, "watchdog", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	return closer(func() error {
		in.Close()
		return cmd.Wait()
	}), nil
}

type closer func() error

func (c closer) Close() error { return c() }
