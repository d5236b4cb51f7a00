package rules

import (
	"go/ast"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/almanacdb/almanac/internal/config"
	"github.com/almanacdb/almanac/internal/fault"
)

// The documents keep up with the code: what they list, they list whole.

func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func source(t *testing.T) *Tree {
	t.Helper()
	tree, err := Load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// section returns what stands under a heading, up to the next of its level.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("there is no section %q", heading)
	}
	body, _, _ := strings.Cut(rest, "\n## ")
	return body
}

func TestEveryPackageIsOnTheMap(t *testing.T) {
	packages := section(t, document(t, "ARCHITECTURE.md"), "Packages by floor")
	table := section(t, document(t, "DESIGN.md"), "Floors")
	seen := make(map[string]bool)
	for _, f := range source(t).Files {
		if seen[f.Dir] {
			continue
		}
		seen[f.Dir] = true
		if !strings.Contains(packages, "`"+f.Dir+"`") {
			t.Errorf("ARCHITECTURE.md has no line for package %s", f.Dir)
		}
		if !strings.Contains(table, "`"+strings.TrimPrefix(f.Dir, "internal/")+"`") {
			t.Errorf("DESIGN.md's floors lack package %s", f.Dir)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\|[^|]*\\| `([a-z0-9/]+)`").FindAllStringSubmatch(packages, -1) {
		if !seen[m[1]] {
			t.Errorf("ARCHITECTURE.md lists %s, which does not exist", m[1])
		}
	}
}

func TestEverySettingIsInTheReadme(t *testing.T) {
	text := section(t, document(t, "README.md"), "The command line")
	flags := pflag.NewFlagSet("start", pflag.ContinueOnError)
	config.Flags(flags)
	flags.VisitAll(func(f *pflag.Flag) {
		line := lineWith(text, "| `--"+f.Name+"` |")
		if line == "" {
			t.Errorf("README.md does not list --%s", f.Name)
			return
		}
		if f.Name == "config" {
			return // it names the file, so it is a flag alone
		}
		env := "ALMANAC_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if !strings.Contains(line, "`"+env+"`") {
			t.Errorf("README.md does not say that --%s is %s in the environment", f.Name, env)
		}
		if d := f.DefValue; d != "" && d != "[]" && !strings.Contains(line, "`"+d+"`") {
			t.Errorf("README.md does not say that --%s is %s by default", f.Name, d)
		}
	})
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)` \\|").FindAllStringSubmatch(text, -1) {
		if flags.Lookup(m[1]) == nil {
			t.Errorf("README.md lists --%s, which does not exist", m[1])
		}
	}
}

func lineWith(text, start string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, start) {
			return line
		}
	}
	return ""
}

func TestEveryGoroutineIsOnTheMap(t *testing.T) {
	text := section(t, document(t, "ARCHITECTURE.md"), "Goroutines")
	var starting []string
	for _, f := range source(t).product() {
		if floorOf(f.Dir) != tests && startsGoroutines(f) {
			starting = append(starting, f.Path)
			if !strings.Contains(text, "`"+f.Path+"`") {
				t.Errorf("ARCHITECTURE.md does not say which goroutines %s starts", f.Path)
			}
		}
	}
	for _, m := range regexp.MustCompile("`([a-z0-9/_]+\\.go)`").FindAllStringSubmatch(text, -1) {
		if !slices.Contains(starting, m[1]) {
			t.Errorf("ARCHITECTURE.md lists goroutines of %s, which starts none", m[1])
		}
	}
}

// startsGoroutines looks for go statements, methods named Go (of wait groups), and timers
// that run a function.
func startsGoroutines(f *File) (found bool) {
	names := packageNames(f)
	ast.Inspect(f.AST, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = true
		case *ast.CallExpr:
			if sel, ok := n.Fun.(*ast.SelectorExpr); ok {
				p, name := selected(names, sel)
				found = found || name == "Go" || p == "time" && name == "AfterFunc" && !passes(n, "cancel") ||
					sel.Sel.Name == "Go"
			}
		}
		return true
	})
	return found
}

// passes says whether a call's last argument is a variable of that name.
func passes(c *ast.CallExpr, name string) bool {
	id, ok := c.Args[len(c.Args)-1].(*ast.Ident)
	return ok && id.Name == name
}

func TestEveryFailureIsOnTheMap(t *testing.T) {
	text := section(t, document(t, "ARCHITECTURE.md"), "How failures travel")
	for k := fault.Kind(1); !strings.HasPrefix(k.String(), "kind_"); k++ {
		if !strings.Contains(text, "`"+k.String()+"`") {
			t.Errorf("ARCHITECTURE.md does not say how %s travels", k)
		}
	}
}

func TestEveryMethodAndFamilyIsOnTheMap(t *testing.T) {
	text := document(t, "ARCHITECTURE.md")
	for _, list := range []struct{ dir, prefix, section string }{
		{"internal/wire", "Method", "On the network"},
		{"internal/keys", "Family", "On disk"},
	} {
		body := section(t, text, list.section)
		found := 0
		for _, name := range constants(source(t), list.dir, list.prefix) {
			found++
			if !strings.Contains(body, "`"+name+"`") {
				t.Errorf("ARCHITECTURE.md, %q, lacks %s", list.section, name)
			}
		}
		if found < 10 {
			t.Errorf("only %d constants %s… found in %s", found, list.prefix, list.dir)
		}
	}
}

// constants returns the names of a package's constants that begin with a prefix.
func constants(tree *Tree, dir, prefix string) (list []string) {
	for _, f := range tree.product() {
		if f.Dir != dir {
			continue
		}
		for _, decl := range f.AST.Decls {
			d, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range d.Specs {
				v, ok := spec.(*ast.ValueSpec)
				if ok && d.Tok.String() == "const" && strings.HasPrefix(v.Names[0].Name, prefix) {
					list = append(list, v.Names[0].Name)
				}
			}
		}
	}
	return list
}

// Go code in README.md stands, line by line, in the client's examples, which compile.
func TestReadmesCodeCompiles(t *testing.T) {
	example := document(t, "client/example_test.go")
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(document(t, "README.md"), -1)
	if len(blocks) == 0 {
		t.Fatal("README.md has no Go code")
	}
	for _, b := range blocks {
		if !strings.Contains(example, b[1]) {
			t.Errorf("client/example_test.go lacks README.md's\n%s", b[1])
		}
	}
}

// Links between files lead somewhere, and steps of the check that are named exist.
func TestLinks(t *testing.T) {
	root := os.DirFS("../..")
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if d.IsDir() || path.Ext(p) != ".md" {
			return nil
		}
		text, err := fs.ReadFile(root, p)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := fs.Stat(root, path.Join(path.Dir(p), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", p, m[1], err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryStepOfTheCheckIsInTheReadme(t *testing.T) {
	text := section(t, document(t, "README.md"), "Developing")
	m := regexp.MustCompile(`steps=\(([a-z0-9 ]+)\)`).FindStringSubmatch(document(t, ".ci/run"))
	if m == nil {
		t.Fatal(".ci/run names no steps")
	}
	for _, step := range strings.Fields(m[1]) {
		if !strings.Contains(text, "`"+step+"`") {
			t.Errorf("README.md does not describe the step %s", step)
		}
	}
}
