package outbox_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"outboxsaga/internal/stacktest"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5"
)

// snapshot is the statement by which a connector reads the outbox for a new slot.
func snapshot(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(stacktest.Root(), "connectors", "orderdb.json"))
	if err != nil {
		t.Fatal(err)
	}
	var connector struct {
		Select string `json:"snapshot.select.statement.overrides.public.outbox"`
	}
	if err := json.Unmarshal(text, &connector); err != nil {
		t.Fatal(err)
	}
	return connector.Select
}

// The ids are of the services' clocks, and made before a transaction waits for its turn.
func TestASnapshotKeepsTheOrderOfWriting(t *testing.T) {
	p := pool(t)
	events := some(3)
	var want []string
	for _, i := range []int{2, 0, 1} {
		if err := pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error { return outbox.Write(t.Context(), tx, events[i]) }); err != nil {
			t.Fatal(err)
		}
		want = append(want, events[i].ID.String())
	}
	if got := rows(t, p, `SELECT id::text FROM (`+snapshot(t)+`) sent`); !slices.Equal(got, want) {
		t.Errorf("it sends %v, want %v", got, want)
	}
}

// What a connector of ours sends when it reads the outbox itself: the rows that are not known to be in Kafka.
func TestASnapshotLeavesOutWhatIsConfirmed(t *testing.T) {
	p := pool(t)
	sql := snapshot(t)
	write := func(tx pgx.Tx) string {
		t.Helper()
		ev := some(1)
		if err := outbox.Write(t.Context(), tx, ev...); err != nil {
			t.Fatal(err)
		}
		return ev[0].ID.String()
	}
	committed := func() (id string) {
		t.Helper()
		if err := pgx.BeginFunc(t.Context(), p, func(tx pgx.Tx) error { id = write(tx); return nil }); err != nil {
			t.Fatal(err)
		}
		return id
	}
	sends := func(when string, want ...string) {
		t.Helper()
		if got := rows(t, p, `SELECT id::text FROM (`+sql+`) sent`); !slices.Equal(got, want) {
			t.Errorf("%s: it sends %v, want %v", when, got, want)
		}
	}

	topic := some(1)[0].Topic
	oldest := committed() // before it was looked
	since := rows(t, p, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text`)[0]
	old := committed()
	// Of a transaction that is open at the mark, and of one within it.
	open, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(t.Context())
	early := write(open)
	within, err := open.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inner := write(within)
	if err := within.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	between := committed() // committed before the mark, but after a transaction that is still open
	xid := func(of string) string { return rows(t, p, `SELECT pg_snapshot_`+of+`(pg_current_snapshot())::text`)[0] }
	mark := xid("xmin")
	late := committed()
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, unconfirmed := []string{oldest, old, early, inner, between, late}, []string{oldest, early, inner, between, late}
	confirm := func(slot, before, moments string) {
		t.Helper()
		exec(t, p, `SELECT outbox_confirm($1, ARRAY['another', $5], ARRAY['id', 'id'], ARRAY['3', $2]::xid8[], coalesce(nullif($3, ''), '0')::xid8, outbox_log_history(), clock_timestamp(), nullif($4, '')::interval)`,
			slot, since, before, moments, topic)
	}
	tell := func(slot, before string) { // nothing is told that is not kept
		t.Helper()
		confirm(slot, before, "")
		confirm(slot, before, "1 min")
	}

	sends("nothing is known", all...)
	confirm("outbox_orderdb", mark, "1 min")
	sends("nothing is kept", all...)
	confirm("outbox_orderdb", mark, "")
	sends("it is kept, and not told", all...)
	tell("outbox_orderdb", mark)
	sends("it is known up to the mark", unconfirmed...)
	exec(t, p, `VACUUM FREEZE outbox`)
	sends("after its rows are frozen", unconfirmed...)
	confirm("outbox_orderdb", mark, "")
	sends("it is told no more", all...)
	tell("outbox_orderdb", mark)
	exec(t, p, `UPDATE outbox_confirmed SET until = clock_timestamp() - interval '1 s'`)
	sends("what was told is old", all...)
	tell("outbox_orderdb", mark)
	exec(t, p, `UPDATE outbox_confirmed SET history = left(history, -1) || 'F'`)
	sends("it is known of another timeline", all...)
	tell("outbox_orderdb", rows(t, p, `SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000)::text`)[0])
	sends("it is known up to a transaction that has not begun", all...)
	tell("outbox_orderdb", since)
	sends("it is known of no transaction", all...)
	tell("outbox_orderdb", mark)
	confirm("outbox_orderdb", "", "1 min")
	sends("it is taken back", all...)
	tell("outbox_orderdb", mark)
	exec(t, p, `SELECT outbox_confirm('outbox_orderdb', '{t}', '{id}', '{3}', $1::xid8, outbox_log_history(), clock_timestamp() - interval '10 s', '1 min')`, mark)
	sends("one says more that looked before another one did", unconfirmed...)
	exec(t, p, `UPDATE outbox_confirmed SET looked = clock_timestamp() + interval '1 h'`)
	sends("the clock was set back since", all...)
	tell("outbox_orderdb", mark)
	sends("and then it was looked again", unconfirmed...)
	exec(t, p, `UPDATE outbox_confirmed SET looked = clock_timestamp() + interval '1 h'`)
	confirm("outbox_orderdb", "", "")
	tell("outbox_orderdb", mark)
	sends("it was taken back in between", unconfirmed...)
	confirm("outbox_orderdb", "", "")
	confirm("outbox_orderdb", mark, "1 min")
	sends("all is to be sent, and one tells what it knew before", all...)
	tell("outbox_orderdb", mark)
	sends("it is known again", unconfirmed...)
	exec(t, p, `DELETE FROM outbox_confirmed`)
	exec(t, p, `SELECT outbox_confirm('outbox_orderdb', '{t}', '{id}', '{3}', $1::xid8, outbox_log_history(), clock_timestamp() - interval '30 s', NULL)`, mark)
	confirm("outbox_orderdb", mark, "1 min")
	sends("it is kept by one that has slept for long", all...)
	tell("outbox_paymentdb", mark)
	sends("it is known of another slot", all...)
	since = "3"
	tell("outbox_orderdb", mark)
	sends("it is known of always", unconfirmed[1:]...)
	topic = "no such"
	tell("outbox_orderdb", mark)
	sends("it is known of another topic", all...)
}
