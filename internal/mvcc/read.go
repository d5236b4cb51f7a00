package mvcc

import (
	"bytes"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// reader reads keys at a timestamp. Its buffer is reused from read to read.
type reader struct {
	r    effect.Reader
	buf  []byte
	room func(bytes int) error // see RangeWithin
}

// visit calls f, in key order, with the version of each key in span that a read at a
// timestamp sees, until f returns false. What f is given is valid until it returns.
func (r *reader) visit(span base.Span, at base.Timestamp, f func(*KeyValue) bool) error {
	switch {
	case span.IsPoint():
		return r.visitPoint(span.Start, at, f)
	case len(span.End) != 0 && bytes.Compare(span.Start, span.End) >= 0:
		return nil
	}
	return r.visitSpan(span, at, f)
}

// visitPoint is visit of one key: its newest version is often known; else it takes a
// single seek that a filter can answer.
func (r *reader) visitPoint(key []byte, at base.Timestamp, f func(*KeyValue) bool) (err error) {
	// buf holds the version's key, then the first key after all versions of it.
	r.buf = keys.AppendVersion(r.buf[:0], key, at)
	n := len(r.buf)
	prefix := keys.Split(r.buf)
	r.buf = append(r.buf, r.buf[:prefix]...)
	r.buf[len(r.buf)-1]++
	seek, upper := r.buf[:n:n], r.buf[n:]

	heads, _ := r.r.(effect.Heads)
	var ticket effect.HeadTicket
	if heads != nil {
		suffix, value, t, ok := heads.Head(seek[:prefix])
		if ok && bytes.Compare(suffix, seek[prefix:]) >= 0 {
			return visitVersion(key, suffix, value, f)
		}
		ticket = t
	}
	first := seek
	if ticket != (effect.HeadTicket{}) {
		first = seek[:prefix] // the newest, to be learned
	}
	it, err := r.r.NewIter(first, upper)
	if err != nil {
		return err
	}
	defer closeIter(it, &err)
	for {
		if !it.SeekPrefixGE(first) {
			return it.Error()
		}
		k := it.Key()
		if !bytes.HasPrefix(k, seek[:prefix]) {
			return nil
		}
		value, err := it.Value()
		if err != nil {
			return err
		}
		if len(first) < n {
			heads.Learn(ticket, seek[:prefix], k[prefix:], value)
			if first = seek; bytes.Compare(k, seek) < 0 {
				continue // newer than what is asked for
			}
		}
		return visitVersion(key, k[prefix:], value, f)
	}
}

// visitVersion gives f a stored version of a key, unless it is a tombstone.
func visitVersion(key, suffix, value []byte, f func(*KeyValue) bool) error {
	ts, err := keys.VersionTimestamp(suffix)
	if err != nil {
		return fault.Wrap(fault.Corrupt, err, "a version's key does not parse")
	}
	kv := KeyValue{Key: key}
	if live, err := decodeVersion(value, ts, &kv); err != nil || !live {
		return err
	}
	f(&kv)
	return nil
}

// visitSpan is visit of a span with any number of keys.
func (r *reader) visitSpan(span base.Span, at base.Timestamp, f func(*KeyValue) bool) (err error) {
	it, err := r.r.NewIter(keys.FamilySpan(keys.FamilyVersion, span))
	if err != nil {
		return err
	}
	defer closeIter(it, &err)
	var kv KeyValue
	for ok := it.First(); ok; {
		k := it.Key()
		prefix := keys.Split(k)
		ts, err := keys.VersionTimestamp(k[prefix:])
		if err != nil {
			return fault.Wrap(fault.Corrupt, err, "a version's key does not parse")
		}
		if ts > at {
			// Lands on the version that the read sees, or on the next key.
			r.buf = keys.AppendVersionSuffix(append(r.buf[:0], k[:prefix]...), at)
			ok = it.SeekGE(r.buf)
			continue
		}
		value, err := it.Value()
		if err != nil {
			return err
		}
		live, err := decodeVersion(value, ts, &kv)
		if err != nil {
			return err
		}
		if live {
			if _, kv.Key, _, err = keys.Decode(k); err != nil {
				return fault.Wrap(fault.Corrupt, err, "a version's key does not parse")
			}
			if !f(&kv) {
				return nil
			}
		}
		ok = it.NextPrefix()
	}
	return it.Error()
}

// closeIter closes it and reports a failure to close, unless there was one before.
func closeIter(it effect.Iterator, err *error) {
	if e := it.Close(); *err == nil {
		*err = e
	}
}

// get reads one key; the value is copied only on demand, and nil otherwise. The key of
// what it returns is the caller's.
func (r *reader) get(key []byte, at base.Timestamp, value bool) (kv KeyValue, found bool, err error) {
	err = r.visitPoint(key, at, func(k *KeyValue) bool {
		kv, found = *k, true
		if value {
			kv.Value = bytes.Clone(k.Value)
		} else {
			kv.Value = nil
		}
		return true
	})
	return kv, found, err
}

// clone copies what a visit lent; without value, the value is left out.
func clone(kv *KeyValue, value bool) KeyValue {
	c := *kv
	if !value {
		c.Key, c.Value = bytes.Clone(kv.Key), nil
		return c
	}
	n := len(kv.Key)
	buf := make([]byte, n+len(kv.Value))
	copy(buf, kv.Key)
	copy(buf[n:], kv.Value)
	c.Key, c.Value = buf[:n:n], buf[n:]
	return c
}
