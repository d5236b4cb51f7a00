package wire

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/invariant"
)

// A frame is a format version byte, the CRC32C of the messages in little-endian order,
// and the messages, one after another.

// FrameVersion is the version of the frame's format. It only goes up.
const FrameVersion = 1

const frameHeader = 5

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// First byte of a message. On the wire; never renumber.
const (
	tagReplication = 1
	tagCall        = 2
	tagReply       = 3
)

// AppendFrame appends a frame that holds msgs. The frame aliases none of them.
func AppendFrame(b []byte, msgs []Message) []byte {
	start := len(b)
	b = append(b, FrameVersion, 0, 0, 0, 0)
	for i := range msgs {
		b = AppendMessage(b, &msgs[i])
	}
	sum := crc32.Checksum(b[start+frameHeader:], castagnoli)
	binary.LittleEndian.PutUint32(b[start+1:], sum)
	return b
}

// DecodeMessages returns the messages of a frame. They alias the frame, which belongs to
// them from then on; what keeps a small part of a message for long should copy it. Any
// bytes that AppendFrame did not write yield a Corrupt error.
func DecodeMessages(frame []byte) ([]Message, error) {
	if len(frame) < frameHeader {
		return nil, fault.New(fault.Corrupt, "a frame has %d bytes", len(frame))
	}
	if frame[0] != FrameVersion {
		return nil, fault.New(fault.Corrupt, "a frame has format version %d, this node knows %d",
			frame[0], FrameVersion).WithRemedy("run the same release on all nodes")
	}
	body := frame[frameHeader:]
	if sum := crc32.Checksum(body, castagnoli); sum != binary.LittleEndian.Uint32(frame[1:]) {
		return nil, fault.New(fault.Corrupt, "a frame of %d bytes failed its checksum", len(frame))
	}
	d := decoder{b: body}
	var msgs []Message
	for len(d.b) > 0 {
		m := decodeMessage(&d)
		if d.err != nil {
			break
		}
		msgs = append(msgs, m)
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	return msgs, nil
}

// AppendMessage appends one message as it stands in a frame. It panics if m is empty.
func AppendMessage(b []byte, m *Message) []byte {
	switch {
	case m.Replication != nil:
		return appendReplication(append(b, tagReplication), m.Replication)
	case m.Call != nil:
		c := m.Call
		b = append(b, tagCall, byte(c.Method))
		b = appendUvarint(b, c.ID)
		b = appendUvarint(b, uint64(c.Range))
		b = appendUvarint(b, uint64(c.TimeoutMS))
		return appendBytes(b, c.Body)
	case m.Reply != nil:
		r := m.Reply
		b = appendUvarint(append(b, tagReply), r.ID)
		b = appendFault(b, r.Fault)
		return appendBytes(b, r.Body)
	}
	invariant.Violated("a message between nodes has one field set")
	return b
}

func decodeMessage(d *decoder) Message {
	switch tag := d.byte(); tag {
	case tagReplication:
		m := &effect.Message{}
		decodeReplication(d, m)
		return Message{Replication: m}
	case tagCall:
		c := &Call{Method: Method(d.byte())}
		c.ID = d.uvarint()
		c.Range = base.RangeID(d.uvarint())
		c.TimeoutMS = d.uint32()
		c.Body = d.bytes()
		return Message{Call: c}
	case tagReply:
		r := &Reply{ID: d.uvarint()}
		r.Fault = decodeFault(d)
		r.Body = d.bytes()
		return Message{Reply: r}
	default:
		d.fail("a message has the unknown tag %d", tag)
		return Message{}
	}
}

// Size returns roughly what a message takes in memory, in bytes, and no less than it
// takes in a frame. It is cheap, for the bounds of queues.
func Size(m *Message) int {
	switch {
	case m.Replication != nil:
		return replicationSize(m.Replication)
	case m.Call != nil:
		return 48 + len(m.Call.Body)
	case m.Reply != nil:
		n := 48 + len(m.Reply.Body)
		if f := m.Reply.Fault; f != nil {
			n += 48 + len(f.Text) + len(f.Remedy)
		}
		return n
	}
	return 0
}

// appendFault appends a fault without its cause; nil is allowed.
func appendFault(b []byte, f *fault.Error) []byte {
	if f == nil {
		return append(b, 0)
	}
	b = append(b, 1, byte(f.Kind))
	b = appendBytes(b, f.Text)
	b = appendBytes(b, f.Remedy)
	b = appendUvarint(b, uint64(f.Leader))
	return appendUvarint(b, uint64(f.Range))
}

func decodeFault(d *decoder) *fault.Error {
	if !d.bool() {
		return nil
	}
	f := &fault.Error{Kind: fault.Kind(d.byte())}
	f.Text = d.string()
	f.Remedy = d.string()
	f.Leader = base.NodeID(d.uvarint())
	f.Range = base.RangeID(d.uvarint())
	return f
}
