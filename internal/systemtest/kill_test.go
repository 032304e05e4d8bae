package systemtest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/stacktest"
)

// load places orders until it is stopped: rich and poor customers, items that are there
// and items that run out. Errors of HTTP are what a fault looks like to a client; orders that
// were accepted are remembered, and must settle.
type load struct {
	mu       sync.Mutex
	accepted []string
	refused  int
	why      []string        // of the first refused
	took     []time.Duration // until the answer, of those accepted
	stop     func()
	begun    time.Time
}

// load sends to the instances of order-service in turn, whether they live or not.
func (w *world) load(perSecond, instances int) *load {
	w.t.Helper()
	return w.loadBy(perSecond, func(ctx context.Context, i int, body string, out any) (int, error) {
		return stacktest.Post(ctx, w.URL("order-service", i%instances)+"/orders", nil, body, out)
	})
}

func (w *world) loadBy(perSecond int, send func(ctx context.Context, i int, body string, out any) (int, error)) *load {
	w.t.Helper()
	plenty, scarce := w.item(1_000_000), w.item(50)
	customers := []string{w.customer(1_000_000_000), w.customer(1_000_000_000), w.customer(2000)}
	l := &load{begun: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			sku := plenty
			if i%7 == 0 {
				sku = scarce
			}
			running.Go(func() {
				try, done := context.WithTimeout(context.Background(), 10*time.Second)
				defer done()
				var o order
				begin := time.Now()
				status, err := send(try, i, orderBody(customers[i%3], sku, 1, 100), &o)
				l.mu.Lock()
				defer l.mu.Unlock()
				if err == nil && status == http.StatusAccepted {
					l.accepted, l.took = append(l.accepted, o.ID), append(l.took, time.Since(begin))
					return
				}
				if l.refused++; len(l.why) < 5 {
					l.why = append(l.why, fmt.Sprint(status, " ", err))
				}
			})
		}
	})
	l.stop = func() {
		cancel()
		running.Wait()
	}
	return l
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted)
}

// more waits until n further orders were accepted.
func (l *load) more(t testing.TB, n int) {
	t.Helper()
	want := l.count() + n
	deadline := time.Now().Add(60 * time.Second)
	for l.count() < want {
		if time.Now().After(deadline) {
			t.Fatalf("only %d orders were accepted, want %d", l.count(), want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// finish stops the load and checks that every accepted order settles, with no effect
// lost or double.
func (w *world) finish(l *load) {
	w.t.Helper()
	l.stop()
	deadline := time.Now().Add(60 * time.Second)
	for {
		open := w.query("orderdb", `SELECT id::text FROM orders WHERE payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING')`)
		if len(open) == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d orders do not settle, the first: %s %+v", len(open), w.get(open[0]), w.get(open[0]).Timeline)
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.drained(30 * time.Second)
	known := set(w.query("orderdb", `SELECT id::text FROM orders`))
	for _, id := range l.accepted {
		if !known[id] {
			w.t.Errorf("order %s was accepted and is lost", id)
		}
	}
	w.audit()
	byStatus := w.query("orderdb", `SELECT status || ' ' || count(*) FROM orders GROUP BY status ORDER BY 1`)
	w.t.Logf("accepted %d, not accepted %d, in the end: %s", len(l.accepted), l.refused, strings.Join(byStatus, ", "))
	for _, db := range []string{"orderdb", "stockdb", "paymentdb"} {
		if letters := w.query(db, `SELECT topic || ' ' || error FROM dead_letters WHERE failed_at >= $1 LIMIT 5`, l.begun); len(letters) != 0 {
			w.t.Errorf("a fault made dead letters in %s: %q", db, letters)
		}
	}
}

// One system serves these tests, in this order: after the last one it has another PostgreSQL.
func TestFaults(t *testing.T) {
	run := start(t, 1).inTurn(t)
	run("poison goes aside", poison)
	run("each process is killed under load", killEach)
	run("the primary is killed, and a standby takes over", failover)
}

// Each process is killed once, with kill -9 and under load, and started again.
func killEach(w *world) {
	l := w.load(150, 1)
	for _, name := range []string{"order-service", "stock-service", "payment-service", devstack.Connect, devstack.Kafka, devstack.Postgres} {
		l.more(w.t, 60)
		begin := time.Now()
		w.Kill(name)
		time.Sleep(500 * time.Millisecond) // the others notice
		w.Restart(name)
		w.flows(name, begin)
	}
	l.more(w.t, 60)
	w.finish(l)
}

// flows waits until an order placed now settles: normal flow after a fault.
func (w *world) flows(fault string, since time.Time) {
	w.t.Helper()
	customer, sku := "", ""
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		if customer == "" {
			c, s := name("customer"), name("item")
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			a, _ := stacktest.Post(ctx, w.URL("payment-service", 0)+"/accounts/"+c+"/deposits", nil, `{"amount":100}`, nil)
			b, _ := stacktest.Post(ctx, w.URL("stock-service", 0)+"/items/"+s+"/receipts", nil, `{"quantity":1}`, nil)
			cancel()
			if a != http.StatusOK || b != http.StatusOK {
				continue
			}
			customer, sku = c, s
		}
		ctx, cancel := context.WithTimeout(context.Background(), 35*time.Second)
		var o order
		status, _ := stacktest.Post(ctx, w.URL("order-service", 0)+"/orders", http.Header{"Prefer": {"wait=30"}}, orderBody(customer, sku, 1, 1), &o)
		cancel()
		if status == http.StatusOK && o.Status == "SUCCESS" {
			w.t.Logf("%-16s killed, started again: an order settles %.1f s after the kill", fault, time.Since(since).Seconds())
			return
		}
		if status != 0 {
			customer = "" // its money or goods may be bound by an order whose answer was lost
		}
	}
	w.t.Fatalf("no order settles 60 s after %s was killed", fault)
}

// handled is how many events an instance has handled, from its metrics.
func handled(t testing.TB, url string) int {
	t.Helper()
	res, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var total int
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var n float64
		if strings.HasPrefix(line, "inbox_events_total") {
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err == nil {
				total += int(n)
			}
		}
	}
	return total
}
