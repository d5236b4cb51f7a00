package raft

import (
	"testing"

	"github.com/almanacdb/almanac/internal/fault"
)

// What upstream can't go on with is a broken program, unless the log it read is damaged.
func TestPanicOfADamagedLogIsCorrupt(t *testing.T) {
	for want, cause := range map[fault.Kind]any{
		fault.Internal: 7,
		fault.Corrupt:  fault.New(fault.Corrupt, "entry 7 is missing"),
	} {
		func() {
			defer func() {
				if f, ok := recover().(*fault.Error); !ok || f.Kind != want || f.Range != 3 {
					t.Errorf("%v: panics with %v", cause, f)
				}
			}()
			(&logger{rangeID: 3}).Panicf("unexpected error (%v)", cause)
		}()
	}
}
