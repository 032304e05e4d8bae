package systemtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"outboxsaga/internal/devstack"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
)

// A standby that is set up as docs/operations.md says takes over when the primary is killed: with its slots, so that
// nothing is lost and nothing retained is sent again.
func failover(w *world) {
	t := w.t
	if os.Getenv("TEST_STACK") == "docker" {
		t.Skip("it copies the data folder of a PostgreSQL that runs as a process")
	}
	old := w.place(w.customer(100), w.item(1), 1, 100).ID
	w.settled(old, 30*time.Second)
	sent := func() (n int) {
		for _, topic := range []string{"payment", "stock", "payment.success", "stock.success"} {
			for _, r := range w.Records(topic) {
				if string(r.Key) == old {
					n++
				}
			}
		}
		return n
	}
	before := sent()
	if before != 4 {
		t.Fatalf("%d events of a settled order are in Kafka, want 4", before)
	}

	standby := w.standby()
	l := w.load(50, 1)
	l.more(t, 50)
	begin := time.Now()
	for end := begin.Add(2 * time.Minute); ; time.Sleep(500 * time.Millisecond) {
		w.exec("postgres", `SELECT pg_log_standby_snapshot()`) // it comes each 15 s by itself, and slots go on by it
		var copied int
		err := standby.pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE synced AND NOT temporary AND invalidation_reason IS NULL) FROM pg_replication_slots`).Scan(&copied)
		if err == nil && copied == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the standby has %d of 3 slots after 2 minutes, %v", copied, err)
		}
	}
	t.Logf("the standby has the slots after %.1f s", time.Since(begin).Seconds())
	l.more(t, 50)

	begin = time.Now()
	w.Kill(devstack.Postgres)
	if _, err := standby.pool.Exec(t.Context(), `SELECT pg_promote()`); err != nil {
		t.Fatal(err)
	}
	w.moves(w.Port(devstack.Postgres), standby.port)
	w.flows("the primary", begin)
	l.more(t, 50)
	w.finish(l)
	if after := sent(); after != before {
		t.Errorf("%d events of an order that had settled before are in Kafka, before the failover %d: the outbox was sent again", after, before)
	}
}

// standby is a PostgreSQL that follows another.
type standby struct {
	port int
	pool *pgxpool.Pool
}

// standby makes one by a base backup, and has the primary wait for it, as docs/operations.md says.
func (w *world) standby() standby {
	t := w.t
	t.Helper()
	pid, running := w.PID(devstack.Postgres)
	if !running {
		t.Fatal("PostgreSQL does not run")
	}
	binary, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Skip("no way to tell which program PostgreSQL is: ", err)
	}
	data := w.query("postgres", `SELECT setting FROM pg_settings WHERE name = 'data_directory'`)[0]
	w.exec("postgres", `SELECT pg_create_physical_replication_slot('standby1', immediately_reserve => true)`)
	dir := w.backup(data, "standby.signal")

	ports, err := devstack.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	s := standby{port: ports[0]}
	log, err := os.Create(filepath.Join(t.TempDir(), "standby.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	settings := []string{
		fmt.Sprint("port=", s.port), "unix_socket_directories=", "primary_slot_name=standby1",
		fmt.Sprintf("primary_conninfo=host=127.0.0.1 port=%d dbname=postgres user=postgres application_name=standby1", w.Port(devstack.Postgres)),
		"hot_standby_feedback=on", "sync_replication_slots=on",
	}
	args := []string{"-D", dir}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: owner(t, data)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT) // at once
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("the end of the standby's log:\n%s", text[max(0, len(text)-3000):])
		}
	})
	if s.pool, err = pgxpool.New(context.Background(), fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", s.port)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.pool.Close)
	w.await("standby that follows", func() bool {
		return len(w.query("postgres", `SELECT 'x' FROM pg_stat_replication WHERE application_name = 'standby1' AND state = 'streaming'`)) > 0
	})
	for _, sql := range []string{
		`ALTER SYSTEM SET synchronous_standby_names = 'standby1'`,
		`ALTER SYSTEM SET synchronized_standby_slots = 'standby1'`,
		`SELECT pg_reload_conf()`,
	} {
		w.exec("postgres", sql)
	}
	return s
}

// backup copies the data folder while PostgreSQL runs, to start as a signal file says.
func (w *world) backup(data, signal string) (dir string) {
	t := w.t
	t.Helper()
	conn, err := pgx.Connect(context.Background(), w.PostgresURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background()) // the backup is its session's
	if _, err := conn.Exec(context.Background(), `SELECT pg_backup_start('a copy', fast => true)`); err != nil {
		t.Fatal(err)
	}
	dir = data + "-copy"
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, command := range [][]string{
		{"cp", "-a", data, dir},
		// What is the primary's own.
		{"find", dir + "/postmaster.pid", dir + "/pg_wal", dir + "/pg_replslot", "-mindepth", "0", "-type", "f", "-delete"},
		{"find", dir + "/pg_replslot", "-mindepth", "1", "-type", "d", "-delete"},
	} {
		if text, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil && !(command[0] == "cp" && vanished(text)) {
			t.Fatalf("%v: %v: %s", command, err, text)
		}
	}
	var label string
	if err := conn.QueryRow(context.Background(), `SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)`).Scan(&label); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"backup_label": label, signal: ""} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if to := owner(t, data); to != nil {
			if err := os.Chown(file, int(to.Uid), int(to.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// vanished tells whether all that cp complains of is files that went while it copied, as a running PostgreSQL's may: recovery does without.
func vanished(complaints []byte) bool {
	for line := range bytes.Lines(complaints) {
		if !bytes.HasSuffix(bytes.TrimSpace(line), []byte("No such file or directory")) {
			return false
		}
	}
	return len(complaints) > 0
}

// owner is whom a folder belongs to, where this program may become that user; else nil.
func owner(t testing.TB, dir string) *syscall.Credential {
	t.Helper()
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}
	}
	return nil
}

// moves has what comes to a port from now on answered by another: an address that moves.
func (w *world) moves(from, to int) {
	w.t.Helper()
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "the primary", fmt.Sprint("127.0.0.1:", from), fmt.Sprint("127.0.0.1:", to))
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = p.Start(); err == nil {
			w.t.Cleanup(p.Stop)
			return
		}
	}
	w.t.Fatal(err)
}
