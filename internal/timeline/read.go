package timeline

import (
	"bytes"
	"math"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// Stats are a partition's running numbers.
type Stats struct {
	NextSeq uint64 // sequence of the next event
	Events  uint64 // events in the timeline, pending and due
	Bytes   uint64 // of their values as encoded
}

// ReadStats returns a partition's running numbers; ok is false while the partition has
// never held an event.
func ReadStats(r effect.Reader, p base.PartitionID) (s Stats, ok bool, err error) {
	return newPartition(p).readMeta(r)
}

func (p *partition) readMeta(r effect.Reader) (Stats, bool, error) {
	value, ok, err := r.Get(p.metaKey())
	if !ok || err != nil {
		return Stats{}, false, err
	}
	s, err := decodeMeta(p.id, value)
	return s, err == nil, err
}

// ReadGroup returns a group's record in a partition; ok is false if it has none there.
func ReadGroup(r effect.Reader, p base.PartitionID, g base.GroupID) (rec Group, ok bool, err error) {
	return newPartition(p).readGroup(r, g)
}

func (p *partition) readGroup(r effect.Reader, g base.GroupID) (Group, bool, error) {
	value, ok, err := r.Get(p.groupKey(g))
	if !ok || err != nil {
		return Group{}, false, err
	}
	rec, err := decodeGroup(p.id, g, value)
	return rec, err == nil, err
}

// Groups calls fn with every group of a partition, by rising id, until fn returns false.
func Groups(r effect.Reader, p base.PartitionID, fn func(Group) bool) (err error) {
	part := newPartition(p)
	lower := bytes.Clone(part.prefix(keys.FamilyGroup))
	it, err := r.NewIter(lower, base.PrefixEnd(lower))
	if err != nil {
		return err
	}
	defer closeInto(&err, it)
	for ok := it.First(); ok; ok = it.Next() {
		id, rest, err := keys.DecodeOrdered(it.Key()[len(lower):])
		if err != nil || len(rest) != 0 {
			return fault.New(fault.Corrupt, "key %x of partition %v holds no group", it.Key(), p)
		}
		value, err := it.Value()
		if err != nil {
			return err
		}
		g, err := decodeGroup(p, base.GroupID(id), value)
		if err != nil {
			return err
		}
		if !fn(g) {
			return nil
		}
	}
	return it.Error()
}

// ScanDue calls fn with the events of a partition after a position and due by clockMS,
// in order, until fn returns false, limit events were passed, or the next would bring
// their encoded values above maxBytes; the first is passed whatever its size. 0 means no
// bound. more says whether due events are left behind the last one passed. An event's fields are
// the callee's to keep: its byte slices share one buffer.
func ScanDue(
	r effect.Reader, p base.PartitionID, after base.Position, clockMS int64,
	limit, maxBytes int, fn func(Event) bool,
) (more bool, err error) {
	w, err := newPartition(p).events(r, after, endOf(clockMS))
	if err != nil {
		return false, err
	}
	defer closeInto(&err, w)
	n, size := 0, 0
	for ; w.ok; w.next() {
		if limit > 0 && n == limit {
			return true, nil
		}
		value, err := w.value()
		if err != nil {
			return false, err
		}
		if size += len(value); maxBytes > 0 && size > maxBytes && n > 0 {
			return true, nil
		}
		e, err := decodeEvent(w.at, bytes.Clone(value))
		if err != nil {
			return false, err
		}
		n++
		if !fn(e) {
			w.next()
			return w.ok, nil
		}
	}
	return false, nil
}

// ReadEvent returns the event at a position, pending or due; ok is false if none is
// there.
func ReadEvent(r effect.Reader, p base.PartitionID, pos base.Position) (e Event, ok bool, err error) {
	value, ok, err := r.Get(newPartition(p).eventKey(pos))
	if !ok || err != nil {
		return Event{}, false, err
	}
	e, err = decodeEvent(pos, value)
	return e, err == nil, err
}

// NextDue returns the due time of a partition's first pending event, in milliseconds
// since 1970; ok is false if none is pending.
func NextDue(r effect.Reader, p base.PartitionID, clockMS int64) (dueMS int64, ok bool, err error) {
	w, err := newPartition(p).events(r, endOf(max(clockMS, 0)), endOf(math.MaxInt64))
	if err != nil {
		return 0, false, err
	}
	defer closeInto(&err, w)
	return w.at.DueMS, w.ok, nil
}

// AckedAbove calls fn with a group's acked positions above its cursor, from < position
// ≤ to, in order, until fn returns false.
func AckedAbove(
	r effect.Reader, p base.PartitionID, g base.GroupID, from, to base.Position,
	fn func(base.Position) bool,
) (err error) {
	w, err := newPartition(p).acked(r, g, from, to)
	if err != nil {
		return err
	}
	defer closeInto(&err, w)
	for ; w.ok; w.next() {
		if !fn(w.at) {
			return nil
		}
	}
	return nil
}

// Partitions returns the partitions in a logical span that have ever held an event, in
// key order.
func Partitions(r effect.Reader, span base.Span) (ids []base.PartitionID, err error) {
	it, err := r.NewIter(keys.FamilySpan(keys.FamilyPartition, span))
	if err != nil {
		return nil, err
	}
	defer closeInto(&err, it)
	for ok := it.First(); ok; ok = it.Next() {
		_, logical, _, err := keys.Decode(it.Key())
		if err != nil {
			return nil, fault.Wrap(fault.Corrupt, err, "a partition's key does not parse")
		}
		id, err := keys.DecodePartition(logical)
		if err != nil {
			return nil, fault.Wrap(fault.Corrupt, err, "a partition's key does not parse")
		}
		ids = append(ids, id)
	}
	return ids, it.Error()
}

// closeInto closes c and keeps its error if there is none yet.
func closeInto(err *error, c interface{ Close() error }) {
	if e := c.Close(); *err == nil {
		*err = e
	}
}
