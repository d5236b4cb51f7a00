package badinput

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	etcd "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/almanacdb/almanac/client"
)

func wantRefusal(t *testing.T, err error, reason client.Reason, says string) {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Reason != reason || e.Remedy == "" || !strings.Contains(e.Message, says) {
		t.Errorf("error %.300v (%#v), want %s, %q and a remedy", err, e, reason, says)
	}
}

func TestRequestsAboveTheLimits(t *testing.T) {
	n, s := single(t)
	c := connect(t, client.Options{}, n.Address)
	if _, err := c.Events.CreateTopic(t.Context(), "t", client.TopicOptions{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	_, err := c.KV.Put(t.Context(), []byte("k"), make([]byte, 16<<20))
	wantRefusal(t, err, client.ReasonTooLarge, "16777216")

	// The client refuses some of it by itself; the server must as well.
	many := make([]client.NewEvent, 10_001)
	for i := range many {
		many[i].Payload = []byte("p")
	}
	_, err = c.Events.Publish(t.Context(), "t", many...)
	wantRefusal(t, err, client.ReasonTooLarge, "10000")
	large := make([]client.NewEvent, 5)
	for i := range large {
		large[i].Payload = make([]byte, 4<<20-100)
	}
	_, err = c.Events.Publish(t.Context(), "t", large...)
	wantRefusal(t, err, client.ReasonTooLarge, "16777216")
	_, err = c.Events.Publish(t.Context(), "t", client.NewEvent{Payload: make([]byte, 40<<20)})
	wantRefusal(t, err, client.ReasonTooLarge, "")
	// At the limits it works.
	if _, err := c.Events.Publish(t.Context(), "t", client.NewEvent{Payload: make([]byte, 4<<20)}); err != nil {
		t.Error(err)
	}
	if _, err := c.Events.Publish(t.Context(), "t", many[:10_000]...); err != nil {
		t.Error(err)
	}
	if _, err := c.KV.Put(t.Context(), bytes.Repeat([]byte("k"), 4<<10), []byte("v")); err != nil {
		t.Error(err)
	}
	unharmed(t, n, s)
}

func etcdClient(t *testing.T, address string) *etcd.Client {
	t.Helper()
	c, err := etcd.New(etcd.Config{Endpoints: []string{address}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestEtcdRequestsAboveTheLimits(t *testing.T) {
	n, s := single(t)
	c := etcdClient(t, n.Address)
	for _, size := range []int{3 << 19, 2 << 20} {
		_, err := c.Put(t.Context(), "k", strings.Repeat("v", size))
		if !errors.Is(err, rpctypes.ErrRequestTooLarge) && status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a value of %d bytes: %v", size, err)
		}
	}
	if _, err := c.Put(t.Context(), "", "v"); !errors.Is(err, rpctypes.ErrEmptyKey) {
		t.Errorf("an empty key: %v", err)
	}
	if _, err := c.Get(t.Context(), "k", etcd.WithRev(1<<62)); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Errorf("a future revision: %v", err)
	}
	if _, err := c.Put(t.Context(), strings.Repeat("k", 64<<10), "v"); err != nil {
		t.Logf("a key of 64 KiB: %v", err)
	}
	unharmed(t, n, s)
}

// raw sends bytes as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var methods = []string{
	"/almanac.v1.KV/Get", "/almanac.v1.KV/Range", "/almanac.v1.KV/Put", "/almanac.v1.KV/Delete", "/almanac.v1.KV/Txn", "/almanac.v1.KV/Stream",
	"/almanac.v1.Events/CreateTopic", "/almanac.v1.Events/DeleteTopic", "/almanac.v1.Events/Publish", "/almanac.v1.Events/Subscribe",
	"/almanac.v1.Cluster/Status", "/almanac.v1.Cluster/Nodes", "/almanac.v1.Cluster/Ranges",
	"/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put", "/etcdserverpb.KV/DeleteRange", "/etcdserverpb.KV/Txn", "/etcdserverpb.KV/Compact",
	"/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseKeepAlive", "/etcdserverpb.Maintenance/Status",
	"/etcdserverpb.Maintenance/Snapshot", "/etcdserverpb.Cluster/MemberList", "/etcdserverpb.Auth/AuthEnable",
	"/almanac.peer.v1.Peer/Stream", "/almanac.peer.v1.Formation/Describe", "/almanac.peer.v1.Formation/Init",
	"/almanac.peer.v1.Formation/Offer", "/almanac.peer.v1.Formation/Register",
	"/no.such.Service/Method", "/almanac.v1.KV/NoSuchMethod", "/", "/x",
}

// garbage returns bytes at random, many of which begin like protobuf fields.
func garbage(r *rand.Rand) []byte {
	b := make([]byte, r.IntN(200))
	for i := range b {
		b[i] = byte(r.Uint32())
		if r.IntN(3) == 0 {
			b[i] = []byte{0x0a, 0x12, 0x1a, 0x22, 0x08, 0x10, 0x00, 0x01, 0x02, 0xff}[r.IntN(10)]
		}
	}
	return b
}

// call sends one message and half-closes; what comes back is of no interest as long as
// something does.
func call(ctx context.Context, conn *grpc.ClientConn, method string, body []byte) error {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodecV2(raw{}))
	if err != nil {
		return err
	}
	_ = s.SendMsg(body)
	_ = s.CloseSend()
	for {
		var reply []byte
		if err := s.RecvMsg(&reply); err != nil {
			return err
		}
	}
}

func TestGarbageInRequests(t *testing.T) {
	n, s := single(t)
	r := rand.New(rand.NewPCG(1, 2))
	for _, address := range []string{n.Address, n.Peer} {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, method := range methods {
			for range 30 {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				err := call(ctx, conn, method, garbage(r))
				if status.Code(err) == codes.DeadlineExceeded && ctx.Err() != nil && !strings.HasSuffix(method, "Subscribe") {
					t.Errorf("%s hangs", method)
				}
				cancel()
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := call(ctx, conn, "/no.such.Service/Method", nil); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "no.such.Service") {
			t.Errorf("an unknown method: %v", err)
		}
		cancel()
	}
	unharmed(t, n, s)
}

func TestGarbageOnPorts(t *testing.T) {
	n, s := single(t)
	r := rand.New(rand.NewPCG(3, 4))
	preface := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	for _, address := range []string{n.Address, n.Peer, n.HTTP} {
		for i := range 60 {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			b := garbage(r)
			switch i % 3 {
			case 1:
				b = append(bytes.Clone(preface), b...)
			case 2:
				b = append([]byte("GET /\x00 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"), b...)
			}
			_, _ = conn.Write(b)
			_ = conn.(*net.TCPConn).CloseWrite()
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, bufio.NewReader(conn)); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s keeps a connection that was half closed after garbage", address)
			}
			conn.Close()
		}
	}
	for path, code := range map[string]int{"/no/such/page": http.StatusNotFound, "/healthz": http.StatusOK} {
		resp, err := http.Get("http://" + n.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != code {
			t.Errorf("%s: status %d, want %d", path, resp.StatusCode, code)
		}
	}
	unharmed(t, n, s)
}

// The etcd API of a node without a cluster says the same as Almanac's own.
func TestEtcdOnAWaitingNode(t *testing.T) {
	c := processes(t, 2)
	n := c.Nodes[0]
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(n.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, method := range methods {
		if !strings.HasPrefix(method, "/etcd") {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		for {
			err = call(ctx, conn, method, nil)
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "connection refused") {
				break // it has come up
			}
		}
		cancel()
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "almanac init --endpoints "+n.Address) {
			t.Errorf("%s: %v", method, err)
		}
	}
}
