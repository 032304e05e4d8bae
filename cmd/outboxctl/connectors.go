package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/scheduling"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// connectorOptions say which connectors, and where.
type connectorOptions struct {
	dir, connect, database string
	timeout                time.Duration
}

func newConnectorsCommand() *cobra.Command {
	var o connectorOptions
	c := &cobra.Command{Use: "connectors", Short: "Register connectors, and check that they stream"}
	c.PersistentFlags().StringVar(&o.dir, "dir", "connectors", "folder of the connectors' files")
	c.PersistentFlags().StringVar(&o.connect, "connect", "", "address of a Connect worker (the first of CONNECT_URL, or the local stack's)")
	c.PersistentFlags().StringVar(&o.database, "database", "", "URL of PostgreSQL for a role that may log in to the connectors' databases (CONNECTOR_DATABASE_URL or ADMIN_DATABASE_URL, but for those with a variable of their own: ORDER_DATABASE_URL, STOCK_DATABASE_URL, PAYMENT_DATABASE_URL; or the local stack's)")
	c.PersistentFlags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long to wait")
	c.AddCommand(
		&cobra.Command{Use: "register", Short: "Register the connectors and wait until each streams", Args: cobra.NoArgs,
			Long: `Register the connectors, or change them to what their files say, and wait until each streams: its tasks are RUNNING and its
replication slot is active. What has failed, or whose slot is missing, is started again, once; else it fails with the connector's own error.`,
			RunE: func(cmd *cobra.Command, _ []string) error { return connectors(cmd, o, true) }},
		&cobra.Command{Use: "check", Short: "Succeed if the worker works and every connector streams", Args: cobra.NoArgs,
			Long: `Succeed if the worker works, every connector is RUNNING with its slot active, and, where KAFKA_BROKERS is set,
a broker answers and the newest heartbeat of every connector is no older than ` + connect.MaxSilence.String() + `. The health check of the worker's container.`,
			RunE: func(cmd *cobra.Command, _ []string) error { return connectors(cmd, o, false) }},
		&cobra.Command{Use: "worker -- PROGRAM [ARGUMENT]...", Short: "Become the program that runs Kafka Connect, scheduled as Debezium needs it",
			Long: `Become the program that runs Kafka Connect. On Linux it is scheduled as a batch (` + scheduling.PolicyVariable + `=other: as any program), and its timed
waits may end 8 ms late (` + scheduling.SlackVariable + `). The connectors read two variables, which it sets where they are not set:
` + scheduling.BatchVariable + ` is 1, each event goes on at once; ` + scheduling.IntervalVariable + ` is 2, without the late waits 20, and 4 where more events than one are gathered.`,
			RunE: func(cmd *cobra.Command, args []string) error { return becomeWorker(cmd, args) }},
	)
	return c
}

func becomeWorker(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("name the program that runs Kafka Connect after --, for example connect-distributed.sh and its file")
	}
	w, missing, err := scheduling.ForWorker()
	if err != nil {
		return err
	}
	if missing != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "outboxctl:", missing)
	}
	return w.Exec(args)
}

func connectors(cmd *cobra.Command, o connectorOptions, register bool) error {
	files, err := connect.Files(o.dir)
	if err != nil {
		return err
	}
	client := connect.Client{URL: strings.TrimSuffix(o.connect, "/")}
	if client.URL == "" {
		workers, err := connectWorkers(cmd)
		if err != nil {
			return err
		}
		client.URL = workers[0]
	}
	databases := make([]string, len(files))
	for i, f := range files {
		var variable string
		if databases[i], variable, err = o.databaseURL(cmd, f.Name); err != nil {
			return fmt.Errorf("%s: %w", variable, err)
		}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	var all errgroup.Group
	if !register {
		if err := system.Ask(ctx, client.URL+"/health"); err != nil {
			return fmt.Errorf("the worker does not work: %w", err)
		}
		all.Go(func() error { return checkKafka(ctx, os.Getenv("KAFKA_BROKERS"), files) })
	}
	for i, f := range files {
		all.Go(func() error {
			slot := provision.Database{Name: f.Name}.Slot()
			if !register {
				return client.WaitStreaming(ctx, f.Name, databases[i], slot)
			}
			if err := client.Register(ctx, f, databases[i], slot); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "  connector %s streams\n", f.Name)
			return nil
		})
	}
	err = all.Wait()
	if register && errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*pgconn.ConnectError)) {
		err = fmt.Errorf("%w; %s", err, o.workersSay(cmd))
	}
	return err
}

// databaseURL is where a connector's database is, and the variable that may say so.
func (o connectorOptions) databaseURL(cmd *cobra.Command, database string) (address, variable string, err error) {
	if o.database != "" { // it is for all
		return onServer(o.database, database, "--database")
	}
	if all := os.Getenv("CONNECTOR_DATABASE_URL"); all != "" {
		return databaseAt(database, "CONNECTOR_DATABASE_URL", all)
	}
	if address, variable, err = databaseURL(cmd, database); err != nil {
		err = fmt.Errorf("%w (or set CONNECTOR_DATABASE_URL, postgres://user:password@host:5432/, which is for all)", err)
	}
	return address, variable, err
}

// workersSay is the newest cause in the logs of the local stack's workers, or what else to read: a connector that tries again and
// again says nothing in its status.
func (o connectorOptions) workersSay(cmd *cobra.Command) string {
	const elsewhere = "the worker's log has more"
	if o.connect != "" || os.Getenv("CONNECT_URL") != "" {
		return elsewhere
	}
	local, err := openStack(cmd)
	if err != nil {
		return elsewhere
	}
	var logs []string
	cause := ""
	for _, name := range local.WorkerNames() {
		if _, runs := local.PID(name); !runs { // another worker has its port
			return elsewhere
		}
		log := local.LogFile(name)
		logs = append(logs, log)
		text, _ := os.ReadFile(log) // it may not be there
		for line := range strings.Lines(string(text)) {
			if after, is := strings.CutPrefix(line, "Caused by: "); is {
				cause = "the worker says: " + strings.TrimSpace(after) + "; "
			}
		}
	}
	return cause + "log: " + strings.Join(logs, ", ")
}

// checkKafka is nil if a broker, host:port with commas between, answers and every connector beats, and where no broker is
// named. Without its brokers a worker goes on saying RUNNING, and notices late itself.
func checkKafka(ctx context.Context, brokers string, files []connect.File) error {
	if brokers == "" {
		return nil
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
	if err != nil {
		return fmt.Errorf("KAFKA_BROKERS: %w", err)
	}
	defer client.Close()
	if err := client.Ping(ctx); err != nil {
		return fmt.Errorf("no broker answers at %s: %w", brokers, err)
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.Name
	}
	return connect.CheckBeats(ctx, kadm.NewClient(client), names...)
}
