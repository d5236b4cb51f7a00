package store

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/host"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/wire"
)

func TestSingleNode(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	c := newCluster(t, 1, nil)
	c.found()
	m := c.members[0]
	first := c.put("a", "1")
	if second := c.put("a", "2"); second <= first {
		t.Errorf("stamps %v, then %v", first, second)
	}
	m.wants("a", "2")
	m.wants("b", "")
	reply, err := m.store.ReadLocal(base.DefaultRange, []wire.Read{{Span: base.PointSpan(key("a"))}}, first)
	if err != nil || string(reply.Results[0].KVs[0].Value) != "1" {
		t.Errorf("at the first stamp: %+v, %v", reply, err)
	}
	_, err = m.store.ReadLocal(base.DefaultRange, []wire.Read{{Span: base.PointSpan(keys.User(base.SystemKeyspace, nil))}}, 0)
	if fault.KindOf(err) != fault.WrongRange {
		t.Errorf("another range's key: %v", err)
	}
	if _, err = m.store.ReadLocal(7, nil, 0); fault.KindOf(err) != fault.RangeNotFound {
		t.Errorf("another node's range: %v", err)
	}
}

func TestThreeNodes(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	last := base.Timestamp(0)
	for i := range 20 {
		stamp := c.put(fmt.Sprint("k", i%5), fmt.Sprint(i))
		if stamp <= last {
			t.Fatalf("stamp %v after %v", stamp, last)
		}
		last = stamp
		// Every replica serves what was acknowledged.
		c.members[i%3].wants(fmt.Sprint("k", i%5), fmt.Sprint(i))
	}
	leader := c.leader(base.DefaultRange)
	for _, m := range c.members {
		if m == leader {
			continue
		}
		until(t, "word of the leader", func() bool { return m.store.Replica(base.DefaultRange).Leader == leader.id })
		_, err := m.propose("x", "y", time.Second)
		if f := fault.As(err); f == nil || f.Kind != fault.NotLeader || f.Leader != leader.id || f.Range != base.DefaultRange {
			t.Errorf("a follower answers %+v", f)
		}
		// The same over the wire, leader's hint included.
		_, err = await(t, func(done func([]byte, error)) {
			leader.store.Call(m.id, wire.MethodPropose, base.DefaultRange, putEnvelope(t, "x", "y"), time.Second, done)
		})
		if f := fault.As(err); f == nil || f.Kind != fault.NotLeader || f.Leader != leader.id {
			t.Errorf("a follower answers its caller %+v", f)
		}
		body, err := await(t, func(done func([]byte, error)) {
			m.store.Call(leader.id, wire.MethodPropose, base.DefaultRange, putEnvelope(t, "x", fmt.Sprint(m.id)), 5*time.Second, done)
		})
		if err != nil {
			t.Fatal(err)
		}
		if res, err := command.DecodeResult(body); err != nil || res.Refusal != nil || res.Stamp <= last {
			t.Errorf("%+v, %v", res, err)
		}
		m.wants("x", fmt.Sprint(m.id))
	}
}

// A command that does not parse must not reach the log, where it would stop every
// replica.
func TestDamagedCommandIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.found()
	env := putEnvelope(t, "a", "1")
	for _, body := range [][]byte{nil, {1, 2, 3}, env[:len(env)-1]} {
		_, err := await(t, func(done func([]byte, error)) {
			c.members[0].store.Call(1, wire.MethodPropose, base.DefaultRange, body, time.Second, done)
		})
		if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%x: %v", body, err)
		}
	}
}

// All nodes draw from one source, and each fetch begins after it was asked for.
func TestTimestampsRiseAndAreNeverGivenTwice(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	c.leader(base.SystemRange)
	var mu sync.Mutex
	taken := make(map[base.Timestamp]bool)
	var wg sync.WaitGroup
	for _, m := range c.members {
		for range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				last := base.Timestamp(0)
				for n := 1; n <= 20; n++ {
					first := m.stamps(n)
					mu.Lock()
					for i := range n {
						if taken[first+base.Timestamp(i)] {
							t.Errorf("%v was given twice", first)
						}
						taken[first+base.Timestamp(i)] = true
					}
					mu.Unlock()
					if first <= last {
						t.Errorf("%v after %v", first, last)
					}
					last = first + base.Timestamp(n-1)
				}
			}()
		}
	}
	wg.Wait()
	if _, _, ok := c.members[2].store.OracleAnchor(); !ok {
		t.Error("no anchor after so many")
	}
}

