package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/scheduling"
	"outboxsaga/internal/system"

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

// newConnectorsCommand is for containers, which have no shell; people use
// scripts/register-connectors.sh.
func newConnectorsCommand() *cobra.Command {
	var o connectorOptions
	c := &cobra.Command{Use: "connectors", Short: "Register connectors, and check that they stream"}
	c.PersistentFlags().StringVar(&o.dir, "dir", "connectors", "folder of the connectors' files")
	c.PersistentFlags().StringVar(&o.connect, "connect", os.Getenv("CONNECT_URL"), "address of Kafka Connect (CONNECT_URL)")
	c.PersistentFlags().StringVar(&o.database, "database", os.Getenv("CONNECTOR_DATABASE_URL"), "URL of PostgreSQL for a role that may log in to the connectors' databases (CONNECTOR_DATABASE_URL), but for those with a variable of their own (ORDER_DATABASE_URL, STOCK_DATABASE_URL, PAYMENT_DATABASE_URL)")
	c.PersistentFlags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long to wait")
	c.AddCommand(
		&cobra.Command{Use: "register", Short: "Register the connectors and wait until each streams", Args: cobra.NoArgs,
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
	if o.connect == "" {
		return errors.New("set CONNECT_URL (http://host:8083)")
	}
	files, err := connect.Files(o.dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	client := connect.Client{URL: strings.TrimSuffix(o.connect, "/")}
	var all errgroup.Group
	if !register {
		if err := system.Ask(ctx, client.URL+"/health"); err != nil {
			return fmt.Errorf("the worker does not work: %w", err)
		}
		all.Go(func() error { return checkKafka(ctx, os.Getenv("KAFKA_BROKERS"), files) })
	}
	for _, f := range files {
		all.Go(func() error {
			database, variable, err := databaseAt(f.Name, "CONNECTOR_DATABASE_URL", o.database)
			if cmd.Flags().Changed("database") { // it is for all
				database, variable, err = onServer(o.database, f.Name, "--database")
			}
			if err == nil && database == "" {
				err = errors.New("it is not set, nor is CONNECTOR_DATABASE_URL (postgres://user:password@host:5432/), which is for all")
			}
			if err != nil {
				return fmt.Errorf("%s: %w", variable, err)
			}
			upto := ""
			if register {
				if err := put(ctx, client, f); err != nil {
					return err
				}
				if upto, err = client.RestartFailed(ctx, f.Name, database); err != nil {
					return fmt.Errorf("connector %s: %w", f.Name, err)
				}
			}
			if err := client.WaitSent(ctx, f.Name, database, provision.Database{Name: f.Name}.Slot(), upto); err != nil {
				return err
			}
			if register {
				fmt.Fprintf(cmd.OutOrStdout(), "connector %s streams\n", f.Name)
			}
			return nil
		})
	}
	return all.Wait()
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

// put registers a connector with a worker that may still be starting.
func put(ctx context.Context, client connect.Client, f connect.File) error {
	for {
		err := client.Put(ctx, f)
		var down *url.Error
		// A worker that is starting refuses the connection, and then for a moment knows no path.
		if err == nil || !errors.As(err, &down) && !errors.Is(err, connect.ErrNotFound) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connector %s: %w", f.Name, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}
