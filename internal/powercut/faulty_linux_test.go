package powercut

import (
	"context"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// faulty is a file system that passes everything on to a directory, and fails one sync.
type faulty struct {
	dir string // where it is mounted

	below  atomic.Pointer[string] // the sync of a file below this directory is to fail
	failed atomic.Pointer[string] // the file whose sync failed
}

// newFaulty mounts a faulty file system until the test ends.
func newFaulty(t *testing.T) *faulty {
	t.Helper()
	f := &faulty{dir: t.TempDir()}
	root := &fs.LoopbackRoot{Path: t.TempDir()}
	root.RootNode = &faultyNode{LoopbackNode: &fs.LoopbackNode{RootData: root}, disk: f}
	server, err := fs.Mount(f.dir, root.RootNode, &fs.Options{MountOptions: fuse.MountOptions{
		FsName: "faulty", DirectMountStrict: true,
	}})
	if err != nil {
		t.Fatalf("mounting by FUSE: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			_ = syscall.Unmount(f.dir, syscall.MNT_DETACH)
		}
	})
	return f
}

// failOnce makes the next sync of a file below a directory fail, once.
func (f *faulty) failOnce(below string) { f.below.Store(&below) }

// fails says whether a sync is the one to fail.
func (f *faulty) fails(name string) bool {
	below := f.below.Load()
	if below == nil || !strings.HasPrefix(name, *below+"/") || !f.below.CompareAndSwap(below, nil) {
		return false
	}
	f.failed.Store(&name)
	return true
}

type faultyNode struct {
	*fs.LoopbackNode
	disk *faulty
}

// WrapChild implements fs.NodeWrapChilder.
func (n *faultyNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	return &faultyNode{LoopbackNode: child.(*fs.LoopbackNode), disk: n.disk}
}

func (n *faultyNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, out, errno := n.LoopbackNode.Open(ctx, flags)
	return n.wrap(h, n.Path(n.Root()), errno), out, errno
}

func (n *faultyNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, h, options, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.wrap(h, path.Join(n.Path(n.Root()), name), errno), options, errno
}

func (n *faultyNode) wrap(h fs.FileHandle, name string, errno syscall.Errno) fs.FileHandle {
	if errno != 0 {
		return h
	}
	return &faultyFile{loopback: h.(loopback), disk: n.disk, name: name}
}

// loopback is what go-fuse's files of a loopback file system can do and stores need.
type loopback interface {
	fs.FileReader
	fs.FileWriter
	fs.FileFsyncer
	fs.FileFlusher
	fs.FileReleaser
	fs.FileGetattrer
	fs.FileSetattrer
	fs.FileAllocater
}

type faultyFile struct {
	loopback
	disk *faulty
	name string

	mu            sync.Mutex
	written, held int64 // where the file ends, and where it surely does
}

// Write implements fs.FileWriter.
func (f *faultyFile) Write(ctx context.Context, b []byte, at int64) (uint32, syscall.Errno) {
	n, errno := f.loopback.Write(ctx, b, at)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written = max(f.written, at+int64(n))
	return n, errno
}

// Fsync implements fs.FileFsyncer. What a failed sync was to make durable is gone, and the
// next one succeeds, as on a real disk.
func (f *faultyFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.disk.fails(f.name) {
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE, Size: uint64(f.held)}}
		_ = f.loopback.Setattr(ctx, &in, &fuse.AttrOut{})
		return syscall.EIO
	}
	errno := f.loopback.Fsync(ctx, flags)
	if errno == 0 {
		f.held = f.written
	}
	return errno
}
