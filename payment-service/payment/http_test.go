package payment_test

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	"outboxsaga/events"
	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/payment-service/payment"
)

func routes(store *payment.Store) http.Handler {
	router := service.NewRouter()
	store.Routes(router)
	return router
}

func post(customerID, body string, header ...string) servicetest.Request {
	r := servicetest.Request{Method: "POST", Path: "/accounts/" + customerID + "/deposits", Body: body, Header: map[string]string{}}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = header[i+1]
	}
	return r
}

func get(path string) servicetest.Request { return servicetest.Request{Method: "GET", Path: path} }

func TestDepositsAndAccounts(t *testing.T) {
	store, _ := open(t)
	h := routes(store)
	var got payment.Account
	for n := range int64(3) {
		res := servicetest.Send(t, h, post("alice", `{"amount":10}`), &got)
		if want := (payment.Account{CustomerID: "alice", Balance: 10 * (n + 1), Deposited: 10 * (n + 1)}); res.Code != 200 || got != want {
			t.Fatalf("%d %+v", res.Code, got)
		}
	}
	if servicetest.Send(t, h, get("/accounts/alice"), &got); got.Deposited != 30 {
		t.Error(got)
	}
	servicetest.WantProblem(t, h, get("/accounts/bob"), 404, "account-not-found", "bob")
}

func TestDepositWithAKey(t *testing.T) {
	store, p := open(t)
	h := routes(store)
	const body = `{"amount":10}`
	var all sync.WaitGroup
	for range 20 { // at once, so that some share a transaction
		all.Go(func() {
			var got payment.Account
			if res := servicetest.Send(t, h, post("alice", body, "Idempotency-Key", "k 1"), &got); res.Code != 200 || got.Deposited != 10 {
				t.Errorf("%d %+v", res.Code, got)
			}
		})
	}
	all.Wait()
	if a := account(t, store, "alice"); a.Deposited != 10 {
		t.Error(a)
	}
	servicetest.WantProblem(t, h, post("alice", `{"amount":11}`, "Idempotency-Key", "k 1"), 422, "idempotency-key-reused", "new key")
	servicetest.WantProblem(t, h, post("bob", body, "Idempotency-Key", "k 1"), 422, "idempotency-key-reused", "new key")
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM accounts`); n != "1" {
		t.Error(n, "accounts")
	}
}

// Requests that share a transaction do not share a fault: one that is refused leaves
// the others alone.
func TestOneRefusedDepositDoesNotFailTheOthers(t *testing.T) {
	store, _ := open(t)
	h := routes(store)
	full := fmt.Sprintf(`{"amount":%d}`, int64(payment.MaxDeposited))
	servicetest.Send(t, h, post("full", full), nil)
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			if i%6 == 0 {
				servicetest.WantProblem(t, h, post("full", full, "Idempotency-Key", fmt.Sprint(i)), 422, "too-much", "full")
				return
			}
			if res := servicetest.Send(t, h, post("alice", `{"amount":1}`), nil); res.Code != 200 {
				t.Errorf("%d %s", res.Code, res.Body)
			}
		})
	}
	all.Wait()
	if a := account(t, store, "alice"); a.Deposited != 50 {
		t.Error(a)
	}
}

func TestListAccounts(t *testing.T) {
	store, _ := open(t)
	h := routes(store)
	var want, got []string
	for i := range 7 {
		customer := fmt.Sprintf("customer-%d", i)
		deposit(t, store, customer, 1)
		want = append(want, customer)
	}
	for cursor, pages := "", 1; ; pages++ {
		var page struct {
			Accounts   []payment.Account `json:"accounts"`
			NextCursor *string           `json:"next_cursor"`
		}
		if res := servicetest.Send(t, h, get("/accounts?limit=3&cursor="+cursor), &page); res.Code != 200 {
			t.Fatal(res.Body)
		}
		for _, a := range page.Accounts {
			got = append(got, a.CustomerID)
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
}

func TestGetPayment(t *testing.T) {
	store, p := open(t)
	h := routes(store)
	refused, barred := order(), order()
	deliver(t, p, events.RequestPayment(refused, "bob", 5), events.CompensatePayment(barred))
	var got payment.View
	if servicetest.Send(t, h, get("/payments/"+refused), &got); got.Status != payment.Refused || got.Reason != "unknown_customer" || got.Amount != 5 || got.CreatedAt.IsZero() {
		t.Errorf("%+v", got)
	}
	if servicetest.Send(t, h, get("/payments/"+barred), &got); got.Status != payment.Barred || got.Amount != 0 {
		t.Errorf("%+v", got)
	}
	servicetest.WantProblem(t, h, get("/payments/"+order()), 404, "payment-not-found", "not heard")
	for _, id := range []string{"x", "%00", "1234", refused[:35], "%7B" + refused + "%7D"} {
		servicetest.WantProblem(t, h, get("/payments/"+id), 400, "bad-value", "UUID")
	}
}

func TestBadDeposits(t *testing.T) {
	store, p := open(t)
	h := routes(store)
	for name, body := range servicetest.BadBodies("amount") {
		t.Run(name, func(t *testing.T) {
			var problem service.Problem
			res := servicetest.Send(t, h, post("alice", body), &problem)
			if res.Code < 400 || res.Code > 499 || problem.Status != res.Code || problem.Detail == "" || problem.Type == "" {
				t.Errorf("%d %s", res.Code, res.Body)
			}
		})
	}
	for _, name := range servicetest.BadNames() {
		servicetest.WantProblem(t, h, post(name, `{"amount":1}`), 400, "bad-value", "customer_id")
		servicetest.WantProblem(t, h, get("/accounts/"+name), 400, "bad-value", "customer_id")
	}
	servicetest.WantProblem(t, h, get("/accounts/alice/deposits"), 405, "method-not-allowed", "POST")
	if n := servicetest.Text(t, p.Pool, `SELECT count(*)::text FROM accounts`); n != "0" {
		t.Error(n, "accounts were made")
	}
}
