package main_test

import (
	"context"
	"encoding/json"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
)

// status is outboxctl status on the checkout's stack.
func (c *checkout) status(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.stack.Dir(), "bin", "outboxctl"), append([]string{"status"}, args...)...)
	cmd.Dir, cmd.Env = stacktest.Root(), c.env
	return cmd
}

// statusDocument is what scripts read of outboxctl status --json.
type statusDocument struct {
	Pipelines map[string]struct {
		Connector struct{ State string }
		Slot      struct{ Exists, Active bool }
	}
	Groups     map[string]struct{ Members int }
	Orders     struct{ Success, Failed int }
	Supervised *bool
	Trouble    *[]string
}

// check holds a document against a system that works.
func (c *checkout) check(d statusDocument) {
	c.Helper()
	for _, s := range system.Services() {
		if p := d.Pipelines[s.Database.Name]; p.Connector.State != "RUNNING" || !p.Slot.Exists || d.Groups[s.Name].Members != 1 {
			c.Errorf("%s: %+v, %+v", s.Name, p, d.Groups[s.Name])
		}
	}
	if d.Orders.Success == 0 || d.Supervised == nil || !*d.Supervised || d.Trouble == nil || len(*d.Trouble) > 0 {
		c.Errorf("%+v", d)
	}
}

func (c *checkout) statusAsJSON() {
	c.Helper()
	out, err := c.status("--json").Output()
	if err != nil {
		c.Fatalf("%v\n%s", err, out)
	}
	var d statusDocument
	if err := json.Unmarshal(out, &d); err != nil {
		c.Fatalf("%v\n%s", err, out)
	}
	c.check(d)
}

// statusWatches: a document a look, or a screen a look, until a signal, which is no failure.
func (c *checkout) statusWatches() {
	c.Helper()
	watch := func(args []string, enough func(io.Reader) error) {
		c.Helper()
		cmd := c.status(args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			c.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			c.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(c.Context(), 20*time.Second)
		defer cancel()
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		defer stop()
		if err := enough(out); err != nil {
			c.Errorf("status %v: %v", args, err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			c.Error(err)
		}
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			c.Errorf("status %v: %v", args, err)
		}
	}
	watch([]string{"--json", "--watch", "300ms"}, func(out io.Reader) error {
		documents := json.NewDecoder(out)
		for range 2 {
			var d statusDocument
			if err := documents.Decode(&d); err != nil {
				return err
			}
			c.check(d)
		}
		return nil
	})
	watch([]string{"--watch=300ms"}, func(out io.Reader) error {
		var text strings.Builder
		for piece := make([]byte, 4096); strings.Count(text.String(), "\033[H\033[2JCONNECTOR") < 2; {
			n, err := out.Read(piece)
			text.Write(piece[:n])
			if err != nil {
				return err
			}
		}
		c.contains(text.String(), "All is well.")
		return nil
	})
}

// statusWithoutSupervisor kills the supervisor, which stays dead.
func (c *checkout) statusWithoutSupervisor() {
	c.Helper()
	if err := c.stack.Signal(system.SupervisorName, syscall.SIGKILL); err != nil {
		c.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(300 * time.Millisecond) {
		out, err := c.status().CombinedOutput()
		if err != nil && strings.Contains(string(out), "- no supervisor acts: what breaks from now on stays broken") {
			return
		}
		if time.Now().After(end) {
			c.Fatalf("%v\n%s", err, out)
		}
	}
}
