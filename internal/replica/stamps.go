package replica

import (
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
)

// StampGrant answers Env.Stamps: n timestamps from First on, or why there are none.
type StampGrant struct {
	Token uint64
	First base.Timestamp
	Err   error
}

// ask is one request for timestamps under way, with all that it is for. The first
// timestamp is the reads' and the advance's, so that the writes' are above it.
type ask struct {
	token   uint64
	reads   []*Barrier
	writes  []*Proposal
	advance bool
}

// maxAsks bounds the requests for timestamps that a range has under way.
const maxAsks = 4

// maxSaves bounds the saves that a range has under way when its writes ask for timestamps:
// those that come meanwhile share the next request, append, message and sync. More at once
// make many small batches of a load that fewer, larger ones carry with less work.
const maxSaves = 1

// askBook keeps the asks under way, oldest first.
type askBook struct {
	asks    []ask
	token   uint64
	retryAt clock.Mono // after a failure: not before then
	backoff time.Duration
	lastErr error
}

// wanted says whether something waits for a timestamp and may be asked for.
func (b *askBook) wanted(r *Replica) bool {
	return r.serving && len(b.asks) < maxAsks && b.retryAt == 0 &&
		(r.writesWanted() || len(r.reads.unstamped) > 0 || r.firing.wanted)
}

func (r *Replica) writesWanted() bool {
	return len(r.writes.unstamped) > 0 && r.saves < maxSaves
}

func (b *askBook) retryWake() clock.Mono { return b.retryAt }

// ask asks for the timestamps that this turn's requests need: they have all arrived,
// so the fetch begins after them (K3, T4).
func (r *Replica) ask(now clock.Mono) {
	b := &r.asks
	if b.retryAt != 0 && b.retryAt <= now {
		b.retryAt = 0
	}
	if !b.wanted(r) {
		return
	}
	// Above those of an earlier replica of the range on this node, whose grants may still
	// come.
	b.token = max(b.token+1, uint64(now))
	a := ask{token: b.token, reads: r.reads.unstamped, advance: r.firing.wanted}
	r.reads.unstamped, r.firing.wanted = nil, false
	if r.writesWanted() {
		a.writes, r.writes.unstamped = r.writes.unstamped, nil
	}
	if a.advance {
		r.firing.asked = true
	}
	b.asks = append(b.asks, a)
	r.env.Stamps(r.id, a.size(), a.token)
}

func (a *ask) size() int {
	n := len(a.writes)
	if len(a.reads) > 0 || a.advance {
		n++
	}
	return n
}

// take removes the ask with a token; false if it was dropped at a change of term.
func (b *askBook) take(token uint64) (ask, bool) {
	for i, a := range b.asks {
		if a.token == token {
			b.asks = append(b.asks[:i], b.asks[i+1:]...)
			return a, true
		}
	}
	return ask{}, false
}

func (r *Replica) granted(now clock.Mono, g StampGrant) {
	a, ok := r.asks.take(g.Token)
	if !ok {
		return
	}
	if a.advance {
		r.firing.asked = false
	}
	if g.Err != nil {
		r.refusedStamps(now, a, g.Err)
		return
	}
	r.asks.backoff, r.asks.lastErr = 0, nil
	next := g.First
	if len(a.reads) > 0 || a.advance {
		for _, b := range a.reads {
			b.At = next
			r.promise(now, b)
		}
		if a.advance {
			r.advance(now, next)
		}
		next++
	}
	for _, p := range a.writes {
		if r.stampable(next) {
			r.append(p, next)
		} else {
			r.restamp(p)
		}
		next++
	}
}

// refusedStamps puts an ask's requests back and tries again a little later.
func (r *Replica) refusedStamps(now clock.Mono, a ask, err error) {
	b := &r.asks
	b.lastErr = err
	b.backoff = min(max(2*b.backoff, stampRetryMin), stampRetryMax)
	b.retryAt = now.Add(b.backoff)
	r.writes.unstamped = append(a.writes, r.writes.unstamped...)
	r.reads.unstamped = append(a.reads, r.reads.unstamped...)
	r.firing.wanted = r.firing.wanted || a.advance
}

func (b *askBook) failAll(why error) {
	asks := b.asks
	b.asks, b.retryAt, b.backoff = nil, 0, 0
	for _, a := range asks {
		for _, p := range a.writes {
			p.Done(command.Result{}, why)
		}
		for _, rd := range a.reads {
			rd.Done(BarrierReply{}, why)
		}
	}
}

// expire answers requests whose time ran out while an ask was under way.
func (b *askBook) expire(now clock.Mono, r *Replica) {
	for i := range b.asks {
		a := &b.asks[i]
		a.reads = expireBarriers(a.reads, now, r.noStamp)
		keep := a.writes[:0]
		for _, p := range a.writes {
			if !expired(p.Deadline, now) {
				keep = append(keep, p)
				continue
			}
			if p.restamped {
				r.writes.behind--
			}
			p.Done(command.Result{}, r.noStamp())
		}
		clear(a.writes[len(keep):])
		a.writes = keep
	}
}
