package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"outboxsaga/inbox"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
)

// letter is a dead letter as a service tells of it.
type letter struct {
	Service       string          `json:"service"` // order, stock or payment: who put it aside
	ID            uuid.UUID       `json:"id"`
	Status        inbox.Status    `json:"status"`
	EventID       string          `json:"event_id"`
	EventType     string          `json:"event_type"`
	Topic         string          `json:"topic"`
	Partition     int32           `json:"partition"`
	Offset        int64           `json:"offset"`
	Key           string          `json:"key"`
	RecordedAt    time.Time       `json:"recorded_at"`
	Error         string          `json:"error"`
	Attempts      int             `json:"attempts"`
	FailedAt      time.Time       `json:"failed_at"`
	ResolvedAt    *time.Time      `json:"resolved_at"`
	ResolvedBy    *string         `json:"resolved_by"`
	Reason        *string         `json:"reason"`
	PayloadBytes  int             `json:"payload_bytes"`
	Payload       json.RawMessage `json:"payload,omitempty"`
	PayloadBase64 []byte          `json:"payload_base64,omitempty"`
}

// letterFlags are the flags that the commands about dead letters share.
type letterFlags struct {
	service, status, eventType, topic string
	asJSON                            bool
}

// decision is what redrive and discard do with dead letters.
type decision struct {
	letterFlags
	verb   string // redrive or discard: also the end of the route
	all    bool
	rate   float64
	by     string
	reason string
}

const lettersHelp = `
The services are asked over HTTP: at ORDER_URL, STOCK_URL and PAYMENT_URL, or else on this machine at the ports
ORDER_PORT (8080), STOCK_PORT (8081) and PAYMENT_PORT (8082).`

func newDeadLettersCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "dead-letters", Short: "See, redrive and discard the records that services have put aside",
		Long: "See, redrive and discard the records that services have put aside.\n" + lettersHelp,
	}
	c.AddCommand(newLettersListCommand(), newLettersShowCommand(), newRedriveCommand(), newDiscardCommand())
	return c
}

func (f *letterFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.service, "service", "all", "order, stock, payment or all")
	c.Flags().BoolVar(&f.asJSON, "json", false, "as JSON")
}

func (f *letterFlags) addFilter(c *cobra.Command) {
	c.Flags().StringVar(&f.eventType, "type", "", "only records with this event type, for example payment.requested")
	c.Flags().StringVar(&f.topic, "topic", "", "only records of this topic, for example payment.compensation")
}

func newLettersListCommand() *cobra.Command {
	var f letterFlags
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List dead letters, oldest first", Args: cobra.NoArgs,
		Long: "List dead letters, those of each service oldest first.\n" + lettersHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.status != "any" && f.status != string(inbox.Open) && f.status != string(inbox.Redriven) && f.status != string(inbox.Discarded) {
				return fmt.Errorf("--status %q is not known: use open, redriven, discarded or any", f.status)
			}
			if limit < 1 {
				return errors.New("--limit must be at least 1")
			}
			desks, err := desksOf(f.service)
			if err != nil {
				return err
			}
			letters, more := []letter{}, false
			for _, d := range desks {
				of, rest, err := d.list(cmd.Context(), f, limit-len(letters))
				if err != nil {
					return err
				}
				letters, more = append(letters, of...), more || rest
			}
			return printLetters(cmd.OutOrStdout(), f, letters, more)
		},
	}
	f.add(c)
	f.addFilter(c)
	c.Flags().StringVar(&f.status, "status", "open", "open, redriven, discarded or any")
	c.Flags().IntVar(&limit, "limit", 100, "print no more than this many")
	return c
}

