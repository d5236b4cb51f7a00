package badinput

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/node"
)

const damageKeys = 300

func damageValue(i int) string { return fmt.Sprintf("value %d %s", i, strings.Repeat("x", 500)) }

// written returns a data directory with sorted files, a manifest and a write-ahead log in
// both stores.
func written(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	for round := range 3 {
		n, err := node.Start(quick(dir))
		if err != nil {
			t.Fatal(err)
		}
		c := connect(t, client.Options{}, n.Address())
		for i := round; i < damageKeys; i += 3 {
			if _, err := c.KV.Put(t.Context(), fmt.Appendf(nil, "key%d", i), []byte(damageValue(i))); err != nil {
				t.Fatal(err)
			}
		}
		stop(n)
	}
	return dir
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// files lists the files of a data directory that match a pattern, relative to it.
func files(t *testing.T, dir, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		list[i], _ = filepath.Rel(dir, list[i])
	}
	slices.Sort(list)
	return list
}

// judge starts a node on a data directory and reads everything. Either nothing starts,
// with an error that names the directory, or every read is refused with an error or
// answered right; with whole set, all is answered.
func judge(t *testing.T, dir string, whole bool) {
	t.Helper()
	n, err := node.Start(quick(dir))
	if err != nil {
		if whole {
			t.Errorf("the node does not start: %v", err)
		}
		wantNamed(t, dir, err)
		return
	}
	defer stop(n)
	c := connect(t, client.Options{RetryFor: -1}, n.Address())
	for i := range damageKeys {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		kv, err := c.KV.Get(ctx, fmt.Appendf(nil, "key%d", i))
		cancel()
		switch {
		case err == nil && kv != nil && string(kv.Value) == damageValue(i):
		case err == nil:
			t.Errorf("key%d: read %.40v", i, kv)
			return
		case whole:
			t.Errorf("key%d: %v", i, err)
			return
		default:
			select {
			case failed := <-n.Failed():
				wantNamed(t, dir, failed)
				return
			default:
			}
			var e *client.Error
			if !errors.As(err, &e) || e.Reason == client.ReasonInternal {
				t.Errorf("key%d: refused with %v", i, err)
			}
			return // once refused is enough
		}
	}
}

// wantNamed checks that an error says what is damaged.
func wantNamed(t *testing.T, dir string, err error) {
	t.Helper()
	text := err.Error()
	if !strings.Contains(text, dir) && !strings.Contains(text, "range ") && !strings.Contains(text, "node record") &&
		!strings.Contains(text, ".sst") && !strings.Contains(text, "replica") {
		t.Errorf("the error names no file, directory or range: %v", err)
	}
}

func TestDamagedFormat(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n, err := node.Start(quick(dir))
	if err != nil {
		t.Fatal(err)
	}
	stop(n)
	sound, err := os.ReadFile(filepath.Join(dir, "FORMAT"))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		content string
		kind    fault.Kind
	}{
		"newer":   {strings.Replace(string(sound), "1", "2", 1), fault.Unimplemented},
		"older":   {strings.Replace(string(sound), "1", "0", 1), fault.Unimplemented},
		"huge":    {strings.Replace(string(sound), "1", "99999999999999999999", 1), fault.Corrupt},
		"empty":   {"", fault.Corrupt},
		"cut":     {string(sound[:5]), fault.Corrupt},
		"garbage": {"\x00\xff\x00", fault.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "FORMAT"), []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			n, err := node.Start(quick(dir))
			if err == nil {
				stop(n)
			}
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != test.kind || f.Remedy == "" || !strings.Contains(f.Text, dir) {
				t.Errorf("error %v", err)
			}
		})
	}
	if err := os.WriteFile(filepath.Join(dir, "FORMAT"), sound, 0o600); err != nil {
		t.Fatal(err)
	}
	n, err = node.Start(quick(dir))
	if err != nil {
		t.Fatal(err)
	}
	stop(n)
}

