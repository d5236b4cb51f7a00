package simtest

import (
	"fmt"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/wire"
)

// stubborn is a client beside a node: it asks that node alone, whoever leads. So whoever
// takes itself for a leader is asked at once, and again and again: clients that look for
// the leader soon leave one that was deposed. It only puts or only gets, because a put at
// a leader without a majority takes long.
type stubborn struct {
	w    *World
	at   *node
	id   int
	puts bool // else gets
	n    int
	busy bool
}

// startStubborn puts a reader and a writer beside each node that holds the keys.
func (l *load) startStubborn(w *World) {
	for i, id := range w.nodesOf(base.DefaultRange) {
		for j, puts := range []bool{true, false} {
			c := &stubborn{w: w, at: w.node(id), id: 100 + 2*i + j, puts: puts}
			l.clients = append(l.clients, c)
			w.after(time.Second, c.next)
		}
	}
}

func (c *stubborn) idle() bool     { return !c.busy }
func (c *stubborn) String() string { return fmt.Sprintf("the client beside %v", c.at) }

func (c *stubborn) next() {
	w := c.w
	if w.load.stopping {
		return
	}
	c.busy = true
	key := keyName(w.keysSoFar() - 1 - w.rng.IntN(keysAtOnce))
	if c.puts {
		c.put(key)
	} else {
		c.get(key)
	}
}

func (c *stubborn) done(end func(lincheck.Output), out lincheck.Output) {
	c.busy = false
	end(out)
	c.w.after(c.w.between(5*time.Millisecond, 40*time.Millisecond), c.next)
}

func (c *stubborn) put(key string) {
	w := c.w
	c.n++
	value := fmt.Sprintf("%d.%d", c.id, c.n)
	op := mvcc.Op{Kind: mvcc.OpPut, Span: base.PointSpan(logical(key)), Value: []byte(value)}
	env, err := command.Encode(command.Header{Kind: command.KindTxn, SpanEpoch: 1}, &mvcc.Txn{Then: []mvcc.Op{op}})
	if err != nil {
		w.violated("a client's command does not encode: %v", err)
		return
	}
	end, begun := w.operation(c.id, lincheck.Input{Op: lincheck.Put, Key: key, Value: value}), w.load.latest
	w.ask(c.at, c.at.id, wire.MethodPropose, base.DefaultRange, env, func(b []byte, err error) {
		var res *command.Result
		if err == nil {
			if res, err = command.DecodeResult(b); err == nil && res.Refusal != nil {
				err = res.Refusal
			}
		}
		out := lincheck.Output{Refused: nothingDone(err), Unknown: fault.KindOf(err) == fault.UnknownOutcome}
		if err == nil {
			w.stamped(begun, res.Stamp)
			w.load.acked = append(w.load.acked, ackedWrite{key: key, value: value, stamp: res.Stamp})
		}
		c.done(end, out)
	})
}

func (c *stubborn) get(key string) {
	w := c.w
	end := w.operation(c.id, lincheck.Input{Op: lincheck.Get, Key: key})
	req := wire.ReadRequest{Newest: true, Reads: []wire.Read{{Span: base.PointSpan(logical(key))}}}
	w.ask(c.at, c.at.id, wire.MethodRead, base.DefaultRange, req.Append(nil), func(b []byte, err error) {
		reply := new(wire.ReadReply)
		if err == nil {
			err = reply.Decode(b)
		}
		out := lincheck.Output{Refused: nothingDone(err), Unknown: err != nil}
		if err == nil && len(reply.Results[0].KVs) > 0 {
			out.Present, out.Value = true, string(reply.Results[0].KVs[0].Value)
		}
		c.done(end, out)
	})
}
