package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// One statement, one snapshot: it holds at every commit.
	wrongItems = `
SELECT coalesce(i.sku, r.sku), coalesce(i.received, 0), coalesce(i.available, 0), coalesce(i.reserved, 0), coalesce(r.quantity, 0)::bigint
FROM items i
FULL JOIN (SELECT l->>'sku' AS sku, sum((l->>'quantity')::bigint) AS quantity
           FROM reservations, json_array_elements(items) l WHERE status = 'RESERVED' GROUP BY 1) r ON r.sku = i.sku
WHERE i.sku IS NULL OR i.available < 0 OR i.reserved < 0 OR i.received <> i.available + i.reserved OR i.reserved <> coalesce(r.quantity, 0)
ORDER BY 1`

	wrongAccounts = `
SELECT coalesce(a.customer_id, p.customer_id), coalesce(a.deposited, 0), coalesce(a.balance, 0), coalesce(a.charged, 0), coalesce(p.amount, 0)::bigint
FROM accounts a
FULL JOIN (SELECT customer_id, sum(amount) AS amount FROM payments WHERE status = 'CHARGED' GROUP BY 1) p ON p.customer_id = a.customer_id
WHERE a.customer_id IS NULL OR a.balance < 0 OR a.charged < 0 OR a.deposited <> a.balance + a.charged OR a.charged <> coalesce(p.amount, 0)
ORDER BY 1`
)

// auditBalances: what came in is what is there and what is taken, for each item and account, and what is taken
// is what reservations and payments say.
func (r *round) auditBalances(ctx context.Context) error {
	for _, c := range []struct {
		what, count, wrong, detail string
		pool                       *pgxpool.Pool
	}{
		{"items", `SELECT count(*) FROM items`, wrongItems, "items: received %d, available %d, reserved %d, and reservations of %d", r.db.Stock},
		{"accounts", `SELECT count(*) FROM accounts`, wrongAccounts, "accounts: deposited %d, balance %d, charged %d, and payments of %d", r.db.Payment},
	} {
		var n int64
		if err := c.pool.QueryRow(ctx, c.count).Scan(&n); err != nil {
			return fmt.Errorf("read the %s: %w", c.what, err)
		}
		r.report.Checked[c.what] = n
		var name string
		var in, free, taken, said int64
		if err := read(ctx, c.pool, "the "+c.what, []any{&name, &in, &free, &taken, &said}, func() error {
			r.violate(Conserved, name, c.detail, in, free, taken, said)
			return nil
		}, c.wrong); err != nil {
			return err
		}
	}
	return nil
}

// Conservation checks what must hold at every commit: the balances of items and accounts. It may be asked at
// any time, under any load.
func Conservation(ctx context.Context, db Databases) ([]Violation, error) {
	r := &round{Auditor: New(db, Options{}), now: time.Now(), report: Report{Checked: map[string]int64{}}, found: map[string]*Violation{}}
	if err := r.auditBalances(ctx); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	var all []Violation
	for _, v := range r.found {
		all = append(all, *v)
	}
	return all, nil
}
