package timeline

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// Format versions of the records of a partition. On disk; they only go up, and a
// higher one is written only once the range's feature level allows it.
const (
	eventFormat = 1
	metaFormat  = 1
	indexFormat = 1
	groupFormat = 1
)

// appendEvent appends the value of a new event: format version, flags, how far the
// sequence has moved from the first one, revision, message id, ordering key, headers,
// payload. The sequence itself stands in the key.
func appendEvent(b []byte, e *NewEvent, revision base.Timestamp) []byte {
	b = append(b, eventFormat, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(revision))
	b = appendBytes(b, e.MessageID)
	b = appendBytes(b, e.OrderingKey)
	b = binary.AppendUvarint(b, uint64(len(e.Headers)))
	for i := range e.Headers {
		b = appendBytes(b, e.Headers[i].Name)
		b = appendBytes(b, e.Headers[i].Value)
	}
	return appendBytes(b, e.Payload)
}

// decodeEvent reads the value of the event at pos. The byte slices of the answer alias
// value; empty ones are nil.
func decodeEvent(pos base.Position, value []byte) (Event, error) {
	e := Event{Position: pos}
	d := decoder{b: value}
	d.format(eventFormat)
	e.Flags = Flags(d.byte())
	moved := d.uvarint()
	if moved > pos.Seq {
		d.bad = true
	}
	e.FirstSeq = pos.Seq - moved
	e.Revision = base.Timestamp(d.uint64())
	e.MessageID = string(d.bytes())
	e.OrderingKey = d.bytes()
	// A header takes two bytes at least, which bounds what a damaged count can allocate.
	if n := d.uvarint(); n > uint64(len(d.b)/2) {
		d.bad = true
	} else if n > 0 {
		e.Headers = make([]Header, n)
		for i := range e.Headers {
			e.Headers[i].Name = string(d.bytes())
			e.Headers[i].Value = d.bytes()
		}
	}
	e.Payload = d.bytes()
	if !d.done() {
		return Event{}, fault.New(fault.Corrupt, "event at %v does not parse", pos)
	}
	return e, nil
}

// eventFlags reads only the flags of an event's value.
func eventFlags(pos base.Position, value []byte) (Flags, error) {
	if len(value) < 2 || value[0] != eventFormat {
		return 0, fault.New(fault.Corrupt, "event at %v does not parse", pos)
	}
	return Flags(value[1]), nil
}

// appendMeta appends a partition's meta record.
func appendMeta(b []byte, m *Stats) []byte {
	b = append(b, metaFormat)
	b = binary.AppendUvarint(b, m.NextSeq)
	b = binary.AppendUvarint(b, m.Events)
	return binary.AppendUvarint(b, m.Bytes)
}

func decodeMeta(p base.PartitionID, value []byte) (Stats, error) {
	d := decoder{b: value}
	d.format(metaFormat)
	m := Stats{NextSeq: d.uvarint(), Events: d.uvarint(), Bytes: d.uvarint()}
	if !d.done() {
		return Stats{}, fault.New(fault.Corrupt, "meta record of partition %v does not parse", p)
	}
	return m, nil
}

// appendIndex appends the value of a message id's index entry.
func appendIndex(b []byte, pos base.Position) []byte {
	return keys.AppendPosition(append(b, indexFormat), pos)
}

func decodeIndex(p base.PartitionID, value []byte) (base.Position, error) {
	d := decoder{b: value}
	d.format(indexFormat)
	pos := d.position()
	if !d.done() {
		return base.Position{}, fault.New(fault.Corrupt, "message id index of partition %v does not parse", p)
	}
	return pos, nil
}

// appendGroup appends a group's record. The id stands in the key; the last byte is the
// length of the group's policy, which this version does not have.
func appendGroup(b []byte, g *Group) []byte {
	b = append(b, groupFormat, byte(g.Start))
	b = binary.AppendUvarint(b, g.Generation)
	b = keys.AppendPosition(b, g.Cursor)
	b = binary.AppendUvarint(b, uint64(g.Acked))
	return append(b, 0)
}

func decodeGroup(p base.PartitionID, id base.GroupID, value []byte) (Group, error) {
	d := decoder{b: value}
	d.format(groupFormat)
	g := Group{Group: id, Start: StartRule(d.byte()), Generation: d.uvarint(), Cursor: d.position()}
	acked, policy := d.uvarint(), d.bytes()
	if acked > 1<<32-1 || policy != nil || !d.done() {
		return Group{}, fault.New(fault.Corrupt, "record of group %d in partition %v does not parse", id, p)
	}
	g.Acked = uint32(acked)
	return g, nil
}

// appendBytes appends s behind its length.
func appendBytes[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder reads a record front to back. Once something was missing it stays bad and
// yields zeros, so a caller checks once, at the end.
type decoder struct {
	b   []byte
	bad bool
}

// format checks the leading format version.
func (d *decoder) format(want byte) {
	if d.byte() != want {
		d.bad = true
	}
}

func (d *decoder) take(n uint64) []byte {
	if d.bad || n > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) byte() byte {
	if s := d.take(1); s != nil {
		return s[0]
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if s := d.take(8); s != nil {
		return binary.BigEndian.Uint64(s)
	}
	return 0
}

// uvarint reads a number and insists on its shortest form, so that equal records have
// equal bytes.
func (d *decoder) uvarint() uint64 {
	if d.bad {
		return 0
	}
	n, l := binary.Uvarint(d.b)
	if l <= 0 || l > 1 && d.b[l-1] == 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[l:]
	return n
}

// bytes reads a byte string behind its length; an empty one is nil.
func (d *decoder) bytes() []byte {
	s := d.take(d.uvarint())
	if len(s) == 0 {
		return nil
	}
	return s
}

func (d *decoder) position() base.Position {
	s := d.take(16)
	if s == nil {
		return base.Position{}
	}
	pos, _, err := keys.DecodePosition(s)
	if err != nil || pos.DueMS < 0 {
		d.bad = true
	}
	return pos
}

// done says whether all was read, and nothing was missing or left over.
func (d *decoder) done() bool { return !d.bad && len(d.b) == 0 }
