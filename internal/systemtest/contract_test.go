package systemtest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"outboxsaga/internal/stacktest"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/uuid"
	"path/filepath"
)

// api is a service's API as it describes itself.
type api struct {
	w      *world
	base   string
	router routers.Router
	used   map[string]bool // "METHOD /path" of the document
	all    []string
}

// describe fetches and checks the document that a service serves.
func (w *world) describe(service string) *api {
	w.t.Helper()
	base := w.URL(service, 0)
	res, err := http.Get(base + "/openapi.json")
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		w.t.Fatalf("%s: %v", service, err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		w.t.Fatalf("%s: %v", service, err)
	}
	doc.Servers = openapi3.Servers{{URL: base}}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		w.t.Fatal(err)
	}
	a := &api{w: w, base: base, router: router, used: map[string]bool{}}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			a.all = append(a.all, method+" "+path)
		}
	}
	return a
}

// send makes a request, checks that its answer is as described, and the request too
// where it was accepted. It returns the answer's body.
func (a *api) send(method, path, body string, want int, header ...string) []byte {
	a.w.t.Helper()
	req, err := http.NewRequest(method, a.base+path, strings.NewReader(body))
	if err != nil {
		a.w.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	route, params, err := a.router.FindRoute(req)
	if err != nil {
		a.w.t.Fatalf("%s %s is not in the document: %v", method, path, err)
	}
	a.used[method+" "+route.Path] = true
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route}
	described := openapi3filter.ValidateRequest(context.Background(), in)
	req.Body = io.NopCloser(strings.NewReader(body))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		a.w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		a.w.t.Fatal(err)
	}
	if res.StatusCode != want {
		a.w.t.Errorf("%s %s %.80s: %d, want %d: %s", method, path, body, res.StatusCode, want, text)
	}
	if accepted := res.StatusCode < 300; accepted && described != nil {
		a.w.t.Errorf("%s %s %.80s is accepted, but the document forbids it: %v", method, path, body, described)
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: res.StatusCode, Header: res.Header, Body: io.NopCloser(bytes.NewReader(text))}
	if err := openapi3filter.ValidateResponse(context.Background(), out); err != nil {
		a.w.t.Errorf("%s %s %.80s: the answer %d is not as described: %v\n%s", method, path, body, res.StatusCode, err, text)
	}
	return text
}

