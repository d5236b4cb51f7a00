package badinput

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/node"
)

// small runs a node of 128 MiB that serves, as a process.
func small(t *testing.T) (*localcluster.Node, shell) {
	t.Helper()
	processes(t, 0) // skips, and builds
	path, _ := binary()
	c, err := localcluster.New(localcluster.Options{Binary: path, Dir: t.TempDir(), Nodes: 1, Memory: "128MiB"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.KillAll)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	s := shell{c.Endpoints()}
	s.ok(t, "kv", "put", "witness", "unharmed")
	return c.Nodes[0], s
}

// logged collects what a node in this process logs.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// impatient runs a node in this process that waits a second for its clients.
func impatient(t *testing.T) (*node.Node, *logged) {
	t.Helper()
	o, l := quick(t.TempDir()), &logged{}
	o.ClientPatience, o.Logger = time.Second, slog.New(slog.NewTextHandler(l, nil))
	n, err := node.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(n) })
	return n, l
}

const largeValue = 16 << 10

// fill stores 50 keys and publishes events, each of 16 KiB.
func fill(t *testing.T, c *client.Client, events int) {
	t.Helper()
	if _, err := c.Events.CreateTopic(t.Context(), "t", client.TopicOptions{Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	batch := make([]client.NewEvent, 100)
	for i := range batch {
		batch[i].Payload = make([]byte, largeValue)
	}
	for range events / len(batch) {
		if _, err := c.Events.Publish(t.Context(), "t", batch...); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		if _, err := c.KV.Put(t.Context(), fmt.Append(nil, "large/", i), make([]byte, largeValue)); err != nil {
			t.Fatal(err)
		}
	}
}

func plain(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func subscribeUnread(t *testing.T, conn *grpc.ClientConn, group string) almanacv1.Events_SubscribeClient {
	t.Helper()
	sub, err := almanacv1.NewEventsClient(conn).Subscribe(t.Context())
	if err == nil {
		err = sub.Send(&almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Open{
			Open: &almanacv1.SubscribeOpen{Topic: "t", Group: group, Credits: 10_000},
		}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

// rangesUnread asks in a stream for more and more, and reads nothing. It returns at once.
func rangesUnread(t *testing.T, conn *grpc.ClientConn) almanacv1.KV_StreamClient {
	t.Helper()
	stream, err := almanacv1.NewKVClient(conn).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() { // until nothing more is read at the other end
		for id := uint64(1); ; id++ {
			if stream.Send(&almanacv1.StreamRequest{Calls: []*almanacv1.StreamCall{{Id: id, Request: &almanacv1.StreamCall_Range{
				Range: &almanacv1.RangeRequest{Key: []byte("large/"), Prefix: true},
			}}}}) != nil {
				return
			}
		}
	}()
	return stream
}

// Clients that ask for much and read nothing hold their part of the budget, and hold up
// nobody.
func TestClientsThatReadNothing(t *testing.T) {
	n, s := small(t)
	c := connect(t, client.Options{}, n.Address)
	const events = 2000
	fill(t, c, events)
	check := meanwhile(t, n)
	conn := plain(t, n.Address)
	for i := range 8 {
		subscribeUnread(t, conn, fmt.Sprint("unread-", i))
	}
	rangesUnread(t, conn)
	sub, err := c.Events.Subscribe(t.Context(), client.SubscribeOptions{Topic: "t", Group: "reader"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Close(context.Background()) }()
	for got := range events {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		e, err := sub.Next(ctx)
		cancel()
		if err == nil {
			err = sub.Ack(e)
		}
		if err != nil {
			t.Fatalf("another group, after %d events: %v", got, err)
		}
	}
	check()
	unharmed(t, n, s)
}

// A stream whose client takes nothing is ended, and the log names the client.
func TestUnreadStreamsAreClosed(t *testing.T) {
	n, l := impatient(t)
	fill(t, connect(t, client.Options{}, n.Address()), 200)
	conn := plain(t, n.Address())
	sub := subscribeUnread(t, conn, "unread")
	await(t, "the subscription's end", func() bool { return l.has("it took nothing of a stream") && l.has("closed=1") })
	stream := rangesUnread(t, plain(t, n.Address()))
	await(t, "the KV stream's end", func() bool { return l.has("closed=2") && l.has("address=127.0.0.1:") })
	drained := make(chan error, 2)
	go func() { drained <- drain(sub) }()
	go func() { drained <- drain(stream) }()
	for range cap(drained) {
		select {
		case err := <-drained:
			if status.Code(err) != codes.Unavailable {
				t.Errorf("a client that begins to read too late: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a stream stays")
		}
	}
}

// drain reads a stream to its end, and returns that.
func drain[M any](s interface{ Recv() (M, error) }) error {
	for {
		if _, err := s.Recv(); err != nil {
			return err
		}
	}
}

// Calls that are begun and not sent, and answers that are not taken, end with their
// connection; in the meantime others are served.
func TestCallsThatGoNoFurther(t *testing.T) {
	n, l := impatient(t)
	c := connect(t, client.Options{}, n.Address())
	fill(t, c, 0)
	for _, unread := range []bool{false, true} {
		raw := dialHTTP2(t, n.Address())
		request, err := proto.Marshal(&pb.RangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0")})
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint32(1000) {
			method := "/etcdserverpb.KV/Range"
			if err := raw.begin(2*i+1, method); err != nil {
				break
			}
			if unread && raw.WriteData(2*i+1, true, append([]byte{0, 0, 0, 0, byte(len(request))}, request...)) != nil {
				break
			}
		}
		if _, err := c.KV.Put(t.Context(), []byte("k"), []byte("v")); err != nil {
			t.Errorf("a put of another client: %v", err)
		}
		for began := time.Now(); ; {
			f, err := raw.ReadFrame()
			if err != nil {
				break
			}
			if _, ok := f.(*http2.PingFrame); !ok && time.Since(began) > 20*time.Second {
				t.Error("the connection stays")
				break
			}
		}
	}
	await(t, "the log tells", func() bool {
		return l.has("it sent no message for a call that it began") && l.has("it took nothing of an answer")
	})
}
