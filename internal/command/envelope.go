package command

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// An envelope is a header at fixed offsets, so that the orderer patches stamp and time
// in place, then the read list, the write list, and the body. A body does not repeat
// the keys and spans of the lists: its parts use them in order.
const (
	envelopeFormat = 1

	offFormat    = 0
	offKind      = 1
	offVersion   = 2
	offReserved  = 3
	offClient    = 4
	offRequest   = 12
	offSpanEpoch = 20
	offStamp     = 28
	offTime      = 36
	headerSize   = 44
)

// maxVersion is the newest version of any command's semantics that this binary knows.
const maxVersion = 0

// Encode returns the envelope of a command. body is what h.Kind says, by pointer; the
// lists are derived from it. A body of another type, or one that Decode would not
// take, is refused with fault.Invalid.
func Encode(h Header, body any) ([]byte, error) {
	var p parts
	if err := p.gather(h.Kind, body); err != nil {
		return nil, err
	}
	env := make([]byte, headerSize, headerSize+16+p.size())
	env[offFormat] = envelopeFormat
	env[offKind] = byte(h.Kind)
	env[offVersion] = h.Version
	binary.LittleEndian.PutUint64(env[offClient:], h.ClientID)
	binary.LittleEndian.PutUint64(env[offRequest:], h.Request)
	binary.LittleEndian.PutUint64(env[offSpanEpoch:], h.SpanEpoch)
	SetStamp(env, h.Stamp)
	SetTime(env, h.Time)
	env = appendSpans(env, p.reads)
	env = appendSpans(env, p.writes)
	return append(env, p.body...), nil
}

// SetStamp sets the commit timestamp of an envelope that Encode made.
func SetStamp(env []byte, stamp base.Timestamp) {
	binary.LittleEndian.PutUint64(env[offStamp:], uint64(stamp))
}

// SetTime sets the time of an envelope that Encode made.
func SetTime(env []byte, t base.Timestamp) {
	binary.LittleEndian.PutUint64(env[offTime:], uint64(t))
}

// DecodeHeader reads an envelope's header. An unknown format version is a fault of
// kind Unimplemented, anything that does not parse one of kind Corrupt.
func DecodeHeader(env []byte) (Header, error) {
	if len(env) > 0 && env[offFormat] != envelopeFormat {
		return Header{}, fault.New(fault.Unimplemented,
			"a command has envelope format %d, this binary reads %d", env[offFormat], envelopeFormat).
			WithRemedy("run a version of Almanac that knows this format")
	}
	if len(env) < headerSize || env[offReserved] != 0 {
		return Header{}, fault.New(fault.Corrupt, "a command's header does not parse")
	}
	return Header{
		Kind:      Kind(env[offKind]),
		Version:   env[offVersion],
		ClientID:  binary.LittleEndian.Uint64(env[offClient:]),
		Request:   binary.LittleEndian.Uint64(env[offRequest:]),
		SpanEpoch: binary.LittleEndian.Uint64(env[offSpanEpoch:]),
		Stamp:     base.Timestamp(binary.LittleEndian.Uint64(env[offStamp:])),
		Time:      base.Timestamp(binary.LittleEndian.Uint64(env[offTime:])),
	}, nil
}

// Touches returns the keys and spans that a command may read and may write, without
// decoding its body. They alias env.
func Touches(env []byte) (reads, writes []base.Span, err error) {
	if _, err := DecodeHeader(env); err != nil {
		return nil, nil, err
	}
	d := decoder{b: env[headerSize:]}
	reads, writes = d.spans(), d.spans()
	return reads, writes, d.err
}

// Decode reads an envelope; what it returns aliases env. A kind or version that this
// binary does not know is a fault of kind Unimplemented, and so is an unknown format
// version; anything that does not parse is one of kind Corrupt. An orderer decodes
// what it did not encode itself before it appends it, for Apply takes a corrupt
// command for a broken replica.
func Decode(env []byte) (*Command, error) {
	h, err := DecodeHeader(env)
	if err != nil {
		return nil, err
	}
	if !h.Kind.known() || h.Version > maxVersion {
		return nil, fault.New(fault.Unimplemented, "command kind %d version %d is not known", h.Kind, h.Version).
			WithRemedy("raise the feature level only after every node runs a version of Almanac that knows it")
	}
	d := decoder{b: env[headerSize:]}
	c := &Command{Header: h}
	c.Reads, c.Writes = d.spans(), d.spans()
	c.Body = d.body(c)
	if err := d.finish("a command"); err != nil {
		return nil, err
	}
	return c, nil
}

func (k Kind) known() bool { return k >= KindNoop && k <= KindRaiseFeature }
