package replica

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/dispatch"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/host"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/statestore"
	"github.com/almanacdb/almanac/internal/timeline"
)

// firstEntry is where logs begin in these tests: after (10, 5), as in a created range.
var beforeFirst = base.LogMark{Index: 10, Term: 5}

// fakeMachine is a group's machine whose leadership, commits and leases the test decides.
// Its log is a plain slice; what it hands out in Ready is what a real one would.
type fakeMachine struct {
	self      base.ReplicaID
	st        effect.Status
	entries   []base.Entry // after beforeFirst, or after the installed snapshot
	before    base.LogMark // the mark that entries follow
	unsaved   int          // how many at the end are not in a Ready yet
	handed    uint64       // committed entries up to here were in a Ready
	lease     bool
	confirmed clock.Mono // a quorum acknowledged a round sent then; 0: none in this term
	rounds    []clock.Mono
	asked     clock.Mono // the latest StartRound
	busy      error      // what Propose fails with
	snapshot  *effect.SnapshotMeta
	accept    bool // what Step does with a snapshot
	early     []effect.Message
	reports   []SnapshotSent
	transfers []base.ReplicaID
	gone      []base.ReplicaID
	campaigns int
}

var _ Machine = (*fakeMachine)(nil)

func (m *fakeMachine) Tick(clock.Mono) {}

func (m *fakeMachine) Step(_ clock.Mono, msg effect.Message) error {
	if msg.Snapshot != nil && m.accept {
		m.snapshot = msg.Snapshot
	}
	return nil
}

func (m *fakeMachine) Propose(data []byte) (base.LogMark, error) {
	if !m.st.Orderer {
		return base.LogMark{}, fault.NotLeaderOf(1, 0)
	}
	if m.busy != nil {
		return base.LogMark{}, m.busy
	}
	return m.push(base.EntryCommand, m.st.Term, data), nil
}

func (m *fakeMachine) push(t base.EntryType, term uint64, data []byte) base.LogMark {
	m.st.LastIndex++
	m.st.LastTerm = term
	m.entries = append(m.entries, base.Entry{Index: m.st.LastIndex, Term: term, Type: t, Data: data})
	m.unsaved++
	return base.LogMark{Index: m.st.LastIndex, Term: term}
}

func (m *fakeMachine) HasReady() bool {
	return m.unsaved > 0 || m.handed < m.st.Commit || m.snapshot != nil || len(m.early) > 0 || m.asked != 0
}

func (m *fakeMachine) entry(i uint64) base.Entry { return m.entries[i-m.before.Index-1] }

func (m *fakeMachine) Ready(now clock.Mono) effect.Ready {
	rd := effect.Ready{MustSync: true, Snapshot: m.snapshot, Early: m.early}
	rd.HardState = &effect.HardState{Term: m.st.Term, Commit: m.st.Commit}
	if s := m.snapshot; s != nil {
		m.entries, m.unsaved, m.before = nil, 0, s.Mark
		m.handed, m.st.Commit = s.Mark.Index, s.Mark.Index
		m.st.LastIndex, m.st.LastTerm = s.Mark.Index, s.Mark.Term
		rd.HardState.Commit = s.Mark.Index
	}
	rd.Entries = slices.Clone(m.entries[len(m.entries)-m.unsaved:])
	for m.handed < m.st.Commit {
		m.handed++
		rd.Committed = append(rd.Committed, m.entry(m.handed))
	}
	if m.asked != 0 {
		m.rounds = append(m.rounds, now)
		m.asked = 0
	}
	m.snapshot, m.unsaved, m.early = nil, 0, nil
	return rd
}

func (m *fakeMachine) Saved(clock.Mono) {}

func (m *fakeMachine) Applied(entries []base.Entry) {
	m.st.Applied = entries[len(entries)-1].Index
}

func (m *fakeMachine) Campaign()                    { m.campaigns++ }
func (m *fakeMachine) LeaderGone(id base.ReplicaID) { m.gone = append(m.gone, id) }
func (m *fakeMachine) Transfer(to base.ReplicaID)   { m.transfers = append(m.transfers, to) }
func (m *fakeMachine) Status() effect.Status        { return m.st }
func (m *fakeMachine) HasLease(clock.Mono) bool     { return m.st.Orderer && m.lease }
func (m *fakeMachine) StartRound(now clock.Mono)    { m.asked = now }
func (m *fakeMachine) ConfirmedSince(t clock.Mono) bool {
	return m.st.Orderer && m.confirmed != 0 && m.confirmed >= t
}

