// Package events is the wire contract of the order saga: the topics, the event
// types, and the JSON payload of each event.
//
// Every topic is keyed by order id and has [Partitions] partitions. A record
// carries its event id (UUIDv7) in the header "id", its type in the header
// "type", and a W3C trace context in "traceparent" where there is one. Money is
// an integer in minor units.
//
// The golden files in testdata pin the JSON. A change that breaks them breaks
// consumers in other code bases.
package events

import (
	"encoding/json"
	"strings"
	"time"
)

// Partitions is the number of partitions of every topic. It must never change:
// keys would move to other partitions and lose their order.
const Partitions = 6

// The topics. Commands are written by order-service; each participant answers on
// topics of its own.
const (
	TopicPayment             = "payment"
	TopicPaymentCompensation = "payment.compensation"
	TopicPaymentSuccess      = "payment.success"
	TopicPaymentFailed       = "payment.failed"
	TopicPaymentCompensated  = "payment.compensated"
	TopicPaymentDLT          = "payment.dlt"

	TopicStock             = "stock"
	TopicStockCompensation = "stock.compensation"
	TopicStockSuccess      = "stock.success"
	TopicStockFailed       = "stock.failed"
	TopicStockCompensated  = "stock.compensated"
	TopicStockDLT          = "stock.dlt"

	TopicOrderDLT = "order.dlt"
)

// The event types, as in the header "type".
const (
	TypePaymentRequested             = "payment.requested"
	TypePaymentCompensationRequested = "payment.compensation_requested"
	TypePaymentSucceeded             = "payment.succeeded"
	TypePaymentRefused               = "payment.refused"
	TypePaymentCompensated           = "payment.compensated"
	TypePaymentDeadLettered          = "payment.dead_lettered"

	TypeStockRequested             = "stock.requested"
	TypeStockCompensationRequested = "stock.compensation_requested"
	TypeStockSucceeded             = "stock.succeeded"
	TypeStockRefused               = "stock.refused"
	TypeStockCompensated           = "stock.compensated"
	TypeStockDeadLettered          = "stock.dead_lettered"

	TypeOrderDeadLettered = "order.dead_lettered"
)

// OrderTopics, StockTopics and PaymentTopics are the topics that the database of
// each service writes. The services' migrations enforce the same lists by a CHECK.
func OrderTopics() []string {
	return []string{TopicPayment, TopicPaymentCompensation, TopicStock, TopicStockCompensation, TopicOrderDLT}
}

// StockTopics: see [OrderTopics].
func StockTopics() []string {
	return []string{TopicStockSuccess, TopicStockFailed, TopicStockCompensated, TopicStockDLT}
}

// PaymentTopics: see [OrderTopics].
func PaymentTopics() []string {
	return []string{TopicPaymentSuccess, TopicPaymentFailed, TopicPaymentCompensated, TopicPaymentDLT}
}

// Topics are all topics of the saga.
func Topics() []string {
	return append(append(OrderTopics(), StockTopics()...), PaymentTopics()...)
}

// Consumer is the participant (order, stock or payment) whose inbox takes the events of a topic;
// empty for a topic that people read: order.dlt.
func Consumer(topic string) string {
	switch participant, answer, _ := strings.Cut(topic, "."); {
	case participant == "order":
		return ""
	case answer == "" || answer == "compensation":
		return participant
	}
	return "order"
}

// PaymentRequested asks payment-service to charge a customer for an order.
type PaymentRequested struct {
	OrderID    string `json:"order_id"`
	CustomerID string `json:"customer_id"`
	Amount     int64  `json:"amount"` // minor units, positive
}

// CompensationRequested asks a participant to undo its step of an order.
type CompensationRequested struct {
	OrderID string `json:"order_id"`
}

// Item is one line of an order.
type Item struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"` // positive
}

// StockRequested asks stock-service to reserve all items of an order, or none.
type StockRequested struct {
	OrderID string `json:"order_id"`
	Items   []Item `json:"items"`
}

// PaymentSucceeded says that the customer was charged.
type PaymentSucceeded struct {
	OrderID string `json:"order_id"`
	Amount  int64  `json:"amount"` // minor units
}

// StockSucceeded says that all items are reserved.
type StockSucceeded struct {
	OrderID string `json:"order_id"`
}

// Refused says that a step was refused; that is a normal answer, not a fault.
type Refused struct {
	OrderID string `json:"order_id"`
	Reason  string `json:"reason"` // one of the Reason constants
}

// The reasons of [Refused].
const (
	ReasonInsufficientFunds = "insufficient_funds"
	ReasonUnknownCustomer   = "unknown_customer"
	ReasonInsufficientStock = "insufficient_stock"
	ReasonUnknownItem       = "unknown_item"
	// ReasonCompensated: the command arrived after its own compensation.
	ReasonCompensated = "compensated"
)

// Compensated says that nothing of a step stands any more.
type Compensated struct {
	OrderID string `json:"order_id"`
	Outcome string `json:"outcome"` // one of the Outcome constants
}

// The outcomes of [Compensated]. The Nothing… ones mean that the compensation
// arrived where no effect stood: the step had been refused, or its command had
// not arrived yet and will have no effect when it does.
const (
	OutcomeRefunded         = "refunded"
	OutcomeNothingToRefund  = "nothing_to_refund"
	OutcomeReleased         = "released"
	OutcomeNothingToRelease = "nothing_to_release"
)

// DeadLettered says that a service put a record aside that it cannot handle.
// The record itself is kept in the dead_letters table of that service.
type DeadLettered struct {
	OrderID   string    `json:"order_id,omitempty"` // the record's key or payload, where it is an order id
	EventID   string    `json:"event_id,omitempty"` // the header "id" as it was, valid or not
	EventType string    `json:"event_type,omitempty"`
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Error     string    `json:"error"`
	Attempts  int       `json:"attempts"`
	FailedAt  time.Time `json:"failed_at"` // UTC
	// Payload is the original where it is JSON, PayloadBase64 where it is not.
	// Both are absent where the whole would exceed what Kafka accepts
	// (PayloadOmitted): then only the dead_letters table has it.
	Payload        json.RawMessage `json:"payload,omitempty"`
	PayloadBase64  []byte          `json:"payload_base64,omitempty"`
	PayloadOmitted bool            `json:"payload_omitted,omitempty"`
}
