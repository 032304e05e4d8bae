package order_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"outboxsaga/events"
	"outboxsaga/order-service/order"
	"outboxsaga/outbox"

	"github.com/google/uuid"
)

var (
	orderID        = "0198c0de-0000-7000-8000-000000000001"
	paymentCommand = uuid.MustParse("0198c0de-0000-7000-8000-00000000000a")
	stockCommand   = uuid.MustParse("0198c0de-0000-7000-8000-00000000000b")
)

// letters abbreviate states: an order FAILED whose payment is COMPENSATING and whose stock is
// IN_PROGRESS is "FCI".
var (
	statuses = map[byte]order.Status{'I': order.InProgress, 'S': order.Success, 'F': order.Failed}
	steps    = map[byte]order.StepStatus{
		'I': order.StepInProgress, 'S': order.StepSuccess, 'F': order.StepFailed, 'C': order.StepCompensating, 'U': order.StepCompensated,
	}
)

// parse reads a state; a "*" at its end means that it needs attention.
func parse(text string) order.Order {
	o := order.New(orderID, paymentCommand, stockCommand)
	o.Status, o.Payment.Status, o.Stock.Status = statuses[text[0]], steps[text[1]], steps[text[2]]
	if o.Status == order.Failed {
		o.FailureReason = "before"
	}
	o.NeedsAttention = strings.HasSuffix(text, "*")
	return o
}

func say(d order.Decision) string {
	text := make([]byte, 3)
	for letter, s := range statuses {
		if d.Order.Status == s {
			text[0] = letter
		}
	}
	for letter, s := range steps {
		if d.Order.Payment.Status == s {
			text[1] = letter
		}
		if d.Order.Stock.Status == s {
			text[2] = letter
		}
	}
	said := string(text)
	if d.Order.NeedsAttention {
		said += "*"
	}
	for _, m := range d.Send {
		said += " " + strings.TrimSuffix(m.Topic, ".compensation")
	}
	return said
}

// mirror swaps payment and stock in what say says.
func mirror(text string) string {
	swapped := text[:1] + text[2:3] + text[1:2] + text[3:]
	return strings.NewReplacer("payment", "stock", "stock", "payment").Replace(swapped)
}

func dead(eventType string, id uuid.UUID) events.DeadLettered {
	return events.DeadLettered{OrderID: orderID, EventType: eventType, EventID: id.String(), Error: "poison"}
}

// decisions are the events that concern a step, in the order of the columns below.
func decisions(p order.Participant) []func(order.Order) order.Decision {
	command, request, compensation := paymentCommand, events.TypePaymentRequested, events.TypePaymentCompensationRequested
	if p == order.Stock {
		command, request, compensation = stockCommand, events.TypeStockRequested, events.TypeStockCompensationRequested
	}
	return []func(order.Order) order.Decision{
		func(o order.Order) order.Decision { return order.Succeeded(o, p) },
		func(o order.Order) order.Decision { return order.Refused(o, p, "why") },
		func(o order.Order) order.Decision { return order.Compensated(o, p) },
		func(o order.Order) order.Decision { return order.DeadLettered(o, p, dead(request, command)) },
		func(o order.Order) order.Decision {
			return order.DeadLettered(o, p, dead(compensation, outbox.NewID()))
		},
		order.Expire,
		order.Cancel,
	}
}

// table is every state with every event of payment. "." leaves all as it is. With payment and
// stock swapped it holds too, which the test checks as well.
//
// order, payment, stock: success, refusal, compensated, dead command, dead compensation, timeout, cancel
const table = `
III   ISI         FFI         .     FFI         .     FII         FII
ISI   .           .           .     .           .     FCI payment FCI payment
IIS   SSS         FFC stock   .     FFC stock   .     FIC stock   FIC stock
SSS   .           .           .     .           .     .           .
FII   FCI payment FFI         .     FFI         .     .           .
FIF   FCF payment FFF         .     FFF         .     .           .
FIC   FCC payment FFC         .     FFC         .     .           .
FIU   FCU payment FFU         .     FFU         .     .           .
FFI   FCI payment .           .     .           .     .           .
FFF   FCF payment .           .     .           .     .           .
FFC   FCC payment .           .     .           .     .           .
FFU   FCU payment .           .     .           .     .           .
FCI   .           .           FUI   .           FCI*  .           .
FCF   .           .           FUF   .           FCF*  .           .
FCC   .           .           FUC   .           FCC*  .           .
FCU   .           .           FUU   .           FCU*  .           .
FUI   .           .           .     .           .     .           .
FUF   .           .           .     .           .     .           .
FUC   .           .           .     .           .     .           .
FUU   .           .           .     .           .     .           .
FCI*  .           .           FUI   .           .     .           .
FCF*  .           .           FUF   .           .     .           .
FCC*  .           .           FUC*  .           .     .           .
FCU*  .           .           FUU   .           .     .           .
FIC*  FCC* payment FFC*       .     FFC*        .     .           .
FFC*  FCC* payment .          .     .           .     .           .
FUC*  .           .           .     .           .     .           .
`

