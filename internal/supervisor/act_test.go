package supervisor

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/internal/connect"
)

// worker answers as a worker of Kafka Connect whose connector never stops. resume answers a call to resume it.
func worker(t *testing.T, stopped *atomic.Int32, resume http.HandlerFunc) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet:
			_, _ = w.Write([]byte(`{"connector":{"state":"RUNNING"},"tasks":[{"state":"RUNNING"}]}`))
		case strings.HasSuffix(r.URL.Path, "/stop"):
			stopped.Add(1)
			w.WriteHeader(http.StatusNoContent)
		case strings.HasSuffix(r.URL.Path, "/resume"):
			resume(w, r)
		default:
			t.Errorf("%s %s", r.Method, r.URL)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func newTestSupervisor(t *testing.T, workers ...string) *Supervisor {
	s, err := New(Config{Pipelines: []Pipeline{{Name: "orderdb"}}, Workers: workers, Brokers: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.confirmations["orderdb"].recalled = true // there is no database
	s.actTimeout, s.resumeTimeout = 300*time.Millisecond, 20*time.Second
	return s
}

// A connector whose stop takes too long is resumed nevertheless, by any worker, also if none can at first.
func TestResendResumes(t *testing.T) {
	var stopped, refused, resumed atomic.Int32
	first := worker(t, &stopped, func(w http.ResponseWriter, _ *http.Request) {
		refused.Add(1)
		w.WriteHeader(http.StatusInternalServerError)
	})
	second := worker(t, &stopped, func(w http.ResponseWriter, _ *http.Request) {
		if resumed.Add(1) < 3 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	s := newTestSupervisor(t, first, second)
	err := s.do(t.Context(), Facts{worker: connect.Client{URL: first}}, s.cfg.Pipelines[0], Act{Kind: Resend})
	if err == nil || !strings.Contains(err.Error(), "does not stop") || errors.Is(err, errStopped) || !errors.Is(err, errMayStop) {
		t.Error(err)
	}
	if stopped.Load() != 1 || refused.Load() != 3 || resumed.Load() != 3 {
		t.Errorf("stopped %d, refused %d, resumed %d", stopped.Load(), refused.Load(), resumed.Load())
	}
}

// A worker that answers and cannot act is not asked for ever.
func TestAnotherWorkerIsAsked(t *testing.T) {
	dead := httptest.NewServer(nil)
	dead.Close()
	urls := []string{dead.URL}
	for range 2 {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			_, _ = w.Write([]byte(`{}`))
		}))
		t.Cleanup(server.Close)
		urls = append(urls, server.URL)
	}
	s := newTestSupervisor(t, urls...)
	for round, want := range []string{urls[1], urls[2], urls[1]} {
		worker, _, err := askConnect(t.Context(), s.workers)
		if err != nil || worker.URL != want {
			t.Fatalf("round %d: %s was asked, %v", round, worker.URL, err)
		}
		for range 2 { // acts of one round
			if err := s.do(t.Context(), Facts{worker: worker, Pipelines: map[string]Pipeflow{"orderdb": {Connector: &Connector{State: "FAILED"}}}}, s.cfg.Pipelines[0], Act{Kind: Restart}); err == nil {
				t.Error("it did not fail")
			}
		}
	}
}

// What could not be resumed is said to be so.
func TestStillStopped(t *testing.T) {
	var stopped atomic.Int32
	url := worker(t, &stopped, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	s := newTestSupervisor(t, url)
	s.resumeTimeout = 300 * time.Millisecond
	if err := s.do(t.Context(), Facts{worker: connect.Client{URL: url}}, s.cfg.Pipelines[0], Act{Kind: Resend}); !errors.Is(err, errStopped) {
		t.Error(err)
	}
}

func TestEveryIsBounded(t *testing.T) {
	_, err := New(Config{Pipelines: []Pipeline{{}}, Workers: []string{""}, Brokers: []string{""}, Every: 11 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "10s at most") {
		t.Error(err)
	}
}
