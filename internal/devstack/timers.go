package devstack

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// pollInterval names the connectors' poll.interval.ms in the worker's environment.
const pollInterval = "CDC_POLL_INTERVAL_MS"

// timers are the settings of debezium/timers.env: the worker's timer slack, and what it has in its environment. Without a slack, on
// other systems than Linux, a short interval would cost a core. An interval in our own environment wins.
func (s *Stack) timers() (slack time.Duration, env []string, err error) {
	interval := "20"
	if runtime.GOOS == "linux" {
		file := filepath.Join(s.cfg.Root, "debezium", "timers.env")
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, nil, fmt.Errorf("the checkout is not complete: %w", err)
		}
		settings := map[string]string{}
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
				settings[name] = value
			}
		}
		ns, err := strconv.ParseInt(settings["TIMER_SLACK_NS"], 10, 64)
		if err != nil || ns < 0 || settings[pollInterval] == "" {
			return 0, nil, fmt.Errorf("%s must set TIMER_SLACK_NS to nanoseconds, and %s to milliseconds", file, pollInterval)
		}
		// Some sandboxes do not know of it.
		if withSlack(time.Duration(ns), func() error { return nil }) == nil {
			slack, interval = time.Duration(ns), settings[pollInterval]
		}
	}
	if given := os.Getenv(pollInterval); given != "" {
		interval = given
	}
	return slack, []string{pollInterval + "=" + interval}, nil
}
