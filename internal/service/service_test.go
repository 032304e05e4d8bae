package service_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/service"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"
	"outboxsaga/outbox"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
)

func TestHealthAndMetrics(t *testing.T) {
	p := start(t, nil)
	if status, body := p.ask("GET", "/healthz", "", ""); status != 200 || body != "{\"status\":\"ok\"}\n" {
		t.Error(status, body)
	}
	if status, body := p.ask("HEAD", "/healthz", "", ""); status != 200 || body != "" {
		t.Error(status, body)
	}
	status, body := p.ask("GET", "/readyz", "", "")
	if want := `{"checks":{"consumer":"ok","database":"ok","partitions":"ok","running":"ok"},"ready":true}` + "\n"; status != 200 || body != want {
		t.Error(status, body)
	}
	p.ask("GET", "/dead-letters/"+outbox.NewID().String(), "", "")
	p.ask("GET", "/no/such/path", "", "")
	status, body = p.ask("GET", "/metrics", "", "")
	for _, want := range []string{
		`http_request_duration_seconds_count{code="404",method="GET",route="/dead-letters/{id}"} 1`,
		`http_request_duration_seconds_count{code="404",method="other",route="none"} 1`,
		`inbox_events_total{result="fresh"} 0`, "go_goroutines", "db_pool_in_use", "inbox_faults_total 0", "inbox_records_lost_total 0", "backpressure_wait_seconds_total 0",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%d: no %s", status, want)
		}
	}
	// Partitions of tomorrow are part of being ready.
	day := time.Now().UTC().AddDate(0, 0, 1)
	for i := range 8 {
		if _, err := p.pool.Exec(t.Context(), "DROP TABLE IF EXISTS inbox_"+day.AddDate(0, 0, i).Format("20060102")); err != nil {
			t.Fatal(err)
		}
	}
	if status, body := p.ask("GET", "/readyz", "", ""); status != 503 || !strings.Contains(body, "the partitions of inbox end at") || !strings.Contains(body, `"ready":false`) {
		t.Error(status, body)
	}
}

