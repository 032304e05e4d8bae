// Package bench measures a running system from outside.
//
// Load is open: orders are sent at a fixed rate, whatever becomes of earlier ones, and every
// latency counts from the moment at which the order was meant to be sent. A slow
// system therefore cannot slow its measurement down (coordinated omission).
//
// Orders come as strangers' do: a Poisson process, with exponential gaps. Even gaps would be in step with what works
// in intervals: 200 orders/s are one every 5 ms, and a relay that polls every 5 ms would meet each of them at
// the same point of its pause. A seed makes the moments the same for every system at the same rate and time.
//
// Two latencies are kept. "accept" ends when the client has read the answer to POST
// /orders. "final" ends when PostgreSQL commits the transaction that settles the order:
// SUCCESS, or FAILED with nothing left to compensate. That time is PostgreSQL's own
// (track_commit_timestamp), read in bulk after the load, on the same machine and clock: it
// costs the system next to nothing and asks none of the code that is measured. It is taken
// when the commit record is written; the flush of that record comes after it. TestRunOnTheRealStack
// compares it with what waiting clients see.
//
// An order that is not settled when the wait after the load ends counts as infinitely slow
// ([Infinite]), and so does one that was not accepted.
//
// CPU time is that of each process's CPU clock, in nanoseconds, for the time of the load alone. What other programs on
// the machine have used, and what its host gave to other machines (stolen), is shown as well: a point with much of
// either says little.
package bench

import (
	"context"
	"fmt"
	"math/rand"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Infinite is the latency of what did not happen.
const Infinite = 5 * time.Minute

// Target is a system to measure. What takes orders over the same HTTP and keeps them in the
// same table can be measured, whatever moves its events.
type Target struct {
	// Name is how results call it.
	Name string
	// The instances of each service; requests go to them in turn.
	OrderURLs, StockURLs, PaymentURLs []string
	// DB is a pool on orderdb whose role may read everything.
	DB *pgxpool.Pool
	// Processes are those whose CPU time is counted: name → process id. Instances of a
	// service share its name up to "-2" and so on. PostgreSQL's is that of the postmaster, under the
	// name "postgres"; its children count with it, walsenders apart.
	Processes map[string]int
}

// Shape is what is ordered.
type Shape struct {
	Customers int     `json:"customers"`
	Items     int     `json:"items"`
	Lines     int     `json:"lines"`   // of each order; 0 is 1
	Zipf      float64 `json:"zipf"`    // over 1: how uneven items are asked for; else all alike
	Refused   int     `json:"refused"` // percent of the orders whose customer has no money
}

// plenty is what every account and item gets.
const plenty = 1_000_000_000_000

// Prepare puts goods and money in, enough for any run.
func Prepare(ctx context.Context, t Target, s Shape) error {
	const workers = 32
	client := newClient(workers)
	defer client.CloseIdleConnections()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	work := make(chan request)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for r := range work {
				if err := client.post(r.url, r.body, 200, nil); err != nil {
					fail(err)
				}
			}
		})
	}
	send := func(r request) {
		if ctx.Err() == nil {
			work <- r
		}
	}
	for i := range s.Customers {
		send(request{t.PaymentURLs[0] + "/accounts/" + customer(i) + "/deposits", fmt.Appendf(nil, `{"amount":%d}`, plenty)})
	}
	if s.Refused > 0 {
		for i := range poorCustomers {
			send(request{t.PaymentURLs[0] + "/accounts/" + poor(i) + "/deposits", []byte(`{"amount":1}`)})
		}
	}
	for i := range s.Items {
		send(request{t.StockURLs[0] + "/items/" + item(i) + "/receipts", fmt.Appendf(nil, `{"quantity":%d}`, plenty)})
	}
	close(work)
	all.Wait()
	return context.Cause(ctx)
}

type request struct {
	url  string
	body []byte
}

// poorCustomers have too little money for any order.
const poorCustomers = 100

func poor(i int) string     { return fmt.Sprintf("poor-%d", i) }
func customer(i int) string { return fmt.Sprintf("customer-%d", i) }
func item(i int) string     { return fmt.Sprintf("item-%d", i) }

