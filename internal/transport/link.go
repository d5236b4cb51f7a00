package transport

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/wire"
	"golang.org/x/sys/unix"
)

// link is the outgoing side of one peer and class. Its goroutine dials, sends what the
// queue holds, and dials again when the connection breaks. While it waits after a failed
// attempt the queue is shut, so that callers learn at once that the peer is away, and a
// peer that comes back is not sent what has gone stale.
type link struct {
	t     *TCP
	key   linkKey
	log   *slog.Logger
	queue *queue
	kick  chan struct{} // holds a token when waiting should end
	batch []wire.Message
	buf   []byte // reused: one frame at a time
}

func newLink(t *TCP, key linkKey) *link {
	return &link{
		t:     t,
		key:   key,
		log:   t.opts.Logger.With("node", key.node, "class", key.class),
		queue: newQueue(t.opts.Queues[key.class]),
		kick:  make(chan struct{}, 1),
	}
}

func (l *link) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// run keeps the link connected until the transport closes or the node is unknown.
func (l *link) run() {
	defer l.drop()
	for failures := 0; ; {
		addr, ok := l.t.opts.Resolve(l.key.node)
		if !ok {
			l.t.forget(l)
			return
		}
		l.queue.open()
		stood, err := l.session(addr)
		if l.t.ctx.Err() != nil {
			return
		}
		if stood == 0 {
			l.drop()
			l.t.opts.Listener.Unreachable(l.key.node, l.key.class, errors.Is(err, unix.ECONNREFUSED))
		}
		if stood > backoffMax {
			failures = 0
		}
		level := slog.LevelDebug
		if failures == 0 || permanent(err) {
			level = slog.LevelWarn
		}
		l.log.Log(l.t.ctx, level, "no connection to peer", "address", addr, "error", err)
		kicked, ok := l.wait(l.backoff(failures, err))
		if !ok {
			return
		}
		if failures++; kicked {
			failures = 0
		}
	}
}

// drop shuts the queue and reports what was in it.
func (l *link) drop() {
	if n := l.queue.close(); n > 0 {
		l.t.opts.Listener.Dropped(l.key.node, l.key.class, n)
	}
}

// permanent says that only an operator, or a new address, can heal err.
func permanent(err error) bool {
	k := fault.KindOf(err)
	return k == fault.WrongCluster || k == fault.Invalid
}

// backoff returns how long to wait after a number of failures in a row: doubling, half
// of it random.
func (l *link) backoff(failures int, err error) time.Duration {
	d := backoffMax
	if permanent(err) {
		d = backoffRefuse
	} else if failures < 6 {
		d = min(d, backoffMin<<failures)
	}
	return d/2 + time.Duration(l.t.opts.Rand()*float64(d/2))
}

// wait returns early if kicked; ok is false when the transport closed.
func (l *link) wait(d time.Duration) (kicked, ok bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, true
	case <-l.kick:
		return true, true
	case <-l.t.ctx.Done():
		return false, false
	}
}

// session dials and sends until the connection breaks. It returns how long it stood; 0 if
// there was none.
func (l *link) session(addr string) (stood time.Duration, err error) {
	ctx, cancel := context.WithTimeout(l.t.ctx, dialTimeout)
	defer cancel()
	conn, err := l.t.opts.Dial(ctx, addr)
	if err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "cannot connect to node %d", l.key.node)
	}
	defer conn.Close() // an error here says only that it is closed already
	defer context.AfterFunc(l.t.ctx, func() { conn.Close() })()
	if err := l.greet(conn); err != nil {
		return 0, err
	}
	keepAlive(conn)
	start := time.Now()
	l.log.Info("connected to peer", "address", addr)
	l.t.opts.Listener.Connected(l.key.node, l.key.class)
	err = l.pump(conn)
	l.t.opts.Listener.Disconnected(l.key.node, l.key.class, err)
	return max(time.Since(start), 1), err
}

// greet exchanges handshakes.
func (l *link) greet(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(dialTimeout)) // what fails here fails below
	ours := handshake{protocolVersion, l.t.opts.Cluster, l.t.opts.Self, l.key.class}
	if _, err := conn.Write(ours.append([]byte(Preface))); err != nil {
		return fault.Wrap(fault.Unavailable, err, "node %d took no handshake", l.key.node)
	}
	var reply [handshakeSize]byte
	if _, err := io.ReadFull(conn, reply[:]); err != nil {
		return fault.Wrap(fault.Unavailable, err, "node %d sent no handshake", l.key.node)
	}
	theirs, err := decodeHandshake(reply[:])
	if err != nil {
		return err
	}
	if err := theirs.check(l.t.opts.Cluster); err != nil {
		return err
	}
	if theirs.node != l.key.node {
		return fault.New(fault.Invalid, "node %d answers where node %d should be", theirs.node, l.key.node).
			WithRemedy("check the peer addresses of both nodes")
	}
	return conn.SetDeadline(time.Time{})
}

// pump sends what is queued until the connection breaks or the transport closes, and
// returns why it broke.
func (l *link) pump(conn net.Conn) error {
	broken := make(chan error, 1)
	go func() {
		var b [1]byte
		_, err := conn.Read(b[:])
		if err == nil {
			err = fault.New(fault.Corrupt, "node %d sent something after its handshake", l.key.node)
		}
		broken <- err
	}()
	for {
		select {
		case err := <-broken:
			return linkError(err)
		case <-l.queue.ready:
		}
		if err := l.send(conn); err != nil {
			conn.Close()
			<-broken
			return linkError(err)
		}
	}
}

func linkError(err error) error {
	if fault.KindOf(err) != fault.Internal {
		return err
	}
	return fault.Wrap(fault.Unavailable, err, "the connection to the peer broke")
}

// send sends one frame of what is queued, if anything is.
func (l *link) send(conn net.Conn) error {
	l.batch, _ = l.queue.take(l.batch[:0], coalesce)
	if len(l.batch) == 0 {
		return nil
	}
	defer clear(l.batch)
	l.buf = appendFrame(l.buf[:0], l.batch)
	_ = conn.SetWriteDeadline(time.Now().Add(stallTimeout)) // what fails here fails below
	_, err := conn.Write(l.buf)
	if err != nil {
		l.t.opts.Listener.Dropped(l.key.node, l.key.class, len(l.batch))
		return err
	}
	l.t.opts.Listener.Sent(l.key.node, l.key.class, len(l.batch), len(l.buf))
	if cap(l.buf) > 2*coalesce {
		l.buf = nil
	}
	return nil
}
