package service_test

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"outboxsaga/inbox"
	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/internal/system"
	"outboxsaga/outbox"

	"github.com/jackc/pgx/v5/pgxpool"
)

const day = 24 * time.Hour

// Partitions reach a week ahead. A service that can make no more, for example because it lost the right, says so
// while there is a day left; the clock of the test moves, not the test's patience.
func TestReadinessIsLostBeforeTheLastPartitionIsUsedUp(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations()).Pool
	end, err := outbox.PreparedUntil(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	for left, ready := range map[time.Duration]bool{
		7 * day: true, 2 * day: true, day + time.Second: true,
		day: false, day - time.Second: false, time.Second: false, -day: false,
	} {
		err := service.PartitionsReady(t.Context(), pool, end.Add(-left))
		if ready != (err == nil) || err != nil && !strings.Contains(err.Error(), "could not prepare more") {
			t.Errorf("%v before the end of the last partition: %v, want ready %t", left, err, ready)
		}
	}
	// With only one of the tables prepared it is red too.
	if _, err := outbox.PreparePartitions(t.Context(), pool, 20); err != nil {
		t.Fatal(err)
	}
	if err := service.PartitionsReady(t.Context(), pool, end); err == nil || !strings.Contains(err.Error(), "of inbox end at") {
		t.Error(err)
	}
	if _, err := inbox.PreparePartitions(t.Context(), pool, 11, 20); err != nil {
		t.Fatal(err)
	}
	if err := service.PartitionsReady(t.Context(), pool, end); err != nil {
		t.Error(err)
	}
}

func retire(t *testing.T, pool *pgxpool.Pool, log *lockedBuffer) (metrics string) {
	t.Helper()
	handler, err := service.Retire(t.Context(), pool, slog.New(slog.NewTextHandler(log, nil)), 3*day, 11*day)
	if err != nil {
		t.Fatal(err)
	}
	got := httptest.NewRecorder()
	handler.ServeHTTP(got, httptest.NewRequest("GET", "/metrics", nil))
	return got.Body.String()
}

func TestOldPartitionsAreDroppedLoggedAndCounted(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations()).Pool
	if _, err := pool.Exec(t.Context(), `SELECT event_partitions_prepare('outbox', 5, 7), event_partitions_prepare('inbox', 14, 7)`); err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	metrics := retire(t, pool, log)
	gone := time.Now().UTC().Add(-14 * day).Format("inbox_20060102")
	for text, wants := range map[string][]string{
		metrics: {
			`partitions_dropped_total{table="inbox"} 3`, `partitions_kept{reason="no_slot",table="outbox"} 1`, `partitions_kept{reason="locked",table="outbox"} 0`,
			`partitions_kept{reason="locked",table="inbox"} 0`, `partitions_oldest_age_seconds{table="outbox"}`, `partitions_prepared_seconds{table="inbox"}`,
		},
		log.String(): {
			`msg="partition dropped" table=inbox partition=` + gone,
			`level=WARN msg="partition kept past its retention" table=outbox`, "reason=no_slot", "make the slot and start the connector",
		},
	} {
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("no %s in\n%.3000s", want, text)
			}
		}
	}
	if since, _, err := inbox.Window(t.Context(), pool); err != nil || time.Since(since) < 11*day || time.Since(since) > 12*day {
		t.Errorf("the inbox begins at %v (%v)", since, err)
	}
}
