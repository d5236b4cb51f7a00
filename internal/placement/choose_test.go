package placement

import (
	"slices"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// R6: the default count is a target. A dead node gets its replica all the same where the
// target needs it, as long as a majority lives; an explicit count is not stretched.
func TestChooseDefault(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes int
		alive []base.NodeID
		want  []base.NodeID
		n     int
		kind  fault.Kind
	}{
		{"one", 1, []base.NodeID{1}, []base.NodeID{1}, 1, 0},
		{"two", 2, []base.NodeID{1, 2}, []base.NodeID{1, 2}, 1, 0},
		{"two, one dead", 2, []base.NodeID{2}, []base.NodeID{2}, 1, 0},
		{"three", 3, []base.NodeID{1, 2, 3}, []base.NodeID{1, 2, 3}, 3, 0},
		{"three, one dead", 3, []base.NodeID{1, 3}, []base.NodeID{1, 3, 2}, 3, 0},
		{"three, two dead", 3, []base.NodeID{3}, nil, 0, fault.Unavailable},
		{"five, one dead", 5, []base.NodeID{1, 2, 4, 5}, []base.NodeID{1, 2, 4, 5}, 3, 0},
	} {
		cat := &catalogue{}
		for i := range c.nodes {
			cat.nodes = append(cat.nodes, base.NodeDescriptor{Node: base.NodeID(i + 1)})
		}
		nodes, n, err := (&Placement{}).chooseDefault(cat, c.alive)
		if fault.KindOf(err) != c.kind || n != c.n || !slices.Equal(nodes, c.want) {
			t.Errorf("%s: nodes %v, %d replicas, error %v", c.name, nodes, n, err)
		}
	}
}
