package payment_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"outboxsaga/events"
	"outboxsaga/payment-service/payment"

	"pgregory.net/rapid"
)

const orderID = "0198c0de-0000-7000-8000-000000000001"

func accounts(all ...payment.Account) func(string) payment.Account {
	return func(customerID string) payment.Account {
		for _, a := range all {
			if a.CustomerID == customerID {
				return a
			}
		}
		return payment.Account{}
	}
}

func request(customerID string, amount int64) events.PaymentRequested {
	return events.PaymentRequested{OrderID: orderID, CustomerID: customerID, Amount: amount}
}

func paid(s payment.Status, reason, customerID string, amount int64) payment.Payment {
	return payment.Payment{OrderID: orderID, CustomerID: customerID, Amount: amount, Status: s, Reason: reason}
}

func TestCharge(t *testing.T) {
	alice := payment.Account{CustomerID: "alice", Balance: 100, Charged: 50, Deposited: 150}
	for name, c := range map[string]struct {
		was   payment.Payment
		cmd   events.PaymentRequested
		want  payment.Payment
		moved []payment.Account
		send  events.Message
	}{
		"enough": {
			cmd: request("alice", 100), want: paid(payment.Charged, "", "alice", 100),
			moved: []payment.Account{{CustomerID: "alice", Balance: 0, Charged: 150, Deposited: 150}},
			send:  events.PaymentSuccess(orderID, 100),
		},
		"one too many": {
			cmd: request("alice", 101), want: paid(payment.Refused, "insufficient_funds", "alice", 101),
			send: events.PaymentRefusal(orderID, "insufficient_funds"),
		},
		"far too many": {
			cmd: request("alice", math.MaxInt64), want: paid(payment.Refused, "insufficient_funds", "alice", math.MaxInt64),
			send: events.PaymentRefusal(orderID, "insufficient_funds"),
		},
		"unknown customer": {
			cmd: request("bob", 1), want: paid(payment.Refused, "unknown_customer", "bob", 1),
			send: events.PaymentRefusal(orderID, "unknown_customer"),
		},
		"repeated while charged": {
			was: paid(payment.Charged, "", "alice", 10), cmd: request("alice", 10),
			want: paid(payment.Charged, "", "alice", 10), send: events.PaymentSuccess(orderID, 10),
		},
		"repeated with other content": {
			was: paid(payment.Charged, "", "alice", 10), cmd: request("bob", 99),
			want: paid(payment.Charged, "", "alice", 10), send: events.PaymentSuccess(orderID, 10),
		},
		"repeated after a refusal, though there is enough now": {
			was: paid(payment.Refused, "unknown_customer", "alice", 10), cmd: request("alice", 10),
			want: paid(payment.Refused, "unknown_customer", "alice", 10), send: events.PaymentRefusal(orderID, "unknown_customer"),
		},
		"repeated after the refund": {
			was: paid(payment.Refunded, "", "alice", 10), cmd: request("alice", 10),
			want: paid(payment.Refunded, "", "alice", 10), send: events.PaymentRefusal(orderID, "compensated"),
		},
		"after its compensation": {
			was: paid(payment.Barred, "", "", 0), cmd: request("alice", 10),
			want: paid(payment.Barred, "", "", 0), send: events.PaymentRefusal(orderID, "compensated"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := payment.Charge(c.was, accounts(alice), c.cmd)
			if err != nil {
				t.Fatal(err)
			}
			if d.Payment != c.want || !slices.Equal(d.Accounts, c.moved) || !slices.Equal(d.Send, []events.Message{c.send}) {
				t.Errorf("got  %+v\nwant %+v %+v %+v", d, c.want, c.moved, c.send)
			}
		})
	}
}

func TestRefund(t *testing.T) {
	alice := payment.Account{CustomerID: "alice", Balance: 100, Charged: 50, Deposited: 150}
	for name, c := range map[string]struct {
		was, want payment.Payment
		moved     []payment.Account
		outcome   string
	}{
		"charged": {
			was: paid(payment.Charged, "", "alice", 50), want: paid(payment.Refunded, "", "alice", 50),
			moved:   []payment.Account{{CustomerID: "alice", Balance: 150, Charged: 0, Deposited: 150}},
			outcome: "refunded",
		},
		"refunded before": {was: paid(payment.Refunded, "", "alice", 50), want: paid(payment.Refunded, "", "alice", 50), outcome: "refunded"},
		"refused": {
			was: paid(payment.Refused, "unknown_customer", "bob", 1), want: paid(payment.Refused, "unknown_customer", "bob", 1),
			outcome: "nothing_to_refund",
		},
		"before its command": {want: paid(payment.Barred, "", "", 0), outcome: "nothing_to_refund"},
		"barred before":      {was: paid(payment.Barred, "", "", 0), want: paid(payment.Barred, "", "", 0), outcome: "nothing_to_refund"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := payment.Refund(c.was, accounts(alice), orderID)
			if err != nil {
				t.Fatal(err)
			}
			want := []events.Message{events.PaymentCompensation(orderID, c.outcome)}
			if d.Payment != c.want || !slices.Equal(d.Accounts, c.moved) || !slices.Equal(d.Send, want) {
				t.Errorf("got  %+v\nwant %+v %+v %+v", d, c.want, c.moved, want)
			}
		})
	}
}

