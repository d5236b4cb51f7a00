package badinput

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
)

// hostileGrowth is by how much a frugal node may grow under any of these, in bytes.
const hostileGrowth = 80 << 20

var rssLine = regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)$`)

// rss returns a node's resident memory, as it tells itself.
func rss(t *testing.T, n *localcluster.Node) int64 {
	t.Helper()
	c := http.Client{Timeout: 20 * time.Second}
	resp, err := c.Get("http://" + n.HTTP + "/metrics")
	if err != nil {
		t.Fatalf("the HTTP port does not serve others: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	m := rssLine.FindSubmatch(body)
	if err != nil || m == nil {
		t.Fatalf("metrics without resident memory: %v", err)
	}
	f, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return int64(f)
}

// meanwhile puts keys until the returned function is called, which checks that each was
// stored, that there was progress, and by how much the node grew.
func meanwhile(t *testing.T, n *localcluster.Node) (check func()) {
	t.Helper()
	c := connect(t, client.Options{}, n.Address)
	before := rss(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	var puts atomic.Int64
	var slowest time.Duration
	var work sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			limited, done := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
			_, err := c.KV.Put(limited, []byte("meanwhile"), []byte("v"))
			done()
			if err != nil {
				t.Errorf("a put of another client: %v", err)
				return
			}
			slowest = max(slowest, time.Since(began))
			puts.Add(1)
		}
	})
	t.Cleanup(func() { cancel(); work.Wait() })
	return func() {
		t.Helper()
		at := puts.Load()
		for deadline := time.Now().Add(20 * time.Second); puts.Load() < at+2 && time.Now().Before(deadline) && !t.Failed(); {
			<-time.After(10 * time.Millisecond)
		}
		grew := rss(t, n) - before
		cancel()
		work.Wait()
		if puts.Load() < at+2 {
			t.Error("nobody else gets on")
		}
		if grew > hostileGrowth {
			t.Errorf("the node grew by %d MiB", grew>>20)
		}
		t.Logf("%d puts meanwhile, the slowest took %v; the node grew by %d MiB", puts.Load(), slowest.Round(time.Millisecond), grew>>20)
	}
}

// wantLogged checks that a node's log says something.
func wantLogged(t *testing.T, n *localcluster.Node, text string) {
	t.Helper()
	if !strings.Contains(n.LogTail(1<<20), text) {
		t.Errorf("the node's log does not say %q", text)
	}
}

// several returns how many connections to each of three ports this process can have, 5,000
// at most.
func several(t *testing.T) int {
	t.Helper()
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	return int(min(5000, files.Max/4))
}

func TestSilentConnections(t *testing.T) {
	n, s := frugal(t)
	check := meanwhile(t, n)
	each := several(t)
	for _, address := range []string{n.Address, n.Peer, n.HTTP} {
		conns := make([]net.Conn, 0, each)
		for range each {
			c, err := net.DialTimeout("tcp", address, 20*time.Second)
			if err != nil {
				t.Fatalf("connection %d to %s: %v", len(conns), address, err)
			}
			conns = append(conns, c)
		}
		began := time.Now()
		for _, c := range conns {
			_ = c.SetReadDeadline(began.Add(30 * time.Second))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s keeps silent connections", address)
			}
			_ = c.Close()
		}
		t.Logf("%d connections to %s were closed %v after the last was made", each, address, time.Since(began).Round(time.Millisecond))
	}
	check()
	wantLogged(t, n, "they sent nothing, or there were too many")
	unharmed(t, n, s)
}

// rawHTTP2 is a client of HTTP/2 frames.
type rawHTTP2 struct {
	net.Conn
	*http2.Framer
	headers bytes.Buffer
	encoder *hpack.Encoder
}

func dialHTTP2(t *testing.T, address string) *rawHTTP2 {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	r := &rawHTTP2{Conn: c, Framer: http2.NewFramer(c, c)}
	r.encoder = hpack.NewEncoder(&r.headers)
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return r
}

// begin opens a stream for a gRPC method, with more header fields.
func (r *rawHTTP2) begin(id uint32, method string, more ...hpack.HeaderField) error {
	r.headers.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: "x"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		if err := r.encoder.WriteField(f); err != nil {
			return err
		}
	}
	block, first := r.headers.Bytes(), true
	for first || len(block) > 0 {
		part := block[:min(len(block), 16<<10)]
		block = block[len(part):]
		var err error
		if first {
			err = r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndHeaders: len(block) == 0})
		} else {
			err = r.WriteContinuation(id, len(block) == 0, part)
		}
		if err != nil {
			return err
		}
		first = false
	}
	return nil
}

// Streams beyond the limit are refused, and beyond what memory there is for them.
func TestTooManyStreams(t *testing.T) {
	n, s := frugal(t)
	check := meanwhile(t, n)
	const streams = 20_000
	c := dialHTTP2(t, n.Address)
	refused := make(chan int, 1)
	go func() {
		ended := make(map[uint32]bool)
		defer func() { refused <- len(ended) }()
		for len(ended) < streams-1024 {
			f, err := c.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.RSTStreamFrame:
				ended[f.StreamID] = true
			case *http2.HeadersFrame:
				if f.StreamEnded() {
					ended[f.StreamID] = true
				}
			case *http2.GoAwayFrame:
				for id := f.LastStreamID + 2; id < 2*streams; id += 2 {
					ended[id] = true
				}
			}
		}
	}()
	for i := range uint32(streams) {
		if err := c.begin(2*i+1, almanacv1.Events_Subscribe_FullMethodName); err != nil {
			t.Logf("after %d streams: %v", i, err)
			break
		}
	}
	if got := <-refused; got < streams-1024 {
		t.Errorf("%d of %d streams were refused", got, streams)
	}
	check()
	unharmed(t, n, s)
}

// Headers above 64 KiB are refused, on the HTTP port above 16 KiB.
func TestHugeHeaders(t *testing.T) {
	n, s := frugal(t)
	check := meanwhile(t, n)
	for _, address := range []string{n.Address, n.Peer} {
		for _, field := range []hpack.HeaderField{
			{Name: "x", Value: strings.Repeat("y", 4<<20)}, {Name: strings.Repeat("x", 1<<20), Value: "y"},
		} {
			c := dialHTTP2(t, address)
			go func() { _ = c.begin(1, almanacv1.KV_Put_FullMethodName, field) }() // until the other end has enough
			for refused := false; !refused; {
				f, err := c.ReadFrame()
				switch f := f.(type) {
				case *http2.RSTStreamFrame, *http2.GoAwayFrame:
					refused = true
				case *http2.HeadersFrame:
					refused = f.StreamEnded()
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s takes headers of %d bytes", address, len(field.Name)+len(field.Value))
				}
				refused = refused || err != nil
			}
			_ = c.Conn.Close()
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+n.HTTP+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X", strings.Repeat("y", 1<<20))
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("headers of 1 MiB on the HTTP port: %s", resp.Status)
		}
	}
	check()
	unharmed(t, n, s)
}

// A message above what the node receives is refused before it is read,
// and the error names the limit; one below it is refused by a limit that a flag sets.
func TestMessageAboveTheLimit(t *testing.T) {
	n, s := frugal(t)
	check := meanwhile(t, n)
	conn, err := grpc.NewClient(n.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, method := range []string{almanacv1.KV_Put_FullMethodName, almanacv1.KV_Stream_FullMethodName, almanacv1.Events_Publish_FullMethodName} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := call(ctx, conn, method, make([]byte, 33<<20))
		cancel()
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "33554432") {
			t.Errorf("%s: %v", method, err)
		}
	}
	check()
	unharmed(t, n, s)
}
