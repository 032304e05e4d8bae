package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/service"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
)

func newProvisionCommand() *cobra.Command {
	var replicas int16
	var only []string
	c := &cobra.Command{
		Use: "provision", Short: "Make roles, databases, migrations, slots and topics", Args: cobra.NoArgs,
		Long: `Make what the services and connectors need, where it is missing. It reads ADMIN_DATABASE_URL (a superuser) and
KAFKA_BROKERS (host:port, with commas between), by default those of the local stack, and the logins' passwords: CDC_PASSWORD,
SUPERVISOR_PASSWORD, ORDER_SERVICE_PASSWORD, STOCK_SERVICE_PASSWORD, PAYMENT_SERVICE_PASSWORD (without one, none is set).`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			url := os.Getenv("ADMIN_DATABASE_URL")
			if url == "" {
				for _, other := range []string{"KAFKA_BROKERS", "ORDER_DATABASE_URL", "STOCK_DATABASE_URL", "PAYMENT_DATABASE_URL"} {
					if os.Getenv(other) != "" {
						return fmt.Errorf("%s is set, and so this is not for the local stack: set ADMIN_DATABASE_URL (postgres://superuser@host:port/postgres) too, and give --only where each service has a PostgreSQL of its own", other)
					}
				}
				stack, err := openStack(cmd)
				if err != nil {
					return fmt.Errorf("%w (or set ADMIN_DATABASE_URL)", err)
				}
				url = stack.PostgresURL("postgres")
			}
			brokers, err := kafkaBrokers(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			return system.Provision(ctx, url, rolePassword, brokers, replicas, only...)
		},
	}
	c.Flags().StringSliceVar(&only, "only", nil, "databases to make, where each service has a PostgreSQL of its own: orderdb, stockdb, paymentdb (default all; a slot that nobody reads would hold the log)")
	addReplicas(c, &replicas)
	return c
}

func newCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Say which settings events could not flow with", Args: cobra.NoArgs,
		Long: `Check what change data capture needs: PostgreSQL's settings, the connectors' role, the publications, the topics with their
partitions and how long they keep records, each worker's plugin. It changes nothing, prints a line for each thing that is wrong,
and exits with 1 if there is one. It reads ORDER_DATABASE_URL, STOCK_DATABASE_URL and PAYMENT_DATABASE_URL, or ADMIN_DATABASE_URL for
all three, KAFKA_BROKERS and CONNECT_URL, by default those of the local stack; and TOPIC_RETENTION, if the services have one.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 20*time.Second)
			defer cancel()
			return check(ctx, cmd)
		},
	}
}

func check(ctx context.Context, cmd *cobra.Command) error {
	urls := map[string]string{}
	for _, d := range system.Databases() {
		address, variable, err := databaseURL(cmd, d.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", variable, err)
		}
		urls[d.Name] = address
	}
	brokers, err := kafkaBrokers(cmd)
	if err != nil {
		return err
	}
	workers, err := connectWorkers(cmd)
	if err != nil {
		return err
	}
	wrong := []error{provision.Check(ctx, urls, system.Databases()), checkTopics(ctx, brokers)}
	for _, url := range workers { // a connector may run on any of them
		wrong = append(wrong, connect.Client{URL: url}.CheckPlugin(ctx))
	}
	return errors.Join(wrong...)
}

// checkTopics says what is wrong with the topics. How long they keep records matters where an inbox has to remember them.
func checkTopics(ctx context.Context, brokers []string) error {
	keep, err := time.ParseDuration(envOr("TOPIC_RETENTION", provision.TopicRetention.String()))
	if err != nil {
		return fmt.Errorf("TOPIC_RETENTION is %q: it must be a time like 168h, as the services have it", os.Getenv("TOPIC_RETENTION"))
	}
	var handled []string
	for _, t := range system.Topics() {
		if system.Consumer(t.Name) != "" {
			handled = append(handled, t.Name)
		}
	}
	wrong, err := service.CheckTopics(ctx, brokers, keep, handled...)
	if err != nil {
		return err
	}
	return errors.Join(append(wrong, provision.CheckTopics(ctx, brokers, system.Topics()...))...)
}

// rolePassword reads a login's password from the environment.
func rolePassword(role string) string { return os.Getenv(strings.ToUpper(role) + "_PASSWORD") }

// slot is what PostgreSQL knows of a connector's slot.
type slot struct {
	Connector string `json:"connector"`
	Slot      string `json:"slot"`
	Active    bool   `json:"active"`
	WALStatus string `json:"wal_status"` // reserved, extended, unreserved, lost, or missing
	LagBytes  int64  `json:"lag_bytes"`  // not yet confirmed by the connector
	Confirmed int64  `json:"confirmed"`  // the position in the log up to which Kafka has everything
	WAL       int64  `json:"wal"`        // the end of the log
}

func newSlotsCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "slots", Short: "Show the connectors' replication slots", Args: cobra.NoArgs,
		Long: `Show the connectors' replication slots, of the local stack, or at ORDER_DATABASE_URL, STOCK_DATABASE_URL and
PAYMENT_DATABASE_URL, or at ADMIN_DATABASE_URL for all three.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			slots, err := readSlots(cmd.Context(), cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(slots)
			}
			for _, s := range slots {
				fmt.Fprintf(cmd.OutOrStdout(), "%-10s %-18s active=%-5t %-10s lag %d bytes\n", s.Connector, s.Slot, s.Active, s.WALStatus, s.LagBytes)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func readSlots(ctx context.Context, cmd *cobra.Command) (slots []slot, err error) {
	for _, d := range system.Databases() {
		address, variable, err := databaseURL(cmd, d.Name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", variable, err)
		}
		conn, err := pgx.Connect(ctx, address)
		if err != nil {
			return nil, fmt.Errorf("the database %s does not answer: start it, or set %s: %w", d.Name, variable, err)
		}
		defer conn.Close(context.WithoutCancel(ctx))
		s, err := readSlot(ctx, conn, d.Name)
		if err != nil {
			return nil, err
		}
		slots = append(slots, s)
	}
	return slots, nil
}
