package payment

import (
	"context"
	"fmt"
	"slices"
	"time"

	"outboxsaga/internal/service"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// book is what a transaction has loaded, and changes.
type book struct {
	payments service.Rows[Payment] // by order id
	accounts service.Rows[Account] // by customer id
}

func newBook() book {
	return book{service.NewRows[Payment](), service.NewRows[Account]()}
}

const (
	lockPayments = `
SELECT order_id::text, customer_id, amount, status, reason FROM payments
WHERE order_id = ANY($1::uuid[]) ORDER BY payments.order_id FOR UPDATE`

	// The accounts that are named, and those that the compensated orders were charged to.
	// Payments are locked before, so this statement sees them as they stay.
	lockAccounts = `
SELECT customer_id, balance, charged, deposited FROM accounts
WHERE customer_id = ANY($1::text[] || ARRAY(
    SELECT p.customer_id FROM payments p
    WHERE p.order_id = ANY($2::uuid[]) AND p.status = 'CHARGED'))
ORDER BY customer_id FOR UPDATE`

	// No ON CONFLICT: if another instance has just made the row, this transaction must
	// fail and be tried again, to see it.
	insertPayments = `
INSERT INTO payments (order_id, customer_id, amount, status, reason)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[])`

	updatePayments = `
UPDATE payments p SET status = u.status, updated_at = clock_timestamp()
FROM unnest($1::uuid[], $2::text[]) AS u (order_id, status) WHERE p.order_id = u.order_id`

	insertAccounts = `
INSERT INTO accounts (customer_id, balance, charged, deposited)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])`

	updateAccounts = `
UPDATE accounts a SET balance = u.balance, charged = u.charged, deposited = u.deposited
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS u (customer_id, balance, charged, deposited)
WHERE a.customer_id = u.customer_id`
)

func (k book) queuePayments(b *pgx.Batch, orders []string) {
	k.payments.Queue(b, func(p Payment) string { return p.OrderID }, lockPayments, service.OrderIDs(orders))
}

func (k book) queueAccounts(b *pgx.Batch, customers, compensated []string) {
	slices.Sort(customers)
	k.accounts.Queue(b, func(a Account) string { return a.CustomerID }, lockAccounts, slices.Compact(customers), service.OrderIDs(compensated))
}

// queueSave writes one statement for each kind of change.
func (k book) queueSave(b *pgx.Batch) {
	if added := k.payments.Added(); len(added) > 0 {
		b.Queue(insertPayments, paymentColumns(added)...)
	}
	if changed := k.payments.Changed(); len(changed) > 0 {
		columns := paymentColumns(changed)
		b.Queue(updatePayments, columns[0], columns[3])
	}
	if added := k.accounts.Added(); len(added) > 0 {
		b.Queue(insertAccounts, accountColumns(added)...)
	}
	if changed := k.accounts.Changed(); len(changed) > 0 {
		b.Queue(updateAccounts, accountColumns(changed)...)
	}
}

func paymentColumns(rows []Payment) []any {
	n := len(rows)
	orders, customers, amounts := make([][16]byte, n), make([]string, n), make([]int64, n)
	statuses, reasons := make([]string, n), make([]string, n)
	for i, p := range rows {
		orders[i], customers[i], amounts[i] = uuid.MustParse(p.OrderID), p.CustomerID, p.Amount
		statuses[i], reasons[i] = string(p.Status), p.Reason
	}
	return []any{orders, customers, amounts, statuses, reasons}
}

func accountColumns(rows []Account) []any {
	n := len(rows)
	customers, balances, charged, deposited := make([]string, n), make([]int64, n), make([]int64, n), make([]int64, n)
	for i, a := range rows {
		customers[i], balances[i], charged[i], deposited[i] = a.CustomerID, a.Balance, a.Charged, a.Deposited
	}
	return []any{customers, balances, charged, deposited}
}

// Store serves the HTTP routes. [NewStore] makes it, [Store.Run] runs its writers.
type Store struct {
	pool     *service.Pool
	deposits *service.Gather[DepositRequest, Account]
}

// DepositRequest is money that came in.
type DepositRequest struct {
	CustomerID string
	Amount     int64                   // minor units
	Key        *service.IdempotencyKey // may be nil
}

// NewStore makes a store on the database of payment-service.
func NewStore(pool *service.Pool) *Store {
	s := &Store{pool: pool}
	s.deposits = service.NewGather(1, 200, s.deposit)
	return s
}

// Run owns the writer of deposits; it blocks until ctx is done.
func (s *Store) Run(ctx context.Context) error { return s.deposits.Run(ctx) }

// Deposit adds money to an account, which it makes if the customer is new, and returns
// the account. A deposit with a key that was used before adds nothing.
func (s *Store) Deposit(ctx context.Context, d DepositRequest) (Account, error) {
	return s.deposits.Do(ctx, d)
}

// deposit commits deposits together.
func (s *Store) deposit(ctx context.Context, deposits []DepositRequest) ([]service.Result[Account], error) {
	claims := make([]service.Claim, len(deposits))
	customers := make([]string, len(deposits))
	for i, d := range deposits {
		claims[i] = service.Claim{Key: d.Key, Response: d.CustomerID}
		customers[i] = d.CustomerID
	}
	k := newBook()
	results := make([]service.Result[Account], len(deposits))
	err := service.Transact(ctx, s.pool, func(b *pgx.Batch) {
		service.QueueClaim(b, claims)
		k.queueAccounts(b, customers, nil)
	}, func(b *pgx.Batch) error {
		for i, d := range deposits {
			account := k.accounts.Get(d.CustomerID)
			if claims[i].Fresh {
				var err error
				if account, err = Deposit(account, d.CustomerID, d.Amount); err != nil {
					return err
				}
				k.accounts.Set(d.CustomerID, account)
			}
			results[i] = service.Result[Account]{Value: account, Err: claims[i].Err}
		}
		k.queueSave(b)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("deposit money: %w", err)
	}
	return results, nil
}

// Account reads one account; nil if there is none.
func (s *Store) Account(ctx context.Context, customerID string) (*Account, error) {
	return service.SelectOne[Account](ctx, s.pool, "an account",
		`SELECT customer_id, balance, charged, deposited FROM accounts WHERE customer_id = $1`, customerID)
}

// Accounts reads up to limit accounts whose customer comes after another one.
func (s *Store) Accounts(ctx context.Context, after string, limit int) ([]Account, error) {
	return service.Select[Account](ctx, s.pool, "accounts",
		`SELECT customer_id, balance, charged, deposited FROM accounts WHERE customer_id > $1 ORDER BY customer_id LIMIT $2`, after, limit)
}

// View is a payment as its readers see it.
type View struct {
	OrderID    uuid.UUID `json:"order_id"`
	CustomerID string    `json:"customer_id,omitempty"`
	Amount     int64     `json:"amount"`
	Status     Status    `json:"status"`
	Reason     string    `json:"reason,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"updated_at"`
}

// Payment reads the payment of an order; nil if there is none.
func (s *Store) Payment(ctx context.Context, orderID uuid.UUID) (*View, error) {
	v, err := service.SelectOne[View](ctx, s.pool, "a payment",
		`SELECT order_id, customer_id, amount, status, reason, created_at, updated_at FROM payments WHERE order_id = $1`, orderID)
	if v != nil {
		v.CreatedAt, v.UpdatedAt = v.CreatedAt.UTC(), v.UpdatedAt.UTC()
	}
	return v, err
}
