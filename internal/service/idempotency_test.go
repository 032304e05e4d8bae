package service_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"outboxsaga/internal/service"
	"outboxsaga/internal/service/servicetest"
	"outboxsaga/internal/stacktest"
	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { stacktest.Main(m) }

func key(name string, hash byte) *service.IdempotencyKey {
	return &service.IdempotencyKey{Scope: "test", Key: name, Hash: [32]byte{hash}}
}

// claim claims in a transaction that also does what save does.
func claim(t *testing.T, pool *service.Pool, claims []service.Claim, save func(*pgx.Batch) error) error {
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

// Who waits for a key that an instance has claimed, and froze, gets it in time for its own commit.
func TestAFrozenInstanceIsWaitedFor(t *testing.T) {
	pool := servicetest.Pool(t, system.SharedMigrations())
	frozen, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = frozen.Rollback(context.WithoutCancel(t.Context())) }() // it fails: PostgreSQL has ended it
	if _, err := frozen.Exec(t.Context(), `INSERT INTO idempotency_keys (scope, key, hash, response) VALUES ('test', 'a', sha256(''), '')`); err != nil {
		t.Fatal(err)
	}
	claims := make(chan service.Claim, 1)
	gather := service.NewGather(1, 1, func(ctx context.Context, keys []*service.IdempotencyKey) ([]service.Result[bool], error) {
		claimed := []service.Claim{{Key: keys[0], Response: "r"}}
		err := service.Transact(ctx, pool, func(b *pgx.Batch) { service.QueueClaim(b, claimed) }, func(*pgx.Batch) error { return nil })
		claims <- claimed[0]
		return []service.Result[bool]{{Value: true}}, err
	})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = gather.Run(ctx) })
	defer running.Wait()
	defer stop()
	if _, err := gather.Do(t.Context(), key("a", 1)); err != nil {
		t.Fatal(err)
	}
	if got := outcome(<-claims); got != "fresh" {
		t.Error(got)
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
	// Neither PostgreSQL's clock, as if it were two hours ahead of ours, nor ours, three days ahead, makes keys old alone.
	for _, c := range []struct {
		ahead time.Duration
		want  int64
	}{{-2 * time.Hour, 0}, {72 * time.Hour, 2500}} {
		if n, err := service.DeleteExpiredKeys(t.Context(), pool.Pool, time.Now().Add(c.ahead)); n != c.want || err != nil {
			t.Error(c, n, err)
		}
	}
	if left := servicetest.Text(t, pool, `SELECT count(*)::text FROM idempotency_keys`); left != "100" {
		t.Error(left)
	}
}
