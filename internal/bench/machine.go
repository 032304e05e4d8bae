package bench

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Machine describes where a measurement was made. dir is a folder that has, or will have, the stacks' data.
func Machine(dir string) map[string]any {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return map[string]any{
		"cpus": runtime.NumCPU(), "os": runtime.GOOS, "arch": runtime.GOARCH, "go": runtime.Version(), "cpu": cpuModel(), "memory_mib": memory(),
		"kernel": strings.TrimSpace(string(kernel)), "filesystem": filesystem(string(mounts), dir),
	}
}

// filesystem is the type of the file system that has a folder, by /proc/PID/mountinfo; empty if that does not tell.
func filesystem(mountinfo, dir string) (kind string) {
	longest := -1
	for line := range strings.Lines(mountinfo) {
		mount, source, _ := strings.Cut(line, " - ")
		fields, after := strings.Fields(mount), strings.Fields(source)
		if len(fields) < 5 || len(after) == 0 {
			continue
		}
		point := strings.ReplaceAll(fields[4], `\040`, " ")
		inside := point == "/" || dir == point || strings.HasPrefix(dir, point+"/")
		if inside && len(point) >= longest { // of two on one point the later hides the other
			longest, kind = len(point), after[0]
		}
	}
	return kind
}

// memory is the machine's, in MiB.
func memory() int64 {
	text, _ := os.ReadFile("/proc/meminfo")
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	kib, _ := strconv.ParseInt(fields[1], 10, 64)
	return kib / 1024
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
