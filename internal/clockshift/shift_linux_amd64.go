package clockshift

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Go program asks the kernel's vDSO for the time, a small library that the kernel maps into each
// process. LD_PRELOAD does not reach it, and a time namespace leaves the time of day alone. So the
// function clock_gettime of the vDSO is replaced in the one process, in its private copy of the page, by one that makes the
// system call and adds an offset to the time of day. The monotonic clock stays as it is, as with
// a real jump of the clock.

// shiftedClock is clock_gettime(clock, time) with an offset at shiftedOffset:
//
//	mov eax, 228; syscall        the system call clock_gettime
//	test edi, edi; jne end       only CLOCK_REALTIME
//	movabs rcx, OFFSET
//	add [rsi], rcx               seconds
//	end: xor eax, eax; ret
var shiftedClock = []byte{
	0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05,
	0x85, 0xff, 0x75, 0x0d,
	0x48, 0xb9, 0, 0, 0, 0, 0, 0, 0, 0,
	0x48, 0x01, 0x0e,
	0x31, 0xc0, 0xc3,
}

const shiftedOffset = 13

// Shift lets a process see the time of day by that much ahead; 0 restores its clock. For
// this process it is only checked whether that would work.
func Shift(pid int, by time.Duration) error {
	begin, end, err := vdso(pid)
	if err != nil {
		return err
	}
	own, ownEnd, err := vdso(os.Getpid())
	if err != nil {
		return err
	}
	// Every process has the same vDSO; this one's is as the kernel made it.
	image := make([]byte, ownEnd-own)
	mine, err := os.Open("/proc/self/mem")
	if err != nil {
		return err
	}
	defer mine.Close()
	if _, err := mine.ReadAt(image, int64(own)); err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	at, size, err := clockGettime(image)
	if err != nil {
		return err
	}
	if size < len(shiftedClock) || end-begin != ownEnd-own {
		return fmt.Errorf("clock_gettime of this kernel's vDSO has %d bytes: too few to be replaced", size)
	}
	if pid == os.Getpid() {
		if os.Geteuid() != 0 {
			return errors.New("only root may change the vDSO of a process")
		}
		return nil
	}
	code := image[at : at+len(shiftedClock)]
	if by != 0 {
		code = bytes.Clone(shiftedClock)
		binary.LittleEndian.PutUint64(code[shiftedOffset:], uint64(int64(by/time.Second)))
	}
	return stoppedOutside(pid, begin, end, func() error {
		memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer memory.Close()
		if _, err := memory.WriteAt(code, int64(begin)+int64(at)); err != nil {
			return fmt.Errorf("change the vDSO of process %d: %w", pid, err)
		}
		return nil
	})
}

// vdso is where the vDSO of a process lies.
func vdso(pid int) (begin, end uint64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			_, err := fmt.Sscanf(line, "%x-%x", &begin, &end)
			return begin, end, err
		}
	}
	return 0, 0, fmt.Errorf("process %d has no vDSO", pid)
}

// clockGettime finds the function in the image of a vDSO.
func clockGettime(image []byte) (at, size int, err error) {
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, 0, fmt.Errorf("the vDSO is not understood: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return 0, 0, fmt.Errorf("the vDSO is not understood: %w", err)
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Value+s.Size <= uint64(len(image)) {
			return int(s.Value), int(s.Size), nil
		}
	}
	return 0, 0, errors.New("the vDSO has no clock_gettime")
}

// stoppedOutside stops a process at a moment at which no thread is inside a range of its code, does
// something, and lets it go on.
func stoppedOutside(pid int, begin, end uint64, do func() error) error {
	for range 200 {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		outside, err := allOutside(pid, begin, end)
		if err == nil && outside {
			return errors.Join(do(), syscall.Kill(pid, syscall.SIGCONT))
		}
		if err := errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("process %d is always just asking for the time", pid)
}

func allOutside(pid int, begin, end uint64) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil || len(threads) == 0 {
		return false, fmt.Errorf("process %d has no threads: %w", pid, err)
	}
	for _, file := range threads {
		var fields []string
		for end := time.Now().Add(time.Second); ; time.Sleep(100 * time.Microsecond) {
			text, err := os.ReadFile(file)
			if err != nil {
				return false, err
			}
			// proc_pid_syscall(5): the last field is the program counter; "running" is not yet stopped.
			if fields = strings.Fields(string(text)); len(fields) > 1 {
				break
			}
			if time.Now().After(end) {
				return false, fmt.Errorf("a thread of process %d does not stop", pid)
			}
		}
		counter, err := strconv.ParseUint(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
		if err != nil {
			return false, err
		}
		if counter >= begin && counter < end {
			return false, nil
		}
	}
	return true, nil
}
