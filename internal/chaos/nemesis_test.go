//go:build linux && amd64

package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/chaos/wallclock"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

// stroke is one planned fault. Strike makes it, lets it last, undoes it and returns the
// proof that it fired; without one it fails.
type stroke struct {
	kind, text string
	strike     func(*chaos) (proof string, err error)
}

// role says who is struck: by what it does when the time has come.
type role string

const (
	oracle    role = "the system range's leader"
	orderer   role = "the default range's leader"
	handsOut  role = "the leader of a topic's range"
	bystander role = "a node that leads neither the system range nor the default range"
)

// deck returns strokes in random order: at least one of each kind stands among the first.
func deck(r *rand.Rand, long bool) []stroke {
	roles := []role{oracle, orderer, handsOut, bystander}
	r.Shuffle(len(roles), func(i, j int) { roles[i], roles[j] = roles[j], roles[i] })
	most := 8 * time.Second
	if long {
		most = 30 * time.Second
	}
	lasting := func(low, high time.Duration) time.Duration {
		return (low + time.Duration(r.Int64N(int64(high-low)))).Truncate(100 * time.Millisecond)
	}
	step := func() time.Duration {
		steps := []time.Duration{300 * time.Millisecond, -400 * time.Millisecond, 3 * time.Second, -7 * time.Second, time.Hour, -time.Hour, 72 * time.Hour}
		return steps[r.IntN(len(steps))]
	}
	first := []stroke{
		kill(roles[0], lasting(2*time.Second, 4*time.Second)),
		freeze(roles[1], lasting(time.Second, most)),
		partition(orderer, lasting(3*time.Second, most)), // who might answer reads that are out of date
		oneWay(roles[3], r.IntN(2) == 0, lasting(2*time.Second, most)),
		loss(5+r.IntN(26), lasting(2*time.Second, most)),
		clockStep(roles[r.IntN(4)], step(), r.IntN(2) == 0, lasting(time.Second, 3*time.Second)),
		terminate(roles[r.IntN(4)], lasting(time.Second, 3*time.Second)),
		killAll(),
	}
	rest := []stroke{
		kill(roles[1], lasting(2*time.Second, 4*time.Second)),
		kill(roles[2], lasting(2*time.Second, 4*time.Second)),
		kill(roles[3], lasting(2*time.Second, 4*time.Second)),
		freeze(roles[0], lasting(time.Second, most)),
		partition(roles[2], lasting(2*time.Second, most)),
		oneWay(roles[0], r.IntN(2) == 0, lasting(2*time.Second, most)),
		clockStep(oracle, step(), true, lasting(time.Second, 3*time.Second)),
	}
	for _, part := range [][]stroke{first, rest} {
		r.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
	}
	return slices.Concat(first, rest)
}

func kill(who role, down time.Duration) stroke {
	return stroke{"kill -9", fmt.Sprintf("kill -9 of %s, down for %v", who, down), func(c *chaos) (string, error) {
		n := c.victim(who)
		proof, err := killed(n)
		if err != nil {
			return "", err
		}
		c.pause(down)
		return proof, n.Start()
	}}
}

// killed kills a node and returns the proof: how it ended.
func killed(n *localcluster.Node) (string, error) {
	pid := n.PID()
	n.Kill()
	return endedByKill(n, pid)
}

func endedByKill(n *localcluster.Node, pid int) (string, error) {
	var exit *exec.ExitError
	if errors.As(n.Ended(), &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
			return fmt.Sprintf("node %d, pid %d, ended by signal 9", n.Index, pid), nil
		}
	}
	return "", fmt.Errorf("node %d, pid %d, did not end by signal 9: %v", n.Index, pid, n.Ended())
}

func killAll() stroke {
	return stroke{"kill all", "kill -9 of all nodes at once", func(c *chaos) (string, error) {
		var pids []int
		for _, n := range c.Nodes {
			pids = append(pids, n.PID())
		}
		c.KillAll()
		var proofs []string
		for i, n := range c.Nodes {
			proof, err := endedByKill(n, pids[i])
			if err != nil {
				return "", err
			}
			proofs = append(proofs, proof)
		}
		return strings.Join(proofs, "; "), c.StartAll()
	}}
}

