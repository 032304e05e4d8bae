package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/supervisor"
	"outboxsaga/internal/system"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
)

func newStatusCommand() *cobra.Command {
	var o systemFlags
	var watch time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use: "status", Short: "Show the system on one screen: connectors, slots, lag, dead letters, orders, the supervisor's acts",
		Long: fmt.Sprintf(`Show connectors, slots with their lag, consumer groups, events that no inbox has, dead letters, orders by state, whether a
supervisor acts and what it did last. It exits with 1 if something needs attention, so that scripts can ask. It reads the
same variables as outboxctl supervise.

Of the orders it looks at the newest %d, at those before them that the sweep for timed out orders has not passed (the
first %[1]d), and at those that the newest %d dead letters of each service are about: so it is quick on any number
of orders. outboxctl saga stuck looks at all, and takes its time.`, newestOrders, newestLetters),
		Example: "  outboxctl status\n  outboxctl status --watch 5s\n  outboxctl status --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("watch") && watch < 200*time.Millisecond {
				return errors.New("--watch must be 200ms or more")
			}
			return showStatus(cmd.Context(), cmd, o, watch, asJSON)
		},
	}
	// A flag that may stand alone takes no value after a space: it is left here as an argument.
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && cmd.Flags().Changed("watch") {
			if every, err := time.ParseDuration(args[0]); err == nil {
				watch = every
				return nil
			}
		}
		return cobra.NoArgs(cmd, args)
	}
	c.Flags().DurationVar(&watch, "watch", 0, "show it again and again, at this interval (default 2s)")
	c.Flags().Lookup("watch").NoOptDefVal = "2s"
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON, one document a look")
	o.add(c)
	return c
}

// status is the state of the whole system. What could not be asked is not in its maps, and orders is null.
type status struct {
	supervisor.Facts
	// Lag in seconds: the age of the oldest event that its consumer's inbox does not have.
	OldestUnseen map[string]float64 `json:"oldest_unseen_seconds"`
	UnseenEvents map[string]int     `json:"unseen_events"`
	DeadLetters  map[string]int     `json:"open_dead_letters"` // by service
	Orders       *orderCounts       `json:"orders"`
	Supervised   *bool              `json:"supervised"` // whether a supervisor acts; null: the order database does not say
	Acts         []supervisor.Done  `json:"supervisor"` // newest first
	Trouble      []string           `json:"trouble"`    // what needs attention
}

