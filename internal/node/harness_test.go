package node

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/fault"
)

// TestMain checks that the tests' nodes leave no goroutine behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(goleak.IgnoreAnyFunction("github.com/cockroachdb/pebble/v2/vfs.(*diskHealthCheckingFS).startTickerLocked.func1")); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

// testOptions are of a quick node of its own on free ports.
func testOptions(dir string) Options {
	return Options{
		DataDir: dir, Listen: "127.0.0.1:0", Peer: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		Memory: 128 << 20, Tick: 20 * time.Millisecond,
	}
}

// freeAddresses returns addresses that nothing listens on.
func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	var list []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		list = append(list, l.Addr().String())
	}
	slices.Sort(list)
	return list
}

// start starts a node; the test's end stops it, unless the test did.
func start(t *testing.T, o Options) *Node {
	t.Helper()
	n, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(n) })
	return n
}

var stopped sync.Map

// stop stops a node once.
func stop(n *Node) {
	if _, again := stopped.LoadOrStore(n, true); again {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	n.Stop(ctx)
}

// joined returns the options of nodes that name each other; the first decides.
func joined(t *testing.T, n int) []Options {
	t.Helper()
	peers := freeAddresses(t, n)
	list := make([]Options, n)
	for i := range list {
		list[i] = testOptions(t.TempDir())
		list[i].Peer, list[i].Join = peers[i], peers
	}
	return list
}

// within bounds what a test waits for.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually tries f until it succeeds.
func eventually(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx := within(t, 20*time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

func connect(t *testing.T, nodes ...*Node) *client.Client {
	t.Helper()
	var o client.Options
	for _, n := range nodes {
		o.Endpoints = append(o.Endpoints, n.Address())
	}
	c, err := client.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func put(t *testing.T, c *client.Client, key, value string) {
	t.Helper()
	if _, err := c.KV.Put(within(t, 20*time.Second), []byte(key), []byte(value)); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func wantValue(t *testing.T, c *client.Client, key, value string) {
	t.Helper()
	kv, err := c.KV.Get(within(t, 20*time.Second), []byte(key))
	if err != nil || kv == nil || string(kv.Value) != value {
		t.Fatalf("get %s: %v %v, want %q", key, kv, err, value)
	}
}

// wantFault checks an error's kind, and that it comes with a remedy.
func wantFault(t *testing.T, err error, kind fault.Kind) *fault.Error {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != kind {
		t.Fatalf("error %v, want one of kind %s", err, kind)
	}
	if f.Remedy == "" {
		t.Errorf("%v comes without a remedy", err)
	}
	return f
}
