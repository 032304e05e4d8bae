//go:build !linux

package chaos

import (
	"context"
	"errors"
)

func (w *world) smallDisk(context.Context) error {
	return errors.New("a small file system for the log of PostgreSQL can be mounted on Linux only")
}

func (w *world) diskFaults() ([]kind, error) { return nil, w.noDisk }
