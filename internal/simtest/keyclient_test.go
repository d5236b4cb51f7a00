package simtest

import (
	"fmt"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/wire"
)

// keyClient does one operation on a key after another.
type keyClient struct {
	w        *World
	id       int
	n        int
	leader   leaders
	seen     map[string]string // the last value read or written here, to compare with
	final    int               // keys read after the faults
	finished bool
}

// ackedWrite is a write whose answer a client got.
type ackedWrite struct {
	key     string
	value   string
	deleted bool
	stamp   base.Timestamp
}

const (
	keysAtOnce = 4
	// keyLife is how long a key is used: an operation of unknown outcome stays open for
	// ever, and the checker's work grows with their number on one key.
	keyLife = 2500 * time.Millisecond
)

func keyName(i int) string { return fmt.Sprintf("k%03d", i) }

// keysSoFar returns how many keys were in use until now.
func (w *World) keysSoFar() int {
	return (int(time.Duration(w.mono())/keyLife) + 1) * keysAtOnce
}

func logical(key string) []byte { return keys.User(base.DefaultKeyspace, []byte(key)) }

func (c *keyClient) idle() bool     { return c.finished }
func (c *keyClient) String() string { return fmt.Sprintf("client %d", c.id) }

// next begins the next operation, the last ones being reads of all keys.
func (c *keyClient) next() {
	w := c.w
	key := keyName(w.keysSoFar() - 1 - w.rng.IntN(keysAtOnce))
	if w.load.stopping {
		if c.final >= w.keysSoFar() {
			c.finished = true
			return
		}
		key = keyName(c.final)
		c.get(key)
		return
	}
	switch k := w.rng.IntN(10); {
	case k < 4:
		c.get(key)
	case k < 7:
		c.put(key)
	case k < 9:
		c.swap(key)
	default:
		c.del(key)
	}
}

func (c *keyClient) later() { c.w.after(c.w.between(time.Millisecond, 60*time.Millisecond), c.next) }

func (c *keyClient) value() string {
	c.n++
	return fmt.Sprintf("%d.%d", c.id, c.n)
}

func (c *keyClient) note(key, value string) {
	if c.seen == nil {
		c.seen = make(map[string]string)
	}
	c.seen[key] = value
}

func (c *keyClient) put(key string) {
	in := lincheck.Input{Op: lincheck.Put, Key: key, Value: c.value()}
	op := mvcc.Op{Kind: mvcc.OpPut, Span: base.PointSpan(logical(key)), Value: []byte(in.Value)}
	c.write(in, &mvcc.Txn{Then: []mvcc.Op{op}}, func(res *command.Result) lincheck.Output {
		c.note(key, in.Value)
		c.w.load.acked = append(c.w.load.acked, ackedWrite{key: key, value: in.Value, stamp: res.Stamp})
		return lincheck.Output{}
	})
}

func (c *keyClient) del(key string) {
	in := lincheck.Input{Op: lincheck.Delete, Key: key}
	op := mvcc.Op{Kind: mvcc.OpDelete, Span: base.PointSpan(logical(key))}
	c.write(in, &mvcc.Txn{Then: []mvcc.Op{op}}, func(res *command.Result) lincheck.Output {
		c.w.load.acked = append(c.w.load.acked, ackedWrite{key: key, deleted: true, stamp: res.Stamp})
		return lincheck.Output{Present: res.Txn.Ops[0].Deleted > 0}
	})
}

func (c *keyClient) swap(key string) {
	in := lincheck.Input{Op: lincheck.CompareSwap, Key: key, Value: c.value()}
	span := base.PointSpan(logical(key))
	cmp := mvcc.Compare{Span: span, Target: mvcc.TargetValue, Relation: mvcc.Equal}
	if v, ok := c.seen[key]; ok {
		in.Expect, cmp.Value = v, []byte(v)
	} else {
		in.Absent = true
		cmp.Target = mvcc.TargetVersion
	}
	op := mvcc.Op{Kind: mvcc.OpPut, Span: span, Value: []byte(in.Value)}
	c.write(in, &mvcc.Txn{Compares: []mvcc.Compare{cmp}, Then: []mvcc.Op{op}}, func(res *command.Result) lincheck.Output {
		if res.Txn.Succeeded {
			c.note(key, in.Value)
			c.w.load.acked = append(c.w.load.acked, ackedWrite{key: key, value: in.Value, stamp: res.Stamp})
		}
		return lincheck.Output{Swapped: res.Txn.Succeeded}
	})
}

// write proposes a transaction until its fate is known or its time is over.
func (c *keyClient) write(in lincheck.Input, txn *mvcc.Txn, answer func(*command.Result) lincheck.Output) {
	end := c.w.operation(c.id, in)
	begun := c.w.load.latest
	c.w.propose(c.leader, base.DefaultRange, command.KindTxn, txn, 2*time.Second, func(res *command.Result, err error) {
		switch {
		case err == nil:
			c.w.stamped(begun, res.Stamp)
			end(answer(res))
		case fault.KindOf(err) == fault.UnknownOutcome:
			end(lincheck.Output{Unknown: true})
		default:
			end(lincheck.Output{Refused: true})
		}
		c.later()
	})
}

