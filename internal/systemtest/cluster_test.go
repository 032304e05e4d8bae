package systemtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"outboxsaga/internal/devstack"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
)

// Three brokers, two workers, two instances of every service: what one machine's failure does, and what
// an operator does to it on purpose. The bars are those of docs/operations.md; the tests allow twice as much,
// because they share the machine with others, and print what they measure. The race detector is not held to them.
func TestCluster(t *testing.T) {
	w := &world{stacktest.NewSystemShape(t, devstack.Shape{Brokers: 3, Workers: 2, Replicas: 2}, "SHUTDOWN_DELAY=1s"), t}
	b := newBalancer(w)
	run := func(name string, test func(w *world)) {
		if !t.Failed() { // what follows would fail for the same reason
			t.Run(name, func(t *testing.T) { test(&world{w.System, t}) })
		}
	}
	run("both instances work", func(w *world) {
		l := w.loadBy(pace(200), b.order)
		l.more(w.t, 300)
		l.stop()
		for _, s := range system.Services() {
			for i := range 2 {
				for end := time.Now().Add(30 * time.Second); handled(w.t, w.URL(s.Name, i)) == 0; time.Sleep(50 * time.Millisecond) {
					if time.Now().After(end) {
						w.t.Fatalf("instance %d of %s handles nothing", i+1, s.Name)
					}
				}
			}
		}
	})
	run("rolling restart", func(w *world) { w.rollingRestart(b) })
	run("service killed", func(w *world) {
		l := w.loadBy(pace(100), b.order)
		defer l.stop()
		var took []time.Duration
		for i, s := range system.Services() {
			name := devstack.Instance(s.Name, 1+i%2)
			took = append(took, w.takeover(b, name, syscall.SIGKILL))
			w.Restart(name)
		}
		w.bar("service", took, 3*time.Second)
	})
	run("worker killed", func(w *world) {
		took := w.takeover(b, devstack.Connect, syscall.SIGKILL)
		w.Restart(devstack.Connect)
		w.bar("worker", []time.Duration{took}, 10*time.Second)
	})
	run("broker killed", func(w *world) {
		var took []time.Duration
		for _, name := range w.BrokerNames()[1:] {
			took = append(took, w.takeover(b, name, syscall.SIGKILL))
			w.Restart(name)
		}
		w.bar("broker", took, 10*time.Second)
	})
	run("coordinator frozen", func(w *world) {
		l := w.loadBy(pace(50), b.order) // offsets to commit
		defer l.stop()
		name := w.coordinator("payment-service")
		defer w.signal(name, syscall.SIGCONT)
		w.takeover(b, name, syscall.SIGSTOP)
	})
	run("Kafka frozen", func(w *world) { w.kafkaFrozen() })
	run("Kafka down", func(w *world) { w.kafkaDown(b) })
	run("Postgres down", func(w *world) { w.postgresDown(b) })
	run("audit", func(w *world) { w.finish(&load{stop: func() {}}) })
}

// balancer sends requests for order-service to an instance that says it is ready, as a load balancer does. It
// tries another one only if there is no connection: then nobody has seen the request.
type balancer struct {
	w      *world
	client *http.Client
	next   atomic.Int64
	ready  [2]atomic.Bool
}

func newBalancer(w *world) *balancer {
	b := &balancer{w: w, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}}
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	for i := range b.ready {
		watching.Go(func() {
			for red := 0; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
				try, done := context.WithTimeout(ctx, time.Second)
				err := system.Ask(try, w.URL("order-service", i)+"/readyz")
				done()
				if red++; err == nil {
					red = 0
				}
				if red != 1 { // one bad answer is none
					b.ready[i].Store(red == 0)
				}
			}
		})
	}
	w.t.Cleanup(func() {
		stop()
		watching.Wait()
		b.client.CloseIdleConnections()
	})
	return b
}

// send makes one request and returns status, Retry-After and the answer.
func (b *balancer) send(ctx context.Context, method, path, body string) (status int, retryAfter, text string, err error) {
	err = errors.New("no instance is ready")
	for range 2 {
		i := int(b.next.Add(1)) % 2
		if !b.ready[i].Load() {
			if i = 1 - i; !b.ready[i].Load() {
				return 0, "", "", err
			}
		}
		var r *http.Request
		r, err = http.NewRequestWithContext(ctx, method, b.w.URL("order-service", i)+path, strings.NewReader(body))
		if err != nil {
			return 0, "", "", err
		}
		r.GetBody = nil // else the client itself sends again what may have been received
		r.Header.Set("Content-Type", "application/json")
		var res *http.Response
		if res, err = b.client.Do(r); err == nil {
			defer res.Body.Close()
			answer, err := io.ReadAll(res.Body)
			return res.StatusCode, res.Header.Get("Retry-After"), string(answer), err
		}
		var refused *net.OpError
		if !errors.As(err, &refused) || refused.Op != "dial" {
			return 0, "", "", err
		}
		b.ready[i].Store(false)
	}
	return 0, "", "", err
}

