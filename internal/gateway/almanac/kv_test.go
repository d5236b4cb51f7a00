package almanac

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/wire"
)

func logical(key string) []byte { return keys.User(base.DefaultKeyspace, []byte(key)) }

func TestReadsByConsistency(t *testing.T) {
	var asked string
	kv := mvcc.KeyValue{Key: logical("k"), Value: []byte("v"), CreateRevision: 3, ModRevision: 4, Version: 2}
	found := []mvcc.RangeResult{{KVs: []mvcc.KeyValue{kv}, Count: 9, More: true}}
	kvs := almanacv1.NewKVClient(serve(t, &routes{
		read: func(_ context.Context, r []wire.Read, c router.Consistency, at base.Timestamp) (wire.ReadReply, error) {
			asked = fmt.Sprint("read ", c, uint64(at))
			return wire.ReadReply{At: 100, Results: found}, nil
		},
		scan: func(ops []mvcc.Op, at base.Timestamp, local bool) ([]mvcc.RangeResult, base.Timestamp, error) {
			asked = fmt.Sprint("at ", uint64(ops[0].Range.At))
			return found, 500, nil
		},
	}, Limits{}))
	for _, c := range []struct {
		name        string
		consistency almanacv1.Consistency
		revision    uint64
		staleness   int64
		get, scan   string
		want        uint64
		refused     fault.Kind
	}{
		{name: "default", get: fmt.Sprint("read ", router.Newest, 0), scan: fmt.Sprint("read ", router.Fresh, 0), want: 100},
		{name: "linearizable", consistency: 1, get: fmt.Sprint("read ", router.Newest, 0), scan: fmt.Sprint("read ", router.Fresh, 0), want: 100},
		{name: "revision", revision: 7, get: "at 7", scan: "at 7", want: 7},
		{name: "at", consistency: 2, revision: 7, get: "at 7", scan: "at 7", want: 7},
		{name: "local", consistency: 4, get: fmt.Sprint("read ", router.Local, 0), scan: fmt.Sprint("read ", router.Local, 0), want: 100},
		{name: "bounded by 0", consistency: 3, get: fmt.Sprint("read ", router.Newest, 0), scan: fmt.Sprint("read ", router.Fresh, 0), want: 100},
		{name: "bounded", consistency: 3, staleness: 5, refused: fault.Unimplemented},
		{name: "bounded below 0", consistency: 3, staleness: -5, refused: fault.Invalid},
		{name: "at nothing", consistency: 2, refused: fault.Invalid},
		{name: "local at", consistency: 4, revision: 7, refused: fault.Invalid},
		{name: "staleness alone", staleness: 7, refused: fault.Invalid},
		{name: "unknown", consistency: 9, refused: fault.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			get, getErr := kvs.Get(testContext(t), &almanacv1.GetRequest{
				Key: []byte("k"), Consistency: c.consistency, Revision: c.revision, MaxStalenessMs: c.staleness})
			askedGet := asked
			scan, scanErr := kvs.Range(testContext(t), &almanacv1.RangeRequest{
				Key: []byte("k"), Consistency: c.consistency, Revision: c.revision, MaxStalenessMs: c.staleness})
			if c.refused != 0 {
				wantReason(t, getErr, c.refused)
				wantReason(t, scanErr, c.refused)
				return
			}
			if getErr != nil || scanErr != nil {
				t.Fatal(getErr, scanErr)
			}
			if askedGet != c.get || asked != c.scan || get.Revision != c.want || scan.Revision != c.want {
				t.Fatalf("asked %q and %q, revisions %d and %d", askedGet, asked, get.Revision, scan.Revision)
			}
			if string(get.Kv.Key) != "k" || get.Kv.Version != 2 || string(scan.Kvs[0].Key) != "k" || scan.Count != 9 || !scan.More {
				t.Fatalf("got %v and %v", get, scan)
			}
		})
	}
}

