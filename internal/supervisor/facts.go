package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/provision"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
)

// Facts are what one look has found. What could not be asked is nil, and said in Unknown.
type Facts struct {
	At            time.Time           `json:"at"`
	Pipelines     map[string]Pipeflow `json:"pipelines"`
	MissingTopics []string            `json:"missing_topics,omitempty"`
	Groups        map[string]Group    `json:"groups,omitempty"` // by consumer group; nil: Kafka does not answer
	Unknown       []string            `json:"unknown,omitempty"`

	worker connect.Client // one that answers
	// topics are the ids of the topics by name: one that is made anew has another. nil: Kafka does not answer.
	topics map[string]string
}

// Pipeflow is the state of one pipeline.
type Pipeflow struct {
	Connector *Connector `json:"connector"` // nil: Connect does not answer
	Slot      *Slot      `json:"slot"`      // nil: PostgreSQL does not answer
	// Heartbeat is the time of the connector's newest record on its heartbeat topic; zero: none, or not known.
	Heartbeat time.Time `json:"heartbeat,omitzero"`
	// NoHeartbeat: Kafka has none. It keeps them for an hour.
	NoHeartbeat bool `json:"no_heartbeat,omitempty"`
	// Unseen are events that their consumer's inbox does not have, oldest first. An event is looked for
	// 3 s after it was made.
	Unseen []Unseen `json:"-"`
	// Stale: an inbox, or the outbox, could not be asked. Unseen is what an earlier look knew, and nothing follows from it.
	Stale bool `json:"-"`
}

// SinceHeartbeat is how old the connector's newest heartbeat is by now; where Kafka has none, for how long at least it has sent none.
func (p Pipeflow) SinceHeartbeat(now time.Time) (age time.Duration, known bool) {
	switch {
	case !p.Heartbeat.IsZero():
		return now.Sub(p.Heartbeat), true
	case p.NoHeartbeat && p.Slot != nil && p.Slot.Read > 0:
		return min(p.Slot.Read, provision.HeartbeatRetention), true
	}
	return 0, false
}

// Connector is what Kafka Connect says.
type Connector struct {
	// State is that of Connect (RUNNING, FAILED, PAUSED, STOPPED, UNASSIGNED, …) for connector and
	// task together, the worst of both; or missing, or starting: without a task.
	State string `json:"state"`
	Cause string `json:"cause,omitempty"` // of a failure
	// Offset is up to where it has read the log, as Connect keeps it, and End where the log ended after that was asked. Asked only while
	// nothing is confirmed; 0: not asked, or none.
	Offset int64 `json:"offset,omitempty"`
	End    int64 `json:"end,omitempty"`
}

// States beside those of Connect.
const (
	Missing  = "missing"
	Starting = "starting"
)

// Slot is what PostgreSQL says of a connector's replication slot. Positions count bytes of the log.
type Slot struct {
	Exists    bool   `json:"exists"`
	Active    bool   `json:"active"`
	WALStatus string `json:"wal_status,omitempty"` // reserved, extended, unreserved, lost
	Reason    string `json:"invalidation_reason,omitempty"`
	WAL       int64  `json:"wal"`       // the end of the log
	Confirmed int64  `json:"confirmed"` // up to where Kafka has everything
	LagBytes  int64  `json:"lag_bytes"`
	Retained  int64  `json:"retained_bytes"` // of the log, kept for this slot
	// Safe is how many bytes may be written until the slot is lost (max_slot_wal_keep_size); nil: no limit.
	Safe *int64 `json:"safe_bytes,omitempty"`
	// Snapshot is how long the connector has been reading the table itself; nil: it does not. The
	// slot is not active meanwhile.
	Snapshot *time.Duration `json:"snapshot_ns,omitempty"`
	// Silence is how long its reader has said nothing, as far as it was watched: 0 in the first look. nil: it
	// has no reader.
	Silence *time.Duration `json:"silence_ns,omitempty"`
	// Read is for how long it has had this reader; 0: it has none, or it may not be seen.
	Read time.Duration `json:"read_ns"`

	pid int32 // the walsender's process; 0: none
	// replies is how often a reader is heard at least: while it sends a long transaction, a walsender listens only after half of
	// wal_sender_timeout.
	replies time.Duration
	reader  string // of a connector: the process and when it began; "": none, or it may not be seen
	mark    mark
	next    int64 // the transaction that begins next
	// history is of which cluster and timeline the log is.
	history   string
	published bool      // the publication has the outbox
	at        time.Time // by the server's clock
	// publication is another one after each change of it.
	publication string
}

