package plant

import (
	"debug/dwarf"
	"debug/elf"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const root = "../.."

// hooks returns the lines of product code that run only if a bug is switched on, by file,
// and how many hooks there are in all.
func hooks(t *testing.T) (lines map[string]map[int]bool, n int) {
	t.Helper()
	lines = make(map[string]map[int]bool)
	set := token.NewFileSet()
	err := filepath.WalkDir(root+"/internal", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		file := strings.TrimPrefix(filepath.ToSlash(path), root+"/")
		ast.Inspect(f, func(node ast.Node) bool {
			if call, ok := node.(*ast.CallExpr); ok && isOn(call.Fun) {
				n++
			}
			if s, ok := node.(*ast.IfStmt); ok && guards(s.Cond) {
				if lines[file] == nil {
					lines[file] = make(map[int]bool)
				}
				for l := set.Position(s.Body.List[0].Pos()).Line; l <= set.Position(s.Body.List[len(s.Body.List)-1].End()).Line; l++ {
					lines[file][l] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines, n
}

func isOn(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != "On" {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == "plant"
}

// guards says whether a condition is false while no bug is switched on.
func guards(cond ast.Expr) bool {
	switch c := cond.(type) {
	case *ast.CallExpr:
		return isOn(c.Fun)
	case *ast.BinaryExpr:
		return c.Op == token.LAND && (guards(c.X) || guards(c.Y))
	}
	return false
}

// The binary that users run holds no planted bug: neither the set of bugs nor a line of
// code that a bug would run.
func TestOrdinaryBinaryHasNoPlants(t *testing.T) {
	if runtime.GOOS != "linux" || testing.Short() {
		t.Skip("builds the binary and reads it as ELF")
	}
	lines, n := hooks(t)
	if n < 10 || len(lines) < 3 {
		t.Fatalf("only %d hooks found, in %d files with lines of their own", n, len(lines))
	}
	binary := filepath.Join(t.TempDir(), "almanac")
	build := exec.Command("go", "build", "-o", binary, "./cmd/almanac")
	build.Dir, build.Env = root, append(os.Environ(), "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		if strings.Contains(s.Name, "almanac/internal/plant.") {
			t.Errorf("the binary has %s", s.Name)
		}
	}
	if seen := eachLine(t, f, func(file string, line int) {
		if lines[file][line] {
			t.Errorf("the binary has code for %s:%d", file, line)
		}
	}); seen < 1000 {
		t.Errorf("only %d lines of the product were seen in the binary", seen)
	}
}

// eachLine tells the product's lines that have code in a binary, and counts them.
func eachLine(t *testing.T, f *elf.File, fn func(file string, line int)) (n int) {
	t.Helper()
	d, err := f.DWARF()
	if err != nil {
		t.Fatal(err)
	}
	units := d.Reader()
	for {
		unit, err := units.Next()
		if err != nil {
			t.Fatal(err)
		}
		if unit == nil {
			return n
		}
		if name, _ := unit.Val(dwarf.AttrName).(string); unit.Tag != dwarf.TagCompileUnit || !strings.Contains(name, "almanac/internal/") {
			units.SkipChildren()
			continue
		}
		r, err := d.LineReader(unit)
		if err != nil {
			t.Fatal(err)
		}
		units.SkipChildren()
		for r != nil {
			var e dwarf.LineEntry
			if err := r.Next(&e); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if _, file, ok := strings.Cut(e.File.Name, "/internal/"); ok && !e.EndSequence {
				n++
				fn("internal/"+file, e.Line)
			}
		}
	}
}
