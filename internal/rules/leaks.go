package rules

import "slices"

// leaksAllowed are the packages whose tests don't look for goroutines left behind, each
// with its reason.
var leaksAllowed = map[string]string{
	"internal/engine":       "tests of crashes abandon an open Pebble",
	"internal/localcluster": "runs processes",
	"cmd/almanac":           "its commands end with their process",
}

// Leaks checks that the suites of floors 2 to 7 look for goroutines left behind.
func Leaks(t *Tree) []Violation {
	looks := make(map[string]bool)
	for _, f := range t.Files {
		looks[f.Dir] = looks[f.Dir] || f.Test && slices.Contains(f.Imports(), "go.uber.org/goleak")
	}
	var out []Violation
	for _, f := range t.Files {
		if floor := floorOf(f.Dir); !f.Test || looks[f.Dir] || floor < disk || floor > wiring || leaksAllowed[f.Dir] != "" {
			continue
		}
		looks[f.Dir] = true // once is enough
		out = append(out, t.at(f.AST, "the tests of %s don't look for goroutines left behind: call goleak.VerifyTestMain", f.Dir))
	}
	return out
}
