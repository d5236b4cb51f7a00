package transport

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/wire"
	"go.uber.org/goleak"
)

const patience = 20 * time.Second // only ever reached by a failing test

// switchboard connects nodes over loopback, by a name that survives restarts.
type switchboard struct {
	mu        sync.Mutex
	listeners map[string]net.Listener
}

func newSwitchboard() *switchboard {
	return &switchboard{listeners: make(map[string]net.Listener)}
}

func address(n base.NodeID) string { return fmt.Sprintf("node-%d", n) }

func (s *switchboard) listen(addr string) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners[addr] = l
	return l
}

func (s *switchboard) dial(ctx context.Context, addr string) (net.Conn, error) {
	s.mu.Lock()
	l := s.listeners[addr]
	s.mu.Unlock()
	if l == nil {
		return nil, fault.New(fault.Unavailable, "connection refused")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", l.Addr().String())
}

// inbox is a Handler that passes on what it gets.
type inbox chan received

type received struct {
	from base.NodeID
	msg  wire.Message
}

func (in inbox) Receive(from base.NodeID, msgs []wire.Message) {
	for _, m := range msgs {
		in <- received{from, m}
	}
}

func (in inbox) next(t testing.TB) received {
	t.Helper()
	return await(t, in)
}

func await[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

type testNode struct {
	*TCP
	id           base.NodeID
	inbox        inbox
	stop         func() // ends the listening
	connected    chan Class
	disconnected chan Class
	dropped      chan int
}

// start runs a node until the test ends or stop is called.
func (s *switchboard) start(t testing.TB, id base.NodeID, change func(*Options)) *testNode {
	t.Helper()
	n := &testNode{
		id: id, inbox: make(inbox, 1<<16),
		connected: make(chan Class, 100), disconnected: make(chan Class, 100), dropped: make(chan int, 1<<16),
	}
	opts := Options{
		Self: id, Cluster: base.ClusterID{1}, Handler: n.inbox, Dial: s.dial,
		Resolve: func(n base.NodeID) (string, bool) { return address(n), n < 100 },
		Rand:    func() float64 { return 0 },
		Listener: Listener{
			Connected:    func(_ base.NodeID, c Class) { n.connected <- c },
			Disconnected: func(_ base.NodeID, c Class, _ error) { n.disconnected <- c },
			Dropped:      func(_ base.NodeID, _ Class, k int) { n.dropped <- k },
		},
	}
	if change != nil {
		change(&opts)
	}
	var err error
	if n.TCP, err = NewTCP(opts); err != nil {
		t.Fatal(err)
	}
	n.stop = n.listen(t, s)
	t.Cleanup(func() {
		n.Close()
		n.stop()
	})
	return n
}

// listen hands incoming connections to the transport until stop is called.
func (n *testNode) listen(t testing.TB, s *switchboard) (stop func()) {
	l := s.listen(address(n.id))
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				first := make([]byte, len(Preface))
				if _, err := io.ReadFull(conn, first); err != nil || string(first) != Preface {
					t.Errorf("node %d: a connection begins with %q, %v", n.id, first, err)
				}
				n.Serve(conn)
			})
		}
	})
	return sync.OnceFunc(func() {
		l.Close()
		serving.Wait()
	})
}

func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
}

func call(id uint64, body string) wire.Message {
	return wire.Message{Call: &wire.Call{ID: id, Method: wire.MethodPropose, Body: []byte(body)}}
}

func TestMessagesArriveInOrder(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	a := s.start(t, 1, func(o *Options) { o.Queues[ClassBulk].Count = 1 << 16 })
	b := s.start(t, 2, nil)
	const each = 5000
	for i := range uint64(each) {
		for _, class := range []Class{ClassCalls, ClassBulk} {
			if !a.Send(2, class, call(i, class.String()), call(i, class.String())) {
				t.Fatal("not sent")
			}
		}
	}
	next := map[string]uint64{}
	for range 4 * each {
		got := b.inbox.next(t)
		class := string(got.msg.Call.Body)
		if got.from != 1 || got.msg.Call.ID != next[class]/2 {
			t.Fatalf("got call %d of class %s from %d, want %d from 1", got.msg.Call.ID, class, got.from, next[class]/2)
		}
		next[class]++
	}
}

