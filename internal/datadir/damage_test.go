package datadir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/fault"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestIdentity(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "data"))
	if rec, ok, err := d.Identity(); ok || err != nil {
		t.Fatalf("a new directory has an identity: %q %v", rec, err)
	}
	for _, rec := range []string{`{"node":1}`, `{"node":1,"known":[]}`} {
		if err := d.SaveIdentity([]byte(rec)); err != nil {
			t.Fatal(err)
		}
		if got, ok, err := d.Identity(); !ok || err != nil || string(got) != rec {
			t.Errorf("%q %v %v", got, ok, err)
		}
	}
	path := filepath.Join(d.Path(), "IDENTITY")
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sound[:len(sound)-1] {
		damaged := []byte(string(sound))
		damaged[i] ^= 0x04
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok, err := d.Identity(); ok || fault.KindOf(err) != fault.Corrupt {
			// Another case of a hexadecimal digit is the same number.
			if string(got) != `{"node":1,"known":[]}` {
				t.Errorf("byte %d: %q %v", i, got, err)
			}
		}
	}
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Stat(path)
	return err == nil
}

// fill puts a file into both stores.
func fill(t *testing.T, d *Dir, text string) {
	t.Helper()
	for _, store := range []string{d.Log(), d.State()} {
		if err := os.MkdirAll(store, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(store, "file"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func setAside(t *testing.T, d *Dir) []string {
	t.Helper()
	aside, err := d.SetAside(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return aside
}

func TestSetAside(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "data"))
	fill(t, d, "first")
	if aside := setAside(t, d); aside != nil || d.Rebuilding() {
		t.Errorf("nothing is damaged, and set aside is %v", aside)
	}
	for _, what := range []string{"file 7 is damaged", "and another"} {
		if err := d.MarkDamaged(what, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if what, ok, err := d.Damaged(); !ok || err != nil || what != "file 7 is damaged" {
		t.Errorf("%q %v %v", what, ok, err)
	}
	// Cut off after the first rename, and called again.
	mark, _, _ := strings.Cut(read(t, filepath.Join(d.Path(), "DAMAGED")), "\n")
	if err := os.Rename(d.Log(), d.Log()+".damaged-"+mark); err != nil {
		t.Fatal(err)
	}
	first := setAside(t, d)
	if len(first) != 1 || !d.Rebuilding() || exists(t, d.Log()) || exists(t, d.State()) {
		t.Errorf("set aside: %v", first)
	}
	if _, ok, _ := d.Damaged(); ok {
		t.Error("still marked")
	}
	// Damage while rebuilding: what holds the data is kept.
	fill(t, d, "second")
	if err := d.MarkDamaged("again", time.Now()); err != nil {
		t.Fatal(err)
	}
	second := setAside(t, d)
	if len(second) != 2 || !exists(t, first[0]) || !d.Rebuilding() {
		t.Errorf("set aside: %v, then %v", first, second)
	}
	// Once rebuilt, what lies there is of no use at the next damage.
	if err := d.Rebuilt(); err != nil || d.Rebuilding() {
		t.Errorf("rebuilt: %v", err)
	}
	fill(t, d, "third")
	if err := d.MarkDamaged("once more", time.Now()); err != nil {
		t.Fatal(err)
	}
	third := setAside(t, d)
	if len(third) != 2 || exists(t, first[0]) || exists(t, second[0]) || read(t, filepath.Join(third[0], "file")) != "third" {
		t.Errorf("set aside: %v, %v, %v", first, second, third)
	}
}

// An operator who distrusts a store may say so by hand.
func TestMarkWrittenByHand(t *testing.T) {
	for _, text := range []string{"", "I do not trust it\n"} {
		d := open(t, filepath.Join(t.TempDir(), "data"))
		fill(t, d, "x")
		if err := os.WriteFile(filepath.Join(d.Path(), "DAMAGED"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if what, ok, err := d.Damaged(); !ok || err != nil || what != strings.TrimSpace(text) {
			t.Errorf("%q %v %v", what, ok, err)
		}
		if aside := setAside(t, d); len(aside) != 2 || !d.Rebuilding() {
			t.Errorf("set aside: %v", aside)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