func printLetters(out io.Writer, f letterFlags, letters []letter, more bool) error {
	if f.asJSON {
		return printJSON(out, map[string]any{"dead_letters": letters, "more": more})
	}
	if len(letters) == 0 {
		_, err := fmt.Fprintln(out, "no dead letters")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSERVICE\tSTATUS\tTYPE\tRECORD\tTRIES\tFAILED AT\tERROR")
	for _, l := range letters {
		kind := l.EventType
		if kind == "" {
			kind = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s/%d@%d\t%d\t%s\t%s\n", l.ID, l.Service, l.Status, plain(kind, 40), plain(l.Topic, 40),
			l.Partition, l.Offset, l.Attempts, l.FailedAt.UTC().Format(time.DateTime), plain(l.Error, 70))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more {
		fmt.Fprintf(out, "there are more than these %d: raise --limit, or filter by --service, --type or --topic\n", len(letters))
	}
	return nil
}

func newLettersShowCommand() *cobra.Command {
	var f letterFlags
	c := &cobra.Command{
		Use: "show ID", Short: "Show a dead letter with the record's payload", Args: cobra.ExactArgs(1),
		Long: "Show a dead letter with the record's payload.\n" + lettersHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, l, err := find(cmd.Context(), f.service, args[0])
			if err != nil {
				return err
			}
			if f.asJSON {
				return printJSON(cmd.OutOrStdout(), l)
			}
			return printLetter(cmd.OutOrStdout(), l)
		},
	}
	f.add(c)
	return c
}

func printLetter(out io.Writer, l letter) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	state := string(l.Status)
	if l.ResolvedAt != nil && l.ResolvedBy != nil {
		state += " by " + plain(*l.ResolvedBy, 100) + " at " + l.ResolvedAt.UTC().Format(time.RFC3339)
	}
	if l.Reason != nil {
		state += ": " + plain(*l.Reason, 1000)
	}
	line("dead letter", "%s of %s-service", l.ID, l.Service)
	line("status", "%s", state)
	line("error", "%s", plain(l.Error, 2000))
	line("tries", "%d, put aside at %s", l.Attempts, l.FailedAt.UTC().Format(time.RFC3339Nano))
	line("record", "%s, partition %d, offset %d, of %s", plain(l.Topic, 200), l.Partition, l.Offset, l.RecordedAt.UTC().Format(time.RFC3339Nano))
	line("key", "%s", plain(l.Key, 1000))
	line("event id", "%s", plain(l.EventID, 200))
	line("event type", "%s", plain(l.EventType, 200))
	if l.Payload == nil {
		const shown = 200
		line("payload", "%d bytes, no JSON: %s", l.PayloadBytes, plain(strconv.Quote(string(l.PayloadBase64[:min(shown, len(l.PayloadBase64))])), 5*shown))
		return w.Flush()
	}
	line("payload", "%d bytes of JSON:", l.PayloadBytes)
	if err := w.Flush(); err != nil {
		return err
	}
	var text bytes.Buffer
	if err := json.Indent(&text, l.Payload, "", "  "); err != nil {
		return err
	}
	const most = 8000
	if text.Len() > most {
		text.Truncate(most)
		text.WriteString("\n… (--json prints all of it)")
	}
	for line := range strings.Lines(strings.ToValidUTF8(text.String(), "\uFFFD") + "\n") {
		fmt.Fprintln(out, plain(strings.TrimSuffix(line, "\n"), most))
	}
	return nil
}

func newRedriveCommand() *cobra.Command {
	d := decision{verb: "redrive"}
	c := &cobra.Command{
		Use: "redrive (ID... | --all)", Short: "Handle dead letters again, in their services",
		Long: `Handle dead letters again, in their services: the same event id, the handler as it is now, one transaction. One that fails
again stays open, with one more try. --all takes all open dead letters that the filters select.
` + lettersHelp,
		RunE: func(cmd *cobra.Command, args []string) error { return d.run(cmd, args) },
	}
	d.add(c)
	return c
}

func newDiscardCommand() *cobra.Command {
	d := decision{verb: "discard"}
	c := &cobra.Command{
		Use: "discard (ID... | --all) --reason TEXT", Short: "Close dead letters without effect",
		Long: `Close dead letters without effect. Who, when and why is kept. --all takes all open dead letters that the filters select.
` + lettersHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(d.reason) == "" {
				return errors.New("--reason is required: say why these events are not needed, it is kept with them")
			}
			return d.run(cmd, args)
		},
	}
	d.add(c)
	c.Flags().StringVar(&d.reason, "reason", "", "why the event is not needed (required)")
	return c
}

func (d *decision) add(c *cobra.Command) {
	d.letterFlags.add(c)
	d.addFilter(c)
	c.Flags().BoolVar(&d.all, "all", false, "all open dead letters that --service, --type and --topic select")
	c.Flags().Float64Var(&d.rate, "rate", 20, "no more than this many a second, 0.01 to 1000")
	c.Flags().StringVar(&d.by, "by", "", "who decides; kept with the dead letter (default: your user name)")
}

