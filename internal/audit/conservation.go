package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// ledger is where something is conserved. Each statement is one snapshot: what it asks for holds at every commit.
type ledger struct {
	what, detail     string
	pool             *pgxpool.Pool
	count, own, sums string // how many rows there are; which do not add up by themselves; which do not, or not to their effects
}

func (a *Auditor) ledgers() []ledger {
	return []ledger{{
		"items", "items: received %d, available %d, reserved %d, and reservations of %d", a.db.Stock,
		`SELECT count(*) FROM items`, `
SELECT sku, received, available, reserved, reserved FROM items
WHERE available < 0 OR reserved < 0 OR received <> available + reserved ORDER BY 1`, `
SELECT coalesce(i.sku, r.sku), coalesce(i.received, 0), coalesce(i.available, 0), coalesce(i.reserved, 0), coalesce(r.quantity, 0)::bigint
FROM items i
FULL JOIN (SELECT l->>'sku' AS sku, sum((l->>'quantity')::bigint * n) AS quantity
           -- Equal orders are parsed once: that is four times as fast where there are many.
           FROM (SELECT items::text AS items, count(*) AS n FROM reservations WHERE status = 'RESERVED' GROUP BY 1) equal,
                json_array_elements(equal.items::json) l GROUP BY 1) r ON r.sku = i.sku
WHERE i.sku IS NULL OR i.available < 0 OR i.reserved < 0 OR i.received <> i.available + i.reserved OR i.reserved <> coalesce(r.quantity, 0)
ORDER BY 1`,
	}, {
		"accounts", "accounts: deposited %d, balance %d, charged %d, and payments of %d", a.db.Payment,
		`SELECT count(*) FROM accounts`, `
SELECT customer_id, deposited, balance, charged, charged FROM accounts
WHERE balance < 0 OR charged < 0 OR deposited <> balance + charged ORDER BY 1`, `
SELECT coalesce(a.customer_id, p.customer_id), coalesce(a.deposited, 0), coalesce(a.balance, 0), coalesce(a.charged, 0), coalesce(p.amount, 0)::bigint
FROM accounts a
FULL JOIN (SELECT customer_id, sum(amount) AS amount FROM payments WHERE status = 'CHARGED' GROUP BY 1) p ON p.customer_id = a.customer_id
WHERE a.customer_id IS NULL OR a.balance < 0 OR a.charged < 0 OR a.deposited <> a.balance + a.charged OR a.charged <> coalesce(p.amount, 0)
ORDER BY 1`,
	}}
}

// sums is what the last sums over all reservations and payments have shown. They read every order there has ever been,
// so an [Auditor] makes them in a twentieth of its time, and says meanwhile what they were.
type sums struct {
	at    time.Time
	took  time.Duration
	wrong map[string][]balance // by ledger
}

const sumsShare = 20

type balance struct {
	name                  string
	in, free, taken, said int64
}

// auditBalances: what came in is what is there and what is taken, for each item and account, and what is taken
// is what reservations and payments say.
func (r *round) auditBalances(ctx context.Context) error {
	due := r.sums.wrong == nil || time.Since(r.sums.at) >= sumsShare*r.sums.took
	begin, found := time.Now(), map[string][]balance{}
	for _, l := range r.ledgers() {
		var n int64
		if err := read(ctx, l.pool, "the "+l.what, []any{&n}, nothing, l.count); err != nil {
			return err
		}
		r.report.Checked[l.what] = n
		sql := l.own
		if due {
			sql = l.sums
		}
		wrong, err := l.wrong(ctx, sql)
		if err != nil {
			return err
		}
		found[l.what] = wrong
		if !due {
			wrong = merge(wrong, r.sums.wrong[l.what])
		}
		for _, b := range wrong {
			r.violate(Conserved, b.name, l.detail, b.in, b.free, b.taken, b.said)
		}
	}
	if due {
		r.sums = sums{at: time.Now(), took: time.Since(begin), wrong: found}
	}
	return nil
}

// wrong are the rows that a statement of a ledger finds.
func (l ledger) wrong(ctx context.Context, sql string) (found []balance, err error) {
	var b balance
	err = read(ctx, l.pool, "the "+l.what, []any{&b.name, &b.in, &b.free, &b.taken, &b.said}, func() error {
		found = append(found, b)
		return nil
	}, sql)
	return found, err
}

// merge adds to what is wrong now what was wrong when it was summed.
func merge(now, then []balance) []balance {
	named := map[string]bool{}
	for _, b := range now {
		named[b.name] = true
	}
	for _, b := range then {
		if !named[b.name] {
			now = append(now, b)
		}
	}
	return now
}

// Conservation checks what must hold at every commit: the balances of items and accounts, against what
// reservations and payments add up to. It may be asked at any time, under any load; what it costs grows with the number of
// orders there have ever been.
func Conservation(ctx context.Context, db Databases) ([]Violation, error) {
	r := &round{Auditor: New(db, Options{}), now: time.Now(), report: Report{Checked: map[string]int64{}}, found: map[string]*Violation{}}
	if err := r.auditBalances(ctx); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return r.violations(), nil
}
