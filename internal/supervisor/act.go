package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"outboxsaga/internal/provision"

	"github.com/jackc/pgx/v5"
)

// actTimeout bounds one act.
const actTimeout = 20 * time.Second

// perform does what was decided, and tells of it.
func (s *Supervisor) perform(ctx context.Context, f Facts, p Pipeline, act Act) {
	outcome := "done"
	if s.cfg.DryRun {
		outcome = "would"
	} else if err := s.do(ctx, f, p, act); err != nil {
		outcome = err.Error()
	}
	log := s.cfg.Log.Info
	if outcome != "done" && outcome != "would" {
		log = s.cfg.Log.Error
	}
	log("supervisor", "act", act.Kind, "connector", p.Name, "reason", act.Reason, "outcome", outcome)
	s.metrics.acted(p.Name, act.Kind, outcome)
	// Not before it is done: the row must not say what did not happen.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := s.cfg.Pipelines[0].DB.Exec(ctx, `INSERT INTO supervisor_acts (instance, connector, act, reason, outcome) VALUES ($1, $2, $3, $4, $5)`,
		s.cfg.Instance, p.Name, act.Kind, act.Reason, outcome)
	if err == nil {
		_, err = s.cfg.Pipelines[0].DB.Exec(ctx, `DELETE FROM supervisor_acts WHERE at < clock_timestamp() - interval '30 days'`)
	}
	if err != nil {
		s.cfg.Log.Error("the act is not in the table supervisor_acts: run outboxctl provision if it is missing", "error", err)
	}
}

func (s *Supervisor) do(ctx context.Context, f Facts, p Pipeline, act Act) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), actTimeout)
	defer cancel()
	switch act.Kind {
	case Restart:
		return f.worker.Restart(ctx, p.Name, f.Pipelines[p.Name].Connector.State == "FAILED")
	case Register:
		return f.worker.Put(ctx, p.Connector)
	case MakeTopics:
		return provision.Topics(ctx, s.cfg.Brokers, s.cfg.Replicas, s.cfg.Topics...)
	case EndSender:
		_, err := p.DB.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, p.Slot)
		return err
	case DropSlot:
		if err := s.dropLost(ctx, p); err != nil {
			return err
		}
		return f.worker.Restart(ctx, p.Name, false)
	case Resend:
		if err := f.worker.Stop(ctx, p.Name); err != nil {
			return errors.Join(err, f.worker.Resume(ctx, p.Name))
		}
		// Whatever becomes of the offsets: a connector that stays stopped would be worse.
		return errors.Join(f.worker.ResetOffsets(ctx, p.Name), f.worker.Resume(ctx, p.Name))
	}
	return fmt.Errorf("no act %q", act.Kind)
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
	Outcome   string    `json:"outcome"` // done, would (with --dry-run), or the error
}

// Acts reads the newest acts, newest first. p is the first pipeline.
func Acts(ctx context.Context, p Pipeline, limit int) ([]Done, error) {
	acts, err := readAll[Done](ctx, p, `SELECT at, instance, connector, act, reason, outcome FROM supervisor_acts ORDER BY id DESC LIMIT $1`, limit)
	for i := range acts {
		acts[i].At = acts[i].At.UTC()
	}
	return acts, err
}
