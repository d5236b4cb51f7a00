// Package engine is an ordered store of physical keys on one node. It has two
// implementations under one conformance suite: Pebble, and a small in-memory one whose
// flush, sync and crash are steps that a simulator schedules (S5). It knows keys only
// as bytes with the split that package keys defines.
package engine

import "github.com/almanacdb/almanac/internal/effect"

// Engine is an ordered store. Methods are safe for concurrent use unless noted.
//
// An engine is opened either with a write-ahead log (the log store: a synced commit is
// durable on return) or without (the state store: a commit is durable only after a
// later Flush or ingest covers it).
type Engine interface {
	effect.Reader

	// NewBatch returns an empty batch. If indexed, it can be read through, and reads
	// see the engine below it; else only the writing methods and Commit work.
	NewBatch(indexed bool) Batch

	// NewSnapshot returns a consistent view as of now. The caller closes it.
	NewSnapshot() Snapshot

	// DurableGet reads key as a crash now would leave it.
	DurableGet(key []byte) (value []byte, ok bool, err error)

	// Flush makes everything committed before the call durable.
	Flush() error

	// NewSST returns a writer of one sorted file in memory, for Stage.
	NewSST() SSTWriter

	// Stage stores a finished file under a name, durably, without making it visible.
	// Staged files do not outlive the process: opening an engine removes them.
	Stage(name string, sst []byte) error

	// Unstage removes staged files; unknown names are ignored.
	Unstage(names ...string)

	// Ingest makes staged files visible atomically and durably, their range deletes
	// covering everything older (S2), and removes them from staging. Files must not
	// overlap one another.
	Ingest(names ...string) error

	// DiskUsage estimates the bytes on disk of [lower, upper).
	DiskUsage(lower, upper []byte) (uint64, error)

	// Close releases the engine. It does not flush.
	Close() error
}

// Batch collects writes. Not safe for concurrent use.
type Batch interface {
	effect.View
	// Empty says whether nothing was written to the batch yet.
	Empty() bool
	// Commit applies the batch atomically; sync waits until it is durable and is an
	// error on an engine without a write-ahead log. The batch is finished afterwards.
	Commit(sync bool) error
	// Close drops a batch that was not committed; harmless after Commit.
	Close() error
}

// Snapshot is a consistent view; close it soon, it holds space.
type Snapshot interface {
	effect.Reader
	Close() error
}

// SSTWriter builds one sorted file. Keys are added in strictly rising order; range
// deletes, in rising order, cover only what is older than the file. Not safe for
// concurrent use.
type SSTWriter interface {
	Set(key, value []byte) error
	DeleteRange(lower, upper []byte) error
	// Size estimates the bytes so far.
	Size() int
	// Finish returns the file; the writer is finished afterwards.
	Finish() ([]byte, error)
}
