package order_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/order-service/order"
	"outboxsaga/outbox"

	"github.com/google/uuid"
)

func (o office) routes() http.Handler {
	router := service.NewRouter()
	o.Routes(router)
	return router
}

func post(body string, header ...string) servicetest.Request {
	r := servicetest.Request{Method: "POST", Path: "/orders", Body: body, Header: map[string]string{}}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = header[i+1]
	}
	return r
}

func get(path string) servicetest.Request { return servicetest.Request{Method: "GET", Path: path} }

const good = `{"customer_id":"alice","items":[{"sku":"book","quantity":2,"unit_price":1500},{"sku":"pen","quantity":1,"unit_price":1}]}`

func TestPostAndGetOrder(t *testing.T) {
	o := open(t, time.Hour)
	h := o.routes()
	var placed, read map[string]any
	res := servicetest.Send(t, h, post(good), &placed)
	if res.Code != 202 {
		t.Fatal(res.Code, res.Body)
	}
	location := res.Header().Get("Location")
	if location != "/orders/"+placed["id"].(string) {
		t.Error(location)
	}
	if res := servicetest.Send(t, h, get(location), &read); res.Code != 200 {
		t.Fatal(res.Code, res.Body)
	}
	// The answer to POST is what a GET would have shown.
	for field, want := range read {
		if got := placed[field]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: posted %v, read %v", field, got, want)
		}
	}
	want := []string{"amount", "created_at", "customer_id", "failure_reason", "id", "items", "payment", "settled", "status", "stock", "timeline", "updated_at"}
	var got []string
	for field := range read {
		got = append(got, field)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if read["amount"] != 3001.0 || read["customer_id"] != "alice" || read["status"] != "IN_PROGRESS" || read["failure_reason"] != nil || read["settled"] != false ||
		fmt.Sprint(read["items"]) != "[map[quantity:2 sku:book unit_price:1500] map[quantity:1 sku:pen unit_price:1]]" {
		t.Error(read)
	}
}

func TestUnknownOrders(t *testing.T) {
	o := open(t, time.Hour)
	h := o.routes()
	none := outbox.NewID().String()
	for _, r := range []servicetest.Request{get("/orders/" + none), {Method: "POST", Path: "/orders/" + none + "/cancel"}} {
		servicetest.WantProblem(t, h, r, 404, "order-not-found", none)
	}
	for _, id := range []string{"x", "%00", "1234", none[:35], "%7B" + none + "%7D", "'%20OR%201=1", strings.Repeat("a", 500)} {
		servicetest.WantProblem(t, h, get("/orders/"+id), 400, "bad-value", "UUID")
		servicetest.WantProblem(t, h, servicetest.Request{Method: "POST", Path: "/orders/" + id + "/cancel"}, 400, "bad-value", "UUID")
	}
	servicetest.WantProblem(t, h, servicetest.Request{Method: "DELETE", Path: "/orders/" + none}, 405, "method-not-allowed", "GET")
	servicetest.WantProblem(t, h, servicetest.Request{Method: "PUT", Path: "/orders"}, 405, "method-not-allowed", "POST")
}

