package load

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"time"
)

// Store is what a load on keys goes to: Almanac's API, or etcd's. Several keys at once
// are one transaction. Safe for concurrent use.
type Store interface {
	Put(ctx context.Context, keys [][]byte, value []byte) error
	Get(ctx context.Context, keys [][]byte) error
	Close() error
}

// Op is what a load does with keys.
type Op string

// Ops; Mixed is half of each.
const (
	Put   Op = "put"
	Get   Op = "get"
	Mixed Op = "mixed"
)

// Keys is a load on random keys. The clients share the stores, one after another.
type Keys struct {
	Stores []Store
	Op     Op
	Number int // of different keys
	Values Filler
	// Timeout bounds each request.
	Timeout time.Duration
}

// Request returns the requests of a client.
func (k Keys) Request(client int) Request {
	store := k.Stores[client%len(k.Stores)]
	return func(ctx context.Context, random *rand.Rand, n int) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, k.Timeout)
		defer cancel()
		keys := randomKeys(random, k.Number, n)
		var err error
		if k.Op == Get || k.Op == Mixed && random.IntN(2) == 0 {
			err = store.Get(ctx, keys)
		} else {
			err = store.Put(ctx, keys, k.Values.Value(random.Int64()))
		}
		if err != nil {
			return 0, err
		}
		return n, nil
	}
}

// Fill writes every key once, so that gets find something.
func (k Keys) Fill(ctx context.Context, clients int, w io.Writer) error {
	fmt.Fprintf(w, "writing %d keys\n", k.Number)
	next := make(chan []byte)
	go func() {
		defer close(next)
		for i := range k.Number {
			select {
			case next <- Key(i):
			case <-ctx.Done():
				return
			}
		}
	}()
	t, err := Load{Clients: clients, Batch: 1, Count: int64(k.Number), Request: func(i int) Request {
		return func(ctx context.Context, random *rand.Rand, _ int) (int, error) {
			key, ok := <-next
			if !ok {
				return 0, nil
			}
			return 1, k.Stores[i%len(k.Stores)].Put(ctx, [][]byte{key}, k.Values.Value(random.Int64()))
		}
	}}.Run(ctx, w)
	if err == nil {
		err = t.FirstError
	}
	return err
}

// Key returns the ith key.
func Key(i int) []byte {
	return strconv.AppendInt([]byte("bench/"), int64(1_000_000_000+i), 10)
}

// randomKeys returns n ≤ keys different keys, as one transaction writes no key twice.
func randomKeys(random *rand.Rand, keys, n int) [][]byte {
	picked := make([][]byte, 0, n)
	if n == 1 {
		return append(picked, Key(random.IntN(keys)))
	}
	first := random.IntN(keys)
	for i := range n {
		picked = append(picked, Key((first+i)%keys))
	}
	return picked
}
