package main

import (
	"slices"
)

// sample is the same figure measured again and again.
type sample []float64

// median returns the middle value, or the mean of the two in the middle; 0 if empty.
func (s sample) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// spread returns the smallest and the largest value; zeros if empty.
func (s sample) spread() (low, high float64) {
	if len(s) == 0 {
		return 0, 0
	}
	return slices.Min(s), slices.Max(s)
}