func TestBadOrders(t *testing.T) {
	o := open(t, time.Hour)
	h := o.routes()
	item := func(sku, quantity, price string) string {
		return `{"customer_id":"alice","items":[{"sku":` + sku + `,"quantity":` + quantity + `,"unit_price":` + price + `}]}`
	}
	lines := func(n int, line string) string {
		return `{"customer_id":"alice","items":[` + strings.TrimSuffix(strings.Repeat(line+",", n), ",") + `]}`
	}
	for name, c := range map[string]struct{ body, detail string }{
		"no customer":         {`{"items":[{"sku":"a","quantity":1,"unit_price":1}]}`, `"customer_id" is missing`},
		"customer with blank": {strings.Replace(good, "alice", "al ice", 1), "customer_id"},
		"customer with quote": {strings.Replace(good, "alice", "al'ice", 1), "customer_id"},
		"customer with NUL":   {strings.Replace(good, "alice", `al\u0000ice`, 1), "NUL"},
		"customer too long":   {strings.Replace(good, "alice", strings.Repeat("a", 101), 1), "1 to 100"},
		"customer a number":   {strings.Replace(good, `"alice"`, "7", 1), "a string"},
		"no items":            {`{"customer_id":"alice"}`, "1 to 100 lines"},
		"empty items":         {`{"customer_id":"alice","items":[]}`, "1 to 100 lines"},
		"null items":          {`{"customer_id":"alice","items":null}`, "1 to 100 lines"},
		"items an object":     {`{"customer_id":"alice","items":{}}`, "an array"},
		"a null item":         {`{"customer_id":"alice","items":[null]}`, `items[0].sku`},
		"101 lines":           {lines(101, `{"sku":"a","quantity":1,"unit_price":1}`), "1 to 100 lines, it has 101"},
		"no sku":              {`{"customer_id":"alice","items":[{"quantity":1,"unit_price":1}]}`, `items[0].sku`},
		"odd sku":             {item(`"a/b"`, "1", "1"), `items[0].sku`},
		"sku a path":          {item(`".."`, "1", "1"), `items[0].sku`},
		"no quantity":         {`{"customer_id":"alice","items":[{"sku":"a","unit_price":1}]}`, `items[0].quantity`},
		"quantity 0":          {item(`"a"`, "0", "1"), "from 1 to 1000000"},
		"quantity -1":         {item(`"a"`, "-1", "1"), "from 1 to 1000000"},
		"quantity 1000001":    {item(`"a"`, "1000001", "1"), "from 1 to 1000000"},
		"quantity 1.5":        {item(`"a"`, "1.5", "1"), "a whole number"},
		"quantity 1e3":        {item(`"a"`, "1e3", "1"), "a whole number"},
		"quantity a text":     {item(`"a"`, `"1"`, "1"), "a whole number"},
		"quantity overflow":   {item(`"a"`, "9223372036854775808", "1"), "a whole number"},
		"no price":            {`{"customer_id":"alice","items":[{"sku":"a","quantity":1}]}`, `items[0].unit_price`},
		"price 0":             {item(`"a"`, "1", "0"), "from 1 to 1000000000000"},
		"price -1":            {item(`"a"`, "1", "-1"), "from 1 to 1000000000000"},
		"price beyond":        {item(`"a"`, "1", "1000000000001"), "from 1 to 1000000000000"},
		"amount overflow":     {lines(10, `{"sku":"a","quantity":1000000,"unit_price":1000000000000}`), "the amount of the order exceeds 9223372036854775807"},
		"second item bad":     {strings.Replace(good, `"pen","quantity":1`, `"pen","quantity":0`, 1), `items[1].quantity`},
		"unknown field":       {strings.Replace(good, `"customer_id"`, `"coupon":"x","customer_id"`, 1), "coupon"},
		"unknown item field":  {strings.Replace(good, `"sku"`, `"size":1,"sku"`, 1), "size"},
		"huge":                {strings.Replace(good, "alice", strings.Repeat("a", 70_000), 1), "65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			var problem service.Problem
			res := servicetest.Send(t, h, post(c.body), &problem)
			if res.Code < 400 || res.Code > 499 || problem.Status != res.Code || problem.Type == "" || !strings.Contains(problem.Detail, c.detail) ||
				res.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%d %s, want %q in the detail", res.Code, res.Body, c.detail)
			}
		})
	}
	for name, body := range servicetest.BadBodies("amount") {
		var problem service.Problem
		if res := servicetest.Send(t, h, post(body), &problem); res.Code < 400 || res.Code > 499 || problem.Status != res.Code || problem.Detail == "" {
			t.Errorf("%s: %d %s", name, res.Code, res.Body)
		}
	}
	servicetest.WantProblem(t, h, post(good, "Content-Type", "text/xml"), 415, "unsupported-media-type", "text/xml")
	for _, prefer := range []string{"wait=0", "wait=31", "wait=-1", "wait=1.5", "wait=x", "wait", "wait=", "respond-async, wait=99"} {
		servicetest.WantProblem(t, h, post(good, "Prefer", prefer), 400, "bad-value", "1 to 30")
	}
	for _, key := range []string{"", strings.Repeat("k", 256), "ä"} {
		servicetest.WantProblem(t, h, post(good, "Idempotency-Key", key), 400, "bad-idempotency-key", "Idempotency-Key")
	}
	if got := servicetest.Text(t, o.Pool, `SELECT (SELECT count(*) FROM orders) || ' ' || (SELECT count(*) FROM outbox)`); got != "0 0" {
		t.Error(got, "orders and events were written")
	}
}

