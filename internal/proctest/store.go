package proctest

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/lincheck"
)

// Store is what both APIs can do with keys. A write's error does not say whether the
// write was done; Refused does.
type Store interface {
	Get(ctx context.Context, key string) (value string, present bool, err error)
	Put(ctx context.Context, key, value string) error
	Delete(ctx context.Context, key string) (present bool, err error)
	// Swap puts in.Value if the key is as in expects.
	Swap(ctx context.Context, in lincheck.Input) (swapped bool, err error)
	// Txn puts all of then if every value of ifs is as given, in one transaction.
	Txn(ctx context.Context, ifs, then []Pair) (done bool, err error)
	// Range returns the keys with a prefix, as of one moment.
	Range(ctx context.Context, prefix string) (map[string]string, error)
	// Refused says that a failed write surely was not done and never will be.
	Refused(err error) bool
}

// Pair is a key and its value.
type Pair struct{ Key, Value string }

// Do does what in asks of one key.
func Do(ctx context.Context, s Store, in lincheck.Input) (out lincheck.Output, err error) {
	switch in.Op {
	case lincheck.Get:
		out.Value, out.Present, err = s.Get(ctx, in.Key)
	case lincheck.Put:
		err = s.Put(ctx, in.Key, in.Value)
	case lincheck.Delete:
		out.Present, err = s.Delete(ctx, in.Key)
	default:
		out.Swapped, err = s.Swap(ctx, in)
	}
	return out, err
}

// Almanac is a Store behind almanac.v1.
type Almanac struct{ KV *client.KV }

// Get implements Store.
func (s Almanac) Get(ctx context.Context, key string) (string, bool, error) {
	kv, err := s.KV.Get(ctx, []byte(key))
	if kv == nil {
		return "", false, err
	}
	return string(kv.Value), true, err
}

// Put implements Store.
func (s Almanac) Put(ctx context.Context, key, value string) error {
	_, err := s.KV.Put(ctx, []byte(key), []byte(value))
	return err
}

// Delete implements Store.
func (s Almanac) Delete(ctx context.Context, key string) (bool, error) {
	r, err := s.KV.Delete(ctx, client.Key([]byte(key)))
	return r.Deleted == 1, err
}

// Swap implements Store.
func (s Almanac) Swap(ctx context.Context, in lincheck.Input) (bool, error) {
	if in.Absent {
		_, err := s.KV.PutIfAbsent(ctx, []byte(in.Key), []byte(in.Value))
		if client.ReasonOf(err) == client.ReasonCompareFailed {
			return false, nil
		}
		return err == nil, err
	}
	return s.Txn(ctx, []Pair{{in.Key, in.Expect}}, []Pair{{in.Key, in.Value}})
}

// Txn implements Store.
func (s Almanac) Txn(ctx context.Context, ifs, then []Pair) (bool, error) {
	var t client.Txn
	for _, p := range ifs {
		t.If = append(t.If, client.CompareValue([]byte(p.Key), client.Equal, []byte(p.Value)))
	}
	for _, p := range then {
		t.Then = append(t.Then, client.OpPut([]byte(p.Key), []byte(p.Value)))
	}
	r, err := s.KV.Txn(ctx, t)
	return err == nil && r.Succeeded, err
}

// Range implements Store.
func (s Almanac) Range(ctx context.Context, prefix string) (map[string]string, error) {
	r, err := s.KV.Range(ctx, client.Prefix([]byte(prefix)), client.RangeOptions{})
	if err != nil {
		return nil, err
	}
	found := make(map[string]string, len(r.KVs))
	for _, kv := range r.KVs {
		found[string(kv.Key)] = string(kv.Value)
	}
	return found, nil
}

// Refused implements Store by what docs say of the reasons: the words of a write that
// may have been done are others.
func (s Almanac) Refused(err error) bool { return SurelyNotDone(err) }

// SurelyNotDone says of a write's error from our own client that nothing was done and
// nothing will be.
func SurelyNotDone(err error) bool {
	switch client.ReasonOf(err) {
	case client.ReasonNotLeader, client.ReasonBusy, client.ReasonUninitialized, client.ReasonUnavailable, "stopped":
		return true
	}
	return false
}

// Etcd is a Store behind etcd's API.
type Etcd struct{ KV clientv3.KV }

// Get implements Store.
func (s Etcd) Get(ctx context.Context, key string) (string, bool, error) {
	r, err := s.KV.Get(ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		return "", false, err
	}
	return string(r.Kvs[0].Value), true, nil
}

// Put implements Store.
func (s Etcd) Put(ctx context.Context, key, value string) error {
	_, err := s.KV.Put(ctx, key, value)
	return err
}

// Delete implements Store.
func (s Etcd) Delete(ctx context.Context, key string) (bool, error) {
	r, err := s.KV.Delete(ctx, key)
	return err == nil && r.Deleted == 1, err
}

// Swap implements Store.
func (s Etcd) Swap(ctx context.Context, in lincheck.Input) (bool, error) {
	if !in.Absent {
		return s.Txn(ctx, []Pair{{in.Key, in.Expect}}, []Pair{{in.Key, in.Value}})
	}
	r, err := s.KV.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(in.Key), "=", 0)).Then(clientv3.OpPut(in.Key, in.Value)).Commit()
	return err == nil && r.Succeeded, err
}

// Txn implements Store.
func (s Etcd) Txn(ctx context.Context, ifs, then []Pair) (bool, error) {
	var compares []clientv3.Cmp
	for _, p := range ifs {
		compares = append(compares, clientv3.Compare(clientv3.Value(p.Key), "=", p.Value))
	}
	var puts []clientv3.Op
	for _, p := range then {
		puts = append(puts, clientv3.OpPut(p.Key, p.Value))
	}
	r, err := s.KV.Txn(ctx).If(compares...).Then(puts...).Commit()
	return err == nil && r.Succeeded, err
}

// Range implements Store.
func (s Etcd) Range(ctx context.Context, prefix string) (map[string]string, error) {
	r, err := s.KV.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	found := make(map[string]string, len(r.Kvs))
	for _, kv := range r.Kvs {
		found[string(kv.Key)] = string(kv.Value)
	}
	return found, nil
}

// Refused implements Store: of etcd's errors, only this one is sure of it.
func (s Etcd) Refused(err error) bool { return errors.Is(err, rpctypes.ErrTooManyRequests) }

// NewEtcdClient returns etcd's own client.
func NewEtcdClient(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	cl, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}
