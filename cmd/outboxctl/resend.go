package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/supervisor"
	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
)

func newResendCommand() *cobra.Command {
	var connector string
	c := &cobra.Command{
		Use: "resend", Short: "Have a connector send its whole outbox again, where Kafka is not what it was", Args: cobra.NoArgs,
		Long: `Stop a connector, have it forget how far it had come, and start it (also if it was stopped before): it sends the whole retained
outbox, and the inboxes skip what they know. For records that Kafka has lost, and for a database that was restored: what Connect
remembers lies beyond the end of its log then, and events up to there would be passed over. Interrupted, it may leave the connector
stopped: run it again. It reads CONNECT_URL and where the
database is (say ORDER_DATABASE_URL, or ADMIN_DATABASE_URL), by default those of the local stack.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			return resend(ctx, cmd, connector)
		},
	}
	c.Flags().StringVar(&connector, "connector", "", "orderdb, stockdb or paymentdb (required)")
	_ = c.MarkFlagRequired("connector") // the flag exists
	return c
}

func resend(ctx context.Context, cmd *cobra.Command, connector string) error {
	databases := system.Databases()
	i := slices.IndexFunc(databases, func(d provision.Database) bool { return d.Name == connector })
	if i < 0 {
		return fmt.Errorf("--connector %q is not known: use orderdb, stockdb or paymentdb", connector)
	}
	workers, err := connectWorkers(cmd)
	if err != nil {
		return err
	}
	address, variable, err := databaseURL(cmd, connector)
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	pool, err := poolOf(ctx, address, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	defer pool.Close()
	err = supervisor.SendAgain(ctx, workers, supervisor.Pipeline{Name: connector, Slot: databases[i].Slot(), DB: pool})
	switch {
	case errors.Is(err, connect.ErrNotFound):
		return fmt.Errorf("there is no connector %s: scripts/register-connectors.sh registers it", connector)
	case err != nil:
		return fmt.Errorf("%s is not sent again, try once more: %w", connector, err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s starts, and sends its outbox again\n", connector)
	return nil
}
