package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	etcd "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

type etcdStore struct{ c *etcd.Client }

// Etcd returns a store that speaks etcd's API by etcd's own client, which spreads its
// requests over the endpoints.
func Etcd(ctx context.Context, endpoints ...string) (Store, error) {
	c, err := openEtcd(ctx, endpoints...)
	if err != nil {
		return nil, err
	}
	return etcdStore{c}, nil
}

func openEtcd(ctx context.Context, endpoints ...string) (*etcd.Client, error) {
	c, err := etcd.New(etcd.Config{
		Endpoints: endpoints, DialTimeout: 5 * time.Second, Context: ctx, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to etcd at %v: %w", endpoints, err)
	}
	return c, nil
}

// EtcdLeader asks every endpoint who it is and who leads, and returns the one that does.
func EtcdLeader(ctx context.Context, endpoints []string) (string, error) {
	c, err := openEtcd(ctx, endpoints...)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	for _, e := range endpoints {
		s, err := c.Status(ctx, e)
		if err == nil && s.Leader != 0 && s.Leader == s.Header.GetMemberId() {
			return e, nil
		}
	}
	return "", errors.New("none of the endpoints leads")
}

func (s etcdStore) Close() error { return s.c.Close() }

func (s etcdStore) Put(ctx context.Context, keys [][]byte, value []byte) error {
	if len(keys) == 1 {
		_, err := s.c.Put(ctx, string(keys[0]), string(value))
		return err
	}
	ops := make([]etcd.Op, len(keys))
	for i, k := range keys {
		ops[i] = etcd.OpPut(string(k), string(value))
	}
	_, err := s.c.Txn(ctx).Then(ops...).Commit()
	return err
}

func (s etcdStore) Get(ctx context.Context, keys [][]byte) error {
	if len(keys) == 1 {
		_, err := s.c.Get(ctx, string(keys[0]))
		return err
	}
	ops := make([]etcd.Op, len(keys))
	for i, k := range keys {
		ops[i] = etcd.OpGet(string(k))
	}
	_, err := s.c.Txn(ctx).Then(ops...).Commit()
	return err
}
