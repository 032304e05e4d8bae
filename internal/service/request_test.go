package service

import (
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/mux"
	"github.com/jackc/pgx/v5/pgconn"
)

type body struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
	Items []struct {
		Quantity int64 `json:"quantity"`
	} `json:"items"`
}

func post(text, contentType string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(text))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return r
}

func TestReadJSON(t *testing.T) {
	for _, c := range []struct {
		text, contentType string
		status            int // 0: accepted
		slug, detail      string
	}{
		{text: ` {"name":"a","count":9223372036854775807} `},
		{text: `{"name":"a\\u0000"}`, contentType: "application/json; charset=utf-8"}, // a backslash, no NUL
		{text: `{}`},
		{text: `{"name":"a"}`, contentType: "text/plain", status: 415, slug: "unsupported-media-type", detail: "text/plain"},
		{text: `{"name":"a"}`, contentType: ";", status: 415, slug: "unsupported-media-type"},
		{text: "", status: 400, slug: "malformed-json", detail: "empty"},
		{text: "null", status: 400, slug: "malformed-json", detail: "object"},
		{text: "[1]", status: 400, slug: "malformed-json", detail: "object"},
		{text: `{"name":"a"`, status: 400, slug: "malformed-json", detail: "ends"},
		{text: `{"name":a}`, status: 400, slug: "malformed-json", detail: "byte 9"},
		{text: `{"name":"a"} x`, status: 400, slug: "malformed-json", detail: "after"},
		{text: `{"nam":"a"}`, status: 400, slug: "unknown-field", detail: `"nam"`},
		{text: `{"items":[{"quantity":1,"x":1}]}`, status: 400, slug: "unknown-field", detail: `"items[0].x"`},
		{text: `{"items":[{"quantity":1},{"quantity":1}],"name":"count","count":1}`},
		{text: `{"Name":"a"}`, status: 400, slug: "unknown-field", detail: `"Name"`},
		{text: `{"items":[],"item\u017f":[]}`, status: 400, slug: "unknown-field", detail: `"itemſ"`}, // folds to an s
		{text: `{"name":"name","items":[{"Quantity":1}]}`, status: 400, slug: "unknown-field", detail: `"items[0].Quantity"`},
		{text: `{"name":"a","count":1,"name":"a"}`, status: 400, slug: "malformed-json", detail: `"name" comes twice`},
		{text: `{"items":[{"quantity":1,"\u0071uantity":2}]}`, status: 400, slug: "malformed-json", detail: `"items[0].quantity" comes twice`},
		{text: `{"name":7}`, status: 400, slug: "bad-value", detail: `"name" must be a string, not a number`},
		{text: `{"count":"7"}`, status: 400, slug: "bad-value", detail: `"count" must be a whole number, not a string`},
		{text: `{"count":1.5}`, status: 400, slug: "bad-value", detail: `not 1.5`},
		{text: `{"count":1e400}`, status: 400, slug: "bad-value", detail: `not 1e400`},
		{text: `{"count":9223372036854775808}`, status: 400, slug: "bad-value", detail: `"count"`},
		{text: `{"items":{}}`, status: 400, slug: "bad-value", detail: `"items" must be an array, not an object`},
		{text: `{"items":[{"quantity":true}]}`, status: 400, slug: "bad-value", detail: `"items[0].quantity" must be a whole number, not true`},
		{text: `{"name":"\u0000"}`, status: 400, slug: "malformed-json", detail: "NUL"},
		{text: `{"name":"\\\u0000"}`, status: 400, slug: "malformed-json", detail: "NUL"},
		{text: "{\"name\":\"\x00\"}", status: 400, slug: "malformed-json"},
		{text: "{\"name\":\"\xff\"}", status: 400, slug: "malformed-json", detail: "UTF-8"},
		{text: `{"name":"` + strings.Repeat("x", maxBody) + `"}`, status: 413, slug: "too-large", detail: "65536"},
	} {
		var v body
		err := ReadJSON(httptest.NewRecorder(), post(c.text, c.contentType), &v)
		if c.status == 0 {
			if err != nil {
				t.Errorf("%.60s: %v", c.text, err)
			}
			continue
		}
		var p *Problem
		if !errors.As(err, &p) || p.Status != c.status || p.Type != problemType+c.slug || !strings.Contains(p.Detail, c.detail) {
			t.Errorf("%.60s: %+v", c.text, err)
		}
	}
}

func BenchmarkReadJSON(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		var v body
		if err := ReadJSON(httptest.NewRecorder(), post(`{"name":"customer-123","count":3000,"items":[{"quantity":3}]}`, "application/json"), &v); err != nil {
			b.Fatal(err)
		}
	}
}

