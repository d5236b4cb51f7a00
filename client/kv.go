package client

import (
	"context"
	"sync"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// KV reads and writes keys.
type KV struct {
	c        *Client
	keyspace string
}

// In returns the same for another keyspace, by name; empty means the default one.
func (kv *KV) In(keyspace string) *KV { return &KV{c: kv.c, keyspace: keyspace} }

// KeyValue is one version of a key.
type KeyValue struct {
	Key            []byte
	Value          []byte
	CreateRevision uint64 // revision of the key's creation
	ModRevision    uint64 // revision of this version
	Version        int64  // number of writes since the creation, which is 1
	Lease          int64  // 0 means none
}

// ReadOption says what a read may return. The zero ReadOption is a linearizable read.
type ReadOption struct {
	consistency almanacv1.Consistency
	revision    uint64
	staleness   time.Duration
}

// At reads exactly the state at a revision.
func At(revision uint64) ReadOption {
	return ReadOption{consistency: almanacv1.Consistency_CONSISTENCY_AT, revision: revision}
}

// Bounded reads a state that is at most d old.
func Bounded(d time.Duration) ReadOption {
	return ReadOption{consistency: almanacv1.Consistency_CONSISTENCY_BOUNDED, staleness: d}
}

// Local reads whatever the nearest replica has applied.
func Local() ReadOption {
	return ReadOption{consistency: almanacv1.Consistency_CONSISTENCY_LOCAL}
}

// Span names the keys that a call is about: one of Key, Prefix, Between, From.
type Span struct {
	key, end      []byte
	prefix, toEnd bool
}

// Key is one key alone.
func Key(key []byte) Span { return Span{key: key} }

// Prefix is all keys that start with prefix; an empty prefix is all keys.
func Prefix(prefix []byte) Span { return Span{key: prefix, prefix: true} }

// Between is all keys from start up to, without, end.
func Between(start, end []byte) Span { return Span{key: start, end: end} }

// From is all keys from start on.
func From(start []byte) Span { return Span{key: start, toEnd: true} }

// RangeOptions refine a range read.
type RangeOptions struct {
	Limit     int64 // 0 means all
	KeysOnly  bool
	CountOnly bool
	Read      ReadOption
}

// RangeResult answers a range read.
type RangeResult struct {
	KVs      []KeyValue // in key order
	Count    int64      // keys in the span, whatever the limit
	More     bool       // the limit left keys out
	Revision uint64     // the revision that was read at
}

// DeleteResult answers Delete.
type DeleteResult struct {
	Revision uint64
	Deleted  int64
}

// getCall and putCall keep what a call needs in one piece of memory, taken from a pool.
type getCall struct {
	call    almanacv1.StreamCall
	wrap    almanacv1.StreamCall_Get
	request almanacv1.GetRequest
}

type putCall struct {
	call    almanacv1.StreamCall
	wrap    almanacv1.StreamCall_Put
	request almanacv1.PutRequest
}

var getCalls = sync.Pool{New: func() any {
	g := new(getCall)
	g.wrap.Get = &g.request
	g.call.Request = &g.wrap
	return g
}}

var putCalls = sync.Pool{New: func() any {
	p := new(putCall)
	p.wrap.Put = &p.request
	p.call.Request = &p.wrap
	return p
}}

// Get returns a key's version, or nil if the key does not exist.
func (kv *KV) Get(ctx context.Context, key []byte, options ...ReadOption) (*KeyValue, error) {
	var o ReadOption
	if len(options) > 0 {
		o = options[len(options)-1]
	}
	g := getCalls.Get().(*getCall)
	r := &g.request
	r.Keyspace, r.Key = kv.keyspace, key
	r.Consistency, r.Revision, r.MaxStalenessMs = o.consistency, o.revision, o.staleness.Milliseconds()
	reply, err := kv.c.roundTrip(ctx, read, &g.call)
	r.Key, g.call.TimeoutMs = nil, 0
	getCalls.Put(g)
	if err != nil {
		return nil, err
	}
	return keyValuePointer(reply.GetGet().GetKv()), nil
}

// Range reads the keys of a span.
func (kv *KV) Range(ctx context.Context, span Span, options RangeOptions) (*RangeResult, error) {
	r := span.rangeRequest(options)
	r.Keyspace = kv.keyspace
	reply, err := kv.c.roundTrip(ctx, read, &almanacv1.StreamCall{Request: &almanacv1.StreamCall_Range{Range: r}})
	if err != nil {
		return nil, err
	}
	return rangeResult(reply.GetRange()), nil
}

// Put writes a key and returns the write's revision.
func (kv *KV) Put(ctx context.Context, key, value []byte) (revision uint64, err error) {
	return kv.put(ctx, key, value, false, 0)
}

// PutIfAbsent writes a key that must not exist; else it fails with ReasonCompareFailed.
func (kv *KV) PutIfAbsent(ctx context.Context, key, value []byte) (revision uint64, err error) {
	return kv.put(ctx, key, value, true, 0)
}

// CompareAndPut writes a key whose last write must have this revision (0: the key must
// not exist); else it fails with ReasonCompareFailed.
func (kv *KV) CompareAndPut(ctx context.Context, key, value []byte, last uint64) (revision uint64, err error) {
	return kv.put(ctx, key, value, last == 0, last)
}

func (kv *KV) put(ctx context.Context, key, value []byte, absent bool, last uint64) (uint64, error) {
	p := putCalls.Get().(*putCall)
	r := &p.request
	r.Keyspace, r.Key, r.Value, r.IfAbsent, r.IfRevision = kv.keyspace, key, value, absent, last
	reply, err := kv.c.roundTrip(ctx, write, &p.call)
	r.Key, r.Value, p.call.TimeoutMs = nil, nil, 0
	putCalls.Put(p)
	if err != nil {
		return 0, err
	}
	return reply.GetPut().GetRevision(), nil
}

// Delete deletes the keys of a span.
func (kv *KV) Delete(ctx context.Context, span Span) (DeleteResult, error) {
	r := span.deleteRequest()
	r.Keyspace = kv.keyspace
	reply, err := kv.c.roundTrip(ctx, write, &almanacv1.StreamCall{Request: &almanacv1.StreamCall_Delete{Delete: r}})
	if err != nil {
		return DeleteResult{}, err
	}
	d := reply.GetDelete()
	return DeleteResult{Revision: d.GetRevision(), Deleted: d.GetDeleted()}, nil
}

// roundTrip does one KV call with retries. It returns an untyped nil error or an *Error.
func (c *Client) roundTrip(ctx context.Context, k safety, call *almanacv1.StreamCall) (*almanacv1.StreamReply, error) {
	deadline, bounded := ctx.Deadline()
	if !bounded && c.opts.Timeout > 0 {
		deadline = time.Now().Add(c.opts.Timeout)
	}
	a := attempts{c: c}
	for {
		s := a.server()
		var reply *almanacv1.StreamReply
		var e *Error
		m := s.live()
		if m != nil {
			reply, e = m.call(ctx, deadline, call)
			if e == nil {
				return reply, nil
			}
		}
		// All that may take time besides the answer needs a context with the deadline;
		// a call that goes well does without.
		if !bounded && !deadline.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline)
			defer cancel() // once: then it is bounded
			bounded = true
		}
		if m == nil {
			if m, e = s.join(ctx); e == nil {
				reply, e = m.call(ctx, deadline, call)
			}
			if e == nil {
				return reply, nil
			}
		}
		if e = a.again(ctx, k, s, e); e != nil {
			return nil, e
		}
	}
}

