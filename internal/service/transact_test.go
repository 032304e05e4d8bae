package service_test

import (
	"fmt"
	"strings"
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
}
