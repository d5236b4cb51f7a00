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
