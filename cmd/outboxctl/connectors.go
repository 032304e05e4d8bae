package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
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
	c.PersistentFlags().StringVar(&o.database, "database", "", "URL of PostgreSQL for a role that may log in to the connectors' databases (CONNECTOR_DATABASE_URL or ADMIN_DATABASE_URL, but for those with a variable of their own: ORDER_DATABASE_URL, STOCK_DATABASE_URL, PAYMENT_DATABASE_URL; or, with a worker at a loopback address, the local stack's)")
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
	databases := map[string]string{}
	for _, f := range files {
		var variable string
		if databases[f.Name], variable, err = o.databaseURL(cmd, client.URL, f.Name); err != nil {
			return fmt.Errorf("%s: %w", variable, err)
		}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	if !register {
		if err := system.Ask(ctx, client.URL+"/health"); err != nil {
			return fmt.Errorf("the worker does not work: %w", err)
		}
		var both errgroup.Group
		both.Go(func() error { return checkKafka(ctx, os.Getenv("KAFKA_BROKERS"), files) })
		both.Go(func() error {
			return connect.ForAll(files, func(f connect.File) error {
				return client.WaitStreaming(ctx, f.Name, databases[f.Name], slotOf(f))
			})
		})
		return both.Wait()
	}
	logs := o.workerLogs(cmd)
	err = connect.ForAll(files, func(f connect.File) error {
		err := client.Register(ctx, f, databases[f.Name], slotOf(f))
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "  connector %s streams\n", f.Name)
		}
		return err
	})
	if errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*pgconn.ConnectError)) {
		err = fmt.Errorf("%w; %s", err, workersSay(logs))
	}
	return err
}

func slotOf(f connect.File) string { return provision.Database{Name: f.Name}.Slot() }

// databaseURL is where a connector's database is, and the variable that may say so. A worker of elsewhere does not read the
// local stack's, which may look the same.
func (o connectorOptions) databaseURL(cmd *cobra.Command, worker, database string) (address, variable string, err error) {
	if o.database != "" { // it is for all
		return onServer(o.database, database, "--database")
	}
	if all := os.Getenv("CONNECTOR_DATABASE_URL"); all != "" {
		return databaseAt(database, "CONNECTOR_DATABASE_URL", all)
	}
	if !isLocal(worker) {
		address, variable, err = namedDatabaseURL(database)
		if address == "" && err == nil {
			err = fmt.Errorf("it is not set, and the worker %s is not at a loopback address, where the local stack's is", worker)
		}
	} else {
		address, variable, err = databaseURL(cmd, database)
	}
	if err != nil {
		err = fmt.Errorf("%w (or set CONNECTOR_DATABASE_URL, postgres://user:password@host:5432/, which is for all)", err)
	}
	return address, variable, err
}

func isLocal(worker string) bool {
	u, err := url.Parse(worker)
	return err == nil && (u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback())
}

// workerLog is the log of a worker, and how long it was.
type workerLog struct {
	file  string
	begin int64
}

// workerLogs are those of the local stack's workers, if it is one of them that is asked.
func (o connectorOptions) workerLogs(cmd *cobra.Command) (logs []workerLog) {
	if o.connect != "" || os.Getenv("CONNECT_URL") != "" {
		return nil
	}
	local, err := openStack(cmd)
	if err != nil {
		return nil
	}
	for i, name := range local.WorkerNames() {
		if _, runs := local.PID(name); !runs && i == 0 { // another worker has its port
			return nil
		}
		file := local.LogFile(name)
		logs = append(logs, workerLog{file, devstack.LogSize(file)})
	}
	return logs
}

// workersSay is the newest cause in what workers have logged since, or what else to read: a connector that tries again and again says
// nothing in its status.
func workersSay(logs []workerLog) string {
	if len(logs) == 0 {
		return "the worker's log has more"
	}
	files := make([]string, len(logs))
	cause := ""
	for i, log := range logs {
		files[i] = log.file
		for line := range strings.Lines(string(devstack.LogSince(log.file, log.begin))) {
			if after, is := strings.CutPrefix(line, "Caused by: "); is {
				cause = "the worker says: " + strings.TrimSpace(after) + "; "
			}
		}
	}
	return cause + "log: " + strings.Join(files, ", ")
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
