package chaos

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a run must show beside being clean: so many faults that happened, and with Strict the bars that were measured.
func TestMissed(t *testing.T) {
	faults := []*Event{
		{Kind: "service killed", Recovery: 3.5, Alone: true}, {Kind: "worker killed", Recovery: 9, Alone: true},
		{Kind: "broker killed", Recovery: 30}, {Kind: "poison burst", Recovery: 60, Alone: true}, {Kind: "slot lost", Error: "inject: no"},
	}
	few, slow := "4 faults happened, at least 5 were asked for", "service killed: 3.5 s to the normal flow of orders, the bar is 3 s"
	for _, test := range []struct {
		least  int
		strict bool
		want   []string
	}{
		{0, false, nil}, {4, false, nil}, {5, false, []string{few}}, {0, true, []string{slow}}, {5, true, []string{few, slow}},
	} {
		r := Report{Faults: faults, Kinds: rows(faults), MinFaults: test.least, Strict: test.strict}
		if got := r.Missed(); !slices.Equal(got, test.want) {
			t.Errorf("%+v: %q", test, got)
		}
		for _, m := range append(test.want, "5 faults in 0 s (4 happened as meant", "bars: 1 met, 1 missed, 2 not measured") {
			if !strings.Contains(r.Text(), m) {
				t.Errorf("no %q in\n%s", m, r.Text())
			}
		}
	}
}

// Without a folder of the caller's the results are in the checkout, where git does not see them.
func TestResults(t *testing.T) {
	root := t.TempDir()
	for range 2 {
		dir, err := Results(root)
		if err != nil || dir != filepath.Join(root, "chaos-results") {
			t.Fatal(dir, err)
		}
		if text, err := os.ReadFile(filepath.Join(dir, ".gitignore")); err != nil || string(text) != "*\n" {
			t.Errorf("%q, %v", text, err)
		}
		file, err := Report{Seed: 7, Rate: 50}.Write(dir)
		if err != nil || file != filepath.Join(dir, "chaos-7.json") {
			t.Fatal(file, err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var read Report
		if err := json.Unmarshal(text, &read); err != nil || read.Seed != 7 || read.Rate != 50 {
			t.Errorf("%+v, %v", read, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "chaos-7.txt")); err != nil {
			t.Error(err)
		}
	}
}
