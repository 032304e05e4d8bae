package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/system"
	"outboxsaga/order-service/order"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// cause is why an order waits.
type cause string

// The causes.
const (
	commandNotHandled cause = "command_not_handled" // sent, not yet in the participant's inbox
	answerNotHandled  cause = "answer_not_handled"  // sent, not yet in order-service's inbox
	deadLetterOpen    cause = "dead_letter_open"    // someone must decide
	deadLetterDropped cause = "dead_letter_dropped" // discarded: no answer will come
	answerMissing     cause = "answer_missing"      // handled, and no answer in the outbox
	answerIgnored     cause = "answer_ignored"      // order-service has the answer and still waits
)

// wait is one thing that an order waits for.
type wait struct {
	Step       order.Participant `json:"step"`
	Cause      cause             `json:"cause"`
	Event      string            `json:"event"` // that is not handled
	EventID    uuid.UUID         `json:"event_id"`
	SentAt     *time.Time        `json:"sent_at"`
	Service    string            `json:"service"` // that has to act
	DeadLetter *uuid.UUID        `json:"dead_letter,omitempty"`
	Text       string            `json:"text"`
	// Around is what is wrong on the way there: the consumer, its lag, the connector.
	Around []string `json:"around,omitempty"`

	topic, from string // of the event
}

// waits says what an order waits for, one for each step that has not ended.
func (s *saga) waits() []wait {
	if s.Order == nil {
		return nil
	}
	var all []wait
	for _, step := range []struct {
		of      order.Participant
		status  order.StepStatus
		command uuid.UUID
	}{{order.Payment, s.Order.PaymentStatus, s.Order.PaymentCommand}, {order.Stock, s.Order.StockStatus, s.Order.StockCommand}} {
		p := string(step.of)
		switch step.status {
		case order.StepInProgress:
			all = append(all, s.wait(step.of, step.command, p+".requested", events.TopicPayment, p+".succeeded", p+".refused", p+".dead_lettered"))
		case order.StepCompensating:
			var id uuid.UUID
			for _, e := range s.Events { // the last one: there is no more than one
				if e.Event == p+".compensation_requested" && e.EventID != nil {
					id = *e.EventID
				}
			}
			all = append(all, s.wait(step.of, id, p+".compensation_requested", events.TopicPaymentCompensation, p+".compensated"))
		}
	}
	return all
}

// wait says why the command with an id has not led to one of its answers. like is the command's topic for payment.
func (s *saga) wait(p order.Participant, id uuid.UUID, command, like string, answers ...string) wait {
	w := wait{
		Step: p, Event: command, EventID: id, Service: string(p), from: "order",
		topic: strings.Replace(like, string(order.Payment), string(p), 1),
	}
	var sent, answer *sagaEvent
	for i := range s.Events {
		e := &s.Events[i]
		switch {
		case e.EventID != nil && *e.EventID == id:
			sent = e
		case e.From == string(p) && isAnswer(e, id, answers):
			answer = e
		}
	}
	if sent != nil {
		w.SentAt = &sent.At
	}
	if answer != nil {
		w.Event, w.EventID, w.SentAt, w.Service, w.from, w.topic = answer.Event, *answer.EventID, &answer.At, "order", string(p), answer.Topic
	}
	// The last dead letter of the event that is in the way, then the event itself.
	var letter *sagaLetter
	for i := range s.DeadLetters {
		if l := &s.DeadLetters[i]; l.EventID == w.EventID.String() && l.Service == w.Service {
			letter = l
		}
	}
	if letter == nil && answer == nil {
		// The row of an answer that was put aside may be gone from its outbox; the dead letter stays.
		for i := range s.DeadLetters {
			l := &s.DeadLetters[i]
			if l.Service == "order" && l.Status != inbox.Redriven && slices.Contains(answers, l.EventType) && !strings.HasSuffix(l.EventType, ".dead_lettered") {
				letter = l
				w.Event, w.Service, w.from, w.topic = l.EventType, "order", string(p), l.Topic
				w.EventID, _ = uuid.Parse(l.EventID)
			}
		}
	}
	switch {
	case letter != nil && letter.Status == inbox.Open:
		w.Cause, w.DeadLetter = deadLetterOpen, &letter.ID
		w.Text = fmt.Sprintf("%s-service has put %s aside (%s): mend the cause, then outboxctl dead-letters redrive %s", w.Service, w.Event, plain(letter.Error, 200), letter.ID)
	case letter != nil && letter.Status == inbox.Discarded:
		w.Cause, w.DeadLetter = deadLetterDropped, &letter.ID
		w.Text = fmt.Sprintf("the dead letter of %s was discarded by %s (%s), so nothing will answer: see by hand what stands of this step",
			w.Event, plain(deref(letter.ResolvedBy), 100), plain(deref(letter.Reason), 200))
	case answer != nil && answer.ReceivedAt != nil:
		w.Cause = answerIgnored
		w.Text = fmt.Sprintf("order-service has handled %s and waits nevertheless: that should not be, outboxctl saga show %s has all that is known", w.Event, s.OrderID)
	case answer != nil:
		w.Cause = answerNotHandled
		w.Text = fmt.Sprintf("%s-service has answered with %s, order-service has not handled it", p, w.Event)
	case sent == nil || sent.ReceivedAt == nil:
		w.Cause = commandNotHandled
		w.Text = fmt.Sprintf("%s-service has not handled %s", p, w.Event)
	default:
		w.Cause = answerMissing
		w.Text = fmt.Sprintf("%s-service has handled %s, and its outbox has no answer (any more: rows are kept for days): look for the order's key on the topics of its answers", p, w.Event)
	}
	return w
}

