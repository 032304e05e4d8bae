package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// sample is what the processes have used and the engines have done so far.
type sample struct {
	at    time.Time
	cpu   map[string]time.Duration
	idle  time.Duration // of all processors
	wal   int64         // bytes
	batch map[string]batches
}

// batches counts the transactions and events of a service's inbox.
type batches struct{ transactions, events float64 }

func measure(ctx context.Context, t Target) (sample, error) {
	s := sample{at: time.Now(), cpu: map[string]time.Duration{}, batch: map[string]batches{}}
	if err := t.DB.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint`).Scan(&s.wal); err != nil {
		return s, err
	}
	for name, pid := range t.Processes {
		if name == "postgres" {
			s.cpu["postgres"], s.cpu["walsenders"] = postgresCPU(pid)
			continue
		}
		s.cpu[name] = processCPU(pid, false)
	}
	s.cpu["load generator"] = processCPU(os.Getpid(), false)
	s.idle = idle()
	for name, url := range map[string]string{"order": t.OrderURL, "stock": t.StockURL, "payment": t.PaymentURL} {
		b, err := readBatches(ctx, url)
		if err != nil {
			return s, err
		}
		s.batch[name] = b
	}
	return s, nil
}

// fill adds what happened between two samples, per order.
func (p *Point) fill(before, after sample) {
	n := float64(max(p.Sent, 1))
	p.CPU, p.Batch = map[string]float64{}, map[string]float64{}
	for name, used := range after.cpu {
		p.CPU[name] = float64((used - before.cpu[name]).Microseconds()) / n
	}
	for name, b := range after.batch {
		if tx := b.transactions - before.batch[name].transactions; tx > 0 {
			p.Batch[name] = (b.events - before.batch[name].events) / tx
		}
	}
	p.WALPerOrder = float64(after.wal-before.wal) / n
	p.IdleCores = (after.idle - before.idle).Seconds() / after.at.Sub(before.at).Seconds()
}

// tick is the unit of /proc: USER_HZ is 100 on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// processCPU is the user and system time of a process, with what its ended children
// used if asked for.
func processCPU(pid int, children bool) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	last := 13 // utime, stime are fields 14, 15 of the line, 11 and 12 after the name
	if children {
		last = 15
	}
	var sum int64
	for _, f := range fields[11:last] {
		v, _ := strconv.ParseInt(f, 10, 64)
		sum += v
	}
	return time.Duration(sum) * tick
}

// postgresCPU is the time of the postmaster and its children, walsenders apart.
func postgresCPU(postmaster int) (backends, walsenders time.Duration) {
	backends = processCPU(postmaster, true)
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", postmaster, postmaster))
	if err != nil {
		return backends, 0
	}
	for _, child := range strings.Fields(string(list)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			continue
		}
		title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.Contains(title, []byte("walsender")) {
			walsenders += processCPU(pid, false)
		} else {
			backends += processCPU(pid, false)
		}
	}
	return backends, walsenders
}

// idle is the idle time of all processors together.
func idle() time.Duration {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return 0
	}
	v, _ := strconv.ParseInt(fields[4], 10, 64)
	return time.Duration(v) * tick
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// readBatches reads the counters of a service's inbox from its metrics.
func readBatches(ctx context.Context, url string) (b batches, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return b, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return b, fmt.Errorf("metrics: %w", err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(io.LimitReader(res.Body, 4<<20))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch {
		case strings.HasPrefix(name, "inbox_events_total"):
			b.events += v
		case name == "inbox_transaction_duration_seconds_count":
			b.transactions = v
		}
	}
	return b, lines.Err()
}
