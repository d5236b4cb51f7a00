// Package invariant checks what must always hold. A check that fails panics, for going
// on would spread the damage: it is for broken invariants of the program alone, never
// for what input, peers or the disk can cause. It knows nothing of what is checked.
package invariant

import "fmt"

// Check panics unless cond holds, saying which invariant is violated. Always on, so its
// arguments must be cheap, and boxing them may allocate; on the hottest paths write
// `if !cond { invariant.Violated(...) }`. Expensive checks stand under
// `if invariant.Expensive`.
func Check(cond bool, format string, args ...any) {
	if !cond {
		Violated(format, args...)
	}
}

// Violated panics, saying which invariant is violated.
func Violated(format string, args ...any) {
	panic("invariant violated: " + fmt.Sprintf(format, args...))
}
