package mvcc

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// Bounds on a transaction, nested ones included. Faces may set lower ones.
const (
	MaxDepth = 16
	MaxOps   = 8192
)

// Validate refuses, with a fault of kind Invalid or TooLarge, a transaction that can
// never be applied as it stands: malformed operations, nesting or size above the
// bounds, and a key that two puts, or a put and a delete, of operations that may run
// together would write. Deletes may overlap each other, and the two branches of one
// transaction never run together. The rule is etcd's, applied whatever the order of the
// operations.
func Validate(txn *Txn) error {
	n := 0
	if err := txn.validate(1, &n); err != nil {
		return err
	}
	_, err := txn.writes()
	return err
}

func (t *Txn) validate(depth int, n *int) error {
	if depth > MaxDepth {
		return errTooDeep()
	}
	if *n += len(t.Compares) + len(t.Then) + len(t.Else); *n > MaxOps {
		return fault.New(fault.TooLarge, "a transaction has more than %d compares and operations", MaxOps)
	}
	for i := range t.Compares {
		if c := &t.Compares[i]; c.Target > TargetLease || c.Relation > NotEqual {
			return fault.New(fault.Invalid, "a compare has target %d and relation %d", c.Target, c.Relation)
		}
	}
	for _, ops := range [][]Op{t.Then, t.Else} {
		for i := range ops {
			op := &ops[i]
			if err := op.wellFormed(); err != nil {
				return err
			}
			if op.Kind == OpTxn {
				if err := op.Txn.validate(depth+1, n); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func errTooDeep() error {
	return fault.New(fault.Invalid, "transactions are nested more than %d deep", MaxDepth)
}

// wellFormed checks an operation by itself, not what is nested in it.
func (op *Op) wellFormed() error {
	switch op.Kind {
	case OpRange:
		if op.Range.Sort > SortValue || op.Range.Order > SortDescend {
			return fault.New(fault.Invalid, "a range read sorts by target %d in order %d", op.Range.Sort, op.Range.Order)
		}
	case OpPut:
		switch {
		case !op.Span.IsPoint():
			return fault.New(fault.Invalid, "a put names a span instead of a key")
		case op.IgnoreValue && len(op.Value) > 0:
			return fault.New(fault.Invalid, "a put keeps the current value and brings one")
		case op.IgnoreLease && op.Lease != 0:
			return fault.New(fault.Invalid, "a put keeps the current lease and brings one")
		}
	case OpDelete:
	case OpTxn:
		if op.Txn == nil {
			return fault.New(fault.Invalid, "a nested transaction is missing")
		}
	default:
		return fault.New(fault.Invalid, "an operation has the unknown kind %d", op.Kind)
	}
	return nil
}

// writeSet is what operations may write.
type writeSet struct {
	puts map[string]struct{}
	dels []base.Span
}

// writes returns what either branch may write, after checking each by itself.
func (t *Txn) writes() (writeSet, error) {
	all, err := branchWrites(t.Then)
	if err != nil {
		return writeSet{}, err
	}
	other, err := branchWrites(t.Else)
	if err != nil {
		return writeSet{}, err
	}
	all.add(other)
	return all, nil
}

// branchWrites returns what ops may write; it refuses two that collide.
func branchWrites(ops []Op) (writeSet, error) {
	var all writeSet
	for i := range ops {
		op := &ops[i]
		var one writeSet
		switch op.Kind {
		case OpPut:
			one.puts = map[string]struct{}{string(op.Span.Start): {}}
		case OpDelete:
			one.dels = []base.Span{op.Span}
		case OpTxn:
			var err error
			if one, err = op.Txn.writes(); err != nil {
				return writeSet{}, err
			}
		}
		if all.collides(one) {
			return writeSet{}, fault.New(fault.Invalid, "duplicate key given in txn request").
				WithRemedy("write each key once in a transaction")
		}
		all.add(one)
	}
	return all, nil
}

func (w *writeSet) collides(o writeSet) bool {
	for k := range o.puts {
		if _, dup := w.puts[k]; dup || covered([]byte(k), w.dels) {
			return true
		}
	}
	if len(o.dels) > 0 {
		for k := range w.puts {
			if covered([]byte(k), o.dels) {
				return true
			}
		}
	}
	return false
}

func covered(key []byte, spans []base.Span) bool {
	for _, s := range spans {
		if s.ContainsKey(key) {
			return true
		}
	}
	return false
}

func (w *writeSet) add(o writeSet) {
	if w.puts == nil {
		w.puts = o.puts
	} else {
		for k := range o.puts {
			w.puts[k] = struct{}{}
		}
	}
	w.dels = append(w.dels, o.dels...)
}