func TestTheLargestOrder(t *testing.T) {
	o := open(t, time.Hour)
	h := o.routes()
	line := `{"sku":"` + strings.Repeat("s", 100) + `","quantity":1000000,"unit_price":1000000000000}`
	var v order.View
	res := servicetest.Send(t, h, post(`{"customer_id":"`+strings.Repeat("c", 100)+`","items":[`+strings.Repeat(line+",", 8)+line+`]}`), &v)
	if res.Code != 202 || v.Amount != 9_000_000_000_000_000_000 {
		t.Error(res.Code, v.Amount)
	}
	small := strings.Replace(line, "1000000000000", "1", 1)
	if res := servicetest.Send(t, h, post(`{"customer_id":"c","items":[`+strings.Repeat(small+",", 99)+small+`]}`), &v); res.Code != 202 || v.Amount != 100_000_000 {
		t.Error(res.Code, v.Amount)
	}
}

func TestIdempotencyKey(t *testing.T) {
	pool := database(t)
	routes := []http.Handler{join(t, pool, time.Hour).routes(), join(t, pool, time.Hour).routes()}
	var mu sync.Mutex
	ids := map[string]map[uuid.UUID]bool{}
	var all sync.WaitGroup
	for i := range 120 { // at once, in two instances, with keys and without
		all.Go(func() {
			key := fmt.Sprintf("key %d", i%5)
			r := post(good, "Idempotency-Key", key)
			if i%6 == 0 {
				key, r = "", post(good)
			}
			var v order.View
			res := servicetest.Send(t, routes[i%2], r, &v)
			if res.Code != 202 || res.Header().Get("Location") != "/orders/"+v.ID.String() || v.Amount != 3001 {
				t.Errorf("%d %s", res.Code, res.Body)
			}
			mu.Lock()
			defer mu.Unlock()
			if ids[key] == nil {
				ids[key] = map[uuid.UUID]bool{}
			}
			ids[key][v.ID] = true
		})
	}
	all.Wait()
	for key, of := range ids {
		if want := map[bool]int{true: 20, false: 1}[key == ""]; len(of) != want {
			t.Errorf("key %q: %d orders, want %d", key, len(of), want)
		}
	}
	o := office{Participant: servicetest.Participant{Pool: pool}}
	if got := servicetest.Text(t, o.Pool, `SELECT (SELECT count(*) FROM orders) || ' ' || (SELECT count(*) FROM outbox)`); got != "25 50" {
		t.Error(got, "orders and events")
	}
	// The same order in other words is the same; another order is not.
	var v order.View
	same := strings.ReplaceAll(good, `":`, `" : `)
	if res := servicetest.Send(t, routes[0], post(same, "Idempotency-Key", "key 0"), &v); res.Code != 202 || !ids["key 0"][v.ID] {
		t.Error(res.Code, res.Body)
	}
	other := strings.Replace(good, "1500", "1501", 1)
	servicetest.WantProblem(t, routes[0], post(other, "Idempotency-Key", "key 0"), 422, "idempotency-key-reused", "new key")
	if got := servicetest.Text(t, o.Pool, `SELECT count(*)::text FROM orders`); got != "25" {
		t.Error(got)
	}
}

func TestCancelRoute(t *testing.T) {
	o := open(t, time.Hour)
	h := o.routes()
	id := o.place(t)
	cancel := servicetest.Request{Method: "POST", Path: "/orders/" + id.String() + "/cancel"}
	for range 2 {
		var v order.View
		if res := servicetest.Send(t, h, cancel, &v); res.Code != 202 || v.Status != order.Failed || v.FailureReason == nil || *v.FailureReason != "cancelled" {
			t.Error(res.Code, res.Body)
		}
	}
	done := o.place(t)
	o.deliver(t, events.PaymentSuccess(done.String(), 3000), events.StockSuccess(done.String()))
	cancel.Path = "/orders/" + done.String() + "/cancel"
	servicetest.WantProblem(t, h, cancel, 409, "order-succeeded", "cannot be cancelled")
	if got := o.state(t, done); got != "SUCCESS payment SUCCESS, stock SUCCESS" {
		t.Error(got)
	}
}

