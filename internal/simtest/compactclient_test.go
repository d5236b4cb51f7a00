package simtest

import (
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
)

// compactClient raises the history horizon of the keys now and then, to a write that is a
// while old (K8).
type compactClient struct {
	w      *World
	leader leaders
	busy   bool
}

func (c *compactClient) idle() bool     { return !c.busy }
func (c *compactClient) String() string { return "the compacting client" }

func (c *compactClient) next() {
	w := c.w
	l := &w.load
	if l.stopping {
		return
	}
	again := func() { w.after(w.between(time.Second, 6*time.Second), c.next) }
	if len(l.acked) < 20 || l.acked[len(l.acked)/2].stamp <= l.asked {
		again()
		return
	}
	at := l.acked[len(l.acked)/2].stamp
	l.asked = at
	c.busy = true
	body := &command.SetHorizon{Span: keyRange.Span, Horizon: at}
	w.propose(c.leader, base.DefaultRange, command.KindSetHorizon, body, 2*time.Second, func(_ *command.Result, err error) {
		c.busy = false
		if err == nil {
			w.count.Compactions++
			w.tracef("compacted to %v", at)
			l.horizon = max(l.horizon, at)
		}
		again()
	})
}
