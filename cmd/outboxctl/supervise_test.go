package main

import (
	"strings"
	"testing"
)

func TestSuperviseBoundsEvery(t *testing.T) {
	for _, every := range []string{"1m", "11s", "1ms", "-1s"} {
		c := newSuperviseCommand()
		c.SetArgs([]string{"--every", every})
		c.SilenceErrors, c.SilenceUsage = true, true
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "give 100ms to 10s") {
			t.Errorf("%s: %v", every, err)
		}
	}
}
