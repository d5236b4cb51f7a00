package badinput

import (
	"strings"
	"testing"
)

// Exit codes.
const (
	exitError    = 1
	exitUsage    = 2
	exitDeadline = 3
)

func TestCommandsThatCannotBeDone(t *testing.T) {
	n, s := single(t)
	s.ok(t, "topic", "create", "t")
	long := strings.Repeat("k", 4<<10+1)
	for _, test := range []struct {
		name   string
		code   int
		reason string
		says   string
		in     string
		args   string // separated by |
	}{
		{"publish to no topic", exitError, "not_found", "almanac topic create nope", "", "event|publish|nope|x"},
		{"subscribe to no topic", exitError, "not_found", "almanac topic create nope", "", "event|subscribe|nope|--group|g|--timeout|5s"},
		{"describe no topic", exitError, "not_found", `topic "nope"`, "", "topic|describe|nope"},
		{"delete no topic", exitError, "not_found", `topic "nope"`, "", "topic|delete|nope"},
		{"topic exists", exitError, "already_exists", "--if-not-exists", "", "topic|create|t"},
		{"topic without a name", exitError, "invalid_argument", "empty", "", "topic|create|"},
		{"topic with a slash", exitError, "invalid_argument", "slash", "", "topic|create|a/b"},
		{"topic with a bell", exitError, "invalid_argument", "printed", "", "topic|create|a\a"},
		{"topic with a long name", exitError, "invalid_argument", "255", "", "topic|create|" + strings.Repeat("n", 256)},
		{"group with a slash", exitError, "invalid_argument", "slash", "", "event|subscribe|t|--group|a/b|--timeout|5s"},
		{"no partitions", exitUsage, "usage", "--partitions", "", "topic|create|u|--partitions|0"},
		{"too many partitions", exitError, "invalid_argument", "4096", "", "topic|create|u|--partitions|4097"},
		{"too many replicas", exitError, "invalid_argument", "1 nodes are alive", "", "topic|create|u|--replicas|2"},
		{"negative retention", exitUsage, "usage", "--retention", "", "topic|create|u|--retention|-1s"},

		{"long key", exitError, "too_large", "4096", "", "kv|put|" + long + "|v"},
		{"long key read", exitError, "too_large", "4096", "", "kv|get|" + long},
		{"empty key", exitUsage, "usage", "key", "", "kv|put||v"},
		{"future revision", exitError, "future_revision", "9223372036854775807", "", "kv|get|k|--rev|9223372036854775807"},
		{"no revision", exitUsage, "usage", "--rev", "", "kv|get|k|--rev|x"},

		{"large payload", exitError, "too_large", "4194304", strings.Repeat("p", 4<<20+1), "event|publish|t|-"},
		{"far due time", exitError, "invalid_argument", "100 years", "", "event|publish|t|x|--at|99999999999999"},
		{"due time in nanoseconds", exitError, "invalid_argument", "nanoseconds", "", "event|publish|t|x|--at|1795226232467000000"},
		{"far delay", exitError, "invalid_argument", "100 years", "", "event|publish|t|x|--in|900000h"},
		{"due before 1970", exitUsage, "usage", "before 1970", "", "event|publish|t|x|--at|-5"},
		{"due in 1066", exitUsage, "usage", "before 1970", "", "event|publish|t|x|--at|1066-10-14T09:00:00Z"},
		{"garbage time", exitUsage, "usage", "RFC 3339", "", "event|publish|t|x|--at|tomorrow"},
		{"time too long", exitUsage, "usage", "RFC 3339", "", "event|publish|t|x|--at|99999999999999999999"},
		{"negative delay", exitUsage, "usage", "--in", "", "event|publish|t|x|--in|-5s"},
		{"garbage delay", exitUsage, "usage", "--in", "", "event|publish|t|x|--in|soon"},
		{"two times", exitUsage, "usage", "exclude", "", "event|publish|t|x|--in|5s|--at|1"},
		{"long message id", exitError, "too_large", "hash", "", "event|publish|t|x|--id|" + strings.Repeat("i", 1<<16)},
		{"long ordering key", exitError, "too_large", "hash", "", "event|publish|t|x|--key|" + strings.Repeat("i", 1<<16)},
		{"no group", exitUsage, "usage", "--group", "", "event|subscribe|t"},
		{"no events", exitUsage, "usage", "--count", "", "event|publish|t|x|--count|0"},

		{"unknown command", exitUsage, "usage", "frobnicate", "", "frobnicate"},
		{"unknown flag", exitUsage, "usage", "--frobnicate", "", "kv|get|k|--frobnicate"},
		{"missing argument", exitUsage, "usage", "arg", "", "kv|get"},
		{"negative timeout", exitUsage, "usage", "--request-timeout", "", "kv|get|k|--request-timeout|-1s"},
		{"odd endpoint", exitError, "invalid_argument", "host:port", "", "kv|get|k|--endpoints|here"},
		{"nobody there", exitDeadline, "deadline_exceeded", "--endpoints", "", "kv|get|k|--request-timeout|1s|--endpoints|127.0.0.1:1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.refused(t, test.code, test.reason, test.says, test.in, strings.Split(test.args, "|")...)
		})
	}
	unharmed(t, n, s)
}

