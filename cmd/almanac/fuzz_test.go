package main

import "testing"

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"2026-11-21T04:00:00Z", "1763683200123", "-1", "9223372036854775807", "1969-12-31T23:59:59.9999Z", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if at, err := parseTime(s); err == nil && at.UnixMilli() < 0 {
			t.Errorf("%q is %v", s, at)
		}
	})
}
