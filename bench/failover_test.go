package main

import (
	"hash/fnv"
	"testing"
	"time"
)

// A probe's gap is the longest time between two acknowledgements since the reset.
func TestProbe(t *testing.T) {
	p, start := &probe{}, time.Unix(1000, 0)
	at := func(ms int) { p.acknowledged(start.Add(time.Duration(ms) * time.Millisecond)) }
	for _, ms := range []int{0, 10, 900} {
		at(ms)
	}
	p.reset()
	if at(2000); p.longest() != 0 {
		t.Errorf("a gap of %v before the second acknowledgement", p.longest())
	}
	for _, ms := range []int{2010, 2300, 2310} {
		at(ms)
	}
	if p.longest() != 290*time.Millisecond {
		t.Errorf("a gap of %v", p.longest())
	}
	if err := p.await(t.Context(), start.Add(2300*time.Millisecond)); err != nil {
		t.Error(err)
	}
}

func TestKeyOf(t *testing.T) {
	for partition := range 3 {
		h := fnv.New64a()
		_, _ = h.Write(keyOf(partition, 3))
		if got := h.Sum64() % 3; got != uint64(partition) {
			t.Errorf("the key of partition %d belongs to %d", partition, got)
		}
	}
}
