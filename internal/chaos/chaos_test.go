package chaos

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

// The short form of scripts/chaos.sh: one of each engine, the faults that tell most, each once. It takes less than 3
// minutes: no clock jumps further ahead than the audit waits for anyway.
func TestNothingIsLostUnderFire(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	if os.Getenv("TEST_STACK") == "docker" {
		t.Skip("shoots at processes")
	}
	dir, err := os.MkdirTemp("", "outboxsaga-chaos")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		t.Fatal(err)
	}
	only := []string{"service killed", "Postgres killed", "slot lost", "clock jump", "poison burst", "connector deleted",
		"pool exhausted", "service–Kafka cut", "worker killed", "broker killed"}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	report, err := Run(ctx, Config{
		Root: stacktest.Root(), Bin: stacktest.Programs(t), Dir: dir, Seed: 20, Duration: 110 * time.Second, MinFaults: 8, MaxFaults: len(only), Ahead: 10 * time.Second, Rate: 30,
		Instances: 2, Brokers: 1, Workers: 1, Fast: true, Only: only, Out: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report.Text())
	if !report.Clean() {
		t.Errorf("%d violations", len(report.Violations))
	}
	for _, m := range report.Missed() {
		t.Error(m)
	}
	if report.Load.Succeeded < 1000 || report.Load.Failed < 100 || report.Load.Cancelled < 5 || report.Samples < 30 ||
		report.Audit.Checked["events"] < int64(3*report.Load.Orders) {
		t.Errorf("this shows nothing: %d faults, %+v, %d samples, audited %v", len(report.Faults), report.Load, report.Samples, report.Audit.Checked)
	}
}

// orders that settle some time after they were placed, one each 20 ms; 0: not at all.
func placed(begin time.Time, took ...time.Duration) (all []*order) {
	for i, d := range took {
		o := &order{meant: begin.Add(time.Duration(i) * 20 * time.Millisecond)}
		if d > 0 {
			o.settled = o.meant.Add(d)
		}
		all = append(all, o)
	}
	return all
}

func some(n int, d time.Duration) (all []time.Duration) {
	for range n {
		all = append(all, d)
	}
	return all
}

func TestFlow(t *testing.T) {
	begin := time.Now()
	quick := some(60, 10*time.Millisecond)
	// Half a second in which nothing settles: what was placed meanwhile settles together at its end.
	var outage []time.Duration
	for i := range 25 {
		outage = append(outage, time.Duration(25-i)*20*time.Millisecond)
	}
	sixth := some(150, 10*time.Millisecond)
	for i := 0; i < len(sixth); i += 6 {
		sixth[i] = 0 // one partition stands still
	}
	for _, c := range []struct {
		name string
		took []time.Duration
		at   time.Duration
		ok   bool
	}{
		{"quick from the start", quick, 10 * time.Millisecond, true},
		{"half a second", append(outage, quick...), 500 * time.Millisecond, true},
		{"two seconds without an answer", append(some(100, 0), quick...), 1970 * time.Millisecond, true},
		{"a partition", sixth, 0, false},
		{"nothing", some(200, 0), 0, false},
		{"too early to tell", some(10, 10*time.Millisecond), 0, false},
	} {
		now := begin.Add(time.Duration(len(c.took)) * 20 * time.Millisecond)
		if len(c.took) > 20 {
			now = now.Add(prompt)
		}
		at, ok := flow(placed(begin, c.took...), now)
		if ok != c.ok || ok && (at.Sub(begin) < c.at-50*time.Millisecond || at.Sub(begin) > c.at+50*time.Millisecond) {
			t.Errorf("%s: %v after %v, want %v after %v", c.name, ok, at.Sub(begin), c.ok, c.at)
		}
	}
}

func testKinds(w *world) []kind {
	w.instances = map[string][]string{"order-service": {"order-service", "order-service-2"}}
	w.brokers, w.workers, w.supervisors = []string{"kafka", "kafka-2"}, []string{"connect"}, []string{"supervisor"}
	return w.processFaults()
}

func TestASeedIsASchedule(t *testing.T) {
	skipped := []Skipped{{"clock jump", "on Linux only"}}
	schedule := func(seed uint64, only ...string) (all []string) {
		next, err := plan(seed, testKinds(&world{}), skipped, only)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			all = append(all, next().description().name)
		}
		return all
	}
	one := strings.Join(schedule(1), "\n")
	if one != strings.Join(schedule(1), "\n") {
		t.Error("the same seed gives another schedule")
	}
	if one == strings.Join(schedule(2), "\n") {
		t.Error("another seed gives the same schedule")
	}
	for _, name := range []string{"kill -9 order-service-2", "SIGTERM kafka", "SIGSTOP connect", "rolling restart of everything"} {
		if !strings.Contains(one, name) {
			t.Errorf("no %q in 60 faults:\n%s", name, one)
		}
	}
	for i, name := range schedule(1, "worker killed", "clock jump", "everything rolled") { // what cannot be done is left out
		if want := []string{"kill -9 connect", "rolling restart of everything"}[i%2]; name != want {
			t.Errorf("fault %d is %q, want %q", i, name, want)
		}
	}
	if _, err := plan(1, testKinds(&world{}), skipped, []string{"clock jump", "earthquake"}); err == nil || !strings.Contains(err.Error(), "worker killed") {
		t.Error("an unknown kind: ", err)
	}
	if _, err := plan(1, testKinds(&world{}), skipped, []string{"clock jump"}); err == nil || !strings.Contains(err.Error(), "clock jump: on Linux only") {
		t.Error("nothing is left: ", err)
	}
}

func TestRows(t *testing.T) {
	got := rows([]*Event{
		{Kind: "service killed", Recovery: 2, Alone: true}, {Kind: "service killed", Recovery: 3.5, Alone: true}, {Kind: "service killed", Recovery: 1, Alone: true},
		{Kind: "service killed", Recovery: 9}, {Kind: "slot lost", Recovery: 20, Alone: true}, {Kind: "poison burst", Alone: true, Error: "no"},
	})
	want := []Row{
		{Kind: "poison burst", Count: 1},
		{Kind: "service killed", Count: 4, Alone: 3, Median: 2, Worst: 3.5, WorstOfAll: 9, Bar: 3},
		{Kind: "slot lost", Count: 1, Alone: 1, Median: 20, Worst: 20, WorstOfAll: 20, Bar: 30, Met: true},
	}
	for i, r := range got {
		if r != want[i] {
			t.Errorf("%+v, want %+v", r, want[i])
		}
	}
}