func (s Span) rangeRequest(o RangeOptions) *almanacv1.RangeRequest {
	return &almanacv1.RangeRequest{
		Key: s.key, End: s.end, Prefix: s.prefix, ToEnd: s.toEnd,
		Limit: o.Limit, KeysOnly: o.KeysOnly, CountOnly: o.CountOnly,
		Consistency: o.Read.consistency, Revision: o.Read.revision, MaxStalenessMs: o.Read.staleness.Milliseconds(),
	}
}

func (s Span) deleteRequest() *almanacv1.DeleteRequest {
	return &almanacv1.DeleteRequest{Key: s.key, End: s.end, Prefix: s.prefix, ToEnd: s.toEnd}
}

func keyValue(p *almanacv1.KeyValue) KeyValue {
	return KeyValue{
		Key: p.GetKey(), Value: p.GetValue(),
		CreateRevision: p.GetCreateRevision(), ModRevision: p.GetModRevision(),
		Version: p.GetVersion(), Lease: p.GetLease(),
	}
}

func keyValuePointer(p *almanacv1.KeyValue) *KeyValue {
	if p == nil {
		return nil
	}
	kv := keyValue(p)
	return &kv
}

func rangeResult(p *almanacv1.RangeResponse) *RangeResult {
	r := &RangeResult{Count: p.GetCount(), More: p.GetMore(), Revision: p.GetRevision()}
	r.KVs = make([]KeyValue, len(p.GetKvs()))
	for i, kv := range p.GetKvs() {
		r.KVs[i] = keyValue(kv)
	}
	return r
}