func TestRestartRecovers(t *testing.T) {
	for _, how := range []string{"close", "crash", "crash after a flush"} {
		t.Run(how, func(t *testing.T) {
			c := newCluster(t, 3, nil)
			c.found()
			for i := range 10 {
				c.put(fmt.Sprint("k", i), fmt.Sprint(i))
			}
			for _, m := range c.members {
				switch how {
				case "close":
					m.stop()
				case "crash after a flush":
					if err := m.state.Flush(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if how != "close" {
				stamp := c.put("k5", "last")
				for _, m := range c.members {
					m.crash()
				}
				defer func() {
					if again := c.put("k5", "new"); again <= stamp {
						t.Errorf("stamp %v after the crash, %v before", again, stamp)
					}
				}()
			}
			for _, m := range c.members {
				m.start()
			}
			c.leader(base.DefaultRange)
			for _, m := range c.members {
				m.wants("k9", "9")
				if how != "close" {
					m.wants("k5", "last")
				}
			}
		})
	}
}

// One node at a time loses its power while writes go on; nothing acknowledged is lost.
func TestCrashesInTurn(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	for i := range 6 {
		m := c.members[i%3]
		c.put("a", fmt.Sprint("before ", i))
		m.crash()
		c.put("b", fmt.Sprint("without ", i))
		m.start()
		m.wants("a", fmt.Sprint("before ", i))
		m.wants("b", fmt.Sprint("without ", i))
	}
}

func TestRemoveReplica(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.found()
	c.put("a", "1")
	m := c.members[0]
	d := *m.store.Replica(base.DefaultRange).Descriptor
	if err := m.store.RemoveReplica(base.DefaultRange, 9); err != nil || m.store.Replica(base.DefaultRange) == nil {
		t.Fatalf("removed by another replica's id: %v", err)
	}
	if err := m.store.RemoveReplica(base.DefaultRange, 1); err != nil {
		t.Fatal(err)
	}
	gone := func() {
		t.Helper()
		if m.store.Replica(base.DefaultRange) != nil {
			t.Error("the replica is still here")
		}
		if _, err := m.propose("a", "2", time.Second); fault.KindOf(err) != fault.RangeNotFound {
			t.Errorf("a write got %v", err)
		}
		lower, upper := keys.FamilySpan(keys.FamilyVersion, d.Span)
		if n, err := m.state.DiskUsage(lower, upper); n != 0 || err != nil {
			t.Errorf("%d bytes are left, %v", n, err)
		}
		if _, ok, _ := m.state.Get(keys.RangeState(base.DefaultRange)); ok {
			t.Error("the state record is left")
		}
		if fault.KindOf(m.store.CreateReplica(d)) != fault.Invalid {
			t.Error("a removed replica was made again")
		}
	}
	gone()
	if err := m.store.RemoveReplica(base.DefaultRange, 1); err != nil {
		t.Errorf("removed again: %v", err)
	}
	m.crash()
	m.start()
	gone()
	// The range itself may come back, as another replica.
	d.Replicas[0].Replica = 2
	if err := m.store.CreateReplica(d); err != nil {
		t.Fatal(err)
	}
	m.wants("a", "")
	c.put("a", "3")
}

// What a crash left half destroyed is destroyed at the next start (S3).
func TestTombstoneIsCarriedOutAtStart(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.found()
	c.put("a", "1")
	m := c.members[0]
	m.stop()
	logs, err := logstore.Open(m.log)
	if err != nil {
		t.Fatal(err)
	}
	b := logs.NewBatch()
	b.SetTombstone(logstore.Tombstone{Range: base.DefaultRange, Replica: 1})
	if err := b.Commit(true); err != nil {
		t.Fatal(err)
	}
	m.start()
	if m.store.Replica(base.DefaultRange) != nil || m.store.Replica(base.SystemRange) == nil {
		t.Error("the wrong replicas came back")
	}
	lower, upper := keys.FamilySpan(keys.FamilyVersion, keys.KeyspaceSpan(base.DefaultKeyspace))
	if n, _ := m.state.DiskUsage(lower, upper); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
}

func TestCreateReplica(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.members[0]
	d := descriptor(base.DefaultRange, base.DefaultKeyspace, 1)
	elsewhere := descriptor(base.DefaultRange, base.DefaultKeyspace, 2)
	if err := m.store.CreateReplica(elsewhere); fault.KindOf(err) != fault.Invalid {
		t.Errorf("another node's replica: %v", err)
	}
	chain := d
	chain.Protocol = base.ProtocolChain
	chain.Range = 77
	if err := m.store.CreateReplica(chain); fault.KindOf(err) != fault.Unimplemented {
		t.Errorf("a chain: %v", err)
	}
	for range 2 { // the second changes nothing
		if err := m.store.CreateReplica(d); err != nil {
			t.Fatal(err)
		}
	}
	// It is durable at once, from the log store alone.
	m.crash()
	m.start()
	if m.store.Replica(base.DefaultRange) == nil {
		t.Fatal("a created replica did not survive a crash")
	}
	ids := []base.RangeID{}
	for _, v := range m.store.Replicas() {
		ids = append(ids, v.Descriptor.Range)
	}
	if !slices.Equal(ids, []base.RangeID{base.DefaultRange}) {
		t.Errorf("ranges %v came back", ids)
	}
}

// A follower that missed more than the log still holds gets a snapshot.
func TestSnapshotToALaggingFollower(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.KeepEntries = 8 })
	c.found()
	c.put("early", "1")
	leader := c.leader(base.DefaultRange)
	var late *member
	for _, m := range c.members { // not the oracle's node, which every write needs
		if m != leader && m != c.leader(base.SystemRange) {
			late = m
		}
	}
	c.isolate(late.id, true)
	missed := late.store.Replica(base.DefaultRange).Last
	for i := range 60 {
		c.put(fmt.Sprint("k", i), fmt.Sprint(i))
	}
	until(t, "a truncated log", func() bool {
		l := c.leader(base.DefaultRange)
		if err := l.state.Flush(); err != nil {
			t.Fatal(err)
		}
		c.put("more", "and more")
		first := make(chan uint64, 1) // logs are their worker's
		l.store.worker(base.DefaultRange).Do(func(*host.Worker) { first <- l.store.opts.Log.Log(base.DefaultRange).First() })
		return <-first > missed+1
	})
	c.isolate(late.id, false)
	until(t, "a follower that caught up", func() bool {
		v, l := late.store.Replica(base.DefaultRange), c.leader(base.DefaultRange).store.Replica(base.DefaultRange)
		return v.Applied.Index >= l.Applied.Index
	})
	late.wants("early", "1")
	late.wants("k59", "59")
	// What it got is durable, and it goes on from there.
	late.crash()
	late.start()
	late.wants("k30", "30")
	c.put("after", "2")
	late.wants("after", "2")
}

// An error says whether the write may have been done: unknown outcome only once it may
// stand in a log.
func TestDefiniteAndUnknownOutcomes(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	c.put("a", "1")
	leader := c.leader(base.DefaultRange)
	if _, err := leader.propose("a", "2", -time.Second); err != nil && fault.KindOf(err) == fault.Internal {
		t.Errorf("%v", err)
	}
	c.put("a", "3")
	leader = c.leader(base.DefaultRange)
	oracle := c.leader(base.SystemRange)
	c.isolate(leader.id, true)
	_, err := leader.propose("a", "4", 60*time.Millisecond)
	switch kind := fault.KindOf(err); {
	case leader != oracle && kind != fault.Deadline && kind != fault.NotLeader:
		t.Errorf("without a timestamp nothing was appended, and the error is %v", err)
	case leader == oracle && kind != fault.UnknownOutcome && kind != fault.Deadline && kind != fault.NotLeader:
		t.Errorf("%v", err)
	}
	c.isolate(leader.id, false)
	got := "3"
	if fault.KindOf(err) == fault.UnknownOutcome {
		return
	}
	c.leader(base.SystemRange)
	c.leader(base.DefaultRange)
	for _, m := range c.members {
		m.wants("a", got) // a definite no stays one
	}
}

// A leader that is cut off after it appended can't know.
func TestAppendedAndNotCommittedIsUnknown(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.create(descriptor(base.SystemRange, base.SystemKeyspace, 1))
	c.create(descriptor(base.DefaultRange, base.DefaultKeyspace, 1, 2))
	until(t, "a put at node 1", func() bool {
		_, err := c.members[0].propose("a", "1", patience)
		return err == nil
	})
	c.isolate(2, true)
	// The oracle is on this node alone, so the write gets its stamp and is appended.
	_, err := c.members[0].propose("a", "2", 60*time.Millisecond)
	if fault.KindOf(err) != fault.UnknownOutcome {
		t.Errorf("%v", err)
	}
	// A read that can't be confirmed gives no answer at all.
	_, err = await(t, func(done func(replica.BarrierReply, error)) {
		s := c.members[0].store
		s.Barrier(base.DefaultRange, &replica.Barrier{Apply: true, Deadline: s.Clock().Mono().Add(300 * time.Millisecond), Done: done})
	})
	if k := fault.KindOf(err); k != fault.Deadline && k != fault.NotLeader {
		t.Errorf("a read without a majority: %v", err)
	}
	c.isolate(2, false)
	c.put("b", "1")
}

// Closing answers who waits: what was appended is unknown, what was not is not done.
func TestCloseAnswersWaiters(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.create(descriptor(base.SystemRange, base.SystemKeyspace, 1))
	c.create(descriptor(base.DefaultRange, base.DefaultKeyspace, 1, 2))
	until(t, "a put at node 1", func() bool {
		_, err := c.members[0].propose("a", "1", patience)
		return err == nil
	})
	c.isolate(2, true)
	m := c.members[0]
	last := m.store.Replica(base.DefaultRange).Last
	errs := make(chan error, 2)
	for range 2 {
		m.store.Propose(base.DefaultRange, putEnvelope(t, "a", "2"), 0, func(_ command.Result, err error) { errs <- err })
	}
	until(t, "two appended writes", func() bool { return m.store.Replica(base.DefaultRange).Last == last+2 })
	m.stop()
	for range 2 {
		if err := <-errs; fault.KindOf(err) != fault.UnknownOutcome {
			t.Errorf("%v", err)
		}
	}
}

// A voter that cannot be reached is not waited for: the oracle begins without it, however
// long one that is silent would be waited for.
func TestT2TheOracleDoesNotWaitForTheDead(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.Oracle.Election = 4 * patience })
	c.members[2].stop()
	d := descriptor(base.SystemRange, base.SystemKeyspace, c.ids()...)
	for _, m := range c.members[:2] {
		if err := m.store.CreateReplica(d); err != nil {
			t.Fatal(err)
		}
	}
	c.members[0].stamps(1)
}