func TestLargeMessage(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	a, b := s.start(t, 1, nil), s.start(t, 2, nil)
	body := make([]byte, MaxMessage-1000)
	body[len(body)-1] = 7
	if !a.Send(2, ClassBulk, wire.Message{Reply: &wire.Reply{Body: body}}) {
		t.Fatal("not sent")
	}
	if got := b.inbox.next(t); !bytes.Equal(got.msg.Reply.Body, body) {
		t.Fatal("arrived changed")
	}
	if a.Send(2, ClassBulk, wire.Message{Reply: &wire.Reply{Body: make([]byte, MaxMessage)}}) {
		t.Fatal("a message above the limit was taken")
	}
}

func TestSendRefuses(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	a := s.start(t, 1, nil)
	for name, ok := range map[string]bool{
		"unknown node":  a.Send(100, ClassCalls, call(1, "")),
		"this node":     a.Send(1, ClassCalls, call(1, "")),
		"unknown class": a.Send(2, classes, call(1, "")),
	} {
		if ok {
			t.Errorf("sent to %s", name)
		}
	}
	a.Close()
	if a.Send(2, ClassCalls, call(1, "")) {
		t.Error("sent after Close")
	}
}

// A server that belongs to another cluster hands on nothing; the dialer says why.
func TestAnotherClusterIsRefused(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	var logA, logB syncBuffer
	a := s.start(t, 1, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&logA, nil)) })
	b := s.start(t, 2, func(o *Options) {
		o.Cluster = base.ClusterID{2}
		o.Logger = slog.New(slog.NewTextHandler(&logB, nil))
	})
	a.Send(2, ClassCalls, call(1, "")) // the refusal may be there before it is queued
	if n := await(t, a.dropped); n != 1 {
		t.Fatalf("%d messages dropped", n)
	}
	for a.Send(2, ClassCalls, call(1, "")) { // until the queue is shut for the long wait
		await(t, a.dropped)
	}
	a.Close()
	b.Close()
	if len(b.inbox) != 0 {
		t.Error("a message crossed clusters")
	}
	for node, log := range map[string]*syncBuffer{"dialer": &logA, "server": &logB} {
		if !strings.Contains(log.String(), "belongs to cluster") {
			t.Errorf("%s logged:\n%s", node, log)
		}
	}
	l := newLink(a.TCP, linkKey{2, ClassCalls})
	if d := l.backoff(0, fault.New(fault.WrongCluster, "")); d < backoffRefuse/2 {
		t.Errorf("the dialer waits only %v", d)
	}
}

func TestWrongNodeIsRefused(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	a := s.start(t, 1, func(o *Options) {
		o.Resolve = func(base.NodeID) (string, bool) { return address(2), true }
	})
	b := s.start(t, 2, nil)
	a.Send(3, ClassCalls, call(1, ""))
	await(t, a.dropped)
	a.Close()
	b.Close()
	if len(b.inbox) != 0 {
		t.Error("node 2 got what was meant for node 3")
	}
}

func TestHandshake(t *testing.T) {
	h := handshake{protocolVersion, base.ClusterID{1, 2, 3}, 1 << 60, ClassBulk}
	b := h.append(nil)
	if got, err := decodeHandshake(b); err != nil || got != h {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if _, err := decodeHandshake(bad); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("damage at %d: %v", i, err)
		}
		if _, err := decodeHandshake(b[:i]); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("%d bytes: %v", i, err)
		}
	}
	ours := base.ClusterID{1, 2, 3}
	for _, c := range []struct {
		change func(*handshake)
		want   fault.Kind
	}{
		{func(h *handshake) {}, 0},
		{func(h *handshake) { h.cluster[15]++ }, fault.WrongCluster},
		{func(h *handshake) { h.version++ }, fault.Invalid},
		{func(h *handshake) { h.node = 0 }, fault.Corrupt},
		{func(h *handshake) { h.class = classes }, fault.Corrupt},
	} {
		x := h
		c.change(&x)
		if got := fault.KindOf(x.check(ours)); got != c.want {
			t.Errorf("%+v: %v, want %v", x, got, c.want)
		}
	}
}

