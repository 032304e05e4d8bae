package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// attemptTime bounds one request. The answer to a placed order comes in milliseconds.
	attemptTime = 2 * time.Second
	// patience is how long a client tries to place one order, with one Idempotency-Key.
	patience = 90 * time.Second
	// prompt is the longest time from placing to settled that counts as normal flow.
	prompt = time.Second
	// window is how long orders must settle promptly.
	window = time.Second
	// slow orders in a window are the tail of a fault.
	slow = 250 * time.Millisecond
)

// order is what the load knows of one order.
type order struct {
	key, body string
	meant     time.Time
	id        string    // "" until it was accepted
	settled   time.Time // zero until it was seen settled
	cancel    bool
}

// load places orders at a fixed rate, whatever becomes of them: customers with and without
// money, items that are there and that run out, some cancelled. A request that fails is sent again with the
// same Idempotency-Key, to any instance.
type load struct {
	world  *world
	client *http.Client
	seed   uint64
	balancers
	stop func() // and wait for the requests under way

	mu     sync.Mutex
	orders []*order
	open   []*order // accepted and not seen settled
	counts Load
}

// The goods and customers of the load.
const (
	richCustomers = 40
	items         = 20
	// What one restocking adds.
	restockGoods, restockMoney = 7, 11
)

func startLoad(ctx context.Context, w *world, rate int, seed uint64) (*load, error) {
	l := &load{world: w, seed: seed, client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 256, MaxConnsPerHost: 1024, IdleConnTimeout: 10 * time.Second,
	}}}
	l.counts.Failures = map[string]int{}
	checking, stopChecking := context.WithCancel(context.WithoutCancel(ctx))
	var checks, all sync.WaitGroup
	l.balancers = newBalancers(w.urls)
	for _, b := range l.balancers {
		b.check(checking, &checks)
	}
	sending, stopSending := context.WithCancel(ctx)
	l.stop = sync.OnceFunc(func() {
		stopSending()
		all.Wait()
		stopChecking()
		checks.Wait()
		l.client.CloseIdleConnections()
	})
	if err := l.provide(ctx); err != nil {
		l.stop()
		return nil, err
	}
	all.Go(func() {
		dice := rand.New(rand.NewPCG(seed, 3))
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		begin := time.Now()
		for i := 0; ; {
			select {
			case <-sending.Done():
				return
			case <-tick.C:
			}
			// A late tick sends what is due: the load does not wait for the system.
			for due := int(time.Since(begin).Seconds() * float64(rate)); i < due; i++ {
				o := &order{key: fmt.Sprintf("chaos-%d-%d", seed, i), meant: time.Now(), cancel: dice.IntN(100) < 3}
				o.body = body(dice)
				l.mu.Lock()
				l.orders = append(l.orders, o)
				l.mu.Unlock()
				all.Go(func() { l.place(context.WithoutCancel(ctx), o, patience) })
			}
		}
	})
	all.Go(func() { l.restock(sending) })
	return l, nil
}

// body is an order: of ten, one has no money for it, one asks for more than there is, one has many lines.
func body(dice *rand.Rand) string {
	customer, quantity, price := fmt.Sprint("rich-", dice.IntN(richCustomers)), 1+dice.IntN(3), 100
	lines := 1
	switch dice.IntN(10) {
	case 0:
		customer = "poor"
	case 1:
		quantity = 1_000_000
	case 2:
		lines = 3
	}
	var text strings.Builder
	fmt.Fprintf(&text, `{"customer_id":%q,"items":[`, customer)
	first := dice.IntN(items)
	for i := range lines {
		if i > 0 {
			text.WriteByte(',')
		}
		fmt.Fprintf(&text, `{"sku":"item-%d","quantity":%d,"unit_price":%d}`, (first+i)%items, quantity, price)
	}
	text.WriteString("]}")
	return text.String()
}

// provide puts goods and money in.
func (l *load) provide(ctx context.Context) error {
	for i := range items {
		if err := l.post(ctx, l.balancers["stock-service"], fmt.Sprintf("/items/item-%d/receipts", i), fmt.Sprint("items-", i), `{"quantity":500000}`, nil); err != nil {
			return err
		}
	}
	for i := range richCustomers {
		if err := l.post(ctx, l.balancers["payment-service"], fmt.Sprintf("/accounts/rich-%d/deposits", i), fmt.Sprint("money-", i), `{"amount":100000000}`, nil); err != nil {
			return err
		}
	}
	return l.post(ctx, l.balancers["payment-service"], "/accounts/poor/deposits", "poor", `{"amount":10}`, nil)
}

