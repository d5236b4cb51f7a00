package transport

import (
	"errors"
	"io"
	"time"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/wire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// inbound is the receiving side of a peer's stream. Receiving runs beside the gRPC
// handler, because only the handler's return ends a stream from this side.
type inbound struct {
	hello  chan handshake // the peer's
	accept chan struct{}  // closed when messages may be handed on
	stop   chan struct{}  // closed when a newer stream of the same peer and class takes over
	done   chan struct{}  // closed when nothing more is handed on
	err    error          // why it ended; valid once done
}

// stream serves one incoming stream.
func (g *GRPC) stream(s grpc.ServerStream) error {
	in := &inbound{
		hello:  make(chan handshake, 1),
		accept: make(chan struct{}),
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return refuse(fault.New(fault.Stopped, "the node is shutting down"))
	}
	g.wg.Go(func() {
		defer close(in.done)
		in.err = g.receive(s, in)
	})
	g.mu.Unlock()

	timeout := time.NewTimer(dialTimeout)
	defer timeout.Stop()
	select {
	case h := <-in.hello:
		if err := g.admit(s, h); err != nil {
			return refuse(err)
		}
		defer g.enrol(linkKey{h.node, h.class}, in)()
	case <-timeout.C:
		return refuse(fault.New(fault.Deadline, "the peer sent no handshake within %v", dialTimeout))
	case <-in.done:
		return refuse(in.err)
	case <-g.ctx.Done():
	}
	select {
	case <-in.done:
		return refuse(in.err)
	case <-in.stop:
		return refuse(fault.New(fault.Cancelled, "a newer stream of the same node took over"))
	case <-g.ctx.Done():
		return refuse(fault.New(fault.Stopped, "the node is shutting down"))
	}
}

// admit checks a handshake and answers it. A peer that is refused gets the answer too,
// so that it can say on its side what is wrong.
func (g *GRPC) admit(s grpc.ServerStream, h handshake) error {
	refusal := h.check(g.opts.Cluster)
	if refusal != nil {
		g.opts.Logger.Warn("refused a peer's stream", "node", h.node, "class", h.class, "error", refusal)
	}
	ours := handshake{protocolVersion, g.opts.Cluster, g.opts.Self, h.class}
	if err := s.SendMsg(ours.frame()); err != nil {
		return err
	}
	return refusal
}

// enrol makes in the only stream of its peer and class, so that the order within a class
// holds across reconnects, and lets it hand on messages. The result undoes it.
func (g *GRPC) enrol(key linkKey, in *inbound) (leave func()) {
	g.mu.Lock()
	old := g.inbound[key]
	g.inbound[key] = in
	g.mu.Unlock()
	if old != nil {
		close(old.stop)
		<-old.done
	}
	close(in.accept)
	g.Kick(key.node) // who reached us can be reached
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.inbound[key] == in {
			delete(g.inbound, key)
		}
	}
}

// receive hands on what arrives until the stream ends.
func (g *GRPC) receive(s grpc.ServerStream, in *inbound) error {
	var f inFrame
	if err := s.RecvMsg(&f); err != nil {
		return err
	}
	h, err := decodeHandshake(f.b)
	if err != nil {
		return err
	}
	in.hello <- h
	select {
	case <-in.accept:
	case <-s.Context().Done():
		return s.Context().Err()
	}
	for {
		if err := s.RecvMsg(&f); err != nil {
			return err
		}
		if err := g.handOn(h, in, f.b); err != nil {
			return err
		}
	}
}

func (g *GRPC) handOn(h handshake, in *inbound, frame []byte) error {
	msgs, err := wire.DecodeMessages(frame)
	if err != nil {
		g.opts.Logger.Error("broke a peer's stream", "node", h.node, "class", h.class, "error", err)
		return err
	}
	select {
	case <-in.stop:
		return nil
	case <-g.ctx.Done():
		return nil
	default:
	}
	g.opts.Listener.Received(h.node, h.class, len(msgs), len(frame))
	g.opts.Handler.Receive(h.node, msgs)
	return nil
}

// refuse turns an error into what ends a gRPC stream.
func refuse(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unavailable
	switch fault.KindOf(err) {
	case fault.WrongCluster, fault.Invalid:
		code = codes.FailedPrecondition
	case fault.Corrupt:
		code = codes.DataLoss
	}
	return status.Error(code, err.Error())
}

var _ peerServer = (*GRPC)(nil)
