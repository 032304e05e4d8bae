package main_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
)

var processes = []string{devstack.Postgres, devstack.Kafka, devstack.Connect, "order-service", "stock-service", "payment-service", system.SupervisorName}

// checkout runs the scripts as a user does, on ports and in a folder of its own.
type checkout struct {
	*testing.T
	env   []string
	stack *devstack.Stack // ends all when this program ends, however it ends
}

func newCheckout(t *testing.T) *checkout {
	t.Helper()
	dir, err := os.MkdirTemp("", "outboxsaga-scripts")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &checkout{T: t, env: append(os.Environ(), "STACK_DIR="+dir)}
	names := []string{"POSTGRES", "KAFKA", "KAFKA_CONTROLLER", "CONNECT", "ORDER", "STOCK", "PAYMENT", "ORDER_2", "STOCK_2", "PAYMENT_2"}
	ports, err := devstack.FreePorts(len(names))
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		c.env = append(c.env, fmt.Sprintf("%s_PORT=%d", name, ports[i]))
	}
	c.stack, err = devstack.Open(devstack.Config{Dir: dir, Root: stacktest.Root(), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.stack.Close() })
	return c
}

// run runs a script in another folder than the project's. It fails the test unless the script does what is expected of it.
func (c *checkout) run(ok bool, script string, args ...string) string {
	c.Helper()
	cmd := exec.Command(filepath.Join(stacktest.Root(), "scripts", script), args...)
	cmd.Dir, cmd.Env = filepath.Dir(c.stack.Dir()), append(slices.Clone(c.env), "STACK_DIR="+filepath.Base(c.stack.Dir())) // as a relative path
	out, err := cmd.CombinedOutput()
	if (err == nil) != ok {
		c.Fatalf("%s %v: %v\n%s", script, args, err, out)
	}
	return string(out)
}

func (c *checkout) pids() string {
	var all []string
	for _, name := range processes {
		pid, running := c.stack.PID(name)
		all = append(all, fmt.Sprintf("%s %d %t", name, pid, running))
	}
	return strings.Join(all, ", ")
}

func (c *checkout) contains(text string, parts ...string) {
	c.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			c.Errorf("there is no %q in\n%s", p, text)
		}
	}
}

// statusIsWell waits until outboxctl status finds nothing to say.
func (c *checkout) statusIsWell() {
	c.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(300 * time.Millisecond) {
		out, err := c.status().CombinedOutput()
		if err == nil {
			c.contains(string(out), "orderdb    RUNNING  reserved", "order-service    Stable  1", "SUCCESS, ", "Supervisor, last acts:", "All is well.")
			return
		}
		if time.Now().After(end) {
			c.Fatalf("%v\n%s", err, out)
		}
	}
}

