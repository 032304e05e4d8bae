package bench

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// report has three runs of the product and one of its rival, and something of every other kind.
func report() Report {
	r := Report{Machine: Machine("/"), Commit: "abc", Versions: map[string]string{"Kafka": "4"}, Settings: map[string]string{"GOGC": "50", "A": "1"}}
	for i, p50 := range []float64{5, 7, 6} {
		r.Runs = append(r.Runs, Point{System: CDC, Part: PartLatency, Rate: 500, Sent: 5000, Seconds: 10, Achieved: 500, P50: p50, P99: 20, WALPerOrder: 4000,
			CPU:    map[string]float64{"order-service": 10, "order-service-2": 20, "stock-service": 1, "postgres": float64(100 + i), "kafka": 3, loadGenerator: 21},
			Memory: map[string]float64{"order-service": 31, "order-service-2": 33, "stock-service": 25, "payment-service": float64(60 + i), loadGenerator: 90}, StolenCores: 0.3})
	}
	r.Runs = append(r.Runs,
		Point{System: Poller, Part: PartLatency, Rate: 500, Achieved: 500, P50: 15, P99: 30, WALPerOrder: 5000, CPU: map[string]float64{"relay": 40, "postgres": 120}},
		Point{System: Poller, Part: PartLatency, Rate: 200, Achieved: 200, P50: 30, P99: 1500},
		Point{System: CDC, Part: PartLatency, Rate: 9000, P99: 1500, Memory: map[string]float64{"order-service": 130}},
		Point{System: CDC, Part: PartLatency, Rate: 0, Cores: map[string]float64{"connect": 0.16, "postgres": 0.01, "walsenders": 0.002},
			Memory: map[string]float64{"order-service": 140}},
		Point{System: Poller, Part: PartLatency, Rate: 0, Cores: map[string]float64{"relay": 0.05, "postgres": 0.1}},
		Point{System: CDC, Part: PartGrowth, Case: "0 orders", Rate: 500, P99: 20}, Point{System: CDC, Part: PartGrowth, Case: "<1 million> orders", Rate: 500, P99: 30})
	for _, rate := range []int{7000, 8100, 8000} {
		r.Found(CDC, Found{Rate: rate})
	}
	r.Found(Poller, Found{Rate: 10_000})
	r.Found("cdc: 0 orders", Found{Rate: 8000})
	r.Found("cdc: <1 million> orders", Found{Rate: 7600})
	r.CatchUps = []CatchUp{{System: CDC, EventsPerSecond: 64_000, EventsPerOrder: 4}}
	r.Ceilings = []Ceiling{{Name: "bare thing", Concurrency: 2, Batch: 200, PerSecond: 12_345},
		{Name: CeilingOrder, Batch: 1, PerSecond: 1000}, {Name: CeilingOrder, Batch: 200, PerSecond: 40_000}, {Name: CeilingStep, Batch: 200, PerSecond: 160_000}}
	return r
}

func TestMarkdown(t *testing.T) {
	text := report().Markdown()
	for _, want := range []string{
		"| cdc |  | 500 | 500 | 6.0 (5.0–7.0) | 20.0 (20.0–20.0) |", "| 101, 0, 31, 0, 3, 21 |", "| 33, 25, 61, 0, 0, 90 | 0.0, 0.0, 0.3 |", "| poller |  | 200 (does not hold) | 200 | 30.0 | 1500.0 |",
		"| cdc | **8000** | 7000; 8100; 8000 |", "| poller | **10000** | 10000 |", "| 0.0100 | 0.0020 | 0.0000 | 0.1600 | 0.0000 |", "| bare thing | 2 | 200 | 12345 |", "Kafka 4", "`A=1 GOGC=50`",
		"| p50 at 500 orders/s (ms) | **6** | ≤ 7 | met |", "| p99 at 500 orders/s (ms) | **20** | | |", "| highest rate that holds (orders/s) | **8000** | ≥ 8000 | met |",
		"| worker CPU when idle (cores) | **0.16** | ≤ 0.2 | met |", "| resident memory of order-service at up to 1000 orders/s, at most (MiB) | **33** | ≤ 60 | met |",
		"| resident memory of payment-service at up to 1000 orders/s, at most (MiB) | **62** | ≤ 60 | **missed** |", "**0.80** | ≤ 0.65 | **missed** |", "**0.40** | ≤ 0.5 | met |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Index(text, "| poller |  | 200") > strings.Index(text, "| cdc |  | 500") {
		t.Error("rates are not in order")
	}
}

