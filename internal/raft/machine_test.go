package raft

import (
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

func TestReplication(t *testing.T) {
	c := quiet(t, 3)
	l := c.elect(1)
	st := l.machine.Status()
	if st.TermStart != 11 || st.LastIndex != 11 || st.LastTerm != st.Term || st.Leader != 1 {
		t.Fatalf("new leader %+v", st)
	}
	for i := range 100 {
		mark, err := c.propose(l, fmt.Sprint(i))
		if want := (base.LogMark{Index: uint64(12 + i), Term: st.Term}); err != nil || mark != want {
			t.Fatalf("mark %+v, %v; want %+v", mark, err, want)
		}
	}
	_, err := c.peer(2).machine.Propose([]byte("x"))
	if fault.KindOf(err) != fault.NotLeader {
		t.Fatalf("a follower took a proposal: %v", err)
	}
	if _, err := l.machine.Propose(nil); fault.KindOf(err) != fault.Invalid {
		t.Fatalf("an empty command: %v", err)
	}
	c.run(50 * time.Millisecond)
	c.converged()
	st = l.machine.Status()
	if st.Commit != 111 || st.Applied != 111 {
		t.Fatalf("%+v", st)
	}
	for _, p := range l.machine.Progress() {
		if p.Match != 111 || !p.Active || p.NeedsSnapshot || p.Learner {
			t.Fatalf("%+v", p)
		}
	}
	// Nothing that is recent was read back.
	for _, p := range c.peers {
		if p.log.reads != 0 {
			t.Fatalf("replica %d read %d entries from its log", p.id, p.log.reads)
		}
	}
}

func TestLeaderChange(t *testing.T) {
	c := quiet(t, 3)
	old := c.elect(1)
	c.isolate(1)
	lost, err := c.propose(old, "lost")
	if err != nil {
		t.Fatal(err)
	}
	c.run(500 * time.Millisecond)
	if old.machine.Status().Orderer {
		t.Fatal("a leader without a quorum did not step down")
	}
	l := c.leader()
	if l == nil {
		t.Fatal("no new leader")
	}
	kept, err := c.propose(l, "kept")
	if err != nil {
		t.Fatal(err)
	}
	if kept.Index > lost.Index+1 || kept.Term <= lost.Term {
		t.Fatalf("lost at %+v, kept at %+v", lost, kept)
	}
	c.heal()
	c.run(500 * time.Millisecond)
	c.converged()
	if e := c.committed[lost.Index]; e.Term == lost.Term {
		t.Fatal("the lost entry was committed")
	}
}

func TestBusy(t *testing.T) {
	c := newCluster(t, 1, 3)
	c.options = func(o *Options) { o.MaxUncommittedBytes = 100 }
	c.startAll()
	l := c.elect(1)
	var err error
	n := 0
	for ; err == nil; n++ {
		_, err = c.propose(l, strings.Repeat("x", 40))
	}
	if fault.KindOf(err) != fault.Busy || n != 3 {
		t.Fatalf("after %d proposals: %v", n, err)
	}
	c.run(10 * time.Millisecond)
	mark, err := c.propose(l, "y")
	if err != nil || mark.Index != 14 {
		t.Fatalf("after the commit: %+v, %v", mark, err)
	}
	l.machine.Transfer(2)
	if _, err := c.propose(l, "z"); fault.KindOf(err) != fault.Busy {
		t.Fatalf("while handing over: %v", err)
	}
}

func TestSnapshot(t *testing.T) {
	c := quiet(t, 3)
	l := c.elect(1)
	c.isolate(3)
	for i := range 50 {
		_, _ = c.propose(l, fmt.Sprint(i))
		c.step()
	}
	c.run(10 * time.Millisecond)
	l.log.truncate(l.applied)
	l.machine.storage.forget()
	c.heal()
	c.run(200 * time.Millisecond)
	c.converged()
	if p := c.peer(3); p.log.First() != l.applied+1 || p.config.Epoch != 1 || len(p.config.Voters) != 3 {
		t.Fatalf("no snapshot arrived: first %d, %+v", p.log.First(), p.config)
	}
	_, _ = c.propose(l, "after")
	c.run(10 * time.Millisecond)
	c.converged()
}

// TestEarlyAndLate checks what may leave before the save, and MustSync.
func TestEarlyAndLate(t *testing.T) {
	c := quiet(t, 3)
	c.latency = func() time.Duration { return -1 }
	p := c.peer(1)
	p.machine.Campaign()
	check := func(rd effect.Ready) {
		for _, m := range rd.Early {
			switch k := pb.MessageType(m.Type); k {
			case pb.MsgAppResp, pb.MsgVoteResp, pb.MsgPreVoteResp:
				t.Fatalf("early %+v", m)
			case pb.MsgApp, pb.MsgHeartbeat:
				if m.Round == 0 {
					t.Fatalf("no round in %+v", m)
				}
			}
		}
		for _, m := range rd.Late {
			if k := pb.MessageType(m.Type); k == pb.MsgApp || k == pb.MsgHeartbeat {
				t.Fatalf("late %+v", m)
			}
			if !rd.Save {
				t.Fatalf("late without a save: %+v", m)
			}
		}
	}
	seen := map[pb.MessageType]bool{}
	for range 20 {
		for _, q := range c.peers {
			for q.machine.HasReady() {
				rd := q.machine.Ready(c.clock(q))
				check(rd)
				if sync := len(rd.Entries) > 0 || rd.HardState != nil && (rd.HardState.Term != q.hard.Term || rd.HardState.Vote != q.hard.Vote); sync != rd.MustSync {
					t.Fatalf("MustSync %v in %+v", rd.MustSync, rd)
				}
				if rd.HardState != nil {
					q.hard = *rd.HardState
				}
				q.log.save(rd.Entries)
				done(q.machine, c.clock(q), rd)
				for _, m := range append(rd.Early, rd.Late...) {
					seen[pb.MessageType(m.Type)] = true
					if err := c.peer(m.To).machine.Step(c.clock(c.peer(m.To)), m); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	p.machine.StartRound(c.clock(p))
	rd := p.machine.Ready(c.clock(p))
	check(rd)
	if len(rd.Early) != 2 {
		t.Fatalf("a round of %d messages", len(rd.Early))
	}
	for _, k := range []pb.MessageType{pb.MsgPreVote, pb.MsgPreVoteResp, pb.MsgVote, pb.MsgVoteResp, pb.MsgApp, pb.MsgAppResp} {
		if !seen[k] {
			t.Errorf("no %v was sent", k)
		}
	}
}

// TestOtherEntries has configuration and switch entries pass through a log.
func TestOtherEntries(t *testing.T) {
	c := quiet(t, 3)
	m := c.peer(2).machine
	entries := []base.Entry{
		{Index: 11, Term: 6, Type: base.EntryNoop},
		{Index: 12, Term: 6, Type: base.EntryConfiguration, Data: []byte("any")},
		{Index: 13, Term: 6, Type: base.EntryConfiguration},
		{Index: 14, Term: 6, Type: base.EntryProtocolSwitch, Data: []byte("chain")},
		{Index: 15, Term: 6, Type: base.EntryProtocolSwitch},
		{Index: 16, Term: 6, Type: base.EntryCommand, Data: []byte("x")},
	}
	err := m.Step(c.clock(c.peer(2)), effect.Message{
		Range: testRange, From: 1, To: 2, Type: effect.MessageType(pb.MsgApp), Term: 6,
		LogTerm: 5, Index: 10, Commit: 16, Entries: entries,
	})
	if err != nil {
		t.Fatal(err)
	}
	rd := m.Ready(c.clock(c.peer(2)))
	if fmt.Sprint(rd.Entries) != fmt.Sprint(entries) || len(rd.Committed) != 0 {
		t.Fatalf("entries %v, committed before they are saved %v", rd.Entries, rd.Committed)
	}
	c.peer(2).log.save(rd.Entries)
	done(m, c.clock(c.peer(2)), rd)
	rd = m.Ready(c.clock(c.peer(2)))
	if fmt.Sprint(rd.Committed) != fmt.Sprint(entries) {
		t.Fatalf("committed %v", rd.Committed)
	}
	done(m, c.clock(c.peer(2)), rd)
	config := c.peer(2).config
	config.Epoch = 4
	if err := m.ApplyConfiguration(config); err != nil || m.storage.config.Epoch != 4 {
		t.Fatal(err)
	}
	config.Voters = config.Voters[:2]
	if err := m.ApplyConfiguration(config); fault.KindOf(err) != fault.Unimplemented {
		t.Fatal(err)
	}
}

func TestOptions(t *testing.T) {
	good := func() Options {
		return Options{
			Range: 1, Replica: 2, Config: effect.Configuration{Voters: []base.ReplicaID{1, 2}}, Applied: 10,
			HardState: effect.HardState{Term: 5, Commit: 10}, Log: &memLog{before: base.LogMark{Index: 10, Term: 5}},
			Tick: testTick, ElectionTicks: 10, HeartbeatTicks: 2,
		}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]func(*Options){
		"range":      func(o *Options) { o.Range = 0 },
		"replica":    func(o *Options) { o.Replica = 0 },
		"local":      func(o *Options) { o.Replica = ^base.ReplicaID(0) },
		"log":        func(o *Options) { o.Log = nil },
		"tick":       func(o *Options) { o.Tick = 0 },
		"heartbeat":  func(o *Options) { o.HeartbeatTicks = 10 },
		"doubled":    func(o *Options) { o.Config.Voters = []base.ReplicaID{1, 1} },
		"both":       func(o *Options) { o.Config.Learners = []base.ReplicaID{1} },
		"nobody":     func(o *Options) { o.Config.Voters = []base.ReplicaID{0, 1} },
		"low":        func(o *Options) { o.HardState.Commit = 9 },
		"high":       func(o *Options) { o.HardState.Commit = 11 },
		"unapplied":  func(o *Options) { o.Applied = 9 },
		"ahead":      func(o *Options) { o.Applied = 11 },
		"old term":   func(o *Options) { o.HardState.Term = 4 },
		"negative":   func(o *Options) { o.CacheBytes = -1 },
		"inflight":   func(o *Options) { o.MaxInflightBytes = 1 },
		"only learn": func(o *Options) { o.Config = effect.Configuration{Learners: []base.ReplicaID{2}} },
	} {
		o := good()
		bad(&o)
		if _, err := New(o); fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := good()
	o.HardState = effect.HardState{}
	m, err := New(o)
	if err != nil || m.Status().Term != 5 || m.Status().Commit != 10 {
		t.Fatalf("a log that starts above zero: %v", err)
	}
}

// TestAnyMessage steps messages, sound, mutated and random, and carries out what the
// machines want done. None may panic.
func TestAnyMessage(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newCluster(t, 3, 3).startAll()
		c.elect(1)
		for i := range 5 {
			_, _ = c.propose(c.peer(1), fmt.Sprint(i))
		}
		c.run(time.Duration(rapid.IntRange(1, 40).Draw(rt, "run")) * time.Millisecond)
		p := c.peer(base.ReplicaID(rapid.IntRange(1, 3).Draw(rt, "victim")))
		for range rapid.IntRange(1, 12).Draw(rt, "messages") {
			msg := drawMessage(rt, p)
			stepOrForget(c, p, msg)
			if rapid.Bool().Draw(rt, "ready") {
				obey(c, p)
			}
			if rapid.IntRange(0, 3).Draw(rt, "tick") == 0 {
				c.now += testTick
				p.machine.Tick(c.clock(p))
			}
			if rapid.IntRange(0, 9).Draw(rt, "late") == 0 {
				c.now += testPromise
				p.machine.Campaign()
				p.machine.Transfer(base.ReplicaID(rapid.IntRange(0, 4).Draw(rt, "transfer")))
				_, _ = p.machine.Propose([]byte("x"))
			}
		}
		obey(c, p)
	})
}

// stepOrForget gives a machine a message that may tell it that it forgot something.
func stepOrForget(c *cluster, p *peer, m effect.Message) {
	defer func() {
		if cause := recover(); cause != nil {
			if f, ok := cause.(*fault.Error); !ok || f.Kind != fault.Corrupt {
				panic(cause)
			}
		}
	}()
	_ = p.machine.Step(c.clock(p), m)
}

// obey carries out what a machine wants, without asking whether it makes sense.
func obey(c *cluster, p *peer) {
	for p.machine.HasReady() {
		rd := p.machine.Ready(c.clock(p))
		if rd.Snapshot != nil {
			p.log.reset(rd.Snapshot.Mark)
		}
		p.log.save(rd.Entries)
		done(p.machine, c.clock(p), rd)
	}
}

func drawMessage(rt *rapid.T, p *peer) effect.Message {
	st := p.machine.Status()
	near := func(name string, v uint64) uint64 {
		switch rapid.IntRange(0, 7).Draw(rt, name+" how") {
		case 0:
			return rapid.Uint64().Draw(rt, name)
		case 1:
			return 0
		default:
			return v + uint64(rapid.IntRange(0, 6).Draw(rt, name)) - 3
		}
	}
	m := effect.Message{
		Range: testRange, To: p.id, From: base.ReplicaID(rapid.IntRange(0, 4).Draw(rt, "from")),
		Type: effect.MessageType(rapid.IntRange(0, 26).Draw(rt, "type")), Term: st.Term + uint64(rapid.IntRange(0, 1).Draw(rt, "later")),
		LogTerm: near("log term", st.LastTerm), Index: near("index", st.LastIndex), Commit: near("commit", st.Commit),
		Hint: near("hint", st.LastIndex), Reject: rapid.Bool().Draw(rt, "reject"),
		Round: int64(near("round", uint64(p.machine.now))), Vote: base.ReplicaID(near("vote", 1)),
	}
	if rapid.IntRange(0, 5).Draw(rt, "term how") == 0 {
		m.Term = near("term", st.Term)
	}
	if rapid.Bool().Draw(rt, "context?") {
		m.Context = rapid.SampledFrom([][]byte{[]byte(transferContext), {1}, {1, 2, 3, 4, 5, 6, 7, 8}, {}}).Draw(rt, "context")
	}
	if rapid.Bool().Draw(rt, "entries?") {
		term := near("entry term", m.Term)
		for i := range rapid.IntRange(0, 4).Draw(rt, "entries") {
			e := base.Entry{Index: m.Index + 1 + uint64(i), Term: term, Type: base.EntryCommand, Data: []byte("e")}
			if rapid.IntRange(0, 9).Draw(rt, "odd") == 0 {
				e.Index, e.Type = near("entry", e.Index), base.EntryType(rapid.IntRange(0, 6).Draw(rt, "entry type"))
			}
			m.Entries = append(m.Entries, e)
		}
	}
	if rapid.IntRange(0, 4).Draw(rt, "snapshot?") == 0 {
		m.Snapshot = &effect.SnapshotMeta{Mark: base.LogMark{Index: near("mark", st.LastIndex), Term: near("mark term", st.Term)}}
		m.Snapshot.Config.Voters = rapid.SampledFrom([][]base.ReplicaID{nil, {1, 2, 3}, {1, 1}, {4}, {p.id}}).Draw(rt, "voters")
		m.Type = effect.MessageType(pb.MsgSnap)
	}
	return m
}

func BenchmarkCommit(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			c := newCluster(b, 1, 3).startAll()
			c.elect(1)
			data := make([]byte, 256)
			l := c.peer(1)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += batch {
				for range batch {
					if _, err := l.machine.Propose(data); err != nil {
						b.Fatal(err)
					}
				}
				benchRound(b, c)
				if l.log.Last()-l.log.First() > 10000 {
					for _, p := range c.peers {
						p.log.truncate(p.machine.Status().Applied)
					}
				}
			}
		})
	}
}

// benchRound carries out everything until the group is still.
func benchRound(b *testing.B, c *cluster) {
	for busy := true; busy; {
		busy = false
		for _, p := range c.peers {
			for p.machine.HasReady() {
				busy = true
				rd := p.machine.Ready(p.machine.now)
				p.log.save(rd.Entries)
				done(p.machine, p.machine.now, rd)
				for _, msgs := range [][]effect.Message{rd.Early, rd.Late} {
					for i := range msgs {
						to := c.peer(msgs[i].To).machine
						if err := to.Step(to.now, msgs[i]); err != nil {
							b.Fatal(err)
						}
					}
				}
			}
		}
	}
}

// TestRefusedMessages checks that what no sound replica sends is refused with an error
// and leaves the machine as it was.
func TestRefusedMessages(t *testing.T) {
	c := quiet(t, 3)
	l := c.elect(1)
	_, _ = c.propose(l, "a")
	c.run(50 * time.Millisecond)
	st := l.machine.Status()
	app := effect.Message{
		Range: testRange, From: 1, To: 2, Type: effect.MessageType(pb.MsgApp), Term: st.Term, LogTerm: st.Term, Index: 12,
		Entries: []base.Entry{{Index: 13, Term: st.Term, Type: base.EntryCommand, Data: []byte("x")}},
	}
	snap := effect.Message{
		Range: testRange, From: 1, To: 2, Type: effect.MessageType(pb.MsgSnap), Term: st.Term,
		Snapshot: &effect.SnapshotMeta{Mark: base.LogMark{Index: 40, Term: st.Term}, Config: l.config},
	}
	resp := effect.Message{Range: testRange, From: 2, To: 1, Type: effect.MessageType(pb.MsgAppResp), Term: st.Term, Index: 12}
	entry := func(m *effect.Message, change func(*base.Entry)) {
		e := m.Entries[0]
		change(&e)
		m.Entries = []base.Entry{e}
	}
	meta := func(m *effect.Message, change func(*effect.SnapshotMeta)) {
		s := *m.Snapshot
		change(&s)
		m.Snapshot = &s
	}
	for name, tc := range map[string]struct {
		sound  effect.Message
		spoil  func(*effect.Message)
		reason fault.Kind
	}{
		"range":       {app, func(m *effect.Message) { m.Range++ }, fault.Invalid},
		"replica":     {app, func(m *effect.Message) { m.To = 3 }, fault.Invalid},
		"itself":      {app, func(m *effect.Message) { m.From = 2 }, fault.Invalid},
		"nobody":      {app, func(m *effect.Message) { m.From = 0 }, fault.Invalid},
		"local":       {app, func(m *effect.Message) { m.From = ^base.ReplicaID(0) }, fault.Invalid},
		"type":        {app, func(m *effect.Message) { m.Type, m.Entries = 77, nil }, fault.Invalid},
		"hup":         {app, func(m *effect.Message) { m.Type, m.Entries = 0, nil }, fault.Invalid},
		"propose":     {app, func(m *effect.Message) { m.Type = effect.MessageType(pb.MsgProp) }, fault.Corrupt},
		"no term":     {app, func(m *effect.Message) { m.Term = 0 }, fault.Corrupt},
		"term":        {app, func(m *effect.Message) { m.Term = limit }, fault.Corrupt},
		"log term":    {app, func(m *effect.Message) { m.LogTerm++ }, fault.Corrupt},
		"index":       {app, func(m *effect.Message) { m.Index = ^uint64(0) }, fault.Corrupt},
		"round":       {app, func(m *effect.Message) { m.Round = -1 }, fault.Corrupt},
		"two leaders": {app, func(m *effect.Message) { m.From = 3 }, fault.Corrupt},
		"gap":         {app, func(m *effect.Message) { entry(m, func(e *base.Entry) { e.Index++ }) }, fault.Corrupt},
		"entry term":  {app, func(m *effect.Message) { entry(m, func(e *base.Entry) { e.Term++ }) }, fault.Corrupt},
		"older term":  {app, func(m *effect.Message) { entry(m, func(e *base.Entry) { e.Term-- }) }, fault.Corrupt},
		"entry type":  {app, func(m *effect.Message) { entry(m, func(e *base.Entry) { e.Type = 9 }) }, fault.Corrupt},
		"empty":       {app, func(m *effect.Message) { entry(m, func(e *base.Entry) { e.Data = nil }) }, fault.Corrupt},
		"full no-op":  {app, func(m *effect.Message) { entry(m, func(e *base.Entry) { e.Type = base.EntryNoop }) }, fault.Corrupt},
		"snapshot":    {snap, func(m *effect.Message) { m.Type = effect.MessageType(pb.MsgApp) }, fault.Corrupt},
		"no snapshot": {snap, func(m *effect.Message) { m.Snapshot = nil }, fault.Corrupt},
		"mark":        {snap, func(m *effect.Message) { meta(m, func(s *effect.SnapshotMeta) { s.Mark.Term++ }) }, fault.Corrupt},
		"no voters":   {snap, func(m *effect.Message) { meta(m, func(s *effect.SnapshotMeta) { s.Config.Voters = nil }) }, fault.Corrupt},
		"not in it": {snap, func(m *effect.Message) {
			meta(m, func(s *effect.SnapshotMeta) { s.Config.Voters = []base.ReplicaID{1, 3} })
		}, fault.Invalid},
		"ack":      {resp, func(m *effect.Message) { m.Index = 13 }, fault.Corrupt},
		"hint":     {resp, func(m *effect.Message) { m.Reject, m.Hint = true, 13 }, fault.Corrupt},
		"echo":     {resp, func(m *effect.Message) { m.Round = int64(l.machine.rounds.sent) + 1 }, fault.Corrupt},
		"stranger": {resp, func(m *effect.Message) { m.From = 8 }, fault.Invalid},
	} {
		m := tc.sound
		p := c.peer(m.To)
		tc.spoil(&m)
		before := p.machine.Status()
		err := p.machine.Step(c.clock(p), m)
		if fault.KindOf(err) != tc.reason || p.machine.Status() != before || p.machine.HasReady() {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, m := range []effect.Message{resp, app, snap} {
		if err := c.peer(m.To).machine.Step(c.clock(c.peer(m.To)), m); err != nil {
			t.Errorf("a sound message was refused: %v", err)
		}
	}
}

// TestForgottenAcknowledgement checks that a replica whose leader counts on what it does not
// hold ends with an error of damage: no message would ever bring it further.
func TestForgottenAcknowledgement(t *testing.T) {
	c := quiet(t, 3)
	l := c.elect(1)
	_, _ = c.propose(l, "a")
	c.run(50 * time.Millisecond)
	p := c.peer(2)
	st := p.machine.Status()
	heartbeat := effect.Message{
		Range: testRange, From: 1, To: 2, Type: effect.MessageType(pb.MsgHeartbeat), Term: st.Term, Commit: st.LastIndex,
	}
	if err := p.machine.Step(c.clock(p), heartbeat); err != nil {
		t.Fatal(err)
	}
	defer func() {
		f, ok := recover().(*fault.Error)
		if !ok || f.Kind != fault.Corrupt || f.Range != testRange || !strings.Contains(f.Text, "the log's end is lost") {
			t.Errorf("it panics with %v", f)
		}
	}()
	heartbeat.Commit++
	err := p.machine.Step(c.clock(p), heartbeat)
	t.Errorf("it goes on: %v", err)
}

// TestBrokenInvariant checks that upstream's panics stay panics that say where.
func TestBrokenInvariant(t *testing.T) {
	defer func() {
		err, ok := recover().(*fault.Error)
		if !ok || err.Kind != fault.Internal || err.Range != testRange {
			t.Fatalf("%v", err)
		}
	}()
	(&logger{rangeID: testRange, replica: 1}).Panicf("entry %d", 7)
}

// TestHeartbeatAfterACut has a heartbeat commit what an append of the same turn cut off.
func TestHeartbeatAfterACut(t *testing.T) {
	c := quiet(t, 3)
	p, m := c.peer(2), c.peer(2).machine
	step := func(from base.ReplicaID, kind pb.MessageType, term, commit uint64, entries ...base.Entry) {
		t.Helper()
		msg := effect.Message{
			Range: testRange, From: from, To: 2, Type: effect.MessageType(kind), Term: term, Commit: commit, Entries: entries,
		}
		if kind == pb.MsgApp {
			msg.Index, msg.LogTerm = 10, 5
		}
		if err := m.Step(c.clock(p), msg); err != nil {
			t.Fatal(err)
		}
	}
	x := []byte("x")
	step(1, pb.MsgApp, 6, 10, base.Entry{Index: 11, Term: 6, Type: 1, Data: x}, base.Entry{Index: 12, Term: 6, Type: 1, Data: x})
	obey(c, p)
	step(3, pb.MsgApp, 7, 10, base.Entry{Index: 11, Term: 7, Type: 1, Data: x})
	step(3, pb.MsgHeartbeat, 7, 12)
	if st := m.Status(); st.Commit > 11 {
		t.Fatalf("commit index %d in a log of 11", st.Commit)
	}
	obey(c, p)
	if p.log.Last() != 11 {
		t.Fatalf("log ends at %d", p.log.Last())
	}
}