// Group is the state of a consumer group.
type Group struct {
	State   string           `json:"state"`
	Members int              `json:"members"`
	Lag     map[string]int64 `json:"lag"` // records by topic; -1: not known
	// Read is by topic up to when it is read: all that was on it at that time, by our clock. Zero: not known.
	Read map[string]time.Time `json:"-"`
}

// Total is the lag over all topics, as far as known.
func (g Group) Total() (n int64) {
	for _, lag := range g.Lag {
		n += max(0, lag)
	}
	return n
}

// lookTimeout bounds a look.
const lookTimeout = 6 * time.Second

// Look asks PostgreSQL, Kafka Connect and Kafka. It changes nothing, and takes no longer than
// some seconds.
func (s *Supervisor) Look(ctx context.Context) Facts {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	f := Facts{Pipelines: map[string]Pipeflow{}}
	var mu sync.Mutex
	unknown := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		f.Unknown = append(f.Unknown, fmt.Sprintf("%s: %v", what, err))
	}
	var all sync.WaitGroup
	var connectors map[string]connect.Status
	all.Go(func() {
		var err error
		if f.worker, connectors, err = askConnect(ctx, s.workers); err != nil {
			unknown("Kafka Connect", err)
		}
	})
	beats := map[string]connect.Beat{}
	all.Go(func() {
		if err := s.askKafka(ctx, &f, beats); err != nil {
			unknown("Kafka", err)
		}
	})
	flows := make([]Pipeflow, len(s.cfg.Pipelines))
	for i, p := range s.cfg.Pipelines {
		all.Go(func() {
			var err error
			if flows[i].Slot, err = readSlot(ctx, p, s.heard[p.Name]); err != nil {
				unknown("PostgreSQL, "+p.Name, err)
				return
			}
			// Not after Kafka has answered: while it does not, no time would be left.
			if flows[i].Unseen, err = s.follow(ctx, p, s.watches[p.Name]); err != nil {
				unknown("the events of "+p.Name, err)
				flows[i].Stale = true
			}
		})
	}
	all.Wait()
	for i, p := range s.cfg.Pipelines {
		beat, asked := beats[p.Name]
		flows[i].Heartbeat, flows[i].NoHeartbeat = beat.At, asked && beat.Err == nil && beat.At.IsZero()
		if connectors != nil {
			flows[i].Connector = state(connectors, p.Name)
		}
		if connectors != nil && s.memories[p.Name].stalled(flows[i].Slot, time.Now()) {
			if err := flows[i].Connector.compare(ctx, f.worker, p); err != nil {
				unknown("the offset of "+p.Name, err)
			}
		}
		f.Pipelines[p.Name] = flows[i]
	}
	slices.Sort(f.Unknown)
	f.At = time.Now()
	for i, p := range s.cfg.Pipelines {
		s.watches[p.Name].confirm(flows[i], f.At)
	}
	return f
}

// compare asks for the connector's offset, and then for the end of the log: one that is well has not read further.
func (c *Connector) compare(ctx context.Context, worker connect.Client, p Pipeline) error {
	offset, err := worker.Offset(ctx, p.Name)
	if errors.Is(err, connect.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = p.DB.QueryRow(ctx, `SELECT (pg_current_wal_lsn() - '0/0')::bigint`).Scan(&c.End)
	}
	if err == nil {
		c.Offset = offset
	}
	return err
}

func state(all map[string]connect.Status, name string) *Connector {
	st, known := all[name]
	if !known {
		return &Connector{State: Missing}
	}
	if failed := st.Failed(); failed != nil {
		return &Connector{State: "FAILED", Cause: failed.Cause()}
	}
	c := &Connector{State: st.Connector.State}
	if st.Connector.State == "RUNNING" && len(st.Tasks) == 0 {
		c.State = Starting
	}
	for _, one := range append([]connect.State{st.Connector}, st.Tasks...) {
		if one.State != "RUNNING" && c.State == "RUNNING" {
			c.State = one.State
		}
	}
	return c
}

