package store

import (
	"sync"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/dispatch"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// SessionSink takes what an orderer sends to a hand-out session. Calls come from one
// goroutine at a time per orderer and must not block.
type SessionSink interface {
	// Deliver takes a batch; first is its first delivery's running number.
	Deliver(first uint64, deliveries []wire.Delivery)
	// End says that the orderer ended the session.
	End(why *fault.Error)
}

// sessionBook is the gateway's side of hand-out sessions.
type sessionBook struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]SessionSink
}

// NewSession makes a sink reachable under a number that is not used again. The number
// goes into wire.SessionOpen.
func (s *Store) NewSession(sink SessionSink) uint64 {
	b := &s.sessions
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == 0 {
		b.last = s.firstNumber()
	}
	b.last++
	b.open[b.last] = sink
	return b.last
}

// DropSession forgets a sink; what still arrives for it is dropped.
func (s *Store) DropSession(id uint64) {
	b := &s.sessions
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.open, id)
}

func (b *sessionBook) sink(id uint64) SessionSink {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open[id]
}

func (b *sessionBook) arrived(_ base.NodeID, c *wire.Call) {
	sink := b.sink(c.ID)
	if sink == nil {
		return
	}
	if c.Method == wire.MethodSessionEnd {
		var m wire.SessionEnd
		if m.Decode(c.Body) == nil {
			sink.End(m.Fault)
		}
		return
	}
	var m wire.SessionEvents
	if m.Decode(c.Body) == nil {
		sink.Deliver(m.First, m.Deliveries)
	}
}

// SendSession implements replica.Env.
func (s *Store) SendSession(r base.RangeID, out dispatch.Out) {
	id := out.Session.ID
	if out.Session.Gateway == s.opts.Node {
		sink := s.sessions.sink(id)
		switch {
		case sink == nil:
			s.abandon(r, out.Session)
		case out.Deliveries == nil:
			sink.End(out.End)
		default:
			sink.Deliver(out.First, out.Deliveries)
		}
		return
	}
	c := &wire.Call{ID: id, Range: r}
	if out.Deliveries == nil {
		c.Method = wire.MethodSessionEnd
		c.Body = (&wire.SessionEnd{Fault: out.End}).Append(nil)
	} else {
		c.Method = wire.MethodSessionEvents
		c.Body = (&wire.SessionEvents{First: out.First, Deliveries: out.Deliveries}).Append(nil)
	}
	if !s.opts.Transport.Send(out.Session.Gateway, transport.ClassCalls, wire.Message{Call: c}) && out.End == nil {
		s.abandon(r, out.Session)
	}
}

// abandon closes a session whose gateway can't be told: what it holds returns at once.
func (s *Store) abandon(r base.RangeID, id dispatch.SessionID) {
	_ = s.Post(r, replica.SessionClose{Session: id})
}
