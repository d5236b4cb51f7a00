package transport

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/wire"
)

// Handshakes come from whoever reaches the peer port. The checksum is made to fit, so that
// it hides no parser.
func FuzzDecodeHandshake(f *testing.F) {
	f.Add(handshake{protocolVersion, base.ClusterID{1, 2, 3}, 1 << 60, ClassBulk}.append(nil))
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
		if again := h.append(nil); !bytes.Equal(again, b) {
			t.Errorf("%x is encoded as %x", b, again)
		}
		if err := h.check(base.ClusterID{1}); err == nil && (h.node == 0 || h.class >= classes || h.version != protocolVersion) {
			t.Errorf("%+v is admitted", h)
		}
	})
}

// A connection's bytes are cut into frames as announced, whatever they hold.
func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, nil))
	f.Add(appendFrame(appendFrame(nil, nil), []wire.Message{call(1, "body")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			frame, err := readFrame(r)
			if err != nil {
				return
			}
			if len(b) < frameHead+len(frame) || !bytes.Equal(b[frameHead:frameHead+len(frame)], frame) {
				t.Fatalf("%x begins with the frame %x", b, frame)
			}
			b = b[frameHead+len(frame):]
		}
	})
}
