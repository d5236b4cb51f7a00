package mvcc

import (
	"reflect"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// Versions are read from the state store.
func FuzzDecodeVersion(f *testing.F) {
	const ts = 1 << 40
	f.Add(tombstone, uint64(ts))
	for _, kv := range []KeyValue{
		{CreateRevision: ts, ModRevision: ts, Version: 1, Value: []byte("value")},
		{CreateRevision: 1, ModRevision: ts, Version: 1 << 62, Lease: -1},
	} {
		f.Add(appendVersion(nil, &kv), uint64(ts))
	}
	f.Fuzz(func(t *testing.T, b []byte, ts uint64) {
		var kv, again KeyValue
		live, err := decodeVersion(b, base.Timestamp(ts), &kv)
		if err != nil && fault.KindOf(err) != fault.Corrupt {
			t.Errorf("got %v", err)
		}
		if err != nil || !live {
			return
		}
		if live, err := decodeVersion(appendVersion(nil, &kv), base.Timestamp(ts), &again); !live || err != nil || !reflect.DeepEqual(again, kv) {
			t.Errorf("%x is %+v, then %+v, %v", b, kv, again, err)
		}
	})
}
