package service

import (
	"errors"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// usualPace is the default of PACE.
	usualPace = 12 * time.Millisecond
	// pressureFile is Linux's pressure stall information (Documentation/accounting/psi.rst): for how long, as far as processors had
	// something to do, more wanted them.
	pressureFile = "/proc/pressure/cpu"
	// Up to little nothing is spaced. It is asked anew each pressureEvery, and what it was goes out of mind within some pressureMemory.
	little         = 0.4
	pressureEvery  = 200 * time.Millisecond
	pressureMemory = time.Second
	unknown        = time.Duration(-1)
)

// Pace has transactions begin apart from each other where processors are short. Each of them wakes up some forty threads on its way
// through PostgreSQL, Connect and Kafka, however little it brings; fewer that bring more leave time to the others, and all are sooner
// done. Where processors are left over each begins at once.
//
// A nil Pace spaces nothing. [NewPace] makes one.
type Pace struct {
	most    time.Duration
	stalled func() (time.Duration, error) // since the machine has started

	mu       sync.Mutex
	asked    time.Time
	was      time.Duration // what stalled said then; unknown: nothing
	pressure float64       // 0 to 1
}

// NewPace makes one that spaces by most where each processor always has more to do, and by nothing where that cannot be told.
func NewPace(most time.Duration) *Pace { return &Pace{most: most, stalled: stalledFor, was: unknown} }

// Between is how long after the beginning of a transaction the next one begins at the earliest.
func (p *Pace) Between() time.Duration {
	if p == nil || p.most == 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if since := now.Sub(p.asked); since >= pressureEvery {
		stalled, err := p.stalled()
		if err != nil { // most systems that do not tell never will
			stalled, p.pressure = unknown, 0
		} else if p.was != unknown {
			share := float64(stalled-p.was) / float64(since)
			p.pressure += (min(share, 1) - p.pressure) * (1 - math.Exp(-float64(since)/float64(pressureMemory)))
		}
		p.asked, p.was = now, stalled
	}
	return time.Duration(float64(p.most) * max(0, p.pressure-little) / (1 - little))
}

func stalledFor() (time.Duration, error) {
	text, err := os.ReadFile(pressureFile)
	if err != nil {
		return 0, err
	}
	return parseStalled(string(text))
}

// parseStalled reads "some avg10=1.00 avg60=0.50 avg300=0.10 total=123", in µs.
func parseStalled(text string) (time.Duration, error) {
	some, _, _ := strings.Cut(text, "\n")
	_, total, found := strings.Cut(some, "total=")
	if !found || !strings.HasPrefix(some, "some ") {
		return 0, errors.New("it has no line of some processes")
	}
	us, err := strconv.ParseInt(total, 10, 64)
	return time.Duration(us) * time.Microsecond, err
}
