package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Message is an event to send: what the sagas' decisions return. The constructors
// below pair each event type with its topic; there is no other way to make one.
type Message struct {
	Topic   string
	Type    string
	OrderID string // the record's key
	Payload any    // one of the payload structs
}

// RequestPayment is the command to charge a customer.
func RequestPayment(orderID, customerID string, amount int64) Message {
	return Message{TopicPayment, TypePaymentRequested, orderID, PaymentRequested{orderID, customerID, amount}}
}

// RequestStock is the command to reserve items.
func RequestStock(orderID string, items []Item) Message {
	return Message{TopicStock, TypeStockRequested, orderID, StockRequested{orderID, items}}
}

// CompensatePayment is the command to undo a payment.
func CompensatePayment(orderID string) Message {
	return Message{TopicPaymentCompensation, TypePaymentCompensationRequested, orderID, CompensationRequested{orderID}}
}

// CompensateStock is the command to undo a reservation.
func CompensateStock(orderID string) Message {
	return Message{TopicStockCompensation, TypeStockCompensationRequested, orderID, CompensationRequested{orderID}}
}

// PaymentSuccess answers [RequestPayment].
func PaymentSuccess(orderID string, amount int64) Message {
	return Message{TopicPaymentSuccess, TypePaymentSucceeded, orderID, PaymentSucceeded{orderID, amount}}
}

// PaymentRefusal answers [RequestPayment] with one of the Reason constants.
func PaymentRefusal(orderID, reason string) Message {
	return Message{TopicPaymentFailed, TypePaymentRefused, orderID, Refused{orderID, reason}}
}

// PaymentCompensation answers [CompensatePayment].
func PaymentCompensation(orderID, outcome string) Message {
	return Message{TopicPaymentCompensated, TypePaymentCompensated, orderID, Compensated{orderID, outcome}}
}

// StockSuccess answers [RequestStock].
func StockSuccess(orderID string) Message {
	return Message{TopicStockSuccess, TypeStockSucceeded, orderID, StockSucceeded{orderID}}
}

// StockRefusal answers [RequestStock] with one of the Reason constants.
func StockRefusal(orderID, reason string) Message {
	return Message{TopicStockFailed, TypeStockRefused, orderID, Refused{orderID, reason}}
}

// StockCompensation answers [CompensateStock].
func StockCompensation(orderID, outcome string) Message {
	return Message{TopicStockCompensated, TypeStockCompensated, orderID, Compensated{orderID, outcome}}
}

// Decode reads the payload of an event into its struct (by value, as the
// constructors send it) and checks what every consumer may rely on: the type is
// known, the JSON fits, and order_id is the record's key. Unknown fields are
// ignored, so that a newer sender may add some. Values (a negative amount, say) are the
// consumer's to judge.
func Decode(eventType, key string, payload []byte) (any, error) {
	switch eventType {
	case TypePaymentRequested:
		return decode(key, payload, func(p PaymentRequested) string { return p.OrderID })
	case TypeStockRequested:
		return decode(key, payload, func(p StockRequested) string { return p.OrderID })
	case TypePaymentCompensationRequested, TypeStockCompensationRequested:
		return decode(key, payload, func(p CompensationRequested) string { return p.OrderID })
	case TypePaymentSucceeded:
		return decode(key, payload, func(p PaymentSucceeded) string { return p.OrderID })
	case TypeStockSucceeded:
		return decode(key, payload, func(p StockSucceeded) string { return p.OrderID })
	case TypePaymentRefused, TypeStockRefused:
		return decode(key, payload, func(p Refused) string { return p.OrderID })
	case TypePaymentCompensated, TypeStockCompensated:
		return decode(key, payload, func(p Compensated) string { return p.OrderID })
	case TypePaymentDeadLettered, TypeStockDeadLettered, TypeOrderDeadLettered:
		// The key of a dead letter may be that of a record nobody understands.
		return decode("", payload, func(DeadLettered) string { return "" })
	case "":
		return nil, errors.New(`the record has no header "type"`)
	}
	return nil, fmt.Errorf("the event type %q is unknown", eventType)
}

func decode[P any](key string, payload []byte, orderID func(P) string) (any, error) {
	var p P
	if err := json.Unmarshal(payload, &p); err != nil {
		return nil, fmt.Errorf("the payload does not fit %s: %w", strings.TrimPrefix(fmt.Sprintf("%T", p), "events."), err)
	}
	if id := orderID(p); id != key {
		return nil, fmt.Errorf("the payload's order_id %q is not the record's key %q", id, key)
	}
	return p, nil
}
