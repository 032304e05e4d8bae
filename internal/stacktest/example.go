package stacktest

import (
	"fmt"
	"testing"
)

// Example stands in for the *testing.T that an Example function has not. Call the
// function that comes with it at the example's end.
func Example() (t testing.TB, done func()) {
	e := &example{}
	return e, func() {
		for i := len(e.cleanups) - 1; i >= 0; i-- {
			e.cleanups[i]()
		}
	}
}

type example struct {
	testing.TB // nil: only the methods below are used
	cleanups   []func()
}

func (e *example) Helper()          {}
func (e *example) Name() string     { return "example" }
func (e *example) Failed() bool     { return false }
func (e *example) Cleanup(f func()) { e.cleanups = append(e.cleanups, f) }
func (e *example) Fatal(args ...any) {
	panic(fmt.Sprint(args...))
}
func (e *example) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}
