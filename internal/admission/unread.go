package admission

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that this one stands on
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"

	"github.com/almanacdb/almanac/internal/fault"
)

// Waits are what this node waits for clients to do: to send the message of a call that
// they have begun, and to take what they were sent. What a client lets wait too long is
// ended by closing its connection; nothing else makes gRPC let go of what is queued for it.
// Safe for concurrent use.
type Waits struct {
	// Patience is how long a client may do nothing; Pressed how long while others are
	// refused for want of memory.
	Patience, Pressed time.Duration
	// Now tells the time; required.
	Now func() time.Time

	mu      sync.Mutex
	first   wait // of a ring
	pressed atomic.Bool
}

// Cutter is the address of a client's connection that can be closed, with the reason.
type Cutter interface {
	Cut(reason string)
	// Begun counts the connection's calls whose message has not come.
	Begun() *atomic.Int64
}

// wait is one thing that a client is to do.
type wait struct {
	next, prev *wait
	client     Cutter
	reason     string
	calm       bool         // what it holds is little, and not worth hurrying it
	since      atomic.Int64 // unix ns of the last progress
}

// begin notes that a client is to do something; reason says what it did not do if it
// does not.
func (w *Waits) begin(ctx context.Context, x *wait, reason string) {
	if w == nil {
		return
	}
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return
	}
	var ok bool
	if x.client, ok = p.Addr.(Cutter); !ok {
		return
	}
	x.reason = reason
	x.since.Store(w.Now().UnixNano())
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first.next == nil {
		w.first.next, w.first.prev = &w.first, &w.first
	}
	x.prev, x.next = w.first.prev, &w.first
	x.prev.next, x.next.prev = x, x
}

// end takes a wait out, if it is in.
func (w *Waits) end(x *wait) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if x.next != nil {
		x.prev.next, x.next.prev = x.next, x.prev
		x.next, x.prev = nil, nil
	}
}

// Press says that a request was refused for want of memory.
func (w *Waits) Press() {
	if !w.pressed.Load() { // mostly without writing
		w.pressed.Store(true)
	}
}

// Sweep closes the connections of clients that let this node wait too long.
func (w *Waits) Sweep() {
	now := w.Now()
	calm := now.Add(-w.Patience).UnixNano()
	before := calm
	if w.pressed.Swap(false) {
		before = now.Add(-w.Pressed).UnixNano()
	}
	for client, reason := range w.overdue(before, calm) {
		client.Cut(reason)
	}
}

func (w *Waits) overdue(before, calm int64) map[Cutter]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found map[Cutter]string
	for x := w.first.next; x != nil && x != &w.first; x = x.next {
		if since := x.since.Load(); since < calm || since < before && !x.calm {
			if found == nil {
				found = make(map[Cutter]string)
			}
			found[x.client] = x.reason
		}
	}
	return found
}

// receive waits for the message of a unary call. At most `most` calls of a connection may
// be without theirs. The error is Busy, or why nothing came.
func (w *Waits) receive(s grpc.ServerStream, most int, m any) error {
	if w == nil {
		return s.RecvMsg(m)
	}
	x := wait{calm: true}
	w.begin(s.Context(), &x, "it sent no message for a call that it began")
	if x.client != nil {
		begun := x.client.Begun()
		defer begun.Add(-1)
		if begun.Add(1) > int64(most) {
			w.end(&x)
			return fault.New(fault.Busy, "the connection has begun %d calls and not sent their messages", most).
				WithRemedy("send a call's message with it")
		}
	}
	defer w.end(&x)
	return s.RecvMsg(m)
}

const (
	largeReply = 32 << 10  // gRPC queues a reply whole, whatever its size: larger ones are waited for
	replyPiece = 256 << 10 // what counts as progress
)

// outgoing is a reply of which this node wants to know when it has left. It is the pool
// that gRPC returns the pieces of the encoded reply to once they are written.
type outgoing struct {
	message any
	now     func() time.Time
	wait    wait
	pieces  atomic.Int64 // not yet written, and 1 while there may be more
	written chan struct{}
}

// Get implements mem.BufferPool; nobody calls it.
func (o *outgoing) Get(length int) *[]byte { b := make([]byte, length); return &b }

// Put implements mem.BufferPool.
func (o *outgoing) Put(*[]byte) {
	o.wait.since.Store(o.now().UnixNano())
	if o.pieces.Add(-1) == 0 {
		close(o.written)
	}
}

// Codec returns gRPC's codec for protobuf, which a server needs on which a Registrar
// registers services.
func Codec() grpc.ServerOption {
	return grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")})
}

type codec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	o, ok := v.(*outgoing)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	data, err := c.CodecV2.Marshal(o.message)
	if err != nil {
		return nil, err
	}
	rest := data.Materialize()
	data.Free()
	var pieces mem.BufferSlice
	o.pieces.Store(1)
	for len(rest) > 0 {
		n := len(rest)
		if n > 2*replyPiece { // so that none is too small for gRPC to return it
			n = replyPiece
		}
		piece := rest[:n:n]
		rest = rest[n:]
		o.pieces.Add(1)
		pieces = append(pieces, mem.NewBuffer(&piece, o))
	}
	o.Put(nil)
	return pieces, nil
}

// sendReply sends a unary call's reply, and if it is large waits until it has left.
func (w *Waits) sendReply(s grpc.ServerStream, reply any) error {
	if w == nil || messageBytes(reply) < 2*largeReply {
		return s.SendMsg(reply)
	}
	o := &outgoing{message: reply, now: w.Now, written: make(chan struct{})}
	w.begin(s.Context(), &o.wait, "it took nothing of an answer")
	defer w.end(&o.wait)
	if err := s.SendMsg(o); err != nil {
		return err
	}
	select {
	case <-o.written:
		return nil
	case <-s.Context().Done():
		return s.Context().Err()
	}
}

// watchedStream is a stream whose messages wait for the client to take them.
type watchedStream struct {
	grpc.ServerStream
	waits *Waits
	sends wait // one at a time
}

// SendMsg implements grpc.ServerStream; it blocks while the client takes nothing.
func (s *watchedStream) SendMsg(m any) error {
	s.waits.begin(s.Context(), &s.sends, "it took nothing of a stream")
	defer s.waits.end(&s.sends)
	return s.ServerStream.SendMsg(m)
}
