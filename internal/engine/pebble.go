package engine

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// Pebble is the engine on disk. Beside Pebble's own goroutines it has one timer, which
// flushes by age when there is no write-ahead log.
type Pebble struct {
	opts       Options
	db         *pebble.DB
	po         *pebble.Options
	fs         vfs.FS
	fsCloser   io.Closer
	staging    string
	version    atomic.Uint64 // counts commits and ingests
	unsynced   atomic.Bool   // with a write-ahead log: some commit was not synced
	background chan error    // the last failed flush or compaction, for Flush

	flushDue atomic.Bool // a flush by age is scheduled

	sequences *sequences

	// mu is held shared while db is used, and exclusively only to close, so that nobody
	// waits behind a long flush.
	mu     sync.RWMutex
	closed bool

	failOnce sync.Once
	failed   chan struct{} // closed once failure is set
	failure  error
}

var _ Engine = (*Pebble)(nil)

// OpenPebble opens the engine in a directory, creating it if missing, and removes
// staged files. The error is fault.Corrupt if what is on disk fails its checks.
func OpenPebble(dir string, opts Options) (Engine, error) {
	p := &Pebble{
		opts: opts, fs: opts.FS, background: make(chan error, 1), failed: make(chan struct{}),
		sequences: newSequences(),
	}
	if p.opts.FlushAge <= 0 {
		p.opts.FlushAge = defaultFlushAge
	}
	if p.fs == nil {
		p.fs, p.fsCloser = vfs.WithDiskHealthChecks(vfs.Default, slowDisk, nil, func(i vfs.DiskSlowInfo) {
			if opts.Listener.DiskSlow != nil {
				opts.Listener.DiskSlow(i.Path, i.OpType.String(), i.Duration)
			}
		})
	}
	p.fs = vfs.OnDiskFull(p.fs, func() {
		if opts.Listener.DiskFull != nil {
			opts.Listener.DiskFull()
		}
	})
	p.fs = namedFS{p.fs}
	p.po = p.pebbleOptions(opts)
	var db *pebble.DB
	err := p.checkFiles(dir)
	if err == nil {
		db, err = pebble.Open(dir, p.po)
	}
	if err == nil {
		p.db = db
		p.staging = p.fs.PathJoin(dir, "staging")
		if err = p.prepare(); err != nil {
			db.Close()
		}
	}
	if err != nil {
		p.closeFS()
		return nil, openErr(dir, err)
	}
	return p, nil
}

func (p *Pebble) prepare() error {
	if err := p.clearStaging(); err != nil {
		return err
	}
	if p.opts.WAL {
		// The first log of a new store is begun before Pebble raises its format, so it
		// could not tell damage from its end. Go on in another.
		if err := p.Flush(); err != nil {
			return err
		}
	}
	return p.err()
}

func openErr(dir string, err error) error {
	f := fault.As(mapErr(err))
	if errors.Is(err, os.ErrNotExist) {
		f = fault.New(fault.Corrupt, "a file is missing")
	}
	return fault.Wrap(f.Kind, err, "cannot open the store in %s", dir).
		WithRemedy("check the disk, and restore the store from a copy")
}

func (p *Pebble) closeFS() {
	if p.fsCloser != nil {
		p.fsCloser.Close()
	}
}

// mapErr gives Pebble's errors their kinds.
func mapErr(err error) error {
	var f *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return err
	case pebble.IsCorruptionError(err), strings.Contains(err.Error(), "object size mismatch"):
		// Pebble does not mark a sorted file of the wrong size as the corruption that it is.
		if i := pebble.ExtractDataCorruptionInfo(err); i != nil {
			return damaged(i.Path, err)
		}
		return fault.Wrap(fault.Corrupt, err, "stored data is damaged")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.Wrap(fault.DiskFull, err, "the disk is full").WithRemedy("free space or add a disk")
	case errors.Is(err, pebble.ErrClosed):
		return errPebbleClosed
	}
	return fault.Wrap(fault.Internal, err, "storage error")
}

func damaged(path string, cause error) error {
	return fault.Wrap(fault.Corrupt, cause, "file %s is damaged", path)
}

var errPebbleClosed = fault.New(fault.Stopped, "the store is closed")

// fail latches err and tells the owner, once.
func (p *Pebble) fail(err error) {
	p.failOnce.Do(func() {
		p.failure = err
		close(p.failed)
		if p.opts.Fatal != nil {
			p.opts.Fatal(err)
		}
	})
}

// err returns the latched failure.
func (p *Pebble) err() error {
	select {
	case <-p.failed:
		return p.failure
	default:
		return nil
	}
}

// use keeps the engine open until release; it fails if it is closed.
func (p *Pebble) use() error {
	p.mu.RLock()
	if p.closed {
		p.mu.RUnlock()
		return errPebbleClosed
	}
	return nil
}

func (p *Pebble) release() { p.mu.RUnlock() }

