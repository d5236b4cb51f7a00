package mvcc

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// A version's value on disk is a flags byte; a tombstone ends there. Else follow, as
// varints, the time since creation (so that a new key costs one byte), the version
// count, the lease if flagged, and then the user's value as it is. The commit
// timestamp stands in the key.
const (
	flagTombstone = 1 << iota
	flagLease

	knownFlags = flagTombstone | flagLease
)

var tombstone = []byte{flagTombstone}

// appendVersion appends the value on disk of a live version. kv.CreateRevision is at
// or below kv.ModRevision.
func appendVersion(b []byte, kv *KeyValue) []byte {
	flags := byte(0)
	if kv.Lease != 0 {
		flags |= flagLease
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(kv.ModRevision-kv.CreateRevision))
	b = binary.AppendUvarint(b, uint64(kv.Version))
	if kv.Lease != 0 {
		b = binary.AppendVarint(b, kv.Lease)
	}
	return append(b, kv.Value...)
}

// decodeVersion reads a version's value on disk, committed at ts, into all of kv but
// its key; kv.Value aliases b. live is false for a tombstone.
func decodeVersion(b []byte, ts base.Timestamp, kv *KeyValue) (live bool, err error) {
	if len(b) == 0 || b[0]&^knownFlags != 0 {
		return false, corruptVersion(b)
	}
	flags := b[0]
	if flags&flagTombstone != 0 {
		if flags != flagTombstone || len(b) != 1 {
			return false, corruptVersion(b)
		}
		return false, nil
	}
	rest := b[1:]
	age, n := binary.Uvarint(rest)
	if n <= 0 || age > uint64(ts) {
		return false, corruptVersion(b)
	}
	rest = rest[n:]
	count, n := binary.Uvarint(rest)
	if n <= 0 || count == 0 || count > 1<<63-1 {
		return false, corruptVersion(b)
	}
	rest = rest[n:]
	var lease int64
	if flags&flagLease != 0 {
		if lease, n = binary.Varint(rest); n <= 0 || lease == 0 {
			return false, corruptVersion(b)
		}
		rest = rest[n:]
	}
	kv.Value, kv.ModRevision, kv.CreateRevision = rest, ts, ts-base.Timestamp(age)
	kv.Version, kv.Lease = int64(count), lease
	return true, nil
}

func corruptVersion(b []byte) error {
	if len(b) > 32 {
		b = b[:32]
	}
	return fault.New(fault.Corrupt, "a version's value does not parse: %x", b)
}
