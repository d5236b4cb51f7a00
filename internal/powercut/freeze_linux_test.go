package powercut

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/almanacdb/almanac/internal/proctest"
)

// freeze keeps a process from running ever again. What the kernel is doing for it goes on.
func freeze(pid int) error {
	if pid == 0 || unix.Kill(pid, unix.SIGSTOP) != nil {
		return nil // it has ended
	}
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		frozen, err := isFrozen(pid)
		if frozen || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d goes on though it was stopped", pid)
		}
	}
}

// isFrozen says whether each thread has ended, is stopped, or waits for a disk. What waits
// stops before it comes back from the kernel, which is sure once another one has stopped.
func isFrozen(pid int) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false, err
	}
	stopped, waiting := 0, 0
	for _, name := range threads {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		state := bytes.TrimSpace(b[bytes.LastIndexByte(b, ')')+1:]) // it follows the name
		if len(state) == 0 {
			return false, fmt.Errorf("%s does not parse: %q", name, b)
		}
		switch state[0] {
		case 'T':
			stopped++
		case 'D':
			waiting++
		case 'Z', 'X':
		default:
			return false, nil
		}
	}
	return stopped > 0 || waiting == 0, nil
}

// syncerFile names the file that a process started by TestFrozenBeforeTheCut writes to.
const syncerFile = "ALMANAC_POWER_SYNCER"

// syncer appends a byte at a time to a file, and another one to its output once it is synced.
func syncer(name string) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	for err == nil {
		if _, err = f.Write([]byte{'x'}); err == nil {
			err = unix.Fdatasync(int(f.Fd()))
		}
		if err == nil {
			_, err = os.Stdout.Write([]byte{'x'})
		}
	}
	fmt.Fprintln(os.Stderr, err)
}

// What a process said that it had synced is there after a cut. Without the freeze it often is
// not: a file system that is shut down lets syncs succeed that did nothing.
func TestFrozenBeforeTheCut(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			needPower(t, "losetup", "mkfs."+kind)
			d := newDisk(t, kind)
			for round := range 40 {
				frozenRound(t, d, round)
			}
		})
	}
}

func frozenRound(t *testing.T, d *disk, round int) {
	const syncers = 3
	var cmds [syncers]*exec.Cmd
	var outs [syncers]io.Reader
	for i := range syncers {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), fmt.Sprintf("%s=%s/%d-%d", syncerFile, d.dir, round, i))
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill() })
		cmds[i], outs[i] = c, bufio.NewReader(out)
		if _, err := io.ReadFull(outs[i], make([]byte, 1)); err != nil {
			t.Fatalf("nothing was synced: %v", err)
		}
	}
	proctest.Pause(t.Context(), time.Duration(10+round)*time.Millisecond)
	for _, c := range cmds {
		if err := freeze(c.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.cut(); err != nil {
		t.Fatal(err)
	}
	proctest.Pause(t.Context(), 10*time.Millisecond)
	var said [syncers]int64
	for i, c := range cmds {
		_ = c.Process.Kill()
		n, err := io.Copy(io.Discard, outs[i])
		if err != nil {
			t.Fatal(err)
		}
		said[i] = n + 1
		_ = c.Wait()
	}
	d.power(t)
	for i := range syncers {
		name := fmt.Sprintf("%s/%d-%d", d.dir, round, i)
		if st, err := os.Stat(name); err != nil || st.Size() < said[i] {
			t.Fatalf("round %d: %d bytes were said to be synced, and are not: %v, %v", round, said[i], st.Size(), err)
		}
	}
}
