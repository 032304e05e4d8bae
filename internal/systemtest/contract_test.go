package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"outboxsaga/events"
	"outboxsaga/internal/stacktest"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/uuid"
	"github.com/santhosh-tekuri/jsonschema/v6"
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

// http31 makes real requests, good and bad, of every route.
func http31(w *world) {
	t := w.t
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
		a.send("POST", "/dead-letters/"+letters[0]+"/discard", `{"reason":"no event"}`, 200)
		a.send("POST", "/dead-letters/"+letters[0]+"/discard", `{"reason":"no event"}`, 409)
		a.send("POST", "/dead-letters/"+letters[1]+"/discard", `{"reason":""}`, 400)
		a.send("GET", "/dead-letters", "", 200)
		a.send("POST", "/dead-letters/"+letters[1]+"/discard", `{"reason":"no event"}`, 200)
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

// asyncAPI is what the test reads of docs/asyncapi.json.
type asyncAPI struct {
	Channels map[string]struct {
		Messages map[string]struct {
			Ref string `json:"$ref"`
		}
	}
	Components struct {
		Messages map[string]struct {
			Name    string
			Payload struct {
				Ref string `json:"$ref"`
			}
		}
	}
}

// records reads what every topic holds after orders of all courses and dead letters.
func records(w *world) {
	t := w.t
	w.settled(w.place(w.customer(1000), w.item(1), 5, 1).ID, 10*time.Second) // too few: payment is compensated
	w.settled(w.place(w.customer(1), w.item(10), 1, 500).ID, 10*time.Second) // too poor: stock is compensated
	file := filepath.Join(stacktest.Root(), "docs", "asyncapi.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc asyncAPI
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	tree, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("asyncapi.json", tree); err != nil {
		t.Fatal(err)
	}
	valid := func(schema, what string, value []byte) {
		t.Helper()
		compiled, err := compiler.Compile("asyncapi.json" + schema)
		if err != nil {
			t.Fatal(err)
		}
		instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := compiled.Validate(instance); err != nil {
			t.Errorf("%s is not as %s says: %v\n%s", what, schema, err, value)
		}
	}
	if len(doc.Channels) != len(events.Topics()) {
		t.Errorf("%d channels, %d topics", len(doc.Channels), len(events.Topics()))
	}
	own := regexp.MustCompile(`^no event`) // the poison that the test before has put in
	for _, topic := range events.Topics() {
		seen := 0
		for _, r := range w.Records(topic) {
			if own.Match(r.Value) {
				continue
			}
			seen++
			headers := map[string]any{}
			for _, h := range r.Headers {
				if headers[h.Key] = string(h.Value); h.Value == nil {
					headers[h.Key] = nil
				}
			}
			header, err := json.Marshal(headers)
			if err != nil {
				t.Fatal(err)
			}
			var schema string
			for _, ref := range doc.Channels[topic].Messages {
				m := doc.Components.Messages[strings.TrimPrefix(ref.Ref, "#/components/messages/")]
				if m.Name == headers["type"] {
					schema = m.Payload.Ref
				}
			}
			if schema == "" {
				t.Errorf("%s has a record of type %q, which the document does not know there", topic, headers["type"])
				continue
			}
			valid("#/components/messageTraits/event/headers", topic, header)
			valid(schema, topic, r.Value)
		}
		if seen == 0 {
			t.Errorf("no record of %s occurred", topic)
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
