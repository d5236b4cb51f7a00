// Package fuzztest holds what fuzz targets of decoders share: the bound on what a decoder
// may allocate. Tests only.
package fuzztest

import (
	"runtime/metrics"
	"testing"
)

// What a decoder may allocate: bytes that hardly any input need justify, and bytes for each
// byte of input. The smallest messages and operations are structs of some 200 bytes.
const (
	free    = 1 << 20
	perByte = 256
)

// Bounded calls decode and fails if it allocated more than an input of so many bytes
// justifies: a count or a length in the input was believed before it was checked.
func Bounded(t *testing.T, input int, decode func()) {
	t.Helper()
	before := allocated()
	decode()
	if n := allocated() - before; n > uint64(free+perByte*input) {
		t.Errorf("decoding %d bytes allocated %d", input, n)
	}
}

// allocated returns the bytes allocated so far; the smallest objects count a little late.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
