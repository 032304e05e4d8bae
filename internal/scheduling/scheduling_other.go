//go:build !linux

package scheduling

import "errors"

func (s Schedule) apply() (undo func(), err error) {
	if s.Batch || s.Slack != 0 {
		err = errors.New("only Linux can schedule so")
	}
	return func() {}, err
}
