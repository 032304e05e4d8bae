//go:build race

package modelcheck

// The race detector makes the search ten times slower, and there is one goroutine.
const small = true