// outcome is what became of one dead letter.
type outcome struct {
	Service string    `json:"service"`
	ID      uuid.UUID `json:"id"`
	OK      bool      `json:"ok"`
	Error   string    `json:"error,omitempty"`
}

// subject is a dead letter that is to be decided.
type subject struct {
	desk desk
	id   uuid.UUID
}

func (d *decision) run(cmd *cobra.Command, args []string) error {
	if (len(args) > 0) == d.all {
		return errors.New("give the ids of dead letters, or --all to take all open ones that --service, --type and --topic select")
	}
	if len(args) > 0 && (d.eventType != "" || d.topic != "") {
		return errors.New("--type and --topic select among --all: leave them away where ids are given")
	}
	if !(d.rate >= 0.01 && d.rate <= 1000) {
		return errors.New("--rate must be from 0.01 to 1000 a second")
	}
	if d.by == "" {
		d.by = operator()
	}
	subjects, err := d.subjects(cmd.Context(), args)
	if err != nil {
		return err
	}
	done, err := d.each(cmd, subjects)
	failed := 0
	for _, o := range done {
		if !o.OK {
			failed++
		}
	}
	if d.asJSON {
		if err := printJSON(cmd.OutOrStdout(), map[string]any{
			"selected": len(subjects), "succeeded": len(done) - failed, "failed": failed, "results": done}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(cmd.OutOrStdout(), "%d of %d dead letters %s, %d failed\n", len(done)-failed, len(subjects), d.past(), failed)
	}
	switch {
	case err != nil:
		return fmt.Errorf("stopped with %d of %d not tried; the same command goes on with what is open: %w", len(subjects)-len(done), len(subjects), err)
	case failed > 0:
		return fmt.Errorf("%d of %d failed; outboxctl dead-letters show ID tells more", failed, len(subjects))
	}
	return nil
}

func (d *decision) past() string {
	if d.verb == "redrive" {
		return "redriven"
	}
	return "discarded"
}

// subjects finds what is to be decided. With --all these are the dead letters that are
// open now: those that come later are left for the next call, so that it ends.
func (d *decision) subjects(ctx context.Context, args []string) ([]subject, error) {
	var all []subject
	for _, text := range args {
		of, l, err := find(ctx, d.service, text)
		if err != nil {
			return nil, err
		}
		all = append(all, subject{of, l.ID})
	}
	if !d.all {
		return all, nil
	}
	desks, err := desksOf(d.service)
	if err != nil {
		return nil, err
	}
	d.status = string(inbox.Open)
	for _, of := range desks {
		letters, _, err := of.list(ctx, d.letterFlags, int(^uint(0)>>1))
		if err != nil {
			return nil, err
		}
		for _, l := range letters {
			all = append(all, subject{of, l.ID})
		}
	}
	return all, nil
}

// each decides one after the other at the rate, and prints what fails. It returns an error,
// and stops, when a service does not answer at all.
func (d *decision) each(cmd *cobra.Command, subjects []subject) ([]outcome, error) {
	body := ""
	if d.verb == "discard" {
		text, err := json.Marshal(map[string]string{"reason": d.reason})
		if err != nil {
			return nil, err
		}
		body = string(text)
	}
	done := make([]outcome, 0, len(subjects))
	tick := time.NewTicker(time.Duration(float64(time.Second) / d.rate))
	defer tick.Stop()
	for i, s := range subjects {
		if i > 0 {
			select {
			case <-cmd.Context().Done():
				return done, cmd.Context().Err()
			case <-tick.C:
			}
		}
		err := s.desk.ask(cmd.Context(), http.MethodPost, "/dead-letters/"+s.id.String()+"/"+d.verb, d.by, body, nil)
		var refused *refusal
		if err != nil && !errors.As(err, &refused) {
			return done, err
		}
		o := outcome{Service: s.desk.name, ID: s.id, OK: err == nil}
		if err != nil {
			o.Error = strings.ReplaceAll(err.Error(), d.verb+" "+s.id.String()+": ", "")
			if !d.asJSON {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s %s: %s\n", s.desk.name, s.id, plain(o.Error, 500))
			}
		}
		done = append(done, o)
	}
	return done, nil
}

// operator is the name of who runs the command.
func operator() string {
	if name := os.Getenv("USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return "outboxctl"
}
