package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"outboxsaga/events"
	"outboxsaga/inbox"
	"outboxsaga/internal/bench"
	"outboxsaga/internal/devstack"
	"outboxsaga/internal/service"
	"outboxsaga/order-service/order"
	"outboxsaga/outbox"
	"outboxsaga/stock-service/stock"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// ceilings drives the transactions of the saga without HTTP, Kafka and Debezium: the product's own
// statements, with any number of writers. What a whole system can do lies below.
func ceilings(ctx context.Context, stack *devstack.Stack, each time.Duration) (all []bench.Ceiling, err error) {
	for _, batch := range []int{1, 200} {
		c, err := orderCeiling(ctx, stack.UserURL("order_service", "orderdb"), batch, each)
		if err != nil {
			return all, err
		}
		all = append(all, c)
	}
	if err := stockUp(ctx, stack.PostgresURL("stockdb")); err != nil {
		return all, err
	}
	for _, batch := range []int{1, 200} {
		c, err := stepCeiling(ctx, stack.UserURL("stock_service", "stockdb"), batch, each)
		if err != nil {
			return all, err
		}
		all = append(all, c)
	}
	return all, nil
}

func ceilingPool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	cfg, err := service.PoolConfig(url, "ceiling")
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = 20
	return pgxpool.NewWithConfig(ctx, cfg)
}

// orderCeiling places orders with more and more sagas, each of which has two writers.
func orderCeiling(ctx context.Context, url string, batch int, each time.Duration) (best bench.Ceiling, err error) {
	pool, err := ceilingPool(ctx, url)
	if err != nil {
		return best, err
	}
	defer pool.Close()
	for _, sagas := range []int{1, 2, 4} {
		c, err := placeWith(ctx, pool, sagas, batch, each)
		if err != nil {
			return best, err
		}
		if c.PerSecond > best.PerSecond {
			best = c
			best.Concurrency = 2 * sagas
		}
	}
	return best, nil
}

func placeWith(ctx context.Context, pool *pgxpool.Pool, n, batch int, each time.Duration) (bench.Ceiling, error) {
	work, stop := context.WithCancel(ctx)
	var background errgroup.Group
	defer func() { _ = background.Wait() }() // they end without an error once stopped
	defer stop()
	var sagas []*order.Saga
	for range n {
		s := order.NewSaga(service.Runtime{Pool: service.NewPool(pool), Log: slog.New(slog.DiscardHandler), Draining: make(chan struct{}), MaxBatch: batch}, time.Hour)
		for _, run := range s.Background() {
			background.Go(func() error { return run(work) })
		}
		sagas = append(sagas, s)
	}
	return bench.Best(ctx, bench.CeilingOrder, batch, []int{n * 3 * batch}, each, func(ctx context.Context, worker int) (int, error) {
		_, err := sagas[worker%n].Place(ctx, order.Placement{
			CustomerID: fmt.Sprint("customer-", worker), Lines: []order.Line{{SKU: fmt.Sprint("item-", worker%ceilingItems), Quantity: 1, UnitPrice: 5}}, Amount: 5,
		})
		return 1, err
	})
}

const ceilingItems = 1000

func stockUp(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, `INSERT INTO items SELECT 'item-' || i, 1000000000, 0, 1000000000 FROM generate_series(0, $1 - 1) i`, ceilingItems)
	return err
}

// stepCeiling reserves goods as stock-service does: the inbox, its work, the outbox, in two round trips.
func stepCeiling(ctx context.Context, url string, batch int, each time.Duration) (best bench.Ceiling, err error) {
	pool, err := ceilingPool(ctx, url)
	if err != nil {
		return best, err
	}
	defer pool.Close()
	return bench.Best(ctx, bench.CeilingStep, batch, []int{1, 2, 4, 8}, each, func(ctx context.Context, worker int) (int, error) {
		evs, ids := make([]inbox.Event, batch), make([][16]byte, batch)
		for i := range evs {
			id := uuid.Must(uuid.NewV7())
			key := uuid.Must(uuid.NewV7()).String()
			sku := fmt.Sprint("item-", (worker*batch+i*7)%ceilingItems)
			evs[i] = inbox.Event{ID: id, Type: events.TypeStockRequested, Key: key, Topic: events.TopicStock, Timestamp: time.Now(),
				Body: events.StockRequested{OrderID: key, Items: []events.Item{{SKU: sku, Quantity: 1}}}}
			ids[i] = id
		}
		return batch, pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return step(ctx, conn, evs, ids) })
	})
}

func step(ctx context.Context, conn *pgxpool.Conn, evs []inbox.Event, ids [][16]byte) (err error) {
	defer func() {
		if err != nil && !conn.Conn().IsClosed() {
			_, rollback := conn.Exec(context.WithoutCancel(ctx), "rollback")
			err = errors.Join(err, rollback)
		}
	}()
	work := stock.NewBatch(evs)
	load := &pgx.Batch{}
	load.Queue("begin")
	load.Queue(`INSERT INTO inbox (event_id) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING RETURNING event_id`, ids)
	work.Load(load)
	if err := conn.SendBatch(ctx, load).Close(); err != nil {
		return err
	}
	var out []outbox.Event
	for _, ev := range evs {
		answers, err := work.Decide(ev)
		if err != nil {
			return err
		}
		out = append(out, answers...)
	}
	save := &pgx.Batch{}
	work.Save(save)
	if err := outbox.Queue(save, out...); err != nil {
		return err
	}
	save.Queue("commit")
	return conn.SendBatch(ctx, save).Close()
}
