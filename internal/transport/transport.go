// Package transport carries wire messages between nodes. It has two implementations:
// long-lived TCP connections, and an in-memory network with faults for the simulator. It
// refuses to know what the messages mean.
package transport

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/wire"
)

// Class keeps bulky traffic out of the way of urgent traffic: each class to a peer has
// its own bounded queue and connection, ordered within itself.
type Class uint8

// Classes.
const (
	ClassReplication Class = iota // replication messages
	ClassCalls                    // calls and replies, hand-out sessions
	ClassBulk                     // snapshot files
	classes
)

// String returns the class's name, for logs and metrics.
func (c Class) String() string {
	switch c {
	case ClassReplication:
		return "replication"
	case ClassCalls:
		return "calls"
	case ClassBulk:
		return "bulk"
	}
	return "unknown"
}

// Transport sends messages to other nodes.
type Transport interface {
	// Send queues messages for a node in order and returns at once. False means that
	// they were dropped, all of them: the node is unknown, unreachable or this one, a
	// message is above MaxMessage, or the queue is full. True
	// promises nothing: a message may be lost, and none arrives twice over TCP. The
	// messages and all they point to must not be changed afterwards.
	Send(to base.NodeID, class Class, msgs ...wire.Message) bool
}

// Handler takes what arrives. It must not block; messages of one peer and class come
// in the order in which they were sent.
type Handler interface {
	Receive(from base.NodeID, msgs []wire.Message)
}
