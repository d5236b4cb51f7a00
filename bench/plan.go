package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// figures are what one measurement finds, by name. Times are in seconds, memory in
// bytes, shares between 0 and 1.
type figures map[string]float64

// measure is one measurement of one system.
type measure struct {
	system system
	name   string // unique among the measures of its system
	run    func(ctx context.Context, b *bench, c *cluster) (figures, error)
}

func (m *measure) String() string { return fmt.Sprintf("%s: %s", m.system, m.name) }

// phase is what is measured on one cluster of each system, in turn: the systems take
// turns as often as is asked for, each time with new data, so that a machine that gets
// slower or faster does so for all.
type phase struct {
	name     string
	once     bool // repeats itself within, so it is not repeated
	measures []*measure
}

// ref names a figure of a measure; the zero ref is none.
type ref struct {
	m      *measure
	figure string
}

// row is one line of the table.
type row struct {
	workload string // as -only names it
	title    string
	unit     unit
	ours     ref
	theirs   ref // may be none
	target   target
}

// plan is what can be measured, in order.
type plan struct {
	phases []phase
	rows   []row
}

// workloads returns the names that -only takes, in order.
func (p *plan) workloads() []string {
	var names []string
	for _, r := range p.rows {
		if !slices.Contains(names, r.workload) {
			names = append(names, r.workload)
		}
	}
	return names
}

// only leaves the rows of some workloads, and the measures that these need.
func (p *plan) only(workloads []string) (*plan, error) {
	if len(workloads) == 0 {
		return p, nil
	}
	known := p.workloads()
	for _, w := range workloads {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("there is no workload %q; there are %s", w, strings.Join(known, ", "))
		}
	}
	left := &plan{}
	needed := make(map[*measure]bool)
	for _, r := range p.rows {
		if slices.Contains(workloads, r.workload) {
			left.rows = append(left.rows, r)
			needed[r.ours.m], needed[r.theirs.m] = true, true
		}
	}
	for _, ph := range p.phases {
		ph.measures = slices.DeleteFunc(slices.Clone(ph.measures), func(m *measure) bool { return !needed[m] })
		if len(ph.measures) > 0 {
			left.phases = append(left.phases, ph)
		}
	}
	return left, nil
}

// systems returns the systems of a phase, those to compare with first.
func (ph phase) systems() []system {
	var list []system
	for _, s := range []system{etcd, nats, almanac} {
		if len(ph.of(s)) > 0 {
			list = append(list, s)
		}
	}
	return list
}

// of returns the measures of one system.
func (ph phase) of(s system) []*measure {
	return slices.DeleteFunc(slices.Clone(ph.measures), func(m *measure) bool { return m.system != s })
}

// add puts measures into the phase and returns the last.
func (ph *phase) add(m measure) *measure {
	ph.measures = append(ph.measures, &m)
	return &m
}
