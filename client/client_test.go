package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/client/clienttest"
)

// start returns a server in memory and a client of it that hardly pauses.
func start(t *testing.T) (*clienttest.Server, *Client) {
	t.Helper()
	s := clienttest.Start()
	t.Cleanup(s.Stop)
	return s, open(t, clienttest.Network{"a:1": s}, "a:1")
}

func open(t *testing.T, network clienttest.Network, endpoints ...string) *Client {
	t.Helper()
	c, err := Open(t.Context(), Options{
		Endpoints:   endpoints,
		RetryFor:    5 * time.Second,
		DialOptions: []grpc.DialOption{network.DialOption()},
		pause:       func(int) time.Duration { return time.Millisecond },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	if got := ReasonOf(err); got != want {
		t.Fatalf("reason %q (%v), want %q", got, err, want)
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestKV(t *testing.T) {
	_, c := start(t)
	ctx := t.Context()
	if kv := must[*KeyValue](t)(c.KV.Get(ctx, []byte("k"))); kv != nil {
		t.Fatalf("a missing key is %v", kv)
	}
	first := must[uint64](t)(c.KV.PutIfAbsent(ctx, []byte("k"), []byte("1")))
	_, err := c.KV.PutIfAbsent(ctx, []byte("k"), []byte("2"))
	wantReason(t, err, ReasonCompareFailed)
	second := must[uint64](t)(c.KV.CompareAndPut(ctx, []byte("k"), []byte("2"), first))
	_, err = c.KV.CompareAndPut(ctx, []byte("k"), []byte("3"), first)
	wantReason(t, err, ReasonCompareFailed)
	_, err = c.KV.CompareAndPut(ctx, []byte("k"), []byte("3"), 0)
	wantReason(t, err, ReasonCompareFailed)
	must[uint64](t)(c.KV.Put(ctx, []byte("l"), []byte("x")))

	kv := must[*KeyValue](t)(c.KV.Get(ctx, []byte("k")))
	if string(kv.Value) != "2" || kv.CreateRevision != first || kv.ModRevision != second || kv.Version != 2 {
		t.Fatalf("got %+v", kv)
	}
	r := must[*RangeResult](t)(c.KV.Range(ctx, Prefix(nil), RangeOptions{Limit: 1}))
	if len(r.KVs) != 1 || r.Count != 2 || !r.More {
		t.Fatalf("got %+v", r)
	}
	txn := must[*TxnResult](t)(c.KV.Txn(ctx, Txn{
		If:   []Compare{CompareValue([]byte("k"), Equal, []byte("2"))},
		Then: []Op{OpPut([]byte("m"), []byte("y")), OpRange(From([]byte("l")), RangeOptions{}), OpTxn(Txn{Then: []Op{OpDelete(Key([]byte("l")))}})},
	}))
	if !txn.Succeeded || len(txn.Results[1].Range.KVs) != 2 || txn.Results[2].Txn.Results[0].Deleted != 1 {
		t.Fatalf("got %+v", txn)
	}
	if d := must[DeleteResult](t)(c.KV.Delete(ctx, Between([]byte("k"), []byte("z")))); d.Deleted != 2 {
		t.Fatalf("got %+v", d)
	}
}

// TestRetryRules checks for each reason what a read and a write do with it.
func TestRetryRules(t *testing.T) {
	for _, test := range []struct {
		reason      Reason
		read, write bool // is the call repeated
	}{
		{ReasonNotLeader, true, true},
		{ReasonBusy, true, true},
		{ReasonUninitialized, true, true},
		{ReasonUnavailable, true, false},
		{ReasonUnknownOutcome, true, false},
		{"range_not_found", true, false},
		{"wrong_range", true, false},
		{"restamp", true, false},
		{"locked", true, false},
		{"stopped", true, false},
		{ReasonCompareFailed, false, false},
		{ReasonInvalid, false, false},
		{ReasonDeadline, false, false},
		{"compacted", false, false},
		{"corrupt", false, false},
		{ReasonDiskFull, false, false},
		{ReasonInternal, false, false},
	} {
		t.Run(string(test.reason), func(t *testing.T) {
			s, c := start(t)
			var failures atomic.Int32
			s.Faults.Call = func(*almanacv1.StreamCall) *almanacv1.StreamReply {
				if failures.Add(-1) >= 0 {
					return clienttest.ErrorReply(codes.Unavailable, string(test.reason), "failed")
				}
				return nil
			}
			check := func(what string, repeated bool, err error) {
				t.Helper()
				if repeated && err != nil {
					t.Errorf("%s was not repeated: %v", what, err)
				}
				if !repeated {
					wantReason(t, err, test.reason)
					var e *Error
					if !errors.As(err, &e) || e.Remedy != "remedy of "+string(test.reason) || e.Message != "failed" {
						t.Errorf("%s: got %+v", what, e)
					}
				}
			}
			failures.Store(2)
			_, err := c.KV.Get(t.Context(), []byte("k"))
			check("get", test.read, err)
			failures.Store(1)
			_, err = c.KV.Put(t.Context(), []byte("k"), nil)
			check("put", test.write, err)
			failures.Store(1)
			_, err = c.KV.Delete(t.Context(), Key([]byte("k")))
			check("delete", test.write, err)
			failures.Store(1)
			_, err = c.KV.Txn(t.Context(), Txn{Then: []Op{OpRange(Prefix(nil), RangeOptions{})}})
			check("reading transaction", test.read, err)
		})
	}
}

// TestRetriesEnd checks that repeating stops after RetryFor with the last error.
func TestRetriesEnd(t *testing.T) {
	s, c := start(t)
	c.opts.RetryFor = 20 * time.Millisecond
	s.Faults.Call = func(*almanacv1.StreamCall) *almanacv1.StreamReply {
		return clienttest.ErrorReply(codes.Unavailable, "busy", "full")
	}
	_, err := c.KV.Put(t.Context(), []byte("k"), nil)
	wantReason(t, err, ReasonBusy)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	c.opts.RetryFor = time.Hour
	_, err = c.KV.Put(ctx, []byte("k"), nil)
	wantReason(t, err, ReasonDeadline)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v does not unwrap to the deadline", err)
	}
}

// TestFindsALivingNode checks that refused connections are no obstacle, even to writes.
func TestFindsALivingNode(t *testing.T) {
	s := clienttest.Start()
	defer s.Stop()
	c := open(t, clienttest.Network{"c:1": s}, "a:1", "b:1", "c:1")
	must[uint64](t)(c.KV.Put(t.Context(), []byte("k"), []byte("v")))
	must[Topic](t)(c.Events.CreateTopic(t.Context(), "t", TopicOptions{}))

	nobody := open(t, clienttest.Network{}, "a:1")
	nobody.opts.RetryFor = 20 * time.Millisecond
	_, err := nobody.KV.Put(t.Context(), []byte("k"), nil)
	wantReason(t, err, ReasonUnavailable) // not unknown: nothing was sent
	_, err = nobody.Events.Publish(t.Context(), "t", NewEvent{})
	wantReason(t, err, ReasonUnavailable)
}

// TestLeavesNodeThatHangs checks that a node that takes calls and never answers costs one
// call its time, not every call.
func TestLeavesNodeThatHangs(t *testing.T) {
	frozen, well := clienttest.Start(), clienttest.Start()
	defer frozen.Stop()
	defer well.Stop()
	thaw := make(chan struct{})
	defer close(thaw)
	frozen.Faults.Call = func(*almanacv1.StreamCall) *almanacv1.StreamReply {
		<-thaw
		return nil
	}
	c := open(t, clienttest.Network{"a:1": frozen, "b:1": well}, "a:1", "b:1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.KV.Put(ctx, []byte("k"), nil)
	wantReason(t, err, ReasonDeadline)
	must[uint64](t)(c.KV.Put(t.Context(), []byte("k"), nil))
}

// TestFollowsLeaderHint checks that a call goes where the error points, although that
// node is no endpoint.
func TestFollowsLeaderHint(t *testing.T) {
	follower, leader := clienttest.Start(), clienttest.Start()
	defer follower.Stop()
	defer leader.Stop()
	follower.Faults.Call = func(*almanacv1.StreamCall) *almanacv1.StreamReply {
		e := clienttest.Error(codes.FailedPrecondition, "not_leader", "not me")
		e.Detail.LeaderAddress = "leader:1"
		return &almanacv1.StreamReply{Response: &almanacv1.StreamReply_Error{Error: e}}
	}
	c := open(t, clienttest.Network{"follower:1": follower, "leader:1": leader}, "follower:1")
	must[uint64](t)(c.KV.Put(t.Context(), []byte("k"), []byte("v")))
	if _, calls := leader.Received(); calls != 1 {
		t.Fatalf("the leader got %d calls", calls)
	}
}

// TestLostConnection checks that a write without an answer has an unknown outcome and is
// not repeated, and that a read is.
func TestLostConnection(t *testing.T) {
	s, c := start(t)
	var got atomic.Int32
	s.Faults.Call = func(call *almanacv1.StreamCall) *almanacv1.StreamReply {
		if got.Add(1) == 1 {
			s.BreakStreams()
			<-s.Stopped() // never answers
		}
		return nil
	}
	_, err := c.KV.Put(t.Context(), []byte("k"), []byte("v"))
	wantReason(t, err, ReasonUnknownOutcome)
	if got.Load() != 1 {
		t.Fatalf("the write came %d times", got.Load())
	}
	got.Store(0)
	must[*KeyValue](t)(c.KV.Get(t.Context(), []byte("k")))
	if got.Load() != 2 {
		t.Fatalf("the read came %d times", got.Load())
	}
	must[uint64](t)(c.KV.Put(t.Context(), []byte("k"), []byte("v")))
}

// TestDeadlineOfWrite checks that a write given up says that it may have been done, and
// that its late answer disturbs nobody.
func TestDeadlineOfWrite(t *testing.T) {
	s, c := start(t)
	release := make(chan struct{})
	s.Faults.Call = func(call *almanacv1.StreamCall) *almanacv1.StreamReply {
		if string(call.GetPut().GetKey()) == "slow" {
			if call.GetTimeoutMs() <= 0 {
				t.Error("the call carries no timeout")
			}
			<-release
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.KV.Put(ctx, []byte("slow"), nil)
	wantReason(t, err, ReasonDeadline)
	var e *Error
	if errors.As(err, &e); e.Remedy == "" {
		t.Error("no remedy")
	}
	c.opts.Timeout = 20 * time.Millisecond // the same without a deadline of the caller's
	_, err = c.KV.Put(t.Context(), []byte("slow"), nil)
	wantReason(t, err, ReasonDeadline)
	c.opts.Timeout = time.Minute
	close(release)
	for range 10 {
		must[uint64](t)(c.KV.Put(t.Context(), []byte("k"), nil))
	}
}

// TestMultiplexing checks that calls share frames, overtake one another, and get their
// own answers.
func TestMultiplexing(t *testing.T) {
	const calls = 500
	s, c := start(t)
	var arrived atomic.Int32
	all := make(chan struct{})
	s.Faults.Call = func(call *almanacv1.StreamCall) *almanacv1.StreamReply {
		if call.GetPut() != nil {
			if arrived.Add(1) == calls {
				close(all)
			}
			<-all // every call is in flight before the first answer; answers come in any order
		}
		return nil
	}
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			key := fmt.Appendf(nil, "k%d", i)
			if _, err := c.KV.Put(t.Context(), key, key); err != nil {
				t.Error(err)
			}
			kv, err := c.KV.Get(t.Context(), key)
			if err != nil || kv == nil || string(kv.Value) != string(key) {
				t.Errorf("key %s: %v, %v", key, kv, err)
			}
		})
	}
	wg.Wait()
	if frames, n := s.Received(); n != 2*calls || frames >= n {
		t.Errorf("%d calls came in %d frames", n, frames)
	}
}

// TestLargeValues checks frames above their usual size.
func TestLargeValues(t *testing.T) {
	_, c := start(t)
	for i := range 3 {
		value := make([]byte, (i+1)<<20)
		key := []byte{byte(i)}
		must[uint64](t)(c.KV.Put(t.Context(), key, value))
		if kv := must[*KeyValue](t)(c.KV.Get(t.Context(), key)); len(kv.Value) != len(value) {
			t.Fatalf("got %d bytes", len(kv.Value))
		}
	}
	_, err := c.KV.Put(t.Context(), []byte("k"), make([]byte, 17<<20))
	wantReason(t, err, ReasonTooLarge)
}

func TestClose(t *testing.T) {
	s, c := start(t)
	in := make(chan struct{})
	s.Faults.Call = func(*almanacv1.StreamCall) *almanacv1.StreamReply {
		close(in)
		<-s.Stopped()
		return nil
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.KV.Put(context.Background(), []byte("k"), nil)
		failed <- err
	}()
	<-in
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	wantReason(t, <-failed, ReasonClosed)
	_, err := c.KV.Get(t.Context(), []byte("k"))
	wantReason(t, err, ReasonClosed)
}

func TestReasonOf(t *testing.T) {
	var none *Error
	for _, test := range []struct {
		err  error
		want Reason
	}{
		{nil, ""}, {none, ""}, {errors.New("x"), ReasonInternal}, {fmt.Errorf("x: %w", &Error{Reason: ReasonBusy}), ReasonBusy},
	} {
		if got := ReasonOf(test.err); got != test.want {
			t.Errorf("%v: got %q, want %q", test.err, got, test.want)
		}
	}
}

func TestOpenRefusesBadEndpoint(t *testing.T) {
	_, err := Open(t.Context(), Options{Endpoints: []string{"nowhere"}})
	wantReason(t, err, ReasonInvalid)
}

func TestJitteredPause(t *testing.T) {
	for attempt := range 100 {
		most := min(10*time.Millisecond<<min(attempt, 20), time.Second)
		if p := jitteredPause(attempt); p < most/2 || p > most {
			t.Errorf("pause %d is %s, not between %s and %s", attempt, p, most/2, most)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	s := clienttest.Start()
	defer s.Stop()
	c, err := Open(b.Context(), Options{Endpoints: []string{"a:1"}, DialOptions: []grpc.DialOption{clienttest.Network{"a:1": s}.DialOption()}})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	value := make([]byte, 256)
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.KV.Put(context.Background(), []byte("key"), value); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
