package main

import "testing"

func TestSaturation(t *testing.T) {
	for _, test := range []struct {
		name    string
		rates   []float64 // with 16, 32, 64 ... clients, until it is over
		clients int
		over    bool
	}{
		{"nothing yet", nil, 0, false},
		{"still rising", []float64{100, 190, 350}, 64, false},
		{"flat", []float64{100, 190, 192, 189}, 32, true},
		{"one flat step is noise", []float64{100, 190, 185, 300}, 128, false},
		{"falling", []float64{100, 190, 150, 90}, 32, true},
	} {
		var s saturation
		for i, r := range test.rates {
			if s.over() {
				t.Errorf("%s: over after %d steps", test.name, i)
			}
			s.add(16<<i, r)
		}
		if clients := s.found(); clients != test.clients || s.over() != test.over {
			t.Errorf("%s: %d clients, over %v", test.name, clients, s.over())
		}
	}
}
