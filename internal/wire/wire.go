// Package wire is what nodes say to one another and its compact codec. It owns the
// bytes on the network between nodes; it refuses to know how they travel.
package wire

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// Message is one message between nodes; exactly one field is set.
type Message struct {
	Replication *effect.Message
	Call        *Call
	Reply       *Reply
}

// Call asks a node to do something, or tells it something (methods without a reply).
type Call struct {
	ID     uint64 // chosen by the caller; the reply, or the session, carries it
	Method Method
	Range  base.RangeID // 0 if the method is not about one range
	Body   []byte       // by method
	// TimeoutMS is how long, from receipt, the caller goes on waiting; 0: no limit.
	TimeoutMS uint32
}

// Reply answers a Call.
type Reply struct {
	ID    uint64
	Fault *fault.Error // nil if done; its cause does not travel
	Body  []byte       // by method
}

// Method names what a Call asks for. On the wire; never renumber.
type Method uint8

// Methods.
const (
	MethodPropose       Method = 1  // body: command envelope; reply: command result
	MethodBarrier       Method = 2  // body: Barrier; reply: BarrierReply
	MethodStamps        Method = 3  // body: Stamps; reply: StampsReply (the oracle)
	MethodClockSample   Method = 4  // no body; reply: ClockSampleReply
	MethodReplicaCreate Method = 5  // body: ReplicaCreate
	MethodReplicaRemove Method = 6  // body: ReplicaRemove
	MethodHeartbeat     Method = 7  // body: Heartbeat; reply: HeartbeatReply
	MethodSnapshotFile  Method = 8  // body: SnapshotFile; reply: empty
	MethodRead          Method = 9  // body: ReadRequest at an orderer; reply: ReadReply
	MethodAdmin         Method = 10 // body: placement request; reply: placement answer
	MethodRebuild       Method = 11 // body: Rebuild; reply: RebuildReply
	MethodSessionOpen   Method = 16 // body: SessionOpen; reply: empty
	MethodSessionClose  Method = 18 // body: SessionClose; reply: empty
	MethodSessionEvents Method = 19 // body: SessionEvents; orderer → gateway, ID is the session, no reply
	MethodSessionEnd    Method = 20 // body: SessionEnd; orderer → gateway, ID is the session, no reply
)
