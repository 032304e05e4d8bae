package inbox_test

import (
	"fmt"
	"testing"
	"time"

	"outboxsaga/inbox"

	"github.com/twmb/franz-go/pkg/kgo"
)

// BenchmarkConsumer is what an event costs, its effect one row and one answer, by handler and by Config.MaxBatch. Meanwhile
// somebody reads the newest committed effects: "µs/read" is what that takes in the mean.
func BenchmarkConsumer(b *testing.B) {
	for _, c := range []struct {
		handler  string
		maxBatch int
	}{{"batch", 500}, {"each", 16}, {"each", 64}, {"each", 500}} {
		b.Run(fmt.Sprintf("%s=%d", c.handler, c.maxBatch), func(b *testing.B) {
			r := newRig(b)
			r.exec(`CREATE INDEX ON effects (n)`)
			cfg := r.config()
			cfg.MaxBatch = c.maxBatch
			if c.handler == "each" {
				cfg.Each = r.each
			} else {
				cfg.Batch = func([]inbox.Event) inbox.Batch { return &batch{rig: r} }
			}
			var sent []*kgo.Record
			for i := range b.N {
				sent = append(sent, event(fmt.Sprint("k", i%1000), fmt.Sprint(i)))
			}
			r.send(sent...)
			b.ResetTimer()
			r.start(cfg)
			var reads int
			var reading time.Duration
			for done := 0; done < b.N; reads++ {
				begin := time.Now()
				r.exec(`SELECT FROM (SELECT FROM effects ORDER BY n DESC LIMIT 100) newest`)
				reading += time.Since(begin)
				if reads%20 != 0 {
					continue
				}
				if err := r.look.QueryRow(b.Context(), `SELECT count(*) FROM effects`).Scan(&done); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(reading.Microseconds())/float64(reads), "µs/read")
		})
	}
}