// list reads all pages.
func list(t *testing.T, h http.Handler, query string) (ids []uuid.UUID) {
	t.Helper()
	for cursor := ""; ; {
		var page struct {
			Orders     []order.View `json:"orders"`
			NextCursor *string      `json:"next_cursor"`
		}
		if res := servicetest.Send(t, h, get("/orders?"+query+"&cursor="+cursor), &page); res.Code != 200 || page.Orders == nil {
			t.Fatal(res.Code, res.Body)
		}
		for _, v := range page.Orders {
			if v.Timeline != nil {
				t.Error("a list has timelines")
			}
			ids = append(ids, v.ID)
		}
		if page.NextCursor == nil {
			return ids
		}
		cursor = *page.NextCursor
	}
}

func TestListOrders(t *testing.T) {
	o := open(t, time.Hour)
	h := o.routes()
	var alice, bob, failed []uuid.UUID
	for i := range 23 {
		p := placement()
		if i%3 == 0 {
			p.CustomerID = "bob"
		}
		placed, err := o.Place(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			bob = append(bob, placed.ID)
		} else {
			alice = append(alice, placed.ID)
		}
		if i%5 == 0 {
			o.deliver(t, events.PaymentRefusal(placed.ID.String(), "unknown_customer"), events.StockRefusal(placed.ID.String(), "unknown_item"))
			failed = append(failed, placed.ID)
		}
	}
	newest := func(ids ...uuid.UUID) []uuid.UUID {
		ids = slices.Clone(ids)
		slices.SortFunc(ids, func(a, b uuid.UUID) int { return strings.Compare(b.String(), a.String()) })
		return ids
	}
	both := slices.DeleteFunc(slices.Clone(failed), func(id uuid.UUID) bool { return !slices.Contains(bob, id) })
	for query, want := range map[string][]uuid.UUID{
		"":                                      append(slices.Clone(alice), bob...),
		"limit=4":                               append(slices.Clone(alice), bob...),
		"limit=23":                              append(slices.Clone(alice), bob...),
		"limit=500":                             append(slices.Clone(alice), bob...),
		"customer_id=bob&limit=3":               bob,
		"customer_id=nobody":                    nil,
		"status=FAILED&limit=2":                 failed,
		"status=FAILED&limit=500":               failed,
		"status=SUCCESS":                        nil,
		"status=FAILED&customer_id=bob&limit=1": both,
		"status=IN_PROGRESS&customer_id=x&limit=1": nil,
	} {
		if got := list(t, h, query); !slices.Equal(got, newest(want...)) {
			t.Errorf("%q: %d orders, want %d", query, len(got), len(want))
		}
	}
	servicetest.WantProblem(t, h, get("/orders?status=MAYBE"), 400, "bad-value", "IN_PROGRESS, SUCCESS or FAILED")
	servicetest.WantProblem(t, h, get("/orders?customer_id=a%00b"), 400, "bad-value", "customer_id")
	for _, query := range []string{"limit=0", "limit=501", "limit=x"} {
		servicetest.WantProblem(t, h, get("/orders?"+query), 400, "bad-value", "limit")
	}
	for _, cursor := range []string{"%21", "AA", "_w", "YWJj"} {
		servicetest.WantProblem(t, h, get("/orders?cursor="+cursor), 400, "bad-cursor", "next_cursor")
	}
}

// A status that is rare costs a page a bounded look, and no order is lost between pages.
func TestListByARareStatus(t *testing.T) {
	o := open(t, time.Hour)
	oldest := o.place(t)
	o.deliver(t, events.PaymentRefusal(oldest.String(), "x"))
	if _, err := o.Pool.Exec(t.Context(), `
INSERT INTO orders (id, customer_id, payment_command, stock_command, amount, items, created_at, updated_at)
SELECT uuidv7(), 'alice', uuidv7(), uuidv7(), 1, '[]', now(), now() FROM generate_series(1, 25000)`); err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{"status=FAILED", "status=FAILED&customer_id=alice"} {
		if got := list(t, o.routes(), query); !slices.Equal(got, []uuid.UUID{oldest}) {
			t.Error(query, got)
		}
	}
}

