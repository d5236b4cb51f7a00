package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestUnits(t *testing.T) {
	for _, test := range []struct {
		u    unit
		v    float64
		want string
	}{
		{perSecond, 0, "0/s"},
		{perSecond, 999.6, "1,000/s"},
		{perSecond, 1234567, "1,234,567/s"},
		{count, -1234, "-1,234"},
		{seconds, 0, "0.00 µs"},
		{seconds, 0.0000125, "12.5 µs"},
		{seconds, 0.00125, "1.25 ms"},
		{seconds, 0.1255, "126 ms"},
		{seconds, 2.5, "2.50 s"},
		{seconds, -0.002, "-2.00 ms"},
		{memory, 150e6, "150 MB"},
		{share, 0.8, "80 %"},
	} {
		if got := test.u.write(test.v); got != test.want {
			t.Errorf("%v %s: %q, not %q", test.v, test.u, got, test.want)
		}
	}
}

func TestTargets(t *testing.T) {
	for _, test := range []struct {
		target       target
		value, ratio float64
		met          bool
		text         string
	}{
		{ratioAtLeast(1.5), 0, 1.5, true, "≥ 1.50×"},
		{ratioAtLeast(1.5), 9, 1.49, false, "≥ 1.50×"},
		{ratioAtMost(1), 0, 1.01, false, "≤ 1.00×"},
		{atLeast(100_000), 100_000, 0, true, "≥ 100,000/s"},
		{atMost(3), 3.1, 0, false, "≤ 3/s"},
	} {
		if got := test.target.met(test.value, test.ratio); got != test.met {
			t.Errorf("%+v: met %v", test, got)
		}
		if got := test.target.write(perSecond); got != test.text {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

// TestReport judges rows that were measured, in part, and not at all.
func TestReport(t *testing.T) {
	ours, peer := &measure{system: almanac, name: "ours"}, &measure{system: etcd, name: "theirs"}
	broken := &measure{system: nats, name: "broken"}
	flaky := &measure{system: almanac, name: "flaky"}
	b := &bench{
		samples: map[ref]sample{
			ours.as("rate"): {3000, 1000, 2000}, peer.as("rate"): {1000}, ours.as("late"): {0.002}, flaky.as("rate"): {5},
		},
		failed: map[*measure]error{broken: errors.New("no such stream"), flaky: errors.New("timed out")},
	}
	r := report{Origin: origin{Commit: "abc", Dirty: true, Cores: 2, Date: time.Unix(0, 0).UTC(), Peers: []string{"etcd 3"}}, Repeat: 3, Duration: "1s", Warmup: "0s"}
	for _, row := range []row{
		{"put", "two of them", perSecond, ours.as("rate"), peer.as("rate"), ratioAtLeast(2.5)},
		{"late", "one alone", seconds, ours.as("late"), ref{}, atMost(0.01)},
		{"publish", "peer failed", perSecond, ours.as("rate"), broken.as("rate"), ratioAtLeast(1)},
		{"publish", "ours failed", perSecond, broken.as("rate"), ref{}, atLeast(1)},
		{"put", "failed once of two", perSecond, flaky.as("rate"), ref{}, atLeast(1)},
	} {
		r.Rows = append(r.Rows, b.judge(row))
	}
	var text strings.Builder
	if err := r.markdown(&text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"Commit abc, a tree with uncommitted changes, 1970-01-01T00:00:00Z.",
		"| put | two of them | 2,000/s (1,000/s–3,000/s) | etcd 1,000/s | 2.00× | ≥ 2.50× | **no** |",
		"| late | one alone | 2.00 ms |  |  | ≤ 10.0 ms | yes |",
		"| publish | peer failed | 2,000/s (1,000/s–3,000/s) | NATS – |  | ≥ 1.00× | failed |",
		"| publish | ours failed | – |  |  | ≥ 1/s | failed |",
		"| put | failed once of two | 5/s |  |  | ≥ 1/s | failed |",
		"\nFailed: NATS: broken: no such stream\n\nFailed: Almanac: flaky: timed out",
	} {
		if !strings.Contains(text.String(), line+"\n") {
			t.Errorf("no line %s\nin\n%s", line, text.String())
		}
	}
	text.Reset()
	if err := r.json(&text); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal([]byte(text.String()), &back); err != nil {
		t.Fatal(err)
	}
	if got := back.Rows[0]; got.Ratio != 2 || *got.Met || len(got.Almanac.All) != 3 || got.PeerName != etcd {
		t.Errorf("row 0: %+v", got)
	}
	if got := back.Rows[3]; got.Almanac != nil || got.Met != nil || got.Error != "NATS: broken: no such stream" {
		t.Errorf("row 3: %+v", got)
	}
}
