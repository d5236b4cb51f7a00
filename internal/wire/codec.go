package wire

import (
	"encoding/binary"
	"math"

	"github.com/almanacdb/almanac/internal/fault"
)

// preallocated bounds what a count read from a frame may allocate before its elements
// have been seen; longer lists grow as they parse.
const preallocated = 1024

func appendUvarint(b []byte, n uint64) []byte { return binary.AppendUvarint(b, n) }

func appendVarint(b []byte, n int64) []byte { return binary.AppendVarint(b, n) }

func appendBytes[T []byte | string](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendList[T any](b []byte, list []T, one func([]byte, *T) []byte) []byte {
	b = appendUvarint(b, uint64(len(list)))
	for i := range list {
		b = one(b, &list[i])
	}
	return b
}

func appendIDs[T ~uint64 | ~uint32](b []byte, ids []T) []byte {
	b = appendUvarint(b, uint64(len(ids)))
	for _, id := range ids {
		b = appendUvarint(b, uint64(id))
	}
	return b
}

// decoder reads what the append functions wrote. The first failure sticks: later reads
// return zero values, so that callers check once, with end.
type decoder struct {
	b   []byte
	err *fault.Error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fault.New(fault.Corrupt, format, args...)
	}
	d.b = nil
}

// end returns the first failure, or one if bytes are left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) != 0 {
		d.fail("%d bytes follow a message's end", len(d.b))
	}
	if d.err != nil {
		return d.err
	}
	return nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("message is cut short")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) bool() bool {
	c := d.byte()
	if c > 1 {
		d.fail("a truth value is %d", c)
	}
	return c == 1
}

func (d *decoder) uvarint() uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 {
		n := uint64(d.b[0])
		d.b = d.b[1:]
		return n
	}
	n, size := binary.Uvarint(d.b)
	if size <= 0 {
		d.fail("a number is cut short or too long")
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) varint() int64 {
	n := d.uvarint()
	return int64(n>>1) ^ -int64(n&1)
}

func (d *decoder) uint32() uint32 {
	n := d.uvarint()
	if n > math.MaxUint32 {
		d.fail("%d does not fit 32 bits", n)
		return 0
	}
	return uint32(n)
}

// bytes returns a length-prefixed string of bytes that aliases the input; nil if empty.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail("%d bytes are announced, %d are left", n, len(d.b))
		return nil
	}
	if n == 0 {
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) string() string { return string(d.bytes()) }

// count reads the length of a list whose elements take at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail("%d elements are announced in %d bytes", n, len(d.b))
		return 0
	}
	return int(n)
}

// decodeList reads a list whose elements take at least size bytes each; nil if empty.
func decodeList[T any](d *decoder, size int, one func(*decoder, *T)) []T {
	n := d.count(size)
	if n == 0 {
		return nil
	}
	list := make([]T, 0, min(n, preallocated))
	for ; n > 0 && d.err == nil; n-- {
		list = append(list, *new(T))
		one(d, &list[len(list)-1])
	}
	return list
}

func decodeIDs[T ~uint64](d *decoder) []T {
	return decodeList(d, 1, func(d *decoder, id *T) { *id = T(d.uvarint()) })
}
