package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"

	"github.com/almanacdb/almanac/internal/fault"
)

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"512MiB", "2GiB", "1.5 KB", "1000000", "1e300TiB", "-1", "NaN", "0x1p-2KiB", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseBytes(s)
		if err == nil && (n < 0 || n > 1<<62) {
			t.Errorf("%q is %d bytes", s, n)
		}
		if err != nil && fault.As(err).Remedy == "" {
			t.Errorf("%q: %v has no remedy", s, err)
		}
	})
}

// Whatever stands in a configuration file, it is read or refused with what helps.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		"data-dir: /d\nmemory: 1GiB\njoin: [a:1, b:2]\n", "join: a:1,b:2\nmax-due-ahead: 1h\n", "log-level: loud\n", "a:\n  b: 1\n",
		"memory: {x: 1}\n", "- 1\n", "x: &a [*a]\n", "\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		flags := pflag.NewFlagSet("start", pflag.ContinueOnError)
		Flags(flags)
		if err := flags.Set("config", path); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(flags); err != nil && fault.As(err).Remedy == "" {
			t.Errorf("%q: %v has no remedy", s, err)
		}
	})
}
