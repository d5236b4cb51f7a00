package logstore

import (
	"reflect"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// Every value is sealed; the checksum is made to fit, so that it hides no parser.
func FuzzDecodeRecords(f *testing.F) {
	entry := appendEntry(nil, &base.Entry{Term: 300, Type: base.EntryCommand, Data: []byte("data")})
	f.Add(appendEntryKey(nil, 7, 42), entry)
	f.Add(appendRecord(nil, 7, recordHard), appendNumbers(nil, 5, 2, 1<<40))
	f.Add(appendRecord(nil, 7, recordTruncated), appendNumbers(nil, 9, 3))
	f.Add([]byte{keyNode}, []byte(`{"node":1}`))
	f.Fuzz(func(t *testing.T, key, body []byte) {
		if _, err := (&Log{r: 7}).entryIndex(key); err != nil && fault.KindOf(err) != fault.Corrupt {
			t.Errorf("key %x: %v", key, err)
		}
		if _, ok := unseal(key, body); ok && len(body) < 4 {
			t.Errorf("%x passes for sealed", body)
		}
		value := seal(key, append(sealed(nil), body...))
		e, err := decodeEntry(7, 42, key, value)
		if err == nil {
			var again base.Entry
			again, err = decodeEntry(7, 42, key, seal(key, appendEntry(sealed(nil), &e)))
			if err != nil || !reflect.DeepEqual(again, e) {
				t.Errorf("%x is %+v, then %+v, %v", body, e, again, err)
			}
		} else if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("entry: %v", err)
		}
		hs, err := decodeHard(7, key, value)
		if err == nil {
			var again effect.HardState
			again, err = decodeHard(7, key, seal(key, appendNumbers(sealed(nil), hs.Term, uint64(hs.Vote), hs.Commit)))
			if err != nil || again != hs {
				t.Errorf("%x is %+v, then %+v, %v", body, hs, again, err)
			}
		} else if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("hard state: %v", err)
		}
		var index, term uint64
		if err := decodeNumbers(7, "mark", key, value, &index, &term); err != nil && fault.KindOf(err) != fault.Corrupt {
			t.Errorf("mark: %v", err)
		}
		value[0] ^= 1
		if _, ok := unseal(key, value); ok {
			t.Error("a wrong checksum passes")
		}
	})
}
