package outbox

import (
	"testing"
	"time"

	"github.com/google/uuid"
)

// A clock that was ahead once must not be in all later ids.
func TestAnIDIsNotAheadOfTheClock(t *testing.T) {
	made := func(id uuid.UUID) time.Time { return time.Unix(id.Time().UnixTime()) }
	now := time.Now()
	if id := notAhead(uuid.Must(uuid.NewV7()), now); made(id).Sub(now).Abs() > 100*time.Millisecond {
		t.Errorf("an id of now is of %s", made(id))
	}
	for _, ahead := range []time.Duration{2 * time.Second, 30 * 24 * time.Hour} {
		past := now.Add(-ahead)
		seen := map[uuid.UUID]bool{}
		for range 1000 {
			id := notAhead(uuid.Must(uuid.NewV7()), past)
			if made(id).Sub(past).Abs() > time.Millisecond || id.Version() != 7 || id.Variant() != uuid.RFC4122 || seen[id] {
				t.Fatalf("%s ahead: %s, of %s, seen %t", ahead, id, made(id), seen[id])
			}
			seen[id] = true
		}
	}
	id := uuid.Must(uuid.NewV7())
	if got := notAhead(id, made(id).Add(-900*time.Millisecond)); got != id {
		t.Error("a little ahead, as ids of one millisecond may be, it is another one")
	}
}
