package admission

import (
	"context"
	"math"

	"github.com/almanacdb/almanac/internal/fault"
)

// callBytes is about what a call takes besides its message: a goroutine, its stack, the
// buffers of its stream.
const callBytes = 8 << 10

// Intake bounds what the calls of clients make a node hold: their messages, and their
// answers until they are sent. Safe for concurrent use.
type Intake struct {
	// Bytes is the share that the calls take from; nil: unbounded.
	Bytes *Pool
	// Streams is the share that open streams take from; nil: unbounded.
	Streams *Pool
	// Refused, if set, is told of each call that was refused.
	Refused func()

	part *Pool // of Bytes, what these calls may hold together; nil: all
}

// Part returns an intake for the calls of one stream, which together hold no more than
// half of the share, so that a client that does not read its answers leaves the rest.
func (in *Intake) Part() *Intake {
	if in.Bytes == nil {
		return in
	}
	return &Intake{Bytes: in.Bytes, Streams: in.Streams, Refused: in.Refused, part: NewPool(in.Bytes.Limit() / 2)}
}

// Call is one call's part of an Intake. One goroutine at a time uses it.
type Call struct {
	in   *Intake
	held int
}

// Enter begins a call, before its message is received. The error is Busy.
func (in *Intake) Enter() (*Call, error) {
	c := &Call{in: in}
	if err := c.Hold(callBytes); err != nil {
		return nil, err
	}
	return c, nil
}

// begun is how many calls of one connection may be without their message: what they hold
// is a quarter of the share at most.
func (in *Intake) begun() int {
	if in.Bytes == nil {
		return math.MaxInt
	}
	return max(1, int(in.Bytes.Limit())/callBytes/4)
}

// Begin begins a call that was let in elsewhere.
func (in *Intake) Begin() *Call { return &Call{in: in} }

// Hold takes n more bytes for the call. The error is Busy, or TooLarge if one call alone
// would take more than half of the share.
func (c *Call) Hold(n int) error {
	if c.in == nil || c.in.Bytes == nil {
		return nil
	}
	p := c.in.Bytes
	if c.held+n > int(p.Limit())/2 {
		return fault.New(fault.TooLarge, "the request and its answer take more than the %d MiB that this node's --memory allows one", p.Limit()>>21).
			WithRemedy("read with a limit, page by page, write in smaller batches, or give the node more memory")
	}
	if !c.in.part.Take(n) {
		return fault.New(fault.Busy, "the calls and unread answers of this stream hold all of this node's memory that one stream may").
			WithRemedy("read the answers, and have fewer calls under way")
	}
	if !p.Take(n) {
		c.in.part.Put(n)
		if c.in.Refused != nil {
			c.in.Refused()
		}
		return fault.New(fault.Busy, "the memory of this node that is for requests is used up").
			WithRemedy("back off and try again, or give the node more memory with --memory")
	}
	c.held += n
	return nil
}

// Leave ends the call and gives back what it holds.
func (c *Call) Leave() {
	if c.held > 0 {
		c.in.Bytes.Put(c.held)
		c.in.part.Put(c.held)
	}
	c.held = 0
}

type callKey struct{}

// With returns a context that carries the call.
func With(ctx context.Context, c *Call) context.Context { return context.WithValue(ctx, callKey{}, c) }

// Hold takes n more bytes, and as many for their way to the client, for the call that
// ctx carries, if it carries one.
func Hold(ctx context.Context, n int) error {
	if room := Room(ctx); room != nil {
		return room(n)
	}
	return nil
}

// Room returns Hold for what is read piece by piece; nil if ctx carries no call.
func Room(ctx context.Context) func(n int) error {
	c, ok := ctx.Value(callKey{}).(*Call)
	if !ok {
		return nil
	}
	return func(n int) error { return c.Hold(2 * n) }
}
