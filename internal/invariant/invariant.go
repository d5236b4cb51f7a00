// Package invariant checks what must always hold. A check that fails panics, for going
// on would spread the damage: it is for broken invariants of the program alone, never
// for what input, peers or the disk can cause. It knows nothing of what is checked.
package invariant

import "fmt"

// Check panics unless cond holds, saying which invariant is violated. Always on; its
// arguments must be cheap. Expensive checks stand under `if invariant.Expensive`.
func Check(cond bool, format string, args ...any) {
	if !cond {
		violated(format, args)
	}
}

// violated is apart, so that Check is inlined and costs a branch.
func violated(format string, args []any) {
	panic("invariant violated: " + fmt.Sprintf(format, args...))
}
