package outbox_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
)

// reader reads a replication slot as a connector does, and confirms when it is told to.
type reader struct {
	t    *testing.T
	p    *pgxpool.Pool
	slot string
	conn *pgconn.PgConn
}

// newSlot makes a slot that ends with the test.
func newSlot(t *testing.T, p *pgxpool.Pool, slot string) {
	t.Helper()
	exec(t, p, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	t.Cleanup(func() { dropSlot(t, p, slot) })
}

func dropSlot(t *testing.T, p *pgxpool.Pool, slot string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := p.Exec(context.Background(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // its reader is ending
	}
}

func exec(t *testing.T, p *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := p.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// read begins to read a slot.
func read(t *testing.T, p *pgxpool.Pool, slot string) *reader {
	t.Helper()
	return readOn(t, p, replication(t, p), slot)
}

// replication is a connection as readers have it.
func replication(t *testing.T, p *pgxpool.Pool) *pgconn.PgConn {
	t.Helper()
	cfg := p.Config().ConnConfig.Config.Copy()
	cfg.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func readOn(t *testing.T, p *pgxpool.Pool, conn *pgconn.PgConn, slot string) *reader {
	t.Helper()
	r := &reader{t, p, slot, conn}
	t.Cleanup(r.stop)
	conn.Frontend().Send(&pgproto3.Query{String: fmt.Sprintf(`START_REPLICATION SLOT %s LOGICAL 0/0 (proto_version '1', publication_names 'outbox_pub')`, slot)})
	if err := conn.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := conn.ReceiveMessage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e, bad := msg.(*pgproto3.ErrorResponse); bad {
			t.Fatal(e.Message)
		}
		if _, ok := msg.(*pgproto3.CopyBothResponse); ok {
			return r
		}
	}
}

// stop returns when PostgreSQL has noticed it.
func (r *reader) stop() {
	_ = r.conn.Close(context.Background())
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var active bool
		err := r.p.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, r.slot).Scan(&active)
		if err != nil || !active {
			return
		}
	}
}

// confirm tells PostgreSQL that all that is written so far has arrived.
func (r *reader) confirm() {
	r.t.Helper()
	var end uint64
	if err := r.p.QueryRow(r.t.Context(), `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&end); err != nil {
		r.t.Fatal(err)
	}
	status := append([]byte{'r'}, make([]byte, 33)...)
	for _, at := range []int{1, 9, 17} { // written, flushed, applied
		binary.BigEndian.PutUint64(status[at:], end)
	}
	r.conn.Frontend().Send(&pgproto3.CopyData{Data: status})
	if err := r.conn.Frontend().Flush(); err != nil {
		r.t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		var there bool
		err := r.p.QueryRow(r.t.Context(), `SELECT confirmed_flush_lsn - '0/0' >= $2::bigint FROM pg_replication_slots WHERE slot_name = $1`, r.slot, int64(end)).Scan(&there)
		if err != nil {
			r.t.Fatal(err)
		}
		if there {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("slot %s does not confirm %d", r.slot, end)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
