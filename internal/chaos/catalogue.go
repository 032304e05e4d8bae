package chaos

// catalogue are the faults that can be injected here, and those that cannot, with the reason.
func (w *world) catalogue() (kinds []kind, skipped []Skipped) {
	return w.processFaults(), nil
}