// restock adds goods and money while the faults happen: the other writes that must neither be lost nor double.
func (l *load) restock(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprint("restock-", i)
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		errStock := l.post(bounded, l.balancers["stock-service"], fmt.Sprintf("/items/item-%d/receipts", i%items), key, fmt.Sprintf(`{"quantity":%d}`, restockGoods), nil)
		errMoney := l.post(bounded, l.balancers["payment-service"], fmt.Sprintf("/accounts/rich-%d/deposits", i%richCustomers), key, fmt.Sprintf(`{"amount":%d}`, restockMoney), nil)
		cancel()
		l.mu.Lock()
		if errStock == nil {
			l.counts.Received += restockGoods
		} else {
			l.counts.UncertainReceived += restockGoods
		}
		if errMoney == nil {
			l.counts.Deposited += restockMoney
		} else {
			l.counts.UncertainDeposited += restockMoney
		}
		l.mu.Unlock()
		pause(ctx, time.Second)
	}
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// place places one order and, where it shall be, cancels it.
func (l *load) place(ctx context.Context, o *order, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var answer struct{ ID string }
	if err := l.post(ctx, l.balancers["order-service"], "/orders", o.key, o.body, &answer); err != nil {
		return
	}
	l.mu.Lock()
	if o.id == "" {
		o.id = answer.ID
		l.open = append(l.open, o)
	}
	l.mu.Unlock()
	if o.cancel {
		_ = l.post(ctx, l.balancers["order-service"], "/orders/"+answer.ID+"/cancel", "", "", nil) // too late is fine: 409
	}
}

// post sends a request until it is answered with something other than a fault.
func (l *load) post(ctx context.Context, b *balancer, path, key, body string, out any) error {
	for try := 0; ; try++ {
		status, wait, err := l.attempt(ctx, b, path, key, body, out)
		switch {
		case err == nil && status < 300, err == nil && status == http.StatusConflict && strings.HasSuffix(path, "/cancel"):
			return nil
		case err == nil && status < 500 && status != http.StatusTooManyRequests && status != http.StatusConflict:
			l.failure(fmt.Sprint("HTTP ", status))
			return fmt.Errorf("POST %s: %d", path, status)
		case err == nil:
			l.failure(fmt.Sprint("HTTP ", status))
		case errors.Is(err, context.DeadlineExceeded):
			l.failure("no answer in " + attemptTime.String())
		default:
			l.failure("connection")
		}
		// The first retry goes to another instance at once; then the service's own advice, bounded.
		if try > 0 {
			wait = max(min(wait, time.Second), 100*time.Millisecond)
			select {
			case <-ctx.Done():
				return fmt.Errorf("POST %s: %w", path, ctx.Err())
			case <-time.After(wait):
			}
		}
	}
}

func (l *load) failure(what string) {
	l.mu.Lock()
	l.counts.Failures[what]++
	l.mu.Unlock()
}

// failures counts the requests that failed up to now, each of which was sent again.
func (l *load) failures() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, of := range l.counts.Failures {
		n += of
	}
	return n
}

func (l *load) attempt(ctx context.Context, b *balancer, path, key, body string, out any) (status int, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	target := b.next()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.url+path, strings.NewReader(body))
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := l.client.Do(req)
	if err != nil {
		target.up.Store(false)
		return 0, 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, 0, err
	}
	if res.StatusCode == http.StatusServiceUnavailable {
		seconds, err := time.ParseDuration(res.Header.Get("Retry-After") + "s")
		if err != nil {
			l.failure("503 without Retry-After")
		}
		wait = seconds
	}
	if out != nil && res.StatusCode < 300 {
		return res.StatusCode, wait, json.Unmarshal(text, out)
	}
	return res.StatusCode, wait, nil
}

// selectSettled: settled as package order says.
const selectSettled = `SELECT id::text FROM orders WHERE id = ANY($1::uuid[])
AND payment_status NOT IN ('IN_PROGRESS', 'COMPENSATING') AND stock_status NOT IN ('IN_PROGRESS', 'COMPENSATING')`

