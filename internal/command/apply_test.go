package command

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
)

func newView() effect.View { return engine.NewMem(engine.MemOptions{}).NewBatch(true) }

// newState returns the state of range 5, which owns the default keyspace up to "m".
func newState() *State {
	return &State{
		Descriptor: base.RangeDescriptor{
			Range: 5, SpanEpoch: 3, Span: keys.UserSpan(base.DefaultKeyspace, nil, []byte("m")),
		},
		LastStamp: 100, Clock: 110, FeatureLevel: 1,
	}
}

func point(k string) base.Span { return base.PointSpan(keys.User(base.DefaultKeyspace, []byte(k))) }

func putTxn(k, v string) *mvcc.Txn {
	return &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpPut, Span: point(k), Value: []byte(v)}}}
}

func readTxn(k string, at base.Timestamp) *mvcc.Txn {
	return &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpRange, Span: point(k), Range: mvcc.RangeOptions{At: at}}}}
}

type fataler interface {
	Helper()
	Fatal(args ...any)
}

func dump(t fataler, r effect.Reader) []string {
	t.Helper()
	it, err := r.NewIter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var out []string
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(it.Key())+"="+string(v))
	}
	return out
}

// What is fenced off changes nothing at all.
func TestFences(t *testing.T) {
	wide := &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpRange, Span: keys.KeyspaceSpan(base.DefaultKeyspace)}}}
	elseOutside := putTxn("a", "1")
	elseOutside.Else = putTxn("z", "1").Then
	compareOutside := putTxn("a", "1")
	compareOutside.Compares = []mvcc.Compare{{Span: point("z")}}
	outside := &timeline.Publish{Batches: []timeline.Batch{{Partition: base.PartitionID{Topic: 1}}}}
	tests := map[string]struct {
		h    Header
		body any
		want fault.Kind
	}{
		"older span epoch":     {Header{Kind: KindTxn, SpanEpoch: 2, Stamp: 200}, putTxn("a", "1"), fault.WrongRange},
		"newer span epoch":     {Header{Kind: KindTxn, SpanEpoch: 4, Stamp: 200}, putTxn("a", "1"), fault.WrongRange},
		"epoch of an advance":  {Header{Kind: KindAdvance, SpanEpoch: 4, Time: 200}, nil, fault.WrongRange},
		"write outside":        {Header{Kind: KindTxn, SpanEpoch: 3, Stamp: 200}, putTxn("m", "1"), fault.WrongRange},
		"read outside":         {Header{Kind: KindTxn, Stamp: 200}, wide, fault.WrongRange},
		"else branch outside":  {Header{Kind: KindTxn, Stamp: 200}, elseOutside, fault.WrongRange},
		"compare outside":      {Header{Kind: KindTxn, Stamp: 200}, compareOutside, fault.WrongRange},
		"partition outside":    {Header{Kind: KindPublish, Stamp: 200}, outside, fault.WrongRange},
		"stamp of before":      {Header{Kind: KindTxn, Stamp: 99}, putTxn("a", "1"), fault.Restamp},
		"last stamp again":     {Header{Kind: KindTxn, Stamp: 100, Time: 300}, putTxn("a", "1"), fault.Restamp},
		"restamped group":      {Header{Kind: KindCreateGroup, Stamp: 100}, &timeline.CreateGroup{}, fault.Restamp},
		"no stamp":             {Header{Kind: KindTxn, Time: 300}, putTxn("a", "1"), fault.Invalid},
		"publish, no stamp":    {Header{Kind: KindPublish, Time: 300}, &timeline.Publish{}, fault.Invalid},
		"unstamped with stamp": {Header{Kind: KindAck, Stamp: 300}, &timeline.Ack{}, fault.Invalid},
		"stamp too high":       {Header{Kind: KindTxn, Stamp: base.MaxTimestamp + 1}, putTxn("a", "1"), fault.Invalid},
		"time too high":        {Header{Kind: KindAdvance, Time: base.MaxTimestamp + 1}, nil, fault.Invalid},
		"later version":        {Header{Kind: KindTxn, Version: maxVersion + 1, Stamp: 200}, putTxn("a", "1"), fault.Unimplemented},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v, st := newView(), newState()
			res, err := Apply(v, st, mustEncode(t, tt.h, tt.body), true)
			if err != nil || res.Refusal == nil || res.Refusal.Kind != tt.want {
				t.Fatalf("got %+v, %v; want refusal %v", res, err, tt.want)
			}
			if !reflect.DeepEqual(st, newState()) || dump(t, v) != nil {
				t.Errorf("a refused command changed the state: %+v, %q", st, dump(t, v))
			}
			if res.Clock != 110 || res.Stamp != 0 || res.Refusal.Range != 5 {
				t.Errorf("result %+v", res)
			}
		})
	}
}