func TestStartThatCannotBeDone(t *testing.T) {
	n, s := single(t)
	dir := t.TempDir()
	for _, test := range []struct {
		name   string
		code   int
		reason string
		says   string
		args   string
	}{
		{"no directory", exitUsage, "usage", "--data-dir", ""},
		{"client port in use", exitError, "unavailable", "--listen", "--data-dir|" + dir + "/a|--listen|" + n.Address},
		{"peer port in use", exitError, "unavailable", "--peer", "--data-dir|" + dir + "/a|--listen|127.0.0.1:0|--peer|" + n.Peer},
		{"HTTP port in use", exitError, "unavailable", "--http", "--data-dir|" + dir + "/a|--listen|127.0.0.1:0|--peer|127.0.0.1:0|--http|" + n.HTTP},
		{"directory in use", exitError, "unavailable", n.Dir, "--data-dir|" + n.Dir + "|--listen|127.0.0.1:0|--peer|127.0.0.1:0|--http|127.0.0.1:0"},
		{"little memory", exitUsage, "usage", "--memory", "--data-dir|" + dir + "/a|--memory|1MiB"},
		{"garbage memory", exitUsage, "usage", "512MiB", "--data-dir|" + dir + "/a|--memory|plenty"},
		{"no number for memory", exitUsage, "usage", "--memory", "--data-dir|" + dir + "/a|--memory|NaN"},
		{"not loopback", exitError, "invalid_argument", "--insecure", "--data-dir|" + dir + "/a|--listen|0.0.0.0:0"},
		{"garbage address", exitUsage, "usage", "HOST:PORT", "--data-dir|" + dir + "/a|--listen|7400"},
		{"garbage level", exitUsage, "usage", "--log-level", "--data-dir|" + dir + "/a|--log-level|loud"},
		{"no such file", exitUsage, "usage", "nope.yaml", "--config|nope.yaml"},
		{"an argument", exitUsage, "usage", "extra", "--data-dir|" + dir + "/a|extra"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := []string{"start"}
			if test.args != "" {
				args = append(args, strings.Split(test.args, "|")...)
			}
			s.refused(t, test.code, test.reason, test.says, "", args...)
		})
	}
	unharmed(t, n, s)
}

// Every command to a cluster that is still to be formed ends with the one that forms it.
func TestEveryCommandSaysHowToFormTheCluster(t *testing.T) {
	c := processes(t, 2)
	n := c.Nodes[0]
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	s := shell{n.Address}
	command := "almanac init --endpoints " + n.Address
	for _, args := range []string{
		"kv|get|k", "kv|put|k|v", "kv|del|k", "topic|create|t", "topic|list", "topic|describe|t", "topic|delete|t",
		"event|publish|t|x", "event|subscribe|t|--group|g", "cluster|nodes", "cluster|ranges",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			o := s.run(t, "", append(strings.Split(args, "|"), "--request-timeout", "2s")...)
			if o.code == 0 || !strings.Contains(o.Remedy, command) {
				t.Errorf("exit %d: %s", o.code, o.stderr)
			}
		})
	}
	if out := s.ok(t, "cluster", "status"); !strings.Contains(out, command) {
		t.Errorf("cluster status: %s", out)
	}
	if log := n.LogTail(1 << 16); !strings.Contains(log, command) {
		t.Errorf("the log does not say to run %s: %s", command, log)
	}
	// Nobody else is there: init says so.
	s.refused(t, exitError, "unavailable", "start the", "", "init", "--request-timeout", "10s")
}
