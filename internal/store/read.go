package store

import (
	"cmp"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/wire"
)

// ReadLocal evaluates reads on the local replica, at a timestamp that a barrier allowed
// and up to which it has applied; at 0 it reads the newest versions. It runs on the
// caller's goroutine: versions at or below at do not change any more.
func (s *Store) ReadLocal(r base.RangeID, reads []wire.Read, at base.Timestamp) (wire.ReadReply, error) {
	return s.ReadWithin(nil, r, reads, at)
}

// ReadWithin is ReadLocal that asks room, if it is set, before the answer grows by so
// many bytes, and ends with its error.
func (s *Store) ReadWithin(room func(bytes int) error, r base.RangeID, reads []wire.Read, at base.Timestamp) (wire.ReadReply, error) {
	v := s.Replica(r)
	if v == nil {
		return wire.ReadReply{}, rangeNotFound(r)
	}
	reply := wire.ReadReply{At: at, Horizon: v.Horizon, Results: make([]mvcc.RangeResult, len(reads))}
	if at == 0 {
		reply.At = v.LastStamp // what is applied later has a higher stamp and stays out
	}
	for i := range reads {
		if !v.Descriptor.Span.Contains(reads[i].Span) {
			return reply, fault.New(fault.WrongRange, "range %d does not own all the keys asked for", r).OnRange(r)
		}
		o := reads[i].Options
		if o.At == 0 {
			o.At = at
		}
		if o.At != 0 && o.At < v.Horizon {
			return reply, Compacted(o.At, v.Horizon)
		}
		if o.At == 0 {
			o.At = reply.At
		}
		res, err := mvcc.RangeWithin(s.opts.Engine, reads[i].Span, o, room)
		if fault.KindOf(err) == fault.Corrupt {
			s.opts.Fatal(err) // nothing that this node stores is to be trusted (S6)
		}
		if err != nil {
			return reply, err
		}
		reply.Results[i] = res
	}
	// What was read may be half of it if the range was destroyed meanwhile, or if the
	// horizon passed the read (K8).
	if v = s.Replica(r); v == nil {
		return wire.ReadReply{}, rangeNotFound(r)
	}
	for i := range reads {
		if asked := cmp.Or(reads[i].Options.At, at); asked != 0 && asked < v.Horizon {
			return wire.ReadReply{}, Compacted(asked, v.Horizon)
		}
	}
	return reply, nil
}

// Compacted is the error of a read below the history horizon.
func Compacted(at, horizon base.Timestamp) *fault.Error {
	return fault.New(fault.Compacted, "revision %d is below the history horizon %d", at, horizon).
		WithRemedy("read at a later revision")
}