func TestRefundRefusesToInventMoney(t *testing.T) {
	d, err := payment.Refund(paid(payment.Charged, "", "alice", 51), accounts(payment.Account{CustomerID: "alice", Charged: 50, Deposited: 50}), orderID)
	if err == nil {
		t.Errorf("more was refunded than was charged: %+v", d)
	}
}

func TestImpossibleCommands(t *testing.T) {
	for name, cmd := range map[string]events.PaymentRequested{
		"zero":          request("alice", 0),
		"negative":      request("alice", -1),
		"most negative": request("alice", math.MinInt64),
		"no customer":   request("", 1),
		"NUL":           request("a\x00", 1),
		"blank":         request("a b", 1),
		"long":          request(strings.Repeat("x", 101), 1),
	} {
		if err := payment.Validate(cmd); err == nil {
			t.Errorf("%s: valid", name)
		}
		if d, err := payment.Charge(payment.Payment{}, accounts(), cmd); err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestDeposit(t *testing.T) {
	a, err := payment.Deposit(payment.Account{}, "alice", 3)
	if err != nil || a != (payment.Account{CustomerID: "alice", Balance: 3, Deposited: 3}) {
		t.Error(a, err)
	}
	a, err = payment.Deposit(payment.Account{CustomerID: "alice", Balance: 1, Charged: 2, Deposited: 3}, "alice", 4)
	if err != nil || a != (payment.Account{CustomerID: "alice", Balance: 5, Charged: 2, Deposited: 7}) {
		t.Error(a, err)
	}
	for _, amount := range []int64{0, -1, math.MinInt64, payment.MaxDeposited + 1, math.MaxInt64} {
		if _, err := payment.Deposit(payment.Account{}, "alice", amount); err == nil {
			t.Errorf("%d was deposited", amount)
		}
	}
	full := payment.Account{CustomerID: "alice", Balance: payment.MaxDeposited, Deposited: payment.MaxDeposited}
	if _, err := payment.Deposit(full, "alice", 1); err == nil {
		t.Error("an account got more than its bound")
	}
}

// Any sequence of deposits, commands and compensations, repeated and out of order, keeps
// the money, and each order has the effect that its payment says.
func TestMoneyIsConserved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		money, payments := map[string]payment.Account{}, map[string]payment.Payment{}
		said := map[string]map[string]bool{} // order → topics that it was answered on
		get := func(customerID string) payment.Account { return money[customerID] }
		apply := func(id string, d payment.Decision, err error) {
			if err != nil {
				t.Fatal(err)
			}
			was := payments[id]
			if was == d.Payment && len(d.Accounts) > 0 {
				t.Fatalf("an effect without a new state: %+v", d)
			}
			if final := was.Status == payment.Refused || was.Status == payment.Refunded || was.Status == payment.Barred; final && was != d.Payment {
				t.Fatalf("a final state changed: %+v → %+v", was, d.Payment)
			}
			payments[id] = d.Payment
			for _, a := range d.Accounts {
				money[a.CustomerID] = a
			}
			if said[id] == nil {
				said[id] = map[string]bool{}
			}
			for _, m := range d.Send {
				said[id][m.Topic] = true
			}
		}
		customers := rapid.SampledFrom([]string{"a", "b"})
		orders := rapid.SampledFrom([]string{"o1", "o2", "o3"})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			id := orders.Draw(t, "order")
			switch rapid.IntRange(0, 2).Draw(t, "action") {
			case 0:
				customer := customers.Draw(t, "customer")
				a, err := payment.Deposit(money[customer], customer, rapid.Int64Range(1, 5).Draw(t, "amount"))
				if err != nil {
					t.Fatal(err)
				}
				money[customer] = a
			case 1:
				cmd := events.PaymentRequested{OrderID: id, CustomerID: customers.Draw(t, "customer"), Amount: rapid.Int64Range(1, 6).Draw(t, "amount")}
				d, err := payment.Charge(payments[id], get, cmd)
				apply(id, d, err)
			case 2:
				d, err := payment.Refund(payments[id], get, id)
				apply(id, d, err)
			}
			charged := map[string]int64{}
			for id, p := range payments {
				if p.Status != payment.Charged {
					continue
				}
				if said[id][events.TopicPaymentFailed] || said[id][events.TopicPaymentCompensated] {
					t.Fatalf("order %s is charged and was told otherwise", id)
				}
				charged[p.CustomerID] += p.Amount
			}
			for customer, a := range money {
				if a.Balance < 0 || a.Charged < 0 || a.Deposited != a.Balance+a.Charged || a.Charged != charged[customer] {
					t.Fatalf("%+v, charged %d", a, charged[customer])
				}
			}
		}
	})
}
