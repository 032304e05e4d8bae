// Package stock keeps the goods and reserves them for orders.
//
// The rooms: stock.go has the states and the decisions, which are pure; saga.go says
// which event leads to which decision; store.go is the SQL; http.go the routes.
//
// What holds at every commit: nothing is below zero, and for each item
// received = available + reserved.
package stock

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"outboxsaga/events"
	"outboxsaga/internal/service"
)

// Status is the state of a reservation. There is one reservation an order, for ever: it
// is the recorded answer to the order's command.
type Status string

// The states of a reservation; "" is one that does not exist.
const (
	// Reserved: the items are held for the order. [Release] moves it to Released.
	Reserved Status = "RESERVED"
	// Refused: too little was there. Final; a compensation finds nothing to release.
	Refused Status = "REFUSED"
	// Released: the items are available again. Final.
	Released Status = "RELEASED"
	// Barred: the compensation came before its command, which will have no effect when
	// it comes. Final.
	Barred Status = "BARRED"
)

// MaxReceived bounds what can ever be received of one item, so that no sum overflows.
const MaxReceived = 1_000_000_000_000_000

// Item is the stock of one article. The zero value stands for an unknown one.
type Item struct {
	SKU       string `json:"sku"`
	Available int64  `json:"available"`
	Reserved  int64  `json:"reserved"`
	Received  int64  `json:"received"`
}

// Reservation is the state of one order's step. The zero value stands for none.
type Reservation struct {
	OrderID string
	Status  Status
	Reason  string // of a refusal: one of the Reason constants of package events
	Lines   Lines
}

// Lines are the items of a reservation as compact JSON, one line an SKU, sorted. As
// text they make a Reservation comparable, and are what the database keeps.
type Lines string

// NoLines are those of a tombstone.
const NoLines Lines = "[]"

// Items reads the lines.
func (l Lines) Items() ([]events.Item, error) {
	var items []events.Item
	if err := json.Unmarshal([]byte(l), &items); err != nil {
		return nil, fmt.Errorf("the items of a reservation are damaged: %w", err)
	}
	return items, nil
}

// Decision is what becomes of a reservation, the items that change with it, and the
// messages to send.
type Decision struct {
	Reservation Reservation
	Items       []Item
	Send        []events.Message
}

// Reserve decides a stock.requested: all lines are reserved, or none. was is the order's
// reservation, shelf returns an item as it is (the zero value for an unknown one). A repeated
// command, whatever it asks, changes nothing and gets the recorded answer. An error says that
// the command is impossible.
func Reserve(was Reservation, shelf func(sku string) Item, cmd events.StockRequested) (Decision, error) {
	lines, err := merge(cmd.Items)
	if err != nil {
		return Decision{}, err
	}
	if was.Status != "" {
		return Decision{Reservation: was, Send: []events.Message{answer(was)}}, nil
	}
	text, err := json.Marshal(lines)
	if err != nil {
		return Decision{}, err
	}
	d := Decision{Reservation: Reservation{OrderID: cmd.OrderID, Status: Reserved, Lines: Lines(text)}}
	for _, line := range lines {
		item := shelf(line.SKU)
		switch {
		case item.SKU == "":
			d.Reservation.Reason = events.ReasonUnknownItem
		case item.Available < line.Quantity:
			d.Reservation.Reason = cmp.Or(d.Reservation.Reason, events.ReasonInsufficientStock)
		default:
			item.Available -= line.Quantity
			item.Reserved += line.Quantity
			d.Items = append(d.Items, item)
		}
	}
	if d.Reservation.Reason != "" {
		d.Reservation.Status, d.Items = Refused, nil
	}
	d.Send = []events.Message{answer(d.Reservation)}
	return d, nil
}

// Release decides a stock.compensation_requested. Afterwards nothing is held for the
// order, and nothing ever will be: where no command came yet a tombstone bars it. A
// repeated compensation gets the same acknowledgement. An error says that the reservation
// and the items contradict each other.
func Release(was Reservation, shelf func(sku string) Item, orderID string) (Decision, error) {
	d := Decision{Reservation: was}
	outcome := events.OutcomeNothingToRelease
	switch was.Status {
	case "":
		d.Reservation = Reservation{OrderID: orderID, Status: Barred, Lines: NoLines}
	case Reserved:
		lines, err := was.Lines.Items()
		if err != nil {
			return Decision{}, err
		}
		for _, line := range lines {
			item := shelf(line.SKU)
			if item.Reserved < line.Quantity {
				return Decision{}, fmt.Errorf("%d of %q are reserved, but order %s holds %d", item.Reserved, line.SKU, orderID, line.Quantity)
			}
			item.Available += line.Quantity
			item.Reserved -= line.Quantity
			d.Items = append(d.Items, item)
		}
		d.Reservation.Status = Released
		outcome = events.OutcomeReleased
	case Released:
		outcome = events.OutcomeReleased
	case Refused, Barred:
	}
	d.Send = []events.Message{events.StockCompensation(orderID, outcome)}
	return d, nil
}

// Receive decides a receipt of goods. item is the zero value for an article that is new.
func Receive(item Item, sku string, quantity int64) (Item, error) {
	if quantity < 1 || quantity > MaxReceived {
		return item, service.BadRequest("bad-value", `"quantity" must be a whole number from 1 to %d`, int64(MaxReceived))
	}
	if item.Received > MaxReceived-quantity {
		return item, service.Unprocessable("too-much", "%q would exceed the %d that can be received of one item", sku, int64(MaxReceived))
	}
	item.SKU = sku
	item.Available += quantity
	item.Received += quantity
	return item, nil
}

// answer is what a command gets for the reservation that is recorded. Once released, the
// truth is that nothing stands, whatever was said before.
func answer(r Reservation) events.Message {
	switch r.Status {
	case Reserved:
		return events.StockSuccess(r.OrderID)
	case Refused:
		return events.StockRefusal(r.OrderID, r.Reason)
	default: // Released, Barred
		return events.StockRefusal(r.OrderID, events.ReasonCompensated)
	}
}

// Validate says why a command can never work, or nil.
func Validate(cmd events.StockRequested) error {
	_, err := merge(cmd.Items)
	return err
}

// merge adds up the lines of each SKU and sorts them. A sum beyond int64 stays there: no
// stock suffices for it.
func merge(items []events.Item) ([]events.Item, error) {
	if len(items) == 0 {
		return nil, errors.New("there are no items")
	}
	sorted := slices.Clone(items)
	slices.SortStableFunc(sorted, func(a, b events.Item) int { return cmp.Compare(a.SKU, b.SKU) })
	lines := sorted[:0]
	for _, item := range sorted {
		if err := service.Name("sku", item.SKU); err != nil {
			return nil, err
		}
		if item.Quantity < 1 {
			return nil, fmt.Errorf("the quantity of %q is %d: it must be positive", item.SKU, item.Quantity)
		}
		if last := len(lines) - 1; last >= 0 && lines[last].SKU == item.SKU {
			if lines[last].Quantity > math.MaxInt64-item.Quantity {
				item.Quantity = math.MaxInt64 - lines[last].Quantity
			}
			lines[last].Quantity += item.Quantity
			continue
		}
		lines = append(lines, item)
	}
	return lines, nil
}
