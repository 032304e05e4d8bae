package service_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
)

// A request that meets a pool whose connections are all busy is told to come again; it does not wait until they are free.
func TestNobodyWaitsLongForAConnection(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations())
	all := pool.Config().MaxConns
	busy := fmt.Sprintf("%d of %d are in use", all, all)
	for range all {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
	for name, do := range map[string]func() error{
		"read": func() error {
			_, err := service.Collect(t.Context(), pool, pgx.RowTo[int], "SELECT 1")
			return err
		},
		"write": func() error {
			return service.Transact(t.Context(), pool, nil, func(*pgx.Batch) error { return nil })
		},
	} {
		begin := time.Now()
		err := do()
		if err == nil || !service.Unavailable(err) || !strings.Contains(err.Error(), busy) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begin); took > 8*time.Second {
			t.Errorf("%s waited for %s", name, took)
		}
	}
	if waited := pool.Waits(); waited < 3*time.Second { // what the metric says
		t.Errorf("they have waited for %s in all", waited)
	}
}

// Clients that read, however many and slow, leave connections to the consumer, the writers and /readyz.
func TestReadsLeaveConnectionsToOthers(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations())
	const reserved = 4
	var reading sync.WaitGroup
	defer reading.Wait()
	end, stop := context.WithCancel(t.Context())
	defer stop()
	for range 3 * pool.Config().MaxConns {
		reading.Go(func() {
			for end.Err() == nil {
				_, _ = service.Collect(end, pool, pgx.RowTo[string], "SELECT pg_sleep(10)::text")
			}
		})
	}
	begin := time.Now()
	for pool.Stat().AcquiredConns() < pool.Config().MaxConns-reserved {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%d reads are under way", pool.Stat().AcquiredConns())
		}
		time.Sleep(10 * time.Millisecond)
	}
	soon, cancel := context.WithTimeout(t.Context(), 5*time.Second) // a read takes 10 s
	defer cancel()
	for range reserved {
		conn, err := pool.Acquire(soon)
		if err != nil {
			t.Fatalf("reads hold %d of %d connections: %v", pool.Stat().AcquiredConns(), pool.Config().MaxConns, err)
		}
		defer conn.Release()
	}
	_, err := service.Collect(t.Context(), pool, pgx.RowTo[int], "SELECT 1")
	if err == nil || !service.Unavailable(err) || !strings.Contains(err.Error(), fmt.Sprintf("up to %d of them for reads", pool.Config().MaxConns-reserved)) {
		t.Errorf("a read more: %v", err)
	}
}