func TestUnknownKindIsRefusedAlike(t *testing.T) {
	st := newState()
	env := mustEncode(t, Header{Kind: KindAdvance, Time: 500}, nil)
	env[offKind] = byte(KindRaiseFeature) + 1
	env = append(env, "a body of a later version"...)
	res, err := Apply(newView(), st, env, true)
	if err != nil || fault.KindOf(res.Refusal) != fault.Unimplemented || !reflect.DeepEqual(st, newState()) {
		t.Errorf("got %+v, %v, state %+v", res, err, st)
	}
}

// Who raises the clock and the last stamp, and who does not (E2, T3).
func TestClockAndLastStamp(t *testing.T) {
	tests := map[string]struct {
		h                Header
		body             any
		clock, lastStamp base.Timestamp
	}{
		"stamp above the clock":     {Header{Kind: KindTxn, Stamp: 200}, putTxn("a", "1"), 200, 200},
		"stamp below the clock":     {Header{Kind: KindTxn, Stamp: 105}, putTxn("a", "1"), 110, 105},
		"stamp and a higher time":   {Header{Kind: KindTxn, Stamp: 200, Time: 300}, putTxn("a", "1"), 300, 200},
		"publish":                   {Header{Kind: KindPublish, Stamp: 200}, &timeline.Publish{}, 200, 200},
		"group":                     {Header{Kind: KindCreateGroup, Stamp: 200}, &timeline.CreateGroup{Group: 1, Start: timeline.StartLatest}, 200, 200},
		"advance":                   {Header{Kind: KindAdvance, Time: 200}, nil, 200, 100},
		"late advance":              {Header{Kind: KindAdvance, Time: 50}, nil, 110, 100},
		"ack":                       {Header{Kind: KindAck, Time: 200}, &timeline.Ack{}, 200, 100},
		"no-op":                     {Header{Kind: KindNoop, Time: 200}, nil, 110, 100},
		"bound":                     {Header{Kind: KindSetBound, Time: 200}, &SetBound{Bound: 900}, 110, 100},
		"feature":                   {Header{Kind: KindRaiseFeature, Time: 200}, &RaiseFeature{Level: 2}, 200, 100},
		"refused body still counts": {Header{Kind: KindTxn, Stamp: 200}, readTxn("a", 300), 200, 200},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			st := newState()
			res, err := Apply(newView(), st, mustEncode(t, tt.h, tt.body), true)
			if err != nil || st.Clock != tt.clock || st.LastStamp != tt.lastStamp || res.Clock != tt.clock {
				t.Errorf("clock %d, last stamp %d, result %+v, %v; want %d, %d",
					st.Clock, st.LastStamp, res, err, tt.clock, tt.lastStamp)
			}
		})
	}
}

