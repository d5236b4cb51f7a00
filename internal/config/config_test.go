package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/almanacdb/almanac/internal/fault"
)

// load reads settings from a file's text, the environment and flags.
func load(t *testing.T, file string, env map[string]string, args ...string) (*Config, error) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	f := pflag.NewFlagSet("start", pflag.ContinueOnError)
	Flags(f)
	if file != "" {
		path := filepath.Join(t.TempDir(), "almanac.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(f)
}

func TestDefaults(t *testing.T) {
	c, err := load(t, "", nil, "--data-dir", "/d")
	if err != nil {
		t.Fatal(err)
	}
	n := c.Node
	if n.DataDir != "/d" || n.Listen != "127.0.0.1:7400" || n.Peer != "127.0.0.1:7401" || n.HTTP != "127.0.0.1:7402" ||
		n.Memory != 2<<30 || n.Insecure || n.MaxClockOffset != 500*time.Millisecond || len(n.Join) != 0 ||
		c.LogLevel != slog.LevelInfo || c.LogFormat != "text" {
		t.Errorf("%+v", c)
	}
}

// Flags win over the environment, it over the file, that over the defaults; each setting
// for itself.
func TestPrecedence(t *testing.T) {
	const file = "data-dir: /file\nlisten: 127.0.0.1:1\npeer: 127.0.0.1:1\nmemory: 1GiB\nlog-format: json\n"
	env := map[string]string{"ALMANAC_LISTEN": "127.0.0.1:2", "ALMANAC_PEER": "127.0.0.1:2", "ALMANAC_LOG_LEVEL": "debug"}
	// A flag wins even where it says what is the default.
	c, err := load(t, file, env, "--peer", "127.0.0.1:3", "--log-format", "text")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ what, got, want string }{
		{"flag over all", c.Node.Peer, "127.0.0.1:3"},
		{"default as flag over file", c.LogFormat, "text"},
		{"environment over file", c.Node.Listen, "127.0.0.1:2"},
		{"environment over default", c.LogLevel.String(), "DEBUG"},
		{"file over default", c.Node.DataDir, "/file"},
		{"default", c.Node.HTTP, "127.0.0.1:7402"},
	} {
		if x.got != x.want {
			t.Errorf("%s: %s, not %s", x.what, x.got, x.want)
		}
	}
	if c.Node.Memory != 1<<30 {
		t.Errorf("memory of the file: %d", c.Node.Memory)
	}
}

func TestJoin(t *testing.T) {
	want := []string{"a:1", "b:2"}
	for name, x := range map[string]struct {
		file string
		env  map[string]string
		args []string
	}{
		"flag once":            {args: []string{"--join", "a:1,b:2"}},
		"flag twice":           {args: []string{"--join", "a:1", "--join", "b:2"}},
		"environment":          {env: map[string]string{"ALMANAC_JOIN": "a:1,b:2"}},
		"file, a list":         {file: "join: [a:1, b:2]\n"},
		"file, as flags do it": {file: "join: a:1,b:2\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := load(t, x.file, x.env, append(x.args, "--data-dir", "/d")...)
			if err != nil || !slices.Equal(c.Node.Join, want) {
				t.Errorf("%v, %v", c, err)
			}
		})
	}
}

func TestTypesInAFile(t *testing.T) {
	c, err := load(t, "data-dir: /d\nmemory: 1000000000\ninsecure: true\nmax-clock-offset: 250ms\n", nil)
	if err != nil || c.Node.Memory != 1e9 || !c.Node.Insecure || c.Node.MaxClockOffset != 250*time.Millisecond {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestRefusals(t *testing.T) {
	for name, x := range map[string]struct {
		file string
		env  map[string]string
		args []string
		says string
	}{
		"unknown setting":         {file: "data_dir: /d\n", says: `no setting "data_dir"`},
		"nested setting":          {file: "log:\n  level: debug\n", says: `no setting "log.level"`},
		"a file names a file":     {file: "config: other.yaml\n", says: `no setting "config"`},
		"no YAML":                 {file: "{{{", says: "configuration file"},
		"missing file":            {args: []string{"--config", "/nowhere.yaml"}, says: "/nowhere.yaml"},
		"no size":                 {args: []string{"--memory", "lots"}, says: "--memory"},
		"no level":                {args: []string{"--log-level", "loud"}, says: "--log-level"},
		"no format":               {args: []string{"--log-format", "xml"}, says: "--log-format"},
		"no duration":             {env: map[string]string{"ALMANAC_MAX_CLOCK_OFFSET": "soon"}, says: "--max-clock-offset"},
		"a duration without unit": {file: "max-clock-offset: 500\n", says: "--max-clock-offset"},
		"no truth":                {env: map[string]string{"ALMANAC_INSECURE": "perhaps"}, says: "--insecure"},
	} {
		t.Run(name, func(t *testing.T) {
			args := x.args
			if x.file == "" {
				args = append(args, "--data-dir", "/d")
			}
			_, err := load(t, x.file, x.env, args...)
			if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%v", err)
			}
			if f := fault.As(err); f != nil && f.Remedy == "" {
				t.Error("no remedy")
			}
		})
	}
}

// The environment may hold what other programs of the same name read.
func TestUnknownEnvironmentIsIgnored(t *testing.T) {
	if _, err := load(t, "", map[string]string{"ALMANAC_ENDPOINTS": "a:1"}, "--data-dir", "/d"); err != nil {
		t.Error(err)
	}
}

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "17B": 17, "1KB": 1000, "1KiB": 1024, "512MiB": 512 << 20, "2GiB": 2 << 30, "2 GiB": 2 << 30,
		"1.5GiB": 3 << 29, "1TB": 1e12, "1TiB": 1 << 40, "3MB": 3e6, "3GB": 3e9, "4194304TiB": 1 << 62,
	} {
		if got, err := ParseBytes(s); err != nil || got != want {
			t.Errorf("%q is %d, %v; not %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "GiB", "-1", "-1GiB", "1gib", "1G", "lots", "1 2", "NaN", "NaNGiB", "Inf", "InfB", "1e400", "4194305TiB", "1GiBB"} {
		if got, err := ParseBytes(s); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q is %d, %v", s, got, err)
		}
	}
}