func TestReadPage(t *testing.T) {
	cursor := base64.RawURLEncoding.EncodeToString([]byte("sku/ä"))
	p, err := ReadPage(httptest.NewRequest("GET", "/?limit=7&cursor="+cursor, nil))
	if err != nil || p != (Page{Limit: 7, Cursor: "sku/ä"}) {
		t.Error(p, err)
	}
	if p, err := ReadPage(httptest.NewRequest("GET", "/", nil)); err != nil || p != (Page{Limit: 50}) {
		t.Error(p, err)
	}
	for _, query := range []string{"limit=0", "limit=501", "limit=-1", "limit=x", "limit=1.5", "limit=99999999999999999999", "cursor=!", "cursor=AA", "cursor=_w", "cursor=" + strings.Repeat("YWFh", 500)} {
		if p, err := ReadPage(httptest.NewRequest("GET", "/?"+query, nil)); err == nil {
			t.Errorf("%s: %+v", query, p)
		}
	}
}

func TestName(t *testing.T) {
	for _, good := range []string{"a", "alice@example.com", "A_b-c.d:9", strings.Repeat("x", 100), "..."} {
		if err := Name("sku", good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", strings.Repeat("x", 101), "a b", "a/b", "ä", "a\x00", "a\n", "a'", "%", "\xff"} {
		if err := Name("sku", bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestReadIdempotencyKey(t *testing.T) {
	request := func(keys ...string) *http.Request {
		r := post("{}", "")
		for _, k := range keys {
			r.Header.Add("Idempotency-Key", k)
		}
		return r
	}
	none, err := ReadIdempotencyKey(request(), "order", 1)
	if none != nil || err != nil {
		t.Error(none, err)
	}
	a, err := ReadIdempotencyKey(request("k"), "order", map[string]int{"x": 1})
	if err != nil || a.Scope != "order" || a.Key != "k" {
		t.Fatal(a, err)
	}
	b, _ := ReadIdempotencyKey(request("k"), "order", map[string]int{"x": 1})
	c, _ := ReadIdempotencyKey(request("k"), "order", map[string]int{"x": 2})
	if a.Hash != b.Hash || a.Hash == c.Hash {
		t.Error("the hash does not tell requests apart")
	}
	for _, bad := range [][]string{{""}, {strings.Repeat("k", 256)}, {"ä"}, {"a\tb"}, {"a", "a"}} {
		if key, err := ReadIdempotencyKey(request(bad...), "order", 1); err == nil {
			t.Errorf("%q: %+v", bad, key)
		}
	}
}

func TestHandle(t *testing.T) {
	var log strings.Builder
	previous := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(previous)
	for name, c := range map[string]struct {
		f      func(w http.ResponseWriter, r *http.Request) error
		status int
		retry  string
		logged int
	}{
		"fine":        {f: func(w http.ResponseWriter, r *http.Request) error { return WriteJSON(w, 202, 1) }, status: 202},
		"problem":     {f: func(http.ResponseWriter, *http.Request) error { return Conflict("x", "no") }, status: 409},
		"wrapped":     {f: func(http.ResponseWriter, *http.Request) error { return errors.Join(NotFound("x", "no")) }, status: 404},
		"unavailable": {f: func(http.ResponseWriter, *http.Request) error { return &pgconn.PgError{Code: "57P01"} }, status: 503, retry: "1", logged: 1},
		"cut off":     {f: func(http.ResponseWriter, *http.Request) error { return io.ErrUnexpectedEOF }, status: 503, retry: "1", logged: 1},
		"bug":         {f: func(http.ResponseWriter, *http.Request) error { return errors.New("secret reason") }, status: 500, logged: 1},
		"panic":       {f: func(http.ResponseWriter, *http.Request) error { panic("secret reason") }, status: 500, logged: 1},
	} {
		log.Reset()
		w := httptest.NewRecorder()
		Handle(c.f).ServeHTTP(w, post("", ""))
		if w.Code != c.status || w.Header().Get("Retry-After") != c.retry {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
		if w.Code >= 400 && (w.Header().Get("Content-Type") != "application/problem+json" || strings.Contains(w.Body.String(), "secret")) {
			t.Errorf("%s: %v %s", name, w.Header(), w.Body)
		}
		if n := strings.Count(log.String(), "level="); n != c.logged {
			t.Errorf("%s: logged %d times: %s", name, n, &log)
		}
	}
}

func TestNotFoundAndNotAllowedAreProblems(t *testing.T) {
	router := NewRouter()
	ok := Handle(func(w http.ResponseWriter, r *http.Request) error { return WriteJSON(w, 200, mux.Vars(r)["x"]) })
	router.Handle("/a/{x}", ok).Methods(http.MethodGet)
	router.Handle("/a/{x}", ok).Methods(http.MethodPost)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/a/1", 200, ""}, {"POST", "/a/1", 200, ""},
		{"DELETE", "/a/1", 405, "GET, HEAD, POST"}, {"PATCH", "/a/1", 405, "GET, HEAD, POST"},
		{"GET", "/a", 404, ""}, {"GET", "/a//", 404, ""}, {"GET", "/a/1/2", 404, ""}, {"GET", "/a/%2F", 404, ""},
	} {
		w := httptest.NewRecorder()
		router.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		if w.Code != c.status || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s: %d %v", c.method, c.path, w.Code, w.Header())
		}
		if w.Code >= 400 && w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %s", c.method, c.path, w.Body)
		}
	}
}
