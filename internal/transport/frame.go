package transport

import (
	"encoding/binary"
	"net"
	"time"

	"github.com/almanacdb/almanac/internal/wire"
	"golang.org/x/sys/unix"
)

// After the handshakes frames follow each other in the dialer's direction: the length of
// what follows in 4 bytes, big endian, then a frame of package wire, which is checksummed.

const (
	frameHead  = 4
	readBuffer = 64 << 10
	growFrame  = 1 << 20 // frames are allocated whole up to this size, larger ones as they come
)

func appendFrame(b []byte, msgs []wire.Message) []byte {
	b = wire.AppendFrame(append(b, 0, 0, 0, 0), msgs)
	binary.BigEndian.PutUint32(b, uint32(len(b)-frameHead))
	return b
}

func frameSize(head [frameHead]byte) int { return int(binary.BigEndian.Uint32(head[:])) }

// keepAlive has the kernel find out that a peer is gone without a word: one that is sent
// nothing by probes, one that is sent something by what it does not acknowledge.
func keepAlive(conn net.Conn) {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 2 * time.Second, Count: 3})
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stallTimeout.Milliseconds()))
		})
	}
}
