package main

import "testing"

func TestSample(t *testing.T) {
	for _, test := range []struct {
		s                 sample
		median, low, high float64
	}{
		{nil, 0, 0, 0},
		{sample{7}, 7, 7, 7},
		{sample{9, 1, 5}, 5, 1, 9},
		{sample{4, 1, 2, 3}, 2.5, 1, 4},
	} {
		low, high := test.s.spread()
		if m := test.s.median(); m != test.median || low != test.low || high != test.high {
			t.Errorf("%v: median %v, from %v to %v", test.s, m, low, high)
		}
	}
	s := sample{3, 1, 2}
	s.median()
	if s[0] != 3 {
		t.Error("the order of the measurements is lost")
	}
}