func TestRatios(t *testing.T) {
	got := map[string]Ratio{}
	for _, r := range report().ratios() {
		got[r.Name] = r
	}
	for name, want := range map[string]struct {
		ratio float64
		ok    bool
	}{
		"p50 at 500 orders/s (ms), cdc / poller":                                     {0.4, true},
		"WAL per order at 500 orders/s (bytes), cdc / poller":                        {0.8, false},
		"database CPU when idle (cores), cdc / poller":                               {0.12, true},
		"highest rate that holds (orders/s), cdc / poller":                           {0.8, false},
		"p99 at 500 orders/s (ms), <1 million> orders / 0 orders":                    {1.5, false},
		"highest rate that holds, <1 million> orders / 0 orders":                     {0.95, true},
		"highest rate that holds / what the bare transactions allow (orders/s), cdc": {0.4, true},
		"events/s while catching up / events/s at the highest rate, cdc":             {2, true},
	} {
		r, ok := got[name]
		if reached, known := r.OK(); !ok || r.Ratio != want.ratio || reached != want.ok || !known {
			t.Errorf("%s: %+v, want %v", name, r, want)
		}
	}
	if n := len((Report{}).ratios()); n != 0 {
		t.Errorf("%d ratios of nothing", n)
	}
}

// A search that was cut off bounds what it compares, and one that finds nothing is no reason to say nothing.
func TestRatiosOfSearches(t *testing.T) {
	for name, c := range map[string]struct {
		cdc, poller Found
		row         string
	}{
		"both found":            {Found{Rate: 950}, Found{Rate: 1000}, "| 950 | 1000 | **0.95** | ≥ 0.9 | met |"},
		"it may be":             {Found{850, 1201, true}, Found{1600, 1687, false}, "| 850 | 1600 | **0.53 to 0.75** | ≥ 0.9 | **missed** |"},
		"it is, at least":       {Found{950, 0, true}, Found{Rate: 1000}, "| 950 | 1000 | **0.95 or more** | ≥ 0.9 | met |"},
		"nobody knows":          {Found{850, 1201, true}, Found{Rate: 1000}, "| 850 | 1000 | **0.85 to 1.20** | ≥ 0.9 | not known: a search is open |"},
		"the product never did": {Found{}, Found{Rate: 1000}, "| 0 | 1000 | **0.00** | ≥ 0.9 | **missed** |"},
		"the rival never did":   {Found{Rate: 1000}, Found{}, "| 1000 | 0 | **0.00 or more** | ≥ 0.9 | not known: a search is open |"},
	} {
		r := Report{Machine: Machine("/")}
		r.Found(CDC, c.cdc)
		r.Found(Poller, c.poller)
		if text := r.Markdown(); !strings.Contains(text, "cdc / poller "+c.row) {
			t.Errorf("%s: no %q in\n%s", name, c.row, text)
		}
		if _, err := json.Marshal(r.ratios()); err != nil {
			t.Error(name, err)
		}
	}
}

