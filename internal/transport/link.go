package transport

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/wire"
	"google.golang.org/grpc"
)

// link is the outgoing side of one peer and class. Its goroutine dials, sends what the
// queue holds, and dials again when the stream breaks. While it waits after a failed
// attempt the queue is shut, so that callers learn at once that the peer is away, and a
// peer that comes back is not sent what has gone stale.
type link struct {
	g     *GRPC
	key   linkKey
	log   *slog.Logger
	queue *queue
	kick  chan struct{} // holds a token when waiting should end
	batch []wire.Message
}

func newLink(g *GRPC, key linkKey) *link {
	return &link{
		g:     g,
		key:   key,
		log:   g.opts.Logger.With("node", key.node, "class", key.class),
		queue: newQueue(g.opts.Queues[key.class]),
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
		addr, ok := l.g.opts.Resolve(l.key.node)
		if !ok {
			l.g.forget(l)
			return
		}
		l.queue.open()
		stood, err := l.session(addr)
		if l.g.ctx.Err() != nil {
			return
		}
		if stood == 0 {
			l.drop()
		}
		if stood > backoffMax {
			failures = 0
		}
		level := slog.LevelDebug
		if failures == 0 || permanent(err) {
			level = slog.LevelWarn
		}
		l.log.Log(l.g.ctx, level, "no stream to peer", "address", addr, "error", err)
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
		l.g.opts.Listener.Dropped(l.key.node, l.key.class, n)
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
	return d/2 + time.Duration(l.g.opts.Rand()*float64(d/2))
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
	case <-l.g.ctx.Done():
		return false, false
	}
}

// session dials and sends until the stream breaks. It returns how long the stream stood;
// 0 if there was none.
func (l *link) session(addr string) (stood time.Duration, err error) {
	ctx, cancel := context.WithCancel(l.g.ctx)
	defer cancel()
	opts := append(DialOptions(l.g.opts.Credentials), grpc.WithContextDialer(l.g.opts.Dial))
	conn, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "peer address %q", addr)
	}
	defer conn.Close() // an error here says only that it is closed already

	timeout := time.AfterFunc(dialTimeout, cancel)
	stream, err := l.open(ctx, conn)
	if err != nil {
		return 0, err
	}
	if !timeout.Stop() {
		return 0, fault.New(fault.Unavailable, "node %d did not answer within %v", l.key.node, dialTimeout)
	}
	start := time.Now()
	l.log.Info("connected to peer", "address", addr)
	l.g.opts.Listener.Connected(l.key.node, l.key.class)
	err = l.pump(stream, cancel)
	l.g.opts.Listener.Disconnected(l.key.node, l.key.class, err)
	return max(time.Since(start), 1), err
}

// open opens a stream and exchanges handshakes.
func (l *link) open(ctx context.Context, conn *grpc.ClientConn) (grpc.ClientStream, error) {
	stream, err := conn.NewStream(ctx, &serviceDesc.Streams[0], "/"+serviceName+"/"+streamName)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot connect to node %d", l.key.node)
	}
	ours := handshake{protocolVersion, l.g.opts.Cluster, l.g.opts.Self, l.key.class}
	sendErr := stream.SendMsg(ours.frame())
	if sendErr != nil && !errors.Is(sendErr, io.EOF) { // EOF: RecvMsg knows why
		return nil, fault.Wrap(fault.Unavailable, sendErr, "node %d took no handshake", l.key.node)
	}
	var reply inFrame
	if err := stream.RecvMsg(&reply); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "node %d sent no handshake", l.key.node)
	}
	theirs, err := decodeHandshake(reply.b)
	if err != nil {
		return nil, err
	}
	if err := theirs.check(l.g.opts.Cluster); err != nil {
		return nil, err
	}
	if theirs.node != l.key.node {
		return nil, fault.New(fault.Invalid, "node %d answers where node %d should be", theirs.node, l.key.node).
			WithRemedy("check the peer addresses of both nodes")
	}
	return stream, nil
}

// pump sends what is queued until the stream breaks or the transport closes. It cancels
// the stream and returns why it broke.
func (l *link) pump(stream grpc.ClientStream, cancel context.CancelFunc) error {
	broken := make(chan error, 1)
	go func() {
		var f inFrame
		err := stream.RecvMsg(&f)
		if err == nil {
			err = fault.New(fault.Corrupt, "node %d sent a message after its handshake", l.key.node)
		}
		broken <- err
	}()
	for {
		select {
		case err := <-broken:
			return streamError(err)
		case <-l.queue.ready:
		}
		if err := l.send(stream); err != nil {
			if !errors.Is(err, io.EOF) {
				cancel()
			}
			return streamError(<-broken)
		}
	}
}

func streamError(err error) error {
	if fault.KindOf(err) != fault.Internal {
		return err
	}
	return fault.Wrap(fault.Unavailable, err, "the stream to the peer broke")
}

// send sends one frame of what is queued, if anything is.
func (l *link) send(stream grpc.ClientStream) error {
	var size int
	l.batch, size = l.queue.take(l.batch[:0], coalesce)
	if len(l.batch) == 0 {
		return nil
	}
	defer clear(l.batch)
	buf := frames.Get(size + 64)
	*buf = wire.AppendFrame((*buf)[:0], l.batch)
	n := len(*buf) // the buffer is gRPC's once sent
	if err := stream.SendMsg(&outFrame{buf}); err != nil {
		l.g.opts.Listener.Dropped(l.key.node, l.key.class, len(l.batch))
		return err
	}
	l.g.opts.Listener.Sent(l.key.node, l.key.class, len(l.batch), n)
	return nil
}