// bodies makes n orders at random, the same for the same shape, and says how many of them have no money. Customers and, unless the
// shape is uneven, items are all as likely; the lines of an order are of different items then.
func (s Shape) bodies(n int) (all [][]byte, refused int) {
	random := rand.New(rand.NewSource(1))
	pick := func(first, line int) int { return (first + line) % s.Items }
	if s.Zipf > 1 {
		z := rand.NewZipf(random, s.Zipf, 1, uint64(s.Items-1))
		pick = func(int, int) int { return int(z.Uint64()) }
	}
	all = make([][]byte, n)
	for i := range all {
		who, first := customer(random.Intn(s.Customers)), random.Intn(s.Items)
		if random.Intn(100) < s.Refused {
			who = poor(random.Intn(poorCustomers))
			refused++
		}
		b := fmt.Appendf(make([]byte, 0, 100), `{"customer_id":%q,"items":[`, who)
		for line := range max(s.Lines, 1) {
			if line > 0 {
				b = append(b, ',')
			}
			b = fmt.Appendf(b, `{"sku":%q,"quantity":1,"unit_price":5}`, item(pick(first, line)))
		}
		all[i] = append(b, `]}`...)
	}
	return all, refused
}

// Point is one measurement.
type Point struct {
	System string `json:"system"`
	// Part of the benchmark, and what is special about the point there; both may be empty.
	Part string `json:"part"`
	Case string `json:"case,omitempty"`
	// Confirms: it is no step of a search, but the confirmation of what the steps have found.
	Confirms   bool    `json:"confirms,omitempty"`
	Shape      Shape   `json:"shape"`
	Rate       int     `json:"rate"` // orders/s meant to be sent
	Seconds    float64 `json:"seconds"`
	Sent       int     `json:"sent"`
	Rejected   int     `json:"rejected"`   // not answered with 202
	Unfinished int     `json:"unfinished"` // accepted, and not settled when the wait was over
	Failed     int     `json:"failed"`     // settled as FAILED: refused, or timed out
	Refused    int     `json:"refused"`    // sent by customers without money: these must fail, and no others
	// Achieved is orders/s settled while the load ran: less than Rate by what was under way when it ended, too.
	Achieved float64 `json:"achieved"`
	// From the moment meant for sending to the final state.
	P50 float64 `json:"p50_ms"`
	P90 float64 `json:"p90_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
	// From the moment meant for sending to the answer's end.
	AcceptP50 float64 `json:"accept_p50_ms"`
	AcceptP99 float64 `json:"accept_p99_ms"`
	// Orders sent and not settled, in the middle and at the end of the load.
	BacklogHalf int `json:"backlog_half"`
	BacklogEnd  int `json:"backlog_end"`
	// Growing: orders meant for the last quarter took clearly longer than those of the second.
	Growing bool `json:"growing"`

	// Per order means per order sent: at a rate that does not hold, some of their work is not done yet.
	CPU         map[string]float64 `json:"cpu_us_per_order"`       // by process
	Cores       map[string]float64 `json:"cores"`                  // the same as processors in use
	IdleCores   float64            `json:"idle_cores"`             // of the machine
	OtherCores  float64            `json:"other_cores"`            // used by programs that are not measured
	StolenCores float64            `json:"stolen_cores"`           // wanted by this machine, and given to others by its host
	WALPerOrder float64            `json:"wal_bytes_per_order"`    // of the whole instance
	FullPages   float64            `json:"full_pages_per_order"`   // images of whole pages, of which the WAL has some after each checkpoint
	Batch       map[string]float64 `json:"events_per_transaction"` // of each service's consumer
	// Bytes that each process has had read from and written to disk, and its resident memory at the end.
	Read    map[string]float64 `json:"bytes_read_per_order"`
	Written map[string]float64 `json:"bytes_written_per_order"`
	Memory  map[string]float64 `json:"resident_mib"`
}

// Holds tells whether the system kept up: p99 within a second, nothing lost, no backlog
// that grows, and no order failed but those that were meant to.
//
// That the rate was achieved follows: of the orders that were meant a second before the end or earlier, all but some 1 %
// were final at the end. What was under way then is not held against a system, as it is latency below the bar.
func (p Point) Holds() bool {
	return p.Unfinished == 0 && p.Rejected == 0 && p.P99 <= 1000 && !p.Growing && p.Failed == p.Refused
}
