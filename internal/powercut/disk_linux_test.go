package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/almanacdb/almanac/internal/proctest"
)

// disk is a file system in an image of its own.
type disk struct {
	kind   string // ext4 or xfs
	device string // the loop device
	dir    string // where it is mounted
}

const diskBytes = 1 << 30 // sparse

// newDisk makes a file system and mounts it. Both go when the test ends, after the processes
// that are started later.
func newDisk(t *testing.T, kind string) *disk {
	t.Helper()
	d := &disk{kind: kind, dir: filepath.Join(t.TempDir(), "disk")}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Truncate(image, diskBytes), os.Mkdir(d.dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	d.device = run(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", d.device).Run() })
	run(t, "mkfs."+kind, "-q", d.device)
	d.mount(t)
	t.Cleanup(func() { _ = unix.Unmount(d.dir, unix.MNT_DETACH) })
	return d
}

func (d *disk) mount(t *testing.T) {
	t.Helper()
	if err := unix.Mount(d.device, d.dir, d.kind, 0, ""); err != nil {
		t.Fatalf("mounting %s: %v", d.device, err)
	}
}

// The file systems' common request to shut down, and to flush nothing before.
const (
	shutdownRequest = 0x8004587d
	noLogFlush      = 2
)

// cut takes the power away: what was not synced is gone, and nothing is written any more.
func (d *disk) cut() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := uint32(noLogFlush)
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdownRequest, uintptr(unsafe.Pointer(&flags))); no != 0 {
		return fmt.Errorf("shutting %s down: %w", d.dir, no)
	}
	return nil
}

// power brings the file system back as it is on the disk; no process may use it.
func (d *disk) power(t *testing.T) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for err := unix.Unmount(d.dir, 0); err != nil; err = unix.Unmount(d.dir, 0) {
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			t.Fatalf("unmounting %s: %v", d.dir, err)
		}
		proctest.Pause(t.Context(), 10*time.Millisecond)
	}
	d.mount(t)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
