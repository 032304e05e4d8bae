package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
)

const sagaHelp = `
It reads the databases of the local stack, or those at ORDER_DATABASE_URL, STOCK_DATABASE_URL and PAYMENT_DATABASE_URL, or at
ADMIN_DATABASE_URL for all three (their roles need to read all tables), the consumer groups at KAFKA_BROKERS, and asks the services
at ORDER_URL, STOCK_URL and PAYMENT_URL whether they are ready. It changes nothing.`

func newSagaCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "saga", Short: "Follow orders through the three services",
		Long: "Follow orders through the three services.\n" + sagaHelp,
	}
	c.AddCommand(newSagaShowCommand(), newSagaStuckCommand())
	return c
}

func newSagaShowCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "show ORDER_ID", Short: "Show an order with all its events", Args: cobra.ExactArgs(1),
		Long: `Show an order with all its events in order, when each was handled, its dead letters, and what it waits for if it is
not settled.
` + sagaHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := uuid.Parse(args[0])
			if err != nil || len(args[0]) != 36 {
				return fmt.Errorf("%q is not the id of an order: it is the \"id\" that POST /orders answers with", args[0])
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			s, err := readSaga(ctx, cmd, id)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return s.print(cmd.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func readSaga(ctx context.Context, cmd *cobra.Command, id uuid.UUID) (*saga, error) {
	d, err := openDatabases(ctx, cmd)
	if err != nil {
		return nil, err
	}
	defer d.close(ctx)
	rows, err := d.orders(ctx, []uuid.UUID{id})
	if err != nil {
		return nil, err
	}
	var s *saga
	for range 5 { // an order that goes on meanwhile would have its answer handled and wait for it
		found, err := d.sagas(ctx, []uuid.UUID{id}, rows)
		if err != nil {
			return nil, err
		}
		s = found[0]
		before := rows
		if rows, err = d.orders(ctx, []uuid.UUID{id}); err != nil {
			return nil, err
		}
		if slices.EqualFunc(before, rows, func(a, b orderRow) bool { return a.UpdatedAt.Equal(b.UpdatedAt) }) {
			break
		}
	}
	if s.Order == nil && s.Payment == nil && s.Reservation == nil && len(s.Events)+len(s.DeadLetters) == 0 {
		return nil, fmt.Errorf("nothing is known of an order %s: is it of another system? GET /orders lists the orders", id)
	}
	if s.Waits = append(s.Waits, s.waits()...); len(s.Waits) > 0 {
		explain(s.Waits, d.roads(ctx))
	}
	return s, nil
}

func (s *saga) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if o := s.Order; o != nil {
		state := string(o.Status) + inBrackets(o.FailureReason)
		state += map[bool]string{true: ", settled", false: ", not settled"}[o.Settled]
		if o.NeedsAttention {
			state += ", needs attention"
		}
		fmt.Fprintf(out, "order %s: %s\n", s.OrderID, state)
		fmt.Fprintf(out, "%d for %s, placed %s\n", o.Amount, plain(o.CustomerID, 100), o.CreatedAt.Format("2006-01-02 15:04:05.000 UTC"))
		fmt.Fprintf(w, "payment\t%s\t%s\n", o.PaymentStatus, s.Payment)
		fmt.Fprintf(w, "stock\t%s\t%s\n", o.StockStatus, s.Reservation)
	} else {
		fmt.Fprintf(out, "order %s is not known to order-service\n", s.OrderID)
		fmt.Fprintf(w, "payment\t-\t%s\n", s.Payment)
		fmt.Fprintf(w, "stock\t-\t%s\n", s.Reservation)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	fmt.Fprintln(w, "AT\tEVENT\tFROM > TO\tHANDLED\tDETAIL\tEVENT ID")
	start := s.start()
	for _, e := range s.Events {
		way, id := e.From, ""
		if e.To != "" {
			way += " > " + e.To
		}
		if e.EventID != nil {
			id = e.EventID.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", after(e.At.Sub(start)), plain(e.Event, 60), way, s.handled(e), e.detail(), id)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i, l := range s.DeadLetters {
		if i == 0 {
			fmt.Fprintln(out, "\ndead letters")
		}
		state := string(l.Status)
		if l.ResolvedBy != nil {
			state += " by " + plain(*l.ResolvedBy, 100) + " at " + after(l.ResolvedAt.Sub(start))
		}
		if l.Reason != nil {
			state += ": " + plain(*l.Reason, 200)
		}
		fmt.Fprintf(out, "  %s  %s-service, %s at %s, %s\n      %s\n", l.ID, l.Service, plain(l.EventType, 60), after(l.FailedAt.Sub(start)), state, plain(l.Error, 300))
	}
	if len(s.Waits) > 0 {
		fmt.Fprintln(out, "\nwaits")
		printWaits(out, s.Waits)
	}
	return nil
}

// start is the moment that the others are told from.
func (s *saga) start() time.Time {
	switch {
	case s.Order != nil:
		return s.Order.CreatedAt
	case len(s.Events) > 0:
		return s.Events[0].At
	case len(s.DeadLetters) > 0:
		return s.DeadLetters[0].FailedAt
	}
	return time.Now()
}

// after writes a time since the start.
func after(d time.Duration) string {
	if d < 0 {
		return "-" + after(-d)[1:]
	}
	if d < time.Minute {
		return fmt.Sprintf("+%.3fs", d.Seconds())
	}
	return "+" + d.Round(time.Second).String()
}

// handled says what became of an event at its consumer.
func (s *saga) handled(e sagaEvent) string {
	if e.EventID == nil || e.To == "" {
		return ""
	}
	for i := len(s.DeadLetters) - 1; i >= 0; i-- {
		if l := s.DeadLetters[i]; l.EventID == e.EventID.String() && l.Service == e.To {
			if l.Status == inbox.Redriven {
				return "redriven"
			}
			return "dead letter, " + string(l.Status)
		}
	}
	switch {
	case e.ReceivedAt != nil:
		return fmt.Sprintf("in %d ms", max(0, e.ReceivedAt.Sub(e.At).Milliseconds()))
	case e.OutboxGone:
		return "?"
	}
	return "not yet"
}

// detail is the part of an event's payload that an operator looks for.
func (e sagaEvent) detail() string {
	if e.OutboxGone {
		return "(from the timeline: its outbox row is gone)"
	}
	var p struct {
		Reason    string        `json:"reason"`
		Outcome   string        `json:"outcome"`
		Amount    *int64        `json:"amount"`
		Items     []events.Item `json:"items"`
		EventType string        `json:"event_type"`
		Error     string        `json:"error"`
	}
	if len(e.Payload) == 0 || json.Unmarshal(e.Payload, &p) != nil {
		return ""
	}
	switch {
	case p.Error != "":
		return plain(p.EventType+": "+p.Error, 60)
	case p.Amount != nil:
		return fmt.Sprintf("amount %d", *p.Amount)
	case len(p.Items) > 0:
		return itemsText(p.Items)
	}
	return plain(p.Reason+p.Outcome, 60)
}

func itemsText(items []events.Item) string {
	var parts []string
	for _, i := range items {
		parts = append(parts, fmt.Sprintf("%d %s", i.Quantity, i.SKU))
	}
	return plain(strings.Join(parts, ", "), 60)
}

func (p *paymentRow) String() string {
	if p == nil {
		return "payment-service has not acted"
	}
	text := "payment-service: " + p.Status + inBrackets(p.Reason)
	if p.CustomerID != "" {
		text += fmt.Sprintf(", %d of %s", p.Amount, plain(p.CustomerID, 100))
	}
	return text
}

func (r *reservation) String() string {
	if r == nil {
		return "stock-service has not acted"
	}
	text := "stock-service: " + r.Status + inBrackets(r.Reason)
	var items []events.Item
	if json.Unmarshal(r.Items, &items) == nil && len(items) > 0 {
		text += ", " + itemsText(items)
	}
	return text
}

func inBrackets(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + plain(reason, 200) + ")"
}

func printWaits(out io.Writer, waits []wait) {
	for _, w := range waits {
		fmt.Fprintf(out, "  %-8s %s\n", w.Step, w.Text)
		for _, line := range w.Around {
			fmt.Fprintf(out, "           - %s\n", line)
		}
	}
}

func newSagaStuckCommand() *cobra.Command {
	var older time.Duration
	var limit int
	var asJSON bool
	c := &cobra.Command{
		Use: "stuck", Short: "List orders that are not settled after their time, and why", Args: cobra.NoArgs,
		Long: `List the orders that were placed longer ago than --older and still wait for an answer or a compensation, oldest first,
and say for each what is in the way. It looks at all orders: on a large database it takes its time.
` + sagaHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if older < 0 || limit < 1 || limit > 1000 {
				return errors.New("--older must not be negative, and --limit from 1 to 1000")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			stuck, more, err := readStuck(ctx, cmd, older, limit)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"orders": stuck, "more": more})
			}
			printStuck(cmd.OutOrStdout(), stuck, more, older)
			return nil
		},
	}
	c.Flags().DurationVar(&older, "older", time.Minute, "how long ago an order must have been placed")
	c.Flags().IntVar(&limit, "limit", 50, "no more orders than this, 1 to 1000")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func readStuck(ctx context.Context, cmd *cobra.Command, older time.Duration, limit int) (stuck []*saga, more bool, err error) {
	d, err := openDatabases(ctx, cmd)
	if err != nil {
		return nil, false, err
	}
	defer d.close(ctx)
	stuck = []*saga{}
	rows, err := d.unsettled(ctx, older, limit+1)
	if err != nil || len(rows) == 0 {
		return stuck, false, err
	}
	if more = len(rows) > limit; more {
		rows = rows[:limit]
	}
	var ids []uuid.UUID
	for _, r := range rows {
		ids = append(ids, r.ID)
	}
	all, err := d.sagas(ctx, ids, rows)
	if err != nil {
		return nil, false, err
	}
	// The databases were read one after the other: who has moved since is not stuck.
	now, err := d.orders(ctx, ids)
	if err != nil {
		return nil, false, err
	}
	moved := map[uuid.UUID]bool{}
	for i, r := range now {
		moved[r.ID] = !r.UpdatedAt.Equal(rows[i].UpdatedAt)
	}
	r := d.roads(ctx)
	for _, s := range all {
		if !moved[s.OrderID] {
			s.Waits = append(s.Waits, s.waits()...)
			explain(s.Waits, r)
			stuck = append(stuck, s)
		}
	}
	return stuck, more, nil
}

func printStuck(out io.Writer, stuck []*saga, more bool, older time.Duration) {
	if len(stuck) == 0 {
		fmt.Fprintf(out, "no order that is older than %s waits for anything\n", older)
		return
	}
	for _, s := range stuck {
		o := s.Order
		attention := ""
		if o.NeedsAttention {
			attention = ", needs attention"
		}
		fmt.Fprintf(out, "%s  %s for %s, payment %s, stock %s%s\n", s.OrderID, o.Status, time.Since(o.CreatedAt).Round(time.Second), o.PaymentStatus, o.StockStatus, attention)
		printWaits(out, s.Waits)
	}
	fmt.Fprintf(out, "%d %s not settled", len(stuck), plural(int64(len(stuck)), "order"))
	if more {
		fmt.Fprint(out, ", and there are more: raise --limit")
	}
	fmt.Fprintln(out)
}
