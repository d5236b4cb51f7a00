package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/proctest"
)

// putters write keys of their own, through every node first, until ctx ends.
func (c *cluster) putters(ctx context.Context, l *keyLoad) *sync.WaitGroup {
	var all sync.WaitGroup
	addresses := strings.Split(c.Endpoints(), ",")
	for i := range 2 * len(c.Nodes) {
		first := i % len(c.Nodes)
		endpoints := append(slices.Clone(addresses[first:]), addresses[:first]...)
		s := proctest.Almanac{KV: c.NewClient(client.Options{Endpoints: endpoints}).KV}
		all.Add(1)
		go func() {
			defer all.Done()
			for n := 0; ctx.Err() == nil; n++ {
				call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
				l.keep(call, s, fmt.Sprintf("kept/%d/%06d", i, n))
				cancel()
				proctest.Pause(ctx, 2*time.Millisecond)
			}
		}()
	}
	return &all
}

// TestGracefulStop: SIGTERM hands leadership over first, so that service goes on within
// far less than an election.
func TestGracefulStop(t *testing.T) {
	// An election takes up to 2 s.
	const (
		mostGap  = 600 * time.Millisecond
		mostStop = 4 * time.Second
	)
	c := start(t, 3)
	sub, err := c.subscribeNew("ticks")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Close(context.WithoutCancel(t.Context())) }()
	for _, r := range []base.RangeID{base.DefaultRange, base.SystemRange} {
		l := newKeyLoad()
		ctx, stop := context.WithCancel(t.Context())
		all := c.putters(ctx, l)
		c.progress(l, 300)
		normal := l.takeGap()
		n := c.Leader(r)
		took := c.Terminate(n)
		c.progress(l, 300)
		gap := l.takeGap()
		stop()
		all.Wait()
		t.Logf("SIGTERM to node %d, which led range %d: longest gap between acknowledged writes %v (%v before), ended in %v; failures: %v",
			n.Index, r, gap.Round(time.Millisecond), normal.Round(time.Millisecond), took.Round(time.Millisecond), l.reasons)
		if gap > mostGap {
			t.Errorf("%v without an acknowledged write, want less than %v", gap, mostGap)
		}
		if took > mostStop {
			t.Errorf("node %d took %v to stop, want less than %v", n.Index, took, mostStop)
		}
		if l.unsure.Load() > 0 {
			t.Errorf("%d writes of unknown outcome: %v", l.unsure.Load(), l.reasons)
		}
		c.Restart(n)
		c.Well(3)
		c.readBack(l)
	}
}

// subscribeNew makes a topic and a member of a group of it.
func (c *cluster) subscribeNew(topic string) (*client.Subscription, error) {
	ctx := proctest.Within(c.t, 20*time.Second)
	if _, err := c.Client.Events.CreateTopic(ctx, topic, client.TopicOptions{Partitions: 3}); err != nil {
		return nil, err
	}
	return c.Client.Events.Subscribe(ctx, client.SubscribeOptions{Topic: topic, Group: "g"})
}

// TestLostQuorum: with one of three nodes left, nothing hangs, the error says which range
// has no majority, and afterwards everything goes on.
func TestLostQuorum(t *testing.T) {
	const timeout = 2500 * time.Millisecond
	c := start(t, 3)
	if a := c.cli("kv", "put", "before", "1"); a.code != 0 {
		t.Fatalf("%+v", a)
	}
	survivor := c.Nodes[1]
	c.Kill(c.Nodes[0], "first of two")
	c.Kill(c.Nodes[2], "second of two")
	for i, command := range [][]string{
		{"kv", "put", "during", "1"},
		{"kv", "get", "before"},
		{"kv", "get", "--prefix", "be"},
		{"kv", "del", "before"},
		{"kv", "put", "--if-absent", "other", "1"},
		{"topic", "create", "late"},
		{"topic", "list"},
		{"event", "publish", "late", "x"},
		{"cluster", "nodes"},
		{"cluster", "ranges"},
	} {
		endpoints := []string{survivor.Address, c.Endpoints()}[i%2]
		args := append([]string{"--endpoints", endpoints, "--request-timeout", timeout.String(), "-o", "json"}, command...)
		a := run(t, time.Minute, "", binary, args...)
		var f struct{ Error, Reason, Remedy string }
		if err := json.Unmarshal([]byte(a.err), &f); err != nil {
			t.Errorf("%v: stderr is %q", command, a.err)
		}
		t.Logf("%s: exit %d after %v: %s (%s); %s", strings.Join(command, " "), a.code, a.took.Round(time.Millisecond), f.Error, f.Reason, f.Remedy)
		if a.code == 0 || a.code == 2 {
			t.Errorf("%v: exit code %d without a majority: %s%s", command, a.code, a.out, a.err)
		}
		if a.code == 3 && f.Reason != string(client.ReasonDeadline) || a.code == 1 && f.Reason == string(client.ReasonDeadline) {
			t.Errorf("%v: exit code %d with reason %s", command, a.code, f.Reason)
		}
		if a.took > timeout+2*time.Second {
			t.Errorf("%v took %v with a timeout of %v", command, a.took, timeout)
		}
		// A leader that did not know yet may have taken a write.
		unsure := f.Reason == string(client.ReasonUnknownOutcome)
		if !strings.Contains(f.Error, "range") || !strings.Contains(f.Error, "majority") && !unsure {
			t.Errorf("%v does not say which range lacks a majority: %s", command, f.Error)
		}
	}
	// What one node knows by itself can still be asked.
	status := run(t, time.Minute, "", binary, "--endpoints", survivor.Address, "--request-timeout", "5s", "-o", "json", "cluster", "status")
	t.Logf("cluster status: exit %d after %v: %s%s", status.code, status.took.Round(time.Millisecond), status.out, status.err)
	began := time.Now()
	c.Restart(c.Nodes[0])
	proctest.Until(t, 30*time.Second, "a write with two of three nodes", func(ctx context.Context) string {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if _, err := c.Client.KV.Put(ctx, []byte("after"), []byte("1")); err != nil {
			return err.Error()
		}
		return ""
	})
	t.Logf("the first write succeeded %v after the second node was started", time.Since(began).Round(time.Millisecond))
	c.Restart(c.Nodes[2])
	c.Well(3)
	if a := c.cli("kv", "get", "--value-only", "after"); a.out != "1\n" {
		t.Errorf("%+v", a)
	}
}
