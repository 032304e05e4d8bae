package bench

// CatchUp is how fast a system was after what moves its events had been away.
type CatchUp struct {
	System          string  `json:"system"`
	DownSeconds     float64 `json:"down_seconds"`
	Rate            int     `json:"rate"`          // orders/s meanwhile
	Waiting         int     `json:"waiting"`       // events not sent when it was back; each has an answer
	StartSeconds    float64 `json:"start_seconds"` // of its start, until all of it works
	Seconds         float64 `json:"seconds"`       // from the beginning of its start until all orders were settled
	EventsPerSecond float64 `json:"events_per_second"`
	EventsPerOrder  float64 `json:"events_per_order"`
}

// The pieces whose ceilings say what PostgreSQL alone allows.
const (
	CeilingOrder = "order transaction, orders"
	CeilingStep  = "step transaction (stock), steps"
)

// Ceiling is how fast a piece alone can be, on the same machine and settings.
type Ceiling struct {
	Name        string  `json:"name"`
	Concurrency int     `json:"concurrency"` // with which it was fastest
	Batch       int     `json:"batch"`       // rows of a transaction
	PerSecond   float64 `json:"per_second"`  // orders, steps or records
}
