package main

import (
	"context"
	"fmt"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/load"
)

func (a *app) benchKV(ctx context.Context, f *benchFlags) (*record, error) {
	stores, err := a.benchStores(ctx, f)
	for _, s := range stores {
		defer func() { _ = s.Close() }()
	}
	if err != nil {
		return nil, err
	}
	keys := load.Keys{
		Stores: stores, Op: load.Op(f.op), Number: f.keys, Values: load.NewFiller(f.seed, f.size), Timeout: a.timeout,
	}
	if keys.Op != load.Put {
		if err := keys.Fill(ctx, f.clients, a.err); err != nil {
			return nil, err
		}
	}
	t, err := f.load(f.count, keys.Request).Run(ctx, a.err)
	if err != nil {
		return nil, err
	}
	return f.record("kv", t), nil
}

// benchStores opens what the clients share: one store for each endpoint, or one for the
// leader.
func (a *app) benchStores(ctx context.Context, f *benchFlags) ([]load.Store, error) {
	endpoints := a.options(a.endpoints).Endpoints
	if f.target == "leader" {
		leader, err := a.benchLeader(ctx, f, endpoints)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(a.err, "the leader is at %s\n", leader)
		endpoints = []string{leader}
	}
	var stores []load.Store
	for _, endpoint := range endpoints {
		if f.api == "etcd" {
			s, err := load.Etcd(ctx, endpoint)
			if err != nil {
				return stores, err
			}
			stores = append(stores, s)
			continue
		}
		c, err := a.dial(ctx, a.options([]string{endpoint}))
		if err != nil {
			return stores, err
		}
		stores = append(stores, load.Almanac(c))
	}
	return stores, nil
}

// benchLeader returns the client address of the node that leads the range of the keys.
func (a *app) benchLeader(ctx context.Context, f *benchFlags, endpoints []string) (address string, err error) {
	if f.api == "etcd" {
		return load.EtcdLeader(ctx, endpoints)
	}
	err = a.with(ctx, func(c *client.Client) error {
		address, err = load.KeysLeader(ctx, c)
		return err
	})
	return address, err
}
