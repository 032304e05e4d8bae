package chaos

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// sample asks every second whether goods and money are conserved, while all is under fire.
func (r *run) sample(ctx context.Context) {
}

// settle waits until every order is placed and settled.
func (r *run) settle(ctx context.Context) {
	begin := time.Now()
	l := r.load
	// An order whose client gave up may be placed or not; asked again with its key, it is placed once.
	var again sync.WaitGroup
	gate := make(chan struct{}, 32)
	for _, o := range l.orders {
		if o.id == "" {
			r.report.Load.LateAccepted++
			again.Go(func() {
				gate <- struct{}{}
				l.place(ctx, o, r.cfg.Quiet)
				<-gate
			})
		}
	}
	again.Wait()
	for end := time.Now().Add(r.cfg.Quiet); ; {
		open := l.unsettled()
		if len(open) == 0 {
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			r.violate("%d orders are not settled after %v, the first: %s", len(open), r.cfg.Quiet, open[0])
			break
		}
		pause(ctx, 50*time.Millisecond)
	}
	r.report.Quiet = time.Since(begin).Seconds()
}

// finish holds the databases against what the load knows, and audits them.
func (r *run) finish(ctx context.Context) {
	l, report := r.load, r.report
	l.counts.LateAccepted = report.Load.LateAccepted
	report.Load = l.counts
	report.Seconds = r.cfg.Duration.Seconds()
	report.Kinds = rows(report.Faults)
	ids := map[string]string{}
	for _, o := range l.orders {
		report.Load.Orders++
		if o.id == "" {
			r.violate("order %s was never accepted", o.key)
			continue
		}
		report.Load.Accepted++
		if other, taken := ids[o.id]; taken {
			r.violate("orders %s and %s are one: %s", o.key, other, o.id)
		}
		ids[o.id] = o.key
	}
	bounded, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := r.compare(bounded, ids); err != nil {
		r.violate("the final state cannot be read: %v", err)
	}
}

// compare holds the orders in the database against those the load knows.
func (r *run) compare(ctx context.Context, ids map[string]string) error {
	rows, err := r.world.databases["orderdb"].Query(ctx, `SELECT id::text, status, failure_reason FROM orders`)
	if err != nil {
		return err
	}
	defer rows.Close()
	found := 0
	for rows.Next() {
		var id, status, reason string
		if err := rows.Scan(&id, &status, &reason); err != nil {
			return err
		}
		if ids[id] == "" {
			r.violate("order %s was placed twice: no client knows it", id)
			continue
		}
		found++
		switch {
		case status == "SUCCESS":
			r.report.Load.Succeeded++
		case reason == "cancelled":
			r.report.Load.Cancelled++
		case status == "FAILED":
			r.report.Load.Failed++
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if found != len(ids) {
		r.violate("%d accepted orders are gone", len(ids)-found)
	}
	// What was added has been added once.
	l := r.report.Load
	for _, sum := range []struct {
		what, database, sql string
		want                int
	}{
		{"goods received", "stockdb", `SELECT sum(received)::bigint FROM items`, items*500_000 + l.Received},
		{"money deposited", "paymentdb", `SELECT sum(deposited)::bigint FROM accounts`, richCustomers*100_000_000 + 10 + l.Deposited},
	} {
		var got int
		if err := r.world.databases[sum.database].QueryRow(ctx, sum.sql).Scan(&got); err != nil {
			return fmt.Errorf("%s: %w", sum.what, err)
		}
		if got != sum.want && l.Uncertain == 0 {
			r.violate("%s: %d in the database, %d by the answers", sum.what, got, sum.want)
		}
	}
	return nil
}
