// Package payment keeps the customers' accounts and charges them for orders.
//
// The rooms: payment.go has the states and the decisions, which are pure; saga.go says
// which event leads to which decision; store.go is the SQL; http.go the routes.
//
// What holds at every commit: nothing is below zero, and for each account
// deposited = balance + charged. Money is an integer in minor units.
package payment

import (
	"fmt"

	"outboxsaga/events"
	"outboxsaga/internal/service"
)

// Status is the state of a payment. There is one payment an order, for ever: it is the
// recorded answer to the order's command.
type Status string

// The states of a payment; "" is one that does not exist.
const (
	// Charged: the money is taken. [Refund] moves it to Refunded.
	Charged Status = "CHARGED"
	// Refused: too little was there. Final; a compensation finds nothing to refund.
	Refused Status = "REFUSED"
	// Refunded: the money is back on the account. Final.
	Refunded Status = "REFUNDED"
	// Barred: the compensation came before its command, which will have no effect when
	// it comes. Final.
	Barred Status = "BARRED"
)

// MaxDeposited bounds what can ever be deposited on one account, so that no sum overflows.
const MaxDeposited = 1_000_000_000_000_000

// Account is a customer's money. The zero value stands for an unknown customer.
type Account struct {
	CustomerID string `json:"customer_id"`
	Balance    int64  `json:"balance"`
	Charged    int64  `json:"charged"`
	Deposited  int64  `json:"deposited"`
}

// Payment is the state of one order's step. The zero value stands for none.
type Payment struct {
	OrderID    string
	CustomerID string // empty in a tombstone
	Amount     int64  // 0 in a tombstone
	Status     Status
	Reason     string // of a refusal: one of the Reason constants of package events
}

// Decision is what becomes of a payment, the accounts that change with it (one or
// none), and the messages to send.
type Decision struct {
	Payment  Payment
	Accounts []Account
	Send     []events.Message
}

// Charge decides a payment.requested. was is the order's payment, account returns a
// customer's account as it is (the zero value for an unknown customer). A repeated command,
// whatever it asks, changes nothing and gets the recorded answer. An error says that the
// command is impossible.
func Charge(was Payment, account func(customerID string) Account, cmd events.PaymentRequested) (Decision, error) {
	if err := Validate(cmd); err != nil {
		return Decision{}, err
	}
	if was.Status != "" {
		return Decision{Payment: was, Send: []events.Message{answer(was)}}, nil
	}
	d := Decision{Payment: Payment{OrderID: cmd.OrderID, CustomerID: cmd.CustomerID, Amount: cmd.Amount, Status: Charged}}
	a := account(cmd.CustomerID)
	switch {
	case a.CustomerID == "":
		d.Payment.Status, d.Payment.Reason = Refused, events.ReasonUnknownCustomer
	case a.Balance < cmd.Amount:
		d.Payment.Status, d.Payment.Reason = Refused, events.ReasonInsufficientFunds
	default:
		a.Balance -= cmd.Amount
		a.Charged += cmd.Amount
		d.Accounts = []Account{a}
	}
	d.Send = []events.Message{answer(d.Payment)}
	return d, nil
}

// Refund decides a payment.compensation_requested. Afterwards the order has cost nothing,
// and never will: where no command came yet a tombstone bars it. A repeated compensation
// gets the same acknowledgement. An error says that the payment and the account contradict each
// other.
func Refund(was Payment, account func(customerID string) Account, orderID string) (Decision, error) {
	d := Decision{Payment: was}
	outcome := events.OutcomeNothingToRefund
	switch was.Status {
	case "":
		d.Payment = Payment{OrderID: orderID, Status: Barred}
	case Charged:
		a := account(was.CustomerID)
		if a.Charged < was.Amount {
			return Decision{}, fmt.Errorf("%d are charged to %q, but order %s took %d", a.Charged, was.CustomerID, orderID, was.Amount)
		}
		a.Balance += was.Amount
		a.Charged -= was.Amount
		d.Accounts = []Account{a}
		d.Payment.Status = Refunded
		outcome = events.OutcomeRefunded
	case Refunded:
		outcome = events.OutcomeRefunded
	case Refused, Barred:
	}
	d.Send = []events.Message{events.PaymentCompensation(orderID, outcome)}
	return d, nil
}

// Deposit decides a deposit. account is the zero value for a customer who is new.
func Deposit(account Account, customerID string, amount int64) (Account, error) {
	if amount < 1 || amount > MaxDeposited {
		return account, service.BadRequest("bad-value", `"amount" must be a whole number from 1 to %d`, int64(MaxDeposited))
	}
	if account.Deposited > MaxDeposited-amount {
		return account, service.Unprocessable("too-much", "%q would exceed the %d that can be deposited on one account", customerID, int64(MaxDeposited))
	}
	account.CustomerID = customerID
	account.Balance += amount
	account.Deposited += amount
	return account, nil
}

// answer is what a command gets for the payment that is recorded. Once refunded, the
// truth is that nothing stands, whatever was said before.
func answer(p Payment) events.Message {
	switch p.Status {
	case Charged:
		return events.PaymentSuccess(p.OrderID, p.Amount)
	case Refused:
		return events.PaymentRefusal(p.OrderID, p.Reason)
	default: // Refunded, Barred
		return events.PaymentRefusal(p.OrderID, events.ReasonCompensated)
	}
}

// Validate says why a command can never work, or nil.
func Validate(cmd events.PaymentRequested) error {
	if err := service.Name("customer_id", cmd.CustomerID); err != nil {
		return err
	}
	if cmd.Amount < 1 {
		return fmt.Errorf("the amount is %d: it must be positive", cmd.Amount)
	}
	return nil
}
