package node

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// speakWithin is how long a connection may stay without having sent a byte; what a server
// needs for one that speaks, 64 KiB of buffers among it, is not spent before.
const speakWithin = 5 * time.Second

// connections bounds what connections to a port cost: how many there are, and how long one
// may send nothing at all. At the bound, the connection that has been quiet for longest
// makes room for a new one; if all have spoken, the new one is refused.
type connections struct {
	port    string // which, for the log
	limit   int
	refusal []byte // sent to who is refused
	log     *slog.Logger

	mu    sync.Mutex
	open  int
	quiet list.List // of *conn, those that have sent nothing, oldest first

	refused, silent atomic.Int64 // since the node began
	lastLine        atomic.Int64 // ms, when the log last told of them

	cut     atomic.Int64 // closed for a reason, since the node began
	cutLine rate.Sometimes
}

// lineEvery is how often the log tells of refused and silent connections, at most.
const lineEvery = 10 * time.Second

// conn is one accepted connection.
type conn struct {
	net.Conn
	from   *connections
	remote *remote
	place  *list.Element // in quiet; nil once it has spoken or was closed
	closed bool
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.from.mu.Lock()
	if !c.closed {
		c.closed = true
		c.from.open--
		c.from.forget(c)
	}
	c.from.mu.Unlock()
	return c.Conn.Close()
}

// RemoteAddr implements net.Conn; the address closes the connection.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// remote is a connection's address, and what it is closed by.
type remote struct {
	net.Addr
	conn  *conn
	begun atomic.Int64
}

// Begun implements admission.Cutter.
func (r *remote) Begun() *atomic.Int64 { return &r.begun }

// Cut implements admission.Cutter.
func (r *remote) Cut(reason string) {
	from := r.conn.from
	n := from.cut.Add(1)
	from.cutLine.Do(func() {
		from.log.Warn("a connection was closed: "+reason, "port", from.port, "address", r.String(), "closed", n)
	})
	_ = r.conn.Close()
}

// count returns how many connections are open.
func (l *connections) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// forget takes a connection from the quiet ones. Called with mu held.
func (l *connections) forget(c *conn) {
	if c.place != nil {
		l.quiet.Remove(c.place)
		c.place = nil
	}
}

// listener returns what a server accepts from; it ends with inner.
func (l *connections) listener(inner net.Listener) net.Listener {
	b := &boundedListener{Listener: inner, of: l, spoken: make(chan net.Conn), failed: make(chan error, 1), done: make(chan struct{})}
	b.work.Go(b.accept)
	return b
}

// boundedListener is one server's use of a port.
type boundedListener struct {
	net.Listener
	of      *connections
	spoken  chan net.Conn
	failed  chan error // why accepting ended
	closing sync.Once
	done    chan struct{}
	work    sync.WaitGroup // accepting, and each quiet connection
}

// Accept implements net.Listener: it returns connections that have spoken.
func (b *boundedListener) Accept() (net.Conn, error) {
	select {
	case c := <-b.spoken:
		return c, nil
	case err := <-b.failed:
		b.failed <- err
		return nil, err
	}
}

// Close implements net.Listener, and closes the quiet connections.
func (b *boundedListener) Close() error {
	var err error
	b.closing.Do(func() {
		close(b.done)
		err = b.Listener.Close()
		b.of.mu.Lock()
		for e := b.of.quiet.Front(); e != nil; e = e.Next() {
			_ = e.Value.(*conn).SetReadDeadline(time.Unix(1, 0))
		}
		b.of.mu.Unlock()
		b.work.Wait()
	})
	return err
}

// accept takes connections until the listener closes or breaks for good.
func (b *boundedListener) accept() {
	for wait := time.Duration(0); ; {
		inner, err := b.Listener.Accept()
		if err != nil {
			if temporary(err) && b.pause(&wait) {
				continue
			}
			b.failed <- err
			return
		}
		wait = 0
		if c := b.of.admit(inner); c != nil {
			b.work.Go(func() { b.await(c) })
		}
	}
}

// temporary says whether accepting may work again soon: the process has no file
// descriptors left, or the connection was gone before it was accepted.
func temporary(err error) bool {
	return slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.ECONNABORTED, unix.ENOBUFS, unix.ENOMEM},
		func(e error) bool { return errors.Is(err, e) })
}

