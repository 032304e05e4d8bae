package stock_test

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	"outboxsaga/events"
	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/stock-service/stock"
)

func routes(store *stock.Store) http.Handler {
	router := service.NewRouter()
	store.Routes(router)
	return router
}

func receipt(sku, body string, header ...string) servicetest.Request {
	r := servicetest.Request{Method: "POST", Path: "/items/" + sku + "/receipts", Body: body, Header: map[string]string{}}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = header[i+1]
	}
	return r
}

func get(path string) servicetest.Request { return servicetest.Request{Method: "GET", Path: path} }

func TestReceiptsAndItems(t *testing.T) {
	store, _ := open(t)
	h := routes(store)
	var got stock.Item
	for n := range int64(3) {
		res := servicetest.Send(t, h, receipt("book", `{"quantity":10}`), &got)
		if want := (stock.Item{SKU: "book", Available: 10 * (n + 1), Received: 10 * (n + 1)}); res.Code != 200 || got != want {
			t.Fatalf("%d %+v", res.Code, got)
		}
	}
	if servicetest.Send(t, h, get("/items/book"), &got); got.Received != 30 {
		t.Error(got)
	}
	servicetest.WantProblem(t, h, get("/items/car"), 404, "item-not-found", "car")
}

func TestReceiptWithAKey(t *testing.T) {
	store, p := open(t)
	h := routes(store)
	const body = `{"quantity":10}`
	var got stock.Item
	var all sync.WaitGroup
	for range 20 { // at once, so that some share a transaction
		all.Go(func() {
			var got stock.Item
			if res := servicetest.Send(t, h, receipt("book", body, "Idempotency-Key", "k 1"), &got); res.Code != 200 || got.Received != 10 {
				t.Errorf("%d %+v", res.Code, got)
			}
		})
	}
	all.Wait()
	if servicetest.Send(t, h, get("/items/book"), &got); got.Received != 10 {
		t.Error(got)
	}
	servicetest.WantProblem(t, h, receipt("book", `{"quantity":11}`, "Idempotency-Key", "k 1"), 422, "idempotency-key-reused", "new key")
	servicetest.WantProblem(t, h, receipt("pen", body, "Idempotency-Key", "k 1"), 422, "idempotency-key-reused", "new key")
	servicetest.WantProblem(t, h, receipt("book", body, "Idempotency-Key", ""), 400, "bad-idempotency-key", "1 to 255")
	servicetest.WantProblem(t, h, receipt("book", body, "Idempotency-Key", "ä"), 400, "bad-idempotency-key", "ASCII")
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM items`); n != "1" {
		t.Error(n, "items")
	}
}

// Requests that share a transaction do not share a fault: one that is refused leaves
// the others alone.
func TestOneRefusedReceiptDoesNotFailTheOthers(t *testing.T) {
	store, _ := open(t)
	h := routes(store)
	full := fmt.Sprintf(`{"quantity":%d}`, int64(stock.MaxReceived))
	servicetest.Send(t, h, receipt("full", full), nil)
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			if i%6 == 0 {
				servicetest.WantProblem(t, h, receipt("full", full, "Idempotency-Key", fmt.Sprint(i)), 422, "too-much", "full")
				return
			}
			if res := servicetest.Send(t, h, receipt("book", `{"quantity":1}`), nil); res.Code != 200 {
				t.Errorf("%d %s", res.Code, res.Body)
			}
		})
	}
	all.Wait()
	if i := item(t, store, "book"); i.Received != 50 {
		t.Error(i)
	}
	// A refused request leaves its key free.
	servicetest.WantProblem(t, h, receipt("full", full, "Idempotency-Key", "0"), 422, "too-much", "full")
}

func TestListItems(t *testing.T) {
	store, _ := open(t)
	h := routes(store)
	var want []string
	for i := range 7 {
		sku := fmt.Sprintf("sku-%d", i)
		receive(t, store, sku, 1)
		want = append(want, sku)
	}
	var got []string
	for cursor, pages := "", 1; ; pages++ {
		var page struct {
			Items      []stock.Item `json:"items"`
			NextCursor *string      `json:"next_cursor"`
		}
		if res := servicetest.Send(t, h, get("/items?limit=3&cursor="+cursor), &page); res.Code != 200 {
			t.Fatal(res.Body)
		}
		for _, i := range page.Items {
			got = append(got, i.SKU)
		}
		if page.NextCursor == nil {
			if pages != 3 {
				t.Error(pages, "pages")
			}
			break
		}
		cursor = *page.NextCursor
	}
	if !slices.Equal(got, want) {
		t.Error(got)
	}
	for _, query := range []string{"limit=0", "limit=501", "limit=-1", "limit=x", "limit=1.5", "limit=99999999999999999999"} {
		servicetest.WantProblem(t, h, get("/items?"+query), 400, "bad-value", "limit")
	}
	for _, cursor := range []string{"%21", "AA", "_w", "a"} { // no base64, a NUL, no UTF-8, no base64
		servicetest.WantProblem(t, h, get("/items?cursor="+cursor), 400, "bad-cursor", "cursor")
	}
}

func TestGetReservation(t *testing.T) {
	store, p := open(t)
	h := routes(store)
	refused, barred := order(), order()
	deliver(t, p, events.RequestStock(refused, one("car", 1)), events.CompensateStock(barred))
	var got stock.View
	if servicetest.Send(t, h, get("/reservations/"+refused), &got); got.Status != stock.Refused || got.Reason != "unknown_item" || got.CreatedAt.IsZero() {
		t.Errorf("%+v", got)
	}
	if servicetest.Send(t, h, get("/reservations/"+barred), &got); got.Status != stock.Barred || string(got.Items) != "[]" {
		t.Errorf("%+v", got)
	}
	servicetest.WantProblem(t, h, get("/reservations/"+order()), 404, "reservation-not-found", "not heard")
	for _, id := range []string{"x", "%00", "1234", refused[:35], "%7B" + refused + "%7D"} {
		servicetest.WantProblem(t, h, get("/reservations/"+id), 400, "bad-value", "UUID")
	}
}

func TestBadReceipts(t *testing.T) {
	store, p := open(t)
	h := routes(store)
	for name, body := range servicetest.BadBodies("quantity") {
		t.Run(name, func(t *testing.T) {
			var problem service.Problem
			res := servicetest.Send(t, h, receipt("book", body), &problem)
			if res.Code < 400 || res.Code > 499 || problem.Status != res.Code || problem.Detail == "" || problem.Type == "" {
				t.Errorf("%d %s", res.Code, res.Body)
			}
		})
	}
	for _, name := range servicetest.BadNames() {
		servicetest.WantProblem(t, h, receipt(name, `{"quantity":1}`), 400, "bad-value", "sku")
		servicetest.WantProblem(t, h, get("/items/"+name), 400, "bad-value", "sku")
	}
	servicetest.WantProblem(t, h, receipt("book", `{"quantity":1}`, "Content-Type", "text/plain"), 415, "unsupported-media-type", "text/plain")
	servicetest.WantProblem(t, h, receipt("book", `{"quantity":1.5}`), 400, "bad-value", `"quantity" must be a whole number`)
	servicetest.WantProblem(t, h, receipt("book", `{"quantity":1,"x":2}`), 400, "unknown-field", `"x"`)
	servicetest.WantProblem(t, h, receipt("", `{"quantity":1}`), 404, "no-such-path", "")
	servicetest.WantProblem(t, h, get("/items/book/receipts"), 405, "method-not-allowed", "POST")
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM items`); n != "0" {
		t.Error(n, "items were made")
	}
}
