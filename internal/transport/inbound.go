package transport

import (
	"bufio"
	"errors"
	"io"
	"net"
	"time"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/wire"
)

// inbound is a peer's connection that messages come in on.
type inbound struct {
	conn net.Conn
	done chan struct{} // closed when nothing more is handed on
}

// Serve takes over a connection that a peer dialled, and returns when it has ended. The
// preface has been read, and everything before it.
func (t *TCP) Serve(conn net.Conn) {
	defer conn.Close() // an error here says only that it is closed already
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.wg.Add(1)
	t.conns[conn] = struct{}{}
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.conns, conn)
		t.mu.Unlock()
		t.wg.Done()
	}()
	in := &inbound{conn: conn, done: make(chan struct{})}
	defer close(in.done)
	h, err := t.admit(conn)
	if err != nil {
		t.refusals.Do(func() {
			t.opts.Logger.Warn("refused a peer's connection", "address", conn.RemoteAddr(), "node", h.node, "class", h.class, "error", err)
		})
		return
	}
	defer t.enrol(linkKey{h.node, h.class}, in)()
	if err := t.receive(h, conn); fault.KindOf(err) == fault.Corrupt {
		t.breaks.Do(func() {
			t.opts.Logger.Error("broke a peer's connection", "address", conn.RemoteAddr(), "node", h.node, "class", h.class, "error", err)
		})
	}
}

// admit reads a handshake and answers it. A peer that is refused gets the answer too, so
// that it can say on its side what is wrong.
func (t *TCP) admit(conn net.Conn) (handshake, error) {
	_ = conn.SetDeadline(time.Now().Add(dialTimeout)) // what fails here fails below
	var b [handshakeSize]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return handshake{}, fault.Wrap(fault.Deadline, err, "the peer sent no handshake within %v", dialTimeout)
	}
	h, err := decodeHandshake(b[:])
	if err != nil {
		return h, err
	}
	ours := handshake{protocolVersion, t.opts.Cluster, t.opts.Self, h.class}
	if _, err := conn.Write(ours.append(nil)); err != nil {
		return h, err
	}
	if err := h.check(t.opts.Cluster); err != nil {
		return h, err
	}
	keepAlive(conn)
	return h, conn.SetDeadline(time.Time{})
}

// enrol makes in the only connection of its peer and class, so that the order within a
// class holds across reconnects. The result undoes it.
func (t *TCP) enrol(key linkKey, in *inbound) (leave func()) {
	t.mu.Lock()
	old := t.inbound[key]
	t.inbound[key] = in
	t.mu.Unlock()
	if old != nil {
		old.conn.Close()
		<-old.done
	}
	t.Kick(key.node) // who reached us can be reached
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.inbound[key] == in {
			delete(t.inbound, key)
		}
	}
}

// receive hands on what arrives until the connection ends.
func (t *TCP) receive(h handshake, conn net.Conn) error {
	r := bufio.NewReaderSize(conn, readBuffer)
	for {
		frame, err := readFrame(r)
		if err != nil {
			return err
		}
		msgs, err := wire.DecodeMessages(frame)
		if err != nil {
			return err
		}
		if t.ctx.Err() != nil {
			return t.ctx.Err()
		}
		t.opts.Listener.Received(h.node, h.class, len(msgs), len(frame))
		t.opts.Handler.Receive(h.node, msgs)
	}
}

// readFrame returns the next frame, in a buffer of its own that is no longer than what
// has arrived of it would justify.
func readFrame(r *bufio.Reader) ([]byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := frameSize(head)
	if size > maxFrame {
		return nil, fault.New(fault.Corrupt, "a frame of %d bytes is announced, %d are allowed", size, maxFrame)
	}
	frame := make([]byte, 0, min(size, growFrame))
	for len(frame) < size {
		if len(frame) == cap(frame) {
			frame = append(make([]byte, 0, min(size, 4*cap(frame))), frame...)
		}
		n, err := io.ReadFull(r, frame[len(frame):min(cap(frame), size)])
		frame = frame[:len(frame)+n]
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return frame, nil
}