// send asks with a body in a goroutine of its own.
func send(ctx context.Context, h http.Handler, header ...string) <-chan *httptest.ResponseRecorder {
	answered := make(chan *httptest.ResponseRecorder, 1)
	req := httptest.NewRequestWithContext(ctx, "POST", "/orders", strings.NewReader(good))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	go func() {
		res := httptest.NewRecorder()
		h.ServeHTTP(res, req)
		answered <- res
	}()
	return answered
}

func settle(t *testing.T, o office, id uuid.UUID) {
	t.Helper()
	o.deliver(t, events.PaymentSuccess(id.String(), 3001), events.StockSuccess(id.String()))
}

// placedByNow waits for n orders and returns them.
func placedByNow(t *testing.T, o office, n int) []uuid.UUID {
	t.Helper()
	eventually(t, o, fmt.Sprint(n), `SELECT count(*)::text FROM orders`)
	ids, err := service.Select[uuid.UUID](t.Context(), o.Pool, "orders", `SELECT id FROM orders`)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestPreferWait(t *testing.T) {
	pool := database(t)
	o, other := join(t, pool, time.Hour), join(t, pool, time.Hour)
	h := o.routes()
	var answers []<-chan *httptest.ResponseRecorder
	for range 30 {
		answers = append(answers, send(t.Context(), h, "Prefer", "respond-async, wait=20"))
	}
	for i, id := range placedByNow(t, o, 30) {
		if i%2 == 0 {
			settle(t, o, id)
			o.Committed() // what the consumer of this instance does
		} else {
			settle(t, other, id)
		}
	}
	for _, a := range answers {
		res := <-a
		var v order.View
		if err := json.Unmarshal(res.Body.Bytes(), &v); err != nil || res.Code != 200 || !v.Settled || v.Status != order.Success || res.Header().Get("Preference-Applied") != "wait=20" {
			t.Error(res.Code, res.Header(), res.Body, err)
		}
	}
}

func TestPreferWaitEndsWithoutAnEnd(t *testing.T) {
	o := open(t, time.Hour)
	begin := time.Now()
	if res := <-send(t.Context(), o.routes(), "Prefer", `wait="1"; x=y`); res.Code != 202 || time.Since(begin) < time.Second || time.Since(begin) > 5*time.Second {
		t.Error(res.Code, res.Body, time.Since(begin))
	}
}

func TestPreferWaitEndsWithTheService(t *testing.T) {
	o := open(t, time.Hour)
	waiting := send(t.Context(), o.routes(), "Prefer", "wait=30")
	placedByNow(t, o, 1)
	o.drain()
	if res := <-waiting; res.Code != 202 {
		t.Error(res.Code, res.Body)
	}
}

// A client that goes away leaves no one waiting, and its order is placed.
func TestPreferWaitOfAClientThatGoesAway(t *testing.T) {
	o := open(t, time.Hour)
	ctx, leave := context.WithCancel(t.Context())
	waiting := send(ctx, o.routes(), "Prefer", "wait=30")
	placedByNow(t, o, 1)
	leave()
	<-waiting
}

// Waiting with a key that was used before is waiting for the order of then.
func TestPreferWaitWithAKey(t *testing.T) {
	o := open(t, time.Hour)
	h := o.routes()
	first := send(t.Context(), h, "Prefer", "wait=20", "Idempotency-Key", "k")
	id := placedByNow(t, o, 1)[0]
	second := send(t.Context(), h, "Prefer", "wait=20", "Idempotency-Key", "k")
	settle(t, o, id)
	for _, a := range []<-chan *httptest.ResponseRecorder{first, second} {
		if res := <-a; res.Code != 200 || res.Header().Get("Location") != "/orders/"+id.String() {
			t.Error(res.Code, res.Body)
		}
	}
}
