package service

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Rows are the rows of one table that a batch has loaded, by key, with what it made of
// them: what is new and what differs is saved, the rest is not written. The zero value
// of V stands for a row that is not there.
type Rows[V comparable] struct {
	loaded, now map[string]V
}

// NewRows makes an empty set.
func NewRows[V comparable]() Rows[V] {
	return Rows[V]{loaded: map[string]V{}, now: map[string]V{}}
}

// Loaded keeps a row as the database has it.
func (r Rows[V]) Loaded(key string, row V) {
	r.loaded[key], r.now[key] = row, row
}

// Get is the row as it is now, or the zero value.
func (r Rows[V]) Get(key string) V { return r.now[key] }

// Set changes a row or makes a new one.
func (r Rows[V]) Set(key string, row V) { r.now[key] = row }

// All are the rows as they are now, in the order of their keys.
func (r Rows[V]) All() []V { return r.pick(func(string) bool { return true }) }

// Added are the rows that the database does not have, in the order of their keys.
func (r Rows[V]) Added() []V {
	return r.pick(func(key string) bool {
		_, known := r.loaded[key]
		return !known
	})
}

// Changed are the rows that differ from the database's, in the order of their keys.
func (r Rows[V]) Changed() []V {
	return r.pick(func(key string) bool {
		was, known := r.loaded[key]
		return known && was != r.now[key]
	})
}

func (r Rows[V]) pick(wanted func(key string) bool) []V {
	keys := slices.DeleteFunc(slices.Collect(maps.Keys(r.now)), func(key string) bool { return !wanted(key) })
	slices.Sort(keys)
	rows := make([]V, len(keys))
	for i, key := range keys {
		rows[i] = r.now[key]
	}
	return rows
}

// Queue queues a statement that reads rows into r. Its columns are V's fields, in their
// order; key is what a row is found by.
func (r Rows[V]) Queue(b *pgx.Batch, key func(V) string, sql string, args ...any) {
	b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[V])
		for _, row := range found {
			r.Loaded(key(row), row)
		}
		return err
	})
}

// Select reads rows whose columns are T's fields, in their order; a T that is no struct
// is the one column. what names them in an error.
func Select[T any](ctx context.Context, pool *Pool, what, sql string, args ...any) ([]T, error) {
	scan := pgx.RowTo[T]
	if reflect.TypeFor[T]().Kind() == reflect.Struct {
		scan = pgx.RowToStructByPos[T]
	}
	found, err := Collect(ctx, pool, scan, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return found, nil
}

// SelectOne is [Select] for a row that may be missing: nil.
func SelectOne[T any](ctx context.Context, pool *Pool, what, sql string, args ...any) (*T, error) {
	found, err := Select[T](ctx, pool, what, sql, args...)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], nil
}

// OrderIDs are the keys of events that [Decode] has accepted, for a parameter uuid[].
func OrderIDs(keys []string) [][16]byte {
	ids := make([][16]byte, len(keys))
	for i, key := range keys {
		ids[i] = uuid.MustParse(key)
	}
	return ids
}
