// Package servicetest drives a participant of the saga in tests: its batches on a real
// PostgreSQL, and its HTTP routes.
package servicetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/service"
	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"
)

// Pool is a pool on a fresh database with migrations, with the settings that services
// use. No goroutine that was started after it may outlive the test, so a test that needs
// more than one takes [Pools].
func Pool(t testing.TB, migrations []provision.Migrations) *service.Pool {
	t.Helper()
	return Pools(t, migrations)[0]
}

// Pools is [Pool] for several databases. The look for goroutines is one for all of them: pgx
// may leave one in the read of a connection whose write was slow, until the pool is closed.
func Pools(t testing.TB, migrations ...[]provision.Migrations) []*service.Pool {
	t.Helper()
	urls := make([]string, len(migrations))
	for i, m := range migrations {
		urls[i] = stacktest.Database(t, m...)
	}
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	pools := make([]*service.Pool, len(migrations))
	for i, url := range urls {
		config, err := service.PoolConfig(url, t.Name())
		if err != nil {
			t.Fatal(err)
		}
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		pools[i] = service.NewPool(pool)
	}
	return pools
}

// Participant is the consuming side of stock-service or payment-service.
type Participant struct {
	Pool   *service.Pool
	Decode func(inbox.Event) (any, error)
	Batch  func([]inbox.Event) inbox.Batch
}

// Deliver handles messages in one transaction, as the consumer does, each with a new event
// id, and returns what was sent, as "topic payload". After a collision with another
// transaction it tries again, as the consumer does.
func (p Participant) Deliver(ctx context.Context, messages ...events.Message) ([]string, error) {
	for {
		sent, err := p.try(ctx, messages)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "23505" || pg.Code == "40P01") {
			continue
		}
		return sent, err
	}
}

func (p Participant) try(ctx context.Context, messages []events.Message) ([]string, error) {
	received := make([]inbox.Event, len(messages))
	for i, m := range messages {
		row, err := service.Outbox(outbox.NewID(), m, "")
		if err != nil {
			return nil, err
		}
		ev := inbox.Event{ID: row.ID, Type: row.Type, Topic: row.Topic, Key: row.AggregateID, Payload: row.Payload}
		if ev.Body, err = p.Decode(ev); err != nil {
			return nil, err
		}
		received[i] = ev
	}
	work := p.Batch(received)
	var sent []string
	err := service.Transact(ctx, p.Pool, work.Load, func(b *pgx.Batch) error {
		var rows []outbox.Event
		for _, ev := range received {
			out, err := work.Decide(ev)
			if err != nil {
				return err
			}
			rows = append(rows, out...)
		}
		for _, row := range rows {
			sent = append(sent, row.Topic+" "+string(row.Payload))
		}
		work.Save(b)
		return outbox.Queue(b, rows...)
	})
	return sent, err
}

// Text reads one value as text, for comparisons.
func Text(t testing.TB, pool *service.Pool, sql string, args ...any) string {
	t.Helper()
	var text string
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

// OutboxTopics are those that the CHECK on the outbox lists, sorted.
func OutboxTopics(t testing.TB, pool *service.Pool) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `
SELECT m[1] FROM pg_constraint, regexp_matches(pg_get_constraintdef(oid), $$'([^']+)'$$, 'g') m
WHERE conname = 'outbox_topic' AND conrelid = 'outbox'::regclass ORDER BY m[1] COLLATE "C"`)
	if err != nil {
		t.Fatal(err)
	}
	topics, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return topics
}

// Request is one to a service's routes.
type Request struct {
	Method, Path string
	Body         string
	Header       map[string]string
}

// Send asks h. The answer's body is decoded into out, if that is not nil.
func Send(t testing.TB, h http.Handler, r Request, out any) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), r.Method, r.Path, strings.NewReader(r.Body))
	if r.Body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for key, value := range r.Header {
		req.Header.Set(key, value)
	}
	res := httptest.NewRecorder()
	h.ServeHTTP(res, req)
	if out != nil {
		d := json.NewDecoder(bytes.NewReader(res.Body.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(out); err != nil {
			t.Fatalf("%s %s: %d %.300s: %v", r.Method, r.Path, res.Code, res.Body, err)
		}
	}
	return res
}

// WantProblem checks that a request is refused with a status below 500, a problem's
// type (its end) and a detail that holds a text.
func WantProblem(t testing.TB, h http.Handler, r Request, status int, slug, detail string) {
	t.Helper()
	var problem service.Problem
	res := Send(t, h, r, &problem)
	at := fmt.Sprintf("%s %.80s %.80q", r.Method, r.Path, r.Body)
	if res.Code != status || problem.Status != status {
		t.Errorf("%s: status %d (in the body %d), want %d: %s", at, res.Code, problem.Status, status, problem.Detail)
	}
	if kind := res.Header().Get("Content-Type"); kind != "application/problem+json" {
		t.Errorf("%s: content type %q", at, kind)
	}
	if !strings.HasSuffix(problem.Type, ":"+slug) {
		t.Errorf("%s: type %q, want …:%s", at, problem.Type, slug)
	}
	if problem.Title == "" || !strings.Contains(problem.Detail, detail) {
		t.Errorf("%s: title %q, detail %q, want %q in it", at, problem.Title, problem.Detail, detail)
	}
}

// BadBodies are bodies that no POST may accept, by what is wrong. field is a field that
// takes a positive whole number.
func BadBodies(field string) map[string]string {
	return map[string]string{
		"empty":             "",
		"blank":             "  \n",
		"not JSON":          "hello",
		"cut off":           `{"` + field + `": 1`,
		"null":              "null",
		"array":             "[]",
		"number":            "7",
		"string":            `"x"`,
		"no field":          "{}",
		"unknown field":     `{"` + field + `": 1, "extra": true}`,
		"something after":   `{"` + field + `": 1} {}`,
		"bracket after":     `{"` + field + `": 1}]`,
		"text":              `{"` + field + `": "1"}`,
		"null value":        `{"` + field + `": null}`,
		"object":            `{"` + field + `": {}}`,
		"true":              `{"` + field + `": true}`,
		"zero":              `{"` + field + `": 0}`,
		"negative":          `{"` + field + `": -5}`,
		"fraction":          `{"` + field + `": 1.5}`,
		"exponent":          `{"` + field + `": 1e3}`,
		"overflow":          `{"` + field + `": 9223372036854775808}`,
		"far overflow":      `{"` + field + `": 1e999}`,
		"negative overflow": `{"` + field + `": -9223372036854775809}`,
		"beyond the bound":  `{"` + field + `": 9223372036854775807}`,
		"NaN":               `{"` + field + `": NaN}`,
		"hexadecimal":       `{"` + field + `": 0x10}`,
		"leading zero":      `{"` + field + `": 010}`,
		"NUL byte":          "{\"" + field + "\": 1\x00}",
		"NUL escape":        `{"` + field + `": 1, "\u0000": 1}`,
		"not UTF-8":         "{\"" + field + "\": \"\xff\"}",
		"huge":              `{"` + field + `": 1` + strings.Repeat(" ", 70_000) + `}`,
		"deep":              strings.Repeat("[", 30_000),
	}
}

// BadNames are path segments that no route may take for a customer or an SKU.
func BadNames() []string {
	return []string{"a%20b", "%00", "a%00b", "%ff", "%E2%82%AC", "a'b", "a%22b", "a;b", "a,b", "%25", "a+b", strings.Repeat("x", 101), "."}
}
