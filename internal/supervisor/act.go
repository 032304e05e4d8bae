package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"

	"github.com/jackc/pgx/v5"
)

// actTimeout bounds one act; resumeTimeout what a resend takes beyond it to start its connector again.
const actTimeout, resumeTimeout = 20 * time.Second, 20 * time.Second

// begun is the outcome of a resend that goes on, or that its supervisor did not live to finish. Its
// connector may be stopped: the one that acts resumes it.
const begun = "begun"

var (
	// errStopped: a connector was stopped for a resend and could not be resumed.
	errStopped = errors.New("the connector is still stopped")
	// errMayStop: a call to stop it has failed or not ended in time. A worker may have it in its queue, behind a call to resume that
	// needs no queue.
	errMayStop = errors.New("the connector may yet be stopped: look again in a minute, and resume it if it is STOPPED")
)

// perform does what was decided, and tells of it.
func (s *Supervisor) perform(ctx context.Context, f Facts, p Pipeline, act Act) {
	ctx = context.WithoutCancel(ctx)
	outcome, resends := "done", false
	var err error
	switch {
	case s.cfg.DryRun:
		outcome = "would"
	case act.Kind == Resend:
		// First of all, for whoever acts next if this supervisor ends in the middle.
		if err = s.record(ctx, p, act, begun); err != nil {
			err = fmt.Errorf("it is not begun: %w", err)
			break
		}
		resends, s.memories[p.Name].unfinished = true, time.Now()
		if err = s.do(ctx, f, p, act); err != nil {
			s.memories[p.Name].failed()
		}
	default:
		if err = s.do(ctx, f, p, act); err == nil && act.Kind == MakeTopics {
			s.memories[p.Name].made()
		}
	}
	log := s.cfg.Log.Info
	if err != nil {
		outcome, log = err.Error(), s.cfg.Log.Error
	}
	log("supervisor", "act", act.Kind, "connector", p.Name, "reason", act.Reason, "outcome", outcome)
	s.metrics.acted(p.Name, act.Kind, outcome)
	// Not before it is done: the row must not say what did not happen.
	switch {
	case resends && (errors.Is(err, errStopped) || errors.Is(err, errMayStop)):
		s.memories[p.Name].unfinished = time.Now()
		return // the row stays as it is: until it is resumed, or [Supervisor.settle] takes it for ended
	case resends:
		err = s.finish(ctx, p, outcome)
	default:
		resumed := act.Kind == Resume && outcome == "done"
		if err = s.record(ctx, p, act, outcome); err == nil && resumed {
			err = s.finish(ctx, p, "not finished: the connector was resumed")
		}
	}
	if err != nil {
		s.cfg.Log.Error("the act is not in the table supervisor_acts: run outboxctl provision if it is missing", "error", err)
	}
}

// record writes the row of an act.
func (s *Supervisor) record(ctx context.Context, p Pipeline, act Act, outcome string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := s.cfg.Pipelines[0].DB.Exec(ctx, `INSERT INTO supervisor_acts (instance, connector, act, reason, outcome) VALUES ($1, $2, $3, $4, $5)`,
		s.cfg.Instance, p.Name, act.Kind, act.Reason, outcome)
	if err == nil {
		_, err = s.cfg.Pipelines[0].DB.Exec(ctx, `DELETE FROM supervisor_acts WHERE at < clock_timestamp() - interval '30 days'`)
	}
	return err
}

// finish says in their rows what became of a connector's resends that were begun.
func (s *Supervisor) finish(ctx context.Context, p Pipeline, outcome string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := s.cfg.Pipelines[0].DB.Exec(ctx, `UPDATE supervisor_acts SET outcome = $1 WHERE connector = $2 AND act = $3 AND outcome = $4`,
		outcome, p.Name, Resend, begun)
	if err == nil {
		s.memories[p.Name].unfinished = time.Time{}
	}
	return err
}

// recall learns which resends were begun and not finished before this supervisor acted.
func (s *Supervisor) recall(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rows, err := s.cfg.Pipelines[0].DB.Query(ctx, `SELECT DISTINCT connector FROM supervisor_acts WHERE act = $1 AND outcome = $2`, Resend, begun)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		if m := s.memories[name]; m != nil {
			m.unfinished = time.Now()
		}
	}
	return err
}

// settle takes an unfinished resend for ended when its connector is not stopped after a minute: who stops it from
// then on wants it so. Before, a worker may still be about to stop it.
func (s *Supervisor) settle(ctx context.Context, f Facts, p Pipeline) {
	m, connector := s.memories[p.Name], f.Pipelines[p.Name].Connector
	if s.cfg.DryRun || m.unfinished.IsZero() || f.At.Sub(m.unfinished) < time.Minute || connector == nil || connector.State == "STOPPED" {
		return
	}
	if err := s.finish(ctx, p, "not finished: the connector is "+connector.State); err != nil {
		s.cfg.Log.Error("an unfinished resend is not settled", "connector", p.Name, "error", err)
	}
}

