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

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/localcluster"
)

const (
	keyClients    = 4 // of our own API
	keyEtcdUsers  = 2 // of the etcd API
	keyCount      = 10
	keyMinPerSec  = 50 // acknowledged operations, kills included
	keyMostUnsure = 0.05
)

// store is what both clients can do with a key. An error says whether the operation
// may have been done.
type store interface {
	get(ctx context.Context, key string) (value string, present bool, err error)
	put(ctx context.Context, key, value string) error
	del(ctx context.Context, key string) (present bool, err error)
	swap(ctx context.Context, in lincheck.Input) (swapped bool, err error)
	refused(err error) bool // surely not done
}

type almanacStore struct{ kv *client.KV }

func (s almanacStore) get(ctx context.Context, key string) (string, bool, error) {
	kv, err := s.kv.Get(ctx, []byte(key))
	if kv == nil {
		return "", false, err
	}
	return string(kv.Value), true, err
}

func (s almanacStore) put(ctx context.Context, key, value string) error {
	_, err := s.kv.Put(ctx, []byte(key), []byte(value))
	return err
}

func (s almanacStore) del(ctx context.Context, key string) (bool, error) {
	r, err := s.kv.Delete(ctx, client.Key([]byte(key)))
	return r.Deleted == 1, err
}

func (s almanacStore) swap(ctx context.Context, in lincheck.Input) (bool, error) {
	if in.Absent {
		_, err := s.kv.PutIfAbsent(ctx, []byte(in.Key), []byte(in.Value))
		if client.ReasonOf(err) == client.ReasonCompareFailed {
			return false, nil
		}
		return err == nil, err
	}
	r, err := s.kv.Txn(ctx, client.Txn{
		If:   []client.Compare{client.CompareValue([]byte(in.Key), client.Equal, []byte(in.Expect))},
		Then: []client.Op{client.OpPut([]byte(in.Key), []byte(in.Value))},
	})
	return err == nil && r.Succeeded, err
}

func (s almanacStore) refused(err error) bool {
	switch client.ReasonOf(err) {
	case client.ReasonNotLeader, client.ReasonBusy, client.ReasonUninitialized:
		return true
	}
	return false
}

type etcdStore struct{ kv clientv3.KV }

func (s etcdStore) get(ctx context.Context, key string) (string, bool, error) {
	r, err := s.kv.Get(ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		return "", false, err
	}
	return string(r.Kvs[0].Value), true, nil
}

func (s etcdStore) put(ctx context.Context, key, value string) error {
	_, err := s.kv.Put(ctx, key, value)
	return err
}

func (s etcdStore) del(ctx context.Context, key string) (bool, error) {
	r, err := s.kv.Delete(ctx, key)
	return err == nil && r.Deleted == 1, err
}

func (s etcdStore) swap(ctx context.Context, in lincheck.Input) (bool, error) {
	compare := clientv3.Compare(clientv3.Value(in.Key), "=", in.Expect)
	if in.Absent {
		compare = clientv3.Compare(clientv3.CreateRevision(in.Key), "=", 0)
	}
	r, err := s.kv.Txn(ctx).If(compare).Then(clientv3.OpPut(in.Key, in.Value)).Commit()
	return err == nil && r.Succeeded, err
}

func (s etcdStore) refused(error) bool { return false }

// newEtcdClient returns etcd's own client.
func newEtcdClient(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	cl, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

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
func (l *keyLoad) work(ctx context.Context, s store, worker int) {
	r := rand.New(rand.NewPCG(uint64(worker), 7))
	id := int(l.nextID.Add(1))
	for n := 0; ctx.Err() == nil; n++ {
		in := lincheck.Input{Op: lincheck.Op(1 + r.IntN(4)), Key: fmt.Sprintf("k%d", r.IntN(keyCount)), Value: fmt.Sprintf("%d.%d", worker, n)}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		if in.Op == lincheck.CompareSwap { // expect what is there, so that some succeed
			value, present, err := s.get(call, in.Key)
			if err != nil {
				cancel()
				continue
			}
			in.Expect, in.Absent = value, !present
		}
		end := l.recorder.Begin(id, in)
		out, err := do(call, s, in)
		if err != nil {
			out.Refused = in.Op == lincheck.Get || s.refused(err)
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
		pause(ctx, time.Duration(2+r.IntN(6))*time.Millisecond)
	}
}

func do(ctx context.Context, s store, in lincheck.Input) (out lincheck.Output, err error) {
	switch in.Op {
	case lincheck.Get:
		out.Value, out.Present, err = s.get(ctx, in.Key)
	case lincheck.Put:
		err = s.put(ctx, in.Key, in.Value)
	case lincheck.Delete:
		out.Present, err = s.del(ctx, in.Key)
	default:
		out.Swapped, err = s.swap(ctx, in)
	}
	return out, err
}

// keep writes a key that is never written again.
func (l *keyLoad) keep(ctx context.Context, s store, key string) {
	value := "value of " + key
	if err := s.put(ctx, key, value); err != nil {
		l.failure(err, !s.refused(err))
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
		var s store = almanacStore{c.newClient(client.Options{}).KV}
		if i >= keyClients {
			s = etcdStore{newEtcdClient(t, strings.Split(c.Endpoints(), ",")...)}
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
	until(c.t, 30*time.Second, fmt.Sprintf("%d more operations", n), func(context.Context) string {
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
		c.kill(n, why)
		killed[n] = true
		c.progress(l, 400)
		gap := l.takeGap()
		c.t.Logf("%s the others went on: longest gap between acknowledged writes %v", clock(), gap.Round(time.Millisecond))
		if gap > 10*time.Second {
			c.t.Errorf("%v without an acknowledged write after one node was killed", gap)
		}
		c.restart(n)
		c.well(3)
		c.progress(l, 200)
	}
	strike(c.leader(base.SystemRange), "leads the system range")
	strike(c.leader(base.DefaultRange), "leads the default range")
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
	n := c.leader(r)
	l.takeGap()
	n.Pause()
	defer n.Resume()
	frozen, cancel := context.WithTimeout(c.t.Context(), 4*time.Second)
	defer cancel()
	c.progress(l, 200)
	<-frozen.Done()
	n.Resume()
	c.well(3)
	c.progress(l, 200)
	c.t.Logf("%s node %d, leader of range %d, was frozen: longest gap between acknowledged writes %v",
		clock(), n.Index, r, l.takeGap().Round(time.Millisecond))
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
	c.t.Logf("%s kill -9 of all nodes at once", clock())
	if err := c.StartAll(); err != nil {
		c.t.Fatal(err)
	}
	c.well(3)
	c.progress(l, 400)
	c.t.Logf("%s all are back: longest gap between acknowledged writes %v", clock(), l.takeGap().Round(time.Millisecond))
}

// readBack reads every acknowledged write of a key that was written once, through each
// node.
func (c *cluster) readBack(l *keyLoad) {
	c.t.Helper()
	for _, n := range c.Nodes {
		cl := c.newClient(client.Options{Endpoints: []string{n.Address}})
		r, err := cl.KV.Range(within(c.t, 20*time.Second), client.Prefix([]byte("kept/")), client.RangeOptions{})
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
