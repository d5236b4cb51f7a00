package rules

import (
	"path"
	"slices"
	"strings"
)

// Floors of DESIGN.md. A package imports lower floors only, and the edges below.
const (
	words = iota
	machines
	disk
	wire
	hosts
	routes
	faces
	wiring
	beside // api and client: outside the tower
	tests  // imported by tests alone
	none   // not in the table
)

var floors = map[string]int{
	"internal/base": words, "internal/fault": words, "internal/keys": words, "internal/clock": words,
	"internal/invariant": words, "internal/plant": words,

	"internal/effect": machines, "internal/raft": machines, "internal/chain": machines, "internal/command": machines,
	"internal/mvcc": machines, "internal/timeline": machines, "internal/plan": machines,

	"internal/engine": disk, "internal/logstore": disk, "internal/statestore": disk, "internal/datadir": disk,

	"internal/transport": wire, "internal/wire": wire, "internal/admission": wire,

	"internal/host": hosts, "internal/replica": hosts, "internal/store": hosts, "internal/dispatch": hosts,
	"internal/placement": hosts, "internal/oracle": hosts,

	"internal/router": routes, "internal/txn": routes,

	"internal/admin": faces, "internal/dashboard": faces, // and internal/gateway/...

	"internal/config": wiring, "internal/node": wiring, "internal/cli": wiring, "internal/demo": wiring,
	"internal/load": wiring, "internal/localcluster": wiring, "cmd/almanac": wiring,

	"internal/simtest": tests, "internal/lincheck": tests, "internal/rules": tests, "internal/e2e": tests,
	"internal/deps": tests, "internal/badinput": tests, "internal/proctest": tests, "internal/chaos": tests,
	"internal/fuzztest": tests, "internal/powercut": tests,
}

// sameFloor lists the edges within a floor.
var sameFloor = map[string][]string{
	"internal/fault": {"internal/base"},
	"internal/keys":  {"internal/base"},

	"internal/raft":     {"internal/effect"},
	"internal/chain":    {"internal/effect"},
	"internal/mvcc":     {"internal/effect"},
	"internal/timeline": {"internal/effect"},
	"internal/command":  {"internal/effect", "internal/mvcc", "internal/timeline"},

	"internal/logstore":   {"internal/engine"},
	"internal/statestore": {"internal/engine"},
	"internal/datadir":    {"internal/engine"},

	"internal/transport": {"internal/wire"},

	"internal/replica":   {"internal/host", "internal/dispatch", "internal/oracle"},
	"internal/store":     {"internal/host", "internal/replica", "internal/dispatch", "internal/oracle"},
	"internal/placement": {"internal/replica", "internal/store"},

	"internal/txn": {"internal/router"},

	"internal/config": {"internal/node"},
	"internal/cli":    {"internal/config", "internal/node", "internal/demo", "internal/load"},
	"internal/demo":   {"internal/config", "internal/node"},
	"cmd/almanac":     {"internal/config", "internal/node", "internal/localcluster", "internal/cli", "internal/demo", "internal/load"},
}

// floorOf returns a package's floor; dir is from the module's root.
func floorOf(dir string) int {
	if f, ok := floors[dir]; ok {
		return f
	}
	for root, f := range map[string]int{"internal/gateway": faces, "api": beside, "client": beside, "internal/e2e": tests, "internal/chaos": tests} {
		if dir == root || strings.HasPrefix(dir, root+"/") {
			return f
		}
	}
	return none
}

// Floors checks every import of the module's own packages. Tests may import what they
// like; what is only for tests is imported by tests alone.
func Floors(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		if f.Test {
			continue
		}
		from := floorOf(f.Dir)
		if from == none {
			out = append(out, t.at(f.AST, "package %s stands on no floor: add it to DESIGN.md and to internal/rules", f.Dir))
			continue
		}
		if from == tests {
			continue
		}
		for i, p := range f.Imports() {
			if p == "testing" || strings.HasPrefix(p, "testing/") {
				out = append(out, t.at(f.AST.Imports[i], "product code imports %q", p))
			}
			dir, own := strings.CutPrefix(p, Module+"/")
			if own && !mayImport(f.Dir, dir) {
				out = append(out, t.at(f.AST.Imports[i], "%s (%s) may not import %s (%s)",
					f.Dir, floorName(from), dir, floorName(floorOf(dir))))
			}
		}
	}
	return out
}

// mayImport says whether product code of one package may import another of the module.
func mayImport(from, to string) bool {
	a, b := floorOf(from), floorOf(to)
	switch {
	case b == tests || b == none:
		return false
	case from == to || slices.Contains(sameFloor[from], to):
		return true
	case a == beside:
		return under(to, "api") || under(from, "client") && under(to, "client")
	case under(to, "api"):
		return a >= wire
	case under(to, "client"):
		return a == wiring
	}
	return b < a
}

func under(dir, root string) bool { return dir == root || strings.HasPrefix(dir, root+"/") }

func floorName(f int) string {
	return [...]string{"words", "machines", "disk", "wire", "hosts", "routes", "faces", "wiring", "beside", "tests", "no floor"}[f]
}

// homes says which packages may use a library; the rest of the product sees it only
// through them.
var homes = map[string][]string{
	"go.etcd.io/raft/v3":                {"internal/raft"},
	"github.com/cockroachdb/pebble":     {"internal/engine"},
	"go.etcd.io/etcd":                   {"internal/gateway/etcd", "internal/load"},
	"github.com/spf13/cobra":            {"internal/cli", "cmd/almanac", "internal/config", "internal/demo"},
	"github.com/knadh/koanf":            {"internal/config"},
	"charm.land/lipgloss":               {"internal/cli", "cmd/almanac", "internal/demo"},
	"github.com/anishathalye":           {"internal/lincheck"},
	"pgregory.net/rapid":                {},
	"github.com/cockroachdb/datadriven": {},
}

// Libraries checks that floor 0 needs the standard library only, and that each library
// is used in its home only.
func Libraries(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.product() {
		if floorOf(f.Dir) == tests {
			continue
		}
		for i, p := range f.Imports() {
			if floorOf(f.Dir) == words && strings.Contains(strings.Split(p, "/")[0], ".") && !strings.HasPrefix(p, Module+"/") {
				out = append(out, t.at(f.AST.Imports[i], "floor 0 imports %q, which is not of the standard library", p))
			}
			for lib, allowed := range homes {
				if under(p, lib) && !slices.ContainsFunc(allowed, func(home string) bool { return under(f.Dir, home) }) {
					out = append(out, t.at(f.AST.Imports[i], "%s imports %q, whose home is %s", f.Dir, path.Clean(p), strings.Join(allowed, ", ")))
				}
			}
		}
	}
	return out
}