// order places an order: see [world.loadBy].
func (b *balancer) order(ctx context.Context, _ int, body string, out any) (int, error) {
	status, _, text, err := b.send(ctx, http.MethodPost, "/orders", body)
	if err == nil && status == http.StatusAccepted {
		_, err = fmt.Sscanf(text, `{"id":%q`, &out.(*order).ID)
	}
	return status, err
}

// placeBy places n orders that can all be paid for and delivered, and returns their ids. Other answers are tried again.
func (w *world) placeBy(b *balancer, customer, sku string, n int) []string {
	w.t.Helper()
	ids := make([]string, n)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			for end := time.Now().Add(30 * time.Second); ids[i] == "" && time.Now().Before(end); {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				var o order
				if status, err := b.order(ctx, 0, orderBody(customer, sku, 1, 1), &o); err == nil && status == http.StatusAccepted {
					ids[i] = o.ID
				}
				cancel()
			}
		})
	}
	all.Wait()
	if slices.Contains(ids, "") {
		w.t.Fatal("orders are not accepted")
	}
	return ids
}

// allSettled waits until orders are settled, and tells how long after begin.
func (w *world) allSettled(ids []string, begin time.Time, within time.Duration) time.Duration {
	w.t.Helper()
	for {
		var open int
		err := w.DB("orderdb").QueryRow(context.Background(), `SELECT count(*) FROM orders WHERE id = ANY($1::uuid[]) AND
			(payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING'))`, ids).Scan(&open)
		if err == nil && open == 0 {
			return time.Since(begin)
		}
		if time.Since(begin) > within { // an error is one of a connection that PostgreSQL's end has broken
			w.t.Fatalf("%d of %d orders are not settled after %s, %v", open, len(ids), within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// takeover kills or stops a process and measures how long it takes until all orders are settled that are placed at that
// moment: they spread over all partitions, so some wait for what the dead process had.
func (w *world) takeover(b *balancer, name string, signal syscall.Signal) time.Duration {
	w.t.Helper()
	w.steady(b)
	customer, sku := w.customer(1000), w.item(1000)
	begin := time.Now()
	w.signal(name, signal)
	took := w.allSettled(w.placeBy(b, customer, sku, 48), begin, time.Minute)
	w.t.Logf("%-18s %s: the others have taken over after %.1f s", name, signal, took.Seconds())
	return took
}

// coordinator is the broker that coordinates a consumer group.
func (w *world) coordinator(group string) string {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.Brokers()...))
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	found := kadm.NewClient(client).FindGroupCoordinators(w.t.Context(), group)[group]
	if found.Err != nil {
		w.t.Fatal(found.Err)
	}
	return devstack.Instance(devstack.Kafka, int(found.NodeID))
}

// steady returns once orders settle at once again.
func (w *world) steady(b *balancer) {
	w.t.Helper()
	customer, sku := w.customer(1000), w.item(1000)
	for {
		begin := time.Now()
		if w.allSettled(w.placeBy(b, customer, sku, 24), begin, time.Minute) < time.Second {
			return
		}
	}
}

// bar holds a median against twice the bar.
func (w *world) bar(what string, took []time.Duration, bar time.Duration) {
	w.t.Helper()
	slices.Sort(took)
	median := took[len(took)/2]
	w.t.Logf("%s killed: median %.1f s, worst %.1f s; the bar is %s", what, median.Seconds(), took[len(took)-1].Seconds(), bar)
	if median > 2*bar && !stacktest.Race {
		w.t.Errorf("%s killed: the median is %s, more than twice the bar of %s", what, median, bar)
	}
}

// pace is how many orders a second a load has: the race detector, three brokers and two workers leave fewer than four cores little.
func pace(perSecond int) int {
	if stacktest.Race && runtime.NumCPU() < 4 {
		return perSecond / 4
	}
	return perSecond
}

// All instances of all services are restarted one by one while orders come: no request fails, none is slow.
func (w *world) rollingRestart(b *balancer) {
	l := w.loadBy(pace(200), b.order)
	l.more(w.t, 200)
	begin, before := time.Now(), l.count()
	for _, s := range system.Services() {
		for i := range 2 {
			name := devstack.Instance(s.Name, i+1)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			if err := w.Stop(ctx, name); err != nil {
				w.t.Error(err)
			}
			cancel()
			w.Restart(name)
			for !b.ready[i].Load() { // else both are out for the balancer
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	took, n := time.Since(begin), l.count()-before
	l.more(w.t, 200)
	l.stop()
	w.allSettled(l.accepted, time.Now(), time.Minute)
	slices.Sort(l.took)
	p99 := l.took[len(l.took)*99/100]
	settle := w.query("orderdb", `SELECT format('p50 %s ms, p99 %s ms, worst %s ms',
		round(percentile_disc(0.5) WITHIN GROUP (ORDER BY ms)), round(percentile_disc(0.99) WITHIN GROUP (ORDER BY ms)), round(max(ms)))
		FROM (SELECT 1000 * extract(epoch FROM updated_at - created_at) AS ms FROM orders WHERE id = ANY($1::uuid[])) o`, l.accepted)
	w.t.Logf("six instances restarted in %.1f s with %d orders: %d requests failed; answers p50 %s, p99 %s, worst %s; settled after %s",
		took.Seconds(), n, l.refused, l.took[len(l.took)/2], p99, l.took[len(l.took)-1], settle[0])
	if l.refused != 0 {
		w.t.Errorf("%d requests failed, the first: %q", l.refused, l.why)
	}
	if p99 > time.Second && !stacktest.Race {
		w.t.Errorf("p99 is %s, the bar is 1 s", p99)
	}
}

// A broker that hangs takes no instance out of service, and delays no balancer's question, which waits for a second: two in a row that go
// wrong would take it out (debezium/haproxy.cfg).
func (w *world) kafkaFrozen() {
	for _, name := range w.BrokerNames() {
		w.signal(name, syscall.SIGSTOP)
		defer w.signal(name, syscall.SIGCONT)
	}
	var asking sync.WaitGroup
	for _, s := range system.Services() {
		for i := range 2 {
			asking.Go(func() {
				wrong := 0
				for range 5 {
					ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
					err := system.Ask(ctx, w.URL(s.Name, i)+"/readyz")
					cancel()
					if wrong++; err == nil {
						wrong = 0
					} else if wrong == 2 {
						w.t.Errorf("instance %d of %s: %v", i+1, s.Name, err)
					}
				}
			})
		}
	}
	asking.Wait()
}

// Without Kafka orders are taken nevertheless, and settle once it is back. KAFKA_DOWN says for how long.
func (w *world) kafkaDown(b *balancer) {
	down := 3 * time.Second
	if text := os.Getenv("KAFKA_DOWN"); text != "" {
		var err error
		if down, err = time.ParseDuration(text); err != nil {
			w.t.Fatalf("KAFKA_DOWN: %v", err)
		}
	}
	l := w.loadBy(pace(50), b.order)
	l.more(w.t, 50)
	for _, name := range w.BrokerNames() {
		w.Kill(name)
	}
	time.Sleep(down)
	during := l.count()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.UpOnly(ctx, w.BrokerNames()...); err != nil {
		w.t.Fatal(err)
	}
	begin := time.Now()
	l.more(w.t, 50)
	l.stop()
	if l.refused != 0 {
		w.t.Errorf("%d requests failed, the first: %q", l.refused, l.why)
	}
	took := w.allSettled(l.accepted, begin, time.Minute+down)
	w.t.Logf("Kafka down for %s: %d orders accepted until then, %d in all; all are settled %.1f s after its return", down, during, len(l.accepted), took.Seconds())
}

// Without its database a service answers soon that it cannot work: nobody hangs, also if the database does. When
// it is back, so is the service.
func (w *world) postgresDown(b *balancer) {
	customer, sku := w.customer(1000), w.item(1000)
	url := w.URL("order-service", 0) + "/orders"
	for _, c := range []struct {
		how    string
		down   syscall.Signal
		within time.Duration
	}{
		{"killed", syscall.SIGKILL, 3 * time.Second},
		{"stopped", syscall.SIGSTOP, 13 * time.Second}, // 10 s, and some for a busy machine
	} {
		processes := w.postgresProcesses()
		if c.down == syscall.SIGKILL {
			w.Kill(devstack.Postgres)
		} else {
			for _, pid := range processes {
				_ = syscall.Kill(pid, c.down)
			}
		}
		var asked sync.WaitGroup
		for _, body := range []string{orderBody(customer, sku, 1, 1), ""} {
			for range 5 {
				asked.Go(func() {
					method := http.MethodPost
					if body == "" {
						method = http.MethodGet
					}
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					defer cancel()
					r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
					if err != nil {
						w.t.Error(err)
						return
					}
					r.Header.Set("Content-Type", "application/json")
					begin := time.Now()
					res, err := b.client.Do(r)
					if err != nil {
						w.t.Error(err)
						return
					}
					res.Body.Close()
					took := time.Since(begin)
					if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || took > c.within {
						w.t.Errorf("PostgreSQL %s: %s %s answers %s, Retry-After %q, after %s", c.how, method, url, res.Status, res.Header.Get("Retry-After"), took)
					}
				})
			}
		}
		asked.Wait()
		back := time.Now()
		if c.down == syscall.SIGKILL {
			w.Restart(devstack.Postgres)
		} else {
			for _, pid := range processes {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		}
		took := w.allSettled(w.placeBy(b, customer, sku, 24), back, time.Minute)
		w.t.Logf("PostgreSQL %s: an order is settled %.1f s after its return began", c.how, took.Seconds())
	}
}

// postgresProcesses are the server and its children: stopping it alone would not stop them.
func (w *world) postgresProcesses() []int {
	pid, running := w.PID(devstack.Postgres)
	if !running {
		w.t.Fatal("PostgreSQL does not run")
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		w.t.Skip("this system does not tell the children of a process:", err)
	}
	all := []int{pid}
	for _, word := range strings.Fields(string(text)) {
		var child int
		if _, err := fmt.Sscan(word, &child); err == nil {
			all = append(all, child)
		}
	}
	return all
}
