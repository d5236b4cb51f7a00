package engine

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// Cache is a block cache; engines of one node share one. See NewCache.
type Cache = pebble.Cache

// NewCache returns a block cache of a size in bytes. It lives on the Go heap. The
// caller releases it with Unref after the engines that use it are closed.
func NewCache(bytes int64) *Cache { return pebble.NewCache(bytes) }

// Options configures a Pebble engine. The zero value works.
type Options struct {
	// WAL gives the engine a write-ahead log: synced commits are durable. Without it
	// only Flush, Ingest and flushes by size and age make anything durable.
	WAL bool
	// ShortLived says that most of what is written is deleted soon, in the order in which
	// it was written, and read rarely: nothing is compressed or filtered, and compactions
	// leave time for the deletions.
	ShortLived bool
	// Cache is the shared block cache; if nil the engine makes one of CacheBytes.
	Cache *Cache
	// CacheBytes sizes the engine's own cache; 0 means 8 MiB.
	CacheBytes int64
	// MemtableBytes is the size at which a memtable is flushed; 0 means 16 MiB, and more
	// than 32 MiB is cut to that, so that replay stays short (S4).
	MemtableBytes int64
	// Memtables is how many may be in memory before writes wait for a flush; 0 means 4.
	Memtables int
	// FlushAge is how long a commit may stay in memory before a flush starts, on an
	// engine without a write-ahead log; 0 means 3 s.
	FlushAge time.Duration
	// FS is the file system; nil means the machine's, watched for slowness.
	FS vfs.FS
	// Fatal is called once when storage failed so that nothing can be promised any
	// more. The node must stop (S6); until it does, writes return the error. It must not
	// call the engine.
	Fatal func(error)
	// Listener hears of trouble.
	Listener Listener
	// Logger gets Pebble's own log; nil drops it.
	Logger *slog.Logger
}

// Listener's functions, each of which may be nil, are called from the engine's own
// goroutines and must return soon without doing I/O.
type Listener struct {
	WriteStall      func(stalled bool, reason string)            // writes wait, or go on
	DiskSlow        func(path, op string, elapsed time.Duration) // one operation took too long
	DiskFull        func()                                       // an operation met a full disk
	BackgroundError func(error)                                  // a flush or compaction failed; it is retried
	Corruption      func(error)                                  // kind Corrupt: a file, which it names, failed its checksum
	Flushed         func()                                       // what is durable moved forward
}

const (
	defaultMemtable = 16 << 20
	maxMemtable     = 32 << 20
	defaultFlushAge = 3 * time.Second
	slowDisk        = 2 * time.Second

	// How many flushes, twice over, may overlap before they are compacted. With random keys a
	// compaction writes the level below anew, so its cost for each byte falls with what it
	// takes at once; every flush that waits is one more place for reads to look.
	compactAt           = 8
	compactShortLivedAt = 20

	// How large sorted files get: flushedFile where memtables are flushed to, baseFile in the
	// first level below, and in each further one twice as large. A compaction takes along
	// flushed files that overlap nothing below while it takes less than 25 times baseFile in
	// all: were that more, the first compactions would rewrite what could be moved.
	flushedFile = 4 << 20
	baseFile    = 2 << 20

	// The format of Pebble's files: sorted files with a checksum in the footer, and a
	// write-ahead log that tells damage from its end. Raise it only together with the
	// data directory's format version.
	pebbleFormat = pebble.FormatTableFormatV6
)

// comparer orders keys bytewise. Its name is on disk for ever.
var comparer = func() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "almanac.v1"
	c.Split = keys.Split
	c.ImmediateSuccessor = immediateSuccessor
	return &c
}()

// immediateSuccessor appends the smallest key above prefix that is a whole prefix
// itself. Everything that starts with a version's terminated prefix belongs to it, so
// its successor is the first key that does not.
func immediateSuccessor(dst, prefix []byte) []byte {
	n := len(dst)
	dst = append(append(dst, prefix...), 0)
	if keys.Split(dst[n:]) == len(prefix)+1 {
		return dst
	}
	dst = dst[:len(dst)-1]
	dst[len(dst)-1]++ // the terminator ends in 0x01
	return dst
}

