//go:build !plant

package plant

// Built says whether bugs can be switched on: build with the tag "plant" for that.
const Built = false

// On says whether a bug is switched on: never.
func On(Bug) bool { return false }

// Set does nothing.
func Set(...Bug) {}