// isAnswer: one of the types; and a dead letter answers only the command that it holds.
func isAnswer(e *sagaEvent, command uuid.UUID, types []string) bool {
	for _, t := range types {
		if e.Event != t || e.EventID == nil {
			continue
		}
		if !strings.HasSuffix(t, ".dead_lettered") {
			return true
		}
		var letter events.DeadLettered
		return json.Unmarshal(e.Payload, &letter) == nil && letter.EventID == command.String()
	}
	return false
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// explain adds to each wait for an event what is wrong on the event's way.
func explain(waits []wait, r roads) {
	for i := range waits {
		w := &waits[i]
		if w.Cause == commandNotHandled || w.Cause == answerNotHandled {
			w.Around = r.troubles(w.from, w.Service, w.topic)
		}
	}
}

// roads is what lies between the outboxes and the inboxes.
type roads struct {
	connectors map[string]string           // by service: what is wrong with the connector of its database
	services   map[string]string           // by service: why it does not answer
	groups     map[string]string           // by service: what is wrong with its consumer group
	lag        map[string]map[string]int64 // by service and topic: records not yet handled
	unknown    []string                    // what could not be found out
}

// troubles are those between the outbox of from and the inbox of to.
func (r roads) troubles(from, to, topic string) []string {
	var all []string
	for _, text := range []string{r.services[to], r.groups[to]} {
		if text != "" {
			all = append(all, text)
		}
	}
	if n := r.lag[to][topic]; n > 0 {
		all = append(all, fmt.Sprintf("%s-service is %d %s behind on topic %s", to, n, plural(n, "record"), topic))
	}
	if text := r.connectors[from]; text != "" {
		all = append(all, text)
	}
	if len(all) == 0 && r.lag[to] != nil {
		all = append(all, fmt.Sprintf("%s-service, the connector and the consumer group look well: has the record just come?", to))
	}
	return append(all, r.unknown...)
}

func plural(n int64, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// roads finds out the state of connectors, consumer groups and services. What it cannot find out
// is told, not an error: it is asked when something is broken.
func (d *databases) roads(ctx context.Context) roads {
	r := roads{connectors: map[string]string{}, services: map[string]string{}, groups: map[string]string{}, lag: map[string]map[string]int64{}}
	for _, s := range system.Services() {
		short := strings.TrimSuffix(s.Name, "-service")
		name := s.Database.Name
		switch slot, err := readSlot(ctx, d.conns[short], name); {
		case err != nil:
			r.unknown = append(r.unknown, err.Error())
		case slot.WALStatus == "missing":
			r.connectors[short] = fmt.Sprintf("the slot %s of connector %s is missing: events leave %s no more; run outboxctl provision, then scripts/register-connectors.sh", slot.Slot, name, name)
		case !slot.Active:
			r.connectors[short] = fmt.Sprintf("connector %s does not stream (its slot is %d bytes behind): scripts/register-connectors.sh starts it or says what is wrong", name, slot.LagBytes)
		case slot.LagBytes > 64<<20:
			r.connectors[short] = fmt.Sprintf("connector %s is %d MiB behind", name, slot.LagBytes>>20)
		}
		if base, variable, err := serviceURL(s); err == nil && (d.local || os.Getenv(variable) != "" || os.Getenv(s.PortVariable) != "") {
			ask, cancel := context.WithTimeout(ctx, 2*time.Second)
			if err := system.Ask(ask, base+"/readyz"); errors.Is(err, context.DeadlineExceeded) {
				r.services[short] = fmt.Sprintf("%s is not ready: %s gives no answer within 2 s", s.Name, base)
			} else if err != nil {
				r.services[short] = fmt.Sprintf("%s is not ready: %s", s.Name, plain(err.Error(), 300))
			}
			cancel()
		}
	}
	if len(d.brokers) == 0 {
		r.unknown = append(r.unknown, "consumer lag is not known: set KAFKA_BROKERS")
		return r
	}
	if err := r.askKafka(ctx, d.brokers); err != nil {
		r.unknown = append(r.unknown, fmt.Sprintf("consumer lag is not known, Kafka does not answer at %s: %s", strings.Join(d.brokers, ","), plain(err.Error(), 300)))
	}
	return r
}

// askKafka reads the state and the lag of the consumer groups.
func (r roads) askKafka(ctx context.Context, brokers []string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer client.Close()
	var names []string
	for _, s := range system.Services() {
		names = append(names, s.Name)
	}
	groups, err := kadm.NewClient(client).Lag(ctx, names...)
	if err != nil {
		return err
	}
	for name, g := range groups {
		short := strings.TrimSuffix(name, "-service")
		switch err := cmp.Or(g.DescribeErr, g.FetchErr); {
		case err != nil:
			r.groups[short] = fmt.Sprintf("the consumer group %s is not known to Kafka: %s", name, err)
			continue
		case len(g.Members) == 0:
			r.groups[short] = fmt.Sprintf("the consumer group %s has no member: no instance of %s consumes", name, name)
		case g.State != "Stable":
			r.groups[short] = fmt.Sprintf("the consumer group %s is being rebalanced (%s)", name, g.State)
		}
		r.lag[short] = map[string]int64{}
		for topic, partitions := range g.Lag {
			for _, p := range partitions {
				r.lag[short][topic] += max(0, p.Lag)
			}
		}
	}
	return nil
}