func TestSpans(t *testing.T) {
	s := New(Options{Routes: &routes{}, Node: node{}})
	end := keys.KeyspaceSpan(base.DefaultKeyspace).End
	for _, c := range []struct {
		r          *almanacv1.RangeRequest
		start, end []byte
	}{
		{&almanacv1.RangeRequest{Key: []byte("a")}, logical("a"), logical("a\x00")},
		{&almanacv1.RangeRequest{Key: []byte("a"), End: []byte("b")}, logical("a"), logical("b")},
		{&almanacv1.RangeRequest{End: []byte("b")}, logical(""), logical("b")},
		{&almanacv1.RangeRequest{Key: []byte("a"), Prefix: true}, logical("a"), logical("b")},
		{&almanacv1.RangeRequest{Prefix: true}, logical(""), end},
		{&almanacv1.RangeRequest{Key: []byte("\xff"), Prefix: true}, logical("\xff"), end},
		{&almanacv1.RangeRequest{Key: []byte("a"), ToEnd: true}, logical("a"), end},
	} {
		span, err := s.span(c.r)
		if err != nil || !bytes.Equal(span.Start, c.start) || !bytes.Equal(span.End, c.end) {
			t.Errorf("%v: got %x, %v", c.r, span, err)
		}
	}
	long := make([]byte, 4097)
	for _, c := range []struct {
		r    *almanacv1.RangeRequest
		want fault.Kind
	}{
		{&almanacv1.RangeRequest{}, fault.Invalid},
		{&almanacv1.RangeRequest{Key: []byte("b"), End: []byte("a")}, fault.Invalid},
		{&almanacv1.RangeRequest{Key: []byte("b"), End: []byte("b")}, fault.Invalid},
		{&almanacv1.RangeRequest{Key: []byte("b"), End: []byte("c"), Prefix: true}, fault.Invalid},
		{&almanacv1.RangeRequest{Key: []byte("b"), ToEnd: true, Prefix: true}, fault.Invalid},
		{&almanacv1.RangeRequest{Key: long}, fault.TooLarge},
		{&almanacv1.RangeRequest{Key: []byte("b"), End: long}, fault.TooLarge},
	} {
		if _, err := s.span(c.r); fault.KindOf(err) != c.want {
			t.Errorf("%v: got %v, want %s", c.r, err, c.want)
		}
	}
}

func TestPut(t *testing.T) {
	var got *mvcc.Txn
	holds := true
	kvs := almanacv1.NewKVClient(serve(t, &routes{txn: func(_ context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
		got = txn
		if !holds {
			return &mvcc.TxnResult{}, 8, nil
		}
		prev := mvcc.KeyValue{Key: logical("k"), Value: []byte("old")}
		return &mvcc.TxnResult{Succeeded: true, Ops: []mvcc.OpResult{{Kind: mvcc.OpPut, Prev: []mvcc.KeyValue{prev}}}}, 8, nil
	}}, Limits{RequestBytes: 100}))
	ctx := testContext(t)
	r, err := kvs.Put(ctx, &almanacv1.PutRequest{Key: []byte("k"), Value: []byte("v"), PrevKv: true, Keyspace: "default"})
	if err != nil || r.Revision != 8 || string(r.PrevKv.Key) != "k" || string(r.PrevKv.Value) != "old" {
		t.Fatal(r, err)
	}
	if op := got.Then[0]; len(got.Compares) != 0 || op.Kind != mvcc.OpPut || !op.PrevKV || string(op.Span.Start) != string(logical("k")) {
		t.Fatalf("proposed %+v", got)
	}
	holds = false
	_, err = kvs.Put(ctx, &almanacv1.PutRequest{Key: []byte("k"), IfAbsent: true})
	wantReason(t, err, fault.CompareFailed)
	if c := got.Compares[0]; c.Target != mvcc.TargetCreate || c.Relation != mvcc.Equal || c.Number != 0 {
		t.Fatalf("compared %+v", c)
	}
	_, err = kvs.Put(ctx, &almanacv1.PutRequest{Key: []byte("k"), IfRevision: 6})
	wantReason(t, err, fault.CompareFailed)
	if c := got.Compares[0]; c.Target != mvcc.TargetMod || c.Relation != mvcc.Equal || c.Number != 6 {
		t.Fatalf("compared %+v", c)
	}
	for _, c := range []struct {
		r    *almanacv1.PutRequest
		want fault.Kind
	}{
		{&almanacv1.PutRequest{}, fault.Invalid},
		{&almanacv1.PutRequest{Key: []byte("k"), Keyspace: "other"}, fault.NotFound},
		{&almanacv1.PutRequest{Key: []byte("k"), Value: make([]byte, 100)}, fault.TooLarge},
		{&almanacv1.PutRequest{Key: []byte("k"), IfAbsent: true, IfRevision: 1}, fault.Invalid},
		{&almanacv1.PutRequest{Key: []byte("k"), IfRevision: 1 << 63}, fault.Invalid},
		{&almanacv1.PutRequest{Key: []byte("k"), Lease: 4}, fault.NotFound},
	} {
		_, err := kvs.Put(ctx, c.r)
		wantReason(t, err, c.want)
	}
}

