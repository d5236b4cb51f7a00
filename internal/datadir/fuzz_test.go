package datadir

import "testing"

func FuzzParseFormat(f *testing.F) {
	f.Add(formatText(Format))
	f.Add(formatWord + "4294967296")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := parseFormat(s)
		if !ok {
			return
		}
		if again, ok := parseFormat(formatText(n)); !ok || again != n {
			t.Errorf("%q is format %d, then %d, %v", s, n, again, ok)
		}
	})
}