// pause waits a little longer each time; false once the listener is closed.
func (b *boundedListener) pause(wait *time.Duration) bool {
	*wait = min(max(2*(*wait), 5*time.Millisecond), time.Second)
	timer := time.NewTimer(*wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-b.done:
		return false
	}
}

// admit counts a connection in; nil if it was refused.
func (l *connections) admit(inner net.Conn) *conn {
	c := &conn{Conn: inner, from: l}
	c.remote = &remote{Addr: inner.RemoteAddr(), conn: c}
	l.mu.Lock()
	var oldest *conn
	if l.open >= l.limit {
		if e := l.quiet.Front(); e != nil {
			oldest = e.Value.(*conn)
			l.forget(oldest)
		} else {
			l.mu.Unlock()
			l.refuse(inner)
			return nil
		}
	}
	l.open++
	c.place = l.quiet.PushBack(c)
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.SetReadDeadline(time.Unix(1, 0)) // its goroutine closes it
	}
	return c
}

func (l *connections) refuse(inner net.Conn) {
	_ = inner.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = inner.Write(l.refusal) // fits what the system buffers
	_ = inner.Close()
	l.refused.Add(1)
	l.report()
}

// await hands a connection on once it has sent something, and closes it if it does not.
func (b *boundedListener) await(c *conn) {
	if !speaks(c.Conn) {
		_ = c.Close()
		select {
		case <-b.done:
		default:
			b.of.silent.Add(1)
			b.of.report()
		}
		return
	}
	b.of.mu.Lock()
	b.of.forget(c)
	b.of.mu.Unlock()
	_ = c.SetReadDeadline(time.Time{})
	select {
	case b.spoken <- c:
	case <-b.done:
		_ = c.Close()
	}
}

// speaks waits until there is something to read, and leaves it where it is.
func speaks(c net.Conn) bool {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return true
	}
	_ = tcp.SetReadDeadline(time.Now().Add(speakWithin))
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	var one [1]byte
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		var errno error
		n, _, errno = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return errno != unix.EAGAIN && errno != unix.EINTR
	})
	return err == nil && n > 0
}

// report writes at most one line every lineEvery.
func (l *connections) report() {
	now, last := time.Now().UnixMilli(), l.lastLine.Load()
	if now-last < lineEvery.Milliseconds() || !l.lastLine.CompareAndSwap(last, now) {
		return
	}
	l.log.Warn("connections were closed: they sent nothing, or there were too many", "port", l.port,
		"silent", l.silent.Load(), "refused", l.refused.Load(), "open", l.count(), "limit", l.limit)
}

// How many connections a port takes. Each node has three streams to each other one.
const (
	defaultConnections = 10_000 // of clients
	peerConnections    = 1_000
	httpConnections    = 1_000
)

// goAway is what a gRPC client that finds no room is sent: an HTTP/2 server's preface, and
// a GOAWAY that carries text.
func goAway(text string) []byte {
	const settings, goaway, enhanceYourCalm = 4, 7, 11
	b := []byte{0, 0, 0, settings, 0, 0, 0, 0, 0}
	b = append(b, 0, 0, byte(8+len(text)), goaway, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 0) // no stream was looked at
	b = binary.BigEndian.AppendUint32(b, enhanceYourCalm)
	return append(b, text...)
}

// bound makes the bounds of the node's ports.
func (n *Node) bound() {
	log, most := n.opts.Logger, n.opts.Limits.Connections
	if most == 0 {
		most = defaultConnections
	}
	n.connections.client = &connections{
		port: "client", limit: most, log: log, cutLine: rate.Sometimes{First: 3, Interval: time.Second},
		refusal: goAway(fmt.Sprintf("the node has its %d client connections; close some, or raise --max-connections", most)),
	}
	n.connections.peer = &connections{
		port: "peer", limit: peerConnections, log: log,
		refusal: goAway(fmt.Sprintf("the node has its %d peer connections", peerConnections)),
	}
	n.connections.http = &connections{
		port: "http", limit: httpConnections, log: log,
		refusal: []byte("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 24\r\n\r\ntoo many connections now"),
	}
}
