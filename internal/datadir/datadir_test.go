package datadir

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/almanacdb/almanac/internal/fault"
)

func mustOpen(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// refused checks that path is not opened, for the right reason, with a remedy, and that
// the error names the directory.
func refused(t *testing.T, path string, kind fault.Kind) {
	t.Helper()
	d, err := Open(path)
	if err == nil {
		d.Close()
		t.Fatalf("%s was opened", path)
	}
	f := fault.As(err)
	if f.Kind != kind || f.Remedy == "" || !strings.Contains(f.Error(), path) {
		t.Fatalf("kind %v, %q, remedy %q", f.Kind, f, f.Remedy)
	}
}

func TestCreateAndReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d := mustOpen(t, path)
	if d.Path() != path || d.Log() != filepath.Join(path, "log") || d.State() != filepath.Join(path, "state") {
		t.Fatal(d.Path(), d.Log(), d.State())
	}
	if err := os.MkdirAll(d.Log(), 0o750); err != nil {
		t.Fatal(err)
	}
	d.Close()
	mustOpen(t, path).Close()
}

// TestSecondProcess runs this test again as another process while the directory is held.
func TestSecondProcess(t *testing.T) {
	if path := os.Getenv("ALMANAC_TEST_DATADIR"); path != "" {
		refused(t, path, fault.Unavailable)
		return
	}
	path := t.TempDir()
	d := mustOpen(t, path)
	refused(t, path, fault.Unavailable) // a second time in this process
	cmd := exec.Command(os.Args[0], "-test.run=^TestSecondProcess$")
	cmd.Env = append(os.Environ(), "ALMANAC_TEST_DATADIR="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d.Close()
	mustOpen(t, path).Close()
}

func TestUnknownFormats(t *testing.T) {
	path := t.TempDir()
	mustOpen(t, path).Close()
	for text, kind := range map[string]fault.Kind{
		formatWord + "0\n":  fault.Unimplemented,
		formatWord + "99\n": fault.Unimplemented,
		formatWord + "one":  fault.Corrupt,
		"":                  fault.Corrupt,
		"1\n":               fault.Corrupt,
	} {
		if err := os.WriteFile(filepath.Join(path, formatFile), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		refused(t, path, kind)
		if b, _ := os.ReadFile(filepath.Join(path, formatFile)); string(b) != text {
			t.Fatalf("FORMAT was rewritten to %q", b)
		}
	}
}

func TestForeignDirectories(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "thesis.tex"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	refused(t, path, fault.Invalid)
	if entries, _ := os.ReadDir(path); len(entries) != 1 {
		t.Fatal("a foreign directory was written to")
	}
	refused(t, filepath.Join(path, "thesis.tex"), fault.Invalid)
	refused(t, filepath.Join(path, "thesis.tex", "below"), fault.Invalid)

	// A first start that was cut off is taken up again.
	path = t.TempDir()
	for _, name := range []string{lockFile, formatFile + ".tmp"} {
		if err := os.WriteFile(filepath.Join(path, name), []byte("alm"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, path).Close()
	mustOpen(t, path).Close()
}
