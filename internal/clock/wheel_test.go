package clock

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const tick = time.Millisecond

// model is the wheel's reference: a list of items in the order of being added.
type model struct {
	now   uint64
	items []modelItem
}

type modelItem struct {
	id     int
	due    uint64 // tick
	handle Handle
}

func (m *model) add(id int, deadline Mono, h Handle) {
	due := uint64(max(0, deadline)+Mono(tick)-1) / uint64(tick)
	m.items = append(m.items, modelItem{id: id, due: max(due, m.now), handle: h})
}

func (m *model) advance(now Mono) (fired []int) {
	m.now = max(m.now, uint64(now)/uint64(tick))
	slices.SortStableFunc(m.items, func(a, b modelItem) int { return int(int64(a.due) - int64(b.due)) })
	for len(m.items) > 0 && m.items[0].due <= m.now {
		fired = append(fired, m.items[0].id)
		m.items = m.items[1:]
	}
	return fired
}

// Deadlines at every distance, so that all levels are used.
func distances() *rapid.Generator[time.Duration] {
	return rapid.Custom(func(t *rapid.T) time.Duration {
		n := rapid.Int64Range(1, 1<<rapid.IntRange(1, 55).Draw(t, "bits")).Draw(t, "distance")
		return time.Duration(n)
	})
}

func TestWheelAgainstSortedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := Mono(rapid.Int64Range(0, 1<<40).Draw(t, "start"))
		w := NewWheel[int](tick, now)
		m := model{now: uint64(now) / uint64(tick)}
		var gone []Handle
		next := 0
		advance := func(to Mono) {
			now = to
			held := map[int]Handle{}
			for _, it := range m.items {
				held[it.id] = it.handle
			}
			var got []int
			w.Advance(now, func(id int) { got = append(got, id); gone = append(gone, held[id]) })
			if want := m.advance(now); !slices.Equal(got, want) {
				t.Fatalf("at %d handed out %v, want %v", now, got, want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				at := now.Add(distances().Draw(t, "in"))
				m.add(next, at, w.Add(at, next))
				next++
			},
			"add past": func(t *rapid.T) {
				at := Mono(rapid.Int64Range(-1, int64(now)).Draw(t, "at"))
				m.add(next, at, w.Add(at, next))
				next++
			},
			"cancel": func(t *rapid.T) {
				if len(m.items) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(m.items)-1).Draw(t, "which")
				if !w.Cancel(m.items[i].handle) {
					t.Fatalf("a held item could not be cancelled")
				}
				gone = append(gone, m.items[i].handle)
				m.items = slices.Delete(m.items, i, i+1)
			},
			"cancel gone": func(t *rapid.T) {
				if len(gone) == 0 {
					t.Skip()
				}
				if w.Cancel(rapid.SampledFrom(gone).Draw(t, "handle")) {
					t.Fatal("an item was cancelled that is no longer held")
				}
			},
			"advance":      func(t *rapid.T) { advance(now.Add(distances().Draw(t, "by"))) },
			"advance none": func(t *rapid.T) { advance(now) },
			"advance to next": func(t *rapid.T) {
				if at, ok := w.NextDeadline(); ok {
					advance(max(now, at))
				}
			},
			"": func(t *rapid.T) {
				if w.Len() != len(m.items) {
					t.Fatalf("holds %d, want %d", w.Len(), len(m.items))
				}
				at, ok := w.NextDeadline()
				if ok != (len(m.items) > 0) {
					t.Fatalf("NextDeadline says %v with %d held", ok, len(m.items))
				}
				for _, it := range m.items {
					if uint64(at) > it.due*uint64(tick) {
						t.Fatalf("NextDeadline %d is after the deadline %d", at, it.due*uint64(tick))
					}
				}
			},
		})
	})
}

// Following NextDeadline alone reaches any deadline exactly, within one call per level.
func TestWheelNextDeadlineConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := Mono(rapid.Int64Range(0, 1<<50).Draw(t, "start"))
		w := NewWheel[int](tick, start)
		at := start.Add(distances().Draw(t, "in"))
		w.Add(at, 1)
		var firedAt Mono
		for calls := 0; w.Len() > 0; calls++ {
			if calls > wheelLevels {
				t.Fatalf("still held after %d calls", calls)
			}
			next, _ := w.NextDeadline()
			w.Advance(next, func(int) { firedAt = next })
		}
		if late := firedAt.Sub(at); late < 0 || late >= tick {
			t.Fatalf("handed out %v after the deadline", late)
		}
	})
}

