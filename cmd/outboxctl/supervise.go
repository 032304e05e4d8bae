package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/supervisor"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func newSuperviseCommand() *cobra.Command {
	var o superviseOptions
	host, _ := os.Hostname()
	c := &cobra.Command{
		Use: "supervise", Short: "Keep the connectors streaming: look at facts, mend what is broken", Args: cobra.NoArgs,
		Long: `Look at slots, positions in the log, heartbeats, consumer lag and the ids that no inbox has, and act: start failed and
stuck connectors again, register missing ones, make missing topics, drop a slot that PostgreSQL has invalidated (its
connector makes a new one and sends what Kafka does not have), and have an outbox sent again whose events Kafka has lost,
or whose database was restored. It never drops a slot that can still be read, and leaves a paused or stopped connector
alone. Any number may run; one acts.

It reads ORDER_DATABASE_URL, STOCK_DATABASE_URL and PAYMENT_DATABASE_URL, or ADMIN_DATABASE_URL for all three (the role
supervisor, which outboxctl provision makes), KAFKA_BROKERS and CONNECT_URL (with commas between); by default those of
the local stack. GET /metrics, /healthz and /readyz answer on --addr.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return supervise(cmd.Context(), cmd, o) },
	}
	f := c.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "only say what would be done")
	f.DurationVar(&o.every, "every", 2*time.Second, "time from one look to the next, 10s at most")
	f.StringVar(&o.addr, "addr", envOr("SUPERVISOR_ADDR", "127.0.0.1:8084"), "address of metrics and health (SUPERVISOR_ADDR)")
	f.StringVar(&o.instance, "instance", fmt.Sprintf("%s/%d", host, os.Getpid()), "name of this supervisor in the acts")
	o.systemFlags.add(c)
	return c
}

type superviseOptions struct {
	systemFlags
	dryRun         bool
	every          time.Duration
	addr, instance string
}

// systemFlags say where the parts of a system are, beside the environment.
type systemFlags struct {
	connectors string
	replicas   int16
	timeout    time.Duration // of a statement; 0: 5 s
}

func (o *systemFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&o.connectors, "connectors", "", "folder of the connectors' files (default: that of the checkout)")
	addReplicas(c, &o.replicas)
}

func addReplicas(c *cobra.Command, replicas *int16) {
	c.Flags().Int16Var(replicas, "replicas", provision.DefaultReplicas, "replication factor of topics that are made; -1: the brokers' default.replication.factor")
}

func envOr(name, byDefault string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return byDefault
}

// open finds the parts of the system by the environment, or else those of the local stack. It connects
// to nothing.
func (o systemFlags) open(ctx context.Context, cmd *cobra.Command) (cfg supervisor.Config, closeAll func(), err error) {
	if o.connectors == "" {
		root, err := system.Root()
		if err != nil {
			return cfg, closeAll, fmt.Errorf("%w, or give --connectors", err)
		}
		o.connectors = filepath.Join(root, "connectors")
	}
	files, err := connect.Files(o.connectors)
	if err != nil {
		return cfg, closeAll, err
	}
	pools, closeAll, err := o.databases(ctx, cmd)
	if err != nil {
		return cfg, closeAll, err
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	if cfg.Brokers, err = kafkaBrokers(cmd); err != nil {
		return cfg, closeAll, err
	}
	if cfg.Workers, err = connectWorkers(cmd); err != nil {
		return cfg, closeAll, err
	}
	cfg.Topics, cfg.Replicas, cfg.Consumer = system.Topics(), o.replicas, system.Consumer
	cfg.Pipelines, err = system.Pipelines(pools, files)
	return cfg, closeAll, err
}

// databaseURL is where a database is: at its service's variable (say ORDER_DATABASE_URL), at
// ADMIN_DATABASE_URL, or in the local stack. variable is the one that says so, or could.
func databaseURL(cmd *cobra.Command, database string) (address, variable string, err error) {
	address, variable, err = namedDatabaseURL(database)
	if address != "" || err != nil {
		return address, variable, err
	}
	local, err := openStack(cmd)
	if err != nil {
		return "", variable, fmt.Errorf("it is not set, and %w", err)
	}
	return local.PostgresURL(database), variable, nil
}

// namedDatabaseURL is [databaseURL] without the local stack: empty if no variable says where any database is.
func namedDatabaseURL(database string) (address, variable string, err error) {
	address, variable, err = databaseAt(database, "ADMIN_DATABASE_URL", os.Getenv("ADMIN_DATABASE_URL"))
	if address != "" || err != nil {
		return address, variable, err
	}
	for _, s := range system.Services() { // the others would be another system's
		if _, other, _ := databaseAt(s.Database.Name, "", ""); os.Getenv(other) != "" {
			return "", variable, fmt.Errorf("it is not set, and %s is: set all three, or ADMIN_DATABASE_URL", other)
		}
	}
	return "", variable, nil
}

// databaseAt is where a database is: at its service's variable, or on the server of all, whose URL another variable
// has. Empty: neither is set.
func databaseAt(database, variableOfAll, urlOfAll string) (address, variable string, err error) {
	variable = strings.ToUpper(strings.TrimSuffix(database, "db")) + "_DATABASE_URL"
	if address = os.Getenv(variable); address != "" || urlOfAll == "" {
		return address, variable, nil
	}
	return onServer(urlOfAll, database, variableOfAll)
}

// onServer is a database on the server of another one's URL, which name gives.
func onServer(other, database, name string) (address, named string, err error) {
	u, err := url.Parse(other)
	if err != nil { // the parser's reason may quote the password
		return "", name, errors.New("it is not a URL: want postgres://user:password@host:port/postgres")
	}
	u.Path = "/" + database
	return u.String(), name, nil
}

// kafkaBrokers are those at KAFKA_BROKERS, or those of the local stack.
func kafkaBrokers(cmd *cobra.Command) ([]string, error) {
	return addresses(cmd, "KAFKA_BROKERS", (*devstack.Stack).Brokers)
}

// connectWorkers are those at CONNECT_URL, or those of the local stack.
func connectWorkers(cmd *cobra.Command) ([]string, error) {
	return addresses(cmd, "CONNECT_URL", (*devstack.Stack).ConnectURLs)
}

func addresses(cmd *cobra.Command, variable string, local func(*devstack.Stack) []string) ([]string, error) {
	text := os.Getenv(variable)
	if text == "" {
		stack, err := openStack(cmd)
		if err != nil {
			return nil, fmt.Errorf("%w (or set %s)", err, variable)
		}
		return local(stack), nil
	}
	all := strings.Split(text, ",")
	for i := range all {
		all[i] = strings.TrimSuffix(strings.TrimSpace(all[i]), "/")
	}
	return all, nil
}

func poolOf(ctx context.Context, address string, timeout time.Duration) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(address)
	if err != nil {
		return nil, errors.New("it is not the URL of a database: want postgres://user:password@host:port/database") // the parser's reason may quote the password
	}
	cfg.MaxConns = 4
	cfg.ConnConfig.ConnectTimeout = 3 * time.Second
	cfg.ConnConfig.RuntimeParams["application_name"] = "outboxctl"
	cfg.ConnConfig.RuntimeParams["statement_timeout"] = fmt.Sprint(cmp.Or(timeout, 5*time.Second).Milliseconds())
	return pgxpool.NewWithConfig(ctx, cfg)
}

func supervise(ctx context.Context, cmd *cobra.Command, o superviseOptions) error {
	if o.every < 100*time.Millisecond || o.every > supervisor.MaxEvery {
		return fmt.Errorf("--every is %s: give 100ms to %s", o.every, supervisor.MaxEvery)
	}
	cfg, closeAll, err := o.open(ctx, cmd)
	if err != nil {
		return err
	}
	defer closeAll()
	cfg.DryRun, cfg.Every, cfg.Instance = o.dryRun, o.every, o.instance
	cfg.Log = slog.New(slog.NewJSONHandler(cmd.OutOrStdout(), nil))
	s, err := supervisor.New(cfg)
	if err != nil {
		return err
	}
	defer s.Close()
	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s, choose another address with --addr or SUPERVISOR_ADDR: %w", o.addr, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Registry(), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return s.Run(ctx) })
	all.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	all.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	return all.Wait()
}
