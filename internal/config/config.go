// Package config reads how a node is to run: from flags, the environment and a file, in
// that order of precedence. It owns the names and defaults of the settings; what they
// mean is package node's.
package config

import (
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/node"
)

// Config is how a node is to run.
type Config struct {
	Node      node.Options
	LogLevel  slog.Level
	LogFormat string
}

const envPrefix = "ALMANAC_"

// Flags declares the settings, with their defaults.
func Flags(f *pflag.FlagSet) {
	f.String("config", "", "YAML file with settings named as the flags are")
	f.String("data-dir", "", "directory that this node alone keeps its data in")
	f.String("listen", "127.0.0.1:7400", "client address: almanac.v1 and the etcd v3 API")
	f.String("peer", "127.0.0.1:7401", "peer address: other nodes")
	f.String("http", "127.0.0.1:7402", "HTTP address: health checks and metrics")
	f.String("advertise", "", "client address that others use (default: --listen)")
	f.String("advertise-peer", "", "peer address that others use (default: --peer)")
	f.StringSlice("join", nil, "peer addresses of the nodes to form a cluster with, this one included")
	f.String("memory", "2GiB", "memory that the process should stay within")
	f.Bool("insecure", false, "listen on non-loopback addresses without encryption")
	f.Duration("max-clock-offset", 500*time.Millisecond, "how far a healthy node's wall clock may be off")
	f.String("max-key", "4KiB", "largest key")
	f.String("max-etcd-request", "1.5MiB", "largest etcd request that writes")
	f.String("max-payload", "4MiB", "largest event payload")
	f.String("max-batch", "16MiB", "largest request, and largest publish batch")
	f.Int("max-batch-events", 10_000, "most events in a publish batch")
	f.Int("max-connections", 10_000, "most connections of clients")
	f.Duration("max-due-ahead", 100*366*24*time.Hour, "how far ahead an event may fall due")
	f.String("log-level", "info", "debug, info, warn or error")
	f.String("log-format", "text", "text or json")
}

// Load reads the settings. The flags must be those of Flags, parsed.
func Load(f *pflag.FlagSet) (*Config, error) {
	k := koanf.New(".")
	path, _ := f.GetString("config")
	if path != "" {
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "configuration file %s", path).
				WithRemedy("name a YAML file with settings named as the flags are")
		}
		if err := unknown(k, f, path); err != nil {
			return nil, err
		}
	}
	if err := k.Load(env.Provider(".", env.Opt{Prefix: envPrefix, TransformFunc: fromEnv}), nil); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "environment")
	}
	if err := k.Load(posflag.Provider(f, ".", k), nil); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "flags")
	}
	return build(k)
}

// fromEnv turns ALMANAC_DATA_DIR into data-dir.
func fromEnv(key, value string) (string, any) {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(key, envPrefix)), "_", "-"), value
}

// unknown refuses settings that no flag has: most likely they are misspelt.
func unknown(k *koanf.Koanf, f *pflag.FlagSet, path string) error {
	for _, name := range k.Keys() {
		if f.Lookup(name) == nil || name == "config" {
			return fault.New(fault.Invalid, "configuration file %s: there is no setting %q", path, name).
				WithRemedy("see `almanac start --help`")
		}
	}
	return nil
}

// settings reads values of a kind and keeps the first error.
type settings struct {
	k   *koanf.Koanf
	err error
}

func setting[T any](s *settings, name string, parse func(string) (T, error), remedy string) T {
	text := s.k.String(name)
	v, err := parse(text)
	if err != nil && s.err == nil {
		s.err = fault.New(fault.Invalid, "--%s %q can't be read", name, text).WithRemedy("%s", remedy)
	}
	return v
}

func (s *settings) bytes(name string) int64 {
	v, err := ParseBytes(s.k.String(name))
	if err != nil && s.err == nil {
		s.err = named(name, err)
	}
	return v
}

func (s *settings) duration(name string) time.Duration {
	return setting(s, name, time.ParseDuration, "write it like 500ms or 24h")
}

func build(k *koanf.Koanf) (*Config, error) {
	s := &settings{k: k}
	c := &Config{
		LogFormat: k.String("log-format"),
		Node: node.Options{
			DataDir: k.String("data-dir"), Listen: k.String("listen"), Peer: k.String("peer"), HTTP: k.String("http"),
			Advertise: k.String("advertise"), AdvertisePeer: k.String("advertise-peer"), Join: list(k, "join"),
			Memory:         s.bytes("memory"),
			Insecure:       setting(s, "insecure", strconv.ParseBool, "use true or false"),
			MaxClockOffset: s.duration("max-clock-offset"),
			Limits: node.Limits{
				KeyBytes: int(s.bytes("max-key")), EtcdBytes: int(s.bytes("max-etcd-request")),
				PayloadBytes: int(s.bytes("max-payload")), BatchBytes: int(s.bytes("max-batch")),
				BatchEvents: setting(s, "max-batch-events", strconv.Atoi, "give a whole number"),
				Connections: setting(s, "max-connections", strconv.Atoi, "give a whole number"),
				DueAhead:    s.duration("max-due-ahead"),
			},
		},
	}
	if s.err != nil {
		return nil, s.err
	}
	if err := c.LogLevel.UnmarshalText([]byte(k.String("log-level"))); err != nil {
		return nil, fault.New(fault.Invalid, "--log-level %q", k.String("log-level")).WithRemedy("use debug, info, warn or error")
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return nil, fault.New(fault.Invalid, "--log-format %q", c.LogFormat).WithRemedy("use text or json")
	}
	return c, c.Node.Validate()
}

// list reads a setting of several values, written as a list or as the flag is.
func list(k *koanf.Koanf, name string) []string {
	if s, ok := k.Get(name).(string); ok && s != "" {
		return strings.Split(s, ",")
	}
	return k.Strings(name)
}

// named says which setting is wrong, and keeps the remedy.
func named(flag string, err error) error {
	f := fault.As(err)
	return fault.Wrap(f.Kind, err, "--%s", flag).WithRemedy("%s", f.Remedy)
}

// ParseBytes reads a size such as 512MiB, 2GiB, 1GB or 1000000.
func ParseBytes(s string) (int64, error) {
	units := []struct {
		suffix string
		size   int64
	}{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
		{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
	}
	number, size := s, int64(1)
	for _, u := range units {
		if strings.HasSuffix(s, u.suffix) {
			number, size = strings.TrimSpace(strings.TrimSuffix(s, u.suffix)), u.size
			break
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !(f >= 0 && f*float64(size) <= 1<<62) { // NaN is neither
		return 0, fault.New(fault.Invalid, "%q is not a size", s).WithRemedy("write it like 512MiB or 2GiB")
	}
	return int64(f * float64(size)), nil
}
