package store

import (
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/wire"
)

// interrupted lets something happen in the middle of a read.
type interrupted struct {
	engine.Engine
	meanwhile func()
}

// NewIter implements effect.Reader.
func (e interrupted) NewIter(lower, upper []byte) (effect.Iterator, error) {
	e.meanwhile()
	return e.Engine.NewIter(lower, upper)
}

// K8: what a read found is not answered if the horizon passed it, or the range was
// destroyed, while it read.
func TestAReadThatWasOvertakenIsNotAnswered(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.found()
	first := c.put("a", "1")
	second := c.put("a", "2")
	s := c.leader(base.DefaultRange).store
	read := func(meanwhile func()) error {
		inner := s.opts.Engine
		defer func() { s.opts.Engine = inner }()
		s.opts.Engine = interrupted{inner, meanwhile}
		_, err := s.ReadLocal(base.DefaultRange, []wire.Read{{Span: base.PointSpan(key("a"))}}, first)
		return err
	}
	if err := read(func() {}); err != nil {
		t.Fatal(err)
	}
	err := read(func() {
		body := &command.SetHorizon{Span: keys.KeyspaceSpan(base.DefaultKeyspace), Horizon: second}
		env, err := command.Encode(command.Header{Kind: command.KindSetHorizon}, body)
		if err != nil {
			t.Fatal(err)
		}
		res, err := await(t, func(done func(command.Result, error)) {
			s.Propose(base.DefaultRange, env, s.opts.Clock.Mono().Add(10*time.Second), done)
		})
		if err != nil || res.Refusal != nil {
			t.Fatalf("%v, %v", err, res.Refusal)
		}
	})
	if fault.KindOf(err) != fault.Compacted {
		t.Errorf("the horizon passed the read: %v", err)
	}
	s.mu.Lock()
	rep := s.replicas[base.DefaultRange]
	s.mu.Unlock()
	first = second
	err = read(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.replicas, base.DefaultRange)
	})
	s.mu.Lock()
	s.replicas[base.DefaultRange] = rep
	s.mu.Unlock()
	if fault.KindOf(err) != fault.RangeNotFound {
		t.Errorf("the range was destroyed: %v", err)
	}
}
