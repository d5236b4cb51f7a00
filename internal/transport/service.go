package transport

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// The gRPC service is one method whose messages are raw frames, under a codec of its
// own, so that peers and protobuf services can share a server.

const (
	serviceName = "almanac.peer.v1.Peer"
	streamName  = "Stream"
)

type peerServer interface {
	stream(grpc.ServerStream) error
}

var serviceDesc = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*peerServer)(nil),
	Streams: []grpc.StreamDesc{{
		StreamName:    streamName,
		Handler:       func(srv any, s grpc.ServerStream) error { return srv.(peerServer).stream(s) },
		ClientStreams: true,
		ServerStreams: true,
	}},
}

// outFrame is a frame to send. gRPC returns its buffer to the pool.
type outFrame struct{ buf *[]byte }

// inFrame is a frame received, in a buffer of its own.
type inFrame struct{ b []byte }

type frameCodec struct{}

func init() { encoding.RegisterCodecV2(frameCodec{}) }

func (frameCodec) Name() string { return "almanac-frame" }

func (frameCodec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*outFrame)
	if !ok {
		return nil, fmt.Errorf("cannot send a %T to a peer", v)
	}
	return mem.BufferSlice{mem.NewBuffer(f.buf, &frames)}, nil
}

func (frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*inFrame)
	if !ok {
		return fmt.Errorf("cannot receive a %T from a peer", v)
	}
	f.b = data.Materialize()
	return nil
}

// framePool recycles the buffers of outgoing frames of usual size.
type framePool struct{ pool sync.Pool }

var frames framePool

// Get implements mem.BufferPool.
func (p *framePool) Get(length int) *[]byte {
	b, ok := p.pool.Get().(*[]byte)
	if !ok || cap(*b) < length {
		b = new(make([]byte, 0, max(length, 4<<10)))
	}
	*b = (*b)[:length]
	return b
}

// Put implements mem.BufferPool.
func (p *framePool) Put(b *[]byte) {
	if cap(*b) <= 2*coalesce {
		p.pool.Put(b)
	}
}

// protocolVersion is the version of what follows the handshake. It only goes up.
const protocolVersion = 1

// handshake is the first frame each way: 30 bytes, checksummed.
type handshake struct {
	version byte
	cluster base.ClusterID
	node    base.NodeID
	class   Class
}

const handshakeSize = 1 + 16 + 8 + 1 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h handshake) frame() *outFrame {
	b := append(make([]byte, 0, handshakeSize), h.version)
	b = append(b, h.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.node))
	b = append(b, byte(h.class))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return &outFrame{&b}
}

func decodeHandshake(b []byte) (handshake, error) {
	if len(b) != handshakeSize {
		return handshake{}, fault.New(fault.Corrupt, "a peer's handshake has %d bytes", len(b))
	}
	sum := b[handshakeSize-4:]
	if crc32.Checksum(b[:handshakeSize-4], castagnoli) != binary.BigEndian.Uint32(sum) {
		return handshake{}, fault.New(fault.Corrupt, "a peer's handshake failed its checksum")
	}
	h := handshake{version: b[0], node: base.NodeID(binary.BigEndian.Uint64(b[17:])), class: Class(b[25])}
	copy(h.cluster[:], b[1:])
	return h, nil
}

// check says whether a peer that introduced itself as h may talk to a node of ours.
func (h handshake) check(ours base.ClusterID) error {
	switch {
	case h.cluster != ours:
		return fault.New(fault.WrongCluster, "node %d belongs to cluster %s, this node to %s", h.node, h.cluster, ours).
			WithRemedy("check the addresses, or start the node with an empty data directory to join this cluster")
	case h.version != protocolVersion:
		return fault.New(fault.Invalid, "node %d speaks peer protocol %d, this node %d", h.node, h.version, protocolVersion).
			WithRemedy("run the same release on all nodes")
	case h.node == 0 || h.class >= classes:
		return fault.New(fault.Corrupt, "a peer's handshake names node %d and class %d", h.node, h.class)
	}
	return nil
}
