package inbox

import (
	"context"
	"time"

	"outboxsaga/outbox"
)

// DropPartitions drops the partitions of the inbox that are past retention (1 to 400 days), oldest first,
// and returns their names. kept, if not nil, is why the next one has to stay for now ([outbox.Busy]
// or [outbox.Locked]): call again later. See [outbox.DropPartitions] for locks, clocks and several
// processes.
//
// retention must exceed the outbox retention of every sender plus the retention of the topics: an
// event is sent again from the outbox while that keeps it, and is read again from Kafka for as long
// as the topic keeps it after that. Age is all that counts here. What comes later than the inbox
// remembers becomes a dead letter; it never has an effect:
//
//   - A partition that was dropped is never made again, also if retention is raised later:
//     [PreparePartitions] makes none below what was dropped. An empty one would take its events for new.
//   - A consumer that does not know yet that the partition is gone cannot record the id, so its
//     transaction fails as a whole; it looks again and puts the event aside.
func DropPartitions(ctx context.Context, db outbox.Querier, retention time.Duration) (dropped []string, kept *outbox.Kept, err error) {
	const dropOldest = `SELECT coalesce(partition, ''), state, coalesce(detail, '') FROM event_partitions_drop('inbox', make_interval(secs => $1))`
	for {
		var partition, state, detail string
		err := db.QueryRow(ctx, dropOldest, retention.Seconds()).Scan(&partition, &state, &detail)
		switch {
		case err != nil:
			return dropped, nil, errorf("drop partitions", err)
		case state == "none":
			return dropped, nil, nil
		case state != "dropped":
			return dropped, &outbox.Kept{Partition: partition, Reason: outbox.Reason(state), Detail: detail}, nil
		}
		dropped = append(dropped, partition)
	}
}