// What an order costs is not told by a rate at which some of the work is left over, nor is a bar met there.
func TestARateThatDoesNotHoldSaysNothingOfCosts(t *testing.T) {
	r := Report{Machine: Machine("/")}
	for _, system := range []string{CDC, Poller} {
		r.Runs = append(r.Runs, Point{System: system, Part: PartLatency, Rate: 2000, P50: 15, P99: 1500, WALPerOrder: 1000, CPU: map[string]float64{"kafka": 7}})
	}
	if n := len(r.ratios()) + len(r.cpuBars()); n != 0 {
		t.Error(r.ratios(), r.cpuBars())
	}
	for _, want := range []string{"| cdc |  | 2000 (does not hold) | 0 | 15.0 | 1500.0 | 0.0 | – | – |", "| p50 at 2000 orders/s (ms) (does not hold) | **15** | ≤ 20 | **missed** |"} {
		if text := r.Markdown(); !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	held := r.Runs[0]
	held.P99 = 500
	r.Runs = append(r.Runs, held)
	if text := r.Markdown(); !strings.Contains(text, "2000 (holds in 1 of 2) | 0 | 15.0 (15.0–15.0) | 1000.0 (500.0–1500.0) | 0.0 (0.0–0.0) | 0, 0, 0, 0, 7, 0 | 1000 |") {
		t.Error(text)
	}
}

func TestBarsAreForFourProcessors(t *testing.T) {
	for cpus, warned := range map[int]bool{2: true, 4: false} {
		r := report()
		r.Machine["cpus"] = cpus
		if strings.Contains(r.Markdown(), fmt.Sprintf("this machine has %d", cpus)) != warned {
			t.Error(cpus, r.Markdown())
		}
	}
	if n := len((Report{}).figures()); n != 0 {
		t.Errorf("%d figures of nothing", n)
	}
	if text := (Report{}).Markdown(); strings.Contains(text, "Bars") {
		t.Error(text)
	}
}

func TestFilesystem(t *testing.T) {
	const mounts = `21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:5 / /dev rw,nosuid shared:2 - devtmpfs devtmpfs rw
23 21 0:30 / /tmp rw shared:3 - tmpfs tmpfs rw,size=1g
24 21 0:31 /a /srv/my\040data rw - xfs /dev/vdb rw
25 23 0:32 / /tmp rw - btrfs /dev/vdc rw
`
	for dir, want := range map[string]string{
		"/home/x": "ext4", "/": "ext4", "/tmp": "btrfs", "/tmp/x/y": "btrfs", "/tmpfiles": "ext4", "/srv/my data/x": "xfs",
	} {
		if got := filesystem(mounts, dir); got != want {
			t.Errorf("%s: %q, want %q", dir, got, want)
		}
	}
	if got := filesystem("", "/"); got != "" {
		t.Error(got)
	}
}

func TestPlotsAreXML(t *testing.T) {
	plots := report().plots()
	for name, holds := range map[string][]string{
		"latency.svg": {"cdc p50", "poller p99", "<polyline", ">500<"},
		"cpu.svg":     {"walsenders", "cdc 500, services: 31 µs", "poller 500, worker or relay: 40 µs"},
		"growth.svg":  {"&lt;1 million&gt; orders", "highest rate"},
	} {
		text := plots[name]
		decoder := xml.NewDecoder(strings.NewReader(text))
		for elements := 0; ; elements++ {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				if elements < 20 {
					t.Errorf("%s has %d tokens", name, elements)
				}
				break
			} else if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, text)
			}
		}
		for _, want := range append(holds, "<svg xmlns=") {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %q:\n%s", name, want, text)
			}
		}
		if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("%s has what is no number", name)
		}
	}
	if n := len((Report{}).plots()); n != 0 {
		t.Errorf("%d plots of nothing", n)
	}
}

func TestReportFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if err := report().Write(dir); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Machine map[string]any
		Commit  string
		Runs    []map[string]any
		Max     map[string]int `json:"max_orders_per_s"`
		Ratios  []Ratio
	}
	written, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil || json.Unmarshal(written, &back) != nil {
		t.Fatal(err)
	}
	var missing []string
	for _, field := range []string{"system", "rate", "achieved", "p50_ms", "p99_ms", "cpu_us_per_order", "wal_bytes_per_order"} {
		if _, ok := back.Runs[0][field]; !ok {
			missing = append(missing, field)
		}
	}
	if slices.Sort(missing); len(missing) > 0 || back.Commit != "abc" || back.Max[CDC] != 8000 || back.Max[Poller] != 10_000 || fmt.Sprint(back.Machine["cpus"]) == "<nil>" || len(back.Ratios) == 0 {
		t.Error(missing, string(written))
	}
	for _, name := range []string{"results.md", "latency.svg", "cpu.svg", "growth.svg"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Error(name, err)
		}
	}
}
