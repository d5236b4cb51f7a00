// Package admission decides what a node takes on: it owns the shares of the memory budget
// that grow with what clients ask for, how many calls are worked on at once, and how long
// one may wait for its turn. What finds no room is refused as busy at once, so that a node
// with too much to do goes on doing what it can. It refuses to know what a call does.
package admission

import "sync/atomic"

// Pool is a share of the memory budget, in bytes. A nil Pool has no bound. Safe for
// concurrent use.
type Pool struct {
	limit int64
	used  atomic.Int64
}

// NewPool returns a share of so many bytes.
func NewPool(limit int64) *Pool { return &Pool{limit: limit} }

// Take holds n bytes; false if they are not there. An empty share holds anything, so that
// what is larger than it is done, alone.
func (p *Pool) Take(n int) bool {
	if p == nil {
		return true
	}
	if used := p.used.Add(int64(n)); used > p.limit && used != int64(n) {
		p.used.Add(int64(-n))
		return false
	}
	return true
}

// Put gives n held bytes back.
func (p *Pool) Put(n int) {
	if p != nil {
		p.used.Add(int64(-n))
	}
}

// Limit returns the size of the share.
func (p *Pool) Limit() int64 { return p.limit }

// Used returns how much of it is held.
func (p *Pool) Used() int64 { return p.used.Load() }
