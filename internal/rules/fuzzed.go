package rules

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
)

// A decoder is a function that takes bytes or a string and is named for it. Whatever turns
// bytes from a disk or a network into values is one: no other code calls the parsers below.
var decoderName = regexp.MustCompile(`^(Decode|decode|Parse|parse|Unmarshal)([A-Z]|$)`)

// parsers are what only decoders call, and the type decoder that they read with.
var parsers = map[string][]string{
	"encoding/json":                    {"Unmarshal", "NewDecoder"},
	"encoding/binary":                  {"Uvarint", "Varint"},
	"google.golang.org/protobuf/proto": {"Unmarshal"},
}

// unfuzzedAllowed are the exceptions, each with its reason, by file and function.
var unfuzzedAllowed = map[string]string{}

// Fuzzed checks that every decoder has a fuzz target: a test file that declares one names
// the function. For a method it names the method, and the package's tests name its type.
func Fuzzed(t *Tree) []Violation {
	fuzzed, tested := make(map[string]bool), make(map[string]bool) // directory and name
	for _, f := range t.Files {
		if !f.Test {
			continue
		}
		target := declaresTarget(f)
		ast.Inspect(f.AST, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				tested[f.Dir+" "+id.Name] = true
				fuzzed[f.Dir+" "+id.Name] = fuzzed[f.Dir+" "+id.Name] || target
			}
			return true
		})
	}
	var out []Violation
	for _, f := range t.product() {
		if floorOf(f.Dir) == tests {
			continue
		}
		for _, decl := range f.AST.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || unfuzzedAllowed[f.Path+" "+funcName(fn)] != "" {
				continue
			}
			if !isDecoder(fn) {
				out = append(out, t.strayParsers(f, fn)...)
				continue
			}
			ok = fuzzed[f.Dir+" "+fn.Name.Name]
			if fn.Recv != nil {
				ok = ok && tested[f.Dir+" "+typeName(fn.Recv.List[0].Type)]
			}
			if !ok {
				out = append(out, t.at(fn, "%s decodes and has no fuzz target", funcName(fn)))
			}
		}
	}
	return out
}

func declaresTarget(f *File) bool {
	return slices.ContainsFunc(f.AST.Decls, func(d ast.Decl) bool {
		fn, ok := d.(*ast.FuncDecl)
		return ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz")
	})
}

// isDecoder says whether a function has a decoder's name and takes bytes or a string.
func isDecoder(fn *ast.FuncDecl) bool {
	return decoderName.MatchString(fn.Name.Name) && slices.ContainsFunc(fn.Type.Params.List, func(p *ast.Field) bool {
		switch e := p.Type.(type) {
		case *ast.ArrayType:
			return typeName(e.Elt) == "byte"
		case *ast.SelectorExpr:
			return e.Sel.Name == "BufferSlice" // of gRPC
		default:
			return typeName(e) == "string"
		}
	})
}

// strayParsers finds calls of parsers in a function that is no decoder.
func (t *Tree) strayParsers(f *File, fn *ast.FuncDecl) []Violation {
	if decoderName.MatchString(fn.Name.Name) || fn.Recv != nil && typeName(fn.Recv.List[0].Type) == "decoder" {
		return nil
	}
	var out []Violation
	names := packageNames(f)
	ast.Inspect(fn, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if p, name := selected(names, sel); slices.Contains(parsers[p], name) {
				out = append(out, t.at(n, "%s calls %s.%s and is not named as a decoder is", funcName(fn), p, name))
			}
		}
		return true
	})
	return out
}
