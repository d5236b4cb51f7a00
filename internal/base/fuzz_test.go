package base

import (
	"strings"
	"testing"
)

func FuzzParsePosition(f *testing.F) {
	for _, s := range []string{"1763683200123-42", "0-0", "-1-1", "9223372036854775807-18446744073709551615", "1--1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePosition(s)
		if err != nil {
			return
		}
		if again, err := ParsePosition(p.String()); err != nil || again != p {
			t.Errorf("%q is %v, and %q is %v, %v", s, p, p.String(), again, err)
		}
		if strings.Count(s, "-") == 0 {
			t.Errorf("%q is taken for %v", s, p)
		}
	})
}
