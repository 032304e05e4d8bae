package bench

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

func burn(d time.Duration) {
	for end := processCPU(os.Getpid()) + d; processCPU(os.Getpid()) < end; {
	}
}

// What is read is what was used, to less than a tick, and stays when its thread has ended.
func TestProcessCPU(t *testing.T) {
	pid := os.Getpid()
	if _, ok := cpuClock(pid); !ok {
		t.Skip("the CPU clock of a process cannot be read here")
	}
	before, coarse := processCPU(pid), ticks(pid, 14, 15)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread ends with it
		burn(50 * time.Millisecond)
	}()
	<-done
	used := processCPU(pid) - before
	if used < 50*time.Millisecond {
		t.Error("50 ms of work are", used)
	}
	// The same sum as in ticks, but for those and for what was used between the two readings.
	if off := ticks(pid, 14, 15) - coarse - used; off < -4*tick || off > 4*tick+used {
		t.Errorf("%s by the clock, %s more in ticks", used, off)
	}
	fine := processCPU(pid)
	for processCPU(pid) == fine {
	}
	if step := processCPU(pid) - fine; step >= tick {
		t.Error("a step of", step)
	}
	if processCPU(-1) != 0 || processCPU(0) != 0 || processCPU(1<<23) != 0 {
		t.Error("a process that is not there has used something")
	}
}

// PostgreSQL's children end while it is measured: what they used stays.
func TestEndedChildrenCPU(t *testing.T) {
	before := endedChildrenCPU(os.Getpid())
	if err := exec.Command("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done").Run(); err != nil {
		t.Skip(err)
	}
	if used := endedChildrenCPU(os.Getpid()) - before; used <= 0 {
		t.Error("100,000 rounds of a shell are", used)
	}
}

func TestProcessors(t *testing.T) {
	busy, idle, stolen := processors("cpu  100 20 30 4000 50 6 7 800 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if busy != 163*tick || idle != 4050*tick || stolen != 800*tick {
		t.Error(busy, idle, stolen)
	}
	if busy, idle, stolen = processors(""); busy+idle+stolen != 0 {
		t.Error(busy, idle, stolen)
	}
}

func TestUsage(t *testing.T) {
	at := time.Now()
	before := sample{at: at, cpu: map[string]time.Duration{"connect": time.Second}, busy: 10 * time.Second, idle: 20 * time.Second, stolen: time.Second}
	after := sample{at: at.Add(10 * time.Second), cpu: map[string]time.Duration{"connect": time.Second + 1234*time.Microsecond},
		busy: 12 * time.Second, idle: 34 * time.Second, stolen: 5 * time.Second}
	p := Point{Sent: 2}
	p.usage(before, after)
	if p.Cores["connect"] != 0.00012 || p.CPU["connect"] != 617 || p.OtherCores != 0.2 || p.IdleCores != 1.4 || p.StolenCores != 0.4 {
		t.Errorf("%+v", p)
	}
}