func terminate(who role, down time.Duration) stroke {
	return stroke{"SIGTERM", fmt.Sprintf("SIGTERM to %s, down for %v", who, down), func(c *chaos) (string, error) {
		n := c.victim(who)
		pid, began := n.PID(), time.Now()
		if err := n.Stop(proctest.Within(c.t, 20*time.Second)); err != nil {
			return "", fmt.Errorf("node %d after SIGTERM: %w", n.Index, err)
		}
		proof := fmt.Sprintf("node %d, pid %d, exited with 0 after %v", n.Index, pid, time.Since(began).Round(time.Millisecond))
		c.pause(down)
		return proof, n.Start()
	}}
}

func freeze(who role, lasting time.Duration) stroke {
	return stroke{"SIGSTOP", fmt.Sprintf("SIGSTOP to %s for %v", who, lasting), func(c *chaos) (string, error) {
		n := c.victim(who)
		pid := n.PID()
		n.Pause()
		defer n.Resume()
		if err := awaitState(pid, "T"); err != nil {
			return "", err
		}
		began := time.Now()
		c.pause(lasting)
		if err := awaitState(pid, "T"); err != nil {
			return "", err
		}
		return fmt.Sprintf("node %d, pid %d, was in state T for %v", n.Index, pid, time.Since(began).Round(time.Millisecond)), nil
	}}
}

// awaitState looks, for less than a second, whether a process comes into a state.
func awaitState(pid int, want string) error {
	for range 100 {
		<-time.After(5 * time.Millisecond)
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		if _, state, _ := bytes.Cut(stat, []byte(") ")); strings.HasPrefix(string(state), want) {
			return nil
		}
	}
	return fmt.Errorf("process %d is not in state %s", pid, want)
}

func partition(who role, lasting time.Duration) stroke {
	return stroke{"partition", fmt.Sprintf("%s cut off from all others for %v", who, lasting), func(c *chaos) (string, error) {
		n := c.victim(who)
		bad := make(map[link]int)
		for _, other := range c.others(n) {
			bad[link{n.Index, other}], bad[link{other, n.Index}] = 100, 100
		}
		return c.spoil(bad, lasting)
	}}
}

// oneWay lets a node hear all others and be heard by none, or be heard and hear none.
func oneWay(who role, mute bool, lasting time.Duration) stroke {
	text := fmt.Sprintf("%s hears none of the others, which hear it, for %v", who, lasting)
	if mute {
		text = fmt.Sprintf("%s is heard by none of the others, which it hears, for %v", who, lasting)
	}
	return stroke{"one-way cut", text, func(c *chaos) (string, error) {
		n := c.victim(who)
		bad := make(map[link]int)
		for _, other := range c.others(n) {
			out, in := link{n.Index, other}, link{other, n.Index}
			if mute {
				bad[out], bad[in] = 100, 0
			} else {
				bad[out], bad[in] = 0, 100
			}
		}
		return c.spoil(bad, lasting)
	}}
}

func loss(percent int, lasting time.Duration) stroke {
	return stroke{"loss", fmt.Sprintf("%d %% of the packets between nodes lost for %v", percent, lasting), func(c *chaos) (string, error) {
		bad := make(map[link]int)
		for _, n := range c.Nodes {
			for _, other := range c.others(n) {
				bad[link{n.Index, other}] = percent
			}
		}
		return c.spoil(bad, lasting)
	}}
}

