package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// unit is how a figure is written.
type unit string

const (
	perSecond unit = "1/s"
	seconds   unit = "s"
	memory    unit = "B"
	share     unit = "share"
	count     unit = "count"
)

// write returns a figure as people read it.
func (u unit) write(v float64) string {
	switch u {
	case perSecond:
		return thousands(v) + "/s"
	case seconds:
		return duration(v)
	case memory:
		return fmt.Sprintf("%.0f MB", v/1e6)
	case share:
		return fmt.Sprintf("%.0f %%", v*100)
	}
	return thousands(v)
}

// duration writes seconds with three digits, in the unit that suits them.
func duration(s float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1, "s"}, {1e-3, "ms"}, {1e-6, "µs"}} {
		if math.Abs(s) >= u.size || u.size == 1e-6 {
			v := s / u.size
			decimals := 2
			for limit := 10.0; decimals > 0 && math.Abs(v) >= limit; limit *= 10 {
				decimals--
			}
			return fmt.Sprintf("%.*f %s", decimals, v, u.name)
		}
	}
	return ""
}

// thousands writes a whole number in groups of three digits.
func thousands(v float64) string {
	digits := fmt.Sprintf("%.0f", math.Abs(v))
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	if v <= -0.5 {
		return "-" + digits
	}
	return digits
}

// target is what a row is to reach; the zero target is none.
type target struct {
	ratio bool // of the figures; else of our own
	most  bool // at most; else at least
	limit float64
}

var noTarget = target{}

func ratioAtLeast(limit float64) target { return target{ratio: true, limit: limit} }
func ratioAtMost(limit float64) target  { return target{ratio: true, most: true, limit: limit} }
func atLeast(limit float64) target      { return target{limit: limit} }
func atMost(limit float64) target       { return target{most: true, limit: limit} }

// write returns the target as people read it, for figures of a unit.
func (t target) write(u unit) string {
	if t == noTarget {
		return ""
	}
	sign := "≥ "
	if t.most {
		sign = "≤ "
	}
	if t.ratio {
		return fmt.Sprintf("%s%.2f×", sign, t.limit)
	}
	return sign + u.write(t.limit)
}

// met says whether a value, or a ratio, reaches the target.
func (t target) met(value, ratio float64) bool {
	v := value
	if t.ratio {
		v = ratio
	}
	if t.most {
		return v <= t.limit
	}
	return v >= t.limit
}

// report is all that a run found.
type report struct {
	Origin   origin   `json:"origin"`
	Repeat   int      `json:"repeat"`
	Duration string   `json:"duration"`
	Warmup   string   `json:"warmup"`
	Kills    int      `json:"kills"`
	Pending  int64    `json:"pending_events"`
	Idle     string   `json:"idle"`
	Rows     []result `json:"rows"`
}

// result is what came of a row. Times are in seconds.
type result struct {
	Workload string  `json:"workload"`
	Title    string  `json:"title"`
	Unit     unit    `json:"unit"`
	Almanac  *value  `json:"almanac"` // nil if it could not be measured
	Peer     *value  `json:"peer,omitempty"`
	PeerName system  `json:"peer_name,omitempty"`
	Ratio    float64 `json:"ratio,omitempty"` // of the medians; 0 means none
	Target   string  `json:"target,omitempty"`
	Met      *bool   `json:"met,omitempty"`   // nil if there is no target, or no figure
	Error    string  `json:"error,omitempty"` // the first of its measurements that failed
}

// value is one figure, measured again and again.
type value struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	All    sample  `json:"all"` // in the order of the measurements
}

func newValue(s sample) *value {
	if len(s) == 0 {
		return nil
	}
	low, high := s.spread()
	return &value{Median: s.median(), Low: low, High: high, All: s}
}

// judge makes a row's result out of what was measured.
func (b *bench) judge(r row) result {
	res := result{
		Workload: r.workload, Title: r.title, Unit: r.unit, Target: r.target.write(r.unit),
		Almanac: newValue(b.samples[r.ours]),
	}
	if r.theirs.m != nil {
		res.PeerName, res.Peer = r.theirs.m.system, newValue(b.samples[r.theirs])
	}
	for _, m := range []*measure{r.ours.m, r.theirs.m} {
		if err := b.failed[m]; err != nil && res.Error == "" {
			res.Error = fmt.Sprintf("%s: %v", m, err)
		}
	}
	if res.Almanac == nil {
		return res
	}
	if res.Peer != nil && res.Peer.Median > 0 {
		res.Ratio = res.Almanac.Median / res.Peer.Median
	}
	if res.Error == "" && r.target != noTarget && (!r.target.ratio || res.Ratio > 0) {
		met := r.target.met(res.Almanac.Median, res.Ratio)
		res.Met = &met
	}
	return res
}

func (r *report) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

func (r *report) markdown(w io.Writer) error {
	var b strings.Builder
	o := r.Origin
	state := "a clean tree"
	if o.Dirty {
		state = "a tree with uncommitted changes"
	}
	fmt.Fprintf(&b, "Commit %s, %s, %s.\n", o.Commit, state, o.Date.Format(time.RFC3339))
	fmt.Fprintf(&b, "%d cores (%s), %.1f GiB of memory, %s, %s; fdatasync of 4 KiB: %s, looked at before each turn.\n",
		o.Cores, o.CPU, float64(o.Memory)/(1<<30), o.Kernel, o.Go, o.Fdatasyncs.write(perSecond))
	fmt.Fprintf(&b, "Compared with %s. Values and payloads of %d bytes, three nodes each.\n", strings.Join(o.Peers, ", "), size)
	fmt.Fprintf(&b, "Median of %d, smallest and largest in parentheses; each load measured for %s after %s of warm-up. ", r.Repeat, r.Duration, r.Warmup)
	fmt.Fprintf(&b, "Failover: %d kills of each leader. Pending: %s events, memory after %s of rest.\n\n", r.Kills, thousands(float64(r.Pending)), r.Idle)
	b.WriteString("| workload | | Almanac | peer | ratio | target | met |\n|---|---|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		b.WriteString(row.markdown())
	}
	for i, row := range r.Rows {
		if row.Error != "" && (i == 0 || row.Error != r.Rows[i-1].Error) {
			fmt.Fprintf(&b, "\nFailed: %s\n", row.Error)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r result) markdown() string {
	ours, peer, ratio, met := r.Almanac.write(r.Unit), "", "", ""
	if r.Error != "" {
		met = "failed"
	}
	if r.PeerName != "" {
		peer = string(r.PeerName) + " " + r.Peer.write(r.Unit)
	}
	if r.Ratio > 0 {
		ratio = fmt.Sprintf("%.2f×", r.Ratio)
	}
	if r.Met != nil {
		met = map[bool]string{true: "yes", false: "**no**"}[*r.Met]
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |\n", r.Workload, r.Title, ours, peer, ratio, r.Target, met)
}

// write returns a value as people read it.
func (v *value) write(u unit) string {
	if v == nil {
		return "–"
	}
	if len(v.All) < 2 {
		return u.write(v.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", u.write(v.Median), u.write(v.Low), u.write(v.High))
}
