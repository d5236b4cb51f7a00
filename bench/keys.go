package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/load"
)

// api is how a system is asked.
type api string

const (
	etcdAPI api = "etcd's API"
	ownAPI  api = "our client"
)

// where is to whom clients go.
type where string

const (
	everywhere where = "all endpoints"
	atLeader   where = "the leader"
)

const (
	// keyCount is the number of different keys.
	keyCount = 10_000
	// requestTimeout bounds one request of a load.
	requestTimeout = 30 * time.Second
)

func putMeasure(s system, a api, w where, clients int) measure {
	return keysMeasure(s, a, w, load.Put, clients)
}

func getMeasure(s system, a api, w where, clients int) measure {
	return keysMeasure(s, a, w, load.Get, clients)
}

func keysMeasure(s system, a api, w where, op load.Op, clients int) measure {
	return measure{
		system: s, name: fmt.Sprintf("%s by %s at %s, %d clients", op, a, w, clients),
		run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
			keys, err := c.keys(ctx, a, w)
			if err != nil {
				return nil, err
			}
			defer closeAll(keys.Stores)
			if op == load.Get {
				if err := keys.Fill(ctx, clients, io.Discard); err != nil {
					return nil, err
				}
			}
			keys.Op = op
			return b.drive(ctx, c, load.Load{Clients: clients, Batch: 1, Seed: 1, Request: keys.Request})
		},
	}
}

// keys opens the stores of a load on keys: one connection an endpoint.
func (c *cluster) keys(ctx context.Context, a api, w where) (load.Keys, error) {
	k := load.Keys{Number: keyCount, Values: load.NewFiller(1, size), Timeout: requestTimeout}
	endpoints := c.endpoints
	if w == atLeader {
		leader, err := c.keysLeader(ctx)
		if err != nil {
			return k, err
		}
		endpoints = []string{leader}
	}
	for _, e := range endpoints {
		s, err := open(ctx, a, e)
		if err != nil {
			closeAll(k.Stores)
			return k, err
		}
		k.Stores = append(k.Stores, s)
	}
	return k, nil
}

func open(ctx context.Context, a api, endpoint string) (load.Store, error) {
	if a == etcdAPI {
		return load.Etcd(ctx, endpoint)
	}
	o, err := client.Open(ctx, client.Options{Endpoints: []string{endpoint}})
	if err != nil {
		return nil, err
	}
	return load.Almanac(o), nil
}

func closeAll(stores []load.Store) {
	for _, s := range stores {
		_ = s.Close()
	}
}

// keysLeader returns the client address of the node that orders writes of keys.
func (c *cluster) keysLeader(ctx context.Context) (string, error) {
	if c.system == etcd {
		return load.EtcdLeader(ctx, c.endpoints)
	}
	a, err := client.Open(ctx, client.Options{Endpoints: c.endpoints})
	if err != nil {
		return "", err
	}
	defer func() { _ = a.Close() }()
	return load.KeysLeader(ctx, a)
}
