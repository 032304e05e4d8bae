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

	"outboxsaga/internal/supervisor"
	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
)

func newStatusCommand() *cobra.Command {
	var o systemFlags
	var watch time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use: "status", Short: "Show the system on one screen: connectors, slots, lag, dead letters, orders, the supervisor's acts", Args: cobra.NoArgs,
		Long: `Show connectors, slots with their lag, consumer groups, events that no inbox has, dead letters, orders by state, and what the
supervisor did last. It exits with 1 if something needs attention, so that scripts can ask. It reads the same variables as
outboxctl supervise.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch != 0 && watch < 200*time.Millisecond {
				return errors.New("--watch must be 200ms or more")
			}
			return showStatus(cmd.Context(), cmd, o, watch, asJSON)
		},
	}
	c.Flags().DurationVar(&watch, "watch", 0, "show it again and again, at this interval (default 2s)")
	c.Flags().Lookup("watch").NoOptDefVal = "2s"
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON, one document a look")
	o.add(c)
	return c
}

// status is the state of the whole system.
type status struct {
	supervisor.Facts
	// Lag in seconds: the age of the oldest event that its consumer's inbox does not have.
	OldestUnseen map[string]float64 `json:"oldest_unseen_seconds"`
	UnseenEvents map[string]int     `json:"unseen_events"`
	DeadLetters  map[string]int     `json:"open_dead_letters"` // by service
	Orders       orderCounts        `json:"orders"`
	Acts         []supervisor.Done  `json:"supervisor"` // newest first
	Trouble      []string           `json:"trouble"`    // what needs attention
}

// orderCounts are the orders of the last hour by state, and those that wait.
type orderCounts struct {
	Success      int64   `json:"success"`
	Failed       int64   `json:"failed"`
	InProgress   int64   `json:"in_progress"`
	Compensating int64   `json:"compensating"`
	Attention    int64   `json:"need_attention"`
	Oldest       float64 `json:"oldest_unsettled_seconds"` // 0: all are settled
}

func showStatus(ctx context.Context, cmd *cobra.Command, o systemFlags, watch time.Duration, asJSON bool) error {
	cfg, closeAll, err := o.open(ctx, cmd)
	if err != nil {
		return err
	}
	defer closeAll()
	s, err := supervisor.New(cfg)
	if err != nil {
		return err
	}
	defer s.Close()
	out := cmd.OutOrStdout()
	for {
		now := look(ctx, s, cfg.Pipelines)
		switch {
		case asJSON:
			if err := json.NewEncoder(out).Encode(now); err != nil {
				return err
			}
		case watch > 0:
			fmt.Fprint(out, "\033[H\033[2J") // the screen's beginning
			fallthrough
		default:
			now.print(out)
		}
		if watch == 0 {
			if len(now.Trouble) > 0 {
				return fmt.Errorf("%d things need attention", len(now.Trouble))
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watch):
		}
	}
}

const countOrders = `
SELECT count(*) FILTER (WHERE status = 'SUCCESS'),
       count(*) FILTER (WHERE status = 'FAILED'),
       count(*) FILTER (WHERE status = 'IN_PROGRESS'),
       count(*) FILTER (WHERE payment_status = 'COMPENSATING' OR stock_status = 'COMPENSATING'),
       count(*) FILTER (WHERE needs_attention),
       coalesce(extract(epoch FROM clock_timestamp() - min(created_at) FILTER (
           WHERE payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING'))), 0)::float8
FROM orders WHERE id > uuidv7_floor(clock_timestamp() - interval '1 hour')`

func look(ctx context.Context, s *supervisor.Supervisor, pipelines []supervisor.Pipeline) status {
	now := status{Facts: s.Look(ctx), OldestUnseen: map[string]float64{}, UnseenEvents: map[string]int{}, DeadLetters: map[string]int{}}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	unknown := func(what string, err error) {
		if err != nil {
			now.Unknown = append(now.Unknown, what+": "+plain(err.Error(), 300))
		}
	}
	for _, p := range pipelines {
		flow := now.Pipelines[p.Name]
		now.OldestUnseen[p.Name], now.UnseenEvents[p.Name] = flow.Oldest(now.At).Seconds(), len(flow.Unseen)
		if flow.Slot == nil {
			continue // it was said already
		}
		var open int
		err := p.DB.QueryRow(ctx, `SELECT count(*) FROM dead_letters WHERE status = 'open'`).Scan(&open)
		unknown("dead letters, "+p.Group, err)
		now.DeadLetters[p.Group] = open
		if p.Name == pipelines[0].Name {
			c := &now.Orders
			unknown("orders", p.DB.QueryRow(ctx, countOrders).Scan(&c.Success, &c.Failed, &c.InProgress, &c.Compensating, &c.Attention, &c.Oldest))
			now.Acts, err = supervisor.Acts(ctx, p, 8)
			unknown("acts of the supervisor", err)
		}
	}
	now.Trouble = now.trouble(pipelines)
	return now
}

// trouble says what needs attention.
func (s status) trouble(pipelines []supervisor.Pipeline) []string {
	all := slices.Clone(s.Unknown)
	add := func(format string, values ...any) { all = append(all, fmt.Sprintf(format, values...)) }
	for _, topic := range s.MissingTopics {
		add("the topic %s is missing: outboxctl provision makes it", topic)
	}
	for _, p := range pipelines {
		flow := s.Pipelines[p.Name]
		if c := flow.Connector; c != nil && c.State != "RUNNING" {
			add("connector %s is %s%s", p.Name, c.State, prefixed(": ", plain(c.Cause, 300)))
		}
		if slot := flow.Slot; slot != nil {
			switch {
			case !slot.Exists:
				add("slot %s is missing: the supervisor, or scripts/register-connectors.sh, starts the connector, which makes it", p.Slot)
			case slot.WALStatus == "lost":
				add("slot %s is lost (%s): the supervisor drops it, and the outbox is sent again", p.Slot, slot.Reason)
			case !slot.Active && slot.Snapshot == nil:
				add("slot %s is not read: nothing of %s flows", p.Slot, p.Name)
			case slot.Safe != nil && *slot.Safe < 1<<30 && slot.Retained > 1<<30:
				add("slot %s keeps %s of log, and is lost %s later", p.Slot, size(slot.Retained), size(*slot.Safe))
			}
		}
		if oldest := s.OldestUnseen[p.Name]; oldest > 10 {
			add("%d events of %s are in no inbox, the oldest for %.0f s", s.UnseenEvents[p.Name], p.Name, oldest)
		}
		if n := s.DeadLetters[p.Group]; n > 0 {
			add("%s has %d open dead letters: outboxctl dead-letters list", p.Group, n)
		}
		if g, ok := s.Groups[p.Group]; s.Groups != nil && (!ok || g.Members == 0) {
			add("no instance of %s consumes", p.Group)
		}
	}
	if s.Orders.Oldest > 90 {
		add("an order waits for %.0f s: outboxctl saga stuck", s.Orders.Oldest)
	}
	return all
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func size(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	case n < 10<<30:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d GiB", n>>30)
}

func (s status) print(out io.Writer) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "CONNECTOR\tSTATE\tSLOT\tLAG\tRETAINED\tLOST AFTER\tHEARTBEAT\tUNSEEN\tOLDEST\n")
	for _, svc := range system.Services() {
		name := svc.Database.Name
		flow := s.Pipelines[name]
		state, slot, lag, retained, safe, beat := "?", "?", "?", "?", "?", "?"
		if flow.Connector != nil {
			state = flow.Connector.State
		}
		if v := flow.Slot; v != nil {
			slot, lag, retained, safe = v.WALStatus, size(v.LagBytes), size(v.Retained), "no limit"
			switch {
			case !v.Exists:
				slot = "missing"
			case v.Snapshot != nil:
				slot = "snapshot"
			case !v.Active:
				slot += ", not read"
			}
			if v.Safe != nil {
				safe = size(*v.Safe)
			}
		}
		if !flow.Heartbeat.IsZero() {
			beat = ago(s.At.Sub(flow.Heartbeat))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", name, state, slot, lag, retained, safe, beat, s.UnseenEvents[name],
			(time.Duration(s.OldestUnseen[name]*1000) * time.Millisecond).Round(100*time.Millisecond))
	}
	fmt.Fprintf(t, "\nSERVICE\tGROUP\tMEMBERS\tLAG\tDEAD LETTERS\n")
	for _, svc := range system.Services() {
		g, known := s.Groups[svc.Name]
		if !known {
			g.State = "?"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d%s\t%d\n", svc.Name, g.State, g.Members, g.Total(), prefixed(" on ", strings.Join(lagging(g), ", ")), s.DeadLetters[svc.Name])
	}
	t.Flush()
	o := s.Orders
	fmt.Fprintf(out, "\nOrders of the last hour: %d SUCCESS, %d FAILED, %d IN_PROGRESS, %d compensating, %d need attention", o.Success, o.Failed, o.InProgress, o.Compensating, o.Attention)
	if o.Oldest > 0 {
		fmt.Fprintf(out, "; the oldest that is not settled waits for %.1f s", o.Oldest)
	}
	fmt.Fprint(out, "\n\nSupervisor, last acts:\n")
	for _, a := range s.Acts {
		fmt.Fprintf(out, "  %s  %s %s: %s (%s)\n", a.At.Format(time.DateTime), a.Act, a.Connector, plain(a.Reason, 160), plain(a.Outcome, 120))
	}
	if len(s.Acts) == 0 {
		fmt.Fprintln(out, "  none")
	}
	for i, text := range s.Trouble {
		if i == 0 {
			fmt.Fprintln(out, "\nNeeds attention:")
		}
		fmt.Fprintln(out, "  -", text)
	}
	if len(s.Trouble) == 0 {
		fmt.Fprintln(out, "\nAll is well.")
	}
}

func ago(d time.Duration) string { return max(0, d).Round(time.Second).String() + " ago" }

// lagging are the topics that a group lags on.
func lagging(g supervisor.Group) (topics []string) {
	for topic, lag := range g.Lag {
		if lag > 0 {
			topics = append(topics, topic)
		}
	}
	slices.Sort(topics)
	return topics
}
