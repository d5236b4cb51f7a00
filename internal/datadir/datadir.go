// Package datadir owns the data directory of a node: its lock, its format version and
// the names of what is in it. It refuses to know what the stores keep.
package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/almanacdb/almanac/internal/fault"
)

// Format is the version of the data directory's format that this binary writes. It only
// ever goes up; a change comes with the code that upgrades the version before.
const Format = 1

const (
	lockFile   = "LOCK"
	formatFile = "FORMAT"
	formatWord = "almanac data directory, format "
)

// Dir is an open data directory, held by this process alone.
type Dir struct {
	path string
	lock *os.File
}

// Open takes a data directory for this process, creating it if it does not exist. Its
// errors say what is wrong with the directory and what to do: kind Unavailable if
// another process holds it, Invalid if it is no data directory, Unimplemented if its
// format is unknown, Corrupt if its FORMAT does not parse.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "data directory %q", path)
	}
	if err := makeDir(path); err != nil {
		return nil, err
	}
	d := &Dir{path: path}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	if err := d.checkFormat(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Path returns the directory's absolute path.
func (d *Dir) Path() string { return d.path }

// Log returns the directory of the log store.
func (d *Dir) Log() string { return filepath.Join(d.path, "log") }

// State returns the directory of the state store.
func (d *Dir) State() string { return filepath.Join(d.path, "state") }

// Close gives the directory up; the stores in it must be closed.
func (d *Dir) Close() error { return d.lock.Close() }

func ioFault(err error, format string, args ...any) error {
	f := fault.Wrap(fault.Internal, err, format, args...).WithRemedy("check the disk, and that this user may read and write there")
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		f.Kind, f.Remedy = fault.DiskFull, "free space or add a disk"
	}
	return f
}

// makeDir creates the directory with the parents it lacks, each durable in its parent.
func makeDir(path string) error {
	fi, err := os.Stat(path)
	switch {
	case err == nil && fi.IsDir():
		return nil
	case err == nil || errors.Is(err, unix.ENOTDIR):
		return fault.New(fault.Invalid, "data directory %s: it, or something above it, is not a directory", path).
			WithRemedy("name a directory, or a path that does not exist yet")
	case !errors.Is(err, os.ErrNotExist):
		return ioFault(err, "data directory %s", path)
	}
	parent := filepath.Dir(path)
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return ioFault(err, "cannot create data directory %s", path).(*fault.Error).
			WithRemedy("check that this user may write to %s", parent)
	}
	return syncDir(parent)
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err == nil {
		err = f.Sync()
		f.Close()
	}
	if err != nil {
		return ioFault(err, "cannot sync directory %s", path)
	}
	return nil
}

func (d *Dir) takeLock() error {
	if err := d.refuseForeign(); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(d.path, lockFile), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return ioFault(err, "cannot open the lock of data directory %s", d.path)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fault.New(fault.Unavailable, "data directory %s is in use by another process", d.path).
				WithRemedy("stop the other node, or give this one a directory of its own")
		}
		return ioFault(err, "cannot lock data directory %s", d.path)
	}
	d.lock = f
	return nil
}

// refuseForeign fails for a directory without FORMAT that holds anything but what a
// first start leaves when it is cut off.
func (d *Dir) refuseForeign() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return ioFault(err, "cannot read data directory %s", d.path)
	}
	foreign := ""
	for _, e := range entries {
		switch e.Name() {
		case formatFile:
			return nil
		case lockFile, formatFile + ".tmp", "lost+found":
		default:
			foreign = e.Name()
		}
	}
	if foreign != "" {
		return fault.New(fault.Invalid, "%s is no data directory: it has no FORMAT but holds %q", d.path, foreign).
			WithRemedy("name an empty directory, or one that Almanac made")
	}
	return nil
}

func (d *Dir) checkFormat() error {
	b, err := os.ReadFile(filepath.Join(d.path, formatFile))
	if errors.Is(err, os.ErrNotExist) {
		return d.writeFormat()
	}
	if err != nil {
		return ioFault(err, "cannot read the format of data directory %s", d.path)
	}
	n, ok := parseFormat(string(b))
	switch {
	case !ok:
		return fault.New(fault.Corrupt, "data directory %s: its FORMAT file is damaged", d.path).
			WithRemedy("copy %s from another node of the same version; nothing else was read", filepath.Join(d.path, formatFile))
	case n > Format:
		return fault.New(fault.Unimplemented, "data directory %s has format %d, says its FORMAT file; this binary knows up to %d", d.path, n, Format).
			WithRemedy("start the version of Almanac that last used it, or a newer one; if none has that format the file is damaged: copy another node's")
	case n < Format:
		return fault.New(fault.Unimplemented, "data directory %s has format %d, says its FORMAT file, which this binary can't upgrade to %d", d.path, n, Format).
			WithRemedy("start the version of Almanac before this one once, then this one")
	}
	return nil
}

func formatText(format uint64) string { return formatWord + strconv.FormatUint(format, 10) + "\n" }

// parseFormat reads what FORMAT holds.
func parseFormat(s string) (format uint64, ok bool) {
	text, ok := strings.CutPrefix(strings.TrimSuffix(s, "\n"), formatWord)
	format, err := strconv.ParseUint(text, 10, 32)
	return format, ok && err == nil
}

func (d *Dir) writeFormat() error {
	return d.writeFile(formatFile, formatText(Format))
}
