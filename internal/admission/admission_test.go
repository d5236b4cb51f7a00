package admission

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/fault"
)

// Invariant 10: a share is never exceeded, but by one request that is larger than it.
func TestPoolHolds(t *testing.T) {
	p := NewPool(100)
	if !p.Take(60) || p.Take(50) || !p.Take(40) || p.Take(1) {
		t.Fatalf("60 + 40 of 100 fit, nothing else: %d used", p.Used())
	}
	p.Put(100)
	if !p.Take(500) || p.Take(1) {
		t.Fatal("an empty share takes one that is larger, and then nothing")
	}
	p.Put(500)
	if p.Used() != 0 {
		t.Fatalf("%d used after all was given back", p.Used())
	}
	var unbounded *Pool
	if !unbounded.Take(1 << 40) {
		t.Fatal("no share, no bound")
	}
}

func TestPoolHoldsUnderContention(t *testing.T) {
	p := NewPool(1000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				if p.Take(300) {
					if used := p.Used(); used > 1000+8*300 { // others may be trying
						t.Errorf("%d of 1000 used", used)
					}
					p.Put(300)
				}
			}
		})
	}
	wg.Wait()
	if p.Used() != 0 {
		t.Fatalf("%d used in the end", p.Used())
	}
}

// However many requests come, those that are let in waited no longer than the patience,
// and the others know it by then.
func TestGatesBoundTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := 0
		g := &Gates{Inside: 2, Waiting: 3, Patience: time.Second, Refused: func() { refused++ }}
		ctx := context.Background()
		for range 2 {
			if err := g.Enter(ctx, 7); err != nil {
				t.Fatal(err)
			}
		}
		type outcome struct {
			err   error
			after time.Duration
		}
		results := make(chan outcome, 4)
		begin := time.Now()
		for range 4 {
			go func() {
				err := g.Enter(ctx, 7)
				results <- outcome{err, time.Since(begin)}
			}()
			synctest.Wait()
		}
		if o := <-results; fault.KindOf(o.err) != fault.Busy || o.after != 0 {
			t.Fatalf("the fourth in a queue of three: %+v", o)
		}
		if err := g.Enter(ctx, 8); err != nil {
			t.Fatalf("another range has room: %v", err)
		}
		<-time.After(400 * time.Millisecond)
		g.Leave(7)
		if o := <-results; o.err != nil || o.after != 400*time.Millisecond {
			t.Fatalf("the first in the queue: %+v", o)
		}
		for range 2 {
			if o := <-results; fault.KindOf(o.err) != fault.Busy || o.after != time.Second {
				t.Fatalf("who waited too long: %+v", o)
			}
		}
		if refused != 3 {
			t.Errorf("%d refused were counted, not 3", refused)
		}
		g.Leave(7)
		g.Leave(7)
		g.Leave(8)
		if len(g.ranges) != 0 {
			t.Errorf("%d ranges are kept with nobody inside", len(g.ranges))
		}
	})
}

func TestGatesLetTheCallerGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Gates{Inside: 1, Waiting: 1, Patience: time.Hour}
		_ = g.Enter(context.Background(), 1)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- g.Enter(ctx, 1) }()
		synctest.Wait()
		cancel()
		if err := <-done; fault.KindOf(err) != fault.Cancelled {
			t.Fatalf("a caller that went away: %v", err)
		}
		g.Leave(1)
		if len(g.ranges) != 0 {
			t.Fatal("the caller left something behind")
		}
	})
}

// kv answers puts and gets; gets wait until they are let go.
type kv struct {
	almanacv1.UnimplementedKVServer
	hold chan struct{}
}

func (s *kv) Put(ctx context.Context, r *almanacv1.PutRequest) (*almanacv1.PutResponse, error) {
	return &almanacv1.PutResponse{Revision: uint64(len(r.Value))}, nil
}

