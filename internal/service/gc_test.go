package service

import (
	"runtime"
	"runtime/debug"
	gauges "runtime/metrics"
	"testing"
	"time"
)

// The percentage follows what is alive, down and up again.
func TestPaceGC(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	PaceGC()
	reaches := func(when string, want uint64) {
		t.Helper()
		sample := []gauges.Sample{{Name: "/gc/gogc:percent"}}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			runtime.GC()
			if gauges.Read(sample); sample[0].Value.Uint64() == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %d percent, want %d", when, sample[0].Value.Uint64(), want)
			}
		}
	}
	reaches("little is alive", usualPercent)
	alive := make([]byte, 2*muchAlive)
	reaches("much is alive", muchPercent)
	runtime.KeepAlive(alive)
	reaches("little is alive again", usualPercent)
}
