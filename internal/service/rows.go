package service

import (
	"maps"
	"slices"
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
