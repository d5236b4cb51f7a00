package rules

import (
	"go/ast"
	"slices"
	"strconv"
	"strings"
)

// pure says whether a package is a machine: floors 0 and 1, and the oracle.
func pure(dir string) bool {
	f := floorOf(dir)
	return f == words || f == machines || dir == "internal/oracle"
}

// impureImports are what no machine imports.
var impureImports = []string{
	"os", "net", "io/ioutil", "syscall", "context", "sync", "math/rand", "math/rand/v2", "crypto/rand", "log", "runtime",
}

// impureCalls are what no machine calls; the imports themselves are of use.
var impureCalls = map[string][]string{
	"time": {"Now", "Sleep", "Since", "Until", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
}

// impureAllowed are the exceptions, each with its reason.
var impureAllowed = map[string]string{
	"internal/clock sync":       "the manual clock is shared by all of a test's nodes",
	"internal/clock time.Now":   "the system's clock is where time comes from",
	"internal/clock time.Since": "the system's clock is where time comes from",
	"internal/raft log/slog":    "upstream's log goes to a logger that the host gives; nothing comes back",
	"internal/raft context":     "slog asks for one",
}

// Purity checks that floors 0 and 1 and the oracle have no goroutine, lock, wall clock,
// randomness, file, socket or context.
func Purity(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.product() {
		if !pure(f.Dir) {
			continue
		}
		report := func(n ast.Node, what string) {
			if impureAllowed[f.Dir+" "+what] == "" {
				out = append(out, t.at(n, "%s is pure and has no %s", f.Dir, what))
			}
		}
		for i, p := range f.Imports() {
			if slices.ContainsFunc(impureImports, func(banned string) bool { return under(p, banned) }) {
				report(f.AST.Imports[i], p)
			}
		}
		names := packageNames(f)
		ast.Inspect(f.AST, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				report(n, "go statement")
			case *ast.SelectStmt:
				report(n, "select statement")
			case *ast.ChanType:
				report(n, "channel")
			case *ast.SelectorExpr:
				if p, name := selected(names, n); slices.Contains(impureCalls[p], name) {
					report(n, p+"."+name)
				}
			}
			return true
		})
	}
	return out
}

// outsideImports are what floors 2 to 5 take from outside: disk, network, randomness.
var outsideImports = []string{"os", "net", "syscall", "math/rand", "math/rand/v2", "crypto/rand", "log"}

// outsideCalls are what those floors take time from instead of a clock. Timers that
// merely wake a goroutine are their own business, and so is what is left until a
// context's deadline.
var outsideCalls = map[string][]string{"time": {"Now", "Since", "Sleep"}}

// outsideAllowed are the exceptions, each with its reason.
var outsideAllowed = map[string]string{
	"internal/transport net":          "the gRPC transport opens sockets",
	"internal/transport math/rand/v2": "the default of the randomness that it is given",
	"internal/transport time.Now":     "sockets live in real time",
	"internal/transport time.Since":   "sockets live in real time",
	"internal/router math/rand/v2":    "jitter between attempts",
	"internal/statestore os":          "the disk floor opens files",
	"internal/engine os":              "the disk floor opens files",
	"internal/engine syscall":         "to know a full disk by its error",
	"internal/logstore os":            "the disk floor opens files",
	"internal/datadir os":             "the disk floor opens files",
	"internal/datadir syscall":        "the data directory is locked",
}

// Outside checks that floors 2 to 5 take clock, randomness, network and disk from
// outside, so that a whole cluster runs in one test from one seed.
func Outside(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.product() {
		if floor := floorOf(f.Dir); floor < disk || floor > routes || pure(f.Dir) {
			continue
		}
		report := func(n ast.Node, what string) {
			if outsideAllowed[f.Dir+" "+what] == "" {
				out = append(out, t.at(n, "%s takes %s itself instead of from outside", f.Dir, what))
			}
		}
		for i, p := range f.Imports() {
			if slices.Contains(outsideImports, p) {
				report(f.AST.Imports[i], p)
			}
		}
		names := packageNames(f)
		ast.Inspect(f.AST, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if p, name := selected(names, sel); slices.Contains(outsideCalls[p], name) {
					report(n, p+"."+name)
				}
			}
			return true
		})
	}
	return out
}

