package service

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// keepKeys is how long an Idempotency-Key is remembered, at least.
const keepKeys = 24 * time.Hour

// ErrKeyReused is the problem of an Idempotency-Key that came with another request before.
var ErrKeyReused = Unprocessable("idempotency-key-reused", "this Idempotency-Key was used for a different request: take a new key for a new request")

// errNoClaim cannot happen while keys outlive the transactions that claim them.
var errNoClaim = errors.New("the Idempotency-Key was deleted while it was claimed: send the request again")

// IdempotencyKey is the header of that name, with what it stands for.
type IdempotencyKey struct {
	Scope string   // the operation: the same key in two scopes is two keys
	Key   string   // 1 to 255 printable ASCII characters
	Hash  [32]byte // of the request
}

// ReadIdempotencyKey reads the header Idempotency-Key; without one it returns nil. body is
// all that makes the request what it is, also what comes from its path.
func ReadIdempotencyKey(r *http.Request, scope string, body any) (*IdempotencyKey, error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return nil, nil
	}
	key := values[0]
	if len(values) > 1 || len(key) < 1 || len(key) > 255 {
		return nil, BadRequest("bad-idempotency-key", "the header Idempotency-Key must be there once, with 1 to 255 characters")
	}
	for _, c := range []byte(key) {
		if c < ' ' || c > '~' {
			return nil, BadRequest("bad-idempotency-key", "the header Idempotency-Key must have printable ASCII characters only")
		}
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("hash a request: %w", err)
	}
	return &IdempotencyKey{Scope: scope, Key: key, Hash: sha256.Sum256(text)}, nil
}

// Claim is one request's claim to its key, and what came of it.
type Claim struct {
	// Key and Response are given. Response is what the request results in if it is
	// fresh, for example the id of the new order. Key may be nil: no header, always fresh.
	Key      *IdempotencyKey
	Response string
	// One of the following is set once the statements of QueueClaim have run. Fresh: do
	// the work. Stored: it was done before, with this response. Err: [ErrKeyReused].
	Fresh  bool
	Stored string
	Err    error
}

const (
	// Sorted by key, so that two instances wait for each other in one direction only.
	insertKeys = `
INSERT INTO idempotency_keys (scope, key, hash, response)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[])
ON CONFLICT DO NOTHING RETURNING scope, key`

	// A statement of its own, because it must see what another transaction committed
	// while the INSERT waited for it. It locks, so that a repetition that has nothing else to write waits
	// at its commit for a synchronous standby too: the first one may have been cancelled while it waited.
	selectKeys = `
SELECT scope, key, hash, response FROM idempotency_keys
WHERE (scope, key) IN (SELECT * FROM unnest($1::text[], $2::text[])) FOR KEY SHARE`

	// Older by PostgreSQL's clock and by ours: one that is ahead for a while must not make requests new that come again.
	deleteKeys = `
DELETE FROM idempotency_keys WHERE (scope, key) IN
       (SELECT scope, key FROM idempotency_keys WHERE created_at < least(now(), $3) - make_interval(secs => $1)
        ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)`
)

// claimed names a key in a map.
type claimed struct{ scope, key string }

// QueueClaim queues the statements that claim the keys of claims in the caller's
// transaction, and fills in what came of each. A key that another transaction is
// claiming waits for its end. Of several requests with one key, in claims or anywhere, exactly
// one is fresh, and its claim stands if and only if its transaction commits.
func QueueClaim(b *pgx.Batch, claims []Claim) {
	first := map[claimed]int{} // the claim that stands for its key
	var order []int
	for i := range claims {
		c := &claims[i]
		if c.Key == nil {
			c.Fresh = true
			continue
		}
		id := claimed{c.Key.Scope, c.Key.Key}
		if _, seen := first[id]; !seen {
			first[id] = i
			order = append(order, i)
		}
	}
	if len(order) == 0 {
		return
	}
	slices.SortFunc(order, func(x, y int) int {
		return cmp.Or(cmp.Compare(claims[x].Key.Scope, claims[y].Key.Scope), cmp.Compare(claims[x].Key.Key, claims[y].Key.Key))
	})
	var scopes, keys, responses []string
	var hashes [][]byte
	for _, i := range order {
		c := claims[i]
		scopes, keys = append(scopes, c.Key.Scope), append(keys, c.Key.Key)
		hashes, responses = append(hashes, c.Key.Hash[:]), append(responses, c.Response)
	}
	b.Queue(insertKeys, scopes, keys, hashes, responses).Query(func(rows pgx.Rows) error {
		var id claimed
		_, err := pgx.ForEachRow(rows, []any{&id.scope, &id.key}, func() error {
			claims[first[id]].Fresh = true
			return nil
		})
		return err
	})
	b.Queue(selectKeys, scopes, keys).Query(func(rows pgx.Rows) error {
		return settleClaims(rows, claims)
	})
}

func settleClaims(rows pgx.Rows, claims []Claim) error {
	type answer struct {
		hash     []byte
		response string
	}
	stored := map[claimed]answer{}
	var id claimed
	var a answer
	_, err := pgx.ForEachRow(rows, []any{&id.scope, &id.key, &a.hash, &a.response}, func() error {
		stored[id] = answer{slices.Clone(a.hash), a.response}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range claims {
		c := &claims[i]
		if c.Key == nil || c.Fresh {
			continue
		}
		a, ok := stored[claimed{c.Key.Scope, c.Key.Key}]
		switch {
		case !ok:
			return errNoClaim
		case string(a.hash) != string(c.Key.Hash[:]):
			c.Err = ErrKeyReused
		default:
			c.Stored = a.response
		}
	}
	return nil
}

// deleteExpiredKeys deletes keys older than [keepKeys], in batches that lock few
// rows for a short time, and returns how many. now is the time of this machine.
func deleteExpiredKeys(ctx context.Context, pool *pgxpool.Pool, now time.Time) (int64, error) {
	const batch = 1000
	var total int64
	for {
		tag, err := pool.Exec(ctx, deleteKeys, keepKeys.Seconds(), batch, now)
		if err != nil {
			return total, fmt.Errorf("delete expired idempotency keys: %w", err)
		}
		total += tag.RowsAffected()
		if tag.RowsAffected() < batch {
			return total, nil
		}
	}
}
