package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"outboxsaga/events"
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
already. The time of a record is when its event was made, not when it was handled: give the moment to which the database was
restored, less how far the service lagged then. The inbox skips what its database has, so too early a time only costs time: if in
doubt, give 168h, all that Kafka has. Or set them to the end of the topics: only where all databases were restored together and all
outboxes are sent again after that, so that what is skipped comes again, but for what is of orders that are gone.
The service must be stopped: a group with members keeps its own offsets. It reads KAFKA_BROKERS, by default those of the local stack.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			return rewind(ctx, cmd, service, to, dryRun)
		},
	}
	c.Flags().StringVar(&service, "service", "", "order, stock or payment (required)")
	c.Flags().StringVar(&to, "to", "", "a time like 2026-11-23T15:04:05Z, or how long ago, like 2h; or end (required)")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be done")
	_, _ = c.MarkFlagRequired("service"), c.MarkFlagRequired("to") // the flags exist
	return c
}

// end is the --to that is no time.
const end = "end"

// moment reads a time, or how long ago it was.
func moment(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("--to %q is no time: give one like 2026-11-23T15:04:05Z, or how long ago, like 2h; or end", text)
	}
	return at, nil
}

func rewind(ctx context.Context, cmd *cobra.Command, service, to string, dryRun bool) error {
	var at time.Time
	var err error
	if to != end {
		if at, err = moment(to); err != nil {
			return err
		}
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
	if len(committed) == 0 && to != end {
		return errors.New("the group has no offsets: the service reads its topics from their beginning anyway")
	}
	topics := slices.DeleteFunc(events.Topics(), func(topic string) bool { return events.Consumer(topic)+"-service" != group })
	what := "again"
	var places kadm.ListedOffsets
	if to == end {
		what = "skipped"
		places, err = admin.ListEndOffsets(ctx, topics...)
	} else {
		places, err = admin.ListOffsetsAfterMilli(ctx, at.UnixMilli(), topics...)
	}
	begins, failed := admin.ListStartOffsets(ctx, topics...)
	if err = cmp.Or(err, failed, places.Error(), begins.Error()); err != nil {
		return fmt.Errorf("find the records of %s: %w", to, err)
	}
	moved, records := kadm.Offsets{}, map[string]int64{}
	places.Each(func(place kadm.ListedOffset) {
		// Where the group has no offset it reads from the beginning.
		first, _ := begins.Lookup(place.Topic, place.Partition)
		from := first.Offset
		if o, ok := committed.Lookup(place.Topic, place.Partition); ok && o.At >= 0 {
			from = o.At
		}
		n := from - place.Offset
		if to == end {
			n = -n
		}
		if n <= 0 {
			return
		}
		moved.AddOffset(place.Topic, place.Partition, place.Offset, -1)
		records[place.Topic] += n
	})
	for _, topic := range slices.Sorted(maps.Keys(records)) {
		fmt.Fprintf(cmd.OutOrStdout(), "%-20s %d records %s\n", topic, records[topic], what)
	}
	if len(records) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "0 records", what)
		return nil
	}
	if dryRun {
		return nil
	}
	return admin.CommitAllOffsets(ctx, group, moved)
}
