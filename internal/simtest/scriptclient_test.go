package simtest

import (
	"fmt"
	"strings"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// attempt is a client's request of a script; answer is "" until there is one.
type attempt struct{ answer string }

func (a *attempt) say(s string) {
	if a.answer == "" {
		a.answer = s
	}
}

// clientCommands are requests. "begin NAME request" leaves one under way, "await NAME" shows
// how it ended, and "finish NAME" waits without showing what may be so or so; all others
// are waited for.
var clientCommands = map[string]func(*script, []string, args) (string, error){
	"put": waited("put"), "del": waited("del"), "get": waited("get"), "publish": waited("publish"),
	"snapshot": waited("snapshot"), "again": waited("again"),
	"begin": func(s *script, words []string, _ args) (string, error) {
		if len(words) < 2 {
			return "", fmt.Errorf("begin what? NAME put k=v")
		}
		at, err := s.request(words[1], words[2:])
		s.begun[words[0]] = at
		return "", err
	},
	"await": func(s *script, words []string, _ args) (string, error) {
		at := s.begun[words[0]]
		if at == nil {
			return "", fmt.Errorf("nothing of this name was begun")
		}
		return s.await(at)
	},
	"finish": func(s *script, words []string, _ args) (string, error) {
		for _, name := range words {
			if at := s.begun[name]; at == nil {
				return "", fmt.Errorf("%s was not begun", name)
			} else if _, err := s.await(at); err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"clients": func(s *script, _ []string, _ args) (string, error) {
		s.w.load.startKeys(s.w)
		return "", nil
	},
	// subscribe events group=1 via=n2 [ack=no]
	"subscribe": func(s *script, _ []string, a args) (string, error) {
		via, err := s.node(a.named["via"])
		s.members++
		m := &member{
			w: s.w, id: s.members, group: base.GroupID(a.number("group")), r: rangeNamed(a.at(0)),
			leader: make(leaders), via: via, holds: a.named["ack"] == "no",
		}
		s.w.after(0, m.open)
		return "", err
	},
}

// waited makes a command of a request.
func waited(kind string) func(*script, []string, args) (string, error) {
	return func(s *script, words []string, _ args) (string, error) {
		at, err := s.request(kind, words)
		if err != nil {
			return "", err
		}
		return s.await(at)
	}
}

func (s *script) await(at *attempt) (string, error) {
	s.w.runUntil(s.w.mono().Add(time.Minute), func() bool { return at.answer != "" })
	if at.answer == "" && len(s.w.broken) == 0 {
		return "", fmt.Errorf("no answer in a minute")
	}
	return at.answer, nil
}

// request sends a request. All take via=, the gateway's node; to=, the node that is asked
// once and no other is; within=, how long it is tried.
func (s *script) request(kind string, words []string) (*attempt, error) {
	a := parseArgs(words)
	via, err := s.node(a.named["via"])
	if err != nil {
		return nil, err
	}
	r := &scriptRequest{w: s.w, via: via, range_: base.DefaultRange, deadline: s.w.mono().Add(a.duration("within", 5*time.Second))}
	if to, ok := a.named["to"]; ok {
		if r.to, err = s.node(to); err != nil {
			return nil, err
		}
	}
	delete(a.named, "via")
	delete(a.named, "to")
	delete(a.named, "within")
	at := &attempt{}
	switch kind {
	case "put":
		for k, v := range a.named {
			r.put(k, v, at)
		}
	case "del":
		r.del(a.at(0), at)
	case "get":
		r.get(a.at(0), a.at(1) == "newest", at)
	case "publish":
		r.publish(a, at)
	case "snapshot":
		r.snapshot(nil, func(shot *snapshot) { s.shots[a.at(0)] = shot }, at)
	case "again":
		shot := s.shots[a.at(0)]
		if shot == nil {
			return nil, fmt.Errorf("there is no snapshot %q", a.at(0))
		}
		r.snapshot(shot, nil, at)
	default:
		return nil, fmt.Errorf("no such request")
	}
	return at, nil
}

// scriptRequest is a request under way: through a gateway to whom that takes for the
// orderer, again and again while nothing was done.
type scriptRequest struct {
	w        *World
	via, to  *node
	range_   base.RangeID
	hint     base.NodeID
	tries    int
	deadline clock.Mono
}

// target returns the node to ask next.
func (r *scriptRequest) target() base.NodeID {
	if r.to != nil {
		return r.to.id
	}
	if r.hint != 0 {
		return r.hint
	}
	if r.via.up {
		if v := r.via.store.Replica(r.range_); v != nil && v.Leader != 0 {
			return v.Leader
		}
	}
	nodes := r.w.nodesOf(r.range_)
	return nodes[r.tries%len(nodes)]
}

// send sends a call until it is answered or its time is over. An error that done gets is
// the last one.
func (r *scriptRequest) send(m wire.Method, body []byte, done func([]byte, error)) {
	timeout := max(time.Millisecond, r.deadline.Sub(r.w.mono()))
	r.w.askFor(timeout, r.via, r.target(), m, r.range_, body, func(b []byte, err error) {
		switch {
		case err == nil || !nothingDone(err) && !(m != wire.MethodPropose && fault.KindOf(err) == fault.UnknownOutcome),
			r.to != nil, r.w.mono() > r.deadline:
			done(b, err)
		default:
			r.tries++
			r.hint = fault.As(err).Leader
			r.w.after(20*time.Millisecond, func() { r.send(m, body, done) })
		}
	})
}

// propose sends a command, and shows how it ended.
func (r *scriptRequest) propose(k command.Kind, body any, at *attempt, done func(*command.Result, error)) {
	env, err := command.Encode(command.Header{Kind: k, SpanEpoch: 1}, body)
	if err != nil {
		r.w.violated("a script's command does not encode: %v", err)
		return
	}
	r.send(wire.MethodPropose, env, func(b []byte, err error) {
		var res *command.Result
		if err == nil {
			if res, err = command.DecodeResult(b); err == nil && res.Refusal != nil {
				err = res.Refusal
			}
		}
		done(res, err)
		at.say(inKind(err))
	})
}

func inKind(err error) string {
	if err == nil {
		return "ok"
	}
	return strings.ReplaceAll(fault.KindOf(err).String(), "_", " ")
}

const scriptClient = 100

func (r *scriptRequest) write(in lincheck.Input, op mvcc.Op, at *attempt, done func(*command.Result) lincheck.Output) {
	end := r.w.operation(scriptClient, in)
	begun := r.w.load.latest
	r.propose(command.KindTxn, &mvcc.Txn{Then: []mvcc.Op{op}}, at, func(res *command.Result, err error) {
		switch {
		case err == nil:
			r.w.stamped(begun, res.Stamp)
			end(done(res))
		case fault.KindOf(err) == fault.UnknownOutcome:
			end(lincheck.Output{Unknown: true})
		default:
			end(lincheck.Output{Refused: true})
		}
	})
}

func (r *scriptRequest) put(key, value string, at *attempt) {
	op := mvcc.Op{Kind: mvcc.OpPut, Span: base.PointSpan(logical(key)), Value: []byte(value)}
	r.write(lincheck.Input{Op: lincheck.Put, Key: key, Value: value}, op, at, func(res *command.Result) lincheck.Output {
		r.w.load.acked = append(r.w.load.acked, ackedWrite{key: key, value: value, stamp: res.Stamp})
		return lincheck.Output{}
	})
}

func (r *scriptRequest) del(key string, at *attempt) {
	op := mvcc.Op{Kind: mvcc.OpDelete, Span: base.PointSpan(logical(key))}
	r.write(lincheck.Input{Op: lincheck.Delete, Key: key}, op, at, func(res *command.Result) lincheck.Output {
		r.w.load.acked = append(r.w.load.acked, ackedWrite{key: key, deleted: true, stamp: res.Stamp})
		return lincheck.Output{Present: res.Txn.Ops[0].Deleted > 0}
	})
}

// get reads a key at the gateway's own replica, once the orderer allowed it (K4); with
// newest without a timestamp.
func (r *scriptRequest) get(key string, newest bool, at *attempt) {
	end := r.w.operation(scriptClient, lincheck.Input{Op: lincheck.Get, Key: key})
	begun := r.w.load.latest
	req := wire.ReadRequest{Newest: newest, Reads: []wire.Read{{Span: base.PointSpan(logical(key))}}}
	r.read(req, func(reply *wire.ReadReply, err error) {
		if err != nil {
			end(lincheck.Output{Unknown: true})
			at.say(inKind(err))
			return
		}
		if !newest {
			r.w.stamped(begun, reply.At)
		}
		kvs := reply.Results[0].KVs
		if len(kvs) == 0 {
			end(lincheck.Output{})
			at.say("none")
			return
		}
		end(lincheck.Output{Present: true, Value: string(kvs[0].Value)})
		at.say(string(kvs[0].Value))
	})
}

// read asks for a barrier and reads at the gateway's replica.
func (r *scriptRequest) read(req wire.ReadRequest, done func(*wire.ReadReply, error)) {
	body := (&wire.Barrier{At: req.At, Newest: req.Newest}).Append(nil)
	r.send(wire.MethodBarrier, body, func(b []byte, err error) {
		var m wire.BarrierReply
		if err == nil {
			err = m.Decode(b)
		}
		if err != nil {
			done(nil, err)
			return
		}
		const limit = time.Second
		inside(r.w, r.via, 2*limit, func(answer func(*wire.ReadReply, error)) {
			r.via.store.WaitApplied(r.range_, m.Mark, r.via.clock.Mono().Add(limit), func(err error) {
				if err != nil {
					answer(nil, err)
					return
				}
				reply, err := r.via.store.ReadLocal(r.range_, req.Reads, m.At)
				answer(&reply, err)
			})
		}, func(reply *wire.ReadReply, err error) {
			if err == nil || r.to != nil || r.w.mono() > r.deadline {
				done(reply, err)
				return
			}
			r.tries++
			r.hint = fault.As(err).Leader
			r.w.after(20*time.Millisecond, func() { r.read(req, done) })
		})
	})
}

// snapshot reads all keys: at a fresh timestamp, or again at that of before.
func (r *scriptRequest) snapshot(before *snapshot, keep func(*snapshot), at *attempt) {
	req := wire.ReadRequest{Reads: []wire.Read{{Span: keys.KeyspaceSpan(base.DefaultKeyspace)}}}
	if before != nil {
		req.At = before.at
	}
	r.read(req, func(reply *wire.ReadReply, err error) {
		if err != nil {
			at.say(inKind(err))
			return
		}
		s := fingerprint(reply.At, reply.Results[0].KVs)
		switch {
		case before == nil:
			r.w.load.shots = append(r.w.load.shots, s)
			keep(s)
			at.say(fmt.Sprintf("%d keys", s.n))
		case *s == *before:
			at.say("the same")
		default:
			r.w.violated("invariant 11: at %v there were %d keys, %x; now there are %d, %x", s.at, before.n, before.sum, s.n, s.sum)
			at.say("another")
		}
	})
}

// publish: publish e1 [due=500ms] [part=0]. due is from now on, by true time.
func (r *scriptRequest) publish(a args, at *attempt) {
	w := r.w
	p := &publisher{w: w}
	part := base.Partition(a.number("part"))
	r.range_ = rangeOf(part)
	events := []timeline.NewEvent{{MessageID: a.at(0), Payload: []byte("x")}}
	if due := a.duration("due", 0); due != 0 {
		events[0].DueMS = w.trueMS() + due.Milliseconds()
	}
	asked := w.trueMS()
	body := &timeline.Publish{Batches: []timeline.Batch{{Partition: base.PartitionID{Topic: topic, Partition: part}, Events: events}}}
	r.propose(command.KindPublish, body, at, func(res *command.Result, err error) {
		p.answered(part, &events[0], 0, asked, res, err)
	})
}
