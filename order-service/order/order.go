// Package order takes orders and leads each through its saga: payment and stock in
// parallel, compensation of what succeeded if the other failed.
//
// The rooms: order.go has the states and the decisions, which are pure; saga.go says
// which event leads to which decision; store.go is the SQL of the saga and of placing,
// read.go of the queries; wait.go answers those who wait; http.go the routes.
package order

import (
	"outboxsaga/events"

	"github.com/google/uuid"
)

// Status is the state of an order.
type Status string

// The states of an order.
const (
	// InProgress: not both answers are there. [Succeeded] moves it to Success; [Refused],
	// [DeadLettered], [Expire] and [Cancel] to Failed.
	InProgress Status = "IN_PROGRESS"
	// Success: paid and reserved. Final.
	Success Status = "SUCCESS"
	// Failed: what had succeeded is, or will be, compensated. Final.
	Failed Status = "FAILED"
)

// StepStatus is the state of one of the two steps.
type StepStatus string

// The states of a step.
const (
	// StepInProgress: its answer is awaited.
	StepInProgress StepStatus = "IN_PROGRESS"
	// StepSuccess: its effect stands. It moves to StepCompensating if the order fails.
	StepSuccess StepStatus = "SUCCESS"
	// StepFailed: it has no effect. A success that comes nevertheless (its dead letter
	// was redriven) moves it to StepCompensating.
	StepFailed StepStatus = "FAILED"
	// StepCompensating: its compensation was sent. [Compensated] moves it on.
	StepCompensating StepStatus = "COMPENSATING"
	// StepCompensated: nothing of it stands. Final.
	StepCompensated StepStatus = "COMPENSATED"
)

// Participant is one of the two who do the steps.
type Participant string

// The participants.
const (
	Payment Participant = "payment"
	Stock   Participant = "stock"
)

func (p Participant) other() Participant {
	if p == Payment {
		return Stock
	}
	return Payment
}

// The reasons for a failure that are not a participant's refusal.
const (
	ReasonTimeout             = "timeout"
	ReasonCancelled           = "cancelled"
	ReasonPaymentDeadLettered = "payment_dead_lettered"
	ReasonStockDeadLettered   = "stock_dead_lettered"
)

// Step is the state of one step.
type Step struct {
	Status StepStatus
	// Command is the event id of the command that asked for it: a dead letter fails the
	// step only if it is of that event.
	Command uuid.UUID
}

// Order is what the saga knows of an order. The zero value is one that does not exist.
type Order struct {
	ID             string
	Status         Status
	Payment, Stock Step
	FailureReason  string
	// NeedsAttention: a compensation became a dead letter. The order cannot settle
	// before someone redrives it. Where both steps are compensating it stays until the other one is compensated too.
	NeedsAttention bool
}

// Settled: nothing is awaited any more.
func (o Order) Settled() bool {
	for _, s := range []StepStatus{o.Payment.Status, o.Stock.Status} {
		if s == StepInProgress || s == StepCompensating {
			return false
		}
	}
	return true
}

// New is an order that is being placed.
func New(id string, paymentCommand, stockCommand uuid.UUID) Order {
	return Order{ID: id, Status: InProgress, Payment: Step{StepInProgress, paymentCommand}, Stock: Step{StepInProgress, stockCommand}}
}

func (o *Order) step(p Participant) *Step {
	if p == Payment {
		return &o.Payment
	}
	return &o.Stock
}

// Decision is what becomes of an order and the compensations to send.
type Decision struct {
	Order Order
	Send  []events.Message
}

// compensate sends the compensation of a step.
func (d *Decision) compensate(p Participant) {
	d.Order.step(p).Status = StepCompensating
	if p == Payment {
		d.Send = append(d.Send, events.CompensatePayment(d.Order.ID))
	} else {
		d.Send = append(d.Send, events.CompensateStock(d.Order.ID))
	}
}

// fail fails an order and compensates what has succeeded. Steps in progress wait for
// their answers.
func (d *Decision) fail(reason string) {
	d.Order.Status, d.Order.FailureReason = Failed, reason
	for _, p := range []Participant{Payment, Stock} {
		if d.Order.step(p).Status == StepSuccess {
			d.compensate(p)
		}
	}
}

// Succeeded decides X.success. A success that comes when the order has failed already
// is compensated at once ("self compensation"), also where the step had failed by a dead letter
// that was redriven since.
func Succeeded(o Order, p Participant) Decision {
	d := Decision{Order: o}
	step := d.Order.step(p)
	switch {
	case o.Status == InProgress && step.Status == StepInProgress:
		step.Status = StepSuccess
		if d.Order.step(p.other()).Status == StepSuccess {
			d.Order.Status = Success
		}
	case o.Status == Failed && (step.Status == StepInProgress || step.Status == StepFailed):
		d.compensate(p)
	}
	return d
}

// Refused decides X.failed.
func Refused(o Order, p Participant, reason string) Decision {
	d := Decision{Order: o}
	step := d.Order.step(p)
	if step.Status != StepInProgress {
		return d // an answer that came again, or to a command that came after its compensation
	}
	step.Status = StepFailed
	if o.Status == InProgress {
		d.fail(reason)
	}
	return d
}

// Compensated decides X.compensated.
func Compensated(o Order, p Participant) Decision {
	d := Decision{Order: o}
	if step := d.Order.step(p); step.Status == StepCompensating {
		step.Status = StepCompensated
		d.Order.NeedsAttention = d.Order.NeedsAttention && d.Order.step(p.other()).Status == StepCompensating
	}
	return d
}

// DeadLettered decides X.dlt. The dead letter of the step's command fails the step; that of
// its compensation leaves it compensating and calls for attention; that of any other
// record concerns no order.
func DeadLettered(o Order, p Participant, letter events.DeadLettered) Decision {
	d := Decision{Order: o}
	switch letter.EventType {
	case events.TypePaymentRequested, events.TypeStockRequested:
		if letter.EventID == o.step(p).Command.String() {
			reason := ReasonPaymentDeadLettered
			if p == Stock {
				reason = ReasonStockDeadLettered
			}
			return Refused(o, p, reason)
		}
	case events.TypePaymentCompensationRequested, events.TypeStockCompensationRequested:
		if o.step(p).Status == StepCompensating {
			d.Order.NeedsAttention = true
		}
	}
	return d
}

// Expire decides the timeout of an order.
func Expire(o Order) Decision { return end(o, ReasonTimeout) }

// Cancel decides a customer's cancellation. An order that has ended stays as it is; the
// caller tells SUCCESS from FAILED.
func Cancel(o Order) Decision { return end(o, ReasonCancelled) }

func end(o Order, reason string) Decision {
	d := Decision{Order: o}
	if o.Status == InProgress {
		d.fail(reason)
	}
	return d
}
