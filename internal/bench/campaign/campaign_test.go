package campaign

import (
	"testing"
	"time"
)

// --quick promises 8 minutes, also where everything takes long: starts, orders that settle after their load, and a search that
// uses all of its time and what it may exceed it by.
func TestQuickTakesEightMinutes(t *testing.T) {
	const (
		startAndStop = 30 * time.Second
		filesOfLog   = 5 * time.Second
		settling     = 15 * time.Second // after all points together
		afterIdle    = 5 * time.Second
	)
	o := Quick()
	each := startAndStop + filesOfLog + o.Warmup + o.Idle + time.Duration(len(o.Rates))*o.Duration + settling + o.Most*3/2 + 3*o.Confirm + afterIdle
	if all := time.Duration(len(o.Systems)*o.Repeats) * each; all > 8*time.Minute || !o.Maximum {
		t.Errorf("%s", all)
	}
}

func TestWhereASearchBegins(t *testing.T) {
	for _, c := range []struct {
		from  int // --max-from
		rates []int
		held  int

		wantHeld, wantStart int // a start of 0 is above what held
	}{
		{0, []int{200, 500, 2000}, 2000, 2000, 0},
		{0, []int{200, 500, 2000}, 500, 500, 0},
		{0, []int{0, 500, 200}, 0, 0, 200},
		{0, nil, 0, 0, 1000},
		{5000, []int{200, 500, 2000}, 2000, 2000, 5000},
		{300, []int{200, 500, 2000}, 2000, 0, 300},
		{300, []int{500}, 0, 0, 300},
	} {
		if s := (Options{From: c.from}).search(c.rates, c.held); s.Held != c.wantHeld || s.Start != c.wantStart {
			t.Errorf("%+v: held %d, start %d", c, s.Held, s.Start)
		}
	}
}

func TestJVM(t *testing.T) {
	for text, want := range map[string]string{
		"openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6-Debian-1deb12u1)\n" +
			"OpenJDK 64-Bit Server VM (build 17.0.15+6-Debian-1deb12u1, mixed mode, sharing)\n": "OpenJDK 64-Bit Server VM 17.0.15+6-Debian-1deb12u1",
		"openjdk version \"21.0.1\"\nOpenJDK 64-Bit Server VM Temurin-21.0.1+12 (build 21.0.1+12-LTS, mixed mode)": "OpenJDK 64-Bit Server VM 21.0.1+12-LTS",
		"something else\n": "something else",
	} {
		if got := jvm(text); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
