package systemtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"outboxsaga/internal/connect"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/system"
)

// PostgreSQL is restored from a base backup and its log, as docs/operations.md says, to a moment that Kafka and Connect are ahead
// of: nothing of what it then has is lost, and what comes after flows. One connector is left to the supervisor, which knows no restore.
func restore(o *operator) {
	w, t := o.world, o.t
	if os.Getenv("TEST_STACK") == "docker" {
		t.Skip("it copies the data folder of a PostgreSQL that runs as a process")
	}
	data := w.query("postgres", `SELECT setting FROM pg_settings WHERE name = 'data_directory'`)[0]
	customer, sku := w.customer(100_000), w.item(1000)
	place := func(n int) (ids []string) {
		for range n {
			ids = append(ids, w.place(customer, sku, 1, 1).ID)
		}
		return ids
	}
	settled := func(ids []string) {
		t.Helper()
		for _, id := range ids {
			if o := w.settled(id, 30*time.Second); o.Status != "SUCCESS" {
				t.Errorf("order %s: %s", id, o)
			}
		}
	}
	settled(place(10))
	copied := w.backup(data, "recovery.signal")
	before := place(20) // some of them are on their way at the moment that is gone back to
	moment, err := strconv.ParseInt(w.query("postgres", `SELECT (pg_create_restore_point('the_moment') - '0/0')::text`)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	settled(before)
	// What follows is gone then. The log of it is longer than what is written after the restore.
	w.exec("orderdb", `SELECT pg_logical_emit_message(true, 'outbox-hb', repeat('x', 1000000)) FROM generate_series(1, 20)`)
	after := place(100)
	settled(after)
	w.drained(30 * time.Second)
	services := []string{"order-service", "stock-service", "payment-service"}
	for _, name := range services[1:] {
		w.Kill(name)
	}
	unread := place(20) // of which Kafka has commands that nobody has read
	w.await("unread commands in Kafka", func() bool {
		for _, topic := range []string{"stock", "payment"} {
			there := map[string]bool{}
			for _, r := range w.Records(topic) {
				there[string(r.Key)] = true
			}
			if slices.ContainsFunc(unread, func(id string) bool { return !there[id] }) {
				return false
			}
		}
		return true
	})
	connectors := []string{"orderdb", "stockdb", "paymentdb"}
	worker := connect.Client{URL: w.ConnectURL()}
	for _, connector := range connectors {
		w.await("offset of "+connector+" after the moment", func() bool {
			upto, err := worker.Offset(t.Context(), connector)
			return err == nil && upto > moment
		})
	}

	w.Kill(devstack.Connect)
	w.Kill(devstack.Postgres)
	w.Kill("order-service")
	lost := data + "-lost"
	t.Cleanup(func() { os.RemoveAll(lost) })
	if err := os.Rename(data, lost); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(copied, data); err != nil {
		t.Fatal(err)
	}
	settings, err := os.OpenFile(filepath.Join(data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(settings, "restore_command = 'cp \"%s/pg_wal/%%f\" \"%%p\"'\nrecovery_target_name = 'the_moment'\nrecovery_target_action = 'promote'\n", lost)
	if err := settings.Close(); err != nil {
		t.Fatal(err)
	}
	w.Restart(devstack.Postgres)
	for _, database := range []string{"postgres", "orderdb", "stockdb", "paymentdb"} {
		w.DB(database).Reset() // its connections died with the server
	}
	w.await("PostgreSQL that is restored", func() bool {
		return w.query("postgres", `SELECT pg_is_in_recovery()::text`)[0] == "false"
	})
	known := set(w.query("orderdb", `SELECT id::text FROM orders`))
	for _, id := range before {
		if !known[id] {
			t.Errorf("order %s is not there after the restore", id)
		}
	}
	if known[after[0]] {
		t.Fatal("PostgreSQL was restored to too late a moment")
	}

	o.env = append(o.env, "ADMIN_DATABASE_URL="+w.PostgresURL("postgres"), "CONNECT_URL="+w.ConnectURL())
	o.ok([]string{"provision"})
	w.Restart(devstack.Connect)
	for _, service := range services {
		o.ok([]string{"rewind", "--service", service, "--to", "end"}, "records skipped")
	}
	for _, connector := range connectors[1:] {
		o.ok([]string{"resend", "--connector", connector}, "sends its outbox again")
	}
	for _, name := range services {
		w.Restart(name)
	}
	ports, err := devstack.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context(), system.Supervisor(w.Stack, o.program, ports[0])); err != nil {
		t.Fatal(err)
	}
	settled(before)
	settled(place(20))
	w.drained(30 * time.Second)
	w.audit()
	acts := w.query("orderdb", `SELECT concat_ws(' ', act, connector, outcome, reason) FROM supervisor_acts ORDER BY id`)
	if len(acts) != 1 || !strings.HasPrefix(acts[0], "resend orderdb done Kafka Connect has read up to ") {
		t.Errorf("the supervisor has done %q, want one resend of orderdb", acts)
	}
}
