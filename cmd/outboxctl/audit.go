package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"outboxsaga/internal/audit"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
)

type auditOptions struct {
	audit.Options
	systemFlags
	watch   time.Duration
	json    bool
	metrics string
}

func newAuditCommand() *cobra.Command {
	o := auditOptions{systemFlags: systemFlags{timeout: 2 * time.Minute}}
	c := &cobra.Command{
		Use: "audit", Short: "Prove that no event was lost, invented or done twice, and that goods and money add up", Args: cobra.NoArgs,
		Long: `Read the three databases and hold every rule against them: each event is in its consumer's inbox or a dead letter, each inbox
id was written by an outbox, no step was asked or answered twice, goods and money are conserved for each item and account and are
what reservations and payments say, a SUCCESS order has both effects and a settled FAILED one none, no order is past its time.

It reads in pages, without locks, and may run in production at any time. With --watch it goes on, and reads only what is new; the
sums over all reservations and payments are made in each round. The exit code is 0 if every rule holds, 1 if one does not, 2 if it cannot be said. It reads the
same variables as outboxctl supervise; its roles need to read all tables.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := runAudit(cmd.Context(), cmd, o)
			var coded exitCode
			if err != nil && !errors.As(err, &coded) {
				return exitCode{err, 2}
			}
			return err
		},
	}
	f := c.Flags()
	f.DurationVar(&o.Grace, "grace", 10*time.Second, "how old an event must be before it must have arrived")
	f.DurationVar(&o.Since, "since", 0, "how far back to read (0: all that is there)")
	f.DurationVar(&o.OrderTimeout, "order-timeout", time.Minute, "ORDER_TIMEOUT of order-service")
	f.IntVar(&o.MaxIDs, "ids", 20, "how many ids to print for a violation")
	f.DurationVar(&o.watch, "watch", 0, "audit again and again, at this interval (default 30s)")
	f.Lookup("watch").NoOptDefVal = "30s"
	f.BoolVar(&o.json, "json", false, "as JSON, one document a round")
	f.StringVar(&o.metrics, "metrics-addr", "", "address of GET /metrics, with --watch")
	return c
}

func runAudit(ctx context.Context, cmd *cobra.Command, o auditOptions) error {
	switch {
	case o.Grace < time.Second || o.Since < 0 || o.OrderTimeout < time.Second || o.MaxIDs < 1:
		return errors.New("--grace and --order-timeout must be 1s or more, --since not below 0, --ids 1 or more")
	case o.watch != 0 && o.watch < time.Second:
		return errors.New("--watch must be 1s or more")
	case o.metrics != "" && o.watch == 0:
		return errors.New("--metrics-addr needs --watch")
	}
	pools, closeAll, err := o.databases(ctx, cmd)
	if err != nil {
		return err
	}
	defer closeAll()
	auditor := audit.New(audit.Databases{Order: pools["orderdb"], Stock: pools["stockdb"], Payment: pools["paymentdb"]}, o.Options)
	m := newAuditMetrics()
	if o.metrics != "" {
		stop, err := m.serve(o.metrics)
		if err != nil {
			return err
		}
		defer stop()
	}
	for {
		report, err := auditor.Round(ctx)
		if ctx.Err() != nil && o.watch > 0 {
			return nil
		}
		if err != nil && o.watch == 0 {
			return err
		}
		m.show(report, err)
		switch {
		case err != nil:
			fmt.Fprintln(cmd.ErrOrStderr(), "outboxctl:", err)
		case o.json:
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(report); err != nil {
				return err
			}
		default:
			printAudit(cmd.OutOrStdout(), report)
		}
		if o.watch == 0 {
			if !report.Clean() {
				return exitCode{fmt.Errorf("%d rules are violated", len(report.Violations)), 1}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(o.watch):
		}
	}
}

func printAudit(out io.Writer, r audit.Report) {
	fmt.Fprintf(out, "%s  read %d events, %d inbox ids, %d orders, %d items, %d accounts in %s; %d orders under way, %d need attention",
		r.At.Format(time.DateTime), r.Checked["events"], r.Checked["inbox_ids"], r.Checked["orders"], r.Checked["items"], r.Checked["accounts"],
		r.Duration.Round(time.Millisecond), r.Open, r.Attention)
	if r.Late > 0 {
		fmt.Fprintf(out, "; %d events came late", r.Late)
	}
	fmt.Fprintln(out)
	broken := map[string]bool{}
	for _, v := range r.Violations {
		broken[v.Rule] = true
		fmt.Fprintf(out, "  VIOLATED %-15s %d: %s\n", v.Rule, v.Count, v.Detail)
		for _, id := range v.IDs {
			fmt.Fprintf(out, "    %s\n", id)
		}
		if v.Count > len(v.IDs) {
			fmt.Fprintf(out, "    and %d more: --ids prints them\n", v.Count-len(v.IDs))
		}
	}
	var held []string
	for _, rule := range audit.Rules() {
		if !broken[rule] {
			held = append(held, rule)
		}
	}
	if len(held) > 0 {
		fmt.Fprintf(out, "  holds: %s\n", strings.Join(held, ", "))
	}
}

// databases are pools on the three databases.
func (o systemFlags) databases(ctx context.Context, cmd *cobra.Command) (pools map[string]*pgxpool.Pool, closeAll func(), err error) {
	pools = map[string]*pgxpool.Pool{}
	closeAll = func() {
		for _, p := range pools {
			p.Close()
		}
	}
	for _, s := range system.Services() {
		address, variable, err := databaseURL(cmd, s)
		if err == nil {
			pools[s.Database.Name], err = poolOf(ctx, address, o.timeout)
		}
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("%s: %w", variable, err)
		}
	}
	return pools, closeAll, nil
}

// auditMetrics is what /metrics shows of the audits.
type auditMetrics struct {
	registry         *prometheus.Registry
	violations       *prometheus.GaugeVec
	checked          *prometheus.CounterVec
	late             prometheus.Counter
	open, attention  prometheus.Gauge
	seconds, success prometheus.Gauge
	failures         prometheus.Counter
}

func newAuditMetrics() *auditMetrics {
	m := &auditMetrics{
		registry:   prometheus.NewRegistry(),
		violations: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "audit_violations", Help: "What violates a rule in the last round, by rule."}, []string{"rule"}),
		checked:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "audit_checked_total", Help: "What was judged."}, []string{"what"}),
		late:       prometheus.NewCounter(prometheus.CounterOpts{Name: "audit_late_events_total", Help: "Events that were missing in one round and there in a later one."}),
		open:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "audit_orders_open", Help: "Orders under way in the last round."}),
		attention:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "audit_orders_need_attention", Help: "Orders that wait for a dead letter's redrive."}),
		seconds:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "audit_duration_seconds", Help: "Time of the last round."}),
		success:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "audit_last_success_timestamp_seconds", Help: "When the last round began that could read all."}),
		failures:   prometheus.NewCounter(prometheus.CounterOpts{Name: "audit_failures_total", Help: "Rounds that could not read all."}),
	}
	m.registry.MustRegister(m.violations, m.checked, m.late, m.open, m.attention, m.seconds, m.success, m.failures)
	return m
}

func (m *auditMetrics) show(r audit.Report, err error) {
	if err != nil {
		m.failures.Inc()
		return
	}
	counts := map[string]int{}
	for _, v := range r.Violations {
		counts[v.Rule] += v.Count
	}
	for _, rule := range audit.Rules() {
		m.violations.WithLabelValues(rule).Set(float64(counts[rule]))
	}
	for what, n := range r.Checked {
		m.checked.WithLabelValues(what).Add(float64(n))
	}
	m.late.Add(float64(r.Late))
	m.open.Set(float64(r.Open))
	m.attention.Set(float64(r.Attention))
	m.seconds.Set(r.Duration.Seconds())
	m.success.Set(float64(r.At.Unix()))
}

// serve answers GET /metrics until stop is called.
func (m *auditMetrics) serve(addr string) (stop func(), err error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s, choose another --metrics-addr: %w", addr, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	return func() {
		server.Close()
		<-done
	}, nil
}
