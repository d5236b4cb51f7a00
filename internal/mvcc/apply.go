package mvcc

import (
	"bytes"
	"cmp"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// Apply evaluates a transaction at its commit timestamp, which is above that of every
// version in the view. All compares, nested ones included, see the state before the
// transaction; operations see what earlier ones wrote. Reads below the history horizon
// are refused.
//
// Without answer, only what the state needs is done: range reads and previous versions
// are skipped, and the result holds Succeeded alone.
//
// A fault of kind Invalid, NotFound, Compacted or FutureRevision refuses the
// transaction before its first write. Any other error is of storage or corruption; the
// view is then to be dropped.
func Apply(v effect.View, txn *Txn, at, horizon base.Timestamp, answer bool) (*TxnResult, error) {
	a := applier{view: v, read: reader{r: v}, at: at, horizon: horizon, answer: answer}
	if err := a.decide(txn, 1); err != nil {
		return nil, err
	}
	res := &TxnResult{}
	if err := a.run(txn, res); err != nil {
		return nil, err
	}
	return res, nil
}

// applier is one application of a transaction.
type applier struct {
	view     effect.View
	read     reader
	at       base.Timestamp
	horizon  base.Timestamp
	answer   bool
	branches []bool // whether the compares held, for each transaction in running order
	key, val []byte // buffers
}

// decide chooses the branch of txn and of those nested in it, and checks what will be
// done. It writes nothing.
func (a *applier) decide(txn *Txn, depth int) error {
	if depth > MaxDepth {
		return errTooDeep()
	}
	ok, err := a.holdAll(txn.Compares)
	if err != nil {
		return err
	}
	a.branches = append(a.branches, ok)
	ops := txn.branch(ok)
	for i := range ops {
		if err := a.check(&ops[i], depth); err != nil {
			return err
		}
	}
	return nil
}

func (t *Txn) branch(succeeded bool) []Op {
	if succeeded {
		return t.Then
	}
	return t.Else
}

// check refuses an operation that cannot be done.
func (a *applier) check(op *Op, depth int) error {
	if err := op.wellFormed(); err != nil {
		return err
	}
	switch op.Kind {
	case OpRange:
		return CheckAt(op.Range.At, a.horizon, a.at)
	case OpPut:
		if !op.IgnoreValue && !op.IgnoreLease {
			return nil
		}
		_, found, err := a.read.get(op.Span.Start, a.at, false)
		if err == nil && !found {
			err = fault.New(fault.NotFound, "a put keeps the value or lease of a key that does not exist")
		}
		return err
	case OpTxn:
		return a.decide(op.Txn, depth+1)
	}
	return nil
}

// CheckAt refuses a read at a timestamp below the history horizon (fault.Compacted) or
// above newest (fault.FutureRevision). A timestamp of 0 asks for the newest version
// and always passes.
func CheckAt(at, horizon, newest base.Timestamp) error {
	switch {
	case at == 0:
		return nil
	case at < horizon:
		return fault.New(fault.Compacted, "timestamp %d is below the history horizon %d", uint64(at), uint64(horizon)).
			WithRemedy("read at %d or later", uint64(horizon))
	case at > newest:
		return fault.New(fault.FutureRevision, "timestamp %d is above the newest issued, %d", uint64(at), uint64(newest)).
			WithRemedy("read without a timestamp, or at one that an earlier answer returned")
	}
	return nil
}

func (a *applier) holdAll(cs []Compare) (bool, error) {
	for i := range cs {
		ok, err := a.holds(&cs[i])
		if err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// holds evaluates one compare.
func (a *applier) holds(c *Compare) (bool, error) {
	any, ok := false, true
	err := a.read.visit(c.Span, a.at, func(kv *KeyValue) bool {
		any, ok = true, c.matches(kv)
		return ok
	})
	if err == nil && !any {
		ok = c.Target != TargetValue && c.matches(&KeyValue{})
	}
	return ok, err
}

func (c *Compare) matches(kv *KeyValue) bool {
	var d int
	switch c.Target {
	case TargetVersion:
		d = cmp.Compare(kv.Version, c.Number)
	case TargetCreate:
		d = cmp.Compare(int64(kv.CreateRevision), c.Number)
	case TargetMod:
		d = cmp.Compare(int64(kv.ModRevision), c.Number)
	case TargetValue:
		d = bytes.Compare(kv.Value, c.Value)
	case TargetLease:
		d = cmp.Compare(kv.Lease, c.Number)
	default:
		return false
	}
	switch c.Relation {
	case Equal:
		return d == 0
	case Greater:
		return d > 0
	case Less:
		return d < 0
	case NotEqual:
		return d != 0
	}
	return false
}

// run does what decide chose.
func (a *applier) run(txn *Txn, res *TxnResult) error {
	res.Succeeded = a.branches[0]
	a.branches = a.branches[1:]
	ops := txn.branch(res.Succeeded)
	if a.answer && len(ops) > 0 {
		res.Ops = make([]OpResult, len(ops))
	}
	var unasked OpResult
	for i := range ops {
		out := &unasked
		if a.answer {
			out = &res.Ops[i]
		}
		out.Kind = ops[i].Kind
		if err := a.do(&ops[i], out); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) do(op *Op, out *OpResult) (err error) {
	switch op.Kind {
	case OpRange:
		if a.answer {
			o := op.Range
			if o.At == 0 {
				o.At = a.at
			}
			out.Range, err = a.read.rangeRead(op.Span, &o)
		}
	case OpPut:
		err = a.put(op, out)
	case OpDelete:
		err = a.delete(op, out)
	case OpTxn:
		out.Txn = &TxnResult{}
		err = a.run(op.Txn, out.Txn)
	}
	return err
}

func (a *applier) put(op *Op, out *OpResult) error {
	wantPrev := op.PrevKV && a.answer
	prev, found, err := a.read.get(op.Span.Start, a.at, op.IgnoreValue || wantPrev)
	if err != nil {
		return err
	}
	kv := KeyValue{Value: op.Value, Lease: op.Lease, CreateRevision: a.at, ModRevision: a.at, Version: 1}
	if found {
		kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
	}
	if op.IgnoreValue {
		kv.Value = prev.Value
	}
	if op.IgnoreLease {
		kv.Lease = prev.Lease
	}
	if found && wantPrev {
		prev.Key = bytes.Clone(prev.Key)
		out.Prev = []KeyValue{prev}
	}
	a.key = keys.AppendVersion(a.key[:0], op.Span.Start, a.at)
	a.val = appendVersion(a.val[:0], &kv)
	return a.view.Set(a.key, a.val)
}

// delete writes a tombstone for each key that exists. The keys are collected before
// the first write, so that no iterator is open across writes.
func (a *applier) delete(op *Op, out *OpResult) error {
	wantPrev := op.PrevKV && a.answer
	a.key = a.key[:0]
	var ends []int
	err := a.read.visit(op.Span, a.at, func(kv *KeyValue) bool {
		a.key = keys.AppendVersion(a.key, kv.Key, a.at)
		ends = append(ends, len(a.key))
		if wantPrev {
			out.Prev = append(out.Prev, clone(kv, true))
		}
		return true
	})
	if err != nil {
		return err
	}
	out.Deleted = int64(len(ends))
	start := 0
	for _, end := range ends {
		if err := a.view.Set(a.key[start:end], tombstone); err != nil {
			return err
		}
		start = end
	}
	return nil
}
