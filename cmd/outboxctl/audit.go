package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"outboxsaga/internal/audit"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgconn"
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
		Use: "audit", Short: "Prove that no event was lost, invented or done twice, and that goods and money add up",
		Long: `Read the three databases and hold every rule against them: each event is in its consumer's inbox or a dead letter, each inbox
id was written by an outbox, no step was asked or answered twice, goods and money are conserved for each item and account and are
what reservations and payments say, a SUCCESS order has both effects and a settled FAILED one none, no order is past its time.

It reads in pages, no writer waits for it, and it may run in production at any time. With --watch it goes on until a signal, and reads only what is
new; what it found stays reported until it is mended. It changes nothing. The exit code is 0 if every rule holds (with --watch: in the last round), 1 if one does
not, 2 if the command is wrong or a database cannot be read. It reads the databases of the local stack, or those at ORDER_DATABASE_URL, STOCK_DATABASE_URL
and PAYMENT_DATABASE_URL, or at ADMIN_DATABASE_URL for all three, with roles that may read all tables.`,
		Example: "  outboxctl audit --since 24h\n  outboxctl audit --watch 30s --metrics-addr 127.0.0.1:9187",
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := runAudit(cmd.Context(), cmd, o)
			var coded exitCode
			if err != nil && !errors.As(err, &coded) {
				return exitCode{err, 2}
			}
			return err
		},
	}
	wrongUsage := func(err error) error { return exitCode{fmt.Errorf("%w: outboxctl audit --help tells more", err), 2} }
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return wrongUsage(err) })
	c.Args = func(cmd *cobra.Command, args []string) error {
		if err := cobra.NoArgs(cmd, args); err != nil {
			return wrongUsage(err)
		}
		return nil
	}
	f := c.Flags()
	f.DurationVar(&o.Grace, "grace", 10*time.Second, "how long an event may be under way, from its commit and by its id")
	f.DurationVar(&o.Since, "since", 0, "how far back to read (0: all that is there)")
	f.DurationVar(&o.OrderTimeout, "order-timeout", time.Minute, "ORDER_TIMEOUT of order-service")
	f.IntVar(&o.MaxIDs, "ids", 20, "how many ids to print for a violation")
	f.DurationVar(&o.watch, "watch", 0, "audit again and again, with this time between (say 30s)")
	f.DurationVar(&o.Full, "full", time.Hour, "with --watch, how often to read everything anew")
	f.BoolVar(&o.json, "json", false, "as JSON, one document a round")
	f.StringVar(&o.metrics, "metrics-addr", "", "address of GET /metrics, with --watch (say 127.0.0.1:9187)")
	return c
}

func (o auditOptions) check(watch bool) error {
	switch {
	case o.Grace < time.Second || o.OrderTimeout < time.Second:
		return errors.New("--grace and --order-timeout must be 1s or more")
	case o.Since < 0 || o.MaxIDs < 1:
		return errors.New("--since must not be negative, and --ids 1 or more")
	case watch && o.watch < time.Second:
		return errors.New("--watch must be 1s or more")
	case o.Full < time.Minute:
		return errors.New("--full must be 1m or more")
	case o.metrics != "" && !watch:
		return errors.New("--metrics-addr needs --watch: one audit is over before anybody asks for its metrics")
	}
	return nil
}

func runAudit(ctx context.Context, cmd *cobra.Command, o auditOptions) error {
	watch := cmd.Flags().Changed("watch")
	if err := o.check(watch); err != nil {
		return err
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
	var verdict error // of the last round
	if watch {
		verdict = exitCode{errors.New("ended before the first round: nothing was audited"), 2}
	}
	for {
		report, err := auditor.Round(ctx)
		if watch && ctx.Err() != nil {
			return verdict
		}
		m.show(report, err)
		switch {
		case err != nil && !watch:
			return unreachable(err)
		case err != nil:
			err = unreachable(err)
			fmt.Fprintln(cmd.ErrOrStderr(), "outboxctl:", err)
			verdict = exitCode{err, 2}
		default:
			verdict = nil
			if !report.Clean() {
				verdict = exitCode{fmt.Errorf("rules are violated: %s", strings.Join(broken(report), ", ")), 1}
			}
			if err := printAudit(cmd.OutOrStdout(), report, o.json); err != nil {
				return err
			}
		}
		if !watch {
			return verdict
		}
		select {
		case <-ctx.Done():
			return verdict
		case <-time.After(o.watch):
		}
	}
}

// broken are the rules that do not hold.
func broken(r audit.Report) (rules []string) {
	for _, v := range r.Violations {
		if !slices.Contains(rules, v.Rule) {
			rules = append(rules, v.Rule)
		}
	}
	return rules
}

func printAudit(out io.Writer, r audit.Report, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %d events, %d inbox ids, %d orders, %d items, %d accounts in %s; %d orders are open, %d need attention",
		r.At.Format(time.DateTime), r.Checked["events"], r.Checked["inbox_ids"], r.Checked["orders"], r.Checked["items"], r.Checked["accounts"],
		r.Duration.Round(time.Millisecond), r.Open, r.Attention)
	if r.Late > 0 {
		fmt.Fprintf(&b, "; %d events came late", r.Late)
	}
	b.WriteString("\n")
	for _, rule := range audit.Rules() {
		n := 0
		for _, v := range r.Violations {
			if v.Rule == rule {
				n += v.Count
			}
		}
		fmt.Fprintf(&b, "  %-15s %8d  %s\n", rule, n, map[bool]string{true: "holds", false: "VIOLATED"}[n == 0])
		for _, v := range r.Violations {
			if v.Rule != rule {
				continue
			}
			fmt.Fprintf(&b, "    %d: %s\n", v.Count, v.Detail)
			for _, id := range v.IDs {
				fmt.Fprintf(&b, "      %s\n", plain(id, 300))
			}
			if v.Count > len(v.IDs) {
				fmt.Fprintf(&b, "      and %d more: --ids %d prints them\n", v.Count-len(v.IDs), v.Count)
			}
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// unreachable adds what to do where a database does not answer.
func unreachable(err error) error {
	if errors.As(err, new(*pgconn.ConnectError)) {
		err = fmt.Errorf("%w: start the system with scripts/up.sh, or set ADMIN_DATABASE_URL, or ORDER_DATABASE_URL, STOCK_DATABASE_URL and PAYMENT_DATABASE_URL", err)
	}
	return err
}

// databases are pools on the three databases.
func (o systemFlags) databases(ctx context.Context, cmd *cobra.Command) (pools map[string]*pgxpool.Pool, closeAll func(), err error) {
	pools = map[string]*pgxpool.Pool{}
	closeAll = func() {
		for _, p := range pools {
			p.Close()
		}
	}
	for _, d := range system.Databases() {
		address, variable, err := databaseURL(cmd, d.Name)
		var pool *pgxpool.Pool
		if err == nil {
			pool, err = poolOf(ctx, address, o.timeout)
		}
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("%s: %w", variable, err)
		}
		pools[d.Name] = pool
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