// spoil makes links bad for a time. The proof is what nftables counted: each link that
// should lose packets has, and a cut let none pass.
func (c *chaos) spoil(bad map[link]int, lasting time.Duration) (string, error) {
	if err := c.net.worsen(bad); err != nil {
		return "", err
	}
	c.pause(lasting)
	seen, err := c.net.heal()
	if err != nil {
		return "", err
	}
	links := make([]link, 0, len(bad))
	for l := range bad {
		links = append(links, l)
	}
	slices.SortFunc(links, func(a, b link) int { return (a.from-b.from)*100 + a.to - b.to })
	var proofs []string
	for _, l := range links {
		s := seen[l]
		if bad[l] > 0 && s.dropped == 0 || bad[l] == 100 && s.passed > 0 || bad[l] == 0 && s.passed == 0 {
			return "", fmt.Errorf("link %v was to lose %d %%: %d packets dropped, %d passed", l, bad[l], s.dropped, s.passed)
		}
		proofs = append(proofs, fmt.Sprintf("%v dropped %d passed %d", l, s.dropped, s.passed))
	}
	return "packets by nft: " + strings.Join(proofs, ", "), nil
}

// clockStep moves one node's wall clock; then, if asked to, kills the oracle, so that a
// new one takes its anchor while that clock is off. At the end the clock is true again.
func clockStep(who role, offset time.Duration, takeover bool, lasting time.Duration) stroke {
	text := fmt.Sprintf("wall clock of %s steps by %v for %v", who, offset, lasting)
	if takeover {
		text += ", and the oracle is killed meanwhile, unless it is that node's"
	}
	return stroke{"clock step", text, func(c *chaos) (string, error) {
		n := c.victim(who)
		if err := wallclock.Set(n.PID(), offset); err != nil {
			return "", err
		}
		proof, err := c.seenOff(n, offset)
		if err != nil {
			return "", err
		}
		c.pause(lasting)
		if takeover {
			if leader := c.Leader(base.SystemRange); leader != n {
				how, err := killed(leader)
				if err != nil {
					return "", err
				}
				proof += "; then " + how
				c.Leader(base.SystemRange)
				c.pause(lasting)
				if err := leader.Start(); err != nil {
					return "", err
				}
			}
		}
		return proof, wallclock.Set(n.PID(), 0)
	}}
}

var offsetMetric = regexp.MustCompile(`(?m)^almanac_oracle_clock_offset_seconds\{node="(\d+)"\} (\S+)$`)

// seenOff waits until the oracle says that a node's wall clock is as far off as it was
// set; and the node itself, in the header of an HTTP answer, if seconds can tell.
func (c *chaos) seenOff(n *localcluster.Node, offset time.Duration) (string, error) {
	id := c.nodeID(n)
	said := "nothing"
	for range 150 {
		for _, m := range c.Nodes {
			page, _, err := httpGet("http://" + m.HTTP + "/metrics")
			if err != nil {
				continue
			}
			for _, match := range offsetMetric.FindAllStringSubmatch(page, -1) {
				seconds, err := strconv.ParseFloat(match[2], 64)
				if err != nil || match[1] != strconv.FormatUint(id, 10) {
					continue
				}
				said = fmt.Sprintf("node %d's oracle: node %d is %+.3f s off", m.Index, n.Index, seconds)
				if seen := time.Duration(seconds * float64(time.Second)); (seen - offset).Abs() > min(offset.Abs()/2, time.Second) {
					continue
				}
				if offset.Abs() < 2*time.Second {
					return said, nil
				}
				_, date, err := httpGet("http://" + n.HTTP + "/metrics")
				if ahead := time.Until(date); err == nil && (ahead-offset).Abs() < 2*time.Second {
					return fmt.Sprintf("%s; its own clock reads %s", said, date.Format(time.DateTime)), nil
				}
			}
		}
		c.pause(100 * time.Millisecond)
	}
	return "", fmt.Errorf("no oracle sees node %d's clock %v off; last said: %s", n.Index, offset, said)
}

// httpGet returns a page and the server's clock.
func httpGet(url string) (page string, date time.Time, err error) {
	cl := http.Client{Timeout: time.Second}
	r, err := cl.Get(url)
	if err != nil {
		return "", date, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return "", date, err
	}
	date, err = http.ParseTime(r.Header.Get("Date"))
	return string(b), date, err
}