func TestDeadLettersOverHTTP(t *testing.T) {
	p := start(t, nil)
	order, event := outbox.NewID().String(), outbox.NewID().String()
	p.handled.set(true)
	p.produce("", order, compensation(order))    // no id: never an event
	p.produce(event, order, compensation(order)) // refused by a handler that will be mended
	p.await("two dead letters", func() bool { return p.text(`SELECT count(*)::text FROM dead_letters`) == "2" })

	status, body := p.ask("GET", "/dead-letters?status=open&limit=1", "", "")
	if status != 200 || strings.Count(body, `"event_id"`) != 1 || !strings.Contains(body, `"next_cursor":"`) || strings.Contains(body, `"payload":`) {
		t.Error(status, body)
	}
	topic := p.text(`SELECT min(topic) FROM dead_letters`)
	for query, want := range map[string]int{
		"?topic=" + topic: 2, "?topic=another": 0, "?event_type=another": 0,
		"?status=open&event_type=" + events.TypeStockCompensationRequested + "&topic=" + topic: 2,
	} {
		if _, body := p.ask("GET", "/dead-letters"+query, "", ""); strings.Count(body, `"event_id"`) != want {
			t.Errorf("%s: not %d dead letters: %s", query, want, body)
		}
	}
	noEvent := p.text(`SELECT id::text FROM dead_letters WHERE event_id = ''`)
	refused := p.text(`SELECT id::text FROM dead_letters WHERE event_id <> ''`)
	status, body = p.ask("GET", "/dead-letters/"+refused, "", "")
	for _, want := range []string{`"payload":` + compensation(order), `"error":"the handler is broken"`, `"event_id":"` + event + `"`, `"key":"` + order + `"`, `"status":"open"`} {
		if !strings.Contains(body, want) {
			t.Errorf("%d %s: no %s", status, body, want)
		}
	}
	announced := p.text(`SELECT string_agg(topic || ' ' || type || ' ' || aggregate_id, E'\n') FROM outbox`)
	if line := fmt.Sprintf("stock.dlt stock.dead_lettered %s", order); announced != line+"\n"+line {
		t.Error(announced)
	}

	for _, c := range []struct {
		method, path, body string
		status             int
		slug               string
	}{
		{"GET", "/dead-letters?status=closed", "", 400, "bad-value"},
		{"GET", "/dead-letters?event_type=%00", "", 400, "bad-value"},
		{"GET", "/dead-letters?topic=%00", "", 400, "bad-value"},
		{"GET", "/dead-letters?cursor=YQ", "", 400, "bad-cursor"},
		{"GET", "/dead-letters/x", "", 400, "bad-value"},
		{"GET", "/dead-letters/" + outbox.NewID().String(), "", 404, "dead-letter-not-found"},
		{"POST", "/dead-letters/x/redrive", "", 400, "bad-value"},
		{"POST", "/dead-letters/" + outbox.NewID().String() + "/redrive", "", 404, "dead-letter-not-found"},
		{"POST", "/dead-letters/" + noEvent + "/redrive", "", 422, "dead-letter-not-redrivable"},
		{"POST", "/dead-letters/" + refused + "/redrive", "", 422, "redrive-failed"},
		{"POST", "/dead-letters/" + noEvent + "/discard", "", 400, "malformed-json"},
		{"POST", "/dead-letters/" + noEvent + "/discard", `{}`, 400, "bad-value"},
		{"POST", "/dead-letters/" + noEvent + "/discard", `{"reason":" "}`, 400, "bad-value"},
		{"POST", "/dead-letters/" + noEvent + "/discard", `{"reason":"\u0000"}`, 400, "malformed-json"},
		{"POST", "/dead-letters/" + outbox.NewID().String() + "/discard", `{"reason":"x"}`, 404, "dead-letter-not-found"},
		{"DELETE", "/dead-letters/" + noEvent, "", 405, "method-not-allowed"},
	} {
		status, body := p.ask(c.method, c.path, c.body, "")
		if status != c.status || !strings.Contains(body, `:problem:`+c.slug+`"`) {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, body)
		}
	}

	p.handled.set(false)
	if status, body := p.ask("POST", "/dead-letters/"+refused+"/redrive", "", "zoé"); status != 200 || !strings.Contains(body, `"redriven"`) {
		t.Error(status, body)
	}
	if status, body := p.ask("POST", "/dead-letters/"+refused+"/redrive", "", ""); status != 409 {
		t.Error(status, body)
	}
	if status, body := p.ask("POST", "/dead-letters/"+noEvent+"/discard", `{"reason":"a test"}`, ""); status != 200 {
		t.Error(status, body)
	}
	got := p.text(`SELECT string_agg(status || ' ' || resolved_by || ' ' || coalesce(reason, ''), E'\n' ORDER BY status) FROM dead_letters`)
	if got != "discarded http a test\nredriven zoé " {
		t.Errorf("%q", got)
	}
	if n := p.handled.counts[order]; n != 1 {
		t.Error(n, "effects")
	}
	if status, body := p.ask("GET", "/dead-letters?status=open", "", ""); status != 200 || body != "{\"dead_letters\":[],\"next_cursor\":null}\n" {
		t.Error(status, body)
	}
}

// A page has as many as were asked for, though they are read some at a time.
func TestManyDeadLetters(t *testing.T) {
	p := start(t, nil)
	if _, err := p.pool.Exec(t.Context(), `
INSERT INTO dead_letters (id, event_id, event_type, topic, partition, "offset", recorded_at, key, payload, traceparent, error, attempts, failed_at)
SELECT uuidv7(n * interval '1 s'), n, '', CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd' END, 0, n, now(), '', '', '', '', 1, now() FROM generate_series(1, 502) n`); err != nil {
		t.Fatal(err)
	}
	var page struct {
		Letters []struct {
			EventID string `json:"event_id"`
		} `json:"dead_letters"`
		Next *string `json:"next_cursor"`
	}
	for _, c := range []struct {
		query          string
		from, to, step int // event ids
		more           bool
	}{
		{"", 1, 50, 1, true},
		{"?limit=19", 1, 19, 1, true},
		{"?limit=20", 1, 20, 1, true},
		{"?topic=even&limit=120", 2, 240, 2, true},
		{"?topic=odd&limit=250", 1, 499, 2, true},
		{"?topic=odd&limit=251", 1, 501, 2, false},
		{"?limit=500", 1, 500, 1, true},
		{"?limit=500&cursor=", 501, 502, 1, false}, // of the page before
	} {
		if strings.HasSuffix(c.query, "cursor=") {
			c.query += *page.Next
		}
		_, body := p.ask("GET", "/dead-letters"+c.query, "", "")
		page.Letters, page.Next = nil, nil
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatal(err, body)
		}
		var got, want []string
		for _, l := range page.Letters {
			got = append(got, l.EventID)
		}
		for n := c.from; n <= c.to; n += c.step {
			want = append(want, fmt.Sprint(n))
		}
		if !slices.Equal(got, want) || (page.Next != nil) != c.more {
			t.Fatalf("%s: %d dead letters, want %d, and more: %t: %v", c.query, len(got), len(want), c.more, got)
		}
	}
}

