package transport

import (
	"fmt"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/wire"
)

// TraceKind says what became of a message in a Network.
type TraceKind uint8

// What becomes of messages.
const (
	TraceSent TraceKind = iota + 1
	TraceDelivered
	TraceLost
	TraceRefused    // a whole Send, for want of capacity; it has no message
	TraceDuplicated // it will arrive a second time
)

// TraceEvent is one step of a Network. Message must not be kept or changed.
type TraceEvent struct {
	At       clock.Mono
	Kind     TraceKind
	Seq      uint64 // of the message; a duplicate has its own
	From, To base.NodeID
	Class    Class
	Message  *wire.Message
}

// Trace calls f at every step from now on.
func (n *Network) Trace(f func(TraceEvent)) { n.trace = f }

func (n *Network) note(k TraceKind, p *packet, m *wire.Message) {
	if n.trace != nil {
		n.trace(TraceEvent{n.clock.Mono(), k, p.seq, p.from, p.to, p.class, m})
	}
}

// String returns one line without a line end.
func (e TraceEvent) String() string {
	kind := [...]string{"", "sent", "delivered", "lost", "refused", "duplicated"}[e.Kind]
	s := fmt.Sprintf("%d %s #%d %d→%d %s", e.At, kind, e.Seq, e.From, e.To, e.Class)
	switch m := e.Message; {
	case m == nil:
	case m.Replication != nil:
		r := m.Replication
		s += fmt.Sprintf(" range %d type %d term %d index %d commit %d entries %d",
			r.Range, r.Type, r.Term, r.Index, r.Commit, len(r.Entries))
	case m.Call != nil:
		s += fmt.Sprintf(" call %d method %d range %d bytes %d", m.Call.ID, m.Call.Method, m.Call.Range, len(m.Call.Body))
	case m.Reply != nil:
		s += fmt.Sprintf(" reply %d bytes %d", m.Reply.ID, len(m.Reply.Body))
		if m.Reply.Fault != nil {
			s += " " + m.Reply.Fault.Kind.String()
		}
	}
	return s
}