func TestWheelNeverEarly(t *testing.T) {
	w := NewWheel[string](tick, 0)
	w.Add(Mono(1500*time.Microsecond), "a")
	fired := 0
	count := func(string) { fired++ }
	w.Advance(Mono(1999*time.Microsecond), count)
	if fired != 0 {
		t.Fatal("handed out within the tick before its deadline's end")
	}
	w.Advance(Mono(2*time.Millisecond), count)
	if fired != 1 {
		t.Fatal("not handed out at the end of its deadline's tick")
	}
}

func TestWheelChangesFromWithinAdvance(t *testing.T) {
	w := NewWheel[int](tick, 0)
	var got []int
	var third Handle
	at := func(ms int) Mono { return Mono(ms) * Mono(tick) }
	fire := func(id int) {
		got = append(got, id)
		switch id {
		case 1:
			w.Cancel(third)  // same tick, not yet handed out
			w.Add(0, 4)      // already past: a tick later
			w.Add(at(70), 5) // ahead, within this Advance
			w.Add(at(99999), 6)
		case 4:
			w.Add(at(5), 7) // past again: must not keep Advance here for ever
		}
	}
	w.Add(at(5), 1)
	w.Add(at(5), 2)
	third = w.Add(at(5), 3)
	w.Advance(at(100), fire)
	if want := []int{1, 2, 4, 7, 5}; !slices.Equal(got, want) {
		t.Fatalf("handed out %v, want %v", got, want)
	}
	if w.Len() != 1 {
		t.Fatalf("holds %d, want the far one alone", w.Len())
	}
}

// An item that re-arms itself at once is handed out once per tick, not for ever.
func TestWheelSelfRearming(t *testing.T) {
	w := NewWheel[int](tick, 0)
	n := 0
	w.Add(0, 0)
	w.Advance(Mono(10*tick), func(int) { n++; w.Add(0, 0) })
	if n != 11 || w.Len() != 1 {
		t.Fatalf("handed out %d times in 11 ticks, holds %d", n, w.Len())
	}
}

func TestWheelFarthestDeadline(t *testing.T) {
	w := NewWheel[int](1, 0)
	w.Add(1<<63-1, 1)
	w.Advance(1<<63-2, func(int) { t.Fatal("early") })
	fired := false
	w.Advance(1<<63-1, func(int) { fired = true })
	if !fired || w.Len() != 0 {
		t.Fatal("the last instant's item was not handed out")
	}
}

func TestWheelReusesMemory(t *testing.T) {
	w := NewWheel[*int](tick, 0)
	now := Mono(0)
	item := new(int)
	turn := func() {
		for i := range 64 {
			h := w.Add(now.Add(time.Duration(i*i)*tick), item)
			if i%3 == 0 {
				w.Cancel(h)
			}
		}
		now = now.Add(5 * time.Second)
		w.Advance(now, func(*int) {})
	}
	turn()
	if n := testing.AllocsPerRun(20, turn); n != 0 {
		t.Fatalf("%v allocations a turn once warm", n)
	}
	if len(w.nodes) > 65 {
		t.Fatalf("%d nodes for at most 64 items", len(w.nodes))
	}
}

func TestManualMovesOnlyWhenTold(t *testing.T) {
	c := NewManual(1000)
	m := c.Mono()
	c.StepWall(-300 * time.Millisecond)
	if c.Mono() != m || c.WallMS() != 700 {
		t.Fatalf("stepping wall time gave %d, %d", c.Mono(), c.WallMS())
	}
	c.Advance(50 * time.Millisecond)
	if c.Mono().Sub(m) != 50*time.Millisecond || c.WallMS() != 750 {
		t.Fatalf("advancing gave %d, %d", c.Mono(), c.WallMS())
	}
}

func TestSystemMonoIsNeverZero(t *testing.T) {
	if NewSystem().Mono() < Mono(time.Second) {
		t.Fatal("monotonic time began near 0, which means never")
	}
}

func BenchmarkWheelAddCancel(b *testing.B) {
	w := NewWheel[int](tick, 0)
	for i := range b.N {
		w.Cancel(w.Add(Mono(i)*Mono(tick), i))
	}
}

func BenchmarkWheelAddAdvance(b *testing.B) {
	w := NewWheel[int](tick, 0)
	now := Mono(0)
	for i := range b.N {
		w.Add(now.Add(30*time.Second), i)
		now = now.Add(10 * time.Microsecond)
		if i%100 == 0 {
			w.Advance(now, func(int) {})
		}
	}
}
