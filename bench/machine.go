package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// origin says what was measured, where and when.
type origin struct {
	Commit     string    `json:"commit"`
	Dirty      bool      `json:"dirty"` // the tree had changes that are not committed
	Date       time.Time `json:"date"`
	Cores      int       `json:"cores"`
	Memory     uint64    `json:"memory_bytes"`
	Kernel     string    `json:"kernel"`
	CPU        string    `json:"cpu"`
	Go         string    `json:"go"`
	Fdatasyncs *value    `json:"fdatasyncs_per_s"` // of 4 KiB appended, one after another, where the data is
	Peers      []string  `json:"peers"`
}

// look finds out about the machine and the source tree.
func look(ctx context.Context, root string) (origin, error) {
	o := origin{Date: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: cpuModel()}
	commit, err := output(ctx, root, "git", "rev-parse", "HEAD")
	if err != nil {
		return o, err
	}
	changes, err := output(ctx, root, "git", "status", "--porcelain")
	if err != nil {
		return o, err
	}
	o.Commit, o.Dirty = commit, changes != ""
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return o, fmt.Errorf("reading the kernel's name: %w", err)
	}
	o.Kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return o, fmt.Errorf("reading the size of the memory: %w", err)
	}
	o.Memory = info.Totalram * uint64(info.Unit)
	return o, nil
}

// output runs a program in a directory and returns what it says.
func output(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, complaint.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// measureSyncs returns how many times a second 4 KiB can be appended to a file of a
// directory and synced, for a while.
func measureSyncs(dir string, while time.Duration) (float64, error) {
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block, n, start := make([]byte, 4096), 0, time.Now()
	for time.Since(start) < while {
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, fmt.Errorf("syncing %s: %w", f.Name(), err)
		}
		n++
	}
	return float64(n) / time.Since(start).Seconds(), nil
}

// clockTick is the unit of CPU time in /proc, which Linux fixes for all programs.
const clockTick = 10 * time.Millisecond

// cpuTime returns the CPU time that a process has used, in user mode and in the kernel.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	return parseCPU(string(b))
}

// parseCPU reads utime and stime from /proc/PID/stat. The second field is the program's
// name in parentheses, which may hold anything.
func parseCPU(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const utime, stime = 11, 12 // counted from after the name
	if len(fields) <= stime {
		return 0, fmt.Errorf("/proc/PID/stat has too few fields: %q", stat)
	}
	var ticks uint64
	for _, f := range fields[utime : stime+1] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat holds CPU time %q: %w", f, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// residentMemory returns the bytes of a process that are in memory.
func residentMemory(pid int) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "statm"))
	if err != nil {
		return 0, err
	}
	return parseResident(string(b), int64(os.Getpagesize()))
}

// parseResident reads the second field of /proc/PID/statm, in pages.
func parseResident(statm string, pageSize int64) (int64, error) {
	fields := strings.Fields(statm)
	if len(fields) < 2 {
		return 0, fmt.Errorf("/proc/PID/statm has too few fields: %q", statm)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/statm holds %q pages: %w", fields[1], err)
	}
	return pages * pageSize, nil
}
