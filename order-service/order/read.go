package order

import (
	"context"
	"encoding/json"
	"time"

	"outboxsaga/internal/service"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// View is an order as its readers see it.
type View struct {
	ID             uuid.UUID         `json:"id"`
	CustomerID     string            `json:"customer_id"`
	Status         Status            `json:"status"`
	FailureReason  *string           `json:"failure_reason"` // null unless FAILED
	NeedsAttention bool              `json:"needs_attention,omitempty"`
	Amount         int64             `json:"amount"` // minor units
	Items          json.RawMessage   `json:"items"`
	Payment        stepView          `json:"payment"`
	Stock          stepView          `json:"stock"`
	Settled        bool              `json:"settled"`
	CreatedAt      time.Time         `json:"created_at"`
	UpdatedAt      time.Time         `json:"updated_at"`
	Timeline       []json.RawMessage `json:"timeline,omitempty"` // not in lists
}

type stepView struct {
	Status StepStatus `json:"status"`
}

// viewOf is a new order, before anyone has answered.
func viewOf(p Placement, placed Placed) View {
	step := stepView{StepInProgress}
	return View{
		ID: placed.ID, CustomerID: p.CustomerID, Status: InProgress, Amount: p.Amount, Items: json.RawMessage(placed.Items),
		Payment: step, Stock: step, CreatedAt: placed.At, UpdatedAt: placed.At,
		Timeline: split(Timeline(placed.At, placed.Commands[0], placed.Commands[1], "")),
	}
}

const viewColumns = `id, customer_id, status, failure_reason, needs_attention, amount, items, payment_status, stock_status, created_at, updated_at`

func scanView(row pgx.CollectableRow, more ...any) (View, error) {
	var v View
	var reason, items string
	err := row.Scan(append([]any{&v.ID, &v.CustomerID, &v.Status, &reason, &v.NeedsAttention, &v.Amount, &items,
		&v.Payment.Status, &v.Stock.Status, &v.CreatedAt, &v.UpdatedAt}, more...)...)
	if reason != "" {
		v.FailureReason = &reason
	}
	v.Items = json.RawMessage(items)
	v.CreatedAt, v.UpdatedAt = v.CreatedAt.UTC(), v.UpdatedAt.UTC()
	v.Settled = Order{Payment: Step{Status: v.Payment.Status}, Stock: Step{Status: v.Stock.Status}}.Settled()
	return v, err
}

// Get reads an order with its timeline; nil if there is none.
func (s *Saga) Get(ctx context.Context, id uuid.UUID) (*View, error) {
	found, err := service.Collect(ctx, s.pool, func(row pgx.CollectableRow) (View, error) {
		var payment, stock uuid.UUID
		var lines string
		v, err := scanView(row, &payment, &stock, &lines)
		v.Timeline = split(Timeline(v.CreatedAt, payment, stock, lines))
		return v, err
	}, `SELECT `+viewColumns+`, payment_command, stock_command, timeline FROM orders WHERE id = $1`, id)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], nil
}

// Filter selects orders for a list, newest first.
type Filter struct {
	CustomerID string    // empty: any
	Status     Status    // empty: any
	Before     uuid.UUID // only older ones
	Limit      int
}

// scanLimit bounds how many orders a page looks at for its status: there is no index
// for it, because that would cost every order that is placed. firstLook is how many are mostly enough.
const scanLimit, firstLook = 10_000, 1000

// List reads a page of orders and the cursor for the next one; nil at the end. With a status a
// page may hold fewer than Limit orders, even none, and still have a next one.
func (s *Saga) List(ctx context.Context, f Filter) (page []View, next *string, err error) {
	where := `id < $1 AND $2 = ''`
	if f.CustomerID != "" { // a text of its own, so that it has the plan of its index
		where = `id < $1 AND customer_id = $2`
	}
	from := uuid.Nil // the oldest that is looked at
	if f.Status != "" {
		// Mostly the newest fill a page.
		page, next, err = s.page(ctx, f, `(SELECT * FROM orders WHERE `+where+` ORDER BY id DESC LIMIT $3) newest WHERE`, firstLook)
		if err != nil || next != nil {
			return page, next, err
		}
		oldest, err := service.SelectOne[uuid.UUID](ctx, s.pool, "orders",
			`SELECT id FROM orders WHERE `+where+` ORDER BY id DESC OFFSET $3 LIMIT 1`, f.Before, f.CustomerID, scanLimit-1)
		if err != nil {
			return nil, nil, err
		}
		if oldest != nil {
			from = *oldest
		}
	}
	page, next, err = s.page(ctx, f, `orders WHERE `+where+` AND id >= $3 AND`, from)
	if err == nil && next == nil && from != uuid.Nil {
		next = service.Cursor(from.String())
	}
	return page, next, err
}

// page reads a page out of what is given as SQL, of which bound is $3, and the cursor for the next one if it is filled.
func (s *Saga) page(ctx context.Context, f Filter, out string, bound any) (page []View, next *string, err error) {
	page, err = service.Collect(ctx, s.pool, func(row pgx.CollectableRow) (View, error) { return scanView(row) },
		`SELECT `+viewColumns+` FROM `+out+` ($4 = '' OR status = $4) ORDER BY id DESC LIMIT $5`,
		f.Before, f.CustomerID, bound, string(f.Status), f.Limit+1)
	if err == nil && len(page) > f.Limit {
		page = page[:f.Limit]
		next = service.Cursor(page[f.Limit-1].ID.String())
	}
	return page, next, err
}
