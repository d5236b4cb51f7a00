package store

import (
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/wire"
)

// stampBook orders timestamps for all that want them on this node. A fetch takes all
// that wait when it begins, so each was asked for before its fetch (K3, T4).
type stampBook struct {
	store *Store

	mu       sync.Mutex
	waiting  []stampWaiter
	flying   int
	hint     base.NodeID // who last answered, or was named, as the oracle's node
	tried    int         // failures in a row, to go round the candidates
	anchorMS int64       // the last oracle time seen here
	anchorAt clock.Mono
}

type stampWaiter struct {
	n    int
	done func(base.Timestamp, error)
}

const (
	// maxStampFetches bounds the fetches under way: a second one may begin while the
	// first is travelling, later askers share the next.
	maxStampFetches   = 2
	stampFetchTimeout = 500 * time.Millisecond
)

// Stamps implements replica.Env.
func (s *Store) Stamps(r base.RangeID, n int, token uint64) {
	s.FetchStamps(n, func(first base.Timestamp, err error) {
		s.answer(r, replica.StampGrant{Token: token, First: first, Err: err})
	})
}

// FetchStamps fetches n consecutive timestamps that are above all issued before the
// call. done must not block.
func (s *Store) FetchStamps(n int, done func(first base.Timestamp, err error)) {
	b := &s.stamps
	b.mu.Lock()
	b.waiting = append(b.waiting, stampWaiter{n, done})
	b.mu.Unlock()
	b.launch()
}

func (b *stampBook) launch() {
	b.mu.Lock()
	if b.flying >= maxStampFetches || len(b.waiting) == 0 {
		b.mu.Unlock()
		return
	}
	b.flying++
	total, count := 0, 0
	for _, w := range b.waiting {
		if total+w.n > oracle.MaxBatch && count > 0 {
			break
		}
		total += w.n
		count++
	}
	batch := b.waiting[:count:count]
	b.waiting = b.waiting[count:]
	to := b.candidate()
	b.mu.Unlock()
	m := wire.Stamps{N: uint32(total)}
	b.store.Call(to, wire.MethodStamps, base.SystemRange, m.Append(nil), stampFetchTimeout, func(body []byte, err error) {
		b.fetched(to, batch, body, err)
	})
}

// candidate returns the node most likely to run the oracle. Called with mu held.
func (b *stampBook) candidate() base.NodeID {
	if b.tried%2 == 0 {
		if v := b.store.Replica(base.SystemRange); v != nil && v.Leader != 0 {
			return v.Leader
		}
	}
	nodes := b.store.opts.SystemNodes()
	switch {
	case b.hint != 0 && b.tried%2 == 0:
		return b.hint
	case len(nodes) > 0:
		return nodes[b.tried%len(nodes)]
	}
	return b.store.opts.Node
}

func (b *stampBook) fetched(from base.NodeID, batch []stampWaiter, body []byte, err error) {
	var m wire.StampsReply
	if err == nil {
		err = m.Decode(body)
	}
	b.mu.Lock()
	b.flying--
	if err != nil {
		b.tried++
		if f := fault.As(err); f.Leader != 0 {
			b.hint = f.Leader
		}
	} else {
		b.tried, b.hint = 0, from
		if ms := m.First.Millis(); ms >= b.anchorMS {
			b.anchorMS, b.anchorAt = ms, b.store.opts.Clock.Mono()
		}
	}
	b.mu.Unlock()
	next := m.First
	for _, w := range batch {
		if err != nil {
			w.done(0, err)
			continue
		}
		w.done(next, nil)
		next += base.Timestamp(w.n)
	}
	b.launch()
}

// OracleAnchor implements replica.Env.
func (s *Store) OracleAnchor() (ms int64, at clock.Mono, ok bool) {
	b := &s.stamps
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.anchorMS, b.anchorAt, b.anchorMS != 0
}

func (s *Store) handleStamps(c *wire.Call, done Done) {
	var m wire.Stamps
	if err := m.Decode(c.Body); err != nil {
		done(nil, err)
		return
	}
	q := &replica.StampRequest{N: int(m.N), Done: func(first base.Timestamp, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		reply := wire.StampsReply{First: first, N: m.N}
		done(reply.Append(nil), nil)
	}}
	if err := s.Post(base.SystemRange, q); err != nil {
		done(nil, err)
	}
}

// Samples implements replica.Env.
func (s *Store) Samples(r base.RangeID, nodes []base.NodeID) {
	asked := s.opts.Clock.Mono()
	for _, n := range nodes {
		if n == s.opts.Node {
			_ = s.Post(r, replica.ClockSample{Node: n, WallMS: s.opts.Clock.WallMS()})
			continue
		}
		s.Call(n, wire.MethodClockSample, r, nil, s.opts.Oracle.Election, func(body []byte, err error) {
			var m wire.ClockSampleReply
			if err == nil {
				err = m.Decode(body)
			}
			_ = s.Post(r, replica.ClockSample{Node: n, WallMS: m.WallMS, Failed: err != nil, Asked: asked})
		})
	}
}