func (m *fakeMachine) ReportSnapshot(to base.ReplicaID, ok bool) {
	m.reports = append(m.reports, SnapshotSent{To: to, OK: ok})
}

// lead makes this replica the orderer of a later term, with that term's no-op appended.
func (m *fakeMachine) lead() {
	m.st.Term++
	m.st.Orderer, m.st.Leader = true, m.self
	m.lease, m.confirmed = false, 0
	m.st.TermStart = m.push(base.EntryNoop, m.st.Term, nil).Index
}

// follow makes another replica the orderer of a later term. What is not committed is cut
// off the log at keep, and that one's entries follow.
func (m *fakeMachine) follow(leader base.ReplicaID, keep uint64, datas ...[]byte) {
	m.st.Term++
	m.st.Orderer, m.st.Leader, m.st.TermStart = false, leader, 0
	m.lease, m.confirmed, m.asked = false, 0, 0
	keep = min(max(keep, m.st.Commit), m.st.LastIndex)
	cut := int(m.st.LastIndex - keep)
	m.entries = slices.Clone(m.entries[:len(m.entries)-cut])
	m.unsaved = max(0, m.unsaved-cut)
	m.st.LastIndex = keep
	m.push(base.EntryNoop, m.st.Term, nil)
	for _, d := range datas {
		m.push(base.EntryCommand, m.st.Term, d)
	}
}

// commitTo says that a majority holds the log up to i.
func (m *fakeMachine) commitTo(i uint64) { m.st.Commit = max(m.st.Commit, min(i, m.st.LastIndex)) }

// stampAsk is one call of Env.Stamps.
type stampAsk struct {
	n     int
	token uint64
	turn  int
}

// fakeEnv collects what a replica wants from its node.
type fakeEnv struct {
	state    *statestore.Store
	turn     int
	asks     []stampAsk
	anchorMS int64
	anchorAt clock.Mono
	samples  int
	outs     []dispatch.Out
	sent     []effect.Message
	noRoom   bool // for snapshots
	fatal    error
}

func (e *fakeEnv) Stamps(_ base.RangeID, n int, token uint64) {
	e.asks = append(e.asks, stampAsk{n, token, e.turn})
}
func (e *fakeEnv) OracleAnchor() (int64, clock.Mono, bool) {
	return e.anchorMS, e.anchorAt, e.anchorMS != 0
}
func (e *fakeEnv) Samples(base.RangeID, []base.NodeID)        { e.samples++ }
func (e *fakeEnv) SendSession(_ base.RangeID, o dispatch.Out) { e.outs = append(e.outs, o) }
func (e *fakeEnv) SendSnapshot(_ *base.RangeDescriptor, m effect.Message) bool {
	if !e.noRoom {
		e.sent = append(e.sent, m)
	}
	return !e.noRoom
}
func (e *fakeEnv) DurableApplied(r base.RangeID) (uint64, error) {
	mark, ok, err := e.state.DurableApplied(r)
	if !ok || err != nil {
		return 0, err
	}
	return mark.Index, nil
}
func (e *fakeEnv) Fatal(err error) { e.fatal = err }

// fatals is how a harness fails: testing.T's or rapid.T's.
type fatals interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// rig runs one replica over the real state machine and the real log store.
type rig struct {
	t       fatals
	r       *Replica
	m       *fakeMachine
	env     *fakeEnv
	eng     *engine.Mem
	logs    *logstore.Store
	failure error // what the state engine's commits fail with
	now     clock.Mono
}

const (
	userRange  = base.RangeID(7)
	topicRange = base.RangeID(8)
	topic      = base.TopicID(5)
)

func descriptor(id base.RangeID) base.RangeDescriptor {
	d := base.RangeDescriptor{Range: id, SpanEpoch: 1, ConfigEpoch: 1, Protocol: base.ProtocolRaft, Keyspace: 2,
		Span: keys.KeyspaceSpan(2)}
	if id == topicRange {
		d.Keyspace, d.Topic, d.Span = 0, topic, keys.PartitionSpan(topic, 0, 2)
	}
	for n := range 3 {
		d.Replicas = append(d.Replicas, base.ReplicaDescriptor{
			Node: base.NodeID(n + 1), Replica: base.ReplicaID(n + 101), Role: base.RoleVoter})
	}
	return d
}

