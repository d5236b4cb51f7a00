package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// A frame takes calls until it has this many, or this many bytes.
const (
	frameCalls = 512
	frameBytes = 1 << 20
)

// maxCallBytes is the documented limit of a request, and room for what wraps it. A larger
// one would make the server end the stream that others use too.
const maxCallBytes = 16<<20 + 64<<10

// mux carries many calls on one stream. Callers encode their call straight into the
// frame that waits to be sent, so that calls made while a frame is under way share the
// next one, and nothing of the caller's is kept. A sender and a receiver goroutine live
// as long as the stream.
type mux struct {
	stream grpc.ClientStream
	cancel context.CancelFunc
	wake   chan struct{} // one token: frames wait

	mu      sync.Mutex
	waiting []*frame
	flying  map[uint64]*flight // by call id
	lastID  uint64
	sent    uint64 // frames handed to the stream; frames are numbered from 1
	frames  uint64 // frames begun
	err     *Error // why the stream is over; nil while it lives
}

// frame is an encoded StreamRequest.
type frame struct {
	bytes []byte
	calls int
}

// flight is one call under way. The pool owns it outside of a call.
type flight struct {
	id    uint64
	frame uint64
	done  chan struct{} // one token: reply or err is set
	timer *time.Timer   // of the deadline; nil before the first use
	reply *almanacv1.StreamReply
	err   *Error
}

// alarm sets the flight's timer.
func (f *flight) alarm(d time.Duration) <-chan time.Time {
	if f.timer == nil {
		f.timer = time.NewTimer(d)
	} else {
		f.timer.Reset(d)
	}
	return f.timer.C
}

// land gives the flight back to the pool, silent and empty.
func (f *flight) land() {
	if f.timer != nil {
		f.timer.Stop()
	}
	f.reply, f.err = nil, nil
	flights.Put(f)
}

var flights = sync.Pool{New: func() any { return &flight{done: make(chan struct{}, 1)} }}

var frames = sync.Pool{New: func() any { return new(frame) }}

// openMux opens the shared stream; an error means that nothing was sent.
func openMux(conn *grpc.ClientConn) (*mux, *Error) {
	ctx, cancel := context.WithCancel(context.Background())
	desc := &almanacv1.KV_ServiceDesc.Streams[0]
	stream, err := conn.NewStream(ctx, desc, almanacv1.KV_Stream_FullMethodName, grpc.ForceCodecV2(frameCodec{}))
	if err != nil {
		cancel()
		e := fromStatus(err)
		e.notSent = true
		return nil, e
	}
	m := &mux{stream: stream, cancel: cancel, wake: make(chan struct{}, 1), flying: make(map[uint64]*flight)}
	go m.send(ctx)
	go m.receive()
	return m, nil
}

// call sends one call and waits for its reply, until the deadline (zero: none) or until
// ctx ends. The call is encoded before call returns; its id and timeout are overwritten.
func (m *mux) call(ctx context.Context, deadline time.Time, call *almanacv1.StreamCall) (*almanacv1.StreamReply, *Error) {
	f := flights.Get().(*flight)
	var late <-chan time.Time
	call.TimeoutMs = 0
	if !deadline.IsZero() {
		left := time.Until(deadline)
		call.TimeoutMs = max(1, left.Milliseconds())
		late = f.alarm(left)
	}
	if err := m.enqueue(f, call); err != nil {
		f.land()
		return nil, err
	}
	var abandoned error
	select {
	case <-f.done:
	case <-ctx.Done():
		abandoned = m.abandon(f, ctx.Err())
	case <-late:
		abandoned = m.abandon(f, context.DeadlineExceeded)
	}
	reply, err := f.reply, f.err
	f.land()
	if abandoned != nil {
		return nil, fromContext(abandoned)
	}
	if err != nil {
		return nil, err
	}
	if e := reply.GetError(); e != nil {
		return nil, fromProto(e)
	}
	return reply, nil
}

// abandon takes a call out of flight and returns why, or nil if it was settled in the
// meantime.
func (m *mux) abandon(f *flight, why error) error {
	m.mu.Lock()
	flying := m.flying[f.id] == f
	if flying {
		delete(m.flying, f.id)
	}
	m.mu.Unlock()
	if flying {
		return why
	}
	<-f.done
	return nil
}