func TestTxnAnswers(t *testing.T) {
	v, st := newView(), newState()
	apply := func(stamp base.Timestamp, txn *mvcc.Txn) Result {
		t.Helper()
		res, err := Apply(v, st, mustEncode(t, Header{Kind: KindTxn, SpanEpoch: 3, Stamp: stamp}, txn), true)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if res := apply(200, putTxn("a", "1")); res.Stamp != 200 || !res.Txn.Succeeded {
		t.Errorf("put: %+v", res)
	}
	apply(300, putTxn("a", "2"))
	kv := apply(400, readTxn("a", 200)).Txn.Ops[0].Range.KVs[0]
	if string(kv.Value) != "1" || kv.ModRevision != 200 {
		t.Errorf("read at 200: %+v", kv)
	}
	st.Horizon = 300
	if res := apply(500, readTxn("a", 200)); fault.KindOf(res.Refusal) != fault.Compacted || res.Txn != nil || res.Stamp != 0 {
		t.Errorf("read below the horizon: %+v", res)
	}
	if st.LastStamp != 500 {
		t.Errorf("last stamp %d after a refused body", st.LastStamp)
	}
}

func TestSetHorizon(t *testing.T) {
	own := newState().Descriptor.Span
	for name, tt := range map[string]struct {
		body SetHorizon
		time base.Timestamp
		want fault.Kind
		now  base.Timestamp
	}{
		"raise":             {SetHorizon{own, 100}, 0, 0, 100},
		"at the clock":      {SetHorizon{own, 110}, 0, 0, 110},
		"time comes first":  {SetHorizon{own, 150}, 150, 0, 150},
		"lower":             {SetHorizon{own, 10}, 0, fault.Compacted, 50},
		"the same":          {SetHorizon{own, 50}, 0, fault.Compacted, 50},
		"above the clock":   {SetHorizon{own, 111}, 0, fault.FutureRevision, 50},
		"part of the range": {SetHorizon{point("a"), 100}, 0, fault.WrongRange, 50},
		"whole keyspace":    {SetHorizon{keys.KeyspaceSpan(base.DefaultKeyspace), 100}, 0, fault.WrongRange, 50},
	} {
		st := newState()
		st.Horizon = 50
		res, err := Apply(newView(), st, mustEncode(t, Header{Kind: KindSetHorizon, Time: tt.time}, &tt.body), true)
		var got fault.Kind
		if res.Refusal != nil {
			got = res.Refusal.Kind
		}
		if err != nil || got != tt.want || st.Horizon != tt.now {
			t.Errorf("%s: %+v, %v, horizon %d; want %d", name, res, err, st.Horizon, tt.now)
		}
	}
}

func TestBoundAndFeatureOnlyRise(t *testing.T) {
	st := newState()
	for _, n := range []uint64{5, 3, 7, 6} {
		for k, body := range map[Kind]any{
			KindSetBound:     &SetBound{Bound: base.Timestamp(n)},
			KindRaiseFeature: &RaiseFeature{Level: uint32(n)},
		} {
			if res, err := Apply(newView(), st, mustEncode(t, Header{Kind: k}, body), false); err != nil || res.Refusal != nil {
				t.Fatalf("%+v, %v", res, err)
			}
		}
	}
	if st.Bound != 7 || st.FeatureLevel != 7 {
		t.Errorf("bound %d, feature level %d", st.Bound, st.FeatureLevel)
	}
}

// Events reach package timeline with the clock as raised.
func TestEventsAreDelegated(t *testing.T) {
	v, st := newView(), newState()
	id := base.PartitionID{Topic: 4, Partition: 1}
	st.Descriptor.Span = keys.PartitionSpan(4, 0, 2)
	st.LastStamp, st.Clock = 0, 0
	now := base.TimestampAt(1000)
	apply := func(h Header, body any) Result {
		t.Helper()
		res, err := Apply(v, st, mustEncode(t, h, body), true)
		if err != nil || res.Refusal != nil {
			t.Fatalf("%+v, %v", res, err)
		}
		return res
	}
	apply(Header{Kind: KindCreateGroup, Stamp: now - 1}, &timeline.CreateGroup{
		Group: 9, Start: timeline.StartEarliest, Partitions: []base.PartitionID{id},
	})
	pub := apply(Header{Kind: KindPublish, Stamp: now}, &timeline.Publish{Batches: []timeline.Batch{{
		Partition: id, Events: []timeline.NewEvent{{Payload: []byte("past"), DueMS: 1}, {Payload: []byte("later"), DelayMS: 5}},
	}}})
	if len(pub.Published) != 2 || pub.Published[0].Position.DueMS != 1000 || pub.Published[1].Position.DueMS != 1005 {
		t.Fatalf("published %+v", pub.Published)
	}
	positions := []base.Position{pub.Published[0].Position, pub.Published[1].Position}
	ack := &timeline.Ack{Batches: []timeline.AckBatch{{Partition: id, Group: 9, Positions: positions}}}
	if got := apply(Header{Kind: KindAck}, ack).Acks; !reflect.DeepEqual(got, []timeline.AckOutcome{timeline.AckDone, timeline.AckNotFound}) {
		t.Errorf("before the second is due: %v", got)
	}
	apply(Header{Kind: KindAdvance, Time: base.TimestampAt(1005)}, nil)
	if got := apply(Header{Kind: KindAck}, ack).Acks; !reflect.DeepEqual(got, []timeline.AckOutcome{timeline.AckAlready, timeline.AckDone}) {
		t.Errorf("once the second is due: %v", got)
	}
}

// drawRangeCommand draws a command that has some chance to be taken by a range that
// owns everything.
func drawRangeCommand(t *rapid.T, now base.Timestamp) []byte {
	k := drawKind(t)
	h := Header{Kind: k}
	if k.Stamped() {
		h.Stamp = now
	}
	if rapid.IntRange(0, 9).Draw(t, "late") == 0 {
		h.Stamp = 1
	}
	if rapid.Bool().Draw(t, "timed") {
		h.Time = now + base.Timestamp(rapid.Uint64Range(0, 5).Draw(t, "time"))
	}
	id := base.PartitionID{Topic: 1, Partition: base.Partition(rapid.Uint32Range(0, 1).Draw(t, "partition"))}
	var body any
	switch k {
	case KindPublish:
		body = &timeline.Publish{Batches: []timeline.Batch{{Partition: id, Events: several(t, 3, "events",
			func(t *rapid.T) timeline.NewEvent {
				e := drawEvent(t)
				e.DueMS, e.DelayMS = rapid.Int64Range(0, 3).Draw(t, "due ms"), rapid.Int64Range(0, 3).Draw(t, "delay ms")
				return e
			})}}}
	case KindAck:
		body = &timeline.Ack{Batches: []timeline.AckBatch{{Partition: id, Group: 1, Positions: several(t, 3, "positions",
			func(t *rapid.T) base.Position {
				return base.Position{DueMS: rapid.Int64Range(0, 3).Draw(t, "due ms"), Seq: rapid.Uint64Range(0, 5).Draw(t, "sequence")}
			})}}}
	case KindCreateGroup:
		body = &timeline.CreateGroup{Group: 1, Start: timeline.StartEarliest, Partitions: []base.PartitionID{id}}
	case KindSetHorizon:
		body = &SetHorizon{Horizon: now - 1}
	default:
		body = drawBody(t, k)
	}
	return mustEncode(t, h, body)
}

// The same log makes the same state to the byte, whether a replica answers or not, and
// the same refusals; and Apply leaves the envelope as it was.
func TestReplicasAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v1, v2 := newView(), newView()
		st1, st2 := newState(), newState()
		st1.Descriptor.Span, st2.Descriptor.Span = base.Span{}, base.Span{}
		now := st1.LastStamp
		for range rapid.IntRange(1, 15).Draw(t, "commands") {
			now += base.Timestamp(rapid.Uint64Range(0, 1<<base.LogicalBits).Draw(t, "step"))
			env := drawRangeCommand(t, now)
			before := bytes.Clone(env)
			res1, err1 := Apply(v1, st1, env, true)
			res2, err2 := Apply(v2, st2, env, false)
			if err1 != nil || err2 != nil || !bytes.Equal(env, before) {
				t.Fatalf("got %v and %v, envelope %x became %x", err1, err2, before, env)
			}
			if !reflect.DeepEqual(res1.Refusal, res2.Refusal) || res1.Clock != res2.Clock || res1.Stamp != res2.Stamp {
				t.Fatalf("with answer %+v, without %+v", res1, res2)
			}
			if st1.LastStamp > st1.Clock || st1.Horizon > st1.Clock {
				t.Fatalf("last stamp %d, horizon %d, clock %d", st1.LastStamp, st1.Horizon, st1.Clock)
			}
		}
		if !bytes.Equal(EncodeState(nil, st1), EncodeState(nil, st2)) || !reflect.DeepEqual(dump(t, v1), dump(t, v2)) {
			t.Fatalf("replicas differ: %+v and %+v", st1, st2)
		}
	})
}

