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

// The leaders are killed in turn; a node that is both counts as the system range's, and
// where it always is, there is an end.
func TestKills(t *testing.T) {
	run := func(k kills, keys, system string) kills {
		for !k.over() {
			victim, _, gaps := k.next(keys, system)
			if victim == "" {
				t.Fatal("nobody is killed")
			}
			*gaps = append(*gaps, float64(k.done))
			k.done++
		}
		return k
	}
	if k := run(kills{wanted: 3, apart: true}, "a", "b"); len(k.keys) != 3 || len(k.system) != 3 || k.keys[1] != 2 {
		t.Errorf("apart: %+v", k)
	}
	if k := run(kills{wanted: 3, apart: true}, "a", "a"); len(k.keys) != 0 || len(k.system) != 12 {
		t.Errorf("both in one: %+v", k)
	} else if f := k.figures(); len(f) != 2 || f["system max"] != 11 || f["system p50"] != 5.5 {
		t.Errorf("both in one: %v", f)
	}
	if k := run(kills{wanted: 3}, "a", ""); len(k.keys) != 3 || len(k.system) != 0 {
		t.Errorf("one leader only: %+v", k)
	}
}
