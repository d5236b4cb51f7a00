package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

const (
	keyClients    = 4 // of our own API
	keyEtcdUsers  = 2 // of the etcd API
	keyCount      = 10
	keyMinPerSec  = 50 // acknowledged operations, kills included
	keyMostUnsure = 0.05
)

// keyLoad is clients at work, each operation recorded.
type keyLoad struct {
	recorder *lincheck.Recorder
	done     atomic.Int64 // operations with an answer
	unsure   atomic.Int64 // writes of unknown outcome
	failed   atomic.Int64 // all other failures
	nextID   atomic.Int64

	mu      sync.Mutex
	gap     time.Duration // longest time without an acknowledged write
	last    time.Time
	reasons map[string]int
	kept    map[string]string // acknowledged writes of keys that are written once
}

func newKeyLoad() *keyLoad {
	return &keyLoad{recorder: lincheck.NewRecorder(nil), reasons: make(map[string]int), kept: make(map[string]string)}
}

// wrote notes an acknowledged write.
func (l *keyLoad) wrote() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !l.last.IsZero() {
		l.gap = max(l.gap, now.Sub(l.last))
	}
	l.last = now
}

// takeGap returns the longest gap since it was asked for last.
func (l *keyLoad) takeGap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	gap := l.gap
	l.gap = 0
	return gap
}

func (l *keyLoad) failure(err error, unsure bool) {
	if unsure {
		l.unsure.Add(1)
	} else {
		l.failed.Add(1)
	}
	text := string(client.ReasonOf(err))
	if text == string(client.ReasonInternal) {
		text = err.Error()
	}
	l.mu.Lock()
	l.reasons[text]++
	l.mu.Unlock()
}

// work does random operations until ctx ends. A client whose last write may still
// happen goes on under a new number.
func (l *keyLoad) work(ctx context.Context, s proctest.Store, worker int) {
	r := rand.New(rand.NewPCG(uint64(worker), 7))
	id := int(l.nextID.Add(1))
	for n := 0; ctx.Err() == nil; n++ {
		in := lincheck.Input{Op: lincheck.Op(1 + r.IntN(4)), Key: fmt.Sprintf("k%d", r.IntN(keyCount)), Value: fmt.Sprintf("%d.%d", worker, n)}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		if in.Op == lincheck.CompareSwap { // expect what is there, so that some succeed
			value, present, err := s.Get(call, in.Key)
			if err != nil {
				cancel()
				continue
			}
			in.Expect, in.Absent = value, !present
		}
		end := l.recorder.Begin(id, in)
		out, err := proctest.Do(call, s, in)
		if err != nil {
			out.Refused = in.Op == lincheck.Get || s.Refused(err)
			out.Unknown = !out.Refused
			l.failure(err, out.Unknown)
		} else {
			l.done.Add(1)
			if in.Op == lincheck.Put {
				l.wrote()
			}
		}
		end(out)
		if out.Unknown {
			id = int(l.nextID.Add(1))
		}
		if n%5 == 0 {
			l.keep(call, s, fmt.Sprintf("kept/%d/%06d", worker, n))
		}
		cancel()
		proctest.Pause(ctx, time.Duration(2+r.IntN(6))*time.Millisecond)
	}
}

// keep writes a key that is never written again.
func (l *keyLoad) keep(ctx context.Context, s proctest.Store, key string) {
	value := "value of " + key
	if err := s.Put(ctx, key, value); err != nil {
		l.failure(err, !s.Refused(err))
		return
	}
	l.done.Add(1)
	l.wrote()
	l.mu.Lock()
	l.kept[key] = value
	l.mu.Unlock()
}

// TestKeysUnderKill: invariants 1, 2 and 9 while each node in turn is killed, the leaders
// of the system range and of the default range first; while leaders are frozen and
// thawed; and when all nodes are killed at once.
func TestKeysUnderKill(t *testing.T) {
	c := start(t, 3)
	l := newKeyLoad()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var workers sync.WaitGroup
	for i := range keyClients + keyEtcdUsers {
		var s proctest.Store = proctest.Almanac{KV: c.NewClient(client.Options{}).KV}
		if i >= keyClients {
			s = proctest.Etcd{KV: proctest.NewEtcdClient(t, strings.Split(c.Endpoints(), ",")...)}
		}
		workers.Add(1)
		go func() {
			defer workers.Done()
			l.work(ctx, s, i)
		}()
	}
	began := time.Now()
	c.progress(l, 200)
	t.Logf("longest gap between acknowledged writes before any kill: %v", l.takeGap().Round(time.Millisecond))
	c.killEach(l)
	c.freeze(l, base.DefaultRange)
	c.freeze(l, base.SystemRange)
	c.killAll(l)
	took := time.Since(began)
	stop()
	workers.Wait()

	done, unsure := l.done.Load(), l.unsure.Load()
	rate, share := float64(done)/took.Seconds(), float64(unsure)/float64(done+unsure)
	t.Logf("%d operations in %v: %.0f/s; %d of unknown outcome (%.2f %%), %d failed; failures: %v",
		done, took.Round(time.Millisecond), rate, unsure, 100*share, l.failed.Load(), l.reasons)
	if rate < keyMinPerSec {
		t.Errorf("%.0f operations/s, want at least %d", rate, keyMinPerSec)
	}
	if share > keyMostUnsure {
		t.Errorf("%.2f %% of the operations have an unknown outcome, want at most %.0f %%", 100*share, 100*keyMostUnsure)
	}
	c.readBack(l)
	judgeKeys(t, l)
}

