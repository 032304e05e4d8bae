package chaos

import "slices"

// catalogue are the faults that can be injected here, and those that cannot, with the reason.
func (w *world) catalogue() (kinds []kind, skipped []Skipped) {
	kinds = slices.Concat(w.processFaults(), w.postgresFaults(), w.poolFaults(), w.connectFaults(), w.kafkaFaults(), w.network.networkFaults())
	disk, err := w.diskFaults()
	if err != nil {
		skipped = append(skipped, Skipped{"disk full", err.Error()})
	}
	kinds = append(kinds, disk...)
	clock, err := w.clockFaults()
	if err != nil {
		skipped = append(skipped, Skipped{"clock jump", err.Error()})
	}
	return append(kinds, clock...), skipped
}
