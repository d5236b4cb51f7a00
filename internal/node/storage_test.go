package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
)

// failing makes writes and syncs of one store fail once broken is set.
func failing(store string, broken *atomic.Bool, kinds ...errorfs.OpKind) func(string, *engine.Options) {
	return func(s string, o *engine.Options) {
		if s != store {
			return
		}
		o.FlushAge = 50 * time.Millisecond
		o.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
			for _, k := range kinds {
				if op.Kind == k && broken.Load() {
					return syscall.EIO
				}
			}
			return nil
		}))
	}
}

var syncs = []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo}

// S6: after a log store that can't be synced nothing is promised any more.
func TestNodeStopsWhenItsLogCannotBeSynced(t *testing.T) {
	var broken atomic.Bool
	o := testOptions(t.TempDir())
	o.Storage = failing("log", &broken, syncs...)
	n := start(t, o)
	c := connect(t, n)
	put(t, c, "a", "kept")
	broken.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.KV.Put(ctx, []byte("a"), []byte("lost")); err == nil {
		t.Error("a write that was not synced was acknowledged")
	}
	select {
	case err := <-n.Failed():
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("the node stops because of %v", err)
		}
	case <-within(t, 10*time.Second).Done():
		t.Fatal("the node goes on")
	}
	resp, err := http.Get("http://" + n.ports.http.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		t.Errorf("a failed node is ready: %s", body)
	}
	http.DefaultClient.CloseIdleConnections()
	if kv, err := c.KV.Get(ctx, []byte("a")); err == nil && string(kv.Value) != "kept" {
		t.Errorf("a failed node serves %q", kv.Value)
	}
	stop(n)

	o.Storage = nil
	c = connect(t, start(t, o))
	kv, err := c.KV.Get(within(t, 20*time.Second), []byte("a"))
	if err != nil || kv == nil || string(kv.Value) != "kept" && string(kv.Value) != "lost" {
		t.Errorf("after the restart: %v %v", kv, err)
	}
}

// The state store is rebuilt from the log, so a disk that fails for a while is retried,
// and what was acknowledged meanwhile is there after a restart.
func TestStateStoreThatCannotFlushLosesNothing(t *testing.T) {
	var broken atomic.Bool
	o := testOptions(t.TempDir())
	o.Storage = failing("state", &broken, append(syncs, errorfs.OpFileWrite)...)
	n := start(t, o)
	c := connect(t, n)
	put(t, c, "a", "1")
	broken.Store(true)
	put(t, c, "b", strings.Repeat("2", 1000))
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	stopped.Store(n, true)
	n.Stop(ctx)

	o.Storage = nil
	c = connect(t, start(t, o))
	wantValue(t, c, "a", "1")
	wantValue(t, c, "b", strings.Repeat("2", 1000))
}

// S6: damage that a read finds is refused to the reader by file, and ends the node.
func TestNodeStopsWhenAReadFindsDamage(t *testing.T) {
	dir := t.TempDir()
	n := start(t, testOptions(dir))
	c := connect(t, n)
	value := strings.Repeat("damage me", 1000)
	put(t, c, "a", value)
	stop(n)
	tables, err := filepath.Glob(filepath.Join(dir, "state", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	damaged := ""
	for _, path := range tables {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(b, []byte("damage me")); at >= 0 {
			b[at] ^= 1
			damaged = path
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if damaged == "" {
		t.Fatal("no file holds the value")
	}
	n, err = Start(testOptions(dir))
	if err == nil {
		t.Cleanup(func() { stop(n) })
		c = connect(t, n)
		if kv, err := c.KV.Get(within(t, 10*time.Second), []byte("a")); err == nil {
			t.Errorf("served %.40q", kv.Value)
		}
		select {
		case err = <-n.Failed():
		case <-within(t, 10*time.Second).Done():
			t.Fatal("the node goes on")
		}
	}
	if f := fault.As(err); f.Kind != fault.Corrupt || f.Remedy == "" || !strings.Contains(err.Error(), damaged) {
		t.Errorf("the node stops because of %v (%v)", err, f.Remedy)
	}
}
