package payment

import (
	_ "embed"
	"net/http"

	"outboxsaga/internal/service"

	"github.com/gorilla/mux"
)

// OpenAPI describes the routes; a test holds requests and answers against it.
//
//go:embed openapi.json
var OpenAPI []byte

// Routes adds the routes of payment-service.
func (s *Store) Routes(r *mux.Router) {
	r.Handle("/accounts", service.Handle(s.listAccounts)).Methods(http.MethodGet)
	r.Handle("/accounts/{customer_id}", service.Handle(s.getAccount)).Methods(http.MethodGet)
	r.Handle("/accounts/{customer_id}/deposits", service.Handle(s.postDeposit)).Methods(http.MethodPost)
	r.Handle("/payments/{order_id}", service.Handle(s.getPayment)).Methods(http.MethodGet)
}

// depositBody is the body of POST /accounts/{customer_id}/deposits.
type depositBody struct {
	Amount int64 `json:"amount"` // minor units
}

func (s *Store) postDeposit(w http.ResponseWriter, r *http.Request) error {
	customerID := mux.Vars(r)["customer_id"]
	if err := service.Name("customer_id", customerID); err != nil {
		return err
	}
	var body depositBody
	if err := service.ReadJSON(w, r, &body); err != nil {
		return err
	}
	if _, err := Deposit(Account{}, customerID, body.Amount); err != nil {
		return err // before it costs others of its batch a second try
	}
	key, err := service.ReadIdempotencyKey(r, "deposit", []any{customerID, body})
	if err != nil {
		return err
	}
	account, err := s.Deposit(r.Context(), DepositRequest{CustomerID: customerID, Amount: body.Amount, Key: key})
	if err != nil {
		return err
	}
	return service.WriteJSON(w, http.StatusOK, account)
}

func (s *Store) getAccount(w http.ResponseWriter, r *http.Request) error {
	customerID := mux.Vars(r)["customer_id"]
	if err := service.Name("customer_id", customerID); err != nil {
		return err
	}
	account, err := s.Account(r.Context(), customerID)
	if err != nil {
		return err
	}
	if account == nil {
		return service.NotFound("account-not-found", "nothing was ever deposited for %q", customerID)
	}
	return service.WriteJSON(w, http.StatusOK, account)
}

func (s *Store) listAccounts(w http.ResponseWriter, r *http.Request) error {
	page, err := service.ReadPage(r)
	if err != nil {
		return err
	}
	accounts, err := s.Accounts(r.Context(), page.Cursor, page.Limit+1)
	if err != nil {
		return err
	}
	return service.WriteList(w, "accounts", page, accounts, func(a Account) string { return a.CustomerID })
}

func (s *Store) getPayment(w http.ResponseWriter, r *http.Request) error {
	id, err := service.ID("order_id", mux.Vars(r)["order_id"])
	if err != nil {
		return err
	}
	payment, err := s.Payment(r.Context(), id)
	if err != nil {
		return err
	}
	if payment == nil {
		return service.NotFound("payment-not-found", "payment-service has not heard of order %s", id)
	}
	return service.WriteJSON(w, http.StatusOK, payment)
}