// Real requests, good and bad, of every route, and their answers are as the documents say.
func TestHTTPIsAsTheOpenAPIDocumentsSay(t *testing.T) {
	w := start(t, 1)
	orders, stock, payment := w.describe("order-service"), w.describe("stock-service"), w.describe("payment-service")
	customer, sku := w.customer(1000), w.item(10)
	good := w.settled(w.place(customer, sku, 1, 10).ID, 10*time.Second)
	bad := w.settled(w.place(customer, sku, 1, 5000).ID, 10*time.Second)
	unknown := uuid.NewString()

	for _, c := range []struct {
		body string
		want int
	}{
		{orderBody(customer, sku, 1, 10), 202}, {``, 400}, {`{}`, 400}, {`{"customer_id":"a","items":[]}`, 400},
		{`{"customer_id":"a b","items":[{"sku":"x","quantity":1,"unit_price":1}]}`, 400},
		{`{"customer_id":"a","items":[{"sku":"x","quantity":0,"unit_price":1}]}`, 400},
		{`{"customer_id":"a","items":[{"sku":"x","quantity":1.5,"unit_price":1}]}`, 400},
		{`{"customer_id":"a","items":[{"sku":"x","quantity":1,"unit_price":-1}],"more":1}`, 400},
		{`{"customer_id":"a","items":[{"sku":"` + strings.Repeat("x", 70_000) + `"}]}`, 413},
	} {
		orders.send("POST", "/orders", c.body, c.want)
	}
	orders.send("POST", "/orders", orderBody(customer, sku, 1, 10), 200, "Prefer", "wait=10")
	orders.send("POST", "/orders", orderBody(customer, sku, 1, 10), 400, "Prefer", "wait=0")
	orders.send("POST", "/orders", orderBody(customer, sku, 1, 10), 202, "Idempotency-Key", "contract")
	orders.send("POST", "/orders", orderBody(customer, sku, 2, 10), 422, "Idempotency-Key", "contract")
	orders.send("POST", "/orders", orderBody(customer, sku, 1, 10), 415, "Content-Type", "text/plain")
	for _, id := range []string{good.ID, bad.ID} {
		orders.send("GET", "/orders/"+id, "", 200)
	}
	orders.send("GET", "/orders/"+unknown, "", 404)
	orders.send("GET", "/orders/x", "", 400)
	orders.send("GET", "/orders", "", 200)
	orders.send("GET", "/orders?limit=1&status=FAILED&customer_id="+url.QueryEscape(customer), "", 200)
	orders.send("GET", "/orders?limit=0", "", 400)
	orders.send("GET", "/orders?status=BROKEN", "", 400)
	orders.send("GET", "/orders?cursor=%21", "", 400)
	orders.send("POST", "/orders/"+good.ID+"/cancel", "", 409)
	orders.send("POST", "/orders/"+bad.ID+"/cancel", "", 202)
	orders.send("POST", "/orders/"+unknown+"/cancel", "", 404)

	stock.send("GET", "/items/"+sku, "", 200)
	stock.send("GET", "/items/nothing", "", 404)
	stock.send("GET", "/items?limit=1", "", 200)
	stock.send("POST", "/items/"+sku+"/receipts", `{"quantity":1}`, 200)
	stock.send("POST", "/items/"+sku+"/receipts", `{"quantity":-1}`, 400)
	stock.send("GET", "/reservations/"+good.ID, "", 200)
	stock.send("GET", "/reservations/"+bad.ID, "", 200)
	stock.send("GET", "/reservations/"+unknown, "", 404)

	payment.send("GET", "/accounts/"+customer, "", 200)
	payment.send("GET", "/accounts/nobody", "", 404)
	payment.send("GET", "/accounts?limit=1", "", 200)
	payment.send("POST", "/accounts/"+customer+"/deposits", `{"amount":1}`, 200)
	payment.send("POST", "/accounts/"+customer+"/deposits", `{"amount":"1"}`, 400)
	payment.send("GET", "/payments/"+good.ID, "", 200)
	payment.send("GET", "/payments/"+bad.ID, "", 200)
	payment.send("GET", "/payments/"+unknown, "", 404)

	// Dead letters: one that is an event and one that is none, in each service.
	for a, topic := range map[*api]string{orders: "payment.success", stock: "stock", payment: "payment"} {
		w.Produce(record(topic, "no event at all"), record(topic, "no event either"))
		db := map[*api]string{orders: "orderdb", stock: "stockdb", payment: "paymentdb"}[a]
		var letters []string
		for deadline := time.Now().Add(10 * time.Second); len(letters) < 2 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			letters = w.query(db, `SELECT id::text FROM dead_letters`)
		}
		if len(letters) != 2 {
			t.Fatalf("%s: dead letters %v", db, letters)
		}
		a.send("GET", "/dead-letters?status=open&limit=1", "", 200)
		a.send("GET", "/dead-letters?status=closed", "", 400)
		a.send("GET", "/dead-letters/"+letters[0], "", 200)
		a.send("GET", "/dead-letters/"+unknown, "", 404)
		a.send("POST", "/dead-letters/"+letters[0]+"/redrive", "", 422, "X-Operator", "tester")
		a.send("POST", "/dead-letters/"+letters[0]+"/discard", `{"reason":"a test"}`, 200)
		a.send("POST", "/dead-letters/"+letters[0]+"/discard", `{"reason":"a test"}`, 409)
		a.send("POST", "/dead-letters/"+letters[1]+"/discard", `{"reason":""}`, 400)
		a.send("GET", "/dead-letters", "", 200)
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.json"} {
			a.send("GET", path, "", 200)
		}
		for _, operation := range a.all {
			if !a.used[operation] {
				t.Errorf("%s is described, but no request was made", operation)
			}
		}
	}
}

var slugs = regexp.MustCompile(`(?:BadRequest|NotFound|Conflict|Unprocessable|NewProblem)\((?:http\.\w+, )?"([a-z-]+)"|Slug: "([a-z-]+)"|problemType \+ "([a-z-]+)"`)

// Every problem type that the code can answer is listed in docs/errors.md, and no other.
func TestErrorsAreListed(t *testing.T) {
	var code []string
	for _, dir := range []string{"internal/service", "order-service/order", "stock-service/stock", "payment-service/payment"} {
		files, err := filepath.Glob(filepath.Join(stacktest.Root(), dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(dir, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, m := range slugs.FindAllStringSubmatch(string(text), -1) {
				code = append(code, m[1]+m[2]+m[3])
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(stacktest.Root(), "docs", "errors.md"))
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		listed = append(listed, m[1])
	}
	slices.Sort(code)
	code = slices.Compact(code)
	slices.Sort(listed)
	if !slices.Equal(code, listed) {
		t.Errorf("the code answers\n%v\ndocs/errors.md lists\n%v", code, listed)
	}
}
