package transport

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// Handshakes come from whoever reaches the peer port. The checksum is made to fit, so that
// it hides no parser.
func FuzzDecodeHandshake(f *testing.F) {
	f.Add(*handshake{protocolVersion, base.ClusterID{1, 2, 3}, 1 << 60, ClassBulk}.frame().buf)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == handshakeSize {
			binary.BigEndian.PutUint32(b[handshakeSize-4:], crc32.Checksum(b[:handshakeSize-4], castagnoli))
		}
		h, err := decodeHandshake(b)
		if err != nil {
			if fault.KindOf(err) != fault.Corrupt {
				t.Errorf("got %v", err)
			}
			return
		}
		if again := *h.frame().buf; !bytes.Equal(again, b) {
			t.Errorf("%x is encoded as %x", b, again)
		}
		if err := h.check(base.ClusterID{1}); err == nil && (h.node == 0 || h.class >= classes || h.version != protocolVersion) {
			t.Errorf("%+v is admitted", h)
		}
	})
}

// Frames pass through the codec as they are.
func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte("frame"))
	f.Fuzz(func(t *testing.T, b []byte) {
		data, err := frameCodec{}.Marshal(&outFrame{new(bytes.Clone(b))})
		if err != nil {
			t.Fatal(err)
		}
		var in inFrame
		if err := (frameCodec{}).Unmarshal(data, &in); err != nil || !bytes.Equal(in.b, b) {
			t.Errorf("%x arrives as %x, %v", b, in.b, err)
		}
	})
}