func newRig(t fatals, id base.RangeID, change ...func(*Options)) *rig {
	t.Helper()
	g := &rig{t: t, now: clock.Mono(time.Hour)}
	g.eng = engine.NewMem(engine.MemOptions{Fail: func(op engine.Op) error {
		if op == engine.OpCommit {
			return g.failure
		}
		return nil
	}})
	var err error
	g.logs, err = logstore.Open(engine.NewMem(engine.MemOptions{WAL: true}))
	g.must(err)
	g.env = &fakeEnv{state: statestore.New(g.eng)}
	g.m = &fakeMachine{self: 101, before: beforeFirst, handed: beforeFirst.Index, accept: true}
	g.m.st = effect.Status{Term: beforeFirst.Term, LastIndex: beforeFirst.Index, LastTerm: beforeFirst.Term,
		Commit: beforeFirst.Index, Applied: beforeFirst.Index}
	log := g.logs.Log(id)
	b := g.logs.NewBatch()
	b.Reset(log, beforeFirst)
	g.must(b.Commit(true))
	o := Options{
		State: &command.State{Descriptor: descriptor(id), Replica: 101, Applied: beforeFirst},
		Node:  1, Machine: g.m, Log: log, Engine: g.eng, Env: g.env,
		Logger: slog.New(slog.DiscardHandler), KeepEntries: 8, MaxQueued: 64,
	}
	if id == base.SystemRange {
		o.Oracle = oracle.New(oracle.Options{})
	}
	for _, f := range change {
		f(&o)
	}
	g.r = New(o)
	return g
}

func (g *rig) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatalf("%v", err)
	}
}

// turn runs a worker's turn with the items in its mailbox, and those that should follow
// at once.
func (g *rig) turn(items ...any) {
	g.t.Helper()
	g.now = g.now.Add(10 * time.Microsecond)
	g.sameTime(false, items...)
}

// tick is a turn with a tick in it, after d.
func (g *rig) tick(d time.Duration) {
	g.t.Helper()
	g.now = g.now.Add(d)
	g.sameTime(true)
}

func (g *rig) sameTime(tick bool, items ...any) {
	g.t.Helper()
	for again, n := true, 0; again; n++ {
		if n > 50 {
			g.t.Fatalf("the replica wants another turn for ever")
		}
		g.env.turn++
		for _, item := range items {
			g.r.Deliver(g.now, item)
		}
		items = nil
		if tick {
			g.r.Tick(g.now)
			tick = false
		}
		if at := g.r.Wake(g.now); at != 0 && at <= g.now {
			g.r.Poke(g.now)
		}
		again = g.save(func(t *host.Turn) { g.r.Collect(g.now, t) }) && g.r.Finish(g.now)
	}
}

func (g *rig) save(collect func(*host.Turn)) bool {
	g.t.Helper()
	t := &host.Turn{Batch: g.logs.NewBatch()}
	collect(t)
	g.must(t.Batch.Commit(true))
	return true
}

// serve makes the replica the orderer and lets it apply its first entry.
func (g *rig) serve() {
	g.t.Helper()
	g.m.lead()
	g.turn()
	g.commit()
	if v := g.r.Visible(); !v.Serving {
		g.t.Fatalf("does not serve: %+v", v)
	}
}

// commit commits and applies the whole log.
func (g *rig) commit() {
	g.t.Helper()
	g.m.commitTo(g.m.st.LastIndex)
	g.turn()
}

// grant answers the oldest ask under way; the stamps begin at first.
func (g *rig) grant(first base.Timestamp) {
	g.t.Helper()
	if len(g.env.asks) == 0 {
		g.t.Fatalf("no timestamps were asked for")
	}
	g.turn(g.take(0, first, nil))
}

// take is the answer to the i-th ask under way.
func (g *rig) take(i int, first base.Timestamp, err error) StampGrant {
	a := g.env.asks[i]
	g.env.asks = slices.Delete(g.env.asks, i, i+1)
	return StampGrant{Token: a.token, First: first, Err: err}
}

// outcome is what a request was answered with, and how often.
type outcome struct {
	done   int
	result command.Result
	reply  BarrierReply
	err    error
}

