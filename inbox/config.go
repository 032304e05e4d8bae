package inbox

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Config configures a [Consumer].
type Config struct {
	// Pool is the database with the inbox and the caller's tables. Required. The
	// consumer uses one connection at a time.
	Pool *pgxpool.Pool
	// Brokers are the seed brokers, host:port. Required.
	Brokers []string
	// Group is the consumer group. Required. An inbox belongs to one group, the first that handles an event with it: another one would
	// skip what that one has handled, and waits instead, not [Consumer.Ready].
	Group string
	// Topics are consumed from the start where the group has no offset. Required.
	Topics []string

	// Partitions is how many partitions each topic must have; [Consumer.Run] refuses others, because with
	// another number keys change their partition and lose their order. 0: any number.
	Partitions int
	// Batch starts the work on events. Exactly one of Batch and Each is required.
	Batch func(events []Event) Batch
	// Each handles one event at a time.
	Each Each
	// Decode turns a payload into Event.Body. An error makes the record a dead letter.
	// Default: Body stays nil.
	Decode func(Event) (any, error)
	// DeadLetter makes the event that announces a dead letter, written in the same
	// transaction. Its key may be empty, its payload near a MiB and no JSON. If it fails, or the outbox refuses
	// the event, an error is logged and the row in dead_letters is all. Default: none; the row is all.
	DeadLetter func(DeadLetter) (outbox.Event, error)

	// MaxBatch is the most events in one transaction. Default 500; with Each 64, for each event is a subtransaction then. PostgreSQL keeps
	// the ids of 64 of a transaction at hand ("Subtransactions" in its manual); for more, everybody who meets its rows looks them up.
	MaxBatch int
	// Pace says how long after the beginning of a transaction the next one begins at the earliest; it is asked each time that events have
	// come. What comes meanwhile goes into the same transaction. Default: the next begins at once, as it does after a full one.
	Pace func() time.Duration
	// MaxAttempts is how often an event is tried, alone, when its handler fails with an error
	// that is neither [Permanent] nor a fault of the database; then it is a dead letter.
	// Default 8, which with RetryBackoff's default is 1 to 1.5 s.
	MaxAttempts int
	// RetryBackoff is the wait before an event's second attempt; it doubles with each
	// further one, up to 30 s. Default 10 ms.
	RetryBackoff time.Duration
	// FaultBackoff is the longest wait between two attempts while the database cannot
	// work; it starts at 50 ms and doubles. Default 2 s.
	FaultBackoff time.Duration
	// Timeout bounds one transaction. Default 15 s. A batch that takes longer is rolled back and the next one is half as large,
	// so MaxBatch times the time of an event should stay below it. A rebalance waits for the transaction in hand, up to 10 s; then
	// the others of the group go on without this member, and wait for the transaction at the inbox. If this process freezes, or its
	// machine is gone, PostgreSQL ends the transaction after the same time, unless idle_in_transaction_session_timeout is set otherwise.
	Timeout time.Duration
	// SessionTimeout is how long the broker waits for a heartbeat before the partitions
	// of a dead instance go to another one: what they stand still when an instance is killed. Heartbeats
	// come six times in it, from a goroutine of their own, so a long transaction does not end the
	// session. Default 6 s, the least that a broker allows unless its group.min.session.timeout.ms
	// is lowered; then 1.5 to 2 s are good values.
	SessionTimeout time.Duration
	// InstanceID makes the member static (KIP-345): at its shutdown it does not leave the group, and a
	// restart within SessionTimeout causes no rebalance, but nobody has its partitions meanwhile. It must
	// be unique in the group. Default: dynamic; the others take over at once what a shutdown leaves.
	InstanceID string

	// Logger gets faults, retries and dead letters. Default slog.Default().
	Logger *slog.Logger
	// Hooks observe; see [Hooks]. Default: none.
	Hooks Hooks
	// ClientOptions are added to the Kafka client's, for TLS, SASL or metrics.
	ClientOptions []kgo.Opt
}

// Hooks are called from the consumer's goroutine; they must not block, nor call the
// consumer. Nil ones are skipped.
type Hooks struct {
	// Begun: a transaction over some events begins; it may fail, and be tried again.
	Begun func(events int)
	// Committed: a transaction committed. fresh events had an effect, repeated ones
	// were skipped, dead became dead letters.
	Committed func(fresh, repeated, dead int, took time.Duration)
	// Fault: the database could not work; the consumer waits and tries again.
	Fault func(err error)
	// Retry: an event's handler failed; it is tried again.
	Retry func(ev Event, attempts int, err error)
	// Lost: Kafka has removed records before this group handled them, up to so many (markers of transactions count too), because their
	// retention was over or by somebody's order. Consuming goes on behind them. It is told with the next record of the partition,
	// and only if the group has committed an offset there that the brokers still have (offsets.retention.minutes).
	Lost func(topic string, partition int32, records int64)
}

func (c *Config) validate() error {
	switch {
	case c.Pool == nil:
		return errors.New("inbox: Config.Pool is nil: pass the pool of the database that has the inbox table")
	case len(c.Brokers) == 0:
		return errors.New("inbox: Config.Brokers is empty: pass at least one host:port")
	case c.Group == "":
		return errors.New("inbox: Config.Group is empty: pass the name of the consumer group")
	case len(c.Topics) == 0:
		return errors.New("inbox: Config.Topics is empty: pass the topics to consume")
	case (c.Batch == nil) == (c.Each == nil):
		return errors.New("inbox: set exactly one of Config.Batch and Config.Each")
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"MaxBatch", int64(c.MaxBatch)}, {"MaxAttempts", int64(c.MaxAttempts)},
		{"RetryBackoff", int64(c.RetryBackoff)}, {"FaultBackoff", int64(c.FaultBackoff)},
		{"Timeout", int64(c.Timeout)}, {"SessionTimeout", int64(c.SessionTimeout)},
	} {
		if f.value < 0 {
			return fmt.Errorf("inbox: Config.%s is negative: leave it 0 for the default", f.name)
		}
	}
	if c.Each != nil {
		setDefault(&c.MaxBatch, 64)
	}
	setDefault(&c.MaxBatch, 500)
	setDefault(&c.MaxAttempts, 8)
	setDefault(&c.RetryBackoff, 10*time.Millisecond)
	setDefault(&c.FaultBackoff, 2*time.Second)
	setDefault(&c.Timeout, 15*time.Second)
	setDefault(&c.SessionTimeout, 6*time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Decode == nil {
		c.Decode = func(Event) (any, error) { return nil, nil }
	}
	return nil
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

func errorf(op string, err error) error { return fmt.Errorf("inbox: %s: %w", op, err) }
