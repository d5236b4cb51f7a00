package node

import (
	"crypto/rand"
	"encoding/json"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/datadir"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/placement"
)

// identity is what a node durably knows of itself and its cluster: its record in the
// log store, of which a copy stands beside the stores for the day that they are lost. A
// node accepts one cluster in its life (R7).
type identity struct {
	Node      base.NodeID         `json:"node"`
	Bootstrap placement.Bootstrap `json:"bootstrap"`
	// Founded says that the node's first replicas were created; from then on the
	// catalogue alone says which ranges it holds.
	Founded bool `json:"founded"`
	// Known are the nodes as last heard of, to reach them after a restart.
	Known []base.NodeDescriptor `json:"known,omitempty"`
}

// loadIdentity reads the node record of the log store; nil if there is none.
func loadIdentity(s *logstore.Store) (*identity, error) {
	record, ok, err := s.Node()
	if err != nil || !ok {
		return nil, err
	}
	return decodeIdentity(record)
}

// savedIdentity reads the copy beside the stores; nil if there is none.
func savedIdentity(d *datadir.Dir) (*identity, error) {
	record, ok, err := d.Identity()
	if err != nil || !ok {
		return nil, err
	}
	return decodeIdentity(record)
}

func decodeIdentity(record []byte) (*identity, error) {
	id := &identity{}
	if err := json.Unmarshal(record, id); err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the node record does not parse")
	}
	if err := id.Bootstrap.Check(); err != nil || id.Node == 0 {
		return nil, fault.New(fault.Corrupt, "the node record is of node %d of a cluster that does not add up", id.Node)
	}
	return id, nil
}

// save keeps the identity in the log store, then beside the stores. That order makes a
// copy without a record mean that the log store was lost.
func (id *identity) save(s *logstore.Store, d *datadir.Dir) error {
	record := placement.Encode(id)
	b := s.NewBatch()
	b.SetNode(record)
	if err := b.Commit(true); err != nil {
		return err
	}
	return d.SaveIdentity(record)
}

// clone returns a copy that can be changed and saved.
func (id *identity) clone() *identity {
	c := *id
	return &c
}

// newBootstrap forms a cluster out of nodes, which get ids by their order.
func newBootstrap(nodes []base.NodeDescriptor) (placement.Bootstrap, error) {
	b := placement.Bootstrap{Nodes: nodes}
	if _, err := rand.Read(b.Cluster[:]); err != nil {
		return b, fault.Wrap(fault.Internal, err, "no randomness for a cluster id")
	}
	for i := range b.Nodes {
		b.Nodes[i].Node = base.NodeID(i + 1)
	}
	return b, nil
}
