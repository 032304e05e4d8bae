//go:build !linux

package scheduling

import "errors"

func (w Worker) apply() (undo func(), err error) {
	if w.Batch || w.Slack != 0 {
		err = errors.New("only Linux can schedule a worker so")
	}
	return func() {}, err
}
