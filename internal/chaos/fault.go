package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// fault is one thing that goes wrong, once.
type fault interface {
	description() about
	// inject makes it go wrong, heal makes good what does not heal by itself.
	inject(ctx context.Context) error
	heal(ctx context.Context) error
}

// clock says from when the time to normal flow counts.
type clock int

const (
	// fromFaultUnhealed: others must take over; the heal comes after that.
	fromFaultUnhealed clock = iota
	// fromFaultHealed: nobody can take over; the heal, as by an init system, comes at once and counts.
	fromFaultHealed
	// fromHeal: nothing can flow while the fault lasts.
	fromHeal
)

// about describes a fault. Fault types embed it.
type about struct {
	kind, name string
	// touches is what must not be disturbed by another fault meanwhile.
	touches []string
	// hold is how long the fault lasts at least before it is healed; with fromFaultHealed it is healed at once.
	hold  time.Duration
	clock clock
}

func (a about) description() about { return a }

// kind is a row of the catalogue.
type kind struct {
	name string
	// weight is how often it comes, relative to the others.
	weight int
	// make decides by the dice what it hits.
	make func(dice *rand.Rand) fault
}

// plan is the schedule: an endless sequence of faults that the seed decides. Kinds come in
// shuffled rounds, so that none is missing for long. A kind of only that was skipped is left out.
func plan(seed uint64, kinds []kind, skipped []Skipped, only []string) (next func() fault, err error) {
	dice := rand.New(rand.NewPCG(seed, 1))
	byName := map[string]kind{}
	var deck []kind
	for _, k := range kinds {
		byName[k.name] = k
		for range k.weight {
			deck = append(deck, k)
		}
	}
	if len(only) > 0 {
		deck = nil
		for _, name := range only {
			k, ok := byName[name]
			if !ok && !slices.ContainsFunc(skipped, func(s Skipped) bool { return s.Kind == name }) {
				return nil, fmt.Errorf("chaos: there is no fault %q here; there are: %s", name, names(kinds))
			}
			if ok {
				deck = append(deck, k)
			}
		}
		if len(deck) == 0 {
			return nil, fmt.Errorf("chaos: none of %q can be done here: %s", only, reasons(skipped))
		}
	}
	i := 0
	return func() fault {
		if i%len(deck) == 0 && len(only) == 0 {
			dice.Shuffle(len(deck), func(a, b int) { deck[a], deck[b] = deck[b], deck[a] })
		}
		k := deck[i%len(deck)]
		i++
		return k.make(dice)
	}, nil
}

func names(kinds []kind) (text string) {
	for i, k := range kinds {
		if i > 0 {
			text += ", "
		}
		text += k.name
	}
	return text
}

func reasons(skipped []Skipped) string {
	var all []string
	for _, s := range skipped {
		all = append(all, s.Kind+": "+s.Reason)
	}
	return strings.Join(all, "; ")
}

// pick chooses one of some.
func pick[T any](dice *rand.Rand, some []T) T { return some[dice.IntN(len(some))] }

// between chooses a time.
func between(dice *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(dice.Int64N(int64(high-low)+1))
}
