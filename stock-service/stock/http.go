package stock

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

// Routes adds the routes of stock-service.
func (s *Store) Routes(r *mux.Router) {
	r.Handle("/items", service.Handle(s.listItems)).Methods(http.MethodGet)
	r.Handle("/items/{sku}", service.Handle(s.getItem)).Methods(http.MethodGet)
	r.Handle("/items/{sku}/receipts", service.Handle(s.postReceipt)).Methods(http.MethodPost)
	r.Handle("/reservations/{order_id}", service.Handle(s.getReservation)).Methods(http.MethodGet)
}

// receiptBody is the body of POST /items/{sku}/receipts.
type receiptBody struct {
	Quantity int64 `json:"quantity"`
}

func (s *Store) postReceipt(w http.ResponseWriter, r *http.Request) error {
	sku := mux.Vars(r)["sku"]
	if err := service.Name("sku", sku); err != nil {
		return err
	}
	var body receiptBody
	if err := service.ReadJSON(w, r, &body); err != nil {
		return err
	}
	if _, err := Receive(Item{}, sku, body.Quantity); err != nil {
		return err // before it costs others of its batch a second try
	}
	key, err := service.ReadIdempotencyKey(r, "receipt", []any{sku, body})
	if err != nil {
		return err
	}
	item, err := s.Receive(r.Context(), Receipt{SKU: sku, Quantity: body.Quantity, Key: key})
	if err != nil {
		return err
	}
	return service.WriteJSON(w, http.StatusOK, item)
}

func (s *Store) getItem(w http.ResponseWriter, r *http.Request) error {
	sku := mux.Vars(r)["sku"]
	if err := service.Name("sku", sku); err != nil {
		return err
	}
	item, err := s.Item(r.Context(), sku)
	if err != nil {
		return err
	}
	if item == nil {
		return service.NotFound("item-not-found", "nothing was ever received of %q", sku)
	}
	return service.WriteJSON(w, http.StatusOK, item)
}

func (s *Store) listItems(w http.ResponseWriter, r *http.Request) error {
	page, err := service.ReadPage(r)
	if err != nil {
		return err
	}
	items, err := s.Items(r.Context(), page.Cursor, page.Limit+1)
	if err != nil {
		return err
	}
	return service.WriteList(w, "items", page, items, func(i Item) string { return i.SKU })
}

func (s *Store) getReservation(w http.ResponseWriter, r *http.Request) error {
	id, err := service.ID("order_id", mux.Vars(r)["order_id"])
	if err != nil {
		return err
	}
	reservation, err := s.Reservation(r.Context(), id)
	if err != nil {
		return err
	}
	if reservation == nil {
		return service.NotFound("reservation-not-found", "stock-service has not heard of order %s", id)
	}
	return service.WriteJSON(w, http.StatusOK, reservation)
}
