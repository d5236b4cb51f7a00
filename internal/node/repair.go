package node

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/placement"
)

// A damaged store ends the node (S6). It notes that in its data directory, and the next
// start, which is this one if the damage shows while the stores are opened, sets both
// stores aside, because each is of use only with the other, and rebuilds the node's
// replicas from those of other nodes under the same identity.

// openStores opens both stores and learns who the node is.
func (n *Node) openStores() error {
	what, damaged, err := n.dir.Damaged()
	if err != nil {
		return err
	}
	if damaged {
		if err := n.repairable(fault.New(fault.Corrupt, "marked as damaged: %s", what)); err != nil {
			return err
		}
		if err := n.setAside(what); err != nil {
			return err
		}
	}
	if err = n.tryStores(); fault.KindOf(err) == fault.Corrupt {
		err = n.repair(err)
	}
	return err
}

// repair sets stores aside that can't be opened, and opens new ones.
func (n *Node) repair(why error) error {
	if err := n.repairable(why); err != nil {
		return err
	}
	if err := n.closeEngines(); err != nil {
		n.opts.Logger.Warn("closing a damaged store", "err", err)
	}
	if err := n.dir.MarkDamaged(why.Error(), time.Now()); err != nil {
		return err
	}
	if err := n.setAside(why.Error()); err != nil {
		return err
	}
	return n.tryStores()
}

func (n *Node) setAside(what string) error {
	aside, err := n.dir.SetAside(time.Now())
	if err != nil {
		return err
	}
	n.opts.Logger.Error("a store is damaged; both are set aside, and this node's replicas are rebuilt from other nodes",
		"damage", what, "set_aside", strings.Join(aside, " "),
		"remedy", "check the disk; what was set aside can be removed once the node is ready")
	return nil
}

// tryStores opens what is on disk. Damage that shows meanwhile in the background counts
// as an error of opening.
func (n *Node) tryStores() (err error) {
	n.mu.Lock()
	n.opening, n.found = true, nil
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.opening = false
		if err == nil {
			err = n.found
		}
	}()
	if err := n.openEngines(); err != nil {
		return err
	}
	if n.log, err = logstore.Open(n.logs); err != nil {
		return unreadable(n.dir.Log(), err)
	}
	return unreadable(n.dir.Log(), n.recognise())
}

// recognise reads who the node is: in the log store, or beside it while the node is
// rebuilding; and makes the two the same.
func (n *Node) recognise() error {
	id, err := loadIdentity(n.log)
	if err != nil {
		return err
	}
	saved, savedErr := savedIdentity(n.dir)
	switch {
	case id == nil && savedErr != nil:
		return savedErr
	case id == nil && saved == nil:
		return nil
	case id == nil && !n.dir.Rebuilding():
		return fault.New(fault.Corrupt, "the log store does not know node %d of cluster %s, whose data directory this is",
			saved.Node, saved.Bootstrap.Cluster)
	case id == nil:
		id = saved
		id.Founded = true // its first replicas are rebuilt, not made again
	}
	n.mu.Lock()
	n.id = id
	n.mu.Unlock()
	if savedErr != nil {
		n.opts.Logger.Warn("writing the copy of the node's identity anew", "err", savedErr)
	}
	return id.save(n.log, n.dir)
}

// repairable says why damage can't be repaired from other nodes; nil if it can.
func (n *Node) repairable(damage error) error {
	f := fault.As(damage)
	id, err := savedIdentity(n.dir)
	switch {
	case err != nil:
		return fault.Wrap(f.Kind, damage, "who this node is cannot be read beside its stores either: %v", err).
			WithRemedy("%s", fault.As(err).Remedy)
	case id == nil:
		return f
	}
	const remedy = "check the disk, and restore %s from a copy; three nodes and more repair one another"
	if nodes := max(len(id.Bootstrap.Nodes), len(id.Known)); placement.DefaultReplicas(nodes) == 1 {
		return fault.Wrap(f.Kind, damage, "with %d nodes there is one replica of everything, and nothing to repair this one from", nodes).
			WithRemedy(remedy, n.dir.Path())
	}
	for _, d := range id.Bootstrap.Ranges() {
		if _, ok := d.ReplicaOn(id.Node); ok && len(d.Replicas) == 1 {
			return fault.Wrap(f.Kind, damage, "this node holds the only replica of range %d, so there is nothing to repair it from", d.Range).
				WithRemedy(remedy, n.dir.Path())
		}
	}
	return nil
}

// damaged ends the node because a file of a store failed its checksum while it was read or
// compacted, or a replica's log is not what it was. What can be rebuilt is, at the next
// start.
func (n *Node) damaged(store string, err error) {
	err = fault.Wrap(fault.Corrupt, err, "the %s store is damaged", store)
	n.mu.Lock()
	if n.opening {
		n.found = err
		n.mu.Unlock()
		return
	}
	n.mu.Unlock()
	if why := n.repairable(err); why != nil {
		n.fail(why)
		return
	}
	if merr := n.dir.MarkDamaged(err.Error(), time.Now()); merr != nil {
		n.opts.Logger.Error("cannot note that a store is damaged", "err", merr)
	}
	n.fail(fault.Wrap(fault.Corrupt, err, "this node must be rebuilt").
		WithRemedy("check the disk, then start the node again: it sets its stores aside and gets its replicas from other nodes"))
}

// rebuild gets the node's replicas back, one range after another, until all that the
// catalogue gives it are here. It reads the catalogue as clients do, linearizably, and a
// range stands there before any replica of it is made: so none that this node ever held
// is left out, and what is created later is new.
func (r *running) rebuild(ctx context.Context) {
	t := time.NewTicker(heartbeatEvery)
	defer t.Stop()
	for !r.rebuilt(ctx) {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
	r.node.opts.Logger.Info("this node has all its replicas back")
}

// rebuilt looks once which replicas are missing; true if none are.
func (r *running) rebuilt(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	list, err := r.router.Ranges(ctx)
	if err != nil {
		r.node.opts.Logger.Debug("cannot read which ranges are this node's", "err", err)
		list = r.ranges
	}
	r.ranges = list
	list = slices.Clone(list)
	bootstrap := r.node.identity().Bootstrap // whose ranges exist before they stand in the catalogue
	for _, d := range bootstrap.Ranges() {
		if !slices.ContainsFunc(list, func(c base.RangeDescriptor) bool { return c.Range == d.Range }) {
			list = append(list, d)
		}
	}
	if r.store.Rebuild(list) > 0 || err != nil {
		return false
	}
	if err := r.node.dir.Rebuilt(); err != nil {
		r.node.opts.Logger.Warn("cannot note that the node is whole", "err", err)
		return false
	}
	r.store.Rebuilt()
	return true
}
