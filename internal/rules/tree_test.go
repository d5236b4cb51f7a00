package rules

import (
	"os"
	"testing"
)

// TestTree applies every rule to the module's source.
func TestTree(t *testing.T) {
	tree, err := Load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Files) < 20 {
		t.Fatalf("only %d files found", len(tree.Files))
	}
	for _, rule := range All() {
		t.Run(rule.Name, func(t *testing.T) {
			for _, v := range rule.Check(tree) {
				t.Error(v)
			}
		})
	}
}
