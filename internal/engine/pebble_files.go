package engine

import (
	"errors"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// namedFS names the file in errors of writing and syncing, which the system's calls leave
// out: who has to replace a disk wants to know which.
type namedFS struct{ vfs.FS }

type namedFile struct {
	vfs.File
	path string
}

func (f namedFile) named(op string, err error) error {
	var p *fs.PathError
	if err == nil || errors.As(err, &p) {
		return err
	}
	return &fs.PathError{Op: op, Path: f.path, Err: err}
}

func (n namedFS) file(f vfs.File, path string, err error) (vfs.File, error) {
	if err != nil {
		return f, err
	}
	return namedFile{f, path}, nil
}

// Unwrap implements vfs.FS.
func (n namedFS) Unwrap() vfs.FS { return n.FS }

func (n namedFS) Create(path string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := n.FS.Create(path, c)
	return n.file(f, path, err)
}

func (n namedFS) OpenReadWrite(path string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := n.FS.OpenReadWrite(path, c, o...)
	return n.file(f, path, err)
}

func (n namedFS) ReuseForWrite(old, path string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := n.FS.ReuseForWrite(old, path, c)
	return n.file(f, path, err)
}

func (n namedFS) OpenDir(path string) (vfs.File, error) {
	f, err := n.FS.OpenDir(path)
	return n.file(f, path, err)
}

func (f namedFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, f.named("write", err)
}

func (f namedFile) Sync() error     { return f.named("sync", f.File.Sync()) }
func (f namedFile) SyncData() error { return f.named("sync", f.File.SyncData()) }

func (f namedFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.named("sync", err)
}

func (f namedFile) Preallocate(offset, length int64) error {
	return f.named("allocate", f.File.Preallocate(offset, length))
}