// watch notes when orders settle, until ctx is done. It asks PostgreSQL itself, past all proxies.
func (l *load) watch(ctx context.Context) {
	for ctx.Err() == nil {
		l.look(ctx)
		pause(ctx, 30*time.Millisecond)
	}
}

func (l *load) look(ctx context.Context) {
	l.mu.Lock()
	// The newest too: they tell of normal flow while old ones still wait for their turn.
	ask := l.open[max(0, len(l.open)-2000):]
	if len(l.open) > len(ask) {
		ask = slices.Concat(l.open[:min(2000, len(l.open)-len(ask))], ask)
	}
	byID := make(map[string]*order, len(ask))
	ids := make([]string, 0, len(ask))
	for _, o := range ask {
		byID[o.id] = o
		ids = append(ids, o.id)
	}
	l.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	try, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	settled, err := l.world.texts(try, "orderdb", selectSettled, ids)
	if err != nil {
		return // the database is what is shot at
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range settled {
		byID[id].settled = now
	}
	l.open = slices.DeleteFunc(l.open, func(o *order) bool { return !o.settled.IsZero() })
}

// unsettled are the ids of accepted orders not seen settled.
func (l *load) unsettled() (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.open {
		ids = append(ids, o.id)
	}
	return ids
}

// flowing waits for the normal flow of orders and returns how long after from it began: orders placed
// later settle promptly again.
func (l *load) flowing(ctx context.Context, from time.Time, most time.Duration) (time.Duration, error) {
	for end := time.Now().Add(most); ; {
		l.mu.Lock()
		first, _ := slices.BinarySearchFunc(l.orders, from, func(o *order, t time.Time) int { return o.meant.Compare(t) })
		at, ok := flow(l.orders[first:], time.Now())
		l.mu.Unlock()
		switch {
		case ok:
			return max(at.Sub(from), 0), nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case time.Now().After(end):
			return 0, fmt.Errorf("orders do not settle within %v again, %v later", prompt, most)
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// flow looks for the first order from which on those of one window settle promptly, all but one of
// twenty (the machine has other work too; a partition that stands still is one order of six). It
// returns when the disturbance was over: when the first order had settled, or the last slow one.
func flow(orders []*order, now time.Time) (at time.Time, ok bool) {
	for i, o := range orders {
		if now.Sub(o.meant) < window+prompt {
			return at, false
		}
		total, late := 0, 0
		last := o.settled
		for _, other := range orders[i:] {
			if other.meant.Sub(o.meant) > window {
				break
			}
			total++
			took := other.settled.Sub(other.meant)
			if other.settled.IsZero() || took > prompt {
				late++
			} else if took > slow && other.settled.After(last) {
				last = other.settled
			}
		}
		if late*20 <= total && !o.settled.IsZero() && o.settled.Sub(o.meant) <= prompt {
			return last, true
		}
	}
	return at, false
}

// balancer spreads requests over the instances of a service as load balancers do: to those that
// say they are ready, or to any if none does.
type balancer struct {
	client    *http.Client
	instances []*instance
	turn      atomic.Uint64
}

type instance struct {
	url string
	up  atomic.Bool
}

type balancers map[string]*balancer // by service

func newBalancers(urls map[string][]string) balancers {
	all := balancers{}
	for service, of := range urls {
		b := &balancer{client: &http.Client{Timeout: 500 * time.Millisecond}}
		for _, url := range of {
			i := &instance{url: url}
			i.up.Store(true)
			b.instances = append(b.instances, i)
		}
		all[service] = b
	}
	return all
}

func (b *balancer) check(ctx context.Context, checks *sync.WaitGroup) {
	for _, i := range b.instances {
		checks.Go(func() {
			for ctx.Err() == nil {
				res, err := b.client.Get(i.url + "/readyz")
				i.up.Store(err == nil && res.StatusCode == http.StatusOK)
				if err == nil {
					res.Body.Close()
				}
				pause(ctx, 200*time.Millisecond)
			}
		})
	}
}

func (b *balancer) next() *instance {
	turn := int(b.turn.Add(1))
	for n := range b.instances {
		if i := b.instances[(turn+n)%len(b.instances)]; i.up.Load() {
			return i
		}
	}
	return b.instances[turn%len(b.instances)]
}
