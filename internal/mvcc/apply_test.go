package mvcc

import (
	"errors"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// Whatever stands late in a transaction, nested or not, is refused before the first
// write.
func TestRefusedBeforeFirstWrite(t *testing.T) {
	deep := &Txn{}
	for range MaxDepth {
		deep = &Txn{Then: []Op{{Kind: OpTxn, Txn: deep}}}
	}
	tests := map[string]struct {
		op   Op
		want fault.Kind
	}{
		"ignore value of missing key": {Op{Kind: OpPut, Span: point("nope"), IgnoreValue: true}, fault.NotFound},
		"ignore lease of missing key": {Op{Kind: OpPut, Span: point("nope"), IgnoreLease: true}, fault.NotFound},
		"ignore value of deleted key": {Op{Kind: OpPut, Span: point("gone"), IgnoreValue: true}, fault.NotFound},
		"read below the horizon":      {Op{Kind: OpRange, Span: point("a"), Range: RangeOptions{At: 4}}, fault.Compacted},
		"read of the future":          {Op{Kind: OpRange, Span: point("a"), Range: RangeOptions{At: 11}}, fault.FutureRevision},
		"put of a span":               {Op{Kind: OpPut, Span: span("a", "b")}, fault.Invalid},
		"unknown kind":                {Op{Kind: 9, Span: point("a")}, fault.Invalid},
		"no kind":                     {Op{Span: point("a")}, fault.Invalid},
		"missing nested":              {Op{Kind: OpTxn}, fault.Invalid},
		"too deep":                    {Op{Kind: OpTxn, Txn: deep}, fault.Invalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := newView()
			mustApply(t, v, &Txn{Then: []Op{put("gone", "x")}}, 1)
			mustApply(t, v, &Txn{Then: []Op{{Kind: OpDelete, Span: point("gone")}}}, 2)
			before := v.writes
			for _, txn := range []*Txn{
				{Then: []Op{put("a", "1"), tt.op}},
				{Then: []Op{put("a", "1"), {Kind: OpTxn, Txn: &Txn{Then: []Op{put("b", "1"), tt.op}}}}},
			} {
				for _, answer := range []bool{true, false} {
					_, err := Apply(v, txn, 10, 5, answer)
					if fault.KindOf(err) != tt.want {
						t.Errorf("answer %v: got %v, want %v", answer, err, tt.want)
					}
				}
			}
			if v.writes != before {
				t.Errorf("%d writes were made", v.writes-before)
			}
			// In the branch that is not taken it does no harm.
			mustApply(t, v, &Txn{Else: []Op{tt.op}}, 11)
		})
	}
}

func TestHorizonAndOwnTimestampAreReadable(t *testing.T) {
	v := newView()
	mustApply(t, v, &Txn{Then: []Op{put("a", "old")}}, 5)
	read := func(at base.Timestamp) Op { return Op{Kind: OpRange, Span: point("a"), Range: RangeOptions{At: at}} }
	res, err := Apply(v, &Txn{Then: []Op{put("a", "new"), read(5), read(10), read(0)}}, 10, 5, true)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"old", "new", "new"} {
		if kvs := res.Ops[i+1].Range.KVs; len(kvs) != 1 || string(kvs[0].Value) != want {
			t.Errorf("read %d: got %v, want %q", i, kvs, want)
		}
	}
}

// Validate keeps double writes out; should one arrive all the same, the last write of
// the command wins and the state stays readable.
func TestLastWriteAtOneTimestampWins(t *testing.T) {
	v := newView()
	del := Op{Kind: OpDelete, Span: span("", "")}
	mustApply(t, v, &Txn{Then: []Op{put("a", "1"), put("a", "2"), put("b", "1"), del, put("b", "2")}}, 3)
	res, err := Range(v, span("", ""), RangeOptions{})
	if err != nil || len(res.KVs) != 1 || string(res.KVs[0].Value) != "2" || res.KVs[0].ModRevision != 3 {
		t.Fatalf("got %v, %v", res.KVs, err)
	}
}

func TestPointReadsSeekOnce(t *testing.T) {
	v := newView()
	for at := base.Timestamp(1); at <= 50; at++ {
		mustApply(t, v, &Txn{Then: []Op{put("a", "x"), put("b", "x")}}, at)
	}
	v.seeks = 0
	if _, err := Range(v, point("a"), RangeOptions{At: 7}); err != nil || v.seeks != 0 {
		t.Errorf("a point read made %d general seeks, %v", v.seeks, err)
	}
	res, err := Range(v, span("", ""), RangeOptions{At: 7})
	if err != nil || v.seeks != 2 || res.KVs[0].ModRevision != 7 || res.KVs[1].ModRevision != 7 {
		t.Errorf("a scan of 2 keys made %d seeks: %v, %v", v.seeks, res, err)
	}
}

func TestDamageIsReported(t *testing.T) {
	good := keys.AppendVersion(nil, user("a"), 1)
	for name, kv := range map[string][2][]byte{
		"value":  {good, {0xff}},
		"suffix": {good[:len(good)-1], tombstone},
	} {
		v := newView()
		if err := v.Set(kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
		for _, s := range []base.Span{point("a"), span("", "")} {
			if _, err := Range(v, s, RangeOptions{}); fault.KindOf(err) != fault.Corrupt {
				t.Errorf("%s, span %q: got %v, want a corrupt fault", name, s, err)
			}
		}
	}
}

// failing is a view whose n-th call fails.
type failing struct {
	effect.View
	n int
}

var errStorage = errors.New("storage failed")

func (f *failing) step() error {
	if f.n--; f.n == 0 {
		return errStorage
	}
	return nil
}

func (f *failing) NewIter(lower, upper []byte) (effect.Iterator, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	it, err := f.View.NewIter(lower, upper)
	return &failingIter{it, f}, err
}

func (f *failing) Set(k, v []byte) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.View.Set(k, v)
}

type failingIter struct {
	effect.Iterator
	f *failing
}

func (it *failingIter) Value() ([]byte, error) {
	if err := it.f.step(); err != nil {
		return nil, err
	}
	return it.Iterator.Value()
}

func (it *failingIter) Close() error { return errors.Join(it.f.step(), it.Iterator.Close()) }

// No storage error is swallowed or turned into a refusal.
func TestStorageErrorsSurface(t *testing.T) {
	txn := &Txn{
		Compares: []Compare{{Span: point("a"), Relation: Greater}, {Span: span("a", "c"), Relation: Greater}},
		Then: []Op{
			put("a", "1"), {Kind: OpPut, Span: point("b"), IgnoreValue: true},
			{Kind: OpDelete, Span: span("x", "z")}, {Kind: OpRange, Span: span("a", "c")},
		},
	}
	for n := 1; ; n++ {
		v := newView()
		mustApply(t, v, &Txn{Then: []Op{put("a", "0"), put("b", "0"), put("x", "0")}}, 1)
		f := &failing{v, n}
		_, err := Apply(f, txn, 2, 0, true)
		if f.n > 0 {
			if err != nil || n < 20 {
				t.Fatalf("no failure after %d steps: %v", n, err)
			}
			return
		}
		if !errors.Is(err, errStorage) {
			t.Fatalf("step %d: got %v", n, err)
		}
	}
}