// panicsAllowed lists every panic outside package invariant, with its reason, by file
// and function.
var panicsAllowed = map[string]string{
	"internal/raft/logger.go (*logger).broken":          "upstream reports its broken invariants through its logger and relies on not returning; the fault names the range",
	"internal/raft/machine.go (*Machine).broken":        "a broken invariant, as a fault that names the range",
	"internal/raft/step.go (*Machine).forgot":           "the disk lost what the replica acknowledged; the node is rebuilt",
	"internal/placement/records.go Encode":              "a broken invariant: a record of ours that does not encode",
	"internal/replica/apply.go (*Replica).apply":        "a broken invariant: a gap in the log",
	"internal/replica/events.go (*Replica).advance":     "a broken invariant: a command of ours that does not encode",
	"internal/replica/oraclerole.go (*oracleRole).step": "as advance",
	"internal/replica/replica.go (*Replica).Deliver":    "a broken invariant: an item of unknown type",
	"internal/wire/frame.go AppendMessage":              "a broken invariant: a message of ours with nothing in it",
}

// endings end the process from afar.
var endings = map[string][]string{
	"os":  {"Exit"},
	"log": {"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln"},
}

// Ends checks that nothing outside cmd/ ends the process, and that only broken
// invariants panic.
func Ends(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.product() {
		if under(f.Dir, "cmd") || under(f.Dir, "internal/invariant") {
			continue
		}
		names := packageNames(f)
		for _, decl := range f.AST.Decls {
			where := f.Path + " " + funcName(decl)
			ast.Inspect(decl, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				switch fun := call.Fun.(type) {
				case *ast.Ident:
					if fun.Name == "panic" && panicsAllowed[where] == "" {
						out = append(out, t.at(n, "panics: return an error, or use internal/invariant"))
					}
				case *ast.SelectorExpr:
					if p, name := selected(names, fun); slices.Contains(endings[p], name) {
						out = append(out, t.at(n, "calls %s.%s: only cmd/ ends the process", p, name))
					}
				}
				return true
			})
		}
	}
	return out
}

// sleepsAllowed lists the tests that wait for real time, with the reason.
var sleepsAllowed = map[string]string{}

// Sleeps checks that no test sleeps: a test waits for what it waits for.
func Sleeps(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		if !f.Test && floorOf(f.Dir) != tests || sleepsAllowed[f.Path] != "" {
			continue
		}
		names := packageNames(f)
		ast.Inspect(f.AST, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if p, name := selected(names, sel); p == "time" && name == "Sleep" {
					out = append(out, t.at(n, "a test sleeps: wait for the event itself"))
				}
			}
			return true
		})
	}
	return out
}

// packageNames maps the names that a file knows packages by to their import paths.
func packageNames(f *File) map[string]string {
	names := make(map[string]string)
	for _, s := range f.AST.Imports {
		p, err := strconv.Unquote(s.Path.Value)
		if err != nil {
			continue
		}
		name := p[strings.LastIndexByte(p, '/')+1:]
		if s.Name != nil {
			name = s.Name.Name
		}
		names[name] = p
	}
	return names
}

// selected returns package and name of a selector on a package.
func selected(names map[string]string, sel *ast.SelectorExpr) (pkg, name string) {
	if x, ok := sel.X.(*ast.Ident); ok {
		return names[x.Name], sel.Sel.Name
	}
	return "", ""
}

// funcName names a function or method declaration, as in "(*T).M"; else "".
func funcName(decl ast.Decl) string {
	fn, ok := decl.(*ast.FuncDecl)
	if !ok {
		return ""
	}
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return fn.Name.Name
	}
	switch recv := fn.Recv.List[0].Type.(type) {
	case *ast.StarExpr:
		return "(*" + typeName(recv.X) + ")." + fn.Name.Name
	default:
		return typeName(recv) + "." + fn.Name.Name
	}
}

func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.IndexListExpr:
		return typeName(e.X)
	case *ast.StarExpr:
		return typeName(e.X)
	}
	return ""
}
