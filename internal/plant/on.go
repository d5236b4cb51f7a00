//go:build plant

package plant

// Built says whether bugs can be switched on.
const Built = true

// enabled has a bit for each bug that is switched on in this process.
var enabled uint64

// On says whether a bug is switched on.
//
//go:noinline
func On(b Bug) bool { return enabled&(1<<b) != 0 }

// Set switches these bugs on, and all others off. Not while the product runs: nothing
// guards the set.
func Set(bugs ...Bug) {
	enabled = 0
	for _, b := range bugs {
		enabled |= 1 << b
	}
}
