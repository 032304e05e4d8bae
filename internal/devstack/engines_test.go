package devstack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// As PostgreSQL 18 writes it when it is started while sessions of a killed server still end.
const killed = "2026-11-23 23:42:14.787 UTC [1763] FATAL:  pre-existing shared memory block (key 10012019, ID 1835011) is still in use\n"

func TestStillEnding(t *testing.T) {
	log := filepath.Join(t.TempDir(), "postgres.log")
	if stillEnding(LogSince(log, 0)) {
		t.Error("no log")
	}
	sessions := strings.Repeat("2026-11-23 23:42:14.788 UTC [1537] order-service@orderdb FATAL:  terminating connection due to unexpected postmaster exit\n", 50)
	if err := os.WriteFile(log, []byte(sessions+killed+sessions), 0o600); err != nil {
		t.Fatal(err)
	}
	if !stillEnding(LogSince(log, int64(len(sessions)))) {
		t.Error("not found before what the sessions write")
	}
	if stillEnding(LogSince(log, int64(len(sessions)+len(killed)))) {
		t.Error("found what an earlier start has written")
	}
}
