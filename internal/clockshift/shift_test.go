package clockshift_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/clockshift"
)

// TestMain also is the process whose clock a test moves.
func TestMain(m *testing.M) {
	if os.Getenv("SHOW_TIME") != "" {
		for {
			os.Stdout.WriteString(time.Now().UTC().Format(time.RFC3339Nano) + "\n")
			time.Sleep(5 * time.Millisecond)
		}
	}
	os.Exit(m.Run())
}

// A process's clock jumps and comes back; its monotonic clock, by which it sleeps, does not.
func TestShift(t *testing.T) {
	if err := clockshift.Shift(os.Getpid(), 0); err != nil {
		t.Skip(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "times"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(self)
	cmd.Env, cmd.Stdout = append(os.Environ(), "SHOW_TIME=1"), file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	ahead := func() time.Duration { // of its newest line
		t.Helper()
		at, _ := file.Seek(0, 2)
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			text, err := os.ReadFile(file.Name())
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Split(string(text), "\n"); len(text) > int(at)+100 {
				shown, err := time.Parse(time.RFC3339Nano, lines[len(lines)-2])
				if err != nil {
					t.Fatal(err)
				}
				return time.Until(shown).Round(time.Second)
			}
		}
		t.Fatal("the process shows no time")
		return 0
	}
	ahead() // it runs
	for _, by := range []time.Duration{0, time.Hour, -90 * time.Second, 0} {
		if err := clockshift.Shift(cmd.Process.Pid, by); err != nil {
			t.Fatal(err)
		}
		if got := ahead(); got != by {
			t.Errorf("its clock is ahead by %v, want %v", got, by)
		}
	}
	if err := clockshift.Shift(1<<30, time.Second); err == nil {
		t.Error("the clock of no process was moved")
	}
}
