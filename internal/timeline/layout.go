package timeline

import (
	"math"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// partition knows the physical keys of one partition. Methods that return a key build
// it in buf: it is valid until the next such call.
type partition struct {
	id      base.PartitionID
	logical []byte
	buf     []byte
}

func newPartition(p base.PartitionID) *partition {
	return &partition{id: p, logical: keys.Partition(p)}
}

func (p *partition) prefix(f keys.Family) []byte {
	p.buf = keys.AppendPrefix(p.buf[:0], f, p.logical)
	return p.buf
}

func (p *partition) metaKey() []byte { return p.prefix(keys.FamilyPartition) }

func (p *partition) eventKey(pos base.Position) []byte {
	p.buf = keys.AppendPosition(p.prefix(keys.FamilyTimeline), pos)
	return p.buf
}

func (p *partition) messageIDKey(id string) []byte {
	p.buf = append(p.prefix(keys.FamilyMessageID), id...)
	return p.buf
}

func (p *partition) groupKey(g base.GroupID) []byte {
	p.buf = keys.AppendOrdered(p.prefix(keys.FamilyGroup), uint64(g))
	return p.buf
}

func (p *partition) ackedKey(g base.GroupID, pos base.Position) []byte {
	p.buf = keys.AppendOrdered(p.prefix(keys.FamilyAcked), uint64(g))
	p.buf = keys.AppendPosition(p.buf, pos)
	return p.buf
}

// events walks the events with after < position ≤ upTo.
func (p *partition) events(r effect.Reader, after, upTo base.Position) (*positions, error) {
	return newPositions(r, p.id, p.prefix(keys.FamilyTimeline), after, upTo)
}

// acked walks the acked marks of a group with after < position ≤ upTo.
func (p *partition) acked(r effect.Reader, g base.GroupID, after, upTo base.Position) (*positions, error) {
	prefix := keys.AppendOrdered(p.prefix(keys.FamilyAcked), uint64(g))
	return newPositions(r, p.id, prefix, after, upTo)
}

// endOf returns the last position that a millisecond can hold.
func endOf(ms int64) base.Position { return base.Position{DueMS: ms, Seq: math.MaxUint64} }

// positions walks keys of the form (prefix, position). at is the position that it
// stands on while ok; a storage error or a bad key ends the walk and stays in err.
type positions struct {
	partition base.PartitionID
	it        effect.Iterator
	prefix    []byte
	key       []byte // scratch of seek
	at        base.Position
	ok        bool
	err       error
}

// newPositions starts a walk over after < position ≤ upTo; it owns nothing of prefix.
func newPositions(
	r effect.Reader, p base.PartitionID, prefix []byte, after, upTo base.Position,
) (*positions, error) {
	w := &positions{partition: p}
	if after.DueMS < 0 {
		after = base.Position{}
	}
	if upTo.Compare(after) <= 0 {
		return w, nil
	}
	// A zero byte behind a key makes its immediate successor.
	n := len(prefix)
	buf := make([]byte, 0, 3*n+16+17+17)
	buf = append(buf, prefix...)
	w.prefix = buf[:n:n]
	buf = append(keys.AppendPosition(append(buf, prefix...), after), 0)
	lower := buf[n : 2*n+17 : 2*n+17]
	buf = append(keys.AppendPosition(append(buf, prefix...), upTo), 0)
	it, err := r.NewIter(lower, buf[2*n+17:])
	if err != nil {
		return nil, err
	}
	w.it = it
	w.settle(it.First())
	return w, nil
}

// settle decodes where the iterator stands after a move.
func (w *positions) settle(valid bool) {
	if w.ok = valid; !valid {
		w.err = w.it.Error()
		return
	}
	k := w.it.Key()
	pos, rest, err := keys.DecodePosition(k[len(w.prefix):])
	if err != nil || len(rest) != 0 || pos.DueMS < 0 {
		w.ok = false
		w.err = fault.New(fault.Corrupt, "key %x of partition %v holds no position", k, w.partition)
		return
	}
	w.at = pos
}

// next moves to the next position.
func (w *positions) next() {
	if w.ok {
		w.settle(w.it.Next())
	}
}

// seek moves forward to the first position at or after pos. It tries the next one
// first, since acks come in runs.
func (w *positions) seek(pos base.Position) {
	if w.ok && w.at.Compare(pos) < 0 {
		w.next()
	}
	if w.ok && w.at.Compare(pos) < 0 {
		w.key = keys.AppendPosition(append(w.key[:0], w.prefix...), pos)
		w.settle(w.it.SeekGE(w.key))
	}
}

// value returns the value at the current position, valid until the next move.
func (w *positions) value() ([]byte, error) { return w.it.Value() }

// Close releases the iterator and returns the first error of the walk.
func (w *positions) Close() error {
	if w.it == nil {
		return nil
	}
	err := w.it.Close()
	if w.err != nil {
		return w.err
	}
	return err
}

// fatal marks an error of the view as one that is no refusal of the command: only
// validation refuses, and it comes before the first write.
func fatal(err error) error {
	if err == nil || fault.KindOf(err) == fault.Corrupt {
		return err
	}
	return fault.Wrap(fault.Internal, err, "the range's state could not be read or written")
}