// propose has a command ordered, trying again while nothing was done. An error is of
// kind UnknownOutcome, or of one that says that nothing was done.
func (w *World) propose(l leaders, r base.RangeID, k command.Kind, body any, limit time.Duration, done func(*command.Result, error)) {
	env, err := command.Encode(command.Header{Kind: k, SpanEpoch: 1}, body)
	if err != nil {
		w.violated("a client's command does not encode: %v", err)
		return
	}
	deadline := w.mono().Add(limit)
	var try func()
	try = func() {
		w.ask(w.anyNode(), l.pick(w, r), wire.MethodPropose, r, env, func(b []byte, err error) {
			var res *command.Result
			if err == nil {
				if res, err = command.DecodeResult(b); err == nil && res.Refusal != nil {
					err = res.Refusal
				}
			}
			switch {
			case err == nil || fault.KindOf(err) == fault.UnknownOutcome:
				done(res, err)
			case !nothingDone(err):
				w.violated("a command of kind %d for range %d was answered: %v", k, r, err)
			case w.mono() > deadline:
				done(nil, err)
			default:
				l.learn(r, err)
				w.after(w.backoff(), try)
			}
		})
	}
	try()
}

// stamped checks a timestamp against the latest that was known when its operation began:
// real time and timestamps agree (T4, K3).
func (w *World) stamped(begun, at base.Timestamp) {
	if at <= begun {
		w.violated("invariant 2: an operation at %v began after one at %v was over", at, begun)
	}
	w.load.latest = max(w.load.latest, at)
}

func (c *keyClient) get(key string) {
	end := c.w.operation(c.id, lincheck.Input{Op: lincheck.Get, Key: key})
	req := wire.ReadRequest{Newest: c.w.chance(0.4), Reads: []wire.Read{{Span: base.PointSpan(logical(key))}}}
	begun := c.w.load.latest
	c.w.read(c.leader, req, 2*time.Second, func(reply *wire.ReadReply, err error) {
		if err == nil && !req.Newest {
			c.w.stamped(begun, reply.At)
		}
		if err != nil {
			end(lincheck.Output{Unknown: true})
			c.later()
			return
		}
		var out lincheck.Output
		if kvs := reply.Results[0].KVs; len(kvs) > 0 {
			out = lincheck.Output{Present: true, Value: string(kvs[0].Value)}
			c.note(key, out.Value)
		} else {
			delete(c.seen, key)
		}
		end(out)
		if c.w.load.stopping {
			c.final++
		}
		c.later()
	})
}

// read does a linearizable read or one at a timestamp, through the orderer or through a
// replica on the gateway, trying again until its time is over.
func (w *World) read(l leaders, req wire.ReadRequest, limit time.Duration, done func(*wire.ReadReply, error)) {
	deadline := w.mono().Add(limit)
	var try func()
	finish := func(reply *wire.ReadReply, err error) {
		switch {
		case err == nil:
			done(reply, nil)
		case fault.KindOf(err) == fault.Compacted && req.At != 0 && req.At < w.load.asked:
			w.count.Compacted++
			done(nil, err)
		case !nothingDone(err) && fault.KindOf(err) != fault.UnknownOutcome:
			w.violated("a read was answered: %v", err)
		case w.mono() > deadline:
			done(nil, err)
		default:
			l.learn(base.DefaultRange, err)
			w.after(w.backoff(), try)
		}
	}
	try = func() {
		if w.chance(0.5) {
			w.readFollower(l, req, finish)
			return
		}
		w.ask(w.anyNode(), l.pick(w, base.DefaultRange), wire.MethodRead, base.DefaultRange, req.Append(nil), func(b []byte, err error) {
			reply := new(wire.ReadReply)
			if err == nil {
				err = reply.Decode(b)
			}
			finish(reply, err)
		})
	}
	try()
}

// readFollower reads at a replica once the orderer allowed it: barrier, wait, read (K4).
func (w *World) readFollower(l leaders, req wire.ReadRequest, done func(*wire.ReadReply, error)) {
	const r = base.DefaultRange
	nodes := w.nodesOf(r)
	gw := w.node(nodes[w.rng.IntN(len(nodes))])
	body := (&wire.Barrier{At: req.At, Newest: req.Newest}).Append(nil)
	w.ask(gw, l.pick(w, r), wire.MethodBarrier, r, body, func(b []byte, err error) {
		var m wire.BarrierReply
		if err == nil {
			err = m.Decode(b)
		}
		if err != nil {
			done(nil, err)
			return
		}
		const limit = time.Second
		inside(w, gw, 2*limit, func(answer func(clock.Mono, error)) {
			gw.store.WaitApplied(r, m.Mark, gw.clock.Mono().Add(limit), func(err error) { answer(0, err) })
		}, func(_ clock.Mono, err error) {
			if err != nil {
				done(nil, err)
				return
			}
			inside(w, gw, limit, func(answer func(*wire.ReadReply, error)) {
				reply, err := gw.store.ReadLocal(r, req.Reads, m.At)
				answer(&reply, err)
			}, func(reply *wire.ReadReply, err error) {
				w.count.FollowerReads++
				done(reply, err)
			})
		})
	})
}