// progress waits for n more answered operations.
func (c *cluster) progress(l *keyLoad, n int64) {
	c.t.Helper()
	goal := l.done.Load() + n
	proctest.Until(c.t, 30*time.Second, fmt.Sprintf("%d more operations", n), func(context.Context) string {
		if left := goal - l.done.Load(); left > 0 {
			return fmt.Sprintf("%d are missing", left)
		}
		return ""
	})
}

// killEach kills each node in turn and brings it back, while the load goes on: whoever
// leads the system range, then the default range, then those that were spared.
func (c *cluster) killEach(l *keyLoad) {
	killed := make(map[*localcluster.Node]bool)
	strike := func(n *localcluster.Node, why string) {
		l.takeGap()
		c.Kill(n, why)
		killed[n] = true
		c.progress(l, 400)
		gap := l.takeGap()
		c.t.Logf("%s the others went on: longest gap between acknowledged writes %v", proctest.Clock(), gap.Round(time.Millisecond))
		if gap > 10*time.Second {
			c.t.Errorf("%v without an acknowledged write after one node was killed", gap)
		}
		c.Restart(n)
		c.Well(3)
		c.progress(l, 200)
	}
	strike(c.Leader(base.SystemRange), "leads the system range")
	strike(c.Leader(base.DefaultRange), "leads the default range")
	for _, n := range c.Nodes {
		if !killed[n] {
			strike(n, "not killed before")
		}
	}
}

// freeze stops a range's leader for longer than an election takes. Thawed, it does not
// know at first that time has passed; it must not answer from what it had.
func (c *cluster) freeze(l *keyLoad, r base.RangeID) {
	c.t.Helper()
	n := c.Leader(r)
	l.takeGap()
	n.Pause()
	defer n.Resume()
	frozen, cancel := context.WithTimeout(c.t.Context(), 4*time.Second)
	defer cancel()
	c.progress(l, 200)
	<-frozen.Done()
	n.Resume()
	c.Well(3)
	c.progress(l, 200)
	c.t.Logf("%s node %d, leader of range %d, was frozen: longest gap between acknowledged writes %v",
		proctest.Clock(), n.Index, r, l.takeGap().Round(time.Millisecond))
}

// killAll kills all nodes at once, as a power cut would, but for the disks.
func (c *cluster) killAll(l *keyLoad) {
	c.t.Helper()
	l.takeGap()
	c.KillAll()
	for _, n := range c.Nodes {
		if n.Running() || n.Answers() {
			c.t.Fatalf("node %d lives on after kill -9", n.Index)
		}
	}
	c.t.Logf("%s kill -9 of all nodes at once", proctest.Clock())
	if err := c.StartAll(); err != nil {
		c.t.Fatal(err)
	}
	c.Well(3)
	c.progress(l, 400)
	c.t.Logf("%s all are back: longest gap between acknowledged writes %v", proctest.Clock(), l.takeGap().Round(time.Millisecond))
}

// readBack reads every acknowledged write of a key that was written once, through each
// node.
func (c *cluster) readBack(l *keyLoad) {
	c.t.Helper()
	for _, n := range c.Nodes {
		cl := c.NewClient(client.Options{Endpoints: []string{n.Address}})
		r, err := cl.KV.Range(proctest.Within(c.t, 20*time.Second), client.Prefix([]byte("kept/")), client.RangeOptions{})
		if err != nil {
			c.t.Fatalf("reading back through node %d: %v", n.Index, err)
		}
		found := make(map[string][]byte, len(r.KVs))
		for _, kv := range r.KVs {
			found[string(kv.Key)] = kv.Value
		}
		lost := 0
		for key, value := range l.kept {
			if !bytes.Equal(found[key], []byte(value)) {
				lost++
				c.t.Errorf("node %d: %s is %q, acknowledged was %q", n.Index, key, found[key], value)
			}
		}
		c.t.Logf("node %d: %d acknowledged keys read back, %d lost", n.Index, len(l.kept), lost)
	}
}

// judgeKeys checks the recorded history, and keeps the drawing of what is wrong.
func judgeKeys(t *testing.T, l *keyLoad) {
	t.Helper()
	history := l.recorder.Keys()
	began := time.Now()
	dir := filepath.Join(os.TempDir(), "almanac-e2e-failures")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	verdict, err := lincheck.CheckKeys(history, time.Minute, dir)
	if err != nil {
		t.Error(err)
	}
	if !verdict.OK() {
		t.Error(verdict)
	}
	t.Logf("%d operations on %d keys judged in %v: %v", len(history), keyCount, time.Since(began).Round(time.Millisecond), verdict)
}
