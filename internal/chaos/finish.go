package chaos

import (
	"context"
	"fmt"
	"sync"
	"time"

	"outboxsaga/internal/audit"
)

// sample asks every second whether goods and money are conserved, while all is under fire.
func (r *run) sample(ctx context.Context) {
	said := map[string]bool{}
	for ctx.Err() == nil {
		next := time.After(time.Second)
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		found, err := audit.Conservation(try, r.world.audited())
		cancel()
		r.mu.Lock()
		if err == nil {
			r.report.Samples++
		} else {
			r.report.SamplesMissed++ // the database is what is shot at
		}
		r.mu.Unlock()
		for _, v := range found {
			if text := v.String(); !said[text] {
				said[text] = true
				r.violate("under load: %s", text)
			}
		}
		select {
		case <-ctx.Done():
		case <-next:
		}
	}
}

// audited are the databases, read past all proxies.
func (w *world) audited() audit.Databases {
	return audit.Databases{Order: w.databases["orderdb"], Stock: w.databases["stockdb"], Payment: w.databases["paymentdb"]}
}

// grace is how old an event must be to be judged at the end.
const grace = 10 * time.Second

// audit judges everything, once all events are old enough by their ids, which tell the time of the
// service that made them: some were made ahead of time. Since a topic can lose events after their orders have
// settled (a dead letter's announcement), the supervisor is given the time to send them again.
func (r *run) audit(ctx context.Context) {
	if wait := time.Until(r.world.ahead().Add(grace + time.Second)); wait > 0 {
		r.say("waiting %.0f s until all events are old enough to be judged", wait.Seconds())
		pause(ctx, wait)
	}
	pause(ctx, grace)
	for end := time.Now().Add(r.cfg.Quiet); ; pause(ctx, time.Second) {
		found, err := audit.Once(ctx, r.world.audited(), audit.Options{Grace: grace})
		if err == nil && found.Clean() || time.Now().After(end) || ctx.Err() != nil {
			r.report.Audit = found
			if err != nil {
				r.violate("the audit cannot be made: %v", err)
			}
			for _, v := range found.Violations {
				r.violate("%s", v.String())
			}
			if found.Open > 0 || found.Attention > 0 {
				r.violate("%d orders are open, %d need attention", found.Open, found.Attention)
			}
			return
		}
	}
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
	if err := r.deadLetters(bounded); err != nil {
		r.violate("the dead letters cannot be read: %v", err)
	}
	r.audit(ctx)
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
		what, database, sql        string
		answered, unanswered, each int
	}{
		{"goods received", "stockdb", `SELECT sum(received)::bigint FROM items`, items*500_000 + l.Received, l.UncertainReceived, restockGoods},
		{"money deposited", "paymentdb", `SELECT sum(deposited)::bigint FROM accounts`, richCustomers*100_000_000 + 10 + l.Deposited, l.UncertainDeposited, restockMoney},
	} {
		var got int
		if err := r.world.databases[sum.database].QueryRow(ctx, sum.sql).Scan(&got); err != nil {
			return fmt.Errorf("%s: %w", sum.what, err)
		}
		if !addsUp(got, sum.answered, sum.unanswered, sum.each) {
			r.violate("%s: %d in the database, %d by the answers, and at most %d more, in pieces of %d, of requests without an answer",
				sum.what, got, sum.answered, sum.unanswered, sum.each)
		}
	}
	return nil
}

// addsUp tells whether a sum has everything that was answered, once, and of what was not answered each piece once or not
// at all.
func addsUp(got, answered, unanswered, each int) bool {
	return got >= answered && got <= answered+unanswered && (got-answered)%each == 0
}

// deadLetters counts what was put aside: poison, and nothing else.
func (r *run) deadLetters(ctx context.Context) error {
	r.report.Poisoned = int(r.world.poisoned.Load())
	for _, database := range []string{"orderdb", "stockdb", "paymentdb"} {
		// A true event has an UUIDv7, a type and a payload that is JSON.
		rows, err := r.world.texts(ctx, database, `SELECT CASE WHEN event_type = '' THEN '' ELSE event_type || ' ' || event_id || ': ' || error END FROM dead_letters`)
		if err != nil {
			return err
		}
		for _, text := range rows {
			r.report.DeadLetters++
			if text != "" {
				r.violate("a true event was put aside in %s: %s", database, text)
			}
		}
	}
	return nil
}
