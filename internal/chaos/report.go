package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"outboxsaga/internal/audit"
)

// Report is what a run found. Times are seconds.
type Report struct {
	Seed                        uint64
	Commit                      string
	Rate                        int
	Instances, Brokers, Workers int
	MinFaults                   int     // so many were asked for
	Strict                      bool    // the bars are asked for
	Seconds                     float64 // of faults
	Quiet                       float64 // until all had settled
	Faults                      []*Event
	Skipped                     []Skipped
	Kinds                       []Row
	Load                        Load
	Samples                     int // of conservation, all clean unless there are violations
	SamplesMissed               int // where the database was what was shot at
	Poisoned, DeadLetters       int // records that were no events, and those put aside; a topic that is deleted takes some with it
	Audit                       audit.Report
	Violations                  []string
}

// Event is a fault that was injected.
type Event struct {
	At       float64 // since the beginning
	Kind     string
	Name     string
	Recovery float64 // until orders flowed normally
	Alone    bool    // no other fault lasted meanwhile
	// FailedRequests are those of the load from the fault to its end; each was sent again.
	FailedRequests int
	Error          string `json:",omitempty"`

	mending bool // the flow is back, only redundancy is not
	overlap bool // others may begin while it lasts
}

// Skipped is a kind of fault that cannot be injected here.
type Skipped struct{ Kind, Reason string }

// Row is what is said of a kind. Median and Worst are of the faults that were alone.
type Row struct {
	Kind          string
	Count, Alone  int
	Median, Worst float64
	WorstOfAll    float64 // with those that overlapped others
	Failed        int     // requests at most, of a fault that was alone
	Bar           float64 `json:",omitempty"` // what Worst should not exceed
	Met           bool
}

// Load is what became of the orders and requests.
type Load struct {
	Orders, Accepted, Succeeded, Failed, Cancelled int
	LateAccepted                                   int            // orders that were accepted only after the faults
	Failures                                       map[string]int // of single requests, by what came in place of an answer
	Received, Deposited                            int            // goods and money added during the faults
	UncertainReceived, UncertainDeposited          int            // by requests that were never answered: added or not
}

// bars are the longest times to normal flow, in seconds, by kind.
var bars = map[string]float64{
	"service killed": 3, "worker killed": 10, "broker killed": 10, "Postgres killed": 10,
	"slot lost": 30, "task failed": 20, "task stuck": 20,
}

// rows sums the faults up, in the order of their kinds' names.
func rows(faults []*Event) (all []Row) {
	times := map[string][]float64{}
	byKind := map[string]*Row{}
	for _, e := range faults {
		r := byKind[e.Kind]
		if r == nil {
			r = &Row{Kind: e.Kind, Bar: bars[e.Kind]}
			byKind[e.Kind] = r
		}
		r.Count++
		if e.Error != "" {
			continue
		}
		r.WorstOfAll = max(r.WorstOfAll, e.Recovery)
		if e.Alone {
			r.Alone++
			r.Failed = max(r.Failed, e.FailedRequests)
			times[e.Kind] = append(times[e.Kind], e.Recovery)
		}
	}
	for kind, r := range byKind {
		if of := times[kind]; len(of) > 0 {
			slices.Sort(of)
			r.Median, r.Worst = (of[(len(of)-1)/2]+of[len(of)/2])/2, of[len(of)-1]
			r.Met = r.Bar == 0 || r.Worst <= r.Bar
		}
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b Row) int { return strings.Compare(a.Kind, b.Kind) })
	return all
}

// Clean tells that nothing was lost, doubled or left over.
func (r Report) Clean() bool { return len(r.Violations) == 0 }

// Happened counts the faults that could be injected and healed.
func (r Report) Happened() (n int) {
	for _, e := range r.Faults {
		n += bit(e.Error == "")
	}
	return n
}

// Missed is what the run was asked for beside being clean, and has not shown: so many faults, and with Strict the bars.
func (r Report) Missed() (all []string) {
	if n := r.Happened(); n < r.MinFaults {
		all = append(all, fmt.Sprintf("%d faults happened, at least %d were asked for", n, r.MinFaults))
	}
	for _, k := range r.Kinds {
		if r.Strict && k.verdict() == "MISSED" {
			all = append(all, fmt.Sprintf("%s: %.1f s to the normal flow of orders, the bar is %.0f s", k.Kind, k.Worst, k.Bar))
		}
	}
	return all
}

