package logstore

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// Keys, on disk for ever; numbers are 8 bytes, big-endian:
//
//	0x01                            node record
//	0x02 range replica              tombstone
//	0x03 range 0x01                 hard state
//	0x03 range 0x02                 truncated mark; absent means (0, 0)
//	0x03 range 0x03                 initial state record
//	0x03 range 0x10 index           entry
//
// Every value is a CRC32C of key and body, then the body.
const (
	keyNode      = 0x01
	keyTombstone = 0x02
	keyRange     = 0x03

	recordHard      = 0x01
	recordTruncated = 0x02
	recordInitial   = 0x03
	recordEntry     = 0x10
)

func appendRange(b []byte, r base.RangeID) []byte {
	return binary.BigEndian.AppendUint64(append(b, keyRange), uint64(r))
}

func appendRecord(b []byte, r base.RangeID, kind byte) []byte {
	return append(appendRange(b, r), kind)
}

func appendEntryKey(b []byte, r base.RangeID, index uint64) []byte {
	return binary.BigEndian.AppendUint64(appendRecord(b, r, recordEntry), index)
}

func appendTombstone(b []byte, r base.RangeID, id base.ReplicaID) []byte {
	b = binary.BigEndian.AppendUint64(append(b, keyTombstone), uint64(r))
	return binary.BigEndian.AppendUint64(b, uint64(id))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(key, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, body)
}

// sealed starts a value: room for the checksum, which seal fills in.
func sealed(b []byte) []byte { return append(b[:0], 0, 0, 0, 0) }

func seal(key, value []byte) []byte {
	binary.BigEndian.PutUint32(value, checksum(key, value[4:]))
	return value
}

// unseal checks a value and returns its body, which aliases it.
func unseal(key, value []byte) ([]byte, bool) {
	if len(value) < 4 || binary.BigEndian.Uint32(value) != checksum(key, value[4:]) {
		return nil, false
	}
	return value[4:], true
}

func corrupt(r base.RangeID, format string, args ...any) error {
	args = append([]any{r}, args...)
	return fault.New(fault.Corrupt, "log of range %d: "+format, args...).OnRange(r)
}

// An entry's body is its type, its term and its data.

func appendEntry(b []byte, e *base.Entry) []byte {
	b = binary.AppendUvarint(append(b, byte(e.Type)), e.Term)
	return append(b, e.Data...)
}

// decodeEntry reads a stored entry; Data aliases value.
func decodeEntry(r base.RangeID, index uint64, key, value []byte) (base.Entry, error) {
	body, ok := unseal(key, value)
	if !ok {
		return base.Entry{}, corrupt(r, "entry %d fails its checksum", index)
	}
	if len(body) >= 2 {
		if term, n := binary.Uvarint(body[1:]); n > 0 {
			return base.Entry{Index: index, Term: term, Type: base.EntryType(body[0]), Data: body[1+n:]}, nil
		}
	}
	return base.Entry{}, corrupt(r, "entry %d does not parse", index)
}

// Hard state and marks are plain numbers.

func appendNumbers(b []byte, ns ...uint64) []byte {
	for _, n := range ns {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func decodeNumbers(r base.RangeID, what string, key, value []byte, ns ...*uint64) error {
	body, ok := unseal(key, value)
	if !ok {
		return corrupt(r, "%s fails its checksum", what)
	}
	for _, n := range ns {
		v, l := binary.Uvarint(body)
		if l <= 0 {
			return corrupt(r, "%s does not parse", what)
		}
		*n, body = v, body[l:]
	}
	if len(body) != 0 {
		return corrupt(r, "%s does not parse", what)
	}
	return nil
}

func decodeHard(r base.RangeID, key, value []byte) (hs effect.HardState, err error) {
	var vote uint64
	err = decodeNumbers(r, "hard state", key, value, &hs.Term, &vote, &hs.Commit)
	hs.Vote = base.ReplicaID(vote)
	return hs, err
}
