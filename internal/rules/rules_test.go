package rules

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// plant is a tree of files, path to source. Sources that begin with an import or a
// declaration get a package clause and a package comment.
type plant map[string]string

func (p plant) load(t *testing.T) *Tree {
	t.Helper()
	m := fstest.MapFS{}
	for path, src := range p {
		if !strings.Contains(src, "package ") && !strings.HasSuffix(path, ".mod") {
			name := path[:strings.LastIndexByte(path, '/')]
			name = name[strings.LastIndexByte(name, '/')+1:]
			src = fmt.Sprintf("// Package %s is planted.\npackage %s\n%s\n", name, name, src)
		}
		m[path] = &fstest.MapFile{Data: []byte(src)}
	}
	tree, err := Load(m)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func imports(dirs ...string) string {
	var b strings.Builder
	for _, d := range dirs {
		fmt.Fprintf(&b, "import _ %q\n", Module+"/"+d)
	}
	return b.String()
}

func lines(n int) string { return strings.Repeat("\n", n) }

// TestPlanted shows each rule a breach that it must find, and a twin that it must not.
func TestPlanted(t *testing.T) {
	for _, tc := range []struct {
		name  string
		rule  func(*Tree) []Violation
		files plant
		want  string // of exactly one violation; "" for none
	}{
		{"down", Floors, plant{"internal/router/a.go": imports("internal/replica", "internal/base")}, ""},
		{"up", Floors, plant{"internal/replica/a.go": imports("internal/router")}, "may not import internal/router (routes)"},
		{"from words up", Floors, plant{"internal/base/a.go": imports("internal/mvcc")}, "may not import internal/mvcc"},
		{"same floor", Floors, plant{"internal/router/a.go": imports("internal/txn")}, "internal/router (routes) may not import internal/txn"},
		{"same floor by the list", Floors, plant{"internal/txn/a.go": imports("internal/router")}, ""},
		{"words among themselves", Floors, plant{"internal/clock/a.go": imports("internal/base")}, "may not import internal/base"},
		{"no floor", Floors, plant{"internal/stuff/a.go": "var x int"}, "stands on no floor"},
		{"import of no floor", Floors, plant{"internal/node/a.go": imports("internal/stuff")}, "may not import internal/stuff"},
		{"test package", Floors, plant{"internal/node/a.go": imports("internal/simtest")}, "may not import internal/simtest"},
		{"test package in a test", Floors, plant{"internal/node/a_test.go": imports("internal/simtest")}, ""},
		{"tests among themselves", Floors, plant{"internal/simtest/a.go": imports("internal/lincheck", "internal/node")}, ""},
		{"package testing", Floors, plant{"internal/node/a.go": `import _ "testing"`}, `imports "testing"`},
		{"package testing in a test", Floors, plant{"internal/node/a_test.go": `import _ "testing"`}, ""},
		{"gateway", Floors, plant{"internal/gateway/etcd/a.go": imports("internal/router")}, ""},
		{"gateways apart", Floors, plant{"internal/gateway/etcd/a.go": imports("internal/gateway/grpc")}, "may not import internal/gateway/grpc"},
		{"api from below", Floors, plant{"internal/mvcc/a.go": imports("api/almanac/v1")}, "may not import api/almanac/v1"},
		{"api from a face", Floors, plant{"internal/gateway/events/a.go": imports("api/almanac/v1")}, ""},
		{"api looks inside", Floors, plant{"api/almanac/v1/a.go": imports("internal/base")}, "may not import internal/base"},
		{"client looks inside", Floors, plant{"client/a.go": imports("internal/fault")}, "may not import internal/fault"},
		{"client", Floors, plant{"client/a.go": imports("api/almanac/v1")}, ""},
		{"client from a face", Floors, plant{"internal/admin/a.go": imports("client")}, "may not import client"},
		{"client from the command", Floors, plant{"cmd/almanac/a.go": imports("client")}, ""},

		{"floor 0 and a library", Libraries, plant{"internal/base/a.go": `import _ "github.com/google/btree"`}, "not of the standard library"},
		{"floor 0 and the standard library", Libraries, plant{"internal/base/a.go": `import _ "encoding/hex"`}, ""},
		{"library away", Libraries, plant{"internal/replica/a.go": `import _ "go.etcd.io/raft/v3/raftpb"`}, "whose home is internal/raft"},
		{"library at home", Libraries, plant{"internal/raft/a.go": `import _ "go.etcd.io/raft/v3/raftpb"`}, ""},
		{"library in a test", Libraries, plant{"internal/replica/a_test.go": `import _ "pgregory.net/rapid"`}, ""},

		{"pure now", Purity, plant{"internal/mvcc/a.go": "import \"time\"\nvar x = time.Now()"}, "has no time.Now"},
		{"pure now renamed", Purity, plant{"internal/mvcc/a.go": "import t \"time\"\nvar x = t.Now"}, "has no time.Now"},
		{"pure duration", Purity, plant{"internal/mvcc/a.go": "import \"time\"\nvar x = time.Second"}, ""},
		{"pure sleep", Purity, plant{"internal/base/a.go": "import \"time\"\nfunc f() { time.Sleep(1) }"}, "has no time.Sleep"},
		{"pure go", Purity, plant{"internal/raft/a.go": "func f() { go f() }"}, "has no go statement"},
		{"pure select", Purity, plant{"internal/raft/a.go": "func f() { select {} }"}, "has no select"},
		{"pure channel", Purity, plant{"internal/raft/a.go": "type c chan int"}, "has no channel"},
		{"pure lock", Purity, plant{"internal/mvcc/a.go": `import _ "sync"`}, "has no sync"},
		{"pure atomic", Purity, plant{"internal/oracle/a.go": `import _ "sync/atomic"`}, "has no sync/atomic"},
		{"clock's lock", Purity, plant{"internal/clock/a.go": `import _ "sync"`}, ""},
		{"pure random", Purity, plant{"internal/raft/a.go": `import _ "math/rand/v2"`}, "has no math/rand/v2"},
		{"pure file", Purity, plant{"internal/keys/a.go": `import _ "os"`}, "has no os"},
		{"pure socket", Purity, plant{"internal/keys/a.go": `import _ "net/http"`}, "has no net/http"},
		{"pure context", Purity, plant{"internal/mvcc/a.go": `import _ "context"`}, "has no context"},
		{"pure test", Purity, plant{"internal/mvcc/a_test.go": `import _ "os"`}, ""},
		{"host", Purity, plant{"internal/host/a.go": "import _ \"sync\"\nfunc f() { go f() }"}, ""},

		{"own clock", Outside, plant{"internal/host/a.go": "import \"time\"\nvar x = time.Now()"}, "takes time.Now itself"},
		{"own file", Outside, plant{"internal/store/a.go": `import _ "os"`}, "takes os itself"},
		{"own randomness", Outside, plant{"internal/host/a.go": `import _ "math/rand/v2"`}, "takes math/rand/v2 itself"},
		{"the disk floor", Outside, plant{"internal/engine/a.go": `import _ "os"`}, ""},
		{"a face", Outside, plant{"internal/admin/a.go": `import _ "net"`}, ""},

		{"panic", Ends, plant{"internal/node/a.go": "func f() { panic(1) }"}, "panics"},
		{"panic in a method", Ends, plant{"internal/raft/logger.go": "type logger struct{}\nfunc (l *logger) other() { panic(1) }"}, "panics"},
		{"panic by the list", Ends, plant{"internal/raft/logger.go": "type logger struct{}\nfunc (l *logger) broken() { panic(1) }"}, ""},
		{"invariant", Ends, plant{"internal/invariant/a.go": "func f() { panic(1) }"}, ""},
		{"panic in a test", Ends, plant{"internal/node/a_test.go": "func f() { panic(1) }"}, ""},
		{"exit", Ends, plant{"internal/node/a.go": "import \"os\"\nfunc f() { os.Exit(1) }"}, "os.Exit"},
		{"exit in cmd", Ends, plant{"cmd/almanac/a.go": "import \"os\"\nfunc f() { os.Exit(1) }"}, ""},
		{"fatal", Ends, plant{"client/a.go": "import \"log\"\nfunc f() { log.Fatalf(\"\") }"}, "log.Fatalf"},

		{"sleeping test", Sleeps, plant{"internal/node/a_test.go": "import \"time\"\nfunc f() { time.Sleep(1) }"}, "sleeps"},
		{"sleeping test package", Sleeps, plant{"internal/simtest/a.go": "import \"time\"\nfunc f() { time.Sleep(1) }"}, "sleeps"},
		{"waiting test", Sleeps, plant{"internal/node/a_test.go": "import \"time\"\nfunc f() { <-time.After(1) }"}, ""},

		{"decoder", Fuzzed, plant{"internal/wire/a.go": "func decodeX(b []byte) {}"}, "decodeX decodes and has no fuzz target"},
		{"tested decoder", Fuzzed, plant{"internal/wire/a.go": "func decodeX(b []byte) {}", "internal/wire/a_test.go": "func TestX() { decodeX(nil) }"}, "no fuzz target"},
		{"fuzzed decoder", Fuzzed, plant{"internal/wire/a.go": "func decodeX(b []byte) {}", "internal/wire/a_test.go": "func FuzzX() { decodeX(nil) }"}, ""},
		{"fuzzed elsewhere", Fuzzed, plant{"internal/wire/a.go": "func ParseX(s string) {}", "internal/keys/a_test.go": "func FuzzX() { ParseX(``) }"}, "no fuzz target"},
		{"decoding method", Fuzzed, plant{"internal/wire/a.go": "type X int\nfunc (*X) Decode(b []byte) {}", "internal/wire/a_test.go": "func FuzzX() { x.Decode(nil) }"}, "(*X).Decode decodes"},
		{"fuzzed method", Fuzzed, plant{"internal/wire/a.go": "type X int\nfunc (*X) Decode(b []byte) {}", "internal/wire/a_test.go": "func FuzzX() { x.Decode(nil) }", "internal/wire/b_test.go": "var x X"}, ""},
		{"decoder of a part", Fuzzed, plant{"internal/wire/a.go": "func decodePart(d *decoder) {}"}, ""},
		{"stray parser", Fuzzed, plant{"internal/node/a.go": "import \"encoding/json\"\nfunc load(b []byte) { json.Unmarshal(b, nil) }"}, "load calls encoding/json.Unmarshal"},
		{"the decoder's parser", Fuzzed, plant{"internal/wire/a.go": "import \"encoding/binary\"\nfunc (d *decoder) number() { binary.Uvarint(nil) }"}, ""},
		{"numbers of a test package", Fuzzed, plant{"internal/simtest/a.go": "import \"encoding/json\"\nfunc load(b []byte) { json.Unmarshal(b, nil) }"}, ""},

		{"leaky suite", Leaks, plant{"internal/store/a_test.go": "var x int"}, "goroutines left behind"},
		{"suite that looks", Leaks, plant{"internal/store/a_test.go": "var x int", "internal/store/b_test.go": `import _ "go.uber.org/goleak"`}, ""},
		{"pure suite", Leaks, plant{"internal/mvcc/a_test.go": "var x int"}, ""},

		{"file", Sizes, plant{"internal/node/a.go": lines(MaxFileLines)}, "the limit is 800"},
		{"generated file", Sizes, plant{"internal/node/a.go": "// Code generated by x. DO NOT EDIT.\n\npackage node\n" + lines(MaxFileLines)}, ""},
		{"function", Sizes, plant{"internal/node/a.go": "func f() {" + lines(MaxFunctionLines) + "}"}, "f has 121 lines"},
		{"function that fits", Sizes, plant{"internal/node/a.go": "func f() {" + lines(MaxFunctionLines-1) + "}"}, ""},
		{"test function", Sizes, plant{"internal/node/a_test.go": "func f() {" + lines(MaxFunctionLines) + "}"}, ""},
		{"struct", Sizes, plant{"internal/node/a.go": "type s struct { " + strings.Repeat("a, ", MaxStructFields) + "b int }"}, "a struct of 26 fields"},
		{"interface", Sizes, plant{"internal/node/a.go": "type i interface {\n" + strings.Repeat("m()\n", MaxInterfaceMethods+1) + "}"}, "an interface of 21 methods"},

		{"no package comment", PackageComments, plant{"internal/node/a.go": "package node"}, "has no package comment"},
		{"two package comments", PackageComments, plant{"internal/node/a.go": "var x int", "internal/node/b.go": "var y int"}, "second package comment"},
		{"one package comment", PackageComments, plant{"internal/node/a.go": "var x int", "internal/node/b.go": "package node"}, ""},
		{"a comment that wanders", PackageComments, plant{"internal/node/a.go": "// This is a node.\npackage node"}, "does not begin with"},
		{"command's comment", PackageComments, plant{"cmd/almanac/main.go": "// Command almanac runs a node.\npackage main"}, ""},

		{"util", PackageNames, plant{"internal/node/a.go": "// Package util is it.\npackage util"}, "says nothing"},
		{"types", PackageNames, plant{"internal/node/types/a_test.go": "package types"}, "says nothing"},

		{"func", Documentation, plant{"internal/node/a.go": "func F() {}"}, "F has no doc comment"},
		{"type", Documentation, plant{"internal/node/a.go": "type T int"}, "T has no doc comment"},
		{"method", Documentation, plant{"internal/node/a.go": "// T is.\ntype T[X any] int\nfunc (t *T[X]) M() {}"}, "(*T).M has no doc comment"},
		{"method of an unexported type", Documentation, plant{"internal/node/a.go": "type t int\nfunc (t) M() {}"}, ""},
		{"string", Documentation, plant{"internal/node/a.go": "// T is.\ntype T int\nfunc (T) String() string { return \"\" }"}, ""},
		{"variable", Documentation, plant{"internal/node/a.go": "var V int"}, "V has no doc comment"},
		{"variable in a group", Documentation, plant{"internal/node/a.go": "var (\n\t// V is.\n\tV int\n\tW int\n)"}, "W has no doc comment"},
		{"commented group", Documentation, plant{"internal/node/a.go": "// These are.\nvar (\n\tV int\n\tW int\n)"}, ""},
		{"enumeration", Documentation, plant{"internal/node/a.go": "// T is.\ntype T int\nconst (\n\tA T = iota\n\tB\n)"}, ""},
		{"constant", Documentation, plant{"internal/node/a.go": "const A = 1"}, "A has no doc comment"},
		{"unexported", Documentation, plant{"internal/node/a.go": "func f() {}\ntype t int\nvar v int"}, ""},
	} {
		got := tc.rule(tc.files.load(t))
		switch {
		case tc.want == "" && len(got) != 0:
			t.Errorf("%s: found %v", tc.name, got)
		case tc.want != "" && (len(got) != 1 || !strings.Contains(got[0].What, tc.want)):
			t.Errorf("%s: found %v, want %q", tc.name, got, tc.want)
		}
	}
}

func TestLoadLeavesOut(t *testing.T) {
	tree := plant{
		"internal/node/a.go":          "var x int",
		"internal/node/testdata/b.go": "this is no Go",
		"tools/go.mod":                "module x",
		"tools/c.go":                  "this is no Go",
		".git/d.go":                   "this is no Go",
	}.load(t)
	if len(tree.Files) != 1 || tree.Files[0].Path != "internal/node/a.go" {
		t.Errorf("loaded %d files", len(tree.Files))
	}
}

func TestViolationSaysWhere(t *testing.T) {
	got := Ends(plant{"internal/node/a.go": "\nfunc f() { panic(1) }"}.load(t))
	if len(got) != 1 || !strings.HasPrefix(got[0].String(), "internal/node/a.go:4: ") {
		t.Errorf("%v", got)
	}
}

// The edges within a floor must stay on their floor and have no cycle.
func TestSameFloorEdges(t *testing.T) {
	var visit func(dir string, above []string)
	visit = func(dir string, above []string) {
		if slices.Contains(above, dir) {
			t.Errorf("cycle: %v", append(above, dir))
			return
		}
		for _, to := range sameFloor[dir] {
			if floorOf(to) != floorOf(dir) {
				t.Errorf("%s and %s are on different floors", dir, to)
			}
			visit(to, append(slices.Clone(above), dir))
		}
	}
	for dir := range sameFloor {
		visit(dir, nil)
	}
}
