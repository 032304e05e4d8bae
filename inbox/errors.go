package inbox

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

// ErrPartitions is in the error of [Consumer.Run] when a topic has another number of partitions than
// [Config.Partitions].
var ErrPartitions = errors.New("records of one key would change partition and lose their order")

// errNoPartition is a fault of operation: partitions were not prepared in time.
var errNoPartition = errors.New("inbox: the table has no partition: call inbox.PreparePartitions")

// refusal is an error of the caller's code, whatever it wraps: no fault of the database.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func isRefusal(err error) bool {
	var refused refusal
	return errors.As(err, &refused)
}

// isTimeout tells a transaction that took too long from a database that did not answer at all.
func isTimeout(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "57014" || pg.Code == "25P04" // statement_timeout, transaction_timeout
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// mayBeOfOne tells a fault that may be about one event, or about a row that one event needs: others may go on without it.
func mayBeOfOne(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "55P03", // lock_not_available: lock_timeout, NOWAIT
		"XX000": // internal_error: extensions report bad values so
		return true
	case "23514": // no partition: of the inbox or the outbox it is for all
		return pg.TableName != "" && pg.TableName != "inbox" && pg.TableName != "outbox"
	}
	return false
}

// isFault tells a database that cannot work from a statement that it refused. A
// fault says nothing about the events: the same batch may succeed later. The classes are
// those of the PostgreSQL manual, appendix A.
func isFault(err error) bool {
	if err == nil || isRefusal(err) {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "55P03", "55006", // lock_not_available, object_in_use
			"25006", // read_only_sql_transaction: a standby, after a failover
			"25P03", // idle_in_transaction_session_timeout
			"25P04": // transaction_timeout
			return true
		case "23514": // no partition is reported as a check violation of the partitioned table, in the server's language; a CHECK has a name
			return pg.ConstraintName == "" && (pg.TableName != "" || strings.HasPrefix(pg.Message, "no partition of relation"))
		}
		switch pg.Code[:2] {
		case "08", // connection exception
			"28", // invalid authorization: a rotated password
			"40", // rollback: serialization failure, deadlock
			"42", // missing table, column or right: a deployment's fault, never an event's
			"3D", // database does not exist
			"53", // insufficient resources: disk full, too many connections
			"57", // operator intervention: shutdown, crash, cancel, statement timeout
			"58", // system error: I/O
			"XX": // internal error, corrupted data
			return true
		}
		return false
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.Is(err, errNoPartition) || errors.As(err, &connect) || errors.As(err, &network) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, pgx.ErrTxCommitRollback) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, puddle.ErrClosedPool) ||
		pgconn.SafeToRetry(err)
}
