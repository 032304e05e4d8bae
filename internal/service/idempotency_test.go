package service_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func key(name string, hash byte) *service.IdempotencyKey {
	return &service.IdempotencyKey{Scope: "test", Key: name, Hash: [32]byte{hash}}
}

// claim claims in a transaction that also does what save does.
func claim(t *testing.T, pool *pgxpool.Pool, claims []service.Claim, save func(*pgx.Batch) error) error {
	if save == nil {
		save = func(*pgx.Batch) error { return nil }
	}
	return service.Transact(t.Context(), pool, func(b *pgx.Batch) { service.QueueClaim(b, claims) }, save)
}

func TestClaims(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations())
	other := key("a", 1)
	other.Scope = "other"
	first := []service.Claim{
		{Key: key("b", 1), Response: "r1"},
		{Response: "r2"},
		{Key: key("a", 1), Response: "r3"},
		{Key: key("a", 1), Response: "r4"}, // the same request twice in one batch
		{Key: key("a", 2), Response: "r5"}, // the same key for another request
		{Key: other, Response: "r6"},
	}
	if err := claim(t, pool, first, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"fresh", "fresh", "fresh", "stored r3", "reused", "fresh"}
	for i, c := range first {
		if got := outcome(c); got != want[i] {
			t.Errorf("claim %d: %s, want %s", i, got, want[i])
		}
	}
	second := []service.Claim{{Key: key("a", 1), Response: "r7"}, {Key: key("b", 9), Response: "r8"}, {Key: key("c", 1), Response: "r9"}}
	if err := claim(t, pool, second, nil); err != nil {
		t.Fatal(err)
	}
	want = []string{"stored r3", "reused", "fresh"}
	for i, c := range second {
		if got := outcome(c); got != want[i] {
			t.Errorf("claim %d: %s, want %s", i, got, want[i])
		}
	}
}

func outcome(c service.Claim) string {
	switch {
	case errors.Is(c.Err, service.ErrKeyReused):
		return "reused"
	case c.Fresh:
		return "fresh"
	}
	return "stored " + c.Stored
}

func TestAClaimStandsOnlyIfItsTransactionCommits(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations())
	broken := errors.New("broken")
	if err := claim(t, pool, []service.Claim{{Key: key("a", 1), Response: "r1"}}, func(*pgx.Batch) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	again := []service.Claim{{Key: key("a", 2), Response: "r2"}}
	if err := claim(t, pool, again, nil); err != nil || !again[0].Fresh {
		t.Error(again[0], err)
	}
}

// Many transactions claim overlapping sets of keys in different orders: no deadlock, and
// each key is fresh once.
func TestConcurrentClaims(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations())
	const keys, writers = 40, 6
	var fresh, stored atomic.Int64
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			var claims []service.Claim
			for i := range keys {
				n := i
				if w%2 == 1 {
					n = keys - 1 - i
				}
				claims = append(claims, service.Claim{Key: key(fmt.Sprint(n), byte(n)), Response: fmt.Sprint(n)})
			}
			if err := claim(t, pool, claims, nil); err != nil {
				t.Error(err)
			}
			for _, c := range claims {
				switch {
				case c.Fresh:
					fresh.Add(1)
				case c.Stored == c.Response:
					stored.Add(1)
				}
			}
		})
	}
	all.Wait()
	if fresh.Load() != keys || stored.Load() != keys*(writers-1) {
		t.Errorf("%d fresh, %d stored", fresh.Load(), stored.Load())
	}
}

func TestKeysExpireAfterADay(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations())
	_, err := pool.Exec(t.Context(), `
		INSERT INTO idempotency_keys (scope, key, hash, response, created_at)
		SELECT 'test', n::text, decode(repeat('00', 32), 'hex'), '', now() - make_interval(hours => CASE WHEN n <= 2500 THEN 25 ELSE 23 END)
		FROM generate_series(1, 2600) n`)
	if err != nil {
		t.Fatal(err)
	}
	n, err := service.DeleteExpiredKeys(t.Context(), pool)
	if err != nil || n != 2500 {
		t.Error(n, err)
	}
	if left := servicetest.Text(t, pool, `SELECT count(*)::text FROM idempotency_keys`); left != "100" {
		t.Error(left)
	}
}