type getter interface {
	Get(key []byte) ([]byte, io.Closer, error)
}

func get(r getter, key []byte) ([]byte, bool, error) {
	v, c, err := r.Get(key)
	if err != nil {
		if errors.Is(err, pebble.ErrNotFound) {
			return nil, false, nil
		}
		return nil, false, mapErr(err)
	}
	out := append(make([]byte, 0, len(v)), v...)
	return out, true, mapErr(c.Close())
}

// Get implements Engine.
func (p *Pebble) Get(key []byte) ([]byte, bool, error) {
	if err := p.use(); err != nil {
		return nil, false, err
	}
	defer p.release()
	return get(p.db, key)
}

// NewIter implements Engine.
func (p *Pebble) NewIter(lower, upper []byte) (effect.Iterator, error) {
	if err := p.use(); err != nil {
		return nil, err
	}
	defer p.release()
	return readIter(p.db, lower, upper)
}

// NewSnapshot implements Engine.
func (p *Pebble) NewSnapshot() Snapshot {
	if err := p.use(); err != nil {
		return closedSnapshot{}
	}
	defer p.release()
	return &pebbleSnapshot{p.db.NewSnapshot()}
}

type pebbleSnapshot struct{ s *pebble.Snapshot }

func (s *pebbleSnapshot) Get(key []byte) ([]byte, bool, error) { return get(s.s, key) }

func (s *pebbleSnapshot) NewIter(lower, upper []byte) (effect.Iterator, error) {
	return readIter(s.s, lower, upper)
}

func (s *pebbleSnapshot) Close() error { return mapErr(s.s.Close()) }

type closedSnapshot struct{}

func (closedSnapshot) Get([]byte) ([]byte, bool, error)             { return nil, false, errPebbleClosed }
func (closedSnapshot) NewIter(_, _ []byte) (effect.Iterator, error) { return nil, errPebbleClosed }
func (closedSnapshot) Close() error                                 { return nil }

// DurableGet implements Engine. With a write-ahead log it first syncs what was
// committed without.
func (p *Pebble) DurableGet(key []byte) ([]byte, bool, error) {
	if err := p.use(); err != nil {
		return nil, false, err
	}
	defer p.release()
	if p.opts.WAL {
		if p.unsynced.Swap(false) {
			if err := mapErr(p.db.LogData(nil, pebble.Sync)); err != nil {
				return nil, false, err
			}
		}
		if err := p.err(); err != nil {
			return nil, false, err
		}
		return get(p.db, key)
	}
	it, err := p.db.NewIter(&pebble.IterOptions{
		LowerBound: key, UpperBound: append(key[:len(key):len(key)], 0),
		OnlyReadGuaranteedDurable: true, UseL6Filters: true,
	})
	if err != nil {
		return nil, false, mapErr(err)
	}
	var v []byte
	ok := it.SeekPrefixGE(key)
	if ok {
		var b []byte
		if b, err = it.ValueAndErr(); err == nil {
			v = append(make([]byte, 0, len(b)), b...)
		}
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return nil, false, mapErr(err)
	}
	return v, ok, nil
}

// Flush implements Engine. If the flush fails it is retried in the background.
func (p *Pebble) Flush() error {
	if err := p.use(); err != nil {
		return err
	}
	defer p.release()
	if err := p.err(); err != nil {
		return err
	}
	select {
	case <-p.background:
	default:
	}
	done, err := p.db.AsyncFlush()
	if err != nil {
		return mapErr(err)
	}
	select {
	case <-done:
		return p.err()
	case err := <-p.background:
		return err
	case <-p.failed:
		return p.failure
	}
}

// flushByAge makes sure that what was just committed is flushed soon.
func (p *Pebble) flushByAge() {
	if p.opts.WAL || p.flushDue.Swap(true) {
		return
	}
	time.AfterFunc(p.opts.FlushAge, func() {
		if p.use() != nil {
			return
		}
		defer p.release()
		p.flushDue.Store(false)
		if p.err() == nil {
			p.db.AsyncFlush() // a failure reaches the listener
		}
	})
}

// DiskUsage implements Engine. It counts sorted files only.
func (p *Pebble) DiskUsage(lower, upper []byte) (uint64, error) {
	if err := p.use(); err != nil {
		return 0, err
	}
	defer p.release()
	if upper == nil {
		upper = []byte(strings.Repeat("\xff", 16))
	}
	n, err := p.db.EstimateDiskUsage(lower, upper)
	return n, mapErr(err)
}

// MemtableBytes returns what memtables take in memory.
func (p *Pebble) MemtableBytes() int64 {
	if p.use() != nil {
		return 0
	}
	defer p.release()
	return int64(p.db.Metrics().MemTable.Size)
}

// Close implements Engine. Batches, iterators and snapshots must be closed first.
func (p *Pebble) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	err := p.db.Close()
	p.closeFS()
	return mapErr(err)
}
