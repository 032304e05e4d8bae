package order

import (
	_ "embed"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"outboxsaga/internal/service"

	"github.com/google/uuid"
	"github.com/gorilla/mux"
)

// The bounds of an order. With them no amount overflows.
const (
	maxLines    = 100
	maxQuantity = 1_000_000
	maxPrice    = 1_000_000_000_000
	maxWait     = 30
)

// OpenAPI describes the routes; a test holds requests and answers against it.
//
//go:embed openapi.json
var OpenAPI []byte

// Routes adds the routes of order-service.
func (s *Saga) Routes(r *mux.Router) {
	r.Handle("/orders", service.Handle(s.postOrder)).Methods(http.MethodPost)
	r.Handle("/orders", service.Handle(s.listOrders)).Methods(http.MethodGet)
	r.Handle("/orders/{id}", service.Handle(s.getOrder)).Methods(http.MethodGet)
	r.Handle("/orders/{id}/cancel", service.Handle(s.postCancel)).Methods(http.MethodPost)
}

// orderBody is the body of POST /orders.
type orderBody struct {
	CustomerID string `json:"customer_id"`
	Items      []Line `json:"items"`
}

// placement checks an order and adds it up.
func (b orderBody) placement() (Placement, error) {
	p := Placement{CustomerID: b.CustomerID, Lines: b.Items}
	if err := service.Name("customer_id", b.CustomerID); err != nil {
		return p, err
	}
	if len(b.Items) < 1 || len(b.Items) > maxLines {
		return p, service.BadRequest("bad-value", `"items" must have 1 to %d lines, it has %d`, maxLines, len(b.Items))
	}
	for i, l := range b.Items {
		at := "items[" + strconv.Itoa(i) + "]."
		if err := service.Name(at+"sku", l.SKU); err != nil {
			return p, err
		}
		if l.Quantity < 1 || l.Quantity > maxQuantity {
			return p, service.BadRequest("bad-value", `%q must be a whole number from 1 to %d, it is %d`, at+"quantity", maxQuantity, l.Quantity)
		}
		if l.UnitPrice < 1 || l.UnitPrice > maxPrice {
			return p, service.BadRequest("bad-value", `%q must be a whole number from 1 to %d (minor units), it is %d`, at+"unit_price", int64(maxPrice), l.UnitPrice)
		}
		line := l.Quantity * l.UnitPrice // at most 10^18
		if p.Amount > math.MaxInt64-line {
			return p, service.BadRequest("bad-value", `the amount of the order exceeds %d`, int64(math.MaxInt64))
		}
		p.Amount += line
	}
	return p, nil
}

func (s *Saga) postOrder(w http.ResponseWriter, r *http.Request) error {
	var body orderBody
	if err := service.ReadJSON(w, r, &body); err != nil {
		return err
	}
	p, err := body.placement()
	if err != nil {
		return err
	}
	wait, err := readWait(r)
	if err != nil {
		return err
	}
	if p.Key, err = service.ReadIdempotencyKey(r, "order", body); err != nil {
		return err
	}
	p.Traceparent = r.Header.Get("traceparent")
	placed, err := s.Place(r.Context(), p)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/orders/"+placed.ID.String())
	if wait > 0 {
		s.waiters.wait(r.Context(), placed.ID, wait)
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(int(wait/time.Second)))
	}
	if wait == 0 && !placed.Again {
		return service.WriteJSON(w, http.StatusAccepted, viewOf(p, placed))
	}
	view, err := s.find(r, placed.ID)
	if err != nil && !placed.Again { // it is placed: an error would have the client do so again
		return service.WriteJSON(w, http.StatusAccepted, viewOf(p, placed))
	}
	if err != nil {
		return err
	}
	if wait > 0 && view.Settled {
		return service.WriteJSON(w, http.StatusOK, view)
	}
	return service.WriteJSON(w, http.StatusAccepted, view)
}

// readWait reads the preference wait of RFC 7240: seconds, 1 to 30. Other preferences are
// ignored, as they must be.
func readWait(r *http.Request) (time.Duration, error) {
	for _, header := range r.Header.Values("Prefer") {
		for preference := range strings.SplitSeq(header, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(preference), "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			value, _, _ = strings.Cut(value, ";")
			n, err := strconv.Atoi(strings.Trim(strings.TrimSpace(value), `"`))
			if err != nil || n < 1 || n > maxWait {
				return 0, service.BadRequest("bad-value", "Prefer: wait must be a whole number of seconds from 1 to %d", maxWait)
			}
			return time.Duration(n) * time.Second, nil
		}
	}
	return 0, nil
}

func (s *Saga) getOrder(w http.ResponseWriter, r *http.Request) error {
	id, err := service.ID("id", mux.Vars(r)["id"])
	if err != nil {
		return err
	}
	view, err := s.find(r, id)
	if err != nil {
		return err
	}
	return service.WriteJSON(w, http.StatusOK, view)
}

// find reads an order that must be there.
func (s *Saga) find(r *http.Request, id uuid.UUID) (*View, error) {
	view, err := s.Get(r.Context(), id)
	if err == nil && view == nil {
		err = notFound(id)
	}
	return view, err
}

func notFound(id uuid.UUID) error {
	return service.NotFound("order-not-found", "there is no order %s", id)
}

func (s *Saga) listOrders(w http.ResponseWriter, r *http.Request) error {
	page, err := service.ReadPage(r)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	f := Filter{CustomerID: query.Get("customer_id"), Status: Status(query.Get("status")), Before: uuid.Max, Limit: page.Limit}
	if f.CustomerID != "" {
		if err := service.Name("customer_id", f.CustomerID); err != nil {
			return err
		}
	}
	switch f.Status {
	case "", InProgress, Success, Failed:
	default:
		return service.BadRequest("bad-value", `"status" must be %s, %s or %s`, InProgress, Success, Failed)
	}
	if page.Cursor != "" {
		if f.Before, err = uuid.Parse(page.Cursor); err != nil {
			return service.BadRequest("bad-cursor", `"cursor" is not one that this service gave: take "next_cursor" of the page before`)
		}
	}
	orders, next, err := s.List(r.Context(), f)
	if err != nil {
		return err
	}
	if orders == nil {
		orders = []View{}
	}
	return service.WriteJSON(w, http.StatusOK, map[string]any{"orders": orders, "next_cursor": next})
}

func (s *Saga) postCancel(w http.ResponseWriter, r *http.Request) error {
	id, err := service.ID("id", mux.Vars(r)["id"])
	if err != nil {
		return err
	}
	o, err := s.Cancel(r.Context(), id, r.Header.Get("traceparent"))
	switch {
	case err != nil:
		return err
	case o.ID == "":
		return notFound(id)
	case o.Status == Success:
		return service.Conflict("order-succeeded", "order %s has succeeded already and cannot be cancelled", id)
	}
	view, err := s.find(r, id)
	if err != nil {
		return err
	}
	return service.WriteJSON(w, http.StatusAccepted, view)
}