// verdict on the bar; empty if there is none.
func (k Row) verdict() string {
	switch {
	case k.Bar == 0:
		return ""
	case k.Alone == 0:
		return "not measured" // none was alone
	case k.Met:
		return "met"
	}
	return "MISSED"
}

// Text is the report for people.
func (r Report) Text() string {
	var b strings.Builder
	verdicts := map[string]int{}
	fmt.Fprintf(&b, "\n%-24s %6s %6s %8s %8s %10s %10s  %s\n", "FAULT", "TIMES", "ALONE", "MEDIAN", "WORST", "OVERLAPPED", "REQUESTS", "BAR")
	for _, k := range r.Kinds {
		bar, overlapped := k.verdict(), "-"
		if verdicts[bar]++; bar != "" {
			bar = fmt.Sprintf("%.0f s: %s", k.Bar, bar)
		}
		if k.Count > k.Alone {
			overlapped = fmt.Sprintf("%.1f s", k.WorstOfAll)
		}
		median, worst := "-", "-"
		if k.Alone > 0 {
			median, worst = fmt.Sprintf("%.1f s", k.Median), fmt.Sprintf("%.1f s", k.Worst)
		}
		fmt.Fprintf(&b, "%-24s %6d %6d %8s %8s %10s %10d  %s\n", k.Kind, k.Count, k.Alone, median, worst, overlapped, k.Failed, bar)
	}
	fmt.Fprintln(&b, "times from the fault to the normal flow of orders, of faults that were alone; OVERLAPPED: the worst of those that were not; REQUESTS: that failed at most, and were sent again")
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "%-24s left out: %s\n", s.Kind, s.Reason)
	}
	fmt.Fprintf(&b, "\n%d faults in %.0f s (%d happened as meant, at least %d were asked for), %d brokers, %d workers, %d instances of each service\n",
		len(r.Faults), r.Seconds, r.Happened(), r.MinFaults, r.Brokers, r.Workers, r.Instances)
	fmt.Fprintf(&b, "bars: %d met, %d missed, %d not measured because no such fault was alone\n", verdicts["met"], verdicts["MISSED"], verdicts["not measured"])
	fmt.Fprintf(&b, "%d orders at %d/s: %d accepted (%d only after the faults), %d succeeded, %d failed, %d cancelled; all settled %.1f s after the last\n",
		r.Load.Orders, r.Rate, r.Load.Accepted, r.Load.LateAccepted, r.Load.Succeeded, r.Load.Failed, r.Load.Cancelled, r.Quiet)
	fmt.Fprintf(&b, "requests that met a fault and were repeated: %v\n", r.Load.Failures)
	fmt.Fprintf(&b, "%d poison records, %d dead letters; conservation sampled %d times (%d more while PostgreSQL did not answer)\n",
		r.Poisoned, r.DeadLetters, r.Samples, r.SamplesMissed)
	fmt.Fprintf(&b, "audited: %v\n", r.Audit.Checked)
	if r.Clean() {
		fmt.Fprintf(&b, "seed %d: CLEAN: 0 events lost, 0 double effects, 0 orders unsettled\n", r.Seed)
	} else {
		fmt.Fprintf(&b, "seed %d: %d VIOLATIONS\n", r.Seed, len(r.Violations))
		for _, v := range r.Violations {
			fmt.Fprintln(&b, "  "+v)
		}
	}
	for _, m := range r.Missed() {
		fmt.Fprintln(&b, "MISSED: "+m)
	}
	return b.String()
}

// Write writes chaos-SEED.json and chaos-SEED.txt into a folder, which it makes, and returns the first one's name.
func (r Report) Write(dir string) (file string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, fmt.Sprintf("chaos-%d", r.Seed))
	if err := os.WriteFile(name+".json", append(text, '\n'), 0o644); err != nil {
		return "", err
	}
	return name + ".json", os.WriteFile(name+".txt", []byte(r.Text()), 0o644)
}

// Results makes the folder of a checkout for what runs leave that are not told another one. Git does not see it.
func Results(root string) (dir string, err error) {
	dir = filepath.Join(root, "chaos-results")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("*\n"), 0o644)
}