// askConnect asks the workers in turn until one answers.
func askConnect(ctx context.Context, workers []string) (worker connect.Client, all map[string]connect.Status, err error) {
	var failed error
	for _, url := range workers {
		worker = connect.Client{URL: url}
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		all, err = worker.Statuses(ask)
		cancel()
		if err == nil {
			return worker, all, nil
		}
		failed = errors.Join(failed, err)
	}
	return worker, nil, failed
}

const selectSlot = `
SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint, s.slot_name IS NOT NULL, coalesce(s.active, false), coalesce(s.wal_status, ''),
       coalesce(s.invalidation_reason, ''), coalesce(s.confirmed_flush_lsn - '0/0'::pg_lsn, 0)::bigint,
       coalesce(pg_current_wal_lsn() - s.restart_lsn, 0)::bigint, s.safe_wal_size,
       coalesce(s.active_pid, 0), coalesce(extract(epoch FROM clock_timestamp() - r.backend_start), 0)::float8,
       -- While a slot is being made its maker has it too.
       CASE WHEN r.state IN ('catchup', 'streaming') AND r.application_name LIKE 'Debezium%' THEN r.pid || ' ' || r.backend_start ELSE '' END,
       CASE WHEN r.state IN ('catchup', 'streaming') THEN r.pid || ' ' || r.backend_start || coalesce(' ' || r.reply_time, '') END,
       -- A mark: the snapshot is of the statement's beginning, and the position is read later.
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
       -- The end of a snapshot is after the newest that has ended; older ones that go on may have begun after that.
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint + age(pg_snapshot_xmax(pg_current_snapshot())::xid),
       (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
       -- As outbox_log_history() says it, which a database of an older version does not have.
       (SELECT system_identifier FROM pg_control_system()) || ' ' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
       clock_timestamp(),
       -- Changes with each change of the publication.
       (SELECT coalesce(md5(string_agg(x, ' ' ORDER BY x)), '') FROM (
            SELECT p.oid || ' ' || p.xmin FROM pg_publication p WHERE p.pubname = 'outbox_pub'
            UNION ALL SELECT r.oid || ' ' || r.xmin FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = 'outbox_pub'
            UNION ALL SELECT n.oid || ' ' || n.xmin FROM pg_publication p JOIN pg_publication_namespace n ON n.pnpubid = p.oid WHERE p.pubname = 'outbox_pub') changes (x)),
       -- Outside of a snapshot Debezium's sessions have no transaction that lasts.
       (SELECT extract(epoch FROM max(clock_timestamp() - a.xact_start))::float8 FROM pg_stat_activity a
        WHERE a.datname = current_database() AND a.application_name LIKE 'Debezium%' AND a.backend_type = 'client backend'
          AND a.xact_start < clock_timestamp() - interval '1 s'),
       (SELECT setting::bigint / 2 FROM pg_settings WHERE name = 'wal_sender_timeout')
FROM (VALUES ($1::name)) want (slot_name)
LEFT JOIN pg_replication_slots s ON s.slot_name = want.slot_name
LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid`

// heard is what a slot's reader has said last, and since when it was that by our own clock. The time
// in it is of the reader's clock, which may be wrong by any amount.
type heard struct {
	said  string
	since time.Time
}

// silence is how long the reader has said nothing new. nil: there is none.
func (h *heard) silence(now time.Time, said *string) *time.Duration {
	if said == nil {
		*h = heard{}
		return nil
	}
	if *said != h.said {
		*h = heard{*said, now}
	}
	d := now.Sub(h.since)
	return &d
}