func TestFullQueueRefuses(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	dialing := make(chan struct{})
	a := s.start(t, 1, func(o *Options) {
		o.Queues[ClassCalls] = Bounds{Count: 3}
		o.Queues[ClassBulk] = Bounds{Bytes: 300}
		o.Dial = func(ctx context.Context, _ string) (net.Conn, error) { // never connects
			dialing <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	for i := range uint64(3) {
		if !a.Send(2, ClassCalls, call(i, "")) {
			t.Fatalf("message %d refused", i)
		}
	}
	if a.Send(2, ClassCalls, call(3, "")) {
		t.Fatal("four messages in a queue of three")
	}
	await(t, dialing)
	body := strings.Repeat("x", 200)
	if !a.Send(2, ClassBulk, call(1, body), call(2, body)) {
		t.Fatal("an empty queue refused a large batch")
	}
	if a.Send(2, ClassBulk, call(3, "")) {
		t.Fatal("more bytes than the queue's bound")
	}
	await(t, dialing)
	a.Close()
	total := 0
	for len(a.dropped) > 0 {
		total += <-a.dropped
	}
	if total != 3+1+2+1 {
		t.Fatalf("%d messages reported as dropped", total)
	}
}

func TestReconnectAfterRestart(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	a, b := s.start(t, 1, nil), s.start(t, 2, nil)
	a.Send(2, ClassCalls, call(1, ""))
	b.inbox.next(t)
	await(t, a.connected)

	b.Close()
	b.stop()
	await(t, a.disconnected)
	b = s.start(t, 2, nil)
	await(t, a.connected)
	if !a.Send(2, ClassCalls, call(2, "")) {
		t.Fatal("not sent after the reconnect")
	}
	if got := b.inbox.next(t); got.msg.Call.ID != 2 {
		t.Fatalf("got call %d", got.msg.Call.ID)
	}
}

// A link that waits after failures tries again at once when its peer reaches this node.
func TestInboundStreamEndsTheWait(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	a := s.start(t, 1, func(o *Options) { o.Rand = func() float64 { return 0.99 } })
	a.Send(2, ClassCalls, call(1, ""))
	await(t, a.dropped) // nobody listens there
	l := a.link(linkKey{2, ClassCalls})
	b := s.start(t, 2, nil)
	b.Send(1, ClassReplication, call(1, ""))
	a.inbox.next(t)
	await(t, a.connected)
	if len(l.kick) > 1 {
		t.Fatal("more than one token")
	}
}

// Messages of an older stream never follow those of a newer one.
func TestNewerStreamTakesOver(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	b := s.start(t, 2, nil)
	a1 := s.start(t, 1, nil)
	a1.Send(2, ClassCalls, call(1, ""))
	b.inbox.next(t)
	a2, err := NewTCP(a1.opts) // the same node, on a second connection
	if err != nil {
		t.Fatal(err)
	}
	defer a2.Close()
	a2.Send(2, ClassCalls, call(2, ""))
	if got := b.inbox.next(t); got.msg.Call.ID != 2 {
		t.Fatalf("got call %d", got.msg.Call.ID)
	}
	await(t, a1.disconnected)
}

func TestForgottenNode(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	var mu sync.Mutex
	known := true
	a := s.start(t, 1, func(o *Options) {
		o.Resolve = func(n base.NodeID) (string, bool) {
			mu.Lock()
			defer mu.Unlock()
			return address(n), known
		}
	})
	b := s.start(t, 2, nil)
	a.Send(2, ClassCalls, call(1, ""))
	b.inbox.next(t)
	mu.Lock()
	known = false
	mu.Unlock()
	b.Close()
	await(t, a.disconnected)
	for a.Send(2, ClassCalls, call(2, "")) {
		a.Kick(2)
	}
	a.Close()
	if len(a.links) != 0 {
		t.Fatal("a link to a node that is gone stays")
	}
}

func TestDamagedFrameBreaksTheStream(t *testing.T) {
	checkLeaks(t)
	s := newSwitchboard()
	var log syncBuffer
	a := s.start(t, 1, nil)
	b := s.start(t, 2, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	conn, err := s.dial(t.Context(), address(2))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := newLink(a.TCP, linkKey{2, ClassCalls}).greet(conn); err != nil {
		t.Fatal(err)
	}
	frame := appendFrame(nil, []wire.Message{call(1, "body")})
	frame[len(frame)-1]++
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection goes on")
	}
	if !strings.Contains(log.String(), "checksum") {
		t.Errorf("logged:\n%s", log.String())
	}
	if len(b.inbox) != 0 {
		t.Fatal("a damaged message was handed on")
	}
}

// A frame is not allocated because its length is announced, and one beyond the limit ends
// the connection.
func TestAnnouncedLengths(t *testing.T) {
	for _, c := range []struct {
		head string
		want fault.Kind
	}{
		{"\xff\xff\xff\xff", fault.Corrupt},
		{"\x02\x00\x00\x01", fault.Corrupt},
		{"\x02\x00\x00\x00", fault.Internal}, // the limit; it is cut off
	} {
		var err error
		n := testing.AllocsPerRun(1, func() {
			_, err = readFrame(bufio.NewReader(strings.NewReader(c.head + "rest")))
		})
		if fault.KindOf(err) != c.want || n > 20 {
			t.Errorf("%x: %v", c.head, err)
		}
	}
	long := appendFrame(nil, []wire.Message{call(1, strings.Repeat("x", 5<<20))})
	frame, err := readFrame(bufio.NewReader(bytes.NewReader(long)))
	if err != nil || !bytes.Equal(frame, long[frameHead:]) {
		t.Errorf("a long frame: %d bytes, %v", len(frame), err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{
		Self: 1, Cluster: base.ClusterID{1}, Handler: make(inbox),
		Resolve: func(base.NodeID) (string, bool) { return "", false },
	}
	if _, err := good.withDefaults(); err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(*Options){
		func(o *Options) { o.Self = 0 },
		func(o *Options) { o.Cluster = base.ClusterID{} },
		func(o *Options) { o.Handler = nil },
		func(o *Options) { o.Resolve = nil },
		func(o *Options) { o.Queues[ClassBulk].Bytes = -1 },
	} {
		o := good
		change(&o)
		if _, err := NewTCP(o); fault.KindOf(err) != fault.Invalid {
			t.Errorf("change %d: %v", i, err)
		}
	}
}

func TestBackoffGrowsToItsBound(t *testing.T) {
	l := &link{t: &TCP{opts: Options{Rand: func() float64 { return 1 }}}}
	err := fault.New(fault.Unavailable, "")
	if d := l.backoff(0, err); d != backoffMin {
		t.Errorf("first wait %v", d)
	}
	last := time.Duration(0)
	for i := range 100 {
		d := l.backoff(i, err)
		if d < last || d > backoffMax {
			t.Fatalf("wait %d is %v after %v", i, d, last)
		}
		last = d
	}
	if last != backoffMax {
		t.Errorf("waits end at %v", last)
	}
}

// syncBuffer is a log's destination that several goroutines may write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Who cannot connect says so once nothing waits in the queue any more, and whether nobody
// listens at the address or the network is to blame.
func TestUnreachable(t *testing.T) {
	checkLeaks(t)
	for why, refused := range map[error]bool{unix.ECONNREFUSED: true, unix.EHOSTUNREACH: false} {
		s := newSwitchboard()
		told := make(chan bool, 1<<16)
		var down atomic.Bool
		a := s.start(t, 1, func(o *Options) {
			o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
				if down.Load() {
					return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", why)}
				}
				return s.dial(ctx, addr)
			}
			o.Listener.Unreachable = func(to base.NodeID, c Class, refused bool) {
				if to != 2 || c != ClassCalls {
					t.Errorf("node %d, class %v is unreachable", to, c)
				}
				told <- refused
			}
		})
		b := s.start(t, 2, nil)
		a.Send(2, ClassCalls, call(1, ""))
		b.inbox.next(t)
		if len(told) > 0 {
			t.Error("a peer that was reached is unreachable")
		}
		down.Store(true)
		b.Close()
		await(t, a.disconnected)
		if got := await(t, told); got != refused {
			t.Errorf("refused: %v, not %v", got, refused)
		}
	}
}
