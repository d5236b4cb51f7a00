package node

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/datadir"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
)

// fate is what may become of a node one of whose files was damaged.
type fate string

const (
	unharmed fate = "unharmed" // it starts with its stores as they are
	rebuilt  fate = "rebuilt"  // it names the file, or the store, and gets its replicas back from the others
	refused  fate = "refused"  // it does not start, names the file, and does start once that is put back
	either   fate = "either"   // unharmed or rebuilt: see the kind's reason
)

// The kinds of damage.
var damages = []struct {
	name string
	do   func(b []byte) []byte
}{
	{"first byte", func(b []byte) []byte { b[0] ^= 0x10; return b }},
	{"middle byte", func(b []byte) []byte { b[written(b)/2] ^= 0x10; return b }},
	{"last byte", func(b []byte) []byte { b[written(b)-1] ^= 0x10; return b }},
	{"half", func(b []byte) []byte { return b[:written(b)/2] }},
	{"nothing", func([]byte) []byte { return nil }},
}

// written is the length of a file without the zeros that were allocated for later.
func written(b []byte) int { return max(len(bytes.TrimRight(b, "\x00")), 1) }

// fileKind is a kind of file in a data directory, and what each damage to it, in the order of
// damages, does to the node.
type fileKind struct {
	pattern string
	want    [5]fate
	reason  string                               // why damage may do no harm, or is not named by file
	named   bool                                 // unharmed, it names the file all the same
	prepare func(t *testing.T, n *Node)          // makes such a file on a node that runs
	stopped func(t *testing.T, dir *datadir.Dir) // makes such a file when it is stopped
}

func all(f fate) [5]fate { return [5]fate{f, f, f, f, f} }

const (
	noContent = "only that it is there, or its name, means something"
	options   = "only the names of comparer and merger and the log's directory are read"
	manifest  = "a manifest that is cut off ends like one whose last record was never written; that files are missing then, or old ones back, may show"
	unread    = "a block that nobody reads any more shows when it is compacted, what reads it is refused; and the newest file may be one that a " +
		"compaction was writing, which no manifest names"
	walEnd = "the last write may have been cut off by the crash, and a log that is cut off looks as if it had not got that far; the leader that counts " +
		"on what is lost tells, and a later leader sends it again. That it was acknowledged does not harm while all others are whole"
)

var fileKinds = []fileKind{
	{pattern: "FORMAT", want: all(refused)},
	{pattern: "IDENTITY", want: all(unharmed), named: true, reason: "the log store has it too, and it is written anew"},
	{pattern: "LOCK", want: all(unharmed), reason: noContent},
	{pattern: "DAMAGED", want: all(rebuilt), reason: noContent, stopped: markDamaged},
	{pattern: "REBUILDING", want: all(rebuilt), reason: noContent, stopped: setAside},
	{pattern: "log/LOCK", want: all(unharmed), reason: noContent},
	{pattern: "log/marker.*", want: all(unharmed), reason: noContent},
	{pattern: "log/OPTIONS-*", want: [5]fate{rebuilt, either, either, either, unharmed}, reason: options},
	{pattern: "log/MANIFEST-*", want: [5]fate{rebuilt, rebuilt, rebuilt, either, rebuilt}, reason: manifest},
	{pattern: "log/*.log", want: [5]fate{rebuilt, rebuilt, either, either, either}, reason: walEnd},
	{pattern: "log/*.sst", want: all(either), reason: unread, prepare: flush},
	{pattern: "state/LOCK", want: all(unharmed), reason: noContent},
	{pattern: "state/marker.*", want: all(unharmed), reason: noContent},
	{pattern: "state/OPTIONS-*", want: [5]fate{rebuilt, either, either, either, unharmed}, reason: options},
	{pattern: "state/MANIFEST-*", want: [5]fate{rebuilt, rebuilt, rebuilt, either, rebuilt}, reason: manifest},
	{pattern: "state/*.log", want: all(unharmed), reason: "the state store has no write-ahead log: it is empty"},
	{pattern: "state/*.sst", want: all(either), reason: unread, prepare: flush},
	{pattern: "state/staging/*", want: all(unharmed), prepare: stageFile, reason: "a start removes it: its snapshot is sent again"},
	{pattern: "*.damaged-*/*", want: all(unharmed), reason: "nothing reads what was set aside"},
}

