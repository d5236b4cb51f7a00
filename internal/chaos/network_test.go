//go:build linux && amd64

package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// network is a bridge in our own namespace, where the clients are, and behind it a
// namespace for each node.
type network struct {
	namespaces []*os.File // node i's is i-1; open, it exists
}

func host(node int) string { return fmt.Sprintf("10.77.0.%d", node) }

// newNetwork makes a network of n nodes; it goes when the test ends.
func newNetwork(t *testing.T, n int) *network {
	t.Helper()
	do := func(args ...string) {
		t.Helper()
		if err := run("", args...); err != nil {
			t.Fatal(err)
		}
	}
	do("ip", "link", "set", "lo", "up")
	do("ip", "link", "add", "br0", "type", "bridge")
	t.Cleanup(func() { _ = run("", "ip", "link", "del", "br0") })
	do("ip", "addr", "add", host(254)+"/24", "dev", "br0")
	do("ip", "link", "set", "br0", "up")
	net := &network{}
	for i := 1; i <= n; i++ {
		ns, err := newNamespace()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		net.namespaces = append(net.namespaces, ns)
		port := fmt.Sprintf("node%d", i)
		do("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", path(ns))
		t.Cleanup(func() { _ = run("", "ip", "link", "del", port) })
		do("ip", "link", "set", port, "master", "br0", "up")
		do(net.within(i, "ip", "link", "set", "lo", "up")...)
		do(net.within(i, "ip", "addr", "add", host(i)+"/24", "dev", "eth0")...)
		do(net.within(i, "ip", "link", "set", "eth0", "up")...)
	}
	return net
}

// newNamespace returns a new network namespace. The thread that made it ends with it.
func newNamespace() (*os.File, error) {
	type made struct {
		f   *os.File
		err error
	}
	c := make(chan made)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		var f *os.File
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		c <- made{f, err}
	}()
	m := <-c
	return m.f, m.err
}

// path is where other programs find one of our open files.
func path(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// within makes a command line run in a node's namespace.
func (n *network) within(node int, args ...string) []string {
	return append([]string{"nsenter", "--net=" + path(n.namespaces[node-1])}, args...)
}

// run runs a command to its end.
func run(in string, args ...string) error {
	_, err := output(in, args...)
	return err
}

func output(in string, args ...string) ([]byte, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// link is the way from one node to another.
type link struct{ from, to int }

func (l link) String() string { return fmt.Sprintf("%d→%d", l.from, l.to) }

// counts are packets that arrived at a link's end since it was made bad.
type counts struct{ dropped, passed int }

// worsen makes links bad: they lose that percentage of their packets, at random; 0 only
// counts. All other links are good.
func (n *network) worsen(bad map[link]int) error {
	for to := range n.namespaces {
		to++
		var counters, rules strings.Builder
		for l, percent := range bad {
			if l.to != to {
				continue
			}
			fmt.Fprintf(&counters, "\tcounter dropped_%d {\n\t}\n\tcounter passed_%d {\n\t}\n", l.from, l.from)
			switch percent {
			case 0:
			case 100:
				fmt.Fprintf(&rules, "\t\tip saddr %s counter name dropped_%d drop\n", host(l.from), l.from)
			default:
				fmt.Fprintf(&rules, "\t\tip saddr %s numgen random mod 100 < %d counter name dropped_%d drop\n", host(l.from), percent, l.from)
			}
			fmt.Fprintf(&rules, "\t\tip saddr %s counter name passed_%d\n", host(l.from), l.from)
		}
		script := "flush ruleset\n"
		if rules.Len() > 0 {
			script += "table ip chaos {\n" + counters.String() +
				"\tchain in {\n\t\ttype filter hook input priority 0; policy accept;\n" + rules.String() + "\t}\n}\n"
		}
		if err := run(script, n.within(to, "nft", "-f", "-")...); err != nil {
			return err
		}
	}
	return nil
}

// heal makes all links good and returns what the bad ones did.
func (n *network) heal() (map[link]counts, error) {
	found := make(map[link]counts)
	for to := range n.namespaces {
		to++
		out, err := output("", n.within(to, "nft", "-j", "list", "counters")...)
		if err != nil {
			return nil, err
		}
		if err := parseCounters(out, to, found); err != nil {
			return nil, err
		}
	}
	return found, n.worsen(nil)
}

func parseCounters(out []byte, to int, found map[link]counts) error {
	var list struct {
		Nftables []struct {
			Counter struct {
				Name    string
				Packets int
			}
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return fmt.Errorf("nft's counters: %w", err)
	}
	for _, entry := range list.Nftables {
		verb, from, ok := strings.Cut(entry.Counter.Name, "_")
		if !ok {
			continue
		}
		l := link{to: to}
		if _, err := fmt.Sscan(from, &l.from); err != nil {
			return fmt.Errorf("nft's counter %q: %w", entry.Counter.Name, err)
		}
		c := found[l]
		if verb == "dropped" {
			c.dropped = entry.Counter.Packets
		} else {
			c.passed = entry.Counter.Packets
		}
		found[l] = c
	}
	return nil
}