// Every file of both stores, with a byte flipped, cut short, or gone.
func TestDamagedFiles(t *testing.T) {
	dir := written(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, pattern := range []string{
		"log/*.log", "log/*.sst", "log/MANIFEST*", "log/OPTIONS*", "log/marker*",
		"state/*.sst", "state/MANIFEST*", "state/OPTIONS*", "state/marker*",
	} {
		list := files(t, dir, pattern)
		if len(list) == 0 {
			if strings.HasSuffix(pattern, ".sst") {
				t.Errorf("no file matches %s", pattern)
			}
			continue
		}
		for _, how := range []string{"flip", "flip", "flip", "cut", "zero", "remove"} {
			if strings.HasPrefix(pattern, "log/*.log") && how != "flip" {
				continue // a log that ends early is normal, see TestTornLog
			}
			name := list[r.IntN(len(list))]
			t.Run(name+" "+how, func(t *testing.T) {
				copied := copyDir(t, dir)
				path := filepath.Join(copied, name)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if len(b) == 0 && how != "remove" {
					t.Skip("empty")
				}
				switch how {
				case "flip":
					at := r.IntN(len(b))
					b[at] ^= byte(1 << r.IntN(8))
					t.Logf("at %d of %d", at, len(b))
				case "cut":
					b = b[:r.IntN(len(b))]
				case "zero":
					at := r.IntN(len(b))
					clear(b[at:min(len(b), at+512)])
				}
				if how == "remove" {
					err = os.Remove(path)
				} else {
					err = os.WriteFile(path, b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				judge(t, copied, false)
			})
		}
	}
}

// A write that the power cut off is the log's normal end: what came before is all there.
func TestTornLog(t *testing.T) {
	dir := written(t)
	var last string
	for _, f := range files(t, dir, "log/*.log") {
		last = max(last, f) // numbers of one width
	}
	path := filepath.Join(dir, last)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tail := range []string{"", "\x00", strings.Repeat("\x00", 40_000), "\x01\x02\x03"} {
		t.Run(fmt.Sprintf("%d bytes follow", len(tail)), func(t *testing.T) {
			copied := copyDir(t, dir)
			if err := os.WriteFile(filepath.Join(copied, last), append(slices.Clone(b), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			judge(t, copied, true)
		})
	}
	t.Run("cut", func(t *testing.T) {
		// One more write, which was never acknowledged as far as this test is concerned.
		copied := copyDir(t, dir)
		n, err := node.Start(quick(copied))
		if err != nil {
			t.Fatal(err)
		}
		c := connect(t, client.Options{}, n.Address())
		if _, err := c.KV.Put(t.Context(), []byte("torn"), []byte(strings.Repeat("torn", 1000))); err != nil {
			t.Fatal(err)
		}
		crashed := copyDir(t, copied) // as a crash would leave it
		stop(n)
		list := files(t, crashed, "log/*.log")
		path := filepath.Join(crashed, slices.Max(list))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.LastIndex(string(b), "torntorn")
		if at < 0 {
			t.Fatal("the write is not in the log")
		}
		if err := os.Truncate(path, int64(at-1000)); err != nil {
			t.Fatal(err)
		}
		judge(t, crashed, true)
	})
}

// Damage in the middle of a log that is still needed is no torn write: starting without
// what follows would lose what was acknowledged.
func TestDamagedLogAfterACrash(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	n, err := node.Start(quick(dir))
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, client.Options{}, n.Address())
	for i := range damageKeys {
		if _, err := c.KV.Put(t.Context(), fmt.Appendf(nil, "key%d", i), []byte(damageValue(i))); err != nil {
			t.Fatal(err)
		}
	}
	crashed := copyDir(t, dir)
	stop(n)
	judge(t, copyDir(t, crashed), true)
	log := slices.Max(files(t, crashed, "log/*.log"))
	b, err := os.ReadFile(filepath.Join(crashed, log))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			copied := copyDir(t, crashed)
			damaged := slices.Clone(b)
			damaged[len(b)*(i+1)/10] ^= 0x10
			if err := os.WriteFile(filepath.Join(copied, log), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			judge(t, copied, false)
		})
	}
}