// disk is what a node's stores are on, until it is gone.
type disk struct{ gone atomic.Bool }

func (d *disk) storage(_ string, o *engine.Options) {
	o.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if d.gone.Load() && op.Kind != errorfs.OpFileClose && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.EIO
		}
		return nil
	}))
}

// said is what a node logs.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *said) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *said) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// victims are three nodes whose files are damaged in turn.
type victims struct {
	options []Options
	nodes   []*Node
	disks   []*disk
	logs    []*said
	client  *client.Client
	keys    []string
}

func (v *victims) start(i int) error {
	v.disks[i], v.logs[i] = &disk{}, &said{}
	o := v.options[i]
	o.Storage = v.disks[i].storage
	o.Logger = slog.New(slog.NewTextHandler(v.logs[i], nil))
	n, err := Start(o)
	if err == nil {
		v.nodes[i] = n
	}
	return err
}

// kill ends a node between two writes of its disk: what is there is what a killed process
// leaves.
func (v *victims) kill(i int) {
	v.disks[i].gone.Store(true)
	stopped.Store(v.nodes[i], true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // nothing is waited for
	v.nodes[i].Stop(ctx)
}

func (v *victims) put(t *testing.T) {
	t.Helper()
	key := fmt.Sprintf("key%d", len(v.keys))
	// A write that the killed node was asked for may be of unknown outcome; it can be repeated.
	eventually(t, "put "+key, func(ctx context.Context) error {
		_, err := v.client.KV.Put(ctx, []byte(key), []byte(valueOf(key)))
		return err
	})
	v.keys = append(v.keys, key)
}

func valueOf(key string) string { return key + " " + strings.Repeat("x", 300) }

// holds waits until a node's own replica has every key, or the node ends. A value that is not
// the key's is never read.
func (v *victims) holds(t *testing.T, i int) (failed error) {
	t.Helper()
	n := v.nodes[i]
	o := client.Options{Endpoints: []string{n.Address()}, RetryFor: -1}
	c, err := client.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, key := range v.keys {
		eventually(t, key, func(ctx context.Context) error {
			select {
			case failed = <-n.Failed():
				return nil
			default:
			}
			if r := n.running(); r == nil {
				return errors.New("not a member")
			} else if st, on := r.store.Rebuilding(); on {
				return errors.New(st.String())
			}
			kv, err := c.KV.Get(ctx, []byte(key), client.Local())
			switch {
			case err != nil:
				return err
			case kv == nil:
				return errors.New("not there yet")
			case string(kv.Value) != valueOf(key):
				t.Fatalf("%s: read %.60q", key, kv.Value)
			}
			return nil
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}

// files lists the files in a data directory by kind; one of no kind that is known fails the
// test.
func filesByKind(t *testing.T, dir string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, k := range fileKinds {
			if ok, _ := path.Match(k.pattern, name); ok {
				found[k.pattern] = append(found[k.pattern], name)
				return nil
			}
		}
		t.Errorf("%s is of no kind that this test damages", name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var everyDamage = flag.Bool("every-damage", false, "damage every kind of file in every way, not in one way each; takes a minute or two")

// Whatever file of a node is damaged while it is down: nothing wrong is read, the damage is
// named, and the node comes back from the others while they go on.
func TestDamageInEveryKindOfFile(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	v := &victims{disks: make([]*disk, 3), logs: make([]*said, 3)}
	v.options, v.nodes = three(t)
	v.client = connect(t, v.nodes...)
	t.Cleanup(func() {
		for _, n := range v.nodes {
			stop(n)
		}
	})
	for i := range v.nodes {
		v.put(t)
		stop(v.nodes[i])
		if err := v.start(i); err != nil {
			t.Fatal(err)
		}
	}
	turn := 0
	for k, kind := range fileKinds {
		for d := range damages {
			if !*everyDamage && d != k%len(damages) {
				continue
			}
			turn++
			t.Run(kind.pattern+" "+damages[d].name, func(t *testing.T) {
				began := time.Now()
				got := v.damage(t, turn%3, kind, d)
				t.Logf("%s in %v", got, time.Since(began).Round(time.Millisecond))
				if want := kind.want[d]; got != want && (want != either || got == refused) {
					t.Errorf("%s, want %s", got, want)
				}
			})
			if t.Failed() {
				t.FailNow() // the node may be down
			}
		}
	}
}

// damage puts one damage to one file of a node and says what became of the node.
func (v *victims) damage(t *testing.T, i int, kind fileKind, d int) fate {
	dir := v.options[i].DataDir
	for range 3 {
		v.put(t)
	}
	if err := v.holds(t, i); err != nil {
		t.Fatalf("before: %v", err)
	}
	if kind.prepare != nil {
		kind.prepare(t, v.nodes[i])
	}
	before := aside(t, dir)
	v.kill(i)
	if kind.stopped != nil {
		o, err := datadir.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		kind.stopped(t, o)
		o.Close()
	}
	list := filesByKind(t, dir)[kind.pattern]
	if len(list) == 0 {
		t.Fatalf("there is no %s", kind.pattern)
	}
	name := filepath.Join(dir, slices.Max(list))
	sound, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(sound) > 0 {
		sound = damages[d].do(sound)
	} else {
		sound = []byte{0x10} // of an empty file nothing can be damaged but its length
	}
	if err := os.WriteFile(name, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	v.put(t)
	if err = v.start(i); err != nil {
		if f := fault.As(err); f.Remedy == "" || !strings.Contains(err.Error(), filepath.Base(name)) {
			t.Errorf("it does not say what is damaged: %v; %s", err, f.Remedy)
		}
		b, err := os.ReadFile(filepath.Join(v.options[(i+1)%3].DataDir, "FORMAT"))
		if err == nil {
			err = os.WriteFile(name, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := v.start(i); err != nil {
			t.Fatal(err)
		}
		if failed := v.holds(t, i); failed != nil {
			t.Fatalf("with a sound file it fails: %v", failed)
		}
		return refused
	}
	said := v.logs[i]
	failed := v.holds(t, i)
	if failed != nil {
		t.Logf("failed: %v", failed)
		stop(v.nodes[i])
		if err := v.start(i); err != nil {
			t.Fatal(err)
		}
		if failed := v.holds(t, i); failed != nil {
			t.Fatalf("fails again: %v", failed)
		}
	}
	f := unharmed
	if !slices.Equal(before, aside(t, dir)) {
		f = rebuilt
	}
	if failed != nil && f != rebuilt {
		t.Errorf("it ended with %v, and was not rebuilt", failed)
	}
	if f == rebuilt && kind.reason != noContent || kind.named {
		text := fmt.Sprint(failed, "\n", said, v.logs[i])
		// Of an end that is lost only the store is known.
		lost := (kind.reason == walEnd || kind.reason == manifest) && strings.Contains(text, fmt.Sprintf("store in %s: ", filepath.Dir(name)))
		if !strings.Contains(text, filepath.Base(name)) && !lost {
			t.Errorf("it does not say what is damaged: %s", text)
		}
	}
	return f
}

// flush leaves sorted files in both stores.
func flush(t *testing.T, n *Node) {
	t.Helper()
	if err := errors.Join(n.logs.Flush(), n.states.Flush()); err != nil {
		t.Fatal(err)
	}
}

// stageFile leaves a file of a snapshot that is still coming in.
func stageFile(t *testing.T, n *Node) {
	t.Helper()
	w := n.states.NewSST()
	if err := w.Set([]byte("key"), bytes.Repeat([]byte("x"), 1000)); err != nil {
		t.Fatal(err)
	}
	b, err := w.Finish()
	if err == nil {
		err = n.states.Stage("snapshot-1-1-0", b)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// markDamaged leaves what a node leaves that found damage while it ran.
func markDamaged(t *testing.T, dir *datadir.Dir) {
	t.Helper()
	if err := dir.MarkDamaged("file 7 is damaged", time.Now()); err != nil {
		t.Fatal(err)
	}
}

// setAside leaves what a node leaves that is killed as soon as it has set its stores aside.
func setAside(t *testing.T, dir *datadir.Dir) {
	t.Helper()
	markDamaged(t, dir)
	if _, err := dir.SetAside(time.Now()); err != nil {
		t.Fatal(err)
	}
}