func (s *kv) Get(ctx context.Context, r *almanacv1.GetRequest) (*almanacv1.GetResponse, error) {
	if err := Hold(ctx, len(r.Key)*10); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	<-s.hold
	return &almanacv1.GetResponse{}, nil
}

func serve(t *testing.T, in *Intake, impl *kv, unary grpc.UnaryServerInterceptor) (almanacv1.KVClient, *grpc.Server) {
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	almanacv1.RegisterKVServer(&Registrar{Server: s, Intake: in, Unary: unary, Status: func(_ context.Context, err error) error {
		return status.Error(codes.ResourceExhausted, fault.KindOf(err).String()+": "+err.Error())
	}}, impl)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	c, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return almanacv1.NewKVClient(c), s
}

// A unary method behind a Registrar looks to clients as ever, and what its calls hold
// comes out of the share and returns to it.
func TestUnaryCallsHoldAndReturn(t *testing.T) {
	in := &Intake{Bytes: NewPool(1 << 20), Streams: NewPool(1 << 20)}
	around := make(chan string, 1000)
	impl := &kv{hold: make(chan struct{})}
	c, server := serve(t, in, impl, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		around <- info.FullMethod
		return next(ctx, req)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := c.Put(ctx, &almanacv1.PutRequest{Key: []byte("k"), Value: make([]byte, 100)})
	if err != nil || r.Revision != 100 {
		t.Fatalf("a put: %v, %v", r, err)
	}
	if len(around) != 1 || <-around != almanacv1.KV_Put_FullMethodName {
		t.Error("the call was not made through what is around it")
	}
	_, err = c.Put(ctx, &almanacv1.PutRequest{Value: make([]byte, 600<<10)})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "too_large") {
		t.Errorf("one call for more than half of the share: %v", err)
	}

	const calls = 200 // 8 KiB each do not all fit in 1 MiB
	errs := make(chan error, calls)
	for range calls {
		go func() {
			_, err := c.Get(ctx, &almanacv1.GetRequest{Key: []byte("k")})
			errs <- err
		}()
	}
	busy := 0
	for range calls - (1<<20)/callBytes {
		if err := <-errs; err == nil || !strings.Contains(err.Error(), "busy") {
			t.Fatalf("a call without room: %v", err)
		}
		busy++
	}
	close(impl.hold)
	for range calls - busy {
		if err := <-errs; err != nil && !strings.Contains(err.Error(), "busy") {
			t.Error(err)
		}
	}
	server.GracefulStop() // waits for the handlers
	if n := in.Bytes.Used(); n != 0 {
		t.Errorf("%d bytes are held after all calls", n)
	}
}

// The calls of one stream hold half of the share together, and leave the rest to others.
func TestStreamsHoldTheirPart(t *testing.T) {
	in := &Intake{Bytes: NewPool(1000)}
	stream := in.Part()
	first, second, other := stream.Begin(), stream.Begin(), in.Begin()
	if err := first.Hold(400); err != nil {
		t.Fatal(err)
	}
	if err := second.Hold(200); fault.KindOf(err) != fault.Busy {
		t.Errorf("600 of 1000 by one stream: %v", err)
	}
	if err := other.Hold(500); err != nil {
		t.Errorf("another client: %v", err)
	}
	first.Leave()
	if err := second.Hold(200); err != nil {
		t.Errorf("the stream's answers were read: %v", err)
	}
	second.Leave()
	other.Leave()
	if in.Bytes.Used() != 0 || stream.part.Used() != 0 {
		t.Errorf("%d and %d are held in the end", in.Bytes.Used(), stream.part.Used())
	}
}

func TestCallsWithoutAnIntakeAreUnbounded(t *testing.T) {
	c := (&Intake{}).Begin()
	if err := errors.Join(c.Hold(1<<40), Hold(context.Background(), 1<<40)); err != nil {
		t.Fatal(err)
	}
	c.Leave()
	var none *Intake
	if err := none.Begin().Hold(1 << 40); err != nil {
		t.Fatal(err)
	}
}