func (p *Pebble) pebbleOptions(o Options) *pebble.Options {
	memtable := o.MemtableBytes
	if memtable <= 0 {
		memtable = defaultMemtable
	}
	po := &pebble.Options{
		Cache:                       o.Cache,
		CacheSize:                   o.CacheBytes,
		Comparer:                    comparer,
		DisableWAL:                  !o.WAL,
		EventListener:               p.listener(o),
		FS:                          p.fs,
		FormatMajorVersion:          pebbleFormat,
		Logger:                      pebbleLogger{p, o.Logger},
		MemTableSize:                uint64(min(memtable, maxMemtable)),
		MemTableStopWritesThreshold: cmp.Or(o.Memtables, 4),
		L0CompactionThreshold:       compactAt,
		L0StopWritesThreshold:       40,
		LBaseMaxBytes:               64 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		MaxOpenFiles:                1024,
	}
	po.Experimental.DisableIngestAsFlushable = func() bool { return true }
	po.Experimental.EnableColumnarBlocks = func() bool { return true }
	po.Experimental.SpanPolicyFunc = p.sequences.policy
	po.TargetFileSizes[0], po.TargetFileSizes[1] = flushedFile, baseFile
	if o.ShortLived {
		po.L0CompactionThreshold = compactShortLivedAt
	}
	for i := range po.Levels {
		po.Levels[i].Compression = func() *block.CompressionProfile { return block.NoCompression }
		if o.ShortLived {
			continue
		}
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		po.Levels[i].FilterType = pebble.TableFilter
		po.Levels[i].Compression = func() *block.CompressionProfile { return block.SnappyCompression }
	}
	po.EnsureDefaults()
	return po
}

func (p *Pebble) listener(o Options) *pebble.EventListener {
	l := o.Listener
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			err = mapErr(err)
			select {
			case p.background <- err:
			default:
			}
			if l.BackgroundError != nil {
				l.BackgroundError(err)
			}
			if o.WAL && fault.KindOf(err) != fault.DiskFull { // what it could not write is in the log, too
				p.fail(err) // the log store's disk is not to be trusted any more (S6)
			}
		},
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			if l.Corruption != nil {
				l.Corruption(damaged(i.Path, i.Details))
			}
		},
		FlushBegin: func(pebble.FlushInfo) { p.sequences.flushing() },
		FlushEnd: func(i pebble.FlushInfo) {
			if i.Err == nil && l.Flushed != nil {
				l.Flushed()
			}
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			if l.WriteStall != nil {
				l.WriteStall(true, i.Reason)
			}
		},
		WriteStallEnd: func() {
			if l.WriteStall != nil {
				l.WriteStall(false, "")
			}
		},
	}
}

// pebbleLogger keeps Pebble from ending the process: what it calls fatal becomes the
// engine's latched failure.
type pebbleLogger struct {
	p *Pebble
	l *slog.Logger
}

func (g pebbleLogger) Infof(format string, args ...any) {
	if g.l != nil {
		g.l.Debug(fmt.Sprintf(format, args...))
	}
}

func (g pebbleLogger) Errorf(format string, args ...any) {
	if g.l != nil {
		g.l.Error(fmt.Sprintf(format, args...))
	}
}

func (g pebbleLogger) Fatalf(format string, args ...any) {
	err := mapErr(fmt.Errorf("storage failed: %w", firstErr(format, args)))
	if g.l != nil {
		g.l.Error(err.Error())
	}
	g.p.fail(err)
}

// firstErr returns the message, wrapping the first error among its arguments so that
// its kind is not lost.
func firstErr(format string, args []any) error {
	for _, a := range args {
		if err, ok := a.(error); ok {
			return err
		}
	}
	return fmt.Errorf(format, args...)
}
