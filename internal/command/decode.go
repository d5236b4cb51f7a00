package command

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/fault"
)

// decoder reads bytes and remembers the first failure; after it, every read yields
// zero. What it returns aliases its input.
type decoder struct {
	b   []byte
	err error
}

// fail records that what is being read does not parse.
func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fault.New(fault.Corrupt, "%s does not parse", what)
	}
	d.b = nil
}

// finish returns the first failure; bytes left over are one.
func (d *decoder) finish(what string) error {
	if d.err == nil && len(d.b) != 0 {
		d.fail(what)
	}
	return d.err
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("a byte")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

// flag reads a byte that is 0 or 1.
func (d *decoder) flag() bool {
	c := d.byte()
	if c > 1 {
		d.fail("a flag")
	}
	return c == 1
}

// uvarint reads a varint in its shortest form.
func (d *decoder) uvarint() uint64 {
	n, l := binary.Uvarint(d.b)
	if l <= 0 || l > 1 && d.b[l-1] == 0 {
		d.fail("a number")
		return 0
	}
	d.b = d.b[l:]
	return n
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// uint32 reads a varint that must fit 32 bits.
func (d *decoder) uint32() uint32 {
	n := d.uvarint()
	if n > 1<<32-1 {
		d.fail("a number")
		return 0
	}
	return uint32(n)
}

// take reads n bytes.
func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail("a byte string")
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

// bytes reads a length and as many bytes; nil if there are none.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n == 0 {
		return nil
	}
	return d.take(n)
}

func (d *decoder) string() string { return string(d.bytes()) }

// count reads a number of items, each of which takes at least size bytes, so that a
// bad count allocates no more than the input justifies.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail("a count")
		return 0
	}
	return int(n)
}

func appendBytes(b, s []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendFlag(b []byte, f bool) []byte {
	if f {
		return append(b, 1)
	}
	return append(b, 0)
}

// appendSized appends what f appends, after its length.
func appendSized(b []byte, f func([]byte) []byte) []byte {
	start := len(b)
	b = f(b)
	n := len(b) - start
	var size [binary.MaxVarintLen64]byte
	l := binary.PutUvarint(size[:], uint64(n))
	b = append(b, size[:l]...)
	copy(b[start+l:], b[start:start+n])
	copy(b[start:], size[:l])
	return b
}