// enqueue encodes the call into the frame that waits to be sent.
func (m *mux) enqueue(f *flight, call *almanacv1.StreamCall) *Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		e := *m.err
		e.notSent = true
		return &e
	}
	m.lastID++
	call.Id = m.lastID
	size := proto.Size(call)
	if size > maxCallBytes {
		return &Error{
			Reason:  ReasonTooLarge,
			Message: fmt.Sprintf("the request has %d bytes", size),
			Remedy:  "a request has at most 16 MiB: split it",
		}
	}

	var into *frame
	if n := len(m.waiting); n > 0 {
		into = m.waiting[n-1]
	}
	if into == nil || into.calls >= frameCalls || len(into.bytes)+size > frameBytes {
		into = frames.Get().(*frame)
		m.waiting = append(m.waiting, into)
		m.frames++
	}
	mark := len(into.bytes)
	into.bytes = protowire.AppendTag(into.bytes, 1, protowire.BytesType) // StreamRequest.calls
	into.bytes = protowire.AppendVarint(into.bytes, uint64(size))
	encoded, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(into.bytes, call)
	if err != nil {
		into.bytes = into.bytes[:mark]
		return &Error{Reason: ReasonInvalid, Message: "the request cannot be encoded: " + err.Error(), cause: err}
	}
	into.bytes = encoded
	into.calls++
	f.id, f.frame = call.Id, m.frames
	m.flying[f.id] = f
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return nil
}

func (m *mux) send(ctx context.Context) {
	for {
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		runtime.Gosched() // let callers that are about to call join the frame
		for {
			m.mu.Lock()
			if len(m.waiting) == 0 || m.err != nil {
				m.mu.Unlock()
				break
			}
			f := m.waiting[0]
			m.waiting[0] = nil
			m.waiting = m.waiting[1:]
			if len(m.waiting) == 0 {
				m.waiting = nil
			}
			m.sent++
			m.mu.Unlock()
			if f.calls == 0 {
				continue
			}
			if err := m.stream.SendMsg(f); err != nil {
				if !errors.Is(err, io.EOF) { // the receiver learns why
					m.fail(fromStatus(err))
				}
				return
			}
		}
	}
}

func (m *mux) receive() {
	for {
		response := new(almanacv1.StreamResponse)
		if err := m.stream.RecvMsg(response); err != nil {
			e := fromStatus(err)
			if errors.Is(err, io.EOF) {
				e = &Error{Reason: ReasonUnavailable, Message: "the server ended the stream", cause: err}
			}
			m.fail(e)
			return
		}
		m.mu.Lock()
		for _, reply := range response.GetReplies() {
			f := m.flying[reply.GetId()]
			if f == nil {
				continue // its caller went away
			}
			delete(m.flying, reply.GetId())
			f.reply = reply
			f.done <- struct{}{}
		}
		m.mu.Unlock()
	}
}

// fail ends the stream. A call that was never handed to it says so, and so does one that
// a server did not answer before it ended the stream because it stops: it answers what
// it takes. The outcome of the others is unknown.
func (m *mux) fail(e *Error) {
	m.cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	m.err = e
	for id, f := range m.flying {
		delete(m.flying, id)
		c := *e
		c.notSent = f.frame > m.sent || e.Reason == reasonStopped || e.Reason == ReasonUninitialized
		c.lost = !c.notSent
		switch c.Reason {
		case ReasonClosed, ReasonUnimplemented, ReasonUninitialized: // nothing was done
		default: // what ended the stream says nothing about this one call
			c.Reason = ReasonUnavailable
		}
		f.err = &c
		f.done <- struct{}{}
	}
	m.waiting = nil
}

// broken says whether the stream is over.
func (m *mux) broken() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err != nil
}

// live returns the shared stream, or nil if there is none just now.
func (s *server) live() *mux {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mux != nil && s.mux.broken() {
		s.mux = nil
	}
	return s.mux
}

// join returns the shared stream, opened if need be.
func (s *server) join(ctx context.Context) (*mux, *Error) {
	if err := s.connected(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mux != nil && !s.mux.broken() {
		return s.mux, nil
	}
	m, err := openMux(s.conn)
	if err == nil {
		s.mux = m
	}
	return m, err
}

// connected waits until the connection is made, or has failed and can say why.
func (s *server) connected(ctx context.Context) *Error {
	for {
		state := s.conn.GetState()
		switch state {
		case connectivity.Ready, connectivity.TransientFailure:
			return nil
		case connectivity.Shutdown:
			return errClosed("the client")
		case connectivity.Idle:
			s.conn.Connect()
		}
		if !s.conn.WaitForStateChange(ctx, state) {
			e := fromContext(ctx.Err())
			e.notSent = true
			return e
		}
	}
}

// frameCodec passes encoded frames through, and decodes replies as ever.
type frameCodec struct{}

// Name implements encoding.CodecV2; the bytes are protobuf.
func (frameCodec) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (frameCodec) Marshal(v any) (mem.BufferSlice, error) {
	f := v.(*frame)
	return mem.BufferSlice{mem.NewBuffer(&f.bytes, framePool{f})}, nil
}

// Unmarshal implements encoding.CodecV2.
func (frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return proto.Unmarshal(buf.ReadOnlyData(), v.(proto.Message))
}

// framePool takes a frame back once the transport has written it.
type framePool struct{ f *frame }

// Get implements mem.BufferPool; it is not called.
func (framePool) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// Put implements mem.BufferPool.
func (p framePool) Put(*[]byte) {
	if cap(p.f.bytes) > frameBytes {
		return // too large to keep
	}
	p.f.bytes, p.f.calls = p.f.bytes[:0], 0
	frames.Put(p.f)
}
