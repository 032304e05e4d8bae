package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"outboxsaga/internal/system"

	"github.com/jackc/pgx/v5"
)

// poolSize is DATABASE_POOL_SIZE of the services. Reads take poolReads of it at most: service.Pool leaves the others to the consumer and
// the writers.
const poolSize, poolReads = 8, 4

// poolFaults: PostgreSQL works, and a service has its connections, but none for a read that is free.
func (w *world) poolFaults() []kind {
	return []kind{{"pool exhausted", 1, func(dice *rand.Rand) fault {
		s := pick(dice, system.Services())
		// Less than the statement timeout (10 s), after which connections come free.
		hold := between(dice, 3*time.Second, 7*time.Second)
		return &poolExhausted{about: about{"pool exhausted", fmt.Sprintf("all connections for reads of %s busy for %.1f s", s.Name, hold.Seconds()),
			[]string{"service", "Postgres"}, hold, fromHeal}, world: w, service: s}
	}}}
}

// reads are what a service answers from one table.
var reads = map[string]struct{ table, path string }{
	"order-service":   {"orders", "/orders?limit=1"},
	"stock-service":   {"items", "/items?limit=1"},
	"payment-service": {"accounts", "/accounts?limit=1"},
}

// poolExhausted lets more clients read a table that is locked (as by a migration) than a service has connections for reads. Each
// request takes a connection and waits with it, and then all other reads wait for one; consumer and writers have connections, and
// wait for the lock where they need the table. It counts only once PostgreSQL says that as many wait as reads may take.
type poolExhausted struct {
	about
	world   *world
	service system.Service

	lock    *pgx.Conn
	stop    context.CancelFunc
	clients sync.WaitGroup

	mu  sync.Mutex
	err error // the first answer that is neither success nor 503
}

func (f *poolExhausted) inject(ctx context.Context) (err error) {
	read := reads[f.service.Name]
	if f.lock, err = pgx.Connect(ctx, f.world.stack.PostgresURL(f.service.Database.Name)); err != nil {
		return err
	}
	if _, err := f.lock.Exec(ctx, "SET lock_timeout = '5s'; BEGIN; LOCK TABLE "+read.table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		return err
	}
	var reading context.Context
	reading, f.stop = context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	urls := f.world.urls[f.service.Name]
	for _, url := range urls {
		for range 4 * poolReads {
			f.clients.Go(func() { f.read(reading, client, url+read.path) })
		}
	}
	var busy int
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); pause(ctx, 50*time.Millisecond) {
		err = f.world.databases["postgres"].QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'`, f.service.Database.Role).Scan(&busy)
		if err != nil || busy >= poolReads*len(urls) {
			return err
		}
	}
	return fmt.Errorf("%d of the %d connections for reads of %s are busy: they are not exhausted", busy, poolReads*len(urls), f.service.Name)
}

// read is one client.
func (f *poolExhausted) read(ctx context.Context, client *http.Client, url string) {
	err := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("GET %s answers %s", url, res.Status)
		}
		return err
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// heal gives the lock back. Every client must have its answer then.
func (f *poolExhausted) heal(ctx context.Context) (err error) {
	if f.lock != nil {
		err = f.lock.Close(ctx) // which rolls back
	}
	if f.stop != nil {
		f.clients.Wait()
		f.stop()
	}
	return errors.Join(err, f.err)
}
