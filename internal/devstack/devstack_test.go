package devstack_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/scheduling"

	"github.com/jackc/pgx/v5"
)

const root = "../.."

// TestMain is also the program that TestKilledProgram kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DEVSTACK_TEST_DIR"); dir != "" {
		s, err := devstack.Open(config(dir, func(c *devstack.Config) { c.Ephemeral = true }))
		if err == nil {
			err = s.UpOnly(context.Background(), devstack.Postgres, devstack.Kafka)
		}
		fmt.Println(err)
		select {}
	}
	if port := os.Getenv("DEVSTACK_TEST_PORT"); port != "" {
		for range 200 { // threads, which take their time to end
			go func() {
				runtime.LockOSThread()
				_ = syscall.Pause()
			}()
		}
		_, err := net.Listen("tcp", "127.0.0.1:"+port)
		fmt.Println(err)
		select {}
	}
	os.Exit(m.Run())
}

func config(dir string, change func(*devstack.Config)) devstack.Config {
	c := devstack.Config{Dir: dir, Root: root, Fast: true}
	if err := c.UseFreePorts(); err != nil {
		panic(err)
	}
	if change != nil {
		change(&c)
	}
	return c
}

// folder is one that PostgreSQL's user can enter too.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "devstack")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// open opens a stack whose processes end with the test.
func open(t *testing.T, cfg devstack.Config) *devstack.Stack {
	t.Helper()
	s, err := devstack.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Down(context.Background(), true); err != nil {
			t.Error(err)
		}
	})
	return s
}

func pids(s *devstack.Stack, names ...string) string {
	var all []string
	for _, n := range names {
		pid, running := s.PID(n)
		all = append(all, fmt.Sprintf("%s %d %t", n, pid, running))
	}
	return strings.Join(all, ", ")
}

