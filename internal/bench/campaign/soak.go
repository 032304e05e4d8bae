package campaign

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/internal/audit"
	"outboxsaga/internal/bench"
	"outboxsaga/internal/clockshift"
	"outboxsaga/internal/system"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Soak says how long a soak is.
type Soak struct {
	Orders int // in all
	Rate   int // orders/s
	Days   int
}

// day is what partitions hold.
const day = 24 * time.Hour

// auditGrace is how old what an audit judges must be.
const auditGrace = 10 * time.Second

// What stays after each day: two days of the outbox, and one more of the inbox.
const outboxDays, inboxDays = 2, 3

// soak places many orders, an equal number on each of some days. Days are not waited for: the clocks of the services
// begin in the past and go ahead by a day when all of a day has settled. Ids, partitions and time-outs follow those clocks.
// The last day is yesterday: a day that is not over by the database's clock, which stays, makes none before it old.
func (c *Campaign) soak(ctx context.Context) error {
	o := c.Options.Soak
	env := []string{
		// The services' own retention must not see the past days as too old.
		fmt.Sprintf("OUTBOX_RETENTION=%dh", (o.Days+3)*24), "TOPIC_RETENTION=168h", fmt.Sprintf("INBOX_RETENTION=%dh", (o.Days+11)*24),
	}
	c.say("%s: starting", bench.CDC)
	r, err := c.start(ctx, System{Name: bench.CDC, Env: env, Instances: c.Instances}, c.Shape)
	if err != nil {
		return err
	}
	defer func() { _ = r.close() }()
	for _, pool := range r.pools {
		if _, err := pool.Exec(ctx, `SELECT event_partitions_prepare('outbox', $1, 1)`, o.Days+1); err != nil {
			return err
		}
	}
	s := &session{c: c, running: r, shape: c.Shape, part: bench.PartSoak, begin: time.Now()}
	fmt.Fprintln(c.Out, bench.SoakHeader)
	for n := range o.Days {
		left := o.Days - n // days until the services' clocks are right
		if err := s.moveClocks(-time.Duration(left) * day); err != nil {
			return err
		}
		if n == 0 {
			if err := s.flows(ctx); err != nil {
				return err
			}
			if err := s.warmUp(ctx, o.Rate); err != nil {
				return err
			}
		}
		found, err := s.soakDay(ctx, n+1, left)
		if err != nil {
			return fmt.Errorf("day %d: %w", n+1, err)
		}
		fmt.Fprintln(c.Out, found.Row())
		c.Report.Soak = append(c.Report.Soak, found)
		if err := c.save(); err != nil {
			return err
		}
	}
	// Over all orders, and the events that retention has left.
	whole, err := s.audit(ctx, 0)
	if err != nil {
		return err
	}
	c.say("audit over everything: %d orders, %d events, %d found", whole.Orders, whole.Events, len(whole.Violations))
	c.Report.SoakAudit = &whole
	if err := c.save(); err != nil {
		return err
	}
	if wrong := bench.JudgeSoak(c.Report.Soak, c.Report.SoakAudit); len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

// moveClocks sets the clocks of all services ahead by as much.
func (s *session) moveClocks(by time.Duration) error {
	for name, pid := range s.Processes {
		for _, service := range system.Services() {
			if name != service.Name && !strings.HasPrefix(name, service.Name+"-") {
				continue
			}
			if err := clockshift.Shift(pid, by); err != nil {
				return fmt.Errorf("move the clock of %s (a soak needs root, on Linux on amd64): %w", name, err)
			}
		}
	}
	return nil
}

// soakDay places a day's orders, audits them, and drops what is past.
func (s *session) soakDay(ctx context.Context, n, left int) (found bench.SoakDay, err error) {
	o := s.c.Options.Soak
	found = bench.SoakDay{Day: n, TableBytes: map[string]int64{}}
	duration := time.Duration(float64(o.Orders) / float64(o.Days) / float64(o.Rate) * float64(time.Second))
	if found.Point, err = s.run(ctx, o.Rate, duration); err != nil {
		return found, err
	}
	// Then all of the day is old enough to be judged.
	if err := wait(ctx, auditGrace+time.Second); err != nil {
		return found, err
	}
	if found.Audited, err = s.audit(ctx, time.Duration(left+1)*day+time.Hour); err != nil {
		return found, err
	}
	for _, pool := range s.pools {
		dropped, err := dropDays(ctx, pool)
		if err != nil {
			return found, err
		}
		found.Dropped += dropped
	}
	for i, service := range system.Services() {
		if err := measureTables(ctx, s.pools[i], service.Database.Name, &found); err != nil {
			return found, err
		}
	}
	err = s.DB.QueryRow(ctx, `SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint FROM pg_replication_slots`).Scan(&found.SlotBytes)
	return found, err
}

// audit audits what is as old as since at most; 0: all that is there.
func (s *session) audit(ctx context.Context, since time.Duration) (found bench.Audited, err error) {
	databases := audit.Databases{Order: s.pools[0], Stock: s.pools[1], Payment: s.pools[2]}
	report, err := audit.Once(ctx, databases, audit.Options{Since: since, Grace: auditGrace})
	if err != nil {
		return found, err
	}
	found.Orders, found.Events = report.Checked["orders"], report.Checked["events"]
	for _, v := range report.Violations {
		found.Violations = append(found.Violations, v.String())
	}
	return found, nil
}

// measureTables adds the sizes of a database's tables, those of partitions under the name of their table.
func measureTables(ctx context.Context, pool *pgxpool.Pool, database string, d *bench.SoakDay) error {
	const sizes = `
SELECT coalesce(i.inhparent, c.oid)::regclass::text, count(i.inhparent), sum(pg_total_relation_size(c.oid))::bigint
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace GROUP BY 1`
	rows, err := pool.Query(ctx, sizes)
	if err != nil {
		return err
	}
	var table string
	var partitions int
	var bytes int64
	_, err = pgx.ForEachRow(rows, []any{&table, &partitions, &bytes}, func() error {
		d.TableBytes[database+"."+table] = bytes
		if partitions > 0 {
			d.Partitions += partitions
			d.EventBytes += bytes
		}
		return nil
	})
	return err
}

// dropDays drops what is older than the days that stay, as a service does: it waits for slots and locks. Age counts back from the newest
// event, which is days old.
func dropDays(ctx context.Context, pool *pgxpool.Pool) (dropped int, err error) {
	for _, drop := range []func() ([]string, *outbox.Kept, error){
		func() ([]string, *outbox.Kept, error) {
			return outbox.DropPartitions(ctx, pool, outboxDays*day)
		},
		func() ([]string, *outbox.Kept, error) {
			return inbox.DropPartitions(ctx, pool, inboxDays*day)
		},
	} {
		for end := time.Now().Add(time.Minute); ; {
			names, kept, err := drop()
			dropped += len(names)
			if err != nil {
				return dropped, err
			}
			if kept == nil {
				break
			}
			if time.Now().After(end) {
				return dropped, fmt.Errorf("partition %s stays: %s", kept.Partition, kept.Detail)
			}
			if err := wait(ctx, time.Second); err != nil {
				return dropped, err
			}
		}
	}
	return dropped, nil
}
