package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Register registers a connector, or changes its settings, and returns when it streams, as [Client.WaitStreaming] does. A worker that is
// starting is waited for. A connector that has failed, or whose slot is gone, is started again, once: Connect does not start it when it
// is told the same settings anew, and only a start makes the slot. It must then also have sent what was written before that.
func (c Client) Register(ctx context.Context, f File, database, slot string) error {
	if err := c.putStarting(ctx, f); err != nil {
		return fmt.Errorf("connector %s: %w", f.Name, err)
	}
	return c.wait(ctx, f.Name, database, slot, true)
}

// ForAll runs do for all connectors at the same time, and joins what went wrong.
func ForAll(files []File, do func(File) error) error {
	errs := make([]error, len(files))
	var all sync.WaitGroup
	for i, f := range files {
		all.Go(func() { errs[i] = do(f) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// putStarting is [Client.Put] to a worker that may still be starting: it refuses the connection, and then for a moment knows no path.
func (c Client) putStarting(ctx context.Context, f File) error {
	for {
		err := c.Put(ctx, f)
		var down *url.Error
		if err == nil || !errors.As(err, &down) && !errors.Is(err, ErrNotFound) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// WaitStreaming returns when the connector and its tasks are RUNNING and slot is
// active in the database, which is a URL. A FAILED task is an error at once, with its cause.
func (c Client) WaitStreaming(ctx context.Context, name, database, slot string) error {
	return c.wait(ctx, name, database, slot, false)
}

// slotMakes is how long a connector that has just been registered may take until it makes its slot.
const slotMakes = 5 * time.Second

// wait is [Client.WaitStreaming]; mend: of [Client.Register].
func (c Client) wait(ctx context.Context, name, database, slot string, mend bool) error {
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return fmt.Errorf("connector %s: %w", name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	begin, restarted, upto := time.Now(), false, ""
	for missing := ""; ; {
		now, err := c.look(ctx, conn, name, slot, upto)
		mendable := mend && !restarted
		switch {
		case err != nil && ctx.Err() != nil && missing != "": // what was missing before says more than that time is over
		case err != nil && ctx.Err() == nil && conn.IsClosed():
			return fmt.Errorf("connector %s: %w", name, err)
		case err != nil:
			missing = err.Error()
		case now.failed != nil && !mendable:
			return fmt.Errorf("connector %s failed: %s", name, now.failed.Cause())
		case now.failed != nil, now.noSlot && mendable && time.Since(begin) > slotMakes:
			missing = "it has just been started again"
			var end string
			end, err = c.restart(ctx, conn, name, now.failed != nil)
			upto = cmp.Or(end, upto)
			if restarted = err == nil; !restarted { // as far as this end knows: once more
				missing = "to start it again: " + err.Error()
			}
		case now.missing == "":
			return nil
		default:
			missing = now.missing
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connector %s does not stream: %s: %w", name, missing, ctx.Err())
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// progress is how far a connector is.
type progress struct {
	missing string // until it streams; empty: it does
	failed  *State
	noSlot  bool // it runs, and its slot is gone
}

// look asks Connect, and PostgreSQL if Connect says RUNNING. The slot must have confirmed the log up to a position, if that is not
// empty: a task that had failed runs for some seconds before it fails again on the same record. An error may pass.
func (c Client) look(ctx context.Context, conn *pgx.Conn, name, slot, upto string) (progress, error) {
	s, err := c.Status(ctx, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return progress{}, err
	}
	if failed := s.Failed(); failed != nil {
		return progress{failed: failed}, nil
	}
	for _, one := range append(s.Tasks, s.Connector) {
		switch one.State {
		case "RUNNING", "":
		case "STOPPED", "PAUSED":
			return progress{missing: fmt.Sprintf("it is %s, as somebody wanted it, or a resend that was interrupted left it; to start it: curl -X PUT %s/connectors/%s/resume", one.State, c.URL, name)}, nil
		default:
			return progress{missing: "it is " + one.State}, nil
		}
	}
	if len(s.Tasks) == 0 {
		return progress{missing: "it has no task yet"}, nil
	}
	state, active, sent := "missing", false, false
	err = conn.QueryRow(ctx, `SELECT coalesce(wal_status, 'new'), active, coalesce(confirmed_flush_lsn >= coalesce(nullif($2, ''), '0/0')::pg_lsn, false)
		FROM pg_replication_slots WHERE slot_name = $1`, slot, upto).Scan(&state, &active, &sent)
	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return progress{}, err
	case !active:
		return progress{missing: fmt.Sprintf("its slot %s is not active (%s)", slot, state), noSlot: err != nil}, nil
	case !sent:
		return progress{missing: "it has not yet sent what was written before its restart"}, nil
	}
	return progress{}, nil
}

// restart restarts what of the connector has failed, or all of it, and returns where the database's log ended before that, also if the
// worker's answer is lost.
func (c Client) restart(ctx context.Context, conn *pgx.Conn, name string, onlyFailed bool) (upto string, err error) {
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&upto); err != nil {
		return "", err
	}
	if err := c.Restart(ctx, name, onlyFailed); err != nil {
		return upto, err
	}
	select { // until the state says so
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
	return upto, nil
}