// After the start a fault of the database is waited out: requests get 503 at most, and
// consuming goes on when it is over.
func TestLostConnectionsAreSurvived(t *testing.T) {
	p := start(t, nil)
	for round := range 3 {
		if _, err := p.pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
		if status, body := p.ask("GET", "/dead-letters", "", ""); status != 200 && status != 503 {
			t.Error(status, body)
		}
		order := outbox.NewID().String()
		p.produce(outbox.NewID().String(), order, compensation(order))
		p.await("the event", func() bool { return p.text(`SELECT count(*)::text FROM inbox`) == fmt.Sprint(round+1) })
	}
	p.await("readiness", func() bool { status, _ := p.ask("GET", "/readyz", "", ""); return status == 200 })
}

// While the consumer has a backlog, new work waits for its turn; with each transaction of the consumer something of it goes ahead.
func TestABacklogHoldsNewWorkBack(t *testing.T) {
	p := start(t, nil)
	ctx, stop := context.WithTimeout(t.Context(), 40*time.Second)
	defer stop()
	writer := service.NewGather(1, 1, func(context.Context, []int) ([]service.Result[int], error) {
		time.Sleep(time.Millisecond) // as one that writes
		return make([]service.Result[int], 1), nil
	})
	writer.Backpressure = p.runtime.Backpressure
	stopped := make(chan error, 1)
	go func() { stopped <- writer.Run(ctx) }()

	// Nothing is consumed until all is there.
	hold, err := p.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Rollback(context.WithoutCancel(ctx))
	if _, err := hold.Exec(ctx, `LOCK TABLE inbox IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	order := outbox.NewID().String()
	backlog := make([]*kgo.Record, 5000)
	for i := range backlog {
		backlog[i] = p.record(outbox.NewID().String(), order, compensation(order))
	}
	if err := p.kafka.ProduceSync(ctx, backlog...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := hold.Rollback(ctx); err != nil {
		t.Fatal(err)
	}

	held := 0
	for p.handled.of(order) < len(backlog) {
		before := p.runtime.Backpressure.Waits()
		if _, err := writer.Do(ctx, 1); err != nil {
			t.Fatal(err)
		}
		if p.runtime.Backpressure.Waits() > before {
			held++
		}
	}
	if held < 5 { // of some ten transactions
		t.Errorf("new work was held back %d times", held)
	}
	if _, body := p.ask("GET", "/metrics", "", ""); !strings.Contains(body, "\nbackpressure_wait_seconds_total ") || strings.Contains(body, "\nbackpressure_wait_seconds_total 0\n") {
		t.Error("the metric does not tell of it")
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestShutdownFinishesRequests(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var stopped sync.WaitGroup
	stopped.Add(1)
	p := start(t, func(r *mux.Router) {
		r.Handle("/slow", service.Handle(func(w http.ResponseWriter, r *http.Request) error {
			close(entered)
			<-release
			return service.WriteJSON(w, 200, "done")
		}))
	}, func(ctx context.Context) error { // alive until the last request is answered
		defer stopped.Done()
		<-ctx.Done()
		select {
		case <-release:
			return nil
		default:
			return errors.New("background work was ended before the requests")
		}
	})
	answered := make(chan string, 1)
	go func() {
		status, body := p.ask("GET", "/slow", "", "")
		answered <- fmt.Sprint(status, body)
	}()
	<-entered
	p.stop()
	p.await("the listener to close", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(release)
	if got := <-answered; got != "200\"done\"\n" {
		t.Error(got)
	}
	stopped.Wait()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
	close(p.done)
	if log := p.log.String(); !strings.Contains(log, "msg=stopped") || strings.Contains(log, "level=WARN") {
		t.Error(log)
	}
}

// A balancer needs a moment to see that readyz is red. Until then requests are served, and each connection
// is closed with its answer, so that none is left when the service ends.
func TestShutdownGivesBalancersTime(t *testing.T) {
	const delay = 700 * time.Millisecond
	p := startWith(t, delay.String(), nil)
	begin := time.Now()
	p.stop()
	p.await("readyz to turn red", func() bool {
		status, body := p.ask("GET", "/readyz", "", "")
		return status == 503 && strings.Contains(body, "the service is stopping")
	})
	res, err := http.Get(p.url + "/dead-letters")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 || !res.Close {
		t.Errorf("%s, the connection is closed: %t", res.Status, res.Close)
	}
	if err := <-p.done; err != nil {
		t.Error(err)
	}
	close(p.done)
	if took := time.Since(begin); took < delay {
		t.Errorf("it ended after %s, the delay is %s", took, delay)
	}
}

func TestBackgroundErrorEndsTheService(t *testing.T) {
	fail := make(chan struct{})
	p := start(t, nil, func(ctx context.Context) error {
		select {
		case <-fail:
			return errors.New("the sweeper broke")
		case <-ctx.Done():
			return nil
		}
	})
	close(fail)
	if err := <-p.done; err == nil || err.Error() != "the sweeper broke" {
		t.Error(err)
	}
	close(p.done)
}

// What is wrong at the start is one clear line, soon.
func TestStartFails(t *testing.T) {
	url, brokers, topic := stacktest.Database(t, system.SharedMigrations()...), stacktest.Brokers(t), stacktest.Topic(t, 1)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	own := fstest.MapFS{"000002_x.up.sql": &fstest.MapFile{}}
	altered := func(statement string) string {
		url := stacktest.Database(t, system.SharedMigrations()...)
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
		return url
	}
	for name, c := range map[string]struct {
		url, brokers, addr, topic string
		migrations                fstest.MapFS
		open                      error
		partitions                int
		want                      string
	}{
		"no publication":       {url: altered(`DROP PUBLICATION outbox_pub`), want: "the publication outbox_pub is missing"},
		"not by its root":      {url: altered(`ALTER PUBLICATION outbox_pub SET (publish_via_partition_root = false)`), want: "publish_via_partition_root = true"},
		"not the outbox":       {url: altered(`ALTER PUBLICATION outbox_pub SET TABLE inbox`), want: "does not have the table outbox"},
		"other partitions":     {partitions: 6, want: "has 1 partitions, it must have 6"},
		"nothing listens":      {url: "postgres://u:s3cret@127.0.0.1:1/db", want: "no connection to DATABASE_URL"},
		"no such database":     {url: strings.Replace(url, "/test_", "/nowhere_", 1), want: "no connection to DATABASE_URL"},
		"no tables":            {url: stacktest.Database(t), want: "version 0 of outbox_migrations, this program needs 9: run the migrations"},
		"older than the code":  {migrations: own, want: "version 0 of schema_migrations, this program needs 2"},
		"no broker":            {brokers: "127.0.0.1:1", want: "no answer from Kafka at [127.0.0.1:1]"},
		"no such topic":        {topic: "nowhere", want: `topic "nowhere": create it first`},
		"taken port":           {addr: taken.Addr().String(), want: "cannot listen on HTTP_ADDR"},
		"the domain says no":   {open: errors.New("no, says the domain"), want: "no, says the domain"},
		"no topics configured": {topic: "-", want: "Topics"},
	} {
		t.Run(name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			defer goleak.VerifyNone(t, leaks)
			env := map[string]string{"DATABASE_URL": or(c.url, url), "KAFKA_BROKERS": or(c.brokers, brokers[0]), "HTTP_ADDR": c.addr}
			begin := time.Now()
			err := service.Run(t.Context(), func(name string) string { return env[name] }, io.Discard, "group", "127.0.0.1:0",
				func(service.Runtime) (service.Service, error) {
					svc := service.Service{Topics: []string{or(c.topic, topic)}, Partitions: c.partitions, Batch: (&counter{}).batch, DeadLetterTopic: "x", DeadLetterType: "x"}
					if c.topic == "-" {
						svc.Topics = nil
					}
					if c.migrations != nil {
						svc.Migrations = c.migrations
					}
					return svc, c.open
				})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := time.Since(begin); took > 11*time.Second {
				t.Error("it took", took)
			}
		})
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
