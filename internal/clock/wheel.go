package clock

import (
	"math/bits"
	"time"
)

const (
	wheelBits   = 6
	wheelSlots  = 1 << wheelBits
	wheelLevels = 11 // × 6 bits cover every tick that a Mono can name
)

// Handle names an item in a Wheel until it is handed out or cancelled. 0 names none.
type Handle uint64

// Wheel holds items until their deadlines: a hierarchical timing wheel. Add and Cancel
// take constant time; an item moves at most once per level on its way out, ten times
// in the worst case. Memory grows with the most items held at once, is reused, and
// never shrinks. Not safe for concurrent use.
//
// An item stands at the level of the highest digit, base 64, in which its tick and the
// present tick differ, in the slot of its tick's digit there. So all items of a lower
// level are due before all of a higher one, and within a level the lowest slot is first.
type Wheel[T any] struct {
	tick   time.Duration
	now    uint64 // present tick; nothing before it is held
	firing bool
	levels [wheelLevels]wheelLevel
	nodes  []wheelNode[T] // 0 is unused, so that index 0 means none
	free   uint32         // head of the unused nodes, linked by next
	count  int
}

type wheelLevel struct {
	used  uint64 // bit i: slot i holds items
	slots [wheelSlots]wheelList
}

type wheelList struct{ first, last uint32 }

type wheelNode[T any] struct {
	due        uint64 // tick
	prev, next uint32
	generation uint32 // odd while held
	level      uint8
	slot       uint8
	item       T
}

// NewWheel returns an empty wheel that starts at now and tells deadlines apart to
// within tick, which must be positive.
func NewWheel[T any](tick time.Duration, now Mono) *Wheel[T] {
	return &Wheel[T]{
		tick: tick, now: uint64(max(0, now)) / uint64(tick),
		nodes: make([]wheelNode[T], 1),
	}
}

// Len returns how many items are held.
func (w *Wheel[T]) Len() int { return w.count }

// Add holds item until deadline, rounded up to a whole tick. A deadline already past
// is handed out by the next Advance; if added from within Advance, a tick later.
func (w *Wheel[T]) Add(deadline Mono, item T) Handle {
	due := max(w.ticksUp(deadline), w.now)
	if w.firing && due == w.now {
		due++
	}
	i := w.free
	if i != 0 {
		w.free = w.nodes[i].next
	} else {
		i = uint32(len(w.nodes))
		w.nodes = append(w.nodes, wheelNode[T]{})
	}
	n := &w.nodes[i]
	n.due, n.item = due, item
	n.generation++
	w.count++
	w.link(i)
	return Handle(n.generation)<<32 | Handle(i)
}

// Cancel lets go of an item. It returns false if the item is no longer held: handed
// out or cancelled before.
func (w *Wheel[T]) Cancel(h Handle) bool {
	i := uint32(h)
	if i == 0 || int(i) >= len(w.nodes) || w.nodes[i].generation != uint32(h>>32) {
		return false
	}
	w.unlink(i)
	w.release(i)
	return true
}

// Advance moves to now and hands out every item whose deadline has passed, never one
// whose deadline has not, in the order of their ticks and, within a tick, of their
// being added. Fire may call Add and Cancel, not Advance.
func (w *Wheel[T]) Advance(now Mono, fire func(item T)) {
	target := uint64(max(0, now)) / uint64(w.tick)
	for {
		level, slot, at, ok := w.next()
		if !ok || at > target {
			break
		}
		w.now = at
		if level > 0 {
			w.cascade(level, slot)
		} else {
			w.fire(slot, fire)
		}
	}
	w.now = max(w.now, target)
}

// NextDeadline returns when to call Advance next: never after the earliest deadline
// rounded up to a tick, though maybe before it, by less than the distance to it, when
// only sorting of far deadlines is due. False if nothing is held.
func (w *Wheel[T]) NextDeadline() (Mono, bool) {
	_, _, at, ok := w.next()
	if !ok {
		return 0, false
	}
	const last = uint64(1<<63 - 1)
	if at > last/uint64(w.tick) {
		return Mono(last), true
	}
	return Mono(at * uint64(w.tick)), true
}

// ticksUp returns the first tick at or after m.
func (w *Wheel[T]) ticksUp(m Mono) uint64 {
	if m <= 0 {
		return 0
	}
	t := uint64(m) / uint64(w.tick)
	if uint64(m)%uint64(w.tick) != 0 {
		t++
	}
	return t
}

// next returns the first used slot and the tick at which it begins.
func (w *Wheel[T]) next() (level, slot int, at uint64, ok bool) {
	for level := range w.levels {
		used := w.levels[level].used
		if used == 0 {
			continue
		}
		slot := bits.TrailingZeros64(used)
		shift := level * wheelBits
		at := (w.now>>shift&^(wheelSlots-1) | uint64(slot)) << shift
		return level, slot, at, true
	}
	return 0, 0, 0, false
}

// cascade spreads a slot that begins now over the levels below.
func (w *Wheel[T]) cascade(level, slot int) {
	l := &w.levels[level]
	i := l.slots[slot].first
	l.slots[slot] = wheelList{}
	l.used &^= 1 << slot
	for i != 0 {
		next := w.nodes[i].next
		w.link(i)
		i = next
	}
}

// fire hands out a slot of the lowest level. The list stays in place, so that fire may
// cancel an item that is still to come.
func (w *Wheel[T]) fire(slot int, fire func(item T)) {
	w.firing = true
	defer func() { w.firing = false }()
	list := &w.levels[0].slots[slot]
	for list.first != 0 {
		i := list.first
		item := w.nodes[i].item
		w.unlink(i)
		w.release(i)
		fire(item)
	}
}

func (w *Wheel[T]) link(i uint32) {
	n := &w.nodes[i]
	level := 0
	if diff := n.due ^ w.now; diff != 0 {
		level = (bits.Len64(diff) - 1) / wheelBits
	}
	slot := int(n.due >> (level * wheelBits) & (wheelSlots - 1))
	l := &w.levels[level]
	list := &l.slots[slot]
	n.level, n.slot = uint8(level), uint8(slot)
	n.prev, n.next = list.last, 0
	if list.last != 0 {
		w.nodes[list.last].next = i
	} else {
		list.first = i
		l.used |= 1 << slot
	}
	list.last = i
}

func (w *Wheel[T]) unlink(i uint32) {
	n := &w.nodes[i]
	l := &w.levels[n.level]
	list := &l.slots[n.slot]
	if n.prev != 0 {
		w.nodes[n.prev].next = n.next
	} else {
		list.first = n.next
	}
	if n.next != 0 {
		w.nodes[n.next].prev = n.prev
	} else {
		list.last = n.prev
	}
	if list.first == 0 {
		l.used &^= 1 << n.slot
	}
}

// release puts an unlinked node aside for reuse; its handles name nothing any more.
func (w *Wheel[T]) release(i uint32) {
	var none T
	n := &w.nodes[i]
	n.item = none
	n.generation++
	n.next, w.free = w.free, i
	w.count--
}
