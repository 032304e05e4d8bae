package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
)

func newResendCommand() *cobra.Command {
	var connector string
	c := &cobra.Command{
		Use: "resend", Short: "Have a connector send its whole outbox again, where Kafka is not what it was", Args: cobra.NoArgs,
		Long: `Stop a connector, have it forget how far it had come, and start it (also if it was stopped before): it sends the whole retained
outbox, and the inboxes skip what they know. For records that Kafka has lost, and for a database that was restored: what Connect
remembers lies beyond the end of its log then, and events up to there would be passed over. It reads CONNECT_URL and where the
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
	client := connect.Client{URL: workers[0]} // each of them passes it on
	if _, err := client.Status(ctx, connector); errors.Is(err, connect.ErrNotFound) {
		return fmt.Errorf("there is no connector %s at %s: scripts/register-connectors.sh registers it", connector, client.URL)
	} else if err != nil {
		return err
	}
	if err := sendAll(ctx, cmd, databases[i]); err != nil {
		return err
	}
	err = client.Stop(ctx, connector)
	if err == nil {
		err = client.ResetOffsets(ctx, connector)
	}
	// Whatever becomes of the offsets: a connector that stays stopped would be worse.
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if resumed := client.Resume(again, connector); resumed != nil {
		return errors.Join(err, fmt.Errorf("the connector %s is stopped; start it with curl -X PUT %s/connectors/%s/resume: %w", connector, client.URL, connector, resumed))
	}
	if err != nil {
		return fmt.Errorf("nothing is sent again; try once more: %w", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s starts, and sends its outbox again\n", connector)
	return nil
}

// sendAll has the database forget what it may have been told that a connector need not send.
func sendAll(ctx context.Context, cmd *cobra.Command, d provision.Database) error {
	address, variable, err := databaseURL(cmd, d.Name)
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return fmt.Errorf("the database %s does not answer; is %s right? %w", d.Name, variable, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `SELECT outbox_confirm($1, '{}', '{}', '{}', '0', '', clock_timestamp(), NULL)`, d.Slot()); err != nil {
		return fmt.Errorf("have %s forget what Kafka has; run outboxctl provision, or use a role that may: %w", d.Name, err)
	}
	return nil
}
