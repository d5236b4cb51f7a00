package main

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	p := newPlan()
	s, err := parse(strings.Fields("-only put,get -duration 2s -o json -repeat 5"), p, io.Discard)
	if err != nil || !slices.Equal(s.only, []string{"put", "get"}) || s.duration != 2*time.Second || s.output != "json" || s.repeat != 5 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"-o text", "-repeat 0", "-duration 0s", "-warmup -1s", "put"} {
		if _, err := parse(strings.Fields(bad), p, io.Discard); err == nil {
			t.Errorf("%s is no error", bad)
		}
	}
}

// Every measure is named once, gives figures to a row, and belongs to one phase.
func TestPlan(t *testing.T) {
	p := newPlan()
	home := make(map[*measure]string)
	names := make(map[string]bool)
	for _, ph := range p.phases {
		for _, m := range ph.measures {
			if names[m.String()] {
				t.Errorf("two measures are %s", m)
			}
			names[m.String()], home[m] = true, ph.name
		}
	}
	used := make(map[*measure]bool)
	titles := make(map[string]bool)
	for _, r := range p.rows {
		for _, m := range []*measure{r.ours.m, r.theirs.m} {
			if m != nil && home[m] == "" {
				t.Errorf("row %q needs %s, which is in no phase", r.title, m)
			}
			used[m] = true
		}
		if r.ours.m.system != almanac {
			t.Errorf("row %q shows %s as ours", r.title, r.ours.m)
		}
		if titles[r.title] {
			t.Errorf("two rows are %q", r.title)
		}
		titles[r.title] = true
	}
	for m := range home {
		if !used[m] {
			t.Errorf("no row shows %s", m)
		}
	}
}

func TestOnly(t *testing.T) {
	p := newPlan()
	some, err := p.only([]string{"single"})
	if err != nil {
		t.Fatal(err)
	}
	if len(some.phases) != 1 || len(some.phases[0].measures) != 2 || !slices.Equal(some.phases[0].systems(), []system{nats, almanac}) {
		t.Errorf("%+v", some.phases)
	}
	if len(p.phases[0].measures) < 10 {
		t.Error("the whole plan was changed")
	}
	if all, err := p.only(nil); err != nil || len(all.rows) != len(p.rows) {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := p.only([]string{"put", "pat"}); err == nil || !strings.Contains(err.Error(), `"pat"`) {
		t.Errorf("%v", err)
	}
}