// What a user does with the scripts, in one go.
func TestScripts(t *testing.T) {
	c := newCheckout(t)

	// The shell of somebody who looks after another system, too.
	own := c.env
	elsewhere := append(slices.Clone(own), "CONNECT_URL=http://127.0.0.1:1", "KAFKA_BROKERS=127.0.0.1:1", "ADMIN_DATABASE_URL=postgres://nobody@127.0.0.1:1/postgres", "CONNECTOR_DATABASE_URL=postgres://nobody@127.0.0.1:1/postgres",
		"ORDER_DATABASE_URL=postgres://nobody@127.0.0.1:1/orderdb", "ORDER_URL=http://127.0.0.1:1", "STOCK_URL=http://127.0.0.1:1", "PAYMENT_URL=http://127.0.0.1:1")
	c.env = elsewhere
	begin := time.Now()
	out := c.run(true, "up.sh", "--no-demo")
	c.env = own
	t.Logf("up.sh --no-demo: %.1f s", time.Since(begin).Seconds())
	c.contains(out, "connector orderdb streams", "connector stockdb streams", "connector paymentdb streams", "The system runs")
	c.contains(out, "goods and money: 100 books")
	if strings.Contains(out, "alice buys") {
		t.Errorf("the demo ran:\n%s", out)
	}
	c.contains(c.run(true, "place-order.sh"), `"status": "SUCCESS"`, `"settled": true`)
	first := c.pids()
	if strings.Contains(first, "false") {
		t.Fatal(first)
	}

	begin = time.Now()
	second := func(want bool) {
		t.Helper()
		if _, running := c.stack.PID("stock-service-2"); running != want {
			t.Errorf("the second instance of stock-service runs: %t", running)
		}
	}
	c.env = elsewhere
	out = c.run(true, "up.sh", "--replicas", "2")
	c.env = own
	second(true)
	c.contains(out, "bob cannot pay: the books go back", "COMPENSATED")
	if strings.Contains(out, "goods and money") {
		t.Errorf("goods and money came in again:\n%s", out)
	}
	t.Logf("up.sh --replicas 2 with the demo, the first of each runs already: %.1f s", time.Since(begin).Seconds())
	c.env = append(c.env, "ORDER_TIMEOUT=50s", "CDC_MAX_BATCH_SIZE=2048")
	out = c.run(true, "up.sh")
	c.env = c.env[:len(c.env)-2]
	said := 0
	if runtime.GOOS == "linux" { // others do not tell
		c.contains(out, "order-service      runs already, without ORDER_TIMEOUT=50s", "connect            runs already, without CDC_MAX_BATCH_SIZE=2048")
		said = 3 // of the two instances of order-service and the worker
	}
	if strings.Contains(out, "alice") || strings.Count(out, "runs already") != said {
		t.Errorf("the demo ran again, or others are said to be different:\n%s", out)
	}
	if now := c.pids(); now != first {
		t.Errorf("processes changed: %s, then %s", first, now)
	}
	second(true)
	c.run(true, "up.sh", "--replicas=1")
	second(false)

	c.contains(c.run(true, "place-order.sh"), `"status": "SUCCESS"`, `"settled": true`)
	c.statusIsWell()
	c.statusAsJSON()
	c.statusWatches()
	c.contains(c.run(true, "place-order.sh", "bob", "book", "1", "5000"), `"status": "FAILED"`, `"COMPENSATED"`)
	c.contains(c.run(false, "place-order.sh", "alice", "book", "two"), "usage")
	c.contains(c.run(false, "place-order.sh", "alice", "book", "0"), "quantity")
	c.env = append(c.env, "FROM=beginning")
	c.contains(c.run(true, "tail-topics.sh", "--exit", "payment"), "payment  key=", "type=payment.requested", `"customer_id":"alice"`)
	c.contains(c.run(false, "tail-topics.sh", "no-such-topic"), "there is no topic no-such-topic", "payment.success")
	c.contains(c.run(false, "up.sh", "--fast"), "usage")
	c.contains(c.run(false, "up.sh", "--brokers", "2"), "give 1, 3 or 5")
	c.contains(c.run(false, "up.sh", "--brokers=3"), "was made with --brokers 1, not 3")
	c.contains(c.run(false, "down.sh", "--all"), "usage")

	c.statusWithoutSupervisor()
	c.run(true, "up.sh")
	for _, name := range processes {
		if err := c.stack.Signal(name, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	begin = time.Now()
	c.run(true, "up.sh")
	t.Logf("up.sh after kill -9 of all: %.1f s", time.Since(begin).Seconds())
	if strings.Contains(c.pids(), "false") {
		t.Error(c.pids())
	}
	c.contains(c.run(true, "place-order.sh"), `"status": "SUCCESS"`, `"settled": true`)

	begin = time.Now()
	c.run(true, "down.sh")
	t.Logf("down.sh: %.1f s", time.Since(begin).Seconds())
	if strings.Contains(c.pids(), "true") {
		t.Error(c.pids())
	}
	c.contains(c.run(false, "place-order.sh"), "start the system with scripts/up.sh")
	c.run(true, "down.sh", "--wipe")
	if _, err := os.Stat(c.stack.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	c.contains(c.run(true, "down.sh"), "nothing runs")
}

// A port that is taken is named by its variable, and nothing is left running.
func TestUpWithTakenPort(t *testing.T) {
	for _, variable := range []string{"CONNECT_PORT", "STOCK_PORT", "SUPERVISOR_PORT"} {
		t.Run(variable, func(t *testing.T) {
			c := newCheckout(t)
			if err := os.CopyFS(filepath.Join(c.stack.Dir(), "bin"), os.DirFS(stacktest.Programs(t))); err != nil { // nothing is left to build
				t.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			_, port, _ := net.SplitHostPort(l.Addr().String())
			c.env = append(c.env, variable+"="+port)
			c.contains(c.run(false, "up.sh"), "taken by another program", variable)
			c.env = append(c.env, variable+"=eighty")
			c.contains(c.run(false, "up.sh"), variable+`="eighty" is not a port`)
			if strings.Contains(c.pids(), "true") {
				t.Error(c.pids())
			}
		})
	}
}
