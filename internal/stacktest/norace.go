//go:build !race

package stacktest

// Race says whether the tests, and the services they start, run with the race
// detector: five to ten times slower.
const Race = false
