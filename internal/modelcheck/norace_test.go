//go:build !race

package modelcheck

const small = false