// orderCounts are the orders of the last hour by state, and those that wait, also older ones.
type orderCounts struct {
	Success        int64   `json:"success"`
	Failed         int64   `json:"failed"`
	InProgress     int64   `json:"in_progress"`
	Compensating   int64   `json:"compensating"`
	Attention      int64   `json:"need_attention"`
	OlderUnsettled int64   `json:"older_unsettled"` // not among those above
	OlderAttention int64   `json:"older_need_attention"`
	Oldest         float64 `json:"oldest_unsettled_seconds"` // 0: all are settled
	// All: every order was looked at. Else Since is when the oldest of the newest ones was placed.
	All   bool      `json:"all"`
	Since time.Time `json:"since,omitzero"`
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

// No index tells which orders wait: it would cost every order. What is looked at is bounded instead, and each part
// is found by the primary key.
const (
	newestOrders  = 20_000
	newestLetters = 2000 // of each database
)

const (
	countNewest = `
SELECT count(*) FILTER (WHERE recent AND status = 'SUCCESS'),
       count(*) FILTER (WHERE recent AND status = 'FAILED'),
       count(*) FILTER (WHERE recent AND status = 'IN_PROGRESS'),
       count(*) FILTER (WHERE recent AND (payment_status = 'COMPENSATING' OR stock_status = 'COMPENSATING')),
       count(*) FILTER (WHERE recent AND needs_attention),
       count(*) FILTER (WHERE NOT recent AND waits),
       count(*) FILTER (WHERE NOT recent AND needs_attention),
       coalesce(extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE waits)), 0)::float8,
       count(*) < $1, (array_agg(id))[count(*)], coalesce(min(created_at), clock_timestamp())
FROM (SELECT *, id > uuidv7_floor(clock_timestamp() - interval '1 hour') AS recent,
             payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING') AS waits
      FROM (SELECT id, status, payment_status, stock_status, needs_attention, created_at FROM orders ORDER BY id DESC LIMIT $1) newest) orders`

	// Of the others only those from orders_swept on can be in progress. One that has failed waits because an event of it is
	// in no inbox yet, which is told of events, or is a dead letter: it is named.
	countOlder = `
SELECT count(*), count(*) FILTER (WHERE needs_attention), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
FROM (SELECT id, payment_status, stock_status, needs_attention, created_at FROM orders WHERE id < $1 AND id = ANY($2::uuid[])
      UNION
      (SELECT id, payment_status, stock_status, needs_attention, created_at FROM orders
       WHERE id < $1 AND id > $3 ORDER BY id LIMIT $4)) older
WHERE payment_status IN ('IN_PROGRESS', 'COMPENSATING') OR stock_status IN ('IN_PROGRESS', 'COMPENSATING')`

	// The key of a record is its order's id. Resolved ones too: what was discarded is waited for still.
	selectLetters = `SELECT key FROM dead_letters WHERE octet_length(key) = 36 ORDER BY id DESC LIMIT $1`
)

// countOrders counts orders, at most limit of the newest. named are older ones that may wait.
func countOrders(ctx context.Context, db *pgxpool.Pool, limit int, named []uuid.UUID) (c orderCounts, err error) {
	var last *uuid.UUID
	err = db.QueryRow(ctx, countNewest, limit).Scan(&c.Success, &c.Failed, &c.InProgress, &c.Compensating, &c.Attention,
		&c.OlderUnsettled, &c.OlderAttention, &c.Oldest, &c.All, &last, &c.Since)
	if err != nil || c.All || last == nil {
		c.Since = time.Time{}
		return c, err
	}
	c.Since = c.Since.UTC()
	var swept uuid.UUID
	if err := db.QueryRow(ctx, `SELECT upto FROM orders_swept`).Scan(&swept); err != nil {
		return c, err
	}
	var unsettled, attention int64
	var oldest float64
	// Planned for these values: from an unknown id on, the plan would be to sort all that follow.
	if err := db.QueryRow(ctx, countOlder, pgx.QueryExecModeCacheDescribe, *last, named, swept, limit).Scan(&unsettled, &attention, &oldest); err != nil {
		return c, err
	}
	c.OlderUnsettled, c.OlderAttention, c.Oldest = c.OlderUnsettled+unsettled, c.OlderAttention+attention, max(c.Oldest, oldest)
	return c, nil
}

// ordersOfLetters are the orders that the newest dead letters of a database are about.
func ordersOfLetters(ctx context.Context, db *pgxpool.Pool, limit int) (ids []uuid.UUID, err error) {
	rows, err := db.Query(ctx, selectLetters, limit)
	if err != nil {
		return nil, err
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	for _, key := range keys {
		if id, err := uuid.ParseBytes(key); err == nil { // poison may have any key
			ids = append(ids, id)
		}
	}
	return ids, err
}

const selectSupervised = `
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid::bigint << 32 | objid::bigint = $1
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`

func look(ctx context.Context, s *supervisor.Supervisor, pipelines []supervisor.Pipeline) status {
	now := status{Facts: s.Look(ctx), OldestUnseen: map[string]float64{}, UnseenEvents: map[string]int{}, DeadLetters: map[string]int{}}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	unknown := func(what string, err error) {
		if err != nil {
			now.Unknown = append(now.Unknown, what+": "+plain(err.Error(), 300))
		}
	}
	var named []uuid.UUID
	for _, p := range pipelines {
		flow := now.Pipelines[p.Name]
		if flow.Slot == nil {
			continue // it was said already
		}
		if !flow.Stale {
			now.OldestUnseen[p.Name], now.UnseenEvents[p.Name] = flow.Oldest(now.At).Seconds(), len(flow.Unseen)
		}
		var open int
		err := p.DB.QueryRow(ctx, `SELECT count(*) FROM dead_letters WHERE status = 'open'`).Scan(&open)
		if unknown("dead letters, "+p.Group, err); err == nil {
			now.DeadLetters[p.Group] = open
		}
		orders, err := ordersOfLetters(ctx, p.DB, newestLetters)
		unknown("orders of dead letters, "+p.Group, err)
		named = append(named, orders...)
	}
	if first := pipelines[0]; now.Pipelines[first.Name].Slot != nil {
		orders, err := countOrders(ctx, first.DB, newestOrders, named)
		if unknown("orders", err); err == nil {
			now.Orders = &orders
		}
		var supervised bool
		if err = first.DB.QueryRow(ctx, selectSupervised, int64(supervisor.LockKey)).Scan(&supervised); err == nil {
			now.Supervised = &supervised
		}
		unknown("whether a supervisor acts", err)
		now.Acts, err = supervisor.Acts(ctx, first, 8)
		unknown("acts of the supervisor", err)
	}
	now.Trouble = now.trouble(pipelines)
	return now
}

// trouble says what needs attention.
func (s status) trouble(pipelines []supervisor.Pipeline) []string {
	all := append([]string{}, s.Unknown...) // never nil: as JSON it is a list
	add := func(format string, values ...any) { all = append(all, fmt.Sprintf(format, values...)) }
	if s.Supervised != nil && !*s.Supervised {
		add("no supervisor acts: what breaks from now on stays broken: start one with scripts/up.sh or outboxctl supervise, or see its log for why it does not get the lock in %s", pipelines[0].Name)
	}
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
			case nearlyLost(*slot):
				add("slot %s keeps %s of log, and is lost %s later (max_slot_wal_keep_size): see what holds up connector %s", p.Slot, size(slot.Retained), size(max(0, *slot.Safe)), p.Name)
			}
		}
		if age, is := silent(s.At, flow); is {
			add("connector %s has sent no heartbeat for %s: nothing of %s flows, whatever Connect says (see the log of its worker), unless the worker's clock is behind", p.Name, age.Round(time.Second), p.Name)
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
	if o := s.Orders; o != nil && o.Oldest > 90 {
		add("an order waits for %s: outboxctl saga stuck", waiting(o.Oldest))
	}
	if o := s.Orders; o != nil && o.Attention+o.OlderAttention > 0 {
		add("%d orders need attention, their compensation is a dead letter: outboxctl saga stuck", o.Attention+o.OlderAttention)
	}
	return all
}

// nearlyLost tells of a slot that half of the log is written that it may hold back. Both together are
// max_slot_wal_keep_size, in whole segments.
func nearlyLost(s supervisor.Slot) bool { return s.Safe != nil && s.Retained >= *s.Safe }

// silent tells of a connector that reads its slot and sends nothing, not even heartbeats. They carry the clock of the worker, which may
// be another machine's, and are not sent while it reads the table itself. After a start the newest one is that of before.
func silent(now time.Time, flow supervisor.Pipeflow) (age time.Duration, is bool) {
	if flow.Connector == nil || flow.Connector.State != "RUNNING" || flow.Slot == nil || !flow.Slot.Active || flow.Slot.Snapshot != nil {
		return 0, false
	}
	age, known := flow.SinceHeartbeat(now)
	return age, known && min(age, flow.Slot.Read) > 2*connect.MaxSilence
}

// waiting writes seconds for people.
func waiting(seconds float64) string {
	if seconds < 600 {
		return fmt.Sprintf("%.1f s", seconds)
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
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
		state, slot, lag, retained, safe, beat, oldest := "?", "?", "?", "?", "?", "?", "?"
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
				safe = size(max(0, *v.Safe))
			}
		}
		if flow.NoHeartbeat {
			beat = "none"
		} else if !flow.Heartbeat.IsZero() {
			beat = ago(s.At.Sub(flow.Heartbeat))
		}
		if seconds, known := s.OldestUnseen[name]; known {
			oldest = (time.Duration(seconds*1000) * time.Millisecond).Round(100 * time.Millisecond).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, state, slot, lag, retained, safe, beat, count(s.UnseenEvents, name), oldest)
	}
	fmt.Fprintf(t, "\nSERVICE\tGROUP\tMEMBERS\tLAG\tDEAD LETTERS\n")
	for _, svc := range system.Services() {
		group, members, lag := "?", "?", "?"
		if g, known := s.Groups[svc.Name]; known {
			group, members, lag = g.State, fmt.Sprint(g.Members), fmt.Sprint(g.Total(), prefixed(" on ", strings.Join(lagging(g), ", ")))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", svc.Name, group, members, lag, count(s.DeadLetters, svc.Name))
	}
	t.Flush()
	if s.Orders == nil {
		fmt.Fprintln(out, "\nOrders: not known")
	} else {
		s.Orders.print(out, s.At)
	}
	fmt.Fprint(out, "\nSupervisor, last acts:\n")
	for _, a := range s.Acts {
		fmt.Fprintf(out, "  %s  %s %s: %s (%s)\n", a.At.Format(time.DateTime), a.Act, a.Connector, plain(a.Reason, 160), plain(a.Outcome, 120))
	}
	if s.Acts == nil {
		fmt.Fprintln(out, "  not known")
	} else if len(s.Acts) == 0 {
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

func (o orderCounts) print(out io.Writer, now time.Time) {
	what := "of the last hour"
	if !o.Since.IsZero() && now.Sub(o.Since) < time.Hour {
		what = fmt.Sprintf("of the last %s, the newest %d", now.Sub(o.Since).Round(time.Second), newestOrders)
	}
	fmt.Fprintf(out, "\nOrders %s: %d SUCCESS, %d FAILED, %d IN_PROGRESS, %d compensating, %d need attention", what, o.Success, o.Failed, o.InProgress, o.Compensating, o.Attention)
	if o.OlderUnsettled > 0 {
		fmt.Fprintf(out, "; %d older ones are not settled, %d need attention", o.OlderUnsettled, o.OlderAttention)
	}
	if o.Oldest > 0 {
		fmt.Fprintf(out, "; the oldest that is not settled waits for %s", waiting(o.Oldest))
	}
	fmt.Fprintln(out)
	if !o.Since.IsZero() {
		fmt.Fprintf(out, "  (all since %s, and before that what may be in progress and what a dead letter is about; outboxctl saga stuck looks at all)\n", o.Since.Format(time.DateTime))
	}
}

// count is the value of a key for people.
func count(of map[string]int, key string) string {
	if n, known := of[key]; known {
		return strconv.Itoa(n)
	}
	return "?"
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
