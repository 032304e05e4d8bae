package service

import (
	"os"
	"runtime"
	"runtime/debug"
	gauges "runtime/metrics"
)

const (
	usualPercent = 400
	// From muchAlive bytes on, as while a database stands still and requests wait, there is less to gain and more to hold.
	muchAlive   = 6 << 20
	muchPercent = 200
)

// PaceGC says how often Go's garbage collector runs, unless GOGC does. The heap of a service is a few MiB: at Go's default of
// 100 percent the collector runs many times a second under load, and 400 trades some 20 MiB for it; 200 where much is alive.
func PaceGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(usualPercent)
	pace(usualPercent)
}

// pace looks at what is alive once the next collection has ended, and so on.
func pace(percent int) {
	type sentinel struct{ _ *sentinel } // garbage from the first: its cleanup runs after the next collection
	runtime.AddCleanup(new(sentinel), func(percent int) {
		if wanted := gcPercent(liveHeap()); wanted != percent {
			debug.SetGCPercent(wanted)
			percent = wanted
		}
		pace(percent)
	}, percent)
}

func liveHeap() uint64 {
	sample := []gauges.Sample{{Name: "/gc/heap/live:bytes"}}
	gauges.Read(sample)
	return sample[0].Value.Uint64()
}

func gcPercent(live uint64) int {
	if live > muchAlive {
		return muchPercent
	}
	return usualPercent
}
