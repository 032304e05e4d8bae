package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"outboxsaga/internal/system"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func newRewindCommand() *cobra.Command {
	var service, to string
	var dryRun bool
	c := &cobra.Command{
		Use: "rewind", Short: "Have a service read its topics again from a time on, after its database was restored", Args: cobra.NoArgs,
		Long: `Set the offsets of a service's consumer group back to the first records at or after a time, or further if that is where they are
already. The inbox skips what its database has, so too early a time only costs time; give one before the moment to which the database
was restored. The service must be stopped: a group with members keeps its own offsets. It reads KAFKA_BROKERS, by default those of
the local stack.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			return rewind(ctx, cmd, service, to, dryRun)
		},
	}
	c.Flags().StringVar(&service, "service", "", "order, stock or payment (required)")
	c.Flags().StringVar(&to, "to", "", "a time like 2026-11-23T15:04:05Z, or how long ago, like 2h (required)")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be done")
	_, _ = c.MarkFlagRequired("service"), c.MarkFlagRequired("to") // the flags exist
	return c
}

// moment reads a time, or how long ago it was.
func moment(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("--to %q is no time: give one like 2026-11-23T15:04:05Z, or how long ago, like 2h", text)
	}
	return at, nil
}

func rewind(ctx context.Context, cmd *cobra.Command, service, to string, dryRun bool) error {
	at, err := moment(to)
	if err != nil {
		return err
	}
	services := system.Services()
	i := slices.IndexFunc(services, func(s system.Service) bool {
		return strings.TrimSuffix(s.Name, "-service") == service || s.Name == service
	})
	if i < 0 {
		return fmt.Errorf("--service %q is not known: use order, stock or payment", service)
	}
	brokers, err := kafkaBrokers(cmd)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer client.Close()
	admin, group := kadm.NewClient(client), services[i].Name
	described, err := admin.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("no answer from Kafka at %v: %w", brokers, err)
	}
	if members := len(described[group].Members); members > 0 {
		return fmt.Errorf("%s has %d running instances: stop them first, they would keep their own offsets", group, members)
	}
	committed, err := admin.FetchOffsets(ctx, group)
	if err != nil {
		return fmt.Errorf("read the offsets of %s: %w", group, err)
	}
	if len(committed) == 0 {
		return errors.New("the group has no offsets: the service reads its topics from their beginning anyway")
	}
	starts, err := admin.ListOffsetsAfterMilli(ctx, at.UnixMilli(), committed.Offsets().TopicsSet().Topics()...)
	if err != nil {
		return fmt.Errorf("find the records of %s: %w", at.UTC().Format(time.RFC3339), err)
	}
	back, records := kadm.Offsets{}, map[string]int64{}
	committed.Each(func(o kadm.OffsetResponse) {
		start, ok := starts.Lookup(o.Topic, o.Partition)
		if !ok || start.Err != nil || start.Offset >= o.At {
			return
		}
		back.AddOffset(o.Topic, o.Partition, start.Offset, -1)
		records[o.Topic] += o.At - start.Offset
	})
	for _, topic := range slices.Sorted(maps.Keys(records)) {
		fmt.Fprintf(cmd.OutOrStdout(), "%-20s %d records again\n", topic, records[topic])
	}
	if len(records) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "nothing to read again")
		return nil
	}
	if dryRun {
		return nil
	}
	return admin.CommitAllOffsets(ctx, group, back)
}
