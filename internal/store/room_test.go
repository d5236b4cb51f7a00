package store

import (
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

func disk(free uint64) wire.Capacity { return wire.Capacity{DiskTotal: 1 << 30, DiskFree: free} } // 64 MiB are kept

func TestLeaderWithoutSpaceTakesNoNewData(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	c.put("a", "1")
	leader := c.leader(base.DefaultRange)
	leader.store.SetDisk(disk(63 << 20))
	_, err := leader.propose("b", "1", time.Second)
	if f := fault.As(err); f == nil || f.Kind != fault.DiskFull || f.Remedy == "" {
		t.Errorf("a put: %v", err)
	}
	for _, m := range c.members {
		m.wants("a", "1")
		if _, err := m.propose("b", "1", time.Second); m != leader && fault.KindOf(err) != fault.NotLeader {
			t.Errorf("a put at a follower: %v", err)
		}
	}
	clear := &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpDelete, Span: base.PointSpan(key("a"))}}}
	env, err := command.Encode(command.Header{Kind: command.KindTxn}, clear)
	if err != nil {
		t.Fatal(err)
	}
	res, err := await(t, func(done func(command.Result, error)) {
		leader.store.Propose(base.DefaultRange, env, 0, done)
	})
	if err != nil || res.Refusal != nil {
		t.Errorf("a delete: %+v, %v", res, err)
	}
	leader.store.SetDisk(disk(64 << 20))
	c.put("b", "2")
	leader.wants("b", "2")
}

// What stands in a nested branch counts, and so do events; what frees space does not.
func TestWhatGrows(t *testing.T) {
	put, del := mvcc.Op{Kind: mvcc.OpPut, Span: base.PointSpan(key("a"))}, mvcc.Op{Kind: mvcc.OpDelete, Span: base.PointSpan(key("a"))}
	nested := mvcc.Op{Kind: mvcc.OpTxn, Txn: &mvcc.Txn{Else: []mvcc.Op{put}}}
	for _, x := range []struct {
		what string
		kind command.Kind
		body any
		want bool
	}{
		{"put", command.KindTxn, &mvcc.Txn{Then: []mvcc.Op{put}}, true},
		{"else", command.KindTxn, &mvcc.Txn{Else: []mvcc.Op{del, put}}, true},
		{"nested", command.KindTxn, &mvcc.Txn{Then: []mvcc.Op{nested}}, true},
		{"delete", command.KindTxn, &mvcc.Txn{Then: []mvcc.Op{del}}, false},
		{"publish", command.KindPublish, &timeline.Publish{}, true},
		{"ack", command.KindAck, &timeline.Ack{}, false},
		{"bound", command.KindSetBound, &command.SetBound{}, false},
	} {
		env, err := command.Encode(command.Header{Kind: x.kind}, x.body)
		if err != nil {
			t.Fatalf("%s: %v", x.what, err)
		}
		if grows(env) != x.want {
			t.Errorf("%s: %v", x.what, !x.want)
		}
	}
}

// A follower whose disk is all but full stands still, and catches up when it has space.
func TestFollowerWithoutSpaceStandsStill(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	c.put("a", "1")
	leader := c.leader(base.DefaultRange)
	var follower *member
	for _, m := range c.members {
		if m != leader {
			follower = m
		}
	}
	follower.wants("a", "1")
	follower.store.SetDisk(disk(31 << 20))
	last := follower.store.Replica(base.DefaultRange).Last
	for range 20 {
		c.put("a", "2")
	}
	if now := follower.store.Replica(base.DefaultRange).Last; now != last {
		t.Errorf("the log grew from %d to %d", last, now)
	}
	if !follower.store.Behind(base.DefaultRange) || follower.store.Behind(base.SystemRange) {
		t.Error("it does not say that it stands still")
	}
	follower.store.SetDisk(disk(1 << 29))
	follower.wants("a", "2")
}
