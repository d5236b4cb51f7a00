// Package rules enforces DESIGN.md's floors and the house rules on the source itself:
// who may import whom, what pure code may not touch, how big things may grow, what must
// be documented. It reads syntax alone, so it is quick and needs no build; it knows
// nothing of what the code does. Limits and lists are tightened, never loosened.
package rules

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Module is the path that the tree's own imports start with.
const Module = "github.com/almanacdb/almanac"

// File is one parsed source file.
type File struct {
	Path      string // slash-separated, from the module's root
	Dir       string // of Path: names the package
	Test      bool   // ends in _test.go
	Generated bool
	Lines     int
	AST       *ast.File
}

// Imports returns the paths that the file imports.
func (f *File) Imports() []string {
	var paths []string
	for _, s := range f.AST.Imports {
		if p, err := strconv.Unquote(s.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// Tree is the module's source, in path order.
type Tree struct {
	Files []*File
	fset  *token.FileSet
}

// Violation is one breach of a rule.
type Violation struct {
	Where string // path:line
	What  string
}

// String returns the violation as compilers write errors.
func (v Violation) String() string { return v.Where + ": " + v.What }

// Rule finds what breaks it in a tree.
type Rule struct {
	Name  string
	Check func(*Tree) []Violation
}

// All returns every rule.
func All() []Rule {
	return []Rule{
		{"floors", Floors},
		{"libraries stay at home", Libraries},
		{"purity", Purity},
		{"taken from outside", Outside},
		{"no sudden ends", Ends},
		{"no sleeping tests", Sleeps},
		{"decoders are fuzzed", Fuzzed},
		{"tests leave nothing behind", Leaks},
		{"sizes", Sizes},
		{"package comments", PackageComments},
		{"package names", PackageNames},
		{"documentation", Documentation},
	}
}

// Load parses the Go source under root; nested modules, test data and hidden
// directories are not the product's and left out.
func Load(root fs.FS) (*Tree, error) {
	t := &Tree{fset: token.NewFileSet()}
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p == "." {
				return nil
			}
			if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || isModule(root, p) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		return t.add(root, p)
	})
	return t, err
}

func isModule(root fs.FS, dir string) bool {
	_, err := fs.Stat(root, path.Join(dir, "go.mod"))
	return err == nil
}

func (t *Tree) add(root fs.FS, p string) error {
	src, err := fs.ReadFile(root, p)
	if err != nil {
		return err
	}
	parsed, err := parser.ParseFile(t.fset, p, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	t.Files = append(t.Files, &File{
		Path: p, Dir: path.Dir(p), Test: strings.HasSuffix(p, "_test.go"),
		Generated: ast.IsGenerated(parsed), Lines: strings.Count(string(src), "\n"), AST: parsed,
	})
	return nil
}

// product returns the hand-written files that are not tests.
func (t *Tree) product() []*File {
	return slices.DeleteFunc(slices.Clone(t.Files), func(f *File) bool { return f.Test || f.Generated })
}

// at makes a violation at a place in the tree.
func (t *Tree) at(n ast.Node, format string, args ...any) Violation {
	pos := t.fset.Position(n.Pos())
	return Violation{Where: fmt.Sprintf("%s:%d", pos.Filename, pos.Line), What: fmt.Sprintf(format, args...)}
}