func (o *outcome) String() string {
	return fmt.Sprintf("answered %d times: refusal %v, reply %+v, error %v", o.done, o.result.Refusal, o.reply, o.err)
}

func (o *outcome) kind() fault.Kind { return fault.KindOf(o.err) }

// key names a user key of the range.
func key(name string) []byte { return keys.User(2, []byte(name)) }

func put(name, value string) []byte {
	env, err := command.Encode(command.Header{Kind: command.KindTxn}, &mvcc.Txn{Then: []mvcc.Op{
		{Kind: mvcc.OpPut, Span: base.PointSpan(key(name)), Value: []byte(value)}}})
	if err != nil {
		panic(err)
	}
	return env
}

func proposal(env []byte) (*Proposal, *outcome) {
	o := new(outcome)
	return &Proposal{Envelope: env, Done: func(res command.Result, err error) {
		o.done++
		o.result, o.err = res, err
	}}, o
}

func barrier(at base.Timestamp) (*Barrier, *outcome) {
	o := new(outcome)
	return &Barrier{At: at, Done: func(rep BarrierReply, err error) {
		o.done++
		o.reply, o.err = rep, err
	}}, o
}

func newest() (*Barrier, *outcome) {
	b, o := barrier(0)
	b.Newest = true
	return b, o
}

// stampOf returns the stamp of the command at an index of the machine's log.
func (g *rig) stampOf(index uint64) base.Timestamp {
	g.t.Helper()
	h, err := command.DecodeHeader(g.m.entry(index).Data)
	g.must(err)
	return h.Stamp
}

// value reads a key's newest version.
func (g *rig) value(name string) string {
	g.t.Helper()
	res, err := mvcc.Range(g.eng, base.PointSpan(key(name)), mvcc.RangeOptions{})
	g.must(err)
	if len(res.KVs) == 0 {
		return ""
	}
	return string(res.KVs[0].Value)
}

// publish is a command with one event in partition 0.
func publish(id string, dueMS int64) []byte {
	env, err := command.Encode(command.Header{Kind: command.KindPublish}, &timeline.Publish{Batches: []timeline.Batch{
		{Partition: base.PartitionID{Topic: topic}, Events: []timeline.NewEvent{{MessageID: id, DueMS: dueMS}}}}})
	if err != nil {
		panic(err)
	}
	return env
}

func createGroup(group base.GroupID) []byte {
	env, err := command.Encode(command.Header{Kind: command.KindCreateGroup}, &timeline.CreateGroup{
		Group: group, Start: timeline.StartEarliest,
		Partitions: []base.PartitionID{{Topic: topic}, {Topic: topic, Partition: 1}}})
	if err != nil {
		panic(err)
	}
	return env
}

// do orders a command, stamped at the given time, and commits it.
func (g *rig) do(env []byte, stamp base.Timestamp) *outcome {
	g.t.Helper()
	p, o := proposal(env)
	g.turn(p)
	if h, _ := command.DecodeHeader(env); h.Kind.Stamped() {
		g.grant(stamp)
	}
	g.commit()
	if o.done != 1 || o.err != nil || o.result.Refusal != nil {
		g.t.Fatalf("the command was %v", o)
	}
	return o
}

// files is a staged snapshot that installs a state record and one key.
type files struct {
	g         *rig
	installed int
	aborted   int
	fail      error
	onInstall func()
}

func (f *files) Install(record []byte) error {
	if f.fail != nil {
		return f.fail
	}
	f.installed++
	if f.onInstall != nil {
		f.onInstall()
	}
	b := f.g.eng.NewBatch(false)
	if err := b.Set(keys.RangeState(f.g.r.id), record); err != nil {
		return err
	}
	return errors.Join(b.Commit(false), f.g.eng.Flush())
}

func (f *files) Abort() { f.aborted++ }

// arrived is a snapshot at mark, announced as announced says.
func (g *rig) arrived(mark, announced base.LogMark) (*SnapshotArrived, *files) {
	f := &files{g: g}
	st := &command.State{Descriptor: descriptor(g.r.id), Replica: 102, Applied: mark, LastStamp: 900, Clock: 900}
	return &SnapshotArrived{State: st, Files: f, Message: effect.Message{Range: g.r.id, From: 102, To: 101,
		Term: g.m.st.Term, Snapshot: &effect.SnapshotMeta{Mark: announced}}}, f
}
