package mvcc

import (
	"bytes"
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// model is the naive store: every version of every key, newest last.
type model map[string][]KeyValue // Version 0: a tombstone

func (m model) at(key string, at base.Timestamp) (KeyValue, bool) {
	for _, kv := range slices.Backward(m[key]) {
		if kv.ModRevision <= at {
			return kv, kv.Version != 0
		}
	}
	return KeyValue{}, false
}

func (m model) span(s base.Span, at base.Timestamp) []KeyValue {
	var names []string
	for k := range m {
		if s.ContainsKey([]byte(k)) {
			names = append(names, k)
		}
	}
	sort.Strings(names)
	var kvs []KeyValue
	for _, k := range names {
		if kv, ok := m.at(k, at); ok {
			kvs = append(kvs, kv)
		}
	}
	return kvs
}

func (m model) put(kv KeyValue) { m[string(kv.Key)] = append(m[string(kv.Key)], kv) }

func (m model) rangeRead(s base.Span, o RangeOptions) RangeResult {
	all := m.span(s, o.At)
	res := RangeResult{Count: int64(len(all))}
	if o.CountOnly {
		return res
	}
	for _, kv := range all {
		if (o.MinMod != 0 && kv.ModRevision < o.MinMod) || (o.MaxMod != 0 && kv.ModRevision > o.MaxMod) ||
			(o.MinCreate != 0 && kv.CreateRevision < o.MinCreate) ||
			(o.MaxCreate != 0 && kv.CreateRevision > o.MaxCreate) {
			continue
		}
		res.KVs = append(res.KVs, kv)
	}
	if o.Order != SortNone {
		slices.SortStableFunc(res.KVs, func(a, b KeyValue) int {
			c := []int{
				bytes.Compare(a.Key, b.Key), cmp.Compare(a.Version, b.Version),
				cmp.Compare(a.CreateRevision, b.CreateRevision),
				cmp.Compare(a.ModRevision, b.ModRevision), bytes.Compare(a.Value, b.Value),
			}[o.Sort]
			if o.Order == SortDescend {
				c = -c
			}
			return c
		})
	}
	if o.Limit > 0 && int64(len(res.KVs)) > o.Limit {
		res.KVs, res.More = res.KVs[:o.Limit], true
	}
	if o.KeysOnly {
		res.KVs = slices.Clone(res.KVs)
		for i := range res.KVs {
			res.KVs[i].Value = nil
		}
	}
	return res
}

func (m model) holds(c Compare, at base.Timestamp) bool {
	kvs := m.span(c.Span, at)
	if len(kvs) == 0 {
		if c.Target == TargetValue {
			return false
		}
		kvs = []KeyValue{{}}
	}
	for _, kv := range kvs {
		n := []int64{kv.Version, int64(kv.CreateRevision), int64(kv.ModRevision), 0, kv.Lease}[c.Target]
		d := cmp.Compare(n, c.Number)
		if c.Target == TargetValue {
			d = bytes.Compare(kv.Value, c.Value)
		}
		if ![]bool{d == 0, d > 0, d < 0, d != 0}[c.Relation] {
			return false
		}
	}
	return true
}

// apply mirrors Apply; nil means refused. The compares see pre, operations see m.
func (m model) apply(pre model, txn *Txn, at base.Timestamp) *TxnResult {
	res := &TxnResult{Succeeded: true}
	for _, c := range txn.Compares {
		res.Succeeded = res.Succeeded && pre.holds(c, at)
	}
	ops := txn.Then
	if !res.Succeeded {
		ops = txn.Else
	}
	for _, op := range ops {
		out := OpResult{Kind: op.Kind}
		switch op.Kind {
		case OpRange:
			o := op.Range
			if o.At > at {
				return nil
			}
			if o.At == 0 {
				o.At = at
			}
			out.Range = m.rangeRead(op.Span, o)
		case OpPut:
			key := string(op.Span.Start)
			if _, ok := pre.at(key, at); !ok && (op.IgnoreLease || op.IgnoreValue) {
				return nil
			}
			prev, ok := m.at(key, at)
			kv := KeyValue{
				Key: op.Span.Start, Value: append([]byte{}, op.Value...), Lease: op.Lease,
				CreateRevision: at, ModRevision: at, Version: 1,
			}
			if ok {
				kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
				if op.PrevKV {
					out.Prev = []KeyValue{prev}
				}
			}
			if op.IgnoreValue {
				kv.Value = prev.Value
			}
			if op.IgnoreLease {
				kv.Lease = prev.Lease
			}
			m.put(kv)
		case OpDelete:
			for _, kv := range m.span(op.Span, at) {
				out.Deleted++
				if op.PrevKV {
					out.Prev = append(out.Prev, kv)
				}
				m.put(KeyValue{Key: kv.Key, ModRevision: at})
			}
		case OpTxn:
			if out.Txn = m.apply(pre, op.Txn, at); out.Txn == nil {
				return nil
			}
		}
		res.Ops = append(res.Ops, out)
	}
	return res
}

func (m model) clone() model {
	c := model{}
	for k, v := range m {
		c[k] = slices.Clone(v)
	}
	return c
}

// Few keys, so that histories collide; with zero bytes and shared prefixes, so that the
// key encoding matters.
var modelKeys = []string{"", "\x00", "\x00\x00", "\x00\x01", "a", "a\x00", "a\x00\xff", "aa", "ab", "b", "\xff", "\xff\xff"}

func drawSpan(t *rapid.T) base.Span {
	k := rapid.SampledFrom(modelKeys).Draw(t, "key")
	switch rapid.IntRange(0, 3).Draw(t, "span") {
	case 0, 1:
		return point(k)
	case 2:
		return span(k, "")
	}
	return span(k, rapid.SampledFrom(modelKeys).Draw(t, "end")) // may be inverted
}

func drawTime(t *rapid.T, max base.Timestamp, label string) base.Timestamp {
	return base.Timestamp(rapid.Uint64Range(0, uint64(max)).Draw(t, label))
}

func drawOptions(t *rapid.T, at, max base.Timestamp) RangeOptions {
	o := RangeOptions{At: at}
	if rapid.Bool().Draw(t, "plain") {
		o.Limit = rapid.Int64Range(0, 4).Draw(t, "limit")
		return o
	}
	return RangeOptions{
		At:        at,
		Limit:     rapid.Int64Range(-1, 4).Draw(t, "limit"),
		CountOnly: rapid.IntRange(0, 5).Draw(t, "count") == 0,
		KeysOnly:  rapid.Bool().Draw(t, "keys only"),
		Sort:      SortTarget(rapid.IntRange(0, int(SortValue)).Draw(t, "sort")),
		Order:     SortOrder(rapid.IntRange(0, int(SortDescend)).Draw(t, "order")),
		MinMod:    drawTime(t, max, "min mod"), MaxMod: drawTime(t, max, "max mod"),
		MinCreate: drawTime(t, max, "min create"), MaxCreate: drawTime(t, max, "max create"),
	}
}

func drawTxn(t *rapid.T, depth int, at base.Timestamp) *Txn {
	txn := &Txn{}
	for range rapid.IntRange(0, 2).Draw(t, "compares") {
		txn.Compares = append(txn.Compares, Compare{
			Span:     drawSpan(t),
			Target:   Target(rapid.IntRange(0, int(TargetLease)).Draw(t, "target")),
			Relation: Relation(rapid.IntRange(0, int(NotEqual)).Draw(t, "relation")),
			Number:   rapid.Int64Range(0, 3).Draw(t, "number"),
			Value:    []byte(rapid.StringN(0, 1, -1).Draw(t, "value")),
		})
	}
	for _, ops := range []*[]Op{&txn.Then, &txn.Else} {
		for range rapid.IntRange(0, 3).Draw(t, "ops") {
			*ops = append(*ops, drawOp(t, depth, at))
		}
	}
	return txn
}

func drawOp(t *rapid.T, depth int, at base.Timestamp) Op {
	kinds := []OpKind{OpPut, OpPut, OpPut, OpDelete, OpRange, OpTxn}
	if depth == 3 {
		kinds = kinds[:5]
	}
	op := Op{Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Span: drawSpan(t)}
	switch op.Kind {
	case OpRange:
		op.Range = drawOptions(t, drawTime(t, at, "at"), at)
	case OpPut:
		op.Span = point(rapid.SampledFrom(modelKeys).Draw(t, "put"))
		op.PrevKV = rapid.Bool().Draw(t, "prev")
		switch rapid.IntRange(0, 7).Draw(t, "ignore") {
		case 0:
			op.IgnoreValue = true
		case 1:
			op.IgnoreLease = true
		}
		if !op.IgnoreValue {
			op.Value = []byte(rapid.StringN(0, 2, -1).Draw(t, "value"))
		}
		if !op.IgnoreLease {
			op.Lease = rapid.Int64Range(0, 2).Draw(t, "lease")
		}
	case OpDelete:
		op.PrevKV = rapid.Bool().Draw(t, "prev")
	case OpTxn:
		op.Span, op.Txn = base.Span{}, drawTxn(t, depth+1, at)
	}
	return op
}

// show makes results comparable: nil and empty slices are alike.
func show(v any) string {
	switch r := v.(type) {
	case *TxnResult:
		s := fmt.Sprint(r.Succeeded)
		for _, op := range r.Ops {
			s += fmt.Sprintf(" [%d %s %s %d", op.Kind, show(op.Range), show(op.Prev), op.Deleted)
			if op.Txn != nil {
				s += show(op.Txn)
			}
			s += "]"
		}
		return s
	case RangeResult:
		return fmt.Sprintf("%s %d %v", show(r.KVs), r.Count, r.More)
	}
	return fmt.Sprintf("%q", v)
}

// Random histories of transactions give the same answers and leave the same versions
// as the naive model; replicas that skip the answer end with the same bytes; and a read
// at a timestamp gives the same answer for ever (invariant 11).
func TestHistoriesMatchModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, silent, m := newView(), newView(), model{}
		type past struct {
			span base.Span
			opts RangeOptions
			want string
		}
		var seen []past
		at := base.Timestamp(0)
		for range rapid.IntRange(1, 12).Draw(t, "txns") {
			at += base.Timestamp(rapid.IntRange(1, 2).Draw(t, "step"))
			txn := drawTxn(t, 1, at)
			if Validate(txn) != nil {
				continue
			}
			after := m.clone()
			want := after.apply(m, txn, at)
			before := v.writes
			got, err := Apply(v, txn, at, 0, true)
			brief, silentErr := Apply(silent, txn, at, 0, false)
			if fault.KindOf(err) != fault.KindOf(silentErr) {
				t.Fatalf("with answer: %v; without: %v", err, silentErr)
			}
			if want == nil {
				if fault.KindOf(err) != fault.NotFound || v.writes != before {
					t.Fatalf("got %v, %v after %d writes; want a refusal without effect", got, err, v.writes-before)
				}
				continue
			}
			m = after
			if err != nil || show(got) != show(want) {
				t.Fatalf("at %d got\n%s, %v; want\n%s", at, show(got), err, show(want))
			}
			if brief.Succeeded != got.Succeeded || brief.Ops != nil {
				t.Fatalf("without answer: %+v", brief)
			}
			s, o := drawSpan(t), drawOptions(t, drawTime(t, at-1, "past")+1, at)
			seen = append(seen, past{s, o, show(m.rangeRead(s, o))})
		}
		for _, p := range seen {
			got, err := Range(v, p.span, p.opts)
			if err != nil || show(got) != p.want {
				t.Fatalf("range %q %+v: got\n%s, %v; want\n%s", p.span, p.opts, show(got), err, p.want)
			}
		}
		newest, err := Range(v, span("", ""), RangeOptions{})
		if want := m.rangeRead(span("", ""), RangeOptions{At: at}); err != nil || show(newest) != show(want) {
			t.Fatalf("newest: got %s, %v; want %s", show(newest), err, show(want))
		}
		if v.open != 0 || !reflect.DeepEqual(dump(t, v), dump(t, silent)) {
			t.Fatal("an iterator stays open, or replicas differ")
		}
	})
}
