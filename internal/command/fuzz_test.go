package command

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/fuzztest"
)

// seeds is how many drawn values each corpus starts with, of each kind.
const seeds = 5

// seed adds encodings of drawn values to a corpus.
func seed[T any](f *testing.F, draw func(*rapid.T) T, encode func(T) []byte) {
	gen := rapid.Custom(draw)
	for i := range seeds {
		f.Add(encode(gen.Example(i)))
	}
}

// wantKnownKind fails unless err says that bytes don't parse, or are of a format that is
// not known.
func wantKnownKind(t *testing.T, err error) {
	t.Helper()
	if k := fault.KindOf(err); err != nil && k != fault.Corrupt && k != fault.Unimplemented {
		t.Errorf("got %v", err)
	}
}

// Envelopes come from other nodes and from the log.
func FuzzDecode(f *testing.F) {
	for k := KindNoop; k.known(); k++ {
		seed(f, func(t *rapid.T) []byte { return mustEncode(t, drawHeader(t, k), drawBody(t, k)) }, bytes.Clone)
	}
	f.Fuzz(func(t *testing.T, env []byte) {
		var c *Command
		var err error
		fuzztest.Bounded(t, len(env), func() { c, err = Decode(env) })
		reads, writes, touched := Touches(env)
		header, headed := DecodeHeader(env)
		wantKnownKind(t, err)
		wantKnownKind(t, touched)
		wantKnownKind(t, headed)
		if err != nil {
			return
		}
		if headed != nil || header != c.Header {
			t.Errorf("the header alone is %+v, %v; in the command %+v", header, headed, c.Header)
		}
		if touched != nil || len(reads) != len(c.Reads) || len(writes) != len(c.Writes) {
			t.Errorf("touches %v, %v, %v; the command %v, %v", reads, writes, touched, c.Reads, c.Writes)
		}
		if again, err := Encode(c.Header, c.Body); err != nil || !bytes.Equal(again, env) {
			t.Errorf("%x is encoded as %x, %v", env, again, err)
		}
	})
}

// Results come from other nodes.
func FuzzDecodeResult(f *testing.F) {
	seed(f, drawResult, func(r *Result) []byte { return EncodeResult(nil, r) })
	f.Fuzz(func(t *testing.T, b []byte) {
		var r *Result
		var err error
		fuzztest.Bounded(t, len(b), func() { r, err = DecodeResult(b) })
		wantKnownKind(t, err)
		if err != nil {
			return
		}
		if again := EncodeResult(nil, r); !bytes.Equal(again, b) {
			t.Errorf("%x is encoded as %x", b, again)
		}
	})
}

// State records are read from the state store, the log store and snapshots. Unknown
// fields move to the end, so that equal records need not have equal bytes.
func FuzzDecodeState(f *testing.F) {
	seed(f, drawState, func(st *State) []byte { return EncodeState(nil, st) })
	f.Add(append(EncodeState(nil, &State{Replica: 3}), 120, 3, 'n', 'e', 'w'))
	f.Fuzz(func(t *testing.T, b []byte) {
		var st *State
		var err error
		fuzztest.Bounded(t, len(b), func() { st, err = DecodeState(b) })
		wantKnownKind(t, err)
		if err != nil {
			return
		}
		again, err := DecodeState(EncodeState(nil, st))
		if err != nil || normal(*again) != normal(*st) {
			t.Errorf("%x is %+v, then %+v, %v", b, st, again, err)
		}
	})
}

// Range descriptors stand in state records and the catalogue, and come from other nodes.
func FuzzDecodeDescriptor(f *testing.F) {
	seed(f, drawDescriptor, func(r base.RangeDescriptor) []byte { return EncodeDescriptor(nil, &r) })
	f.Fuzz(func(t *testing.T, b []byte) {
		var r *base.RangeDescriptor
		var err error
		fuzztest.Bounded(t, len(b), func() { r, err = DecodeDescriptor(b) })
		wantKnownKind(t, err)
		if err != nil {
			return
		}
		if again := EncodeDescriptor(nil, r); !bytes.Equal(again, b) {
			t.Errorf("%x is encoded as %x", b, again)
		}
	})
}
