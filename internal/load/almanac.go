package load

import (
	"bytes"
	"context"
	"errors"

	"github.com/almanacdb/almanac/client"
)

type almanacStore struct{ c *client.Client }

// Almanac returns a store that uses a client, and closes it.
func Almanac(c *client.Client) Store { return almanacStore{c} }

func (s almanacStore) Close() error { return s.c.Close() }

func (s almanacStore) Put(ctx context.Context, keys [][]byte, value []byte) error {
	if len(keys) == 1 {
		_, err := s.c.KV.Put(ctx, keys[0], value)
		return err
	}
	t := client.Txn{Then: make([]client.Op, len(keys))}
	for i, k := range keys {
		t.Then[i] = client.OpPut(k, value)
	}
	_, err := s.c.KV.Txn(ctx, t)
	return err
}

func (s almanacStore) Get(ctx context.Context, keys [][]byte) error {
	if len(keys) == 1 {
		_, err := s.c.KV.Get(ctx, keys[0])
		return err
	}
	t := client.Txn{Then: make([]client.Op, len(keys))}
	for i, k := range keys {
		t.Then[i] = client.OpRange(client.Key(k), client.RangeOptions{})
	}
	_, err := s.c.KV.Txn(ctx, t)
	return err
}

// KeysLeader returns the client address of the node that leads the range of the keys.
func KeysLeader(ctx context.Context, c *client.Client) (string, error) {
	ranges, err := c.Cluster.Ranges(ctx, "default", "")
	if err != nil {
		return "", err
	}
	key := Key(0)
	for _, r := range ranges {
		if bytes.Compare(r.GetStart(), key) <= 0 && (len(r.GetEnd()) == 0 || bytes.Compare(key, r.GetEnd()) < 0) {
			return nodeAddress(ctx, c, r.GetLeader())
		}
	}
	return "", errors.New("no range holds the keys of the benchmark")
}

// TopicLeader returns the client address of the node that leads a topic's first range.
func TopicLeader(ctx context.Context, c *client.Client, topic string) (string, error) {
	ranges, err := c.Cluster.Ranges(ctx, "", topic)
	if err != nil {
		return "", err
	}
	var leader uint64
	if len(ranges) > 0 {
		leader = ranges[0].GetLeader()
	}
	return nodeAddress(ctx, c, leader)
}

// nodeAddress returns a node's client address.
func nodeAddress(ctx context.Context, c *client.Client, node uint64) (string, error) {
	nodes, err := c.Cluster.Nodes(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range nodes {
		if n.GetNodeId() == node && node != 0 {
			return n.GetAddress(), nil
		}
	}
	return "", &client.Error{
		Reason: client.ReasonUnavailable, Message: "the range has no leader",
		Remedy: "wait for an election, or look at almanac cluster ranges",
	}
}
