package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/almanacdb/almanac/internal/fault"
)

// Pebble takes the first chunk that does not verify in a manifest, and in the last block
// of its newest write-ahead log, for the place where a crash cut a write off, and goes on
// without what follows: a flipped bit there would take back what was synced, and nobody
// would know. checkFiles tells the two apart before Pebble opens the store: what was
// synced before something later was written is damaged if it does not verify.
//
// Both files are made of 32 KiB blocks of chunks; a chunk is a masked CRC32C of all that
// follows it, the payload's length, a type, in logs the log's number, and, in those of
// newer formats, up to which offset the log was synced when the chunk was written.

const (
	frameBlock      = 32 << 10
	headerLegacy    = 7
	headerNumbered  = headerLegacy + 4
	headerSynced    = headerNumbered + 8
	lastLegacyType  = 4
	lastNumberType  = 8
	lastSyncedType  = 12
	smallestWritten = 512 // what a disk writes at once, at least
)

// checkFiles returns a Corrupt error if the newest options, the manifest or the newest log is
// damaged.
func (p *Pebble) checkFiles(dir string) error {
	fs := p.fs
	desc, err := pebble.Peek(dir, fs)
	if err != nil || !desc.Exists {
		return nil // Pebble says it better
	}
	if desc.OptionsFilename != "" {
		if err := p.checkOptions(dir, fs.PathJoin(dir, fs.PathBase(desc.OptionsFilename))); err != nil {
			return err
		}
	}
	if err := checkFile(fs, dir, fs.PathBase(desc.ManifestFilename), 0); err != nil {
		return err
	}
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	var newest uint64
	for _, name := range names {
		var n uint64
		if _, err := fmt.Sscanf(name, "%d.log", &n); err == nil && strings.HasSuffix(name, ".log") {
			newest = max(newest, n)
		}
	}
	if newest == 0 {
		return nil
	}
	return checkFile(fs, dir, fmt.Sprintf("%06d.log", newest), uint32(newest))
}

// checkOptions checks a file of options. Those that Pebble compares never change here, so
// other ones are damage, which Pebble itself takes for a mistake of its caller. It reads no
// others, whose damage does no harm.
func (p *Pebble) checkOptions(dir, path string) error {
	f, err := p.fs.Open(path)
	if err != nil {
		return nil // Pebble says it better
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read %s", path)
	}
	if err := p.po.CheckCompatibility(dir, string(b)); err != nil {
		return damaged(path, err)
	}
	return nil
}

// checkFile checks a log by its number, or a manifest, whose chunks bear none.
func checkFile(fs vfs.FS, dir, name string, number uint32) error {
	f, err := fs.Open(fs.PathJoin(dir, name))
	if err != nil {
		return nil // Pebble says it better
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read %s", name)
	}
	bad := framedUpTo(b, number)
	if bad == len(b) || !syncedBeyond(b, bad, number) {
		return nil
	}
	return fault.New(fault.Corrupt, "file %s is damaged at offset %d of %d", fs.PathJoin(dir, name), bad, len(b))
}

// chunk is what stands at an offset, if it verifies.
type chunk struct {
	end    int
	kind   byte
	synced uint64 // 0 in older formats
}

// chunkAt reads the chunk at an offset.
func chunkAt(b []byte, at int, number uint32) (c chunk, ok bool) {
	block := min(len(b), (at/frameBlock+1)*frameBlock)
	if at+headerLegacy > block {
		return c, false
	}
	c.kind = b[at+6]
	size := headerLegacy
	switch {
	case c.kind == 0 || c.kind > lastSyncedType || (c.kind > lastLegacyType) != (number != 0):
		return c, false
	case c.kind > lastNumberType:
		size = headerSynced
	case c.kind > lastLegacyType:
		size = headerNumbered
	}
	c.end = at + size + int(binary.LittleEndian.Uint16(b[at+4:]))
	if at+size > block || c.end > block {
		return c, false
	}
	if number != 0 && binary.LittleEndian.Uint32(b[at+headerLegacy:]) != number {
		return c, false
	}
	if size == headerSynced {
		c.synced = binary.LittleEndian.Uint64(b[at+headerNumbered:])
	}
	sum := crc32.Checksum(b[at+6:c.end], castagnoli)
	return c, binary.LittleEndian.Uint32(b[at:]) == (sum>>15|sum<<17)+0xa282ead8
}

// framedUpTo returns the offset of the first chunk that does not verify, or the end.
func framedUpTo(b []byte, number uint32) int {
	at := 0
	for at < len(b) {
		if c, ok := chunkAt(b, at, number); ok {
			at = c.end
			continue
		}
		// The end of a block that holds no further chunk is zeros.
		block := min(len(b), (at/frameBlock+1)*frameBlock)
		if block-at >= headerSynced || len(bytes.Trim(b[at:block], "\x00")) > 0 {
			return at
		}
		at = block
	}
	return at
}

// syncedBeyond says whether what does not verify at an offset was synced once.
func syncedBeyond(b []byte, bad int, number uint32) bool {
	for at := bad + 1; at < len(b); at++ {
		c, ok := chunkAt(b, at, number)
		// Each edit of a manifest is synced before the next is written.
		if ok && (number == 0 || c.synced > uint64(bad)) {
			return true
		}
	}
	return number == 0 && wholeLast(b, bad)
}

// wholeLast says whether the last chunk of a manifest is there in full and yet does not
// verify. A write that was cut off leaves it short, or sectors of zeros in it.
func wholeLast(b []byte, at int) bool {
	if at+headerLegacy > len(b) || at+headerLegacy+int(binary.LittleEndian.Uint16(b[at+4:])) != len(b) {
		return false
	}
	zeros := func(part []byte) bool { return len(bytes.Trim(part, "\x00")) == 0 }
	next := min(len(b), (at/smallestWritten+1)*smallestWritten)
	return !zeros(b[at:next]) && !slices.ContainsFunc(slices.Collect(slices.Chunk(b[next:], smallestWritten)), zeros)
}
