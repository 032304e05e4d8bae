// Package clockshift moves the time of day that one running process sees, for tests of clocks that are wrong and
// of days that would have to be waited for.
package clockshift