func TestEveryEventInEveryState(t *testing.T) {
	seen := map[string]bool{}
	for line := range strings.Lines(strings.TrimSpace(table)) {
		cells := cells(line)
		state := cells[0]
		seen[state] = true
		for i, want := range cells[1:] {
			if want == "." {
				want = state
			}
			was := parse(state)
			if got := say(decisions(order.Payment)[i](was)); got != want {
				t.Errorf("%s, payment's event %d: %q, want %q", state, i, got, want)
			}
			if got := say(decisions(order.Stock)[i](parse(mirror(state)))); got != mirror(want) {
				t.Errorf("%s, stock's event %d: %q, want %q", mirror(state), i, got, mirror(want))
			}
		}
	}
	for _, state := range valid() {
		if !seen[state] && !seen[mirror(state)] {
			t.Errorf("the table lacks %s", state)
		}
	}
}

// cells splits a line of the table: a topic belongs to the state before it.
func cells(line string) []string {
	var all []string
	for _, f := range strings.Fields(line) {
		if f == "payment" || f == "stock" {
			all[len(all)-1] += " " + f
		} else {
			all = append(all, f)
		}
	}
	return all
}

// valid are the states that the matrix knows, each also with a call for attention where
// something is compensating.
func valid() (all []string) {
	for _, s := range "ISF" {
		for _, p := range "ISFCU" {
			for _, k := range "ISFCU" {
				state := string([]rune{s, p, k})
				switch {
				case s == 'S' && state != "SSS",
					s == 'I' && (strings.ContainsAny(state, "FCU") || state == "ISS"),
					s == 'F' && strings.Contains(state, "S"):
					continue
				}
				all = append(all, state)
				if strings.Contains(state, "C") {
					all = append(all, state+"*")
				}
			}
		}
	}
	return all
}

// No event leads out of the valid states, ends an order twice or changes why it failed; an event
// that comes again changes nothing more.
func TestDecisionsKeepTheRules(t *testing.T) {
	for _, state := range valid() {
		was := parse(state)
		for _, p := range []order.Participant{order.Payment, order.Stock} {
			for i, decide := range decisions(p) {
				d := decide(was)
				now := strings.Fields(say(d))[0]
				at := fmt.Sprintf("%s, %s's event %d: %s", state, p, i, now)
				if !slices.Contains(valid(), now) {
					t.Errorf("%s is not valid", at)
				}
				if was.Status != order.InProgress && (d.Order.Status != was.Status || d.Order.FailureReason != was.FailureReason) {
					t.Errorf("%s: the end changed", at)
				}
				if (d.Order.Status == order.Failed) != (d.Order.FailureReason != "") {
					t.Errorf("%s with reason %q", at, d.Order.FailureReason)
				}
				if d.Order.Settled() == strings.ContainsAny(now[1:], "IC") {
					t.Errorf("%s: settled %t", at, d.Order.Settled())
				}
				if d.Order.ID != was.ID || d.Order.Payment.Command != was.Payment.Command || d.Order.Stock.Command != was.Stock.Command {
					t.Errorf("%s: ids changed", at)
				}
				if again := decide(d.Order); again.Order != d.Order || len(again.Send) != 0 {
					t.Errorf("%s, again: %s", at, say(again))
				}
				for _, m := range d.Send {
					if m != events.CompensatePayment(orderID) && m != events.CompensateStock(orderID) {
						t.Errorf("%s sends %+v", at, m)
					}
				}
			}
		}
	}
}

func TestReasons(t *testing.T) {
	for want, decide := range map[string]func(order.Order) order.Decision{
		"why":                   decisions(order.Payment)[1],
		"payment_dead_lettered": decisions(order.Payment)[3],
		"stock_dead_lettered":   decisions(order.Stock)[3],
		"timeout":               order.Expire,
		"cancelled":             order.Cancel,
	} {
		if got := decide(parse("III")).Order.FailureReason; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Only the dead letter of the command that the order sent fails it: not that of a copy with
// another id, of the other step's command, or of any other record.
func TestDeadLettersOfOtherRecords(t *testing.T) {
	for name, letter := range map[string]events.DeadLettered{
		"another event":            dead(events.TypePaymentRequested, outbox.NewID()),
		"the other step's command": dead(events.TypePaymentRequested, stockCommand),
		"no id":                    {EventType: events.TypePaymentRequested},
		"an answer":                dead(events.TypePaymentSucceeded, paymentCommand),
		"no type":                  {EventID: paymentCommand.String()},
	} {
		for _, state := range valid() {
			was := parse(state)
			if d := order.DeadLettered(was, order.Payment, letter); d.Order != was || len(d.Send) != 0 {
				t.Errorf("%s in %s: %s", name, state, say(d))
			}
		}
	}
}
