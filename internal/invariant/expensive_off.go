//go:build !invariants

package invariant

// Expensive says whether checks that cost more than a comparison are on: build with
// the tag "invariants" for that.
const Expensive = false