// One stack goes through its life: start, start again, each engine killed, stop, start
// with its data, wipe.
func TestLife(t *testing.T) {
	cfg := config(folder(t), nil)
	s := open(t, cfg)
	ctx := t.Context()
	begin := time.Now()
	if err := s.Up(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("first start: %.1f s", time.Since(begin).Seconds())
	all := []string{devstack.Postgres, devstack.Kafka, devstack.Connect}
	first := pids(s, all...)

	t.Run("the JVMs have their classes from an archive", func(t *testing.T) {
		for _, name := range []string{devstack.Kafka, devstack.Connect} {
			pid, _ := s.PID(name)
			maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
			if err != nil {
				t.Skip("this system does not tell what a process has mapped:", err)
			}
			if !bytes.Contains(maps, []byte("/"+name+".jsa")) {
				t.Errorf("%s does without", name)
			}
		}
	})
	t.Run("all are scheduled as they should be, and the worker tells its connectors so", func(t *testing.T) {
		want, missing, err := scheduling.ForWorker()
		if err != nil || missing != nil {
			t.Skip("this system cannot: ", missing, err)
		}
		read := func(name, file string) string {
			pid, _ := s.PID(name)
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(text))
		}
		slack := strconv.FormatInt(want.Slack.Nanoseconds(), 10)
		for _, name := range all {
			// The 41st field of stat is the policy (proc_pid_stat(5)): 3 is SCHED_BATCH. The second may have spaces.
			_, stat, _ := strings.Cut(read(name, "stat"), ") ")
			if policy := strings.Fields(stat)[38]; policy != "3" {
				t.Errorf("%s has the policy %s", name, policy)
			}
			if got := read(name, "timerslack_ns"); (got == slack) != (name == devstack.Connect) {
				t.Errorf("%s has a timer slack of %s ns", name, got)
			}
		}
		env := strings.Split(read(devstack.Connect, "environ"), "\x00")
		for variable, value := range want.Env() {
			if !slices.Contains(env, variable+"="+value) {
				t.Errorf("the worker has no %s=%s: the connectors need it", variable, value)
			}
		}
	})
	t.Run("another program finds it running", func(t *testing.T) {
		var out bytes.Buffer
		c := cfg
		c.Out = &out
		other, err := devstack.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := other.Up(ctx); err != nil {
			t.Fatal(err)
		}
		if again := pids(other, all...); again != first {
			t.Errorf("%s, then %s", first, again)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("that took %v", took)
		}
		other.Abort() // it has started nothing, so it stops nothing
		if again := pids(other, all...); again != first {
			t.Errorf("%s, then %s", first, again)
		}
	})
	t.Run("another port is not the running stack's", func(t *testing.T) {
		c := cfg
		c.KafkaPort++
		other, err := devstack.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Up(ctx); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("set KAFKA_PORT=%d", cfg.KafkaPort)) {
			t.Error(err)
		}
		if again := pids(s, all...); again != first {
			t.Errorf("%s, then %s", first, again)
		}
	})
	t.Run("it listens on loopback only", func(t *testing.T) {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			ip, _, _ := net.ParseCIDR(a.String())
			if ip == nil || ip.IsLoopback() || ip.To4() == nil {
				continue
			}
			for _, port := range []int{cfg.PostgresPort, cfg.KafkaPort, cfg.ControllerPort, cfg.ConnectPort} {
				conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip.String(), strconv.Itoa(port)), time.Second)
				if err == nil {
					conn.Close()
					t.Errorf("%s:%d answers", ip, port)
				}
			}
		}
	})
	exec1(t, s, `CREATE TABLE kept ()`)
	t.Run("what was killed is started again", func(t *testing.T) {
		for _, name := range all {
			before, _ := s.PID(name)
			if err := s.Signal(name, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if _, running := s.PID(name); running {
				t.Errorf("%s runs", name)
			}
			begin := time.Now()
			if err := s.Up(ctx); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s again: %.1f s", name, time.Since(begin).Seconds())
			if after, running := s.PID(name); !running || after == before {
				t.Errorf("%s: pid %d, then %d, running %t", name, before, after, running)
			}
		}
	})
	t.Run("a worker waits for a broker that comes late", func(t *testing.T) {
		for _, name := range []string{devstack.Kafka, devstack.Connect} {
			if err := s.Signal(name, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		started := make(chan error, 1)
		go func() { started <- s.UpOnly(ctx, devstack.Connect) }()
		log := s.LogFile(devstack.Connect)
		for gaveUp := []byte("connect to and describe Kafka cluster"); ; time.Sleep(20 * time.Millisecond) {
			if text, err := os.ReadFile(log); err == nil && bytes.Contains(text, gaveUp) {
				break
			}
			select {
			case err := <-started:
				t.Fatalf("without a broker: %v", err)
			default:
			}
		}
		if err := s.UpOnly(ctx, devstack.Kafka); err != nil {
			t.Fatal(err)
		}
		if err := <-started; err != nil {
			t.Error(err)
		}
	})
	t.Run("data outlives a stop", func(t *testing.T) {
		if err := s.Down(ctx, false); err != nil {
			t.Fatal(err)
		}
		for _, name := range all {
			if _, running := s.PID(name); running {
				t.Errorf("%s runs", name)
			}
		}
		if err := s.UpOnly(ctx, devstack.Postgres); err != nil {
			t.Fatal(err)
		}
		exec1(t, s, `SELECT FROM kept`)
	})
	t.Run("wipe keeps what is not ours", func(t *testing.T) {
		bin, mine := filepath.Join(cfg.Dir, "bin"), filepath.Join(cfg.Dir, "my-notes")
		if err := os.MkdirAll(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{mine, filepath.Join(bin, "mine"), filepath.Join(bin, "order-service")} {
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second time it is the folder of no stack
			if err := s.Down(ctx, true); err != nil {
				t.Fatal(err)
			}
		}
		if programs, _ := filepath.Glob(filepath.Join(bin, "*")); fmt.Sprint(programs) != fmt.Sprint([]string{filepath.Join(bin, "mine")}) {
			t.Errorf("programs left: %s", programs)
		}
		left, _ := filepath.Glob(filepath.Join(cfg.Dir, "*"))
		hidden, _ := filepath.Glob(filepath.Join(cfg.Dir, ".*"))
		if got := fmt.Sprint(append(left, hidden...)); got != fmt.Sprint([]string{bin, mine}) {
			t.Errorf("left: %s", got)
		}
	})
}

func exec1(t *testing.T, s *devstack.Stack, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.PostgresURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// A program that is killed takes its ephemeral stack with it.
func TestKilledProgram(t *testing.T) {
	dir := filepath.Join(folder(t), "stack")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DEVSTACK_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "<nil>\n" {
		t.Fatalf("the program says %q", line)
	}
	var started []int
	for _, name := range []string{devstack.Postgres, devstack.Kafka} {
		text, err := os.ReadFile(filepath.Join(dir, name+".pid"))
		if err != nil {
			t.Fatal(err)
		}
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		started = append(started, pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for {
		alive := 0
		for _, pid := range started {
			// A process that its new parent has not reaped yet has no command line.
			if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(line) > 0 {
				alive++
			}
		}
		_, err := os.Stat(dir)
		if alive == 0 && errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes live, folder: %v", alive, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestProcess(t *testing.T) {
	cfg := config(folder(t), nil)
	s := open(t, cfg)
	ctx := t.Context()
	sleep := devstack.Process{Name: "sleeper", Args: []string{"sleep", "1000"}}

	t.Run("a pid that another program has by now is not ours", func(t *testing.T) {
		if err := s.Start(ctx, sleep); err != nil {
			t.Fatal(err)
		}
		stranger := exec.Command("sleep", "1000") // even the same command
		if err := stranger.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
		if err := s.Signal("sleeper", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(cfg.Dir, "sleeper.pid"), fmt.Append(nil, stranger.Process.Pid), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, running := s.PID("sleeper"); running {
			t.Error("a stranger is taken for ours")
		}
		if err := s.Stop(ctx, "sleeper"); err != nil {
			t.Fatal(err)
		}
		if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
			t.Error("the stranger was killed")
		}
	})
	t.Run("a process that ends while it starts", func(t *testing.T) {
		err := s.Start(ctx, devstack.Process{Name: "broken", Args: []string{"sh", "-c", "echo no such table; exit 2"},
			Ready: func(context.Context) error { return errors.New("not yet") }})
		if err == nil || !strings.Contains(err.Error(), "broken ended") || !strings.Contains(err.Error(), "no such table") {
			t.Error(err)
		}
	})
	t.Run("a process that never gets ready", func(t *testing.T) {
		err := s.Start(ctx, devstack.Process{Name: "slow", Args: []string{"sleep", "1000"}, Timeout: 50 * time.Millisecond,
			Ready: func(context.Context) error { return errors.New("still thinking") }})
		if err == nil || !strings.Contains(err.Error(), "still thinking") {
			t.Error(err)
		}
		s.Abort()
		if _, running := s.PID("slow"); running {
			t.Error("it runs after Abort")
		}
	})
	t.Run("a stopped process can be ended", func(t *testing.T) {
		if err := s.Start(ctx, sleep); err != nil {
			t.Fatal(err)
		}
		if err := s.Signal("sleeper", syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := s.Stop(ctx, "sleeper"); err != nil || time.Since(begin) > 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// What can be wrong with a machine is said in one clear line, and nothing is left running.
// Whoever starts a killed process again, or another one in its place, finds its port free.
func TestKilledProcessFreesItsPort(t *testing.T) {
	s := open(t, config(folder(t), nil))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	free, err := devstack.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", free[0])
	p := devstack.Process{
		Name: "listener", Args: []string{self}, Env: []string{fmt.Sprint("DEVSTACK_TEST_PORT=", free[0])}, Port: free[0],
		Ready: func(ctx context.Context) error {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return err
		},
	}
	for range 30 {
		if err := s.Start(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if err := s.Signal(p.Name, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusals(t *testing.T) {
	java := func(t *testing.T, version string) string {
		home := t.TempDir()
		if err := os.Mkdir(filepath.Join(home, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\necho 'openjdk version \"" + version + "\"' >&2\n"
		if err := os.WriteFile(filepath.Join(home, "bin", "java"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		return home
	}
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, c *devstack.Config)
		want    []string
	}{
		{"no Java", func(t *testing.T, c *devstack.Config) { t.Setenv("JAVA_HOME", "/nowhere") }, []string{"there is no Java", "JAVA_HOME"}},
		{"Java 11", func(t *testing.T, c *devstack.Config) { t.Setenv("JAVA_HOME", java(t, "11.0.2")) }, []string{"is Java 11, too old", "17"}},
		{"Java 8", func(t *testing.T, c *devstack.Config) { t.Setenv("JAVA_HOME", java(t, "1.8.0_392")) }, []string{"is Java 8, too old"}},
		{"no Maven and nothing cached", func(t *testing.T, c *devstack.Config) {
			t.Setenv("JAVA_HOME", java(t, "21.0.1"))
			t.Setenv("PATH", "/nowhere")
			c.Cache = folder(t)
		}, []string{"Maven", "install"}},
		{"no network and nothing cached", func(t *testing.T, c *devstack.Config) {
			c.Cache = folder(t)
			t.Setenv("MAVEN_ARGS", "") // read by Maven 3.9; older ones ignore it
			t.Setenv("MAVEN_OPTS", "-Dmaven.repo.local="+t.TempDir()+" -Dmaven.wagon.http.retryHandler.count=0 -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=1 -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=1 -Djava.net.useSystemProxies=true")
		}, []string{"could not resolve", "network"}},
		{"port of PostgreSQL taken", func(t *testing.T, c *devstack.Config) { taken(t, c.PostgresPort) }, []string{"POSTGRES_PORT", "taken"}},
		{"port of Kafka taken", func(t *testing.T, c *devstack.Config) { taken(t, c.KafkaPort) }, []string{"KAFKA_PORT", "taken"}},
		{"port of the controller taken", func(t *testing.T, c *devstack.Config) { taken(t, c.ControllerPort) }, []string{"KAFKA_CONTROLLER_PORT", "taken"}},
		{"port of Connect taken", func(t *testing.T, c *devstack.Config) { taken(t, c.ConnectPort) }, []string{"CONNECT_PORT", "taken"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(filepath.Join(folder(t), "stack"), nil)
			c.prepare(t, &cfg)
			s := open(t, cfg)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := s.Up(ctx)
			if err == nil {
				t.Fatal("it starts")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
			if left := pids(s, devstack.Postgres, devstack.Kafka, devstack.Connect); strings.Contains(left, "true") {
				t.Errorf("left running: %s", left)
			}
			if cfg.Cache != "" {
				left, _ := filepath.Glob(filepath.Join(cfg.Cache, "*"))
				for _, f := range left {
					if !strings.HasSuffix(f, ".lock") {
						t.Errorf("left in the cache: %s", f)
					}
				}
			}
		})
	}
}

// A port that is only looked at is free, also while other programs are started.
func TestPortIsFreeWhileOthersStart(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere a port may be taken for a moment")
	}
	free, err := devstack.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("true").Run(); err != nil { // with the first one, package os forks once without the lock, to see what the kernel can do
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var starting sync.WaitGroup
	for range 4 {
		starting.Go(func() {
			for ctx.Err() == nil {
				if err := exec.Command("true").Run(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	defer starting.Wait()
	defer stop()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		if err := devstack.CheckPort(devstack.Process{Name: "x", Port: free[0], PortVariable: "X_PORT"}); err != nil {
			t.Fatal(err)
		}
	}
}

func taken(t *testing.T, port int) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
}

func TestFolderThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := devstack.Open(config(filepath.Join(file, "stack"), nil))
	if err == nil || !strings.Contains(err.Error(), "STACK_DIR") {
		t.Error(err)
	}
}

func TestFreePorts(t *testing.T) {
	seen := map[int]bool{}
	for range 10 {
		ports, err := devstack.FreePorts(20)
		if err != nil {
			t.Fatal(err)
		}
		if os.Getenv("PRINT_FREE_PORTS") != "" {
			fmt.Println(strings.Trim(fmt.Sprint(ports), "[]"))
		}
		for _, p := range ports {
			if seen[p] {
				t.Fatalf("%d twice", p)
			}
			seen[p] = true
		}
	}
	if os.Getenv("PRINT_FREE_PORTS") != "" {
		return
	}
	// Another program gets none of them, though nobody listens on them.
	other := exec.Command(os.Args[0], "-test.run=^TestFreePorts$", "-test.count=40")
	other.Env = append(os.Environ(), "PRINT_FREE_PORTS=1")
	out, err := other.Output()
	if err != nil {
		t.Fatal(err, string(out))
	}
	n := 0
	for word := range strings.FieldsSeq(string(out)) {
		if p, err := strconv.Atoi(word); err == nil {
			if n++; seen[p] {
				t.Fatalf("%d is given to another program too", p)
			}
		}
	}
	if n != 40*200 {
		t.Errorf("%d ports of another program", n)
	}
}

// Time that is over says nothing about Java.
func TestJavaOfAnEndedStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := devstack.Java(ctx); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "install") {
		t.Error(err)
	}
}
