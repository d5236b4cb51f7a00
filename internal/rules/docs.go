package rules

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// PackageComments checks that each package has one package comment: what it owns, what
// it refuses to know.
func PackageComments(t *Tree) []Violation {
	var out []Violation
	commented := make(map[string]*File)
	files := t.product()
	for _, f := range files {
		if f.AST.Doc == nil {
			continue
		}
		if first := commented[f.Dir]; first != nil {
			out = append(out, t.at(f.AST, "package %s has a second package comment, the first is in %s", f.Dir, path.Base(first.Path)))
			continue
		}
		commented[f.Dir] = f
		want := "Package " + f.AST.Name.Name + " "
		if f.AST.Name.Name != "main" && !strings.HasPrefix(f.AST.Doc.Text(), want) {
			out = append(out, t.at(f.AST, "the package comment does not begin with %q", want))
		}
	}
	seen := make(map[string]bool)
	for _, f := range files {
		if commented[f.Dir] == nil && !seen[f.Dir] {
			seen[f.Dir] = true
			out = append(out, t.at(f.AST, "package %s has no package comment", f.Dir))
		}
	}
	return out
}

var bannedNames = []string{"util", "utils", "common", "types", "impl", "helpers", "misc", "shared"}

// PackageNames checks that packages are named for what they own.
func PackageNames(t *Tree) []Violation {
	var out []Violation
	seen := make(map[string]bool)
	for _, f := range t.Files {
		if slices.Contains(bannedNames, f.AST.Name.Name) && !seen[f.Dir] {
			seen[f.Dir] = true
			out = append(out, t.at(f.AST, "package name %q says nothing", f.AST.Name.Name))
		}
	}
	return out
}

// Documentation checks that every exported name of the product has a doc comment. A
// comment on a group covers the group; constants of a named type are covered by the
// type's; methods of unexported types need none, nor do those that every Go programmer
// knows.
func Documentation(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.product() {
		if floorOf(f.Dir) == tests {
			continue
		}
		for _, decl := range f.AST.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && !wellKnown(d) {
					out = append(out, t.at(d, "%s has no doc comment", funcName(d)))
				}
			case *ast.GenDecl:
				out = append(out, t.undocumented(d)...)
			}
		}
	}
	return out
}

func (t *Tree) undocumented(d *ast.GenDecl) []Violation {
	if d.Doc != nil || d.Tok == token.IMPORT || enumeration(d) {
		return nil
	}
	var out []Violation
	for _, spec := range d.Specs {
		var names []*ast.Ident
		var documented bool
		switch s := spec.(type) {
		case *ast.TypeSpec:
			names, documented = []*ast.Ident{s.Name}, s.Doc != nil || s.Comment != nil
		case *ast.ValueSpec:
			names, documented = s.Names, s.Doc != nil || s.Comment != nil
		}
		for _, n := range names {
			if n.IsExported() && !documented {
				out = append(out, t.at(n, "%s has no doc comment", n.Name))
			}
		}
	}
	return out
}

// enumeration says whether d lists constants of a named type.
func enumeration(d *ast.GenDecl) bool {
	if d.Tok != token.CONST || len(d.Specs) == 0 {
		return false
	}
	first, ok := d.Specs[0].(*ast.ValueSpec)
	return ok && first.Type != nil && ast.IsExported(typeName(first.Type))
}

func exportedReceiver(fn *ast.FuncDecl) bool {
	return fn.Recv == nil || len(fn.Recv.List) == 0 || ast.IsExported(typeName(fn.Recv.List[0].Type))
}

func wellKnown(fn *ast.FuncDecl) bool {
	return fn.Recv != nil && slices.Contains([]string{"String", "Error", "Unwrap"}, fn.Name.Name)
}
