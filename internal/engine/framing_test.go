package engine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/almanacdb/almanac/internal/fault"
)

// image returns the files of a store with a write-ahead log as a power cut leaves them
// after n synced commits of size bytes.
func image(t *testing.T, n, size int) string {
	t.Helper()
	dir := t.TempDir()
	e, err := OpenPebble(dir, Options{WAL: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for i := range n {
		b := e.NewBatch(false)
		if err := b.Set(fmt.Appendf(nil, "%04d", i), bytes.Repeat([]byte{'x'}, size)); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(true); err != nil {
			t.Fatal(err)
		}
		if i == n/2 {
			if err := e.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func newest(t *testing.T, dir, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(list) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	return slices.Max(list)
}

// opens returns how many of n keys a store holds, or the error of opening it.
func opens(dir string, n int) (int, error) {
	e, err := OpenPebble(dir, Options{WAL: true})
	if err != nil {
		return 0, err
	}
	defer e.Close()
	held := 0
	for i := range n {
		if _, ok, err := e.Get(fmt.Appendf(nil, "%04d", i)); err != nil {
			return 0, err
		} else if ok {
			held++
		}
	}
	return held, nil
}

// A flipped bit anywhere in what was synced is found, but in the last write of all, which
// looks like one that was cut off.
func TestDamageIsNotTakenForTheEnd(t *testing.T) {
	const n = 60
	for _, size := range []int{20, 900} { // within a block, over several
		dir := image(t, n, size)
		if held, err := opens(dir, n); err != nil || held != n {
			t.Fatalf("undamaged: %d, %v", held, err)
		}
		for _, pattern := range []string{"*.log", "MANIFEST-*"} {
			path := newest(t, dir, pattern)
			sound, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			end := len(bytes.TrimRight(sound, "\x00"))
			last, length := end, -1
			if pattern == "MANIFEST-*" {
				// A write whose length is damaged looks like a shorter, or a longer, one.
				for c, ok := chunkAt(sound, 0, 0); ok && c.end < end; c, ok = chunkAt(sound, c.end, 0) {
					length = c.end + 4
				}
			} else {
				last -= 3 * (size + 64) // this write says that the one before it was synced
			}
			missed := 0
			for at := 0; at < last; at += max(1, last/97) {
				if at == length || at == length+1 {
					continue
				}
				damaged := slices.Clone(sound)
				damaged[at] ^= 0x20
				if err := os.WriteFile(path, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				err := checked(dir)
				if fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), filepath.Base(path)) {
					t.Errorf("%s of %d-byte writes, offset %d of %d: %v", pattern, size, at, end, err)
					if missed++; missed > 5 {
						return
					}
				}
			}
			if err := os.WriteFile(path, sound, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A write that was cut off is no damage, however it was.
func TestCutOffWriteIsNoDamage(t *testing.T) {
	const n = 60
	dir := image(t, n, 20)
	for _, pattern := range []string{"*.log", "MANIFEST-*"} {
		path := newest(t, dir, pattern)
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sound = bytes.TrimRight(sound, "\x00")
		for _, torn := range [][]byte{
			sound,
			sound[:len(sound)-1],
			sound[:len(sound)-9],
			append(slices.Clone(sound), 0),
			append(slices.Clone(sound), 1, 2, 3),
			append(slices.Clone(sound), make([]byte, 40_000)...),
			append(slices.Clone(sound[:len(sound)-9]), make([]byte, 70_000)...),
		} {
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := checked(dir); err != nil {
				t.Errorf("%s, %d of %d bytes: %v", pattern, len(torn), len(sound), err)
			}
		}
		if err := os.WriteFile(path, sound, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSortedFileOfTheWrongSizeIsDamage(t *testing.T) {
	const n = 60
	dir := image(t, n, 20)
	path := newest(t, dir, "*.sst")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(b)-10)); err != nil {
		t.Fatal(err)
	}
	if _, err := opens(dir, n); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("cut short: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := opens(dir, n); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("gone: %v", err)
	}
}

// checked checks the files of a store that is closed.
func checked(dir string) error {
	p := &Pebble{fs: vfs.Default}
	p.po = p.pebbleOptions(Options{WAL: true})
	return p.checkFiles(dir)
}

// Options that are not what they were are damage to a file, not a mistake of who opens.
func TestDamagedOptionsAreNamed(t *testing.T) {
	for name, spoil := range map[string]func(b []byte) []byte{
		"comparer": func(b []byte) []byte { return bytes.Replace(b, []byte("almanac.v1"), []byte("almanac.v3"), 1) },
		"syntax":   func(b []byte) []byte { b[0] ^= 0x10; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			e, err := OpenPebble(dir, Options{WAL: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			list, err := filepath.Glob(filepath.Join(dir, "OPTIONS-*"))
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			b, err := os.ReadFile(list[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(list[0], spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			e, err = OpenPebble(dir, Options{WAL: true})
			if err == nil {
				e.Close()
			}
			if fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), list[0]) {
				t.Errorf("error %v", err)
			}
		})
	}
}
