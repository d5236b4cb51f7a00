package wire

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// ReadRequest reads one range, all at one timestamp.
type ReadRequest struct {
	At     base.Timestamp // 0: a fresh one, unless Newest or Local
	Newest bool           // linearizable, the newest versions of this one range
	Local  bool           // whatever the replica has applied
	Reads  []Read
}

// Read is one range read. Span is of logical keys.
type Read struct {
	Span    base.Span
	Options mvcc.RangeOptions
}

// ReadReply answers a ReadRequest, its results in the order of the reads. With a
// Compacted fault beside it in the Reply, it says where history begins.
type ReadReply struct {
	At      base.Timestamp // at which was read
	Horizon base.Timestamp // of the range: reads below it are refused (K8)
	Results []mvcc.RangeResult
}

// Append implements Body.
func (x *ReadRequest) Append(b []byte) []byte {
	b = appendUvarint(b, uint64(x.At))
	b = appendBool(appendBool(b, x.Newest), x.Local)
	return appendList(b, x.Reads, func(b []byte, r *Read) []byte {
		return appendRangeOptions(appendSpan(b, &r.Span), &r.Options)
	})
}

// Decode implements Body.
func (x *ReadRequest) Decode(b []byte) error {
	d := decoder{b: b}
	x.At = base.Timestamp(d.uvarint())
	x.Newest = d.bool()
	x.Local = d.bool()
	x.Reads = decodeList(&d, 3, func(d *decoder, r *Read) {
		r.Span = decodeSpan(d)
		decodeRangeOptions(d, &r.Options)
	})
	return d.end()
}

// Append implements Body.
func (x *ReadReply) Append(b []byte) []byte {
	b = appendUvarint(b, uint64(x.At))
	b = appendUvarint(b, uint64(x.Horizon))
	return appendList(b, x.Results, func(b []byte, r *mvcc.RangeResult) []byte {
		b = appendVarint(b, r.Count)
		b = appendBool(b, r.More)
		return appendList(b, r.KVs, appendKeyValue)
	})
}

// Decode implements Body.
func (x *ReadReply) Decode(b []byte) error {
	d := decoder{b: b}
	x.At = base.Timestamp(d.uvarint())
	x.Horizon = base.Timestamp(d.uvarint())
	x.Results = decodeList(&d, 3, func(d *decoder, r *mvcc.RangeResult) {
		r.Count = d.varint()
		r.More = d.bool()
		r.KVs = decodeList(d, 6, decodeKeyValue)
	})
	return d.end()
}

func appendKeyValue(b []byte, kv *mvcc.KeyValue) []byte {
	b = appendBytes(b, kv.Key)
	b = appendBytes(b, kv.Value)
	b = appendUvarint(b, uint64(kv.CreateRevision))
	b = appendUvarint(b, uint64(kv.ModRevision))
	b = appendVarint(b, kv.Version)
	return appendVarint(b, kv.Lease)
}

func decodeKeyValue(d *decoder, kv *mvcc.KeyValue) {
	kv.Key = d.bytes()
	kv.Value = d.bytes()
	kv.CreateRevision = base.Timestamp(d.uvarint())
	kv.ModRevision = base.Timestamp(d.uvarint())
	kv.Version = d.varint()
	kv.Lease = d.varint()
}

// Most reads set few options: a byte of flags, then what is set.
const (
	optionAt = 1 << iota
	optionLimit
	optionCountOnly
	optionKeysOnly
	optionSort
	optionFilters
	knownOptions = 1<<iota - 1
)

func appendRangeOptions(b []byte, o *mvcc.RangeOptions) []byte {
	var flags byte
	set := func(flag byte, present bool) {
		if present {
			flags |= flag
		}
	}
	set(optionAt, o.At != 0)
	set(optionLimit, o.Limit != 0)
	set(optionCountOnly, o.CountOnly)
	set(optionKeysOnly, o.KeysOnly)
	set(optionSort, o.Sort != 0 || o.Order != 0)
	set(optionFilters, o.MinMod|o.MaxMod|o.MinCreate|o.MaxCreate != 0)
	b = append(b, flags)
	if flags&optionAt != 0 {
		b = appendUvarint(b, uint64(o.At))
	}
	if flags&optionLimit != 0 {
		b = appendVarint(b, o.Limit)
	}
	if flags&optionSort != 0 {
		b = append(b, byte(o.Sort), byte(o.Order))
	}
	if flags&optionFilters != 0 {
		b = appendUvarint(b, uint64(o.MinMod))
		b = appendUvarint(b, uint64(o.MaxMod))
		b = appendUvarint(b, uint64(o.MinCreate))
		b = appendUvarint(b, uint64(o.MaxCreate))
	}
	return b
}

func decodeRangeOptions(d *decoder, o *mvcc.RangeOptions) {
	flags := d.byte()
	if flags > knownOptions {
		d.fail("a read has unknown options %#x", flags)
		return
	}
	o.CountOnly = flags&optionCountOnly != 0
	o.KeysOnly = flags&optionKeysOnly != 0
	if flags&optionAt != 0 {
		o.At = base.Timestamp(d.uvarint())
	}
	if flags&optionLimit != 0 {
		o.Limit = d.varint()
	}
	if flags&optionSort != 0 {
		o.Sort = mvcc.SortTarget(d.byte())
		o.Order = mvcc.SortOrder(d.byte())
	}
	if flags&optionFilters != 0 {
		o.MinMod = base.Timestamp(d.uvarint())
		o.MaxMod = base.Timestamp(d.uvarint())
		o.MinCreate = base.Timestamp(d.uvarint())
		o.MaxCreate = base.Timestamp(d.uvarint())
	}
}
