package store

import (
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/dispatch"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// Handler takes a call; it must not block. It answers through done, once, and returns
// true, or returns false if it does not know the method.
type Handler func(from base.NodeID, c *wire.Call, done Done) bool

// Receive implements transport.Handler.
func (s *Store) Receive(from base.NodeID, msgs []wire.Message) {
	for i := range msgs {
		switch m := &msgs[i]; {
		case m.Replication != nil:
			if m.Replication.Snapshot != nil {
				s.announced(m.Replication)
				continue
			}
			if len(m.Replication.Entries) > 0 && s.Behind(m.Replication.Range) {
				continue
			}
			_ = s.Post(m.Replication.Range, m.Replication) // lost messages are sent again
		case m.Call != nil:
			s.handle(from, m.Call, s.replier(from, m.Call))
		case m.Reply != nil:
			s.calls.reply(from, m.Reply)
		}
	}
}

// replier sends the answer of a call back to its caller.
func (s *Store) replier(to base.NodeID, c *wire.Call) Done {
	id := c.ID
	return func(body []byte, err error) {
		m := &wire.Reply{ID: id, Body: body}
		if err != nil {
			m.Fault = fault.As(err)
		}
		s.opts.Transport.Send(to, transport.ClassCalls, wire.Message{Reply: m})
	}
}

func (s *Store) deadline(c *wire.Call) clock.Mono {
	if c.TimeoutMS == 0 {
		return 0
	}
	return s.opts.Clock.Mono().Add(time.Duration(c.TimeoutMS) * time.Millisecond)
}

func (s *Store) handle(from base.NodeID, c *wire.Call, done Done) {
	switch c.Method {
	case wire.MethodPropose:
		// A command that does not parse would stop every replica when applied.
		if _, err := command.Decode(c.Body); err != nil {
			done(nil, err)
			return
		}
		s.Propose(c.Range, c.Body, s.deadline(c), func(res command.Result, err error) {
			if err != nil {
				done(nil, err)
				return
			}
			done(command.EncodeResult(nil, &res), nil)
		})
	case wire.MethodBarrier:
		s.handleBarrier(c, done)
	case wire.MethodRead:
		s.handleRead(c, done)
	case wire.MethodStamps:
		s.handleStamps(c, done)
	case wire.MethodClockSample:
		m := wire.ClockSampleReply{WallMS: s.opts.Clock.WallMS()}
		done(m.Append(nil), nil)
	case wire.MethodReplicaCreate:
		s.opts.Background(func() { s.handleCreate(c, done) })
	case wire.MethodReplicaRemove:
		s.opts.Background(func() { s.handleRemove(c, done) })
	case wire.MethodRebuild:
		s.handleRebuild(c, done)
	case wire.MethodSnapshotFile:
		s.opts.Background(func() { s.handleSnapshotFile(from, c, done) })
	case wire.MethodSessionOpen:
		s.handleSessionOpen(from, c, done)
	case wire.MethodSessionClose:
		s.handleSessionClose(from, c, done)
	case wire.MethodSessionEvents, wire.MethodSessionEnd:
		s.sessions.arrived(from, c)
	default:
		if s.opts.Calls == nil || !s.opts.Calls(from, c, done) {
			done(nil, fault.New(fault.Unimplemented, "node %d does not know method %d", s.opts.Node, c.Method).
				WithRemedy("run the same version on every node"))
		}
	}
}

// Propose asks the local replica of a range to order a command; see replica.Proposal.
// It holds a part of the share for proposals until it is answered.
func (s *Store) Propose(r base.RangeID, env []byte, deadline clock.Mono, done func(command.Result, error)) {
	if err := s.noRoom(r, env); err != nil {
		done(command.Result{}, err)
		return
	}
	held := s.opts.Proposals
	if r == base.SystemRange { // of the cluster itself, and few
		held = nil
	}
	size := proposalForms*len(env) + proposalBytes
	if !held.Take(size) {
		done(command.Result{}, fault.New(fault.Busy, "the memory of node %d that is for proposals is used up", s.opts.Node).OnRange(r).
			WithRemedy("back off and try again, or give the node more memory with --memory"))
		return
	}
	answered := func(res command.Result, err error) {
		held.Put(size)
		done(res, err)
	}
	if err := s.Post(r, &replica.Proposal{Envelope: env, Deadline: deadline, Done: answered}); err != nil {
		answered(command.Result{}, err)
	}
}

// proposalForms is how many times a command is in memory until it is applied: as it came,
// in the batch for the log, and in the frames to two followers.
const proposalForms = 4

// proposalBytes is about what a proposal takes besides its command.
const proposalBytes = 1 << 10

// Barrier asks the local replica of a range for a read's barrier; see replica.Barrier.
func (s *Store) Barrier(r base.RangeID, b *replica.Barrier) {
	if err := s.Post(r, b); err != nil {
		b.Done(replica.BarrierReply{}, err)
	}
}

// WaitApplied tells when the local replica has applied up to a mark; see replica.Wait.
func (s *Store) WaitApplied(r base.RangeID, mark base.LogMark, deadline clock.Mono, done func(error)) {
	if err := s.Post(r, &replica.Wait{Mark: mark, Deadline: deadline, Done: done}); err != nil {
		done(err)
	}
}

func (s *Store) handleBarrier(c *wire.Call, done Done) {
	var m wire.Barrier
	if err := m.Decode(c.Body); err != nil {
		done(nil, err)
		return
	}
	s.Barrier(c.Range, &replica.Barrier{At: m.At, Newest: m.Newest, Deadline: s.deadline(c),
		Done: func(b replica.BarrierReply, err error) {
			if err != nil {
				done(nil, err)
				return
			}
			reply := wire.BarrierReply{At: b.At, Mark: b.Mark}
			done(reply.Append(nil), nil)
		}})
}

// handleRead serves a whole read for a node without a replica.
func (s *Store) handleRead(c *wire.Call, done Done) {
	var m wire.ReadRequest
	if err := m.Decode(c.Body); err != nil {
		done(nil, err)
		return
	}
	read := func(b replica.BarrierReply, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		s.opts.Background(func() {
			call := s.opts.Reads.Begin()
			defer call.Leave()
			reply, err := s.ReadWithin(call.Hold, c.Range, m.Reads, b.At)
			if err != nil {
				done(nil, err)
				return
			}
			done(reply.Append(nil), nil)
		})
	}
	if m.Local {
		read(replica.BarrierReply{}, nil)
		return
	}
	s.Barrier(c.Range, &replica.Barrier{At: m.At, Newest: m.Newest, Apply: true, Deadline: s.deadline(c), Done: read})
}

func (s *Store) handleSessionOpen(from base.NodeID, c *wire.Call, done Done) {
	item := &replica.SessionOpen{Gateway: from, Done: func(err error) { done(nil, err) }}
	err := item.Request.Decode(c.Body)
	if err == nil {
		err = s.Post(c.Range, item)
	}
	if err != nil {
		done(nil, err)
	}
}

func (s *Store) handleSessionClose(from base.NodeID, c *wire.Call, done Done) {
	var m wire.SessionClose
	err := m.Decode(c.Body)
	if err == nil {
		err = s.Post(c.Range, replica.SessionClose{Session: dispatch.SessionID{Gateway: from, ID: m.Session}})
	}
	done(nil, err)
}