func TestTxn(t *testing.T) {
	put := func(key string) *almanacv1.Op {
		return &almanacv1.Op{Op: &almanacv1.Op_Put{Put: &almanacv1.PutRequest{Key: []byte(key)}}}
	}
	read := &almanacv1.Op{Op: &almanacv1.Op_Range{Range: &almanacv1.RangeRequest{Key: []byte("r")}}}
	kvs := almanacv1.NewKVClient(serve(t, &routes{
		txn: func(_ context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
			if err := mvcc.Validate(txn); err != nil {
				return nil, 0, err
			}
			inner := &mvcc.TxnResult{Ops: []mvcc.OpResult{{Kind: mvcc.OpDelete, Deleted: 3}}}
			return &mvcc.TxnResult{Succeeded: true, Ops: []mvcc.OpResult{{Kind: mvcc.OpPut}, {Kind: mvcc.OpTxn, Txn: inner}}}, 8, nil
		},
		scan: func(ops []mvcc.Op, at base.Timestamp, local bool) ([]mvcc.RangeResult, base.Timestamp, error) {
			return make([]mvcc.RangeResult, len(ops)), 7, nil
		},
	}, Limits{}))
	ctx := testContext(t)
	nested := &almanacv1.Op{Op: &almanacv1.Op_Txn{Txn: &almanacv1.TxnRequest{}}}
	r, err := kvs.Txn(ctx, &almanacv1.TxnRequest{Then: []*almanacv1.Op{put("a"), nested}})
	if err != nil || !r.Succeeded || r.Revision != 8 || r.Results[0].GetPut().GetRevision() != 8 ||
		r.Results[1].GetTxn().GetResults()[0].GetDelete().GetDeleted() != 3 {
		t.Fatal(r, err)
	}
	r, err = kvs.Txn(ctx, &almanacv1.TxnRequest{Then: []*almanacv1.Op{read, read}})
	if err != nil || !r.Succeeded || r.Revision != 7 || len(r.Results) != 2 || r.Results[1].GetRange().GetRevision() != 7 {
		t.Fatal(r, err)
	}
	deep := put("k")
	for range mvcc.MaxDepth + 1 {
		deep = &almanacv1.Op{Op: &almanacv1.Op_Txn{Txn: &almanacv1.TxnRequest{Then: []*almanacv1.Op{deep}}}}
	}
	for name, op := range map[string]*almanacv1.Op{
		"empty":       {},
		"keyspace":    {Op: &almanacv1.Op_Range{Range: &almanacv1.RangeRequest{Keyspace: "default", Key: []byte("k")}}},
		"consistency": {Op: &almanacv1.Op_Range{Range: &almanacv1.RangeRequest{Consistency: 1, Key: []byte("k")}}},
		"revision":    {Op: &almanacv1.Op_Range{Range: &almanacv1.RangeRequest{Revision: 1, Key: []byte("k")}}},
		"condition":   {Op: &almanacv1.Op_Put{Put: &almanacv1.PutRequest{IfAbsent: true, Key: []byte("k")}}},
		"limit":       {Op: &almanacv1.Op_Range{Range: &almanacv1.RangeRequest{Limit: -1, Key: []byte("k")}}},
		"twice":       put("dup"),
		"deep":        deep,
	} {
		_, err := kvs.Txn(ctx, &almanacv1.TxnRequest{Then: []*almanacv1.Op{put("dup"), op}})
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		wantReason(t, err, fault.Invalid)
	}
	for _, c := range []*almanacv1.Compare{{}, {Key: []byte("k"), Target: 5}, {Key: []byte("k"), Relation: 4}, {Key: []byte("k"), Relation: -1}} {
		_, err := kvs.Txn(ctx, &almanacv1.TxnRequest{Compares: []*almanacv1.Compare{c}, Then: []*almanacv1.Op{put("a")}})
		wantReason(t, err, fault.Invalid)
	}
}
