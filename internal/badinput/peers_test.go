package badinput

import (
	bigendian "encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/transport"
)

// greeting is what a peer's connection begins with.
func greeting(version byte, cluster []byte) []byte {
	b := append([]byte{version}, cluster...)
	b = bigendian.BigEndian.AppendUint64(b, 2) // the node
	b = append(b, 0)                           // the class
	b = bigendian.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return append([]byte(transport.Preface), b...)
}

// Peers that begin as peers do and go on otherwise are closed, each with a line that names
// their address, and disturb nobody; one that stalls within a frame makes the node hold
// what has come of it, and its next connection replaces it.
func TestPeersThatDoNotBehave(t *testing.T) {
	n, s := frugal(t)
	st, err := connect(t, client.Options{}, n.Address).Cluster.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := hex.DecodeString(st.ClusterId)
	if err != nil {
		t.Fatal(err)
	}
	const version = 2 // of the protocol
	good := greeting(version, cluster)
	say := func(b []byte) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", n.Peer)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		return c
	}
	closed := func(what string, c net.Conn) {
		t.Helper()
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection stays", what)
		}
	}
	check := meanwhile(t, n)
	for _, c := range []struct {
		what, says string
		b          []byte
	}{
		{"garbage after the preface", "failed its checksum", append([]byte(transport.Preface), make([]byte, 30)...)},
		{"another cluster", "belongs to cluster", greeting(version, make([]byte, 16))},
		{"an older version", "speaks peer protocol 1", greeting(version-1, cluster)},
		{"a newer version", "speaks peer protocol 3", greeting(version+1, cluster)},
		{"half a handshake", "sent no handshake within", good[:20]},
		{"a frame of 4 GiB", "a frame of 4294967295 bytes is announced", append(good[:len(good):len(good)], 0xff, 0xff, 0xff, 0xff)},
		{"a damaged frame", "broke a peer's connection", append(good[:len(good):len(good)], 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8)},
	} {
		conn := say(c.b)
		closed(c.what, conn)
		awaitLog(t, n, c.says)
		awaitLog(t, n, "address="+conn.LocalAddr().String())
	}
	closed("silence", say(nil))
	stalled := make([]net.Conn, 0, 20)
	for range cap(stalled) { // each takes the place of the one before
		stalled = append(stalled, say(append(append(good[:len(good):len(good)], 0x01, 0xff, 0xff, 0xff), make([]byte, 4<<20)...)))
	}
	for _, c := range stalled[:len(stalled)-1] {
		closed("a stalled frame, once the peer is back", c)
	}
	check()
	unharmed(t, n, s)
}