func readSlot(ctx context.Context, p Pipeline, h *heard) (*Slot, error) {
	var s Slot
	var said *string
	var snapshot *float64
	var repliesMillis int64
	var read float64
	err := outbox.CheckPublication(ctx, p.DB) // first: what begins after the look is published then
	if s.published = err == nil; err == nil || errors.As(err, new(outbox.SettingError)) {
		err = p.DB.QueryRow(ctx, selectSlot, p.Slot).Scan(&s.WAL, &s.Exists, &s.Active, &s.WALStatus, &s.Reason, &s.Confirmed, &s.Retained, &s.Safe,
			&s.pid, &read, &s.reader, &said, &s.mark.xid, &s.next, &s.mark.wal, &s.history, &s.at, &s.publication, &snapshot, &repliesMillis)
	}
	if err != nil {
		*h = heard{} // nobody was heard while PostgreSQL did not answer
		return nil, err
	}
	if s.Exists {
		s.LagBytes = max(0, s.WAL-s.Confirmed)
	}
	s.replies = time.Duration(repliesMillis) * time.Millisecond
	s.Silence = h.silence(time.Now(), said)
	s.Read = time.Duration(max(0, read) * float64(time.Second))
	if snapshot != nil {
		d := time.Duration(max(0, *snapshot) * float64(time.Second))
		s.Snapshot = &d
	}
	return &s, nil
}

// askKafka fills in the topics, the groups and the heartbeats.
func (s *Supervisor) askKafka(ctx context.Context, f *Facts, beats map[string]connect.Beat) error {
	names := make([]string, len(s.cfg.Topics))
	for i, t := range s.cfg.Topics {
		names[i] = t.Name
	}
	topics, err := s.admin.ListTopics(ctx, names...)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !topics.Has(name) {
			f.MissingTopics = append(f.MissingTopics, name)
		}
	}
	var groups []string
	for _, p := range s.cfg.Pipelines {
		groups = append(groups, p.Group)
	}
	asked := time.Now()
	lags, err := s.admin.Lag(ctx, groups...)
	if err != nil {
		return err
	}
	f.Groups = map[string]Group{}
	for _, l := range lags {
		if l.Error() != nil {
			continue // a group that nobody has joined yet
		}
		g := Group{State: l.State, Members: len(l.Members), Lag: map[string]int64{}, Read: map[string]time.Time{}}
		for topic, partitions := range l.Lag {
			g.Lag[topic] = lagOf(partitions)
			g.Read[topic] = s.readings.of(l.Group, topic, topics[topic].ID.String(), partitions, asked)
		}
		f.Groups[l.Group] = g
	}
	var beating []string
	for _, p := range s.cfg.Pipelines {
		if topics.Has(provision.HeartbeatTopic(p.Name).Name) {
			beating = append(beating, p.Name)
		}
	}
	newest, err := connect.Beats(ctx, s.admin, beating...)
	maps.Copy(beats, newest)
	ids := map[string]string{}
	for _, name := range names {
		ids[name] = topics[name].ID.String()
	}
	f.topics = ids
	return err
}

// readings tell up to when topics are read, although there is always something new on them.
type readings map[string]*reading // by group and topic

// reading is where a topic ended once, and up to when it is read.
type reading struct {
	topic string // its id
	at    time.Time
	ends  map[int32]int64 // by partition; nil: to be taken
	upto  time.Time
}

// of is up to when a group has read a topic, as the look before this one has found: the inboxes were asked after that. What ends after
// asked was on the topic then, or came later.
func (all readings) of(group, topic, id string, partitions map[int32]kadm.GroupMemberLag, asked time.Time) (upto time.Time) {
	key := group + " " + topic
	r := all[key]
	if r == nil || r.topic != id {
		r = &reading{topic: id}
		all[key] = r
	}
	upto = r.upto
	if lagOf(partitions) < 0 {
		return upto
	}
	read := r.ends != nil
	for n, p := range partitions {
		read = read && max(p.Commit.At, p.Start.Offset) >= r.ends[n]
	}
	if read {
		r.upto, r.ends = r.at, nil
	}
	if r.ends == nil {
		r.at, r.ends = asked, map[int32]int64{}
		for n, p := range partitions {
			r.ends[n] = p.End.Offset
		}
	}
	return upto
}

// lagOf is the lag over a topic's partitions; -1 if that of one is not known.
func lagOf(partitions map[int32]kadm.GroupMemberLag) (lag int64) {
	for _, p := range partitions {
		if p.Err != nil || p.Lag < 0 {
			return -1
		}
		lag += p.Lag
	}
	return lag
}

// readAll is a query that returns rows of T.
func readAll[T any](ctx context.Context, p Pipeline, sql string, args ...any) ([]T, error) {
	rows, err := p.DB.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}
