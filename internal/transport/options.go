package transport

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

const (
	// MaxMessage is the size in bytes (wire.Size) up to which Send takes a message.
	MaxMessage = 30 << 20

	maxFrame      = 32 << 20  // on receipt
	coalesce      = 256 << 10 // messages are gathered into frames of about this size
	dialTimeout   = 5 * time.Second
	stallTimeout  = 15 * time.Second // what a peer does not take for so long breaks the connection
	backoffMin    = 50 * time.Millisecond
	backoffMax    = 2 * time.Second
	backoffRefuse = 30 * time.Second // after a refusal that time alone does not heal
)

// Bounds bound a queue. What one Send brings is taken whatever its size if the queue is
// empty.
type Bounds struct {
	Bytes int // by wire.Size
	Count int // messages
}

// Options configure a TCP.
type Options struct {
	Self    base.NodeID
	Cluster base.ClusterID
	// Resolve returns a node's peer address, host:port; it is asked before every dial,
	// from several goroutines, and must not block.
	Resolve func(base.NodeID) (addr string, ok bool)
	Handler Handler
	// Queues bounds what waits for each peer, by class; zero fields take defaults.
	Queues   Queues
	Logger   *slog.Logger // default: discard
	Listener Listener     // may be empty
	// Dial opens connections; default: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Rand returns a number in [0, 1) for the jitter of backoff; default: math/rand.
	Rand func() float64
}

// Listener is told what happens to connections. Each field may be nil. None may block.
type Listener struct {
	Connected    func(to base.NodeID, class Class)
	Disconnected func(to base.NodeID, class Class, err error)
	// Unreachable reports an attempt to connect that failed; what was queued since the
	// last stream broke, if there was one, is dropped unsent. Refused: the peer's machine
	// answered that nobody listens at its address, so its process does not run.
	Unreachable func(to base.NodeID, class Class, refused bool)
	// Dropped reports messages that did not leave: the queue was full, or the peer
	// could not be reached.
	Dropped  func(to base.NodeID, class Class, messages int)
	Sent     func(to base.NodeID, class Class, messages, bytes int)
	Received func(from base.NodeID, class Class, messages, bytes int)
}

// Queues bounds the queues of a peer, by class.
type Queues [classes]Bounds

// EachQueue bounds the queue of every class to so many bytes.
func EachQueue(bytes int) Queues {
	var q Queues
	for class := range q {
		q[class].Bytes = bytes
	}
	return q
}

var defaultBounds = Queues{
	ClassReplication: {Bytes: 64 << 20, Count: 1 << 16},
	ClassCalls:       {Bytes: 32 << 20, Count: 1 << 16},
	ClassBulk:        {Bytes: 32 << 20, Count: 1 << 10},
}

// withDefaults checks o and fills in what is left out.
func (o Options) withDefaults() (Options, error) {
	if o.Self == 0 || o.Cluster.IsZero() {
		return o, fault.New(fault.Invalid, "a transport needs its node's and its cluster's id")
	}
	if o.Resolve == nil || o.Handler == nil {
		return o, fault.New(fault.Invalid, "a transport needs a resolver and a handler")
	}
	for class := range o.Queues {
		q := &o.Queues[class]
		if q.Bytes < 0 || q.Count < 0 {
			return o, fault.New(fault.Invalid, "the bounds of a transport's queues are negative")
		}
		if q.Bytes == 0 {
			q.Bytes = defaultBounds[class].Bytes
		}
		if q.Count == 0 {
			q.Count = defaultBounds[class].Count
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	o.Listener.fill()
	return o, nil
}

// fill lets callers skip the nil checks.
func (l *Listener) fill() {
	if l.Connected == nil {
		l.Connected = func(base.NodeID, Class) {}
	}
	if l.Disconnected == nil {
		l.Disconnected = func(base.NodeID, Class, error) {}
	}
	if l.Unreachable == nil {
		l.Unreachable = func(base.NodeID, Class, bool) {}
	}
	if l.Dropped == nil {
		l.Dropped = func(base.NodeID, Class, int) {}
	}
	if l.Sent == nil {
		l.Sent = func(base.NodeID, Class, int, int) {}
	}
	if l.Received == nil {
		l.Received = func(base.NodeID, Class, int, int) {}
	}
}
