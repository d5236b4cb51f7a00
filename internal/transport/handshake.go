package transport

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// Preface is what a peer's connection begins with, in the dialer's direction. Whatever
// else shares the port, gRPC for example, begins otherwise.
const Preface = "ALMP"

// protocolVersion is the version of what follows the handshake. It only goes up.
const protocolVersion = 2

// handshake comes first each way: 30 bytes, checksummed.
type handshake struct {
	version byte
	cluster base.ClusterID
	node    base.NodeID
	class   Class
}

const handshakeSize = 1 + 16 + 8 + 1 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h handshake) append(b []byte) []byte {
	start := len(b)
	b = append(b, h.version)
	b = append(b, h.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.node))
	b = append(b, byte(h.class))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
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
