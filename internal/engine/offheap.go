//go:build !cgo

package engine

// OffHeap says that block caches and memtables are allocated by C, where Go's memory
// limit does not count them.
const OffHeap = false
