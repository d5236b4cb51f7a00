package engine

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/fuzztest"
)

// Files of a snapshot come from other nodes. The checksum is made to fit, so that it hides
// no parser.
func FuzzParseMemFile(f *testing.F) {
	w := NewMem(MemOptions{}).NewSST()
	for _, err := range []error{
		w.DeleteRange([]byte("a"), []byte("m")), w.Set([]byte("b"), []byte("value")), w.Set([]byte("c"), nil),
	} {
		if err != nil {
			f.Fatal(err)
		}
	}
	file, err := w.Finish()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file[:len(file)-4])
	f.Add([]byte{memFileSet, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, body []byte) {
		b := binary.BigEndian.AppendUint32(body[:len(body):len(body)], crc32.Checksum(body, castagnoli))
		fuzztest.Bounded(t, len(b), func() {
			if _, err := parseMemFile("f", b); err != nil && fault.KindOf(err) != fault.Corrupt {
				t.Errorf("got %v", err)
			}
		})
		b[len(b)-1] ^= 1
		if _, err := parseMemFile("f", b); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("a wrong checksum gave %v", err)
		}
	})
}
