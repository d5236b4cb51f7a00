//go:build linux && amd64

package chaos

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

// liar is a store that lies to one client now and then.
type liar struct {
	proctest.Store
	lie string
	mu  sync.Mutex
	n   int
	old map[string]string // by key: a value that was read before
}

// now says whether it is time for a lie.
func (s *liar) now(lie string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return s.lie == lie && s.n%5 == 0
}

func (s *liar) Get(ctx context.Context, key string) (string, bool, error) {
	value, present, err := s.Store.Get(ctx, key)
	if err != nil || !present {
		return value, present, err
	}
	stale := s.now("stale read")
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.old[key]; ok && stale {
		return old, true, nil
	}
	s.old[key] = value
	return value, present, nil
}

func (s *liar) Put(ctx context.Context, key, value string) error {
	if s.now("write that was not done") {
		return nil
	}
	err := s.Store.Put(ctx, key, value)
	if err == nil && s.now("refusal of a write that was done") {
		return &client.Error{Reason: client.ReasonUnavailable, Message: "planted"}
	}
	return err
}

func (s *liar) Txn(ctx context.Context, ifs, then []proctest.Pair) (bool, error) {
	if s.now("half of a transaction") {
		then = then[:1]
	}
	return s.Store.Txn(ctx, ifs, then)
}

// TestPlantedLiesAreFound: the checks find each lie that a client tells them, on a cluster
// that suffers nothing; and find nothing where nobody lies.
func TestPlantedLiesAreFound(t *testing.T) {
	c := newChaos(t, 3)
	for _, tc := range []struct{ lie, says string }{
		{"", ""},
		{"stale read", "not linearizable"},
		{"write that was not done", "not linearizable"},
		{"refusal of a write that was done", "not linearizable"},
		{"half of a transaction", "/p/"},
	} {
		t.Run("keys "+tc.lie, func(t *testing.T) {
			t.Parallel()
			l := newKeyLoad("planted " + tc.lie)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var load sync.WaitGroup
			for i := range 4 {
				var s proctest.Store = proctest.Almanac{KV: c.Client.KV}
				if i == 0 {
					s = &liar{Store: s, lie: tc.lie, old: make(map[string]string)}
				}
				load.Go(func() { l.work(ctx, s, i) })
			}
			proctest.Pause(ctx, 2*time.Second)
			proctest.Until(t, 30*time.Second, "the judgement", func(context.Context) string {
				return expect(l.judge(t.TempDir()), tc.says)
			})
			stop()
			load.Wait()
		})
	}
	var early sync.Once
	for i, tc := range []struct {
		lie, says string
		tamper    func(*client.Event) bool
		unacked   bool
	}{
		{"", "", nil, false},
		{"event that was never seen", "lost: planted-1/0-10-0 ", func(e *client.Event) bool { return !strings.HasSuffix(e.MessageID, "-10-0") }, false},
		{"event seen early", "early: ", func(e *client.Event) bool {
			early.Do(func() { e.ReceivedAt = time.UnixMilli(e.Position.DueMS).Add(-maxClockOffset - time.Millisecond) })
			return true
		}, false},
		{"event nobody published", "invented: ", func(e *client.Event) bool {
			e.MessageID = strings.TrimSuffix(e.MessageID, "-1")
			return true
		}, false},
		{"ack that was never sent", "delivered after ack: ", nil, true},
	} {
		t.Run("events "+tc.lie, func(t *testing.T) {
			t.Parallel()
			l := newEventLoad(t, c.Client, fmt.Sprintf("planted-%d", i))
			l.tamper, l.unacked = tc.tamper, tc.unacked
			publishing, stop := context.WithTimeout(t.Context(), 2*time.Second)
			defer stop()
			receiving, leave := context.WithCancel(t.Context())
			defer leave()
			var members sync.WaitGroup
			for g := range groups {
				members.Go(func() { l.member(receiving, c.Client, g, 0) })
			}
			l.publish(publishing, c.Client, 0)
			if tc.lie == "" {
				proctest.Until(t, 30*time.Second, "every event", l.owed)
				leave()
				members.Wait()
			}
			proctest.Until(t, 30*time.Second, "the judgement", func(context.Context) string {
				_, wrong := l.judge()
				return expect(wrong, tc.says)
			})
			leave()
			members.Wait()
		})
	}
}

// expect says what is missing of what should have been found: nothing, or the lie.
func expect(wrong []string, says string) string {
	if says == "" && len(wrong) == 0 || slices.ContainsFunc(wrong, func(w string) bool { return says != "" && strings.Contains(w, says) }) {
		return ""
	}
	return fmt.Sprintf("%q was to be found, and found was %v", says, wrong)
}

// TestFaultWithoutProof: a cut between nodes that say nothing to each other, a freeze of
// a process that goes on, a kill of one that lives: without proof it is an error, which
// fails the run.
func TestFaultWithoutProof(t *testing.T) {
	needChaos(t)
	c := &chaos{t: t, net: newNetwork(t, 2)}
	if proof, err := c.spoil(map[link]int{{1, 2}: 100}, 100*time.Millisecond); err == nil {
		t.Errorf("a cut that dropped nothing: %s", proof)
	}
	if err := awaitState(os.Getpid(), "T"); err == nil {
		t.Error("this process is frozen")
	}
	if proof, err := endedByKill(&localcluster.Node{}, 0); err == nil {
		t.Errorf("a node that never ran was killed: %s", proof)
	}
}

// childVar makes TestChild begin a cluster and wait to be killed.
const childVar = "ALMANAC_CHAOS_CHILD"

func TestChild(t *testing.T) {
	if os.Getenv(childVar) == "" {
		t.Skip("runs within TestKilledRunLeavesNothing")
	}
	c := newChaos(t, 3)
	c.Nodes[0].Pause() // a frozen one must go too
	for _, n := range c.Nodes {
		fmt.Println("node", n.PID())
	}
	fmt.Println("ready")
	select {}
}

// TestKilledRunLeavesNothing: kill -9 of a run takes its nodes and namespaces along.
func TestKilledRunLeavesNothing(t *testing.T) {
	needChaos(t)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), childVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var pids []int
	var seen strings.Builder
	ready := false
	for in := bufio.NewScanner(io.TeeReader(out, &seen)); !ready && in.Scan(); {
		var pid int
		if _, err := fmt.Sscanf(in.Text(), "node %d", &pid); err == nil {
			pids = append(pids, pid)
		}
		ready = in.Text() == "ready"
	}
	if !ready || len(pids) != 3 {
		t.Fatalf("the run did not begin: %s", seen.String())
	}
	namespaces := map[string]bool{}
	for _, pid := range pids {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			t.Fatal(err)
		}
		namespaces[ns] = true
	}
	if len(namespaces) != 3 {
		t.Errorf("three nodes are in the namespaces %v", namespaces)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	proctest.Until(t, 10*time.Second, "the nodes to end", func(context.Context) string {
		for _, pid := range pids {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
				return fmt.Sprintf("process %d lives on", pid)
			}
		}
		return ""
	})
}
