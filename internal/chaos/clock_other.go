//go:build !linux || !amd64

package chaos

import (
	"errors"
	"time"
)

func shiftClock(int, time.Duration) error {
	return errors.New("the clock of one process can be moved on Linux on amd64 only")
}
