package badinput

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
)

// smallDisk mounts a file system of so many MiB; grow makes it larger.
func smallDisk(t *testing.T, mib int) (dir string, grow func(mib int)) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Skipf("a small file system is needed, and this user cannot mount one: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir, func(mib int) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%dm", mib)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryThatCannotBeWritten(t *testing.T) {
	disk, _ := smallDisk(t, 1)
	if err := os.Mkdir(disk+"/data", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("cannot make a file system read-only: %v", err)
	}
	for _, dir := range []string{disk + "/data", disk + "/new", "/proc/new/data"} {
		shell{}.refused(t, exitError, "internal", "this user may", "", "start", "--data-dir", dir,
			"--listen", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--http", "127.0.0.1:0", "--memory", "128MiB")
	}
}

// On a full disk writes are refused or the node stops with the reason; with space again it
// comes back with all that was acknowledged.
func TestDiskFull(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	disk, grow := smallDisk(t, 48)
	cluster, err := localcluster.New(localcluster.Options{Binary: path, Dir: disk, Nodes: 1, Memory: "128MiB"})
	if err != nil {
		t.Fatal(err)
	}
	n := cluster.Nodes[0]
	n.LogPath = t.TempDir() + "/log" // the log needs room on another disk
	t.Cleanup(cluster.KillAll)
	if err := cluster.StartAll(); err != nil {
		t.Fatal(err)
	}
	c := connect(t, client.Options{RetryFor: time.Second}, n.Address)
	shell{n.Address}.ok(t, "kv", "put", "witness", "unharmed")
	value := make([]byte, 64<<10)
	_, _ = rand.Read(value) // does not compress
	acked := 0
	var refusal error
	for ; acked < 5000 && refusal == nil; acked++ {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, refusal = c.KV.Put(ctx, fmt.Appendf(nil, "key%d", acked), value)
		cancel()
	}
	if refusal == nil {
		t.Fatal("the disk never filled up")
	}
	acked--
	var e *client.Error
	if !errors.As(refusal, &e) || e.Remedy == "" {
		t.Errorf("refused with %#v", refusal)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(15 * time.Second); n.Running(); {
		select {
		case <-end:
			t.Log("the node goes on")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if kv, err := c.KV.Get(ctx, []byte("key0")); err == nil && (kv == nil || string(kv.Value) != string(value)) {
				t.Error("a wrong value was read")
			}
			n.Kill()
		case <-tick.C:
		}
	}
	log := n.LogTail(1 << 20)
	wantNoTrace(t, log)
	t.Logf("after %d writes: %v", acked, refusal)
	if !strings.Contains(log, "no space left on device") && !strings.Contains(log, "disk is full") {
		t.Errorf("the log does not say that the disk is full: %s", n.LogTail(4096))
	}

	// Without space a start fails or works, but never harms.
	_ = n.Start()
	for end := time.After(3 * time.Second); n.Running(); {
		select {
		case <-end:
			n.Kill()
		case <-tick.C:
		}
	}
	wantNoTrace(t, n.LogTail(1<<20))

	grow(512)
	if err := os.WriteFile(disk+"/probe", value, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	unharmed(t, n, shell{n.Address})
	back := connect(t, client.Options{}, n.Address)
	for i := range acked {
		kv, err := back.KV.Get(t.Context(), fmt.Appendf(nil, "key%d", i))
		if err != nil || kv == nil || string(kv.Value) != string(value) {
			t.Fatalf("key%d of %d is lost: %v", i, acked, err)
		}
	}
	if _, err := back.KV.Put(t.Context(), []byte("after"), []byte("1")); err != nil {
		t.Error(err)
	}
}
