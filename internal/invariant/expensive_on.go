//go:build invariants

package invariant

// Expensive says whether checks that cost more than a comparison are on.
const Expensive = true