// No bytes make Apply panic, nor a damaged command write before it fails.
func TestApplyTakesAnyBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		env := drawRangeCommand(t, 200)
		env[rapid.IntRange(0, len(env)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		v, st := newView(), newState()
		st.Descriptor.Span = base.Span{}
		before := *st
		if _, err := Apply(v, st, env, true); err != nil {
			if fault.KindOf(err) != fault.Corrupt || !reflect.DeepEqual(*st, before) || dump(t, v) != nil {
				t.Fatalf("got %v, state %+v", err, st)
			}
		}
	})
}

// brokenView fails every read with its error.
type brokenView struct {
	effect.View
	err error
}

func (b brokenView) NewIter(_, _ []byte) (effect.Iterator, error) { return nil, b.err }

// What befell this replica alone is never taken for a refusal that all replicas share.
func TestLocalFailuresAreFatal(t *testing.T) {
	env := mustEncode(t, Header{Kind: KindTxn, Stamp: 200}, putTxn("a", "1"))
	for _, err := range []error{
		errors.New("disk"), fault.New(fault.Corrupt, "x"), fault.New(fault.Internal, "x"),
		fault.New(fault.DiskFull, "x"), fault.New(fault.Stopped, "x"), fault.New(fault.Unavailable, "x"),
		fault.New(fault.Deadline, "x"), fault.New(fault.Cancelled, "x"), fault.New(fault.UnknownOutcome, "x"),
	} {
		if res, got := Apply(brokenView{newView(), err}, newState(), env, true); !errors.Is(got, err) || res.Refusal != nil {
			t.Errorf("%v: got %+v, %v", err, res, got)
		}
	}
}

// A refusal never writes to a fault that its maker may share.
func TestRefusalIsACopy(t *testing.T) {
	shared := fault.New(fault.Invalid, "shared")
	if got := refuse(newState(), shared); got.Refusal.Range != 5 || shared.Range != 0 {
		t.Errorf("refusal %+v, shared fault %+v", got.Refusal, shared)
	}
}
