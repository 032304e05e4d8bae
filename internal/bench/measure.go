package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// sample is what the processes have used and the engines have done so far.
type sample struct {
	at     time.Time
	cpu    map[string]time.Duration
	disk   map[string]disk
	memory map[string]float64 // MiB
	// Of all processors.
	busy, idle, stolen time.Duration
	wal, fullPages     int64 // bytes, images
	batch              map[string]batches
}

// disk is what a process has had read and written, in bytes.
type disk struct{ read, written int64 }

// batches counts the transactions and events of a service's inbox.
type batches struct{ transactions, events float64 }

// loadGenerator is the name of this process.
const loadGenerator = "load-generator"

// askEngines reads what services and PostgreSQL have counted.
func (s *sample) askEngines(ctx context.Context, t Target) error {
	s.batch = map[string]batches{}
	for name, urls := range map[string][]string{"order": t.OrderURLs, "stock": t.StockURLs, "payment": t.PaymentURLs} {
		var sum batches
		for _, url := range urls {
			b, err := readBatches(ctx, url)
			if err != nil {
				return err
			}
			sum.transactions, sum.events = sum.transactions+b.transactions, sum.events+b.events
		}
		s.batch[name] = sum
	}
	return t.DB.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, wal_fpi FROM pg_stat_wal`).Scan(&s.wal, &s.fullPages)
}

// readProcesses reads what the kernel has counted.
func (s *sample) readProcesses(t Target) {
	s.cpu, s.disk, s.memory = map[string]time.Duration{}, map[string]disk{}, map[string]float64{}
	s.at = time.Now()
	for name, pid := range t.Processes {
		if name == "postgres" {
			s.postgres(pid)
			continue
		}
		s.cpu[name] = processCPU(pid)
		s.disk[name], s.memory[name] = processDisk(pid), resident(pid)
	}
	s.cpu[loadGenerator], s.memory[loadGenerator] = processCPU(os.Getpid()), resident(os.Getpid())
	text, _ := os.ReadFile("/proc/stat")
	s.busy, s.idle, s.stolen = processors(string(text))
}

// usage adds what happened between two samples, per order.
func (p *Point) usage(before, after sample) {
	n, seconds := float64(max(p.Sent, 1)), after.at.Sub(before.at).Seconds()
	p.CPU, p.Cores, p.Batch = map[string]float64{}, map[string]float64{}, map[string]float64{}
	p.Read, p.Written, p.Memory = map[string]float64{}, map[string]float64{}, after.memory
	p.OtherCores = (after.busy - before.busy).Seconds() / seconds
	for name, used := range after.cpu {
		used -= before.cpu[name]
		p.CPU[name] = round(float64(used.Microseconds())/n, 10)
		p.Cores[name] = round(used.Seconds()/seconds, 100_000)
		p.OtherCores -= used.Seconds() / seconds
	}
	for name, d := range after.disk {
		// What an ended child of PostgreSQL had is gone from the sum.
		p.Read[name] = math.Round(float64(max(0, d.read-before.disk[name].read)) / n)
		p.Written[name] = math.Round(float64(max(0, d.written-before.disk[name].written)) / n)
	}
	for name, b := range after.batch {
		if tx := b.transactions - before.batch[name].transactions; tx > 0 {
			p.Batch[name] = round((b.events-before.batch[name].events)/tx, 10)
		}
	}
	p.WALPerOrder = math.Round(float64(after.wal-before.wal) / n)
	p.FullPages = round(float64(after.fullPages-before.fullPages)/n, 1000)
	p.IdleCores = round((after.idle-before.idle).Seconds()/seconds, 100)
	p.StolenCores = round((after.stolen-before.stolen).Seconds()/seconds, 100)
	p.OtherCores = round(max(0, p.OtherCores), 100)
}

func round(v, to float64) float64 { return math.Round(v*to) / to }

// tick is the unit of /proc: USER_HZ is 100 on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// processCPU is the user and system time of a process, with that of its threads that have ended.
//
// It is read from the process's CPU clock, which is exact to some nanoseconds. The utime and stime of /proc/PID/stat are the same
// sum in ticks: an idle process uses less than one in a second, and each of PostgreSQL's many processes would be cut by up
// to two. /proc/PID/task/*/schedstat is as fine as the clock, and forgets threads that have ended, as a JVM's do. So
// the clock is right for idle and for busy processes; ticks are used where it cannot be read.
func processCPU(pid int) time.Duration {
	if pid <= 0 { // to the kernel the caller
		return 0
	}
	if used, ok := cpuClock(pid); ok {
		return used
	}
	return ticks(pid, 14, 15)
}

// endedChildrenCPU is what the children used that a process has waited for. Only ticks tell it: one sum a process,
// wrong by two of them at most.
func endedChildrenCPU(pid int) time.Duration { return ticks(pid, 16, 17) }

// ticks sums fields of /proc/PID/stat, which are numbered as in proc_pid_stat(5).
func ticks(pid int, fields ...int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	all := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // from field 3 on: the name before may hold anything
	var sum int64
	for _, f := range fields {
		v, _ := strconv.ParseInt(all[f-3], 10, 64)
		sum += v
	}
	return time.Duration(sum) * tick
}

// postgres adds the postmaster and its children, walsenders apart.
func (s *sample) postgres(postmaster int) {
	s.cpu["postgres"], s.cpu["walsenders"] = processCPU(postmaster)+endedChildrenCPU(postmaster), 0
	all := processDisk(postmaster)
	defer func() { s.disk["postgres"] = all }()
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", postmaster, postmaster))
	if err != nil {
		return
	}
	for _, child := range strings.Fields(string(list)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			continue
		}
		d := processDisk(pid)
		all.read, all.written = all.read+d.read, all.written+d.written
		title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.Contains(title, []byte("walsender")) {
			s.cpu["walsenders"] += processCPU(pid)
		} else {
			s.cpu["postgres"] += processCPU(pid)
		}
	}
}

// processDisk is zero for a process whose counters may not be read.
func processDisk(pid int) (d disk) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		v, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "read_bytes":
			d.read = v
		case "write_bytes":
			d.written = v
		}
	}
	return d
}

// resident is the memory of a process in MiB.
func resident(pid int) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return round(float64(pages)*float64(os.Getpagesize())/(1<<20), 10)
}

// processors reads the times of all processors together from /proc/stat. Stolen is what they would have worked and could
// not, because the machine's host had others run: it is neither busy nor idle.
func processors(stat string) (busy, idle, stolen time.Duration) {
	line, _, _ := strings.Cut(stat, "\n")
	for i, field := range strings.Fields(line) {
		v, _ := strconv.ParseInt(field, 10, 64)
		switch i {
		case 1, 2, 3, 6, 7: // user, nice, system, irq, softirq
			busy += time.Duration(v) * tick
		case 4, 5: // idle, iowait
			idle += time.Duration(v) * tick
		case 8:
			stolen = time.Duration(v) * tick
		}
	}
	return busy, idle, stolen
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
