package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/stacktest"
)

// command is outboxctl audit, as an operator has it.
type command struct {
	*books
	program string
	env     []string
}

func newCommand(t *testing.T) *command {
	t.Helper()
	c := &command{books: newBooks(t), program: filepath.Join(stacktest.Programs(t), "outboxctl"), env: os.Environ()}
	for name, pool := range map[string]string{"ORDER": c.db.Order.Config().ConnString(), "STOCK": c.db.Stock.Config().ConnString(), "PAYMENT": c.db.Payment.Config().ConnString()} {
		c.env = append(c.env, name+"_DATABASE_URL="+pool)
	}
	return c
}

func (c *command) start(args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.t.Cleanup(cancel) // ends it, if it still runs
	cmd = exec.CommandContext(ctx, c.program, append([]string{"audit"}, args...)...)
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Env, cmd.Stdout, cmd.Stderr = c.env, stdout, stderr
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	return cmd, stdout, stderr
}

// run fails the test unless the command ends with a code and says what is wanted.
func (c *command) run(code int, args []string, want ...string) string {
	c.t.Helper()
	cmd, stdout, stderr := c.start(args...)
	_ = cmd.Wait()
	text := stdout.String() + stderr.String()
	c.t.Logf("$ outboxctl audit %s\n%s(exit code %d)", strings.Join(args, " "), text, cmd.ProcessState.ExitCode())
	if got := cmd.ProcessState.ExitCode(); got != code {
		c.t.Errorf("audit %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, text)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			c.t.Errorf("audit %s: no %q in\n%s", strings.Join(args, " "), w, text)
		}
	}
	return stdout.String()
}

func TestCommand(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	c.success(minute)
	var all []string
	for _, rule := range Rules() {
		all = append(all, fmt.Sprintf("  %-15s %8d  holds\n", rule, 0))
	}
	c.run(0, []string{"--grace", "1s"}, append(all, "4 events, 4 inbox ids, 1 orders, 1 items, 1 accounts")...)

	lost := c.event(c.db.Order, nil, "stock", "stock.requested", idAt(minute), minute).String()
	also := c.event(c.db.Order, nil, "stock", "stock.requested", idAt(30*time.Second), 30*time.Second).String()
	text := c.run(1, []string{"--grace", "1s", "--ids", "1"}, "event-lost             2  VIOLATED\n    2: the inbox of stock-service does not have", lost, "and 1 more: --ids 2 prints them",
		"outboxctl: rules are violated: event-lost\n", "event-twice            0  holds")
	if strings.Contains(text, also) {
		t.Error("more ids than asked for")
	}
	c.run(0, []string{"--grace", "1s", "--since", "10s"})
	var r Report
	if err := json.Unmarshal([]byte(c.run(1, []string{"--grace", "1s", "--json"})), &r); err != nil || len(r.Violations) != 1 || len(r.Violations[0].IDs) != 2 || r.Checked["events"] != 6 || r.Duration < time.Second {
		t.Errorf("%+v %v", r, err)
	}
	for args, want := range map[string]string{
		"--nonsense": "unknown flag", "now": "unknown command", "--watch 30": "invalid argument", "--watch 0s": "--watch must be", "--grace 0s": "--grace", "--since -1h": "--since",
		"--ids 0": "--ids", "--metrics-addr 127.0.0.1:0": "needs --watch", "--full 1s --watch 1s": "--full",
	} {
		if out := c.run(2, strings.Fields(args), "outboxctl: ", want); out != "" {
			t.Errorf("%s: %s", args, out)
		}
	}
	env := c.env
	c.env = append(env, "STOCK_DATABASE_URL=postgres://postgres@127.0.0.1:1/none")
	c.run(2, nil, "audit: read the partitions of stock-service", "start the system with scripts/up.sh, or set ADMIN_DATABASE_URL")
	c.env = append(env, "PAYMENT_DATABASE_URL=", "ADMIN_DATABASE_URL=") // of another system's three
	c.run(2, nil, "PAYMENT_DATABASE_URL: it is not set, and ORDER_DATABASE_URL is: set all three, or ADMIN_DATABASE_URL")
	c.env = append(env, "STOCK_DATABASE_URL=stock")
	c.run(2, nil, "STOCK_DATABASE_URL: ")
}

func TestCommandWatches(t *testing.T) {
	t.Parallel()
	c := newCommand(t)
	c.success(minute)
	lost := c.event(c.db.Order, nil, "stock", "stock.requested", idAt(minute), minute)
	ports, err := devstack.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprint("127.0.0.1:", ports[0])
	watch := []string{"--watch", "1s", "--grace", "1s", "--metrics-addr", address}
	cmd, stdout, stderr := c.start(watch...)
	c.shows(address, `audit_violations{rule="event-lost"} 1`, `audit_violations{rule="event-invented"} 0`, `audit_checked_total{what="events"} `, "audit_last_success_timestamp_seconds 1")
	c.run(2, watch, "cannot listen on "+address) // that the first one has
	c.exec(c.db.Stock, `ALTER TABLE items RENAME TO gone`)
	c.shows(address, `audit_failures_total 1`, `audit_violations{rule="event-lost"} 1`)
	c.exec(c.db.Stock, `ALTER TABLE gone RENAME TO items`)
	c.exec(c.db.Stock, `INSERT INTO inbox (event_id) VALUES ($1)`, lost)
	c.shows(address, `audit_violations{rule="event-lost"} 0`, "audit_late_events_total 1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(stderr.String(), "audit: read the items: ") ||
		!strings.Contains(stdout.String(), lost.String()) || !strings.Contains(stdout.String(), "; 1 events came late\n") {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}

	c.event(c.db.Order, nil, "stock", "stock.requested", idAt(minute), minute)
	cmd, _, stderr = c.start("--watch", "1m", "--grace", "1s", "--metrics-addr", address)
	c.shows(address, `audit_violations{rule="event-lost"} 1`)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "rules are violated: event-lost") {
		t.Errorf("exit code %d, %s", code, stderr)
	}

	c.exec(c.db.Stock, `ALTER TABLE items RENAME TO gone`)
	cmd, _, stderr = c.start("--watch", "1m", "--grace", "1s", "--metrics-addr", address)
	c.shows(address, `audit_failures_total 1`)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(stderr.String(), "audit: read the items: ") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// shows waits until /metrics has all that is wanted.
func (c *command) shows(address string, want ...string) {
	c.t.Helper()
	var text string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		res, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			continue
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		text = string(body)
		left := 0
		for _, w := range want {
			if !strings.Contains(text, w) {
				left++
			}
		}
		if left == 0 {
			return
		}
	}
	c.t.Fatalf("/metrics does not show %q:\n%s", want, text)
}
