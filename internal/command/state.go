package command

import (
	"bytes"
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
)

// A state record is a format version and fields, each a tag, a length and that many
// bytes. A field whose value is zero is left out. Tags are on disk; never renumber.
const (
	stateFormat = 1

	tagDescriptor   = 1
	tagReplica      = 2
	tagAppliedIndex = 3
	tagAppliedTerm  = 4
	tagLastStamp    = 5
	tagClock        = 6
	tagHorizon      = 7
	tagBound        = 8
	tagFeatureLevel = 9
	lastTag         = tagFeatureLevel
)

// EncodeState appends a state record.
func EncodeState(b []byte, st *State) []byte {
	b = append(b, stateFormat, tagDescriptor)
	b = appendSized(b, func(b []byte) []byte { return EncodeDescriptor(b, &st.Descriptor) })
	b = appendField(b, tagReplica, uint64(st.Replica))
	b = appendField(b, tagAppliedIndex, st.Applied.Index)
	b = appendField(b, tagAppliedTerm, st.Applied.Term)
	b = appendField(b, tagLastStamp, uint64(st.LastStamp))
	b = appendField(b, tagClock, uint64(st.Clock))
	b = appendField(b, tagHorizon, uint64(st.Horizon))
	b = appendField(b, tagBound, uint64(st.Bound))
	b = appendField(b, tagFeatureLevel, uint64(st.FeatureLevel))
	return append(b, st.Unknown...)
}

func appendField(b []byte, tag byte, n uint64) []byte {
	if n == 0 {
		return b
	}
	var v [binary.MaxVarintLen64]byte
	l := binary.PutUvarint(v[:], n)
	return append(append(b, tag, byte(l)), v[:l]...)
}

// DecodeState reads a state record; nothing aliases b. Fields that this binary does not
// know are kept in Unknown as they are. Errors are faults of kind Corrupt, or
// Unimplemented for an unknown format version.
func DecodeState(b []byte) (*State, error) {
	d := decoder{b: bytes.Clone(b)}
	d.format(stateFormat, "a state record")
	st := &State{}
	seen := 0
	for len(d.b) > 0 {
		field := d.b
		tag := d.uvarint()
		value := d.bytes()
		if d.err != nil {
			return nil, d.err
		}
		if tag > lastTag {
			st.Unknown = append(st.Unknown, field[:len(field)-len(d.b)]...)
			continue
		}
		if tag == 0 || seen&(1<<tag) != 0 {
			d.fail("a state record")
			return nil, d.err
		}
		seen |= 1 << tag
		if err := st.setField(tag, value); err != nil {
			return nil, err
		}
	}
	if seen&(1<<tagDescriptor) == 0 {
		d.fail("a state record")
	}
	if err := d.finish("a state record"); err != nil {
		return nil, err
	}
	return st, nil
}

func (st *State) setField(tag uint64, value []byte) error {
	if tag == tagDescriptor {
		r, err := DecodeDescriptor(value)
		if err != nil {
			return err
		}
		st.Descriptor = *r
		return nil
	}
	d := decoder{b: value}
	n := d.uvarint()
	if tag == tagFeatureLevel && n > 1<<32-1 {
		d.fail("a feature level")
	}
	switch tag {
	case tagReplica:
		st.Replica = base.ReplicaID(n)
	case tagAppliedIndex:
		st.Applied.Index = n
	case tagAppliedTerm:
		st.Applied.Term = n
	case tagLastStamp:
		st.LastStamp = base.Timestamp(n)
	case tagClock:
		st.Clock = base.Timestamp(n)
	case tagHorizon:
		st.Horizon = base.Timestamp(n)
	case tagBound:
		st.Bound = base.Timestamp(n)
	case tagFeatureLevel:
		st.FeatureLevel = uint32(n)
	}
	return d.finish("a state record")
}
