package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/almanacdb/almanac/internal/admin"
	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/transport"
)

// memory shares the budget of --memory, M, out. What grows with what clients ask for is
// counted and refused as busy beyond its share; the rest is sized once.
//
//	part           share   holds                                                  beyond it
//	block_cache    M/4     blocks of both stores                                  evicts
//	memtables      7/32 M  both stores' writes before their flush: the log's      writes wait for a flush
//	                       M/16 each, two of them, the state's M/32, three;
//	                       32 MiB each at most
//	requests       M/8     requests being received and worked on, and answers     busy
//	                       until they are sent
//	proposals      M/16    commands from their arrival at the orderer until they  busy
//	                       are applied, in all the forms that they take until
//	                       then, those of other nodes' clients included
//	subscriptions  M/16    deliveries that wait for slow subscribers              fewer credits
//	streams        M/32    open streams of clients, 32 KiB each                   busy
//	snapshots      M/16    snapshots on their way to other nodes, 6 MiB each      tried again later
//	queues         M/64    messages to one peer, in each of three classes         dropped, sent again
//	logs           M/512   one range's recent entries, 1 MiB at most; M/64 on     read from the log store
//	                       their way to one follower
//	heads          M/32    newest versions of keys that were used last            read from the state store
//
// The rest, about a sixth, is for what is not counted: copies on the way, garbage
// before it is collected. Go's own memory limit is 7/8 M, for it is overshot while much
// comes at once, less what C holds if the binary was built with cgo. The program itself, about 26 MiB of mapped file, comes on top.
type memory struct {
	budget    int64
	cache     int64
	memtables [2]memtables // of the log store and the state store
	requests  *admission.Pool
	proposals *admission.Pool
	pushed    *admission.Pool // to subscribers
	streams   *admission.Pool
	snapshots *admission.Pool
	queue     int64 // one of them
	recent    int64 // of one range
	inflight  int64 // of one range, to one follower
	heads     int64
}

// memtables is how large a store's are, and how many may be in memory before writes wait.
// The log's are larger: what they hold dies in them if its state is flushed before they are.
type memtables struct {
	bytes int64
	count int
}

func shareOut(m int64) *memory {
	return &memory{
		budget: m, cache: m / 4, memtables: [2]memtables{{min(m/16, 32<<20), 2}, {min(m/32, 32<<20), 3}},
		requests: admission.NewPool(m / 8), proposals: admission.NewPool(m / 16),
		pushed: admission.NewPool(m / 16), streams: admission.NewPool(m / 32), snapshots: admission.NewPool(m / 16),
		queue: m / 64, recent: min(m/512, 1<<20), inflight: max(min(m/64, 16<<20), 1<<20),
		heads: m / 32,
	}
}

// limit is Go's own memory limit.
func (m *memory) limit() int64 { return m.budget/8*7 - m.offHeap() }

// offHeap is what C may hold.
func (m *memory) offHeap() int64 {
	if !engine.OffHeap {
		return 0
	}
	return m.cache + m.allMemtables()
}

func (m *memory) allMemtables() int64 {
	n := int64(0)
	for _, t := range m.memtables {
		n += t.bytes * int64(t.count)
	}
	return n
}

// parts tells the shares and what is used of them.
func (n *Node) parts() []admin.MemoryPart {
	m := n.memory
	list := []admin.MemoryPart{
		{Name: "block_cache", Budget: m.cache}, {Name: "memtables", Budget: m.allMemtables()},
		{Name: "queues", Budget: m.queue}, {Name: "logs", Budget: m.recent + m.inflight}, {Name: "heads", Budget: m.heads},
	}
	if n.cache != nil {
		list[0].Used, list[0].Counted = n.cache.Size(), true
	}
	for _, e := range []engine.Engine{n.logs, n.states} {
		if p, ok := e.(interface{ MemtableBytes() int64 }); ok {
			list[1].Used, list[1].Counted = list[1].Used+p.MemtableBytes(), true
		}
	}
	for _, p := range []struct {
		name string
		pool *admission.Pool
	}{{"requests", m.requests}, {"proposals", m.proposals}, {"subscriptions", m.pushed}, {"streams", m.streams}, {"snapshots", m.snapshots}} {
		list = append(list, admin.MemoryPart{Name: p.name, Budget: p.pool.Limit(), Used: p.pool.Used(), Counted: true})
	}
	return list
}

// limits are the store's.
func (m *memory) limits() store.Limits {
	return store.Limits{HeadBytes: int(m.heads), CacheBytes: int(m.recent), MaxInflightBytes: int(m.inflight)}
}

// queues bounds the transport's.
func (m *memory) queues() transport.Queues {
	return transport.EachQueue(int(m.queue))
}

const (
	quietEvery = time.Second
	quietFor   = 3        // seconds in a row
	quietStill = 10       // seconds in a row: by then memtables are flushed that were held before
	quietBytes = 4 << 20  // allocated in one of them
	returnAt   = 16 << 20 // what is worth returning
)

// returnMemory gives back to the machine what a load took, once it is over: the runtime
// alone waits for a collection, which comes late when little is allocated, and then
// keeps what it may need again. It runs until ctx ends.
func returnMemory(ctx context.Context) {
	t := time.NewTicker(quietEvery)
	defer t.Stop()
	before, quiet := heapState(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := heapState()
		if now.allocated-before.allocated < quietBytes {
			quiet++
		} else {
			quiet = 0
		}
		before = now
		if quiet == quietStill || quiet >= quietFor && now.idle+now.garbage() > returnAt {
			debug.FreeOSMemory()
		}
	}
}

// heap is what the Go runtime holds, in bytes.
type heap struct {
	allocated uint64 // ever
	objects   uint64 // live ones, and garbage
	live      uint64 // at the last collection
	idle      uint64 // free, and not returned
}

func (h heap) garbage() uint64 { return h.objects - min(h.objects, h.live) }

func heapState() heap {
	s := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	return heap{s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64(), s[3].Value.Uint64()}
}
