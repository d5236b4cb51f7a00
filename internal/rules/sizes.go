package rules

import "go/ast"

// Limits on hand-written code.
const (
	MaxFileLines        = 800
	MaxFunctionLines    = 120
	MaxTestFunction     = 200 // tables are long
	MaxStructFields     = 25
	MaxInterfaceMethods = 20
)

// Sizes checks that nothing has grown beyond what one can take in.
func Sizes(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		if f.Generated {
			continue
		}
		if f.Lines > MaxFileLines {
			out = append(out, t.at(f.AST, "%d lines, the limit is %d", f.Lines, MaxFileLines))
		}
		limit := MaxFunctionLines
		if f.Test {
			limit = MaxTestFunction
		}
		ast.Inspect(f.AST, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				lines := t.fset.Position(n.End()).Line - t.fset.Position(n.Pos()).Line + 1
				if lines > limit {
					out = append(out, t.at(n, "%s has %d lines, the limit is %d", n.Name.Name, lines, limit))
				}
			case *ast.StructType:
				if c := n.Fields.NumFields(); c > MaxStructFields && !f.Test {
					out = append(out, t.at(n, "a struct of %d fields, the limit is %d", c, MaxStructFields))
				}
			case *ast.InterfaceType:
				if c := n.Methods.NumFields(); c > MaxInterfaceMethods {
					out = append(out, t.at(n, "an interface of %d methods, the limit is %d", c, MaxInterfaceMethods))
				}
			}
			return true
		})
	}
	return out
}