func (s *Supervisor) do(ctx context.Context, f Facts, p Pipeline, act Act) error {
	limited, cancel := context.WithTimeout(ctx, s.actTimeout)
	defer cancel()
	switch act.Kind {
	case Restart:
		return s.asked(f.worker, f.worker.Restart(limited, p.Name, f.Pipelines[p.Name].Connector.State == "FAILED"))
	case Register:
		return s.asked(f.worker, f.worker.Put(limited, p.Connector))
	case MakeTopics:
		return provision.Topics(limited, s.cfg.Brokers, s.cfg.Replicas, s.cfg.Topics...)
	case EndSender: // that one only: another reader may have come meanwhile
		var ended bool
		err := p.DB.QueryRow(limited, `SELECT coalesce(bool_or(pg_terminate_backend(active_pid)), false) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid = $2`,
			p.Slot, f.Pipelines[p.Name].Slot.pid).Scan(&ended)
		if err == nil && !ended {
			return errors.New("it has ended by itself")
		}
		return err
	case DropSlot:
		if err := s.dropLost(limited, p); err != nil {
			return err
		}
		return s.asked(f.worker, f.worker.Restart(limited, p.Name, false))
	case Resend:
		st, err := f.worker.Status(limited, p.Name)
		if err != nil {
			return s.asked(f.worker, err)
		}
		if st.Connector.State != "RUNNING" {
			return fmt.Errorf("the connector is %s now: it is left alone", st.Connector.State)
		}
		// Kafka does not have what it had: all is sent.
		c := s.confirmations[p.Name]
		c.forget()
		if c.saved != 0 || c.told || !c.recalled {
			if err = c.save(limited, p, f.Pipelines[p.Name].Slot.at, false); err != nil {
				return err
			}
		}
		return s.asked(f.worker, sendAgain(ctx, limited, f.worker, s.cfg.Workers, s.resumeTimeout, p.Name))
	case Resume:
		return resume(ctx, s.cfg.Workers, s.resumeTimeout, p.Name)
	}
	return fmt.Errorf("no act %q", act.Kind)
}

// asked returns err, of an act that a worker was asked for. After an error the others are asked before it from the next look on:
// one that answers may be unable to act.
func (s *Supervisor) asked(worker connect.Client, err error) error {
	if i := slices.Index(s.workers, worker.URL); err != nil && i >= 0 {
		s.workers = append(slices.Delete(s.workers, i, i+1), worker.URL)
	}
	return err
}

// SendAgain has a connector send its whole retained outbox again, whatever is known of it; it runs afterwards, also if it was stopped before.
// It asks the first of the workers that answers. A supervisor that acts does not know of it: of what comes before it, it may
// soon say again that Kafka has it, which counts if the slot is lost meanwhile.
func SendAgain(ctx context.Context, workers []string, p Pipeline) error {
	worker, connectors, err := askConnect(ctx, workers)
	if err != nil {
		return err
	}
	if _, known := connectors[p.Name]; !known {
		return fmt.Errorf("connector %s: %w", p.Name, connect.ErrNotFound)
	}
	if err := new(confirmation).save(ctx, p, time.Now(), false); err != nil { // nothing is known
		return err
	}
	return sendAgain(ctx, ctx, worker, workers, resumeTimeout, p.Name)
}

// sendAgain has a connector forget its offsets within limited. Whatever becomes of them, it is started again: that it stays
// stopped would be worse.
func sendAgain(ctx, limited context.Context, worker connect.Client, workers []string, within time.Duration, name string) error {
	err := worker.Stop(limited, name)
	if err == nil {
		err = worker.ResetOffsets(limited, name)
	} else {
		err = errors.Join(err, errMayStop)
	}
	return errors.Join(err, resume(context.WithoutCancel(ctx), workers, within, name))
}

// resume starts a connector that was stopped for a resend. It has a time of its own, and asks every
// worker again and again: nobody else starts the connector.
func resume(ctx context.Context, workers []string, within time.Duration, name string) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		var failed error
		for _, url := range workers {
			ask, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := connect.Client{URL: url}.Resume(ask, name)
			cancel()
			if err == nil || errors.Is(err, connect.ErrNotFound) {
				return err
			}
			failed = errors.Join(failed, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(errStopped, failed)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// dropLost drops the slot only if it is lost at this very moment.
func (s *Supervisor) dropLost(ctx context.Context, p Pipeline) error {
	var slot string
	err := p.DB.QueryRow(ctx, `SELECT slot_name FROM pg_replication_slots WHERE slot_name = $1 AND wal_status = 'lost'`, p.Slot).Scan(&slot)
	if errors.Is(err, pgx.ErrNoRows) {
		return errors.New("the slot is not lost any more: it is left as it is")
	}
	if err != nil {
		return err
	}
	_, err = p.DB.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, slot)
	return err
}

// Done is an act of the past.
type Done struct {
	At        time.Time `json:"at"`
	Instance  string    `json:"instance"`
	Connector string    `json:"connector"`
	Act       Kind      `json:"act"`
	Reason    string    `json:"reason"`
	Outcome   string    `json:"outcome"` // done, would (with --dry-run), begun (a resend, while it goes on), or the error
}

// Acts reads the newest acts, newest first. p is the first pipeline.
func Acts(ctx context.Context, p Pipeline, limit int) ([]Done, error) {
	acts, err := readAll[Done](ctx, p, `SELECT at, instance, connector, act, reason, outcome FROM supervisor_acts ORDER BY id DESC LIMIT $1`, limit)
	for i := range acts {
		acts[i].At = acts[i].At.UTC()
	}
	return acts, err
}
