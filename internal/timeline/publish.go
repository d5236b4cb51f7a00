package timeline

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// Limits of a published event. They bound keys and what one event can make a reader
// allocate; the size of payloads is bounded by the size of a command.
const (
	MaxMessageID   = 1024 // bytes
	MaxOrderingKey = 1024 // bytes
	MaxHeaders     = 1024 // headers of one event
)

// MaxDueMS is the last due time that a range's clock can reach, in milliseconds since
// 1970.
var MaxDueMS = base.MaxTimestamp.Millis()

// ApplyPublish adds the events of p to their partitions and answers each, in order.
// clock is the range's clock after this command raised it; stamp becomes the events'
// revision. An event that cannot be published refuses the whole command (Invalid,
// TooLarge) before anything is written; every other error is fatal.
func ApplyPublish(v effect.View, clock, stamp base.Timestamp, p *Publish) ([]Published, error) {
	n := 0
	for i := range p.Batches {
		n += len(p.Batches[i].Events)
		for j := range p.Batches[i].Events {
			if err := validateEvent(clock, &p.Batches[i].Events[j]); err != nil {
				return nil, err
			}
		}
	}
	a := publisher{v: v, clockMS: clock.Millis(), stamp: stamp, answers: make([]Published, 0, n)}
	for i := range p.Batches {
		if err := a.batch(&p.Batches[i]); err != nil {
			return nil, fatal(err)
		}
	}
	return a.answers, nil
}

func validateEvent(clock base.Timestamp, e *NewEvent) error {
	if len(e.MessageID) > MaxMessageID {
		return fault.New(fault.TooLarge, "message id of %d bytes is above the limit of %d", len(e.MessageID), MaxMessageID)
	}
	if len(e.OrderingKey) > MaxOrderingKey {
		return fault.New(fault.TooLarge, "ordering key of %d bytes is above the limit of %d", len(e.OrderingKey), MaxOrderingKey)
	}
	if len(e.Headers) > MaxHeaders {
		return fault.New(fault.TooLarge, "%d headers are above the limit of %d", len(e.Headers), MaxHeaders)
	}
	// Compared so that no sum can overflow.
	if e.DueMS > MaxDueMS || e.DueMS == 0 && e.DelayMS > MaxDueMS-clock.Millis() {
		return fault.New(fault.Invalid, "due time is after the end of time, %d ms since 1970", MaxDueMS).
			WithRemedy("use milliseconds, and check that seconds or nanoseconds were not passed instead")
	}
	return nil
}

// dueMS returns when an event falls due: as asked for, but never before the clock, so
// that nothing is inserted below it (E3). The first millisecond is the earliest, because
// the zero position stands before every event.
func dueMS(clockMS int64, e *NewEvent) int64 {
	switch {
	case e.DueMS != 0:
		return max(e.DueMS, clockMS, 1)
	case e.DelayMS > 0:
		return max(clockMS+e.DelayMS, 1)
	}
	return max(clockMS, 1)
}

// publisher carries out one publish command.
type publisher struct {
	v       effect.View
	clockMS int64
	stamp   base.Timestamp
	answers []Published
	value   []byte // scratch
}

func (a *publisher) batch(b *Batch) error {
	p := newPartition(b.Partition)
	meta, _, err := p.readMeta(a.v)
	if err != nil {
		return err
	}
	first := meta.NextSeq
	for i := range b.Events {
		if err := a.event(p, &meta, &b.Events[i]); err != nil {
			return err
		}
	}
	if meta.NextSeq == first {
		return nil
	}
	a.value = appendMeta(a.value[:0], &meta)
	return a.v.Set(p.metaKey(), a.value)
}

func (a *publisher) event(p *partition, meta *Stats, e *NewEvent) error {
	pos := base.Position{DueMS: dueMS(a.clockMS, e), Seq: meta.NextSeq}
	if e.MessageID != "" {
		value, ok, err := a.v.Get(p.messageIDKey(e.MessageID))
		if err != nil {
			return err
		}
		if ok {
			earlier, err := decodeIndex(p.id, value)
			if err != nil {
				return err
			}
			if earlier.DueMS > a.clockMS {
				a.answers = append(a.answers, Published{Position: earlier, Duplicate: true})
				return nil
			}
		}
		a.value = appendIndex(a.value[:0], pos)
		if err := a.v.Set(p.messageIDKey(e.MessageID), a.value); err != nil {
			return err
		}
	}
	a.value = appendEvent(a.value[:0], e, a.stamp)
	if err := a.v.Set(p.eventKey(pos), a.value); err != nil {
		return err
	}
	meta.NextSeq++
	meta.Events++
	meta.Bytes += uint64(len(a.value))
	a.answers = append(a.answers, Published{Position: pos})
	return nil
}
