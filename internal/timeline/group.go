package timeline

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// ApplyCreateGroup makes a group's cursor stand in the partitions of c. A partition
// that has the group is left as it is, so a repeated command changes nothing. clock is
// the range's clock after this command raised it; stamp is not recorded. An unknown start rule or group 0
// refuses the command (Invalid); every other error is fatal.
func ApplyCreateGroup(v effect.View, clock, stamp base.Timestamp, c *CreateGroup) error {
	if c.Group == 0 {
		return fault.New(fault.Invalid, "group id is missing")
	}
	if c.Start != StartEarliest && c.Start != StartLatest {
		return fault.New(fault.Invalid, "start rule %d is unknown", c.Start).
			WithRemedy("use earliest or latest")
	}
	for _, id := range c.Partitions {
		if err := createGroup(v, clock.Millis(), newPartition(id), c); err != nil {
			return fatal(err)
		}
	}
	return nil
}

func createGroup(v effect.View, clockMS int64, p *partition, c *CreateGroup) error {
	if _, ok, err := p.readGroup(v, c.Group); ok || err != nil {
		return err
	}
	g := Group{Group: c.Group, Start: c.Start}
	if c.Start == StartLatest {
		meta, _, err := p.readMeta(v)
		if err != nil {
			return err
		}
		// Without a last sequence latest is earliest: (clock, 0) would swallow the
		// partition's first event if it comes within this millisecond.
		if meta.NextSeq > 0 {
			g.Cursor = base.Position{DueMS: clockMS, Seq: meta.NextSeq - 1}
		}
	}
	return v.Set(p.groupKey(c.Group), appendGroup(nil, &g))
}
