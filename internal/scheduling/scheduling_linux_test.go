package scheduling_test

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"outboxsaga/internal/scheduling"
)

func policyAndSlack(t *testing.T) (policy uint32, slack int) {
	t.Helper()
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Skip("this system does not tell how it schedules:", err)
	}
	slack, err = unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Skip("this system has no timer slack:", err)
	}
	return attr.Policy, slack
}

func TestStart(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	policy, slack := policyAndSlack(t)
	if policy != unix.SCHED_NORMAL {
		t.Skip("these tests are not scheduled as usual, which stays")
	}
	w := scheduling.Schedule{Batch: true, Slack: 7 * time.Millisecond}
	var child []byte
	err := w.Start(func() error {
		if p, s := policyAndSlack(t); p != unix.SCHED_BATCH || s != 7_000_000 {
			t.Errorf("policy %d, slack %d ns", p, s)
		}
		var err error
		child, err = exec.Command("cat", "/proc/self/timerslack_ns").Output()
		return err
	})
	if err != nil || strings.TrimSpace(string(child)) != "7000000" {
		t.Errorf("a process has a slack of %q ns, %v", child, err)
	}
	if p, s := policyAndSlack(t); p != policy || s != slack {
		t.Errorf("afterwards: policy %d, slack %d ns, before %d and %d", p, s, policy, slack)
	}
	mine := errors.New("mine")
	if err := w.Start(func() error { return mine }); err != mine {
		t.Error(err)
	}
}

func TestForWorker(t *testing.T) {
	for _, c := range []struct {
		policy, slack, interval, most string
		want                          scheduling.Schedule
	}{
		{"", "", "", "", scheduling.Schedule{Batch: true, Slack: 8 * time.Millisecond, Interval: "2", MaxBatch: "1"}},
		{"batch", "5", "7", "8000", scheduling.Schedule{Batch: true, Slack: 5 * time.Millisecond, Interval: "7", MaxBatch: "8000"}},
		{"other", "0", "", "1", scheduling.Schedule{Interval: "20", MaxBatch: "1"}},
		{"", "", "", "2048", scheduling.Schedule{Batch: true, Slack: 8 * time.Millisecond, Interval: "4", MaxBatch: "2048"}},
	} {
		t.Setenv(scheduling.PolicyVariable, c.policy)
		t.Setenv(scheduling.SlackVariable, c.slack)
		t.Setenv(scheduling.IntervalVariable, c.interval)
		t.Setenv(scheduling.BatchVariable, c.most)
		got, missing, err := scheduling.ForWorker()
		if missing != nil {
			t.Skip("this system cannot:", missing)
		}
		if got != c.want || err != nil {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
		if got, err := scheduling.ForProcess(); got != (scheduling.Schedule{Batch: c.want.Batch}) || err != nil {
			t.Errorf("%+v: a process: %+v, %v", c, got, err)
		}
		t.Setenv(scheduling.GoSlackVariable, c.slack)
		want := scheduling.Schedule{Batch: c.want.Batch, Slack: c.want.Slack}
		if c.slack == "" {
			want.Slack = 2 * time.Millisecond
		}
		if got, err := scheduling.ForGo(); got != want || err != nil {
			t.Errorf("%+v: a program in Go: %+v, %v", c, got, err)
		}
	}
	t.Setenv(scheduling.GoSlackVariable, "2ms")
	if _, err := scheduling.ForGo(); err == nil || !strings.Contains(err.Error(), scheduling.GoSlackVariable) {
		t.Error(err)
	}
	for _, c := range []struct{ variable, value string }{
		{scheduling.PolicyVariable, "fifo"}, {scheduling.SlackVariable, "8ms"}, {scheduling.SlackVariable, "-1"}, {scheduling.SlackVariable, "1001"},
		{scheduling.IntervalVariable, "0"}, {scheduling.IntervalVariable, "two"},
		{scheduling.BatchVariable, "0"}, {scheduling.BatchVariable, "8192"}, {scheduling.BatchVariable, "many"},
	} {
		t.Run(c.variable+"="+c.value, func(t *testing.T) {
			t.Setenv(c.variable, c.value)
			if _, _, err := scheduling.ForWorker(); err == nil || !strings.Contains(err.Error(), c.variable) || !strings.Contains(err.Error(), "set it to") {
				t.Error(err)
			}
		})
	}
}

func TestExecOfWhatIsNotThere(t *testing.T) {
	if err := (scheduling.Schedule{}).Exec([]string{"no-such-program"}); !errors.Is(err, exec.ErrNotFound) {
		t.Error(err)
	}
	file := t.TempDir() + "/text"
	if err := os.WriteFile(file, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := (scheduling.Schedule{}).Exec([]string{file}); err == nil || !strings.Contains(err.Error(), "run "+file) {
		t.Error(err)
	}
}
