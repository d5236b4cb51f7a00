package invariant

import "testing"

func TestCheck(t *testing.T) {
	Check(true, "never said")
	defer func() {
		if got, want := recover(), "invariant violated: applied 7 is above commit 5"; got != want {
			t.Errorf("panicked with %v, want %q", got, want)
		}
	}()
	Check(false, "applied %d is above commit %d", 7, 5)
	t.Error("a violated invariant went unnoticed")
}

// The form for the hottest paths must not allocate while the invariant holds.
func TestGuardedViolatedIsFree(t *testing.T) {
	applied, commit := uint64(1<<40), uint64(1<<41)
	if n := testing.AllocsPerRun(100, func() {
		applied++
		if applied > commit {
			Violated("applied %d is above commit %d", applied, commit)
		}
	}); n != 0 {
		t.Errorf("a check took %v allocations", n)
	}
}
