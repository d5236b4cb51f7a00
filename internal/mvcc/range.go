package mvcc

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
)

// Range reads the keys of a span as of o.At (0: the newest versions). The answer is
// the caller's. Count is the number of keys in the span, whatever the filters and the
// limit; values are copied only for what the answer holds. Without a sort the answer's
// size is bounded by o.Limit; a sort holds every match in memory. The caller has
// checked o.At against the history horizon and the clock. Errors are of storage, or
// fault.Corrupt.
func Range(r effect.Reader, span base.Span, o RangeOptions) (RangeResult, error) {
	return RangeWithin(r, span, o, nil)
}

// RangeWithin is Range that asks room, if it is set, before it takes a key into the
// answer: for so many bytes more. It ends with room's error.
func RangeWithin(r effect.Reader, span base.Span, o RangeOptions, room func(bytes int) error) (RangeResult, error) {
	rd := reader{r: r, room: room}
	return rd.rangeRead(span, &o)
}

// keyBytes is about what a key in an answer takes besides its bytes.
const keyBytes = 128

func (r *reader) rangeRead(span base.Span, o *RangeOptions) (RangeResult, error) {
	at := o.At
	if at == 0 {
		at = base.MaxTimestamp
	}
	sorted := o.sorted()
	values := !o.KeysOnly || sorted && o.Sort == SortValue
	var res RangeResult
	var full error
	err := r.visit(span, at, func(kv *KeyValue) bool {
		res.Count++
		switch {
		case o.CountOnly || !o.admits(kv):
		case !sorted && o.Limit > 0 && int64(len(res.KVs)) >= o.Limit:
			res.More = true
		default:
			if r.room != nil {
				if full = r.room(keyBytes + len(kv.Key) + len(kv.Value)); full != nil {
					return false
				}
			}
			res.KVs = append(res.KVs, clone(kv, values))
		}
		return true
	})
	if err == nil {
		err = full
	}
	if err != nil {
		return RangeResult{}, err
	}
	if sorted {
		o.sort(res.KVs)
		if o.Limit > 0 && int64(len(res.KVs)) > o.Limit {
			res.KVs, res.More = slices.Clone(res.KVs[:o.Limit]), true
		}
	}
	if o.KeysOnly && values {
		for i := range res.KVs {
			res.KVs[i].Value = nil
		}
	}
	return res, nil
}

// sorted says whether the answer's order differs from key order.
func (o *RangeOptions) sorted() bool {
	return !o.CountOnly && (o.Order == SortDescend || o.Order == SortAscend && o.Sort != SortKey)
}

// admits says whether a key passes the revision filters.
func (o *RangeOptions) admits(kv *KeyValue) bool {
	return (o.MinMod == 0 || kv.ModRevision >= o.MinMod) &&
		(o.MaxMod == 0 || kv.ModRevision <= o.MaxMod) &&
		(o.MinCreate == 0 || kv.CreateRevision >= o.MinCreate) &&
		(o.MaxCreate == 0 || kv.CreateRevision <= o.MaxCreate)
}

// sort orders keys by the options' target; equal ones stay in key order.
func (o *RangeOptions) sort(kvs []KeyValue) {
	slices.SortStableFunc(kvs, func(a, b KeyValue) int {
		c := 0
		switch o.Sort {
		case SortKey:
			c = bytes.Compare(a.Key, b.Key)
		case SortVersion:
			c = cmp.Compare(a.Version, b.Version)
		case SortCreate:
			c = cmp.Compare(a.CreateRevision, b.CreateRevision)
		case SortMod:
			c = cmp.Compare(a.ModRevision, b.ModRevision)
		case SortValue:
			c = bytes.Compare(a.Value, b.Value)
		}
		if o.Order == SortDescend {
			return -c
		}
		return c
	})
}
