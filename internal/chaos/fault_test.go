package chaos

import (
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/supervisor"
	"outboxsaga/internal/system"
)

// A request without an answer makes the sum uncertain by what it adds, and by no more.
func TestAddsUp(t *testing.T) {
	for _, test := range []struct {
		got, answered, unanswered int
		want                      bool
	}{
		{100, 100, 0, true}, {107, 100, 0, false}, {93, 100, 0, false},
		{100, 100, 14, true}, {107, 100, 14, true}, {114, 100, 14, true}, {121, 100, 14, false}, {93, 100, 14, false}, {103, 100, 14, false},
	} {
		if got := addsUp(test.got, test.answered, test.unanswered, 7); got != test.want {
			t.Errorf("%+v: %t", test, got)
		}
	}
}

// A clock jumps no further ahead than the audit shall wait, and back as ever.
func TestJumps(t *testing.T) {
	if got := jumps(2 * time.Minute); len(got) != 4 {
		t.Error(got)
	}
	if got := jumps(10 * time.Second); !slices.Equal(got, []time.Duration{-time.Hour, -30 * time.Second, 10 * time.Second}) {
		t.Error(got)
	}
}

func TestConfig(t *testing.T) {
	good := Config{Root: "/", Bin: "/", Dir: "/", Duration: 1, Rate: 1, Instances: 1, Brokers: 1, Workers: 1}
	for _, test := range []struct {
		least, most int
		ok          bool
	}{{0, 0, true}, {8, 0, true}, {8, 8, true}, {8, 7, false}, {-1, 0, false}, {0, -1, false}} {
		c := good
		c.MinFaults, c.MaxFaults = test.least, test.most
		if err := c.validate(); (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		}
		if test.ok && (c.Ahead != 2*time.Minute || c.Out == nil) {
			t.Errorf("%+v", c)
		}
	}
}

// supervisorThatSays answers GET /metrics and returns its process.
func supervisorThatSays(t *testing.T, metrics string) devstack.Process {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, metrics) }))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return devstack.Process{Port: port}
}

// The one that acts is held, for longer than PostgreSQL lets its lock idle.
func TestTheSupervisorThatActsIsStopped(t *testing.T) {
	stands, acts := "# TYPE supervisor_leads gauge\nsupervisor_leads 0\n", "# TYPE supervisor_leads gauge\nsupervisor_leads 1\n"
	w := &world{supervisors: []string{"supervisor", "supervisor-2", "supervisor-3"}, services: map[string]devstack.Process{
		"supervisor": supervisorThatSays(t, stands), "supervisor-2": supervisorThatSays(t, acts), "supervisor-3": {Port: 1}, // which is gone
	}}
	if name, err := w.acting(t.Context(), w.supervisors, 0); err != nil || name != "supervisor-2" {
		t.Error(name, err)
	}
	if name, err := w.acting(t.Context(), []string{"supervisor", "supervisor-3"}, 0); err == nil || !strings.Contains(err.Error(), "no supervisor acts") {
		t.Error(name, err)
	}
	for _, k := range w.processFaults() {
		if k.name != "supervisor stopped" {
			continue
		}
		for seed := range uint64(20) {
			f, ok := k.make(rand.New(rand.NewPCG(seed, 1))).(*actingStopped)
			if !ok || f.hold <= supervisor.LockIdle || f.clock != fromFaultUnhealed {
				t.Fatalf("%+v", f)
			}
		}
		return
	}
	t.Error("no supervisor is stopped")
}

// Every service has a table to exhaust its pools with, before a statement times out and gives a connection back.
func TestPoolsAreExhausted(t *testing.T) {
	kinds := (&world{}).poolFaults()
	seen := map[string]bool{}
	for seed := range uint64(50) {
		f := kinds[0].make(rand.New(rand.NewPCG(seed, 1))).(*poolExhausted)
		if f.hold > 8*time.Second || reads[f.service.Name].table == "" {
			t.Errorf("%+v", f.about)
		}
		seen[f.service.Name] = true
	}
	if len(seen) != len(system.Services()) {
		t.Error(seen)
	}
}
